//! What operations do to files.
//!
//! Owns: the order of their steps. Must not know: which of them is possible when.
//!
//! Every operation that changes a file first says so in the record. One that was interrupted finds there what it was
//! about, does what is left, and ends; nothing else is let at the relation before.

use super::relation::{Pending, Relation, data_id};
use super::words::{CopyState, Operation, SyncType};
use super::{ModifyOptions, Replicas};
use crate::chain::{Chain, Layer, resync_mark};
use crate::error::{Error, ErrorKind, Result};
use crate::link::DiskKind;
use crate::ops::create::{CreateOptions, create};
use crate::ops::merge::{MergeOptions, merge};
use crate::ops::resync::{self, ResyncOptions, ResyncPair, resync};
use crate::ops::session::SnapshotDisk;
use crate::storage::atomic::sync_directory_of;
use crate::watch::Watch;
use std::fs;
use std::path::{Path, PathBuf};

/// One operation at work on one relation.
pub(super) struct Act<'a> {
    pub(super) replicas: &'a Replicas,
    pub(super) relation: &'a mut Relation,
    pub(super) options: &'a ModifyOptions,
    pub(super) watch: &'a Watch<'a>,
    pub(super) moved: u64,
    pub(super) notes: Vec<String>,
}

impl Act<'_> {
    /// Does it; the record says afterwards that it is done, or with an error what there is to finish.
    pub(super) fn run(&mut self, operation: Operation) -> Result<()> {
        let copies = self.relation.sync_type != SyncType::Snapshot;
        match operation {
            Operation::Activate | Operation::Resume | Operation::ResyncReplica if copies => self.copy(operation),
            Operation::Activate | Operation::ResyncReplica => self.new_point(operation),
            Operation::Fracture | Operation::Split if self.relation.sync_type == SyncType::Mirror => {
                self.open_log(operation)
            }
            Operation::RestoreFromReplica => self.restore(copies),
            Operation::Failover => self.fail_over(),
            Operation::Failback => self.fail_back(copies),
            Operation::ReverseRoles => self.reverse(),
            Operation::ReturnToResourcePool => self.fold_snapshot(),
            Operation::Abort => self.give_up(),
            Operation::Deactivate | Operation::Unprepare => {
                (self.relation.source_id, self.relation.target_id, self.relation.synced) = (None, None, None);
                self.relation.pending = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Notes that `operation` is about to change files, with the new leaf it makes. One that goes on after an
    /// interruption keeps the leaf it had begun.
    pub(super) fn begin(&mut self, operation: Operation, child: Option<PathBuf>) -> Result<Option<PathBuf>> {
        if let Some(pending) = self.relation.pending.as_ref().filter(|pending| pending.operation == operation) {
            return Ok(pending.child.clone());
        }
        self.relation.pending = Some(Pending { operation, child: child.clone() });
        self.replicas.save(self.relation)?;
        Ok(child)
    }

    fn resync(&mut self, source: PathBuf, target: PathBuf) -> Result<()> {
        let options = ResyncOptions::new()
            .grow(true)
            .volume_check(false)
            .chain(self.replicas.chain.clone())
            .jobs(self.options.jobs);
        let report = resync(&[ResyncPair { source, target }], &options, self.watch)?;
        self.moved += report.pairs.iter().map(|pair| pair.moved + pair.zeroed).sum::<u64>();
        Ok(())
    }

    /// The target becomes what the source is; a change log that has done its work is merged away.
    fn copy(&mut self, operation: Operation) -> Result<()> {
        self.relation.state = CopyState::Unsynchronized;
        self.begin(operation, None)?;
        self.options.reached(CopyState::Unsynchronized);
        let done = self.copy_all();
        if let Err(error) = &done
            && error.kind() != ErrorKind::Cancelled
        {
            self.relation.state = CopyState::Broken;
            // What made it fail is what counts.
            let _ = self.replicas.save(self.relation);
        }
        done
    }

    fn copy_all(&mut self) -> Result<()> {
        let (source, target) = (self.relation.source.clone(), self.relation.target.clone());
        if !target.exists() {
            let chain = Chain::open(&source, &self.replicas.chain)?;
            let image = chain.leaf().image();
            let options = CreateOptions::new(image.format(), DiskKind::Dynamic).size(chain.virtual_size());
            let options = options.logical_sector_size(chain.logical_sector_size());
            let options = image.block_size().into_iter().fold(options, CreateOptions::block_size);
            drop(chain);
            create(&target, &options)?;
        }
        self.resync(source, target)?;
        self.relation.settle(&self.replicas.chain)?;
        self.close_log()
    }

    /// Puts a new leaf on the source: its tables are the change log.
    fn open_log(&mut self, operation: Operation) -> Result<()> {
        let child = numbered(&self.relation.source)?;
        let child = self.begin(operation, Some(child))?;
        let Some(child) = child else { return Ok(()) };
        let base = self.relation.source.clone();
        self.ensure_child(&child, &base)?;
        self.log_is(child);
        Ok(())
    }

    /// The new leaf `child` is there: the source goes on in it.
    pub(super) fn log_is(&mut self, child: PathBuf) {
        let below = std::mem::replace(&mut self.relation.source, child);
        self.relation.base = Some(below);
    }

    /// Merges the change log into the file below it, when the target has all of it.
    fn close_log(&mut self) -> Result<()> {
        let Some(base) = self.relation.base.clone() else { return Ok(()) };
        let log = self.relation.source.clone();
        let options = MergeOptions::depth(1).chain(self.replicas.chain.clone()).jobs(self.options.jobs);
        if let Err(error) = merge(&log, &options, self.watch) {
            if error.kind() == ErrorKind::Cancelled {
                return Err(error);
            }
            // The mirror is whole; the log only makes the chain longer by one.
            self.notes.push(format!("the change log {} stays: {error}", log.display()));
            self.relation.base = None;
            return Ok(());
        }
        // The log's own id tells whether anybody wrote to it after its contents were copied.
        let unchanged = data_id(&log, &self.replicas.chain).ok() == self.relation.source_id;
        self.relation.source = base;
        self.relation.base = None;
        if unchanged {
            self.relation.source_id = Some(data_id(&self.relation.source, &self.replicas.chain)?);
            resync::remember(&self.relation.source, &self.relation.target, &self.replicas.chain)?;
        }
        // From here on the record leads to the file below.
        self.relation.pending = None;
        self.replicas.save(self.relation)?;
        remove(&log)
    }

    /// A snapshot: the leaf becomes the point in time, and a new leaf goes on above it.
    fn new_point(&mut self, operation: Operation) -> Result<()> {
        let child = numbered(&self.relation.source)?;
        let Some(child) = self.begin(operation, Some(child))? else { return Ok(()) };
        let below = self.relation.source.clone();
        self.ensure_child(&child, &below)?;
        self.relation.target = std::mem::replace(&mut self.relation.source, child);
        self.relation.settle(&self.replicas.chain)
    }

    fn restore(&mut self, copies: bool) -> Result<()> {
        self.begin(Operation::RestoreFromReplica, None)?;
        if copies {
            self.resync(self.relation.target.clone(), self.relation.source.clone())?;
        } else {
            // What was written since the point in time is given up in one step: a new, empty leaf in the old one's place.
            let leaf = Chain::open_leaf(&self.relation.source, &self.replicas.chain)?;
            let options = self.child_options(&leaf, &self.relation.target).overwrite(true);
            drop(leaf);
            create(&self.relation.source, &options)?;
        }
        self.relation.settle(&self.replicas.chain)
    }

    fn fail_over(&mut self) -> Result<()> {
        let child = numbered(&self.relation.target)?;
        let Some(child) = self.begin(Operation::Failover, Some(child))? else { return Ok(()) };
        let target = self.relation.target.clone();
        self.ensure_child(&child, &target)?;
        self.relation.live = Some(child);
        Ok(())
    }

    /// Brings what was written to the replica back, and makes the two one again.
    fn fail_back(&mut self, copies: bool) -> Result<()> {
        self.begin(Operation::Failback, None)?;
        let live = self.relation.live.clone().filter(|live| live.exists());
        let from = live.clone().unwrap_or_else(|| self.relation.target.clone());
        self.resync(from, self.relation.source.clone())?;
        if let Some(live) = live {
            if copies {
                let options = MergeOptions::depth(1).chain(self.replicas.chain.clone()).jobs(self.options.jobs);
                merge(&live, &options, self.watch)?;
            }
            remove(&live)?;
        }
        self.relation.live = None;
        self.relation.settle(&self.replicas.chain)
    }

    fn reverse(&mut self) -> Result<()> {
        if let Some(live) = self.relation.live.take() {
            // The replica goes on as the source, leaf and all.
            self.relation.target = std::mem::replace(&mut self.relation.source, live);
        } else {
            std::mem::swap(&mut self.relation.source, &mut self.relation.target);
        }
        self.relation.base = None;
        std::mem::swap(&mut self.relation.source_id, &mut self.relation.target_id);
        if self.relation.state == CopyState::Split {
            // What was above the base now tells what the target lacks; ids are taken as they are.
            self.relation.target_id = Some(data_id(&self.relation.target, &self.replicas.chain)?);
            self.relation.source_id = Some(data_id(&self.relation.source, &self.replicas.chain)?);
        }
        Ok(())
    }

    /// Merges the live leaf into the point in time, which is the disk again.
    fn fold_snapshot(&mut self) -> Result<()> {
        self.begin(Operation::ReturnToResourcePool, None)?;
        if self.relation.source.exists() {
            let options =
                MergeOptions::depth(1).delete(true).chain(self.replicas.chain.clone()).jobs(self.options.jobs);
            let report = merge(&self.relation.source, &options, self.watch)?;
            self.moved += report.moved;
        }
        self.notes.push(format!("the disk is {} again", self.relation.target.display()));
        Ok(())
    }

    /// The target is marked as the half of a copy that it is.
    fn give_up(&mut self) -> Result<()> {
        if let Some(mark) =
            resync_mark(&self.relation.target).filter(|mark| self.relation.target.exists() && !mark.exists())
        {
            fs::write(&mark, "{}\n").map_err(|error| Error::io("mark the target", error).with_path(&mark))?;
            sync_directory_of(&mark)?;
        }
        self.relation.pending = None;
        Ok(())
    }

    /// The new leaf `child` over `parent`: made, or there already because this was interrupted.
    fn ensure_child(&self, child: &Path, parent: &Path) -> Result<()> {
        if child.exists() {
            let chain = Chain::open(child, &self.replicas.chain)?;
            let real = |path: &Path| fs::canonicalize(path).ok();
            let below = chain.layers().get(1).and_then(Layer::path).and_then(real);
            if below.is_some() && below == real(parent) {
                return Ok(());
            }
            return Err(Error::new(ErrorKind::Refused, "another file is where the new leaf was to be").with_path(child));
        }
        let leaf = Chain::open_leaf(parent, &self.replicas.chain)?;
        let options = self.child_options(&leaf, parent);
        drop(leaf);
        create(child, &options)
    }

    fn child_options(&self, like: &Layer, parent: &Path) -> CreateOptions {
        CreateOptions::new(like.image().format(), DiskKind::Differencing)
            .parent(parent)
            .chain(self.replicas.chain.clone())
    }
}

/// A free name for the leaf above `leaf`.
pub(super) fn numbered(leaf: &Path) -> Result<PathBuf> {
    let named = SnapshotDisk::numbered(&[leaf.to_path_buf()])?.pop();
    named
        .map(|disk| disk.child)
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(leaf))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory_of(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("delete the merged file", error).with_path(path)),
    }
}
