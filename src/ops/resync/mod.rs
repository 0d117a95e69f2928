//! Making disks show what other disks show, by moving as little as possible.
//!
//! Owns: the request, its refusals, and the order of its writes. Must not know: how what differs is found (`find`), how a
//! format stores a block.
//!
//! The order for each pair, each step durable before the next: the mark beside the target; a smaller target grows; the
//! differences, batch by batch; a larger target is cut; the identity; the record of what both were; the mark goes. While
//! the mark is there, whoever opens the target is told that it holds parts of two disks. A rerun finds what differs still
//! and finishes. There is no way back: a resync is stopped and run again, never aborted.

mod find;
mod options;
mod record;
mod write;

pub use write::resync_chain;

pub use options::{ResyncIdentity, ResyncOptions, ResyncPair, ResyncReport, ResyncedPair, WhatDiffers};

use crate::chain::{Chain, ChainOptions, Layer, Owner, resync_mark};
use crate::copy::{Copier, Meter};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{Partition, PartitionTable};
use crate::image::Image;
use crate::ops::children;
use crate::storage::{Access, FileIdentity, FileStorage};
use crate::watch::Watch;
use record::{Mark, Record};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use write::{Pass, require_fits};

/// Makes each target show exactly what its source shows, moving only what differs.
///
/// All pairs are looked at before anything is written; then they are dealt with one after the other. What differs is
/// found by what both were when they were last the same, else by files that both chains share, else by their maps, else
/// by reading both.
///
/// # Errors
/// Before the first write: `InvalidInput` (no pairs, one target twice), `Refused` (a source and its target stand on one
/// another, other images stand on the target, the target has a partition that the source has not), `NoSpace` (the
/// target is smaller and may not grow), `Chain` (sector sizes differ), those of opening the files. Later: `Io`,
/// `NoSpace`, `Unsupported` (offload was required), `Cancelled`: the target is marked, and a rerun finishes.
pub fn resync(pairs: &[ResyncPair], options: &ResyncOptions, watch: &Watch<'_>) -> Result<ResyncReport> {
    require_apart(pairs, options)?;
    let mut opened = pairs.iter().map(|pair| Opened::new(pair, options)).collect::<Result<Vec<_>>>()?;
    require_unique_disks(&opened, options)?;
    for one in &opened {
        one.require_startable(options)?;
    }
    let mut report = ResyncReport { dry_run: options.dry_run, pairs: Vec::new() };
    for one in opened.drain(..) {
        report.pairs.push(if options.dry_run { one.look(options, watch)? } else { one.run(options, watch)? });
    }
    Ok(report)
}

/// Remembers that the image at `target` holds what the chain at `source` shows, for who made it so by other means.
///
/// # Errors
/// Those of opening both, and of writing the record.
pub(super) fn remember(source: &Path, target: &Path, options: &ChainOptions) -> Result<()> {
    let open = |path: &Path| Chain::open(path, &options.clone().access(Access::Read).locked(false));
    Record::write(target, &open(source)?, &open(target)?)
}

/// Refuses pairs that would write what another of them, or their own source, reads.
fn require_apart(pairs: &[ResyncPair], options: &ResyncOptions) -> Result<()> {
    if pairs.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "a resync needs at least one pair of disks"));
    }
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).map_err(|error| Error::io("find the disk", error).with_path(path))?;
        Ok(FileIdentity::of(&metadata))
    };
    let mut targets: BTreeMap<FileIdentity, &Path> = BTreeMap::new();
    for pair in pairs {
        if targets.insert(identity(&pair.target)?, &pair.target).is_some() {
            return Err(Error::new(ErrorKind::InvalidInput, "this target is named twice").with_path(&pair.target));
        }
    }
    for pair in pairs {
        let chain = Chain::open(&pair.source, &options.chain.clone().locked(false))?;
        let source = identity(&pair.source)?;
        for layer in chain.layers() {
            let own = file_of(layer)?;
            if let Some(target) = own.and_then(|own| targets.get(&own)) {
                let message = format!("the source {} stands on this target, or is it", pair.source.display());
                return Err(Error::new(ErrorKind::Refused, message)
                    .with_path(target)
                    .with_hint("to move what a chain shows into one of its images, use `vhdkit merge`"));
            }
        }
        let (below, _) = Chain::open_as_far(&pair.target, &options.chain.clone().locked(false))?;
        for layer in below.iter().skip(1) {
            if file_of(layer)? == Some(source) {
                let message = format!("the target stands on its source {}", pair.source.display());
                return Err(Error::new(ErrorKind::Refused, message)
                    .with_path(&pair.target)
                    .with_hint("to give up what such a target holds, delete it and make a new child"));
            }
        }
    }
    Ok(())
}

fn file_of(layer: &Layer) -> Result<Option<FileIdentity>> {
    let identity = layer.file().map(FileStorage::identity).transpose();
    identity.map_err(|error| layer.blame(Error::io("look at the file", error)))
}

/// Windows tells disks apart by this id, so no two targets may have it.
fn require_unique_disks(opened: &[Opened], options: &ResyncOptions) -> Result<()> {
    let mut seen = BTreeSet::new();
    for one in opened {
        let image = match options.identity {
            ResyncIdentity::KeepTarget => one.target.leaf().image(),
            ResyncIdentity::TakeSource => one.source.leaf().image(),
            ResyncIdentity::Fresh => continue,
        };
        if let Image::Vhdx(image) = image
            && !seen.insert(image.disk_id())
        {
            let message = format!("two targets would have the virtual disk id {}", image.disk_id());
            return Err(Error::new(ErrorKind::Refused, message)
                .with_path(&one.pair.target)
                .with_hint("give them ids of their own with --identity fresh"));
        }
    }
    Ok(())
}

