//! The check of a whole file.
//!
//! Owns: the rules that take reading every map. Must not know: how anything is mended.

use super::Vhdx;
use crate::error::{Error, Result};
use crate::finding::Findings;
use crate::map::BlockMap;
use crate::mend::CheckSummary;
use crate::storage::{Access, Storage};
use std::sync::Arc;

impl Vhdx {
    /// Checks the image in `storage`: what opening it finds.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) for reading.
    pub(crate) fn check(storage: Arc<dyn Storage>, _deep: bool, findings: &mut Findings) -> Result<CheckSummary> {
        let file_size = storage.len().map_err(|error| Error::io("read the file length", error))?;
        let image = Self::open(storage, Access::Read, findings)?;
        Ok(CheckSummary {
            file_size,
            virtual_size: image.virtual_size(),
            allocated_blocks: image.allocated_blocks()?,
            ..CheckSummary::default()
        })
    }
}
