//! The plan of a repair.
//!
//! Owns: which damage can be mended, and the writes that do it. Must not know: how a plan is carried out.

use super::Vhd;
use crate::error::Result;
use crate::finding::Findings;
use crate::mend::{RepairKind, Step};
use crate::storage::{Access, Storage};
use std::sync::Arc;

impl Vhd {
    /// What a repair of the image in `storage` would write.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) for reading.
    pub(crate) fn plan_repair(storage: Arc<dyn Storage>, _allow: &[RepairKind]) -> Result<Vec<Step>> {
        Self::open(storage, Access::Read, &mut Findings::new()).map(|_| Vec::new())
    }
}
