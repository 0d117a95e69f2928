//! A link kept outside of its file, to be put back.
//!
//! Owns: what of a link is kept: all of it. Must not know: when it is put back, or why it was changed.

use super::image::Vhdx;
use super::locator::Locator;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::link::SavedLink;
use crate::units::FileOffset;

impl Vhdx {
    /// The link as it is: every key and value of the parent locator, in their order; `None` when the image has no parent.
    ///
    /// # Errors
    /// `InvalidInput` when the locator is larger than one can be.
    pub fn saved_link(&self) -> Result<Option<SavedLink>> {
        self.metadata.locator.as_ref().map(|locator| locator.build().map(SavedLink)).transpose()
    }

    /// Puts back a link that was kept. Durable on return, and all of it at once.
    ///
    /// # Errors
    /// As [`set_linkage2`](Self::set_linkage2); `InvalidInput` also when `link` is not that of a VHDX.
    pub fn restore_link(&mut self, link: &SavedLink) -> Result<()> {
        self.parent_locator()?;
        let kept = Locator::parse(&link.0, FileOffset(0), &mut Findings::new());
        let other = |_| Error::new(ErrorKind::InvalidInput, "this is not the kept link of a VHDX");
        self.set_locator(&kept.map_err(other)?)
    }
}
