//! Moving bytes inside the file system or not at all.
//!
//! Owns: that nothing passes through this process. Must not know: see the module above.

use super::{Copier, Meter, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::units::FileOffset;

impl Copier {
    /// As [`run`](Self::run), but every move is made by the file system alone.
    ///
    /// # Errors
    /// `Unsupported` at the first move that it cannot make; any part of the work may have been done. As `run`.
    pub(crate) fn run_inside(&self, work: Work<'_>, meter: &Meter<'_>) -> Result<()> {
        for one in self.share(&work.moves, work.target, meter)? {
            meter.check()?;
            let done = work.target.copy_range(one.source, one.from, one.to, one.len);
            let failed = |error| Error::io("copy data", error).with_offset(FileOffset(one.to));
            if !done.map_err(failed)? {
                let message = "the data cannot be moved inside the file system, and nothing else was allowed";
                return Err(Error::new(ErrorKind::Unsupported, message)
                    .with_hint("both files must lie on one file system that can; or do without --require-offload"));
            }
            meter.add_offloaded(one.len);
        }
        self.run(Work { moves: Vec::new(), ..work }, meter)
    }
}
