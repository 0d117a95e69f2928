//! What an import wrote, and the way back.
//!
//! Owns: the record of links as they were, and putting them back. Must not know: how files are found.

use crate::chain::{Chain, ChainOptions, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::link::SavedLink;
use crate::ops::registry::{Held, Registry};
use crate::storage::Access;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The kind of its records.
const KIND: &str = "import";

/// A child's link before the import, and after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Written {
    path: PathBuf,
    before: SavedLink,
    after: Option<SavedLink>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    written: Vec<Written>,
}

/// The record of an import at work.
#[derive(Debug)]
pub(super) struct Log<'a> {
    registry: &'a Registry,
    pub(super) id: String,
    record: Record,
}

impl<'a> Log<'a> {
    pub(super) fn new(registry: &'a Registry, _held: &Held) -> Self {
        let id = crate::guid::fresh().simple().to_string();
        Self { registry, id, record: Record { written: Vec::new() } }
    }

    /// Whether it says anything.
    pub(super) fn is_empty(&self) -> bool {
        self.record.written.is_empty()
    }

    /// Gives up the way back.
    pub(super) fn forget(&self) -> Result<()> {
        self.registry.remove(KIND, &self.id)
    }

    /// Notes the link of the file at `path` before it is written; durable on return.
    pub(super) fn before(&mut self, path: &Path, link: SavedLink) -> Result<()> {
        self.record.written.push(Written { path: path.to_path_buf(), before: link, after: None });
        self.registry.save(KIND, &self.id, &self.record)
    }

    /// Notes the link as it was written.
    pub(super) fn after(&mut self, path: &Path) -> Result<()> {
        let link = link_of(path)?;
        if let Some(last) = self.record.written.last_mut().filter(|last| last.path == path) {
            last.after = link;
        }
        self.registry.save(KIND, &self.id, &self.record)
    }
}

/// What [`cleanup_import`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanupReport {
    /// The import.
    pub id: String,
    /// The files whose links are as they were before it.
    #[serde(serialize_with = "crate::ops::paths::list")]
    pub restored: Vec<PathBuf>,
    /// Files that are gone, or whose link somebody else has written since; they were left alone.
    #[serde(serialize_with = "crate::ops::paths::list")]
    pub left: Vec<PathBuf>,
}

/// The imports recorded in the registry at `directory`, whose writes can be taken back.
///
/// # Errors
/// What the system answers.
pub fn imports(directory: impl AsRef<Path>) -> Result<Vec<String>> {
    Registry::at(directory.as_ref()).names(KIND)
}

/// Takes back what the import `id` wrote: every link it changed is as it was, all paths and identities of it. Links that
/// were written again since are left alone. The record goes.
///
/// # Errors
/// `NotFound` when there is no such import; `InUse`; what reading and writing answers: the record stays then, and it can
/// be tried again.
pub fn cleanup_import(directory: impl AsRef<Path>, id: &str) -> Result<CleanupReport> {
    let registry = Registry::at(directory.as_ref());
    let none = || {
        Error::new(ErrorKind::NotFound, format_args!("there is no import {id} here"))
            .with_path(registry.directory())
            .with_hint("`vhdkit imports list` shows those there are")
    };
    if !registry.directory().is_dir() {
        return Err(none());
    }
    let _held = registry.hold()?;
    let record: Record = registry.load(KIND, id)?.ok_or_else(none)?;
    let mut report = CleanupReport { id: id.to_owned(), ..CleanupReport::default() };
    for one in record.written.iter().rev() {
        if restore(one)? { report.restored.push(one.path.clone()) } else { report.left.push(one.path.clone()) }
    }
    registry.remove(KIND, id)?;
    Ok(report)
}

/// Puts one link back, if it is the one that was written, or the one from before already.
fn restore(one: &Written) -> Result<bool> {
    let mut layer = match held(&one.path) {
        Ok(layer) => layer,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let now = layer.image().saved_link().map_err(|error| layer.blame(error))?;
    if now.as_ref() == Some(&one.before) {
        return Ok(true);
    }
    // Without a link that was written the import died while it wrote: then whatever is there is its own.
    if one.after.is_some() && now != one.after {
        return Ok(false);
    }
    layer.reopen(Access::Recover)?;
    let done = layer.image_mut().restore_link(&one.before);
    done.map_err(|error| layer.blame(error))?;
    layer.close()?;
    Ok(true)
}

fn held(path: &Path) -> Result<Layer> {
    Chain::open_leaf(path, &ChainOptions::new().hold(0..1))
}

/// The link of the file at `path`.
pub(super) fn link_of(path: &Path) -> Result<Option<SavedLink>> {
    let layer = Chain::open_leaf(path, &ChainOptions::new())?;
    layer.image().saved_link().map_err(|error| layer.blame(error))
}
