//! The new leaf of a set, in its storage.
//!
//! Owns: that it is whole and durable before anybody says that it is there. Must not know: names, records, sessions.

use crate::chain::Layer;
use crate::error::{Error, Result};
use crate::link::DiskKind;
use crate::ops::create::{self, CreateOptions};
use crate::storage::Storage;
use std::path::Path;
use std::sync::Arc;

/// Makes an empty leaf over `parent` in `storage`, durable on return; `path` is where it will be found. A step of a
/// snapshot set: whoever keeps a record of sets may say that the leaf is there when this has returned, no sooner.
///
/// # Errors
/// Those of writing; `Unsupported` when the parent has no identity.
pub fn new_leaf(storage: &Arc<dyn Storage>, path: &Path, parent: &Layer) -> Result<()> {
    let options = CreateOptions::new(parent.image().format(), DiskKind::Differencing);
    create::make(Arc::clone(storage), path, &options, Some(parent))?.close()?;
    storage.sync().map_err(|error| Error::io("sync the new leaf", error))
}
