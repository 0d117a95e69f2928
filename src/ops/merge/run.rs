//! Carrying a merge out.
//!
//! Owns: the order of its writes. Must not know: how the chain was opened, what the plan looked like on paper.
//!
//! The order, each step durable before the next:
//!
//! 1. VHDX: the target's next DataWriteGuid goes into its child as `parent_linkage2`, then into the target's header, so
//!    that the child matches the target before, during and after, and every sibling stops matching.
//! 2. A larger source: the target grows, the new range zero.
//! 3. Batches: reserve, copy, sync, publish.
//! 4. VHDX: the metadata that describes the disk is replaced by the source's. A smaller source: the target is cut.
//! 5. The survivor is pointed at the target; the merged files are deleted. Both only when asked, and noted before.

use super::checkpoint::{Checkpoint, CheckpointStore, Resume};
use super::ending::{Note, close_files};
use super::{MergeOptions, Span};
use crate::chain::{Chain, Layer, relative_windows_path};
use crate::copy::{Copier, Meter};
use crate::error::{Error, ErrorKind, Result};
use crate::guid;
use crate::image::Image;
use crate::link::{DiskKind, GrowAs, HintKind, NewParent, ParentPaths};
use crate::ops::transfer::{Milestones, Transfer};
use crate::storage::Access;
use crate::storage::atomic::remove_if_there;
use crate::watch::Watch;
use std::path::{Path, PathBuf};

/// What a merge did; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MergeReport {
    /// The file that took the contents.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub target: Option<PathBuf>,
    /// Data copied.
    pub moved: u64,
    /// Of that, data that never passed through this process.
    pub offloaded: u64,
    /// Of that, data that was not copied at all: the target and a merged file hold the same blocks of the file system
    /// (a reflink) until either is written.
    pub shared: u64,
    /// Ranges made zero.
    pub zeroed: u64,
    /// The file that was pointed at the target.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub relinked: Option<PathBuf>,
    /// The merged files that were deleted.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub deleted: Vec<PathBuf>,
    /// Other images that no longer show what they showed.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub siblings: Vec<PathBuf>,
    /// The offset of the disk up to which an interrupted merge had got, when this one went on from there.
    pub resumed_at: Option<u64>,
    /// Everything was merged before: an interrupted merge had left files to relink or delete, and this one did that.
    pub ended: bool,
}

/// Merges inside a chain that is open already, over storages of the caller's own. Nothing is looked for, checked for
/// space, or deleted, and it resumes only from a [store](MergeOptions::store) it is given, which the caller clears when
/// the chain is closed; the rest is as [`merge`](super::merge). A merge that was interrupted while it relinked leaves a
/// chain without the merged files, and is finished in that.
///
/// The storages of the affected layers must take writes though their images were opened for reading; they are opened
/// anew for writing, and closed cleanly when the merge succeeds and the chain is [closed](Chain::close).
///
/// # Errors
/// As [`merge`](super::merge).
pub fn merge_chain(chain: &mut Chain, options: &MergeOptions, watch: &Watch<'_>) -> Result<MergeReport> {
    let note = Note::without_files(options);
    if let Some(note) = &note
        && let Some(report) = note.finish_chain(chain, options)?
    {
        return Ok(report);
    }
    let span = options.layers(chain)?;
    Run { span, options, watch, store: options.store.as_deref(), note: note.as_ref() }.run(chain)
}

/// One merge to carry out.
pub(super) struct Run<'a> {
    pub(super) span: Span,
    pub(super) options: &'a MergeOptions,
    pub(super) watch: &'a Watch<'a>,
    /// Where it keeps its place.
    pub(super) store: Option<&'a dyn CheckpointStore>,
    /// Where it notes that its end has begun.
    pub(super) note: Option<&'a Note>,
}

