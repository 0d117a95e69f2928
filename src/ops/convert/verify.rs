//! Is the new image what it was made from?
//!
//! Owns: reading it back, and the error when it is not. Must not know: how it was written.

use crate::chain::Layer;
use crate::copy::{Copier, Meter};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Format;
use crate::ops::compare::{CompareOptions, Comparison};
use crate::ops::stream::{self, ZEROS};
use crate::storage::{Access, FileStorage, Storage};
use crate::watch::{Observer, Progress, Watch};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// One of several passes over a disk, told to the observer of all of them.
pub(super) struct Pass<'a> {
    watch: &'a Watch<'a>,
    /// What is done before this pass starts.
    base: Progress,
}

impl<'a> Pass<'a> {
    /// Pass number `index` of `count` over `size` bytes, `moved` bytes having been moved already.
    pub(super) fn new(watch: &'a Watch<'a>, (index, count): (u64, u64), size: u64, moved: u64) -> Self {
        let base = Progress { done: size.saturating_mul(index), total: size.saturating_mul(count), moved };
        Self { watch, base }
    }

    pub(super) fn watch(&self) -> Watch<'_> {
        self.watch.stage(self)
    }
}

impl Observer for Pass<'_> {
    fn progress(&self, progress: Progress) {
        self.watch.report(Progress {
            done: self.base.done.saturating_add(progress.done),
            total: self.base.total,
            moved: self.base.moved.saturating_add(progress.moved),
        });
    }
}

/// Opens what was just written, to be read from the medium where the system lets that be asked for.
fn reopen(file: &Arc<FileStorage>, format: Format) -> Result<Layer> {
    file.sync().map_err(|error| Error::io("sync the new file", error))?;
    file.forget_cached();
    let storage = Arc::clone(file) as Arc<dyn Storage>;
    if format == Format::Raw { Layer::open_raw(storage, Access::Read) } else { Layer::open(storage, Access::Read) }
}

/// Compares what `source` decides with the new image in `file`.
pub(super) fn against(source: &[Layer], file: &Arc<FileStorage>, format: Format, watch: &Watch<'_>) -> Result<()> {
    let target = [reopen(file, format)?];
    let differencing = target.iter().any(|layer| layer.image().parent_link().is_some());
    let comparison = Comparison::new(source, &target)?;
    let comparison = if differencing { comparison.exact_maps() } else { comparison };
    let report = comparison.run(&CompareOptions::new().all(false).pad_with_zeros(true), watch)?;
    match report.ranges.first() {
        None => Ok(()),
        Some(range) => Err(not_the_same(format_args!("other bytes at offset {} of the disk", range.offset))),
    }
}

/// Compares the digest of what was poured in with that of the new image in `file`.
pub(super) fn digest(expected: &[u8], file: &Arc<FileStorage>, format: Format, watch: &Watch<'_>) -> Result<()> {
    let target = [reopen(file, format)?];
    let size = target.iter().map(|layer| layer.image().virtual_size()).max().unwrap_or(0);
    let mut digest = Sha256::new();
    stream::pour(stream::runs(&target), &Copier::new(0)?, &Meter::new(watch, size), |bytes| {
        digest.update(bytes);
        Ok(())
    })?;
    if *digest.finalize() == *expected { Ok(()) } else { Err(not_the_same("another SHA-256 of the disk")) }
}

/// The digest of what `digest` has seen, followed by `len` zeros.
pub(super) fn padded(mut digest: Sha256, len: u64) -> Vec<u8> {
    let mut left = len;
    while left > 0 {
        let now = left.min(ZEROS.len() as u64);
        digest.update(&ZEROS[..now as usize]);
        left -= now;
    }
    digest.finalize().to_vec()
}

fn not_the_same(found: impl std::fmt::Display) -> Error {
    let message = format_args!("the new image does not read back as its source: {found}").to_string();
    Error::new(ErrorKind::Io, message)
        .with_hint("the medium is failing, or the source changed meanwhile; no file was made under this name")
}
