//! The check of a whole file.
//!
//! Owns: the rules that take reading every map. Must not know: how anything is mended.

use super::Vhd;
use super::{locate, store};
use crate::error::Result;
use crate::finding::Findings;
use crate::map::BlockMap;
use crate::mend::CheckSummary;
use crate::storage::{Access, Storage};
use std::sync::Arc;

impl Vhd {
    /// Whether the file has a good footer copy at its start, though nothing else of a VHD may be left.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn probe_damaged(storage: &dyn Storage) -> Result<bool> {
        let long_enough = store::len(storage)? >= super::raw::FOOTER_LEN;
        Ok(long_enough && locate::read_copy(storage)?.is_ok_and(|raw| matches!(raw.kind.get(), 3 | 4)))
    }

    /// Checks the image in `storage`: what opening it finds.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) for reading.
    pub(crate) fn check(storage: Arc<dyn Storage>, _deep: bool, findings: &mut Findings) -> Result<CheckSummary> {
        let file_size = store::len(&*storage)?;
        let image = Self::open(storage, Access::Read, findings)?;
        Ok(CheckSummary {
            file_size,
            virtual_size: image.virtual_size(),
            allocated_blocks: image.allocated_blocks()?,
            ..CheckSummary::default()
        })
    }
}
