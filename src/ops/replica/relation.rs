//! One relation: what is remembered of it, and how it stands with its files.
//!
//! Owns: the record, and the look at the files that decides whether the remembered state is still true. Must not know:
//! what operations do.
//!
//! A VHDX has an id that changes with its data. A VHD has none: its Unique ID, length and time of last change stand in,
//! which somebody can set back, so that its states are weaker.

use super::words::{CopyState, Operation, SyncType};
use crate::chain::{Chain, ChainOptions, resync_mark};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The kind of its records.
pub(super) const KIND: &str = "relation";

/// An operation that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Which one.
    pub operation: Operation,
    /// The new leaf it makes; with an id, the merged leaf it removes.
    pub child: Option<PathBuf>,
    /// What the merged leaf was when it was merged.
    pub child_id: Option<String>,
    /// The operation on its group that it is part of.
    pub run: Option<String>,
    /// The number of the process that began it, or went on with it.
    pub process: Option<u32>,
}

impl Pending {
    /// One that begins in this process.
    pub(super) fn new(operation: Operation, child: Option<PathBuf>, run: Option<String>) -> Self {
        Self { operation, child, child_id: None, run, process: Some(std::process::id()) }
    }
}

/// A disk and its replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// Its name.
    pub id: String,
    /// What it is.
    pub sync_type: SyncType,
    /// The leaf of the disk.
    pub source: PathBuf,
    /// Where the source is fractured from its mirror, or is the replica in use after a failover and reversed roles: the
    /// file below the leaf, which is the change log.
    pub base: Option<PathBuf>,
    /// The replica.
    pub target: PathBuf,
    /// After a failover: the leaf above the target.
    pub live: Option<PathBuf>,
    /// How it stands.
    pub state: CopyState,
    /// What the source was when both were the same.
    pub source_id: Option<String>,
    /// What the target was.
    pub target_id: Option<String>,
    /// When it was created, in seconds since 1970.
    pub established: u64,
    /// When both were the same last.
    pub synced: Option<u64>,
    /// Its group.
    pub group: Option<String>,
    /// An operation that was begun and has not ended.
    pub pending: Option<Pending>,
    /// Why that stopped, unless it was told to or its process died.
    pub failed: Option<String>,
    /// The last operation on its group that was done to it.
    pub run: Option<String>,
}

impl Relation {
    pub(super) fn new(id: &str, sync_type: SyncType, source: PathBuf, target: PathBuf) -> Self {
        Self {
            id: id.to_owned(),
            sync_type,
            source,
            base: None,
            target,
            live: None,
            state: CopyState::Initialized,
            source_id: None,
            target_id: None,
            established: now(),
            synced: None,
            group: None,
            pending: None,
            failed: None,
            run: None,
        }
    }

    /// Remembers that source and target are the same now.
    pub(super) fn settle(&mut self, options: &ChainOptions) -> Result<()> {
        self.source_id = Some(data_id(&self.source, options)?);
        self.target_id = Some(data_id(&self.target, options)?);
        self.synced = Some(now());
        Ok(())
    }

    /// The state as the files have it: what is remembered, unless they contradict it.
    pub(super) fn observed(&self, options: &ChainOptions) -> CopyState {
        use CopyState as S;
        let not_made = matches!(self.state, S::Initialized | S::Prepared | S::Inactive);
        let begun = self.pending.as_ref().map(|pending| pending.operation);
        if begun == Some(Operation::ReturnToResourcePool) && !self.source.exists() {
            return S::Unsynchronized;
        }
        // One that was never whole is made by the copy that was begun.
        let never_made = self.target_id.is_none() && !self.target.exists();
        if !self.source.exists() || (!self.target.exists() && !not_made && !never_made) {
            return S::Partitioned;
        }
        if matches!(self.state, S::Aborted | S::Suspended) || not_made {
            return if self.pending.is_some() && not_made { S::Unsynchronized } else { self.state };
        }
        if never_made {
            return if self.state == S::Broken { S::Broken } else { S::Unsynchronized };
        }
        let opens = |path: &Path| Chain::open(path, &options.clone().locked(false)).is_ok();
        // A failback removes the live leaf as the last thing.
        let live = self.live.as_deref().filter(|live| begun != Some(Operation::Failback) || live.exists());
        let live = live.is_none_or(opens);
        if !opens(&self.source) || !opens(&self.target) || !live {
            return S::Invalid;
        }
        let marked = |path: &Path| resync_mark(path).is_some_and(|mark| mark.exists());
        if self.state != S::Broken && (self.pending.is_some() || marked(&self.target) || marked(&self.source)) {
            return S::Unsynchronized;
        }
        if !matches!(self.state, S::Synchronized | S::Fractured | S::Split | S::Restored) {
            return self.state;
        }
        let is = |path: &Path, id: &Option<String>| id.is_some() && data_id(path, options).ok() == *id;
        if !is(&self.target, &self.target_id) {
            return S::Skewed;
        }
        // The live leaf above a snapshot is meant to be written to, and so is a source that was separated.
        let still = matches!(self.state, S::Synchronized | S::Restored) && self.sync_type != SyncType::Snapshot;
        if still && !is(&self.source, &self.source_id) { S::Unsynchronized } else { self.state }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the image at `path` holds, as far as its file tells without being read.
pub(super) fn data_id(path: &Path, options: &ChainOptions) -> Result<String> {
    let layer = Chain::open_leaf(path, &options.clone().locked(false))?;
    match layer.image() {
        Image::Vhdx(image) => Ok(format!("vhdx {}", image.data_write_guid())),
        Image::Vhd(image) => {
            let metadata = fs::metadata(path).map_err(|error| Error::io("look at the file", error).with_path(path))?;
            let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let changed = changed.unwrap_or_default().as_nanos();
            Ok(format!("vhd {} {} {changed}", image.id(), metadata.len()))
        }
        Image::Raw(_) => {
            Err(Error::new(ErrorKind::Unsupported, "a raw disk cannot be part of a relation").with_path(path))
        }
    }
}
