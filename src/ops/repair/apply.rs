//! Carrying out a plan.
//!
//! Owns: what each edit does to a storage. Must not know: why.

use crate::error::{Error, Result};
use crate::mend::{Edit, Step};
use crate::storage::Storage;

/// Does all of `steps` in their order; durable on return.
///
/// # Errors
/// What the storage answers; the file is then as after a crash.
pub(super) fn steps(storage: &dyn Storage, steps: &[Step]) -> Result<()> {
    steps.iter().flat_map(|step| &step.edits).try_for_each(|change| edit(storage, change))?;
    edit(storage, &Edit::Sync)
}

/// Does one edit.
///
/// # Errors
/// What the storage answers.
pub(super) fn edit(storage: &dyn Storage, edit: &Edit) -> Result<()> {
    match edit {
        Edit::Write { at, bytes } => {
            storage.write_all_at(bytes, at.get()).map_err(|error| Error::io("write a repair", error).with_offset(*at))
        }
        Edit::Zero(range) => storage.zero_range(range.clone()).map_err(|error| Error::io("write zeros", error)),
        Edit::SetLen(len) => storage.set_len(*len).map_err(|error| Error::io("set the length of the file", error)),
        Edit::Sync => storage.sync().map_err(|error| Error::io("sync the file", error)),
    }
}