impl Run<'_> {
    pub(super) fn run(&self, chain: &mut Chain) -> Result<MergeReport> {
        let span = self.span;
        let new_size = chain.layer(span.source)?.image().virtual_size();
        let meter = Meter::new(self.watch, new_size);
        meter.check()?;
        for index in span.affected() {
            chain.reopen(index, Access::Recover)?;
        }
        let resume = self.place(chain)?;
        bind(chain, span)?;
        let old_size = chain.layer(span.target)?.image().virtual_size();
        if new_size > old_size {
            resize(chain, span.target, new_size)?;
        }
        self.copy(chain, resume, &meter).map_err(|error| restartable(chain, span, error))?;
        finish(chain, span)?;
        if new_size <= old_size {
            // The same size: an interrupted merge may have got as far as that and left a table too long.
            resize(chain, span.target, new_size)?;
        }
        if let Some(note) = self.note
            && (span.relink || self.options.delete)
        {
            close_files(chain, span)?;
            note.begin(chain, &Checkpoint::of(chain, span).at(new_size))?;
        }
        let relinked = if span.relink { relink(chain, span)? } else { None };
        Ok(MergeReport {
            target: chain.layer(span.target)?.path().map(Path::to_path_buf),
            moved: meter.moved(),
            offloaded: meter.offloaded(),
            shared: meter.shared(),
            zeroed: meter.zeroed(),
            relinked,
            deleted: Vec::new(),
            siblings: Vec::new(),
            resumed_at: resume.done(),
            ended: false,
        })
    }

    /// Step 3.
    fn copy(&self, chain: &mut Chain, resume: Resume, meter: &Meter<'_>) -> Result<()> {
        let span = self.span;
        let here = Checkpoint::of(chain, span);
        let save = |done: u64| self.store.map_or(Ok(()), |store| store.save(&here.at(done).encode()));
        let milestones = Milestones { every: self.options.checkpoint_every, reached: &save };
        let (above, target) = chain.split_at_target(span.target)?;
        let transfer = Transfer {
            layers: &above[span.source..],
            root: target.kind() != DiskKind::Differencing,
            fresh: false,
            scan_zeros: self.options.scan_zeros,
            skip: if let Resume::Skip(done) = resume { done } else { 0 },
            compare: if let Resume::Compare(done) = resume { done } else { 0 },
            inside: false,
        };
        transfer.run(target.sink(), &Copier::new(self.options.jobs)?, meter, &milestones)
    }

    /// Where to go on, by what an interrupted merge left behind.
    fn place(&self, chain: &Chain) -> Result<Resume> {
        let Some(store) = self.store else { return Ok(Resume::Start) };
        if self.options.restart {
            store.clear()?;
            return Ok(Resume::Start);
        }
        match store.load()? {
            Some(saved) => Checkpoint::of(chain, self.span).resume(&saved),
            None => Ok(Resume::Start),
        }
    }
}

/// Step 1: the link between the target and its child survives the target's change of identity.
fn bind(chain: &mut Chain, span: Span) -> Result<()> {
    let (above, target) = chain.split_at_target(span.target)?;
    let child = above.last_mut().ok_or_else(|| Error::new(ErrorKind::Chain, "the target has no child"))?;
    let (Image::Vhdx(child_image), Image::Vhdx(target)) = (child.image_mut(), target) else { return Ok(()) };
    let now = target.data_write_guid();
    let next = match child_image.linkage2() {
        // An interrupted merge got as far as the target's header: its id is the only one that matches.
        Some(bound) if bound == now => now,
        _ => {
            let next = guid::fresh();
            child_image.set_linkage2(Some(next))?;
            next
        }
    };
    target.set_data_write_guid(next)
}

fn resize(chain: &mut Chain, index: usize, size: u64) -> Result<()> {
    let layer = chain.layer_mut(index)?;
    let done = layer.image_mut().set_virtual_size(size, GrowAs::Zero);
    done.map_err(|error| layer.blame(error))
}

/// Step 4, the metadata.
fn finish(chain: &mut Chain, span: Span) -> Result<()> {
    let (above, target) = chain.split_at_target(span.target)?;
    match (above.get(span.source).map(Layer::image), target) {
        (Some(Image::Vhdx(source)), Image::Vhdx(target)) => target.replace_disk_metadata_from(source),
        _ => Ok(()),
    }
}

/// Step 5: points the file above the source at the target. Its old paths are read from the target's former child.
fn relink(chain: &mut Chain, span: Span) -> Result<Option<PathBuf>> {
    let target = chain.layer(span.target)?;
    let id = target.image().id().ok_or_else(|| Error::new(ErrorKind::Chain, "the target has no identity"))?;
    let child = chain.layer(span.target - 1)?.image().parent_link();
    let absolute = child
        .and_then(|link| link.hints.into_iter().find(|hint| hint.kind == HintKind::Absolute).map(|hint| hint.path));
    let survivor = span.source - 1;
    let relative = match (chain.layer(survivor)?.path(), target.path()) {
        (Some(from), Some(to)) => Some(relative_windows_path(from, to)?),
        _ => None,
    };
    let parent = NewParent { id, paths: ParentPaths { relative, absolute }, timestamp: 0 };
    let layer = chain.layer_mut(survivor)?;
    let done = layer.image_mut().set_parent(&parent);
    done.map_err(|error| layer.blame(error))?;
    Ok(layer.path().map(Path::to_path_buf))
}

fn restartable(chain: &Chain, span: Span, error: Error) -> Error {
    let error = match chain.layer(span.target) {
        Ok(layer) => layer.blame(error),
        Err(_) => error,
    };
    error.with_hint("nothing is lost: the source still shows what it showed; run the same merge again to finish it")
}

/// Deletes the merged files, nearest the leaf first, so that no file is left without its parent.
pub(super) fn delete(merged: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    for path in &merged {
        let hint = "everything is merged; run the same merge again to delete what is left";
        remove_if_there(path, "delete the merged file").map_err(|error| error.with_hint(hint))?;
    }
    Ok(merged)
}