/// A pair whose files are open and locked.
struct Opened {
    pair: ResyncPair,
    source: Chain,
    target: Chain,
    mark: PathBuf,
    /// Whether an earlier run was interrupted.
    resumed: bool,
}

impl Opened {
    fn new(pair: &ResyncPair, options: &ResyncOptions) -> Result<Self> {
        let source = Chain::open(&pair.source, &options.chain.clone().access(Access::Read))?;
        let held = if options.dry_run { 0..0 } else { 0..1 };
        let target = Chain::open(&pair.target, &options.chain.clone().access(Access::Read).hold(held))?;
        let no_name = || Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(&pair.target);
        let mark = resync_mark(&pair.target).ok_or_else(no_name)?;
        let resumed = mark.exists();
        Ok(Self { pair: pair.clone(), source, target, mark, resumed })
    }

    fn require_startable(&self, options: &ResyncOptions) -> Result<()> {
        require_fits(&self.source, &self.target, options).map_err(|error| error.with_path(&self.pair.target))?;
        self.require_no_children(options)?;
        if options.volume_check && !self.resumed { self.require_same_volumes() } else { Ok(()) }
    }

    fn require_no_children(&self, options: &ResyncOptions) -> Result<()> {
        let Some(id) = self.target.leaf().image().id() else { return Ok(()) };
        let children = children::of_file(&self.pair.target, &[id], &[])?;
        if children.is_empty() || options.allow_children {
            return Ok(());
        }
        let names: Vec<String> = children.iter().map(|path| path.display().to_string()).collect();
        Err(Error::new(ErrorKind::Refused, format_args!("other images stand on the target: {}", names.join(", ")))
            .with_path(&self.pair.target)
            .with_hint("merge or move them first, or give them up with --allow-children"))
    }

    /// A partition that only the target has is somebody's data.
    fn require_same_volumes(&self) -> Result<()> {
        let (theirs, ours) = (PartitionTable::read(&self.source)?, PartitionTable::read(&self.target)?);
        let known = |partition: &Partition| {
            theirs.partitions().iter().any(|other| other.kind == partition.kind && other.range == partition.range)
        };
        let Some(lost) = ours.partitions().iter().find(|partition| !known(partition)) else { return Ok(()) };
        let message = format!(
            "the target has a partition that the source has not: number {}, {} bytes from {}",
            lost.number,
            lost.range.end.saturating_sub(lost.range.start),
            lost.range.start
        );
        Err(Error::new(ErrorKind::Refused, message)
            .with_path(&self.pair.target)
            .with_hint("if it may be lost, say so with --no-volume-check"))
    }

    /// What would move, without moving it.
    fn look(&self, options: &ResyncOptions, watch: &Watch<'_>) -> Result<ResyncedPair> {
        let mut report = self.report();
        if let Some(layers) = Record::newer(&self.pair.target, &self.source, &self.target, self.resumed) {
            report.by = WhatDiffers::Recorded;
            for piece in self.source.pieces_of(0..layers, 0..self.source.virtual_size()) {
                let piece = piece?;
                report.differing += if piece.owner == Owner::Below { 0 } else { piece.len };
            }
            return Ok(report);
        }
        let copier = Copier::new(options.jobs)?;
        let meter = Meter::new(watch, self.source.virtual_size());
        let mut at = 0;
        while let Some(found) = find::next(&self.source, &self.target, at, (&copier, &meter, &meter))? {
            at = found.end;
            found.count(&mut report);
        }
        Ok(report)
    }

    fn report(&self) -> ResyncedPair {
        let blank = ResyncedPair::between(&self.source, &self.target);
        let (source, target) = (self.pair.source.clone(), self.pair.target.clone());
        ResyncedPair { source, target, resumed: self.resumed, ..blank }
    }

    fn run(mut self, options: &ResyncOptions, watch: &Watch<'_>) -> Result<ResyncedPair> {
        let newer = Record::newer(&self.pair.target, &self.source, &self.target, self.resumed);
        let mut report = self.report();
        if newer == Some(0) && report.resized_from.is_none() && options.identity == ResyncIdentity::KeepTarget {
            report.by = WhatDiffers::Recorded;
            return Ok(report);
        }
        Mark::new(&self.source).write(&self.mark)?;
        Record::forget(&self.pair.target)?;
        let total = self.source.virtual_size();
        let meter = Meter::new(watch, total);
        // What is read to compare is not moved.
        let quiet = watch.unobserved();
        let mut pass = Pass { source: &self.source, target: &mut self.target, options };
        let done = pass.run(newer, (&meter, &Meter::new(&quiet, total)), &mut report);
        (report.moved, report.offloaded, report.shared) = (meter.moved(), meter.offloaded(), meter.shared());
        report.zeroed = meter.zeroed();
        done.map_err(|error| {
            let hint = "the target holds parts of two disks until the same resync is run again, which finishes it";
            error.with_path(&self.pair.target).with_hint(hint)
        })?;
        let Self { pair, source, target, mark, .. } = self;
        let held = target.leaf().held_file();
        target.close()?;
        Record::write(&pair.target, &source, &Chain::open(&pair.target, &options.chain.clone().locked(false))?)?;
        Mark::remove(&mark)?;
        drop(held);
        Ok(report)
    }
}
