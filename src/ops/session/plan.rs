//! What a set is to be: its disks, their new leaves, and what keeps it from being begun.
//!
//! Owns: the options and the checks before anybody is told. Must not know: participants, the order of a session.

use super::journal::JournalDisk;
use crate::chain::{Chain, ChainOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::{FileIdentity, FileStorage};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long participants may be frozen: what Windows allows a writer.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// How a set is taken.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    pub(super) registry: Option<PathBuf>,
    pub(super) freeze_limit: Duration,
    pub(super) chain: ChainOptions,
    pub(super) stop_before: Option<usize>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { registry: None, freeze_limit: FREEZE_LIMIT, chain: ChainOptions::default(), stop_before: None }
    }
}

impl SessionOptions {
    /// The record beside the first disk, ten seconds to be frozen.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the record in `directory`, where one session is at work at a time; default `.vhdkit` beside the first disk.
    #[must_use]
    pub fn registry(mut self, directory: impl Into<PathBuf>) -> Self {
        self.registry = Some(directory.into());
        self
    }

    /// How long it may take from the first `freeze` until all new leaves are there; default ten seconds. A set that
    /// takes longer is aborted.
    #[must_use]
    pub fn freeze_limit(mut self, limit: Duration) -> Self {
        self.freeze_limit = limit;
        self
    }

    /// How the disks are opened. Without locks a disk may be in the hands of a program that knows what it does.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }

    /// Simulates a process that dies before its step `step`, the first being 0: the call answers `Cancelled` and
    /// everything stays as it is.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn stop_before(mut self, step: usize) -> Self {
        self.stop_before = Some(step);
        self
    }
}

/// A disk and the leaf it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotDisk {
    /// The leaf there is, which becomes the parent.
    #[serde(serialize_with = "crate::ops::paths::path")]
    pub leaf: PathBuf,
    /// The new leaf.
    #[serde(serialize_with = "crate::ops::paths::path")]
    pub child: PathBuf,
}

/// Looks at every disk before anybody is told: what can be known to fail fails here.
pub(super) fn look(disks: &[JournalDisk], options: &ChainOptions) -> Result<()> {
    let mut seen: BTreeSet<FileIdentity> = BTreeSet::new();
    for disk in disks {
        let chain = Chain::open(&disk.leaf, options)?;
        if chain.leaf().image().id().is_none() {
            let message = "a raw disk has no identity that a new leaf could name";
            return Err(Error::new(ErrorKind::Unsupported, message).with_path(&disk.leaf));
        }
        let identity = chain.leaf().file().map(FileStorage::identity).transpose();
        let identity = identity.map_err(|error| Error::io("look at the file", error).with_path(&disk.leaf))?;
        if identity.is_some_and(|identity| !seen.insert(identity)) {
            return Err(Error::new(ErrorKind::InvalidInput, "this disk is in the set twice").with_path(&disk.leaf));
        }
        if fs::symlink_metadata(&disk.child).is_ok() {
            return Err(Error::new(ErrorKind::Refused, "the new leaf exists already")
                .with_path(&disk.child)
                .with_hint("give it another name"));
        }
    }
    Ok(())
}

/// The record of a disk, with real paths, so that whoever recovers may stand elsewhere.
pub(super) fn planned(disk: &SnapshotDisk, id: &str) -> Result<JournalDisk> {
    let leaf = fs::canonicalize(&disk.leaf).map_err(|error| Error::io("find the disk", error).with_path(&disk.leaf))?;
    let no_name = || Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(&disk.child);
    let name = disk.child.file_name().ok_or_else(no_name)?;
    let directory = match disk.child.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = fs::canonicalize(directory)
        .map_err(|error| Error::io("find the directory of the new leaf", error).with_path(directory))?;
    let temporary = directory.join(format!(".{}.{id}.snapshot", name.to_string_lossy()));
    Ok(JournalDisk { leaf, child: directory.join(name), temporary, mark: None })
}
