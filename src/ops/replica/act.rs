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
use crate::storage::atomic::{remove_if_there, remove_leftovers, sync_directory_of};
use crate::watch::Watch;
use std::fs;
use std::path::{Path, PathBuf};

/// What fails when a merged file does not go.
const MERGED: &str = "delete the merged file";

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
        self.drop_merged_log(copies)?;
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
        let resumed = self.relation.pending.as_ref().filter(|pending| pending.operation == operation);
        let child = resumed.map_or(child, |pending| pending.child.clone());
        self.relation.pending = Some(Pending::new(operation, child.clone(), self.options.run.clone()));
        self.relation.failed = None;
        self.replicas.save(self.relation)?;
        self.options.reached(CopyState::Unsynchronized);
        Ok(child)
    }

    /// A copy that was interrupted when its change log was merged already, and not yet gone, has the record lead to the
    /// file below.
    fn drop_merged_log(&mut self, copies: bool) -> Result<()> {
        let Some(pending) = self.relation.pending.as_mut().filter(|pending| copies && pending.child_id.is_some())
        else {
            return Ok(());
        };
        let (Some(log), id) = (pending.child.take(), pending.child_id.take()) else { return Ok(()) };
        if !log.exists() || data_id(&log, &self.replicas.chain).ok() == id {
            return remove_if_there(&log, MERGED).map(drop);
        }
        self.notes.push(format!("the merged change log {} was written to since: it stays", log.display()));
        Ok(())
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
            // Nobody else makes it: the records are held.
            remove_leftovers(&target);
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
        let (log_id, base_id) = (data_id(&log, &self.replicas.chain)?, data_id(&base, &self.replicas.chain)?);
        // The log's own id tells whether anybody wrote to it after its contents were copied.
        if Some(&log_id) == self.relation.source_id.as_ref() {
            self.relation.source_id = Some(base_id);
            resync::remember(&base, &self.relation.target, &self.replicas.chain)?;
        }
        self.relation.source = base;
        self.relation.base = None;
        // From here on the record leads to the file below, and says that the log is to go.
        if let Some(pending) = &mut self.relation.pending {
            (pending.child, pending.child_id) = (Some(log.clone()), Some(log_id));
        }
        self.replicas.save(self.relation)?;
        remove_if_there(&log, MERGED).map(drop)
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
            remove_leftovers(&self.relation.source);
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
        let Some(live) = self.relation.live.clone() else {
            // The roles were reversed since: what was written is in the source.
            return self.copy_all();
        };
        if live.exists() {
            self.resync(live.clone(), self.relation.source.clone())?;
            if copies {
                let options = MergeOptions::depth(1).chain(self.replicas.chain.clone()).jobs(self.options.jobs);
                merge(&live, &options, self.watch)?;
            }
            remove_if_there(&live, MERGED)?;
        } else if resync_mark(&self.relation.source).is_some_and(|mark| mark.exists()) {
            let message = "the leaf that was to be brought back is gone, and the source holds parts of two disks";
            return Err(Error::new(ErrorKind::NotFound, message).with_path(&live));
        }
        // It goes last: when it is gone, everything of it is where it belongs.
        self.relation.live = None;
        self.relation.settle(&self.replicas.chain)
    }

    fn reverse(&mut self) -> Result<()> {
        use std::mem::{replace, swap};
        let relation = &mut *self.relation;
        if let Some(live) = relation.live.take() {
            // The replica goes on as the source, in its leaf, which tells what the other one lacks.
            let old = replace(&mut relation.source, live);
            relation.base = Some(replace(&mut relation.target, old));
        } else if let Some(base) = relation.base.take().filter(|_| relation.state == CopyState::Failedover) {
            let old = replace(&mut relation.target, base);
            relation.live = Some(replace(&mut relation.source, old));
        } else {
            swap(&mut relation.source, &mut relation.target);
        }
        swap(&mut relation.source_id, &mut relation.target_id);
        if relation.state == CopyState::Split {
            // What was above the base now tells what the target lacks; ids are taken as they are.
            relation.target_id = Some(data_id(&relation.target, &self.replicas.chain)?);
            relation.source_id = Some(data_id(&relation.source, &self.replicas.chain)?);
        }
        Ok(())
    }

    /// Merges the live leaf into the point in time, which is the disk again.
    fn fold_snapshot(&mut self) -> Result<()> {
        self.begin(Operation::ReturnToResourcePool, None)?;
        let options = MergeOptions::depth(1).delete(true).chain(self.replicas.chain.clone()).jobs(self.options.jobs);
        match merge(&self.relation.source, &options, self.watch) {
            Ok(report) => self.moved += report.moved,
            // An earlier run had merged and deleted it, and nothing of that is left to end.
            Err(error) if error.kind() == ErrorKind::NotFound && !self.relation.source.exists() => {}
            Err(error) => return Err(error),
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
        remove_leftovers(child);
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
