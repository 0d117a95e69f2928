//! The end of a merge: all is moved, the survivor is pointed at the target, the merged files are deleted.
//!
//! Owns: what is noted before the first of that, when the note may be believed, and what is left to do by it. Must not
//! know: how data moves.
//!
//! A merge that dies here leaves a chain that the same arguments no longer fit: it is short, or its leaf is gone. The note
//! lies beside the leaf, which is the one name that a rerun is given. It is asked only when the chain is no longer whole,
//! for then nobody has read or written through the merged files since: the survivor stands on the target, or the leaf is
//! deleted. Before that the merge is simply run again. No file is deleted that is not as the note says: its identity, and
//! of a VHD, whose identity outlives writes and copies, its length and time of change as well.

use super::checkpoint::{BesideTarget, Checkpoint, CheckpointStore, NotedFile};
use super::{MergeOptions, MergeReport, Span, Target, run, siblings};
use crate::chain::{Chain, ChainOptions, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Format;
use crate::link::ImageId;
use crate::ops::children;
use crate::storage::atomic::directory_of;
use crate::storage::{Access, Storage};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the end of a merge is noted.
#[derive(Debug)]
pub(super) struct Note {
    store: Arc<dyn CheckpointStore>,
    /// The real directory of the leaf.
    folder: PathBuf,
}

/// An end that was begun.
pub(super) struct Begun(Checkpoint);

impl Note {
    /// The note of merges that are asked for by `leaf`; `None` when that leads nowhere.
    pub(super) fn of(leaf: &Path, options: &MergeOptions) -> Option<Self> {
        let folder = fs::canonicalize(directory_of(leaf)).ok()?;
        let store = match &options.store {
            Some(store) => Arc::clone(store),
            None => Arc::new(BesideTarget::new(leaf, "merge-end")?),
        };
        Some(Self { store, folder })
    }

    /// That of a chain of storages.
    pub(super) fn without_files(options: &MergeOptions) -> Option<Self> {
        Some(Self { store: Arc::clone(options.store.as_ref()?), folder: PathBuf::new() })
    }

    /// Says, durably, that all of `chain` that is of `merge` is merged. The files must be closed for writing.
    pub(super) fn begin(&self, chain: &Chain, merge: &Checkpoint) -> Result<()> {
        let layers = chain.layers().get(merge.source..=merge.target).unwrap_or_default();
        let files = layers.iter().map(|layer| self.noted(layer)).collect::<Result<_>>()?;
        self.store.save(&merge.ending(files).encode())
    }

    fn noted(&self, layer: &Layer) -> Result<NotedFile> {
        let failed = |error: io::Error| layer.blame(Error::io("note the file's time of change", error));
        if let Some(file) = layer.file().and_then(Storage::as_file) {
            // A sync of data alone may leave the time behind.
            file.sync_all().map_err(failed)?;
        }
        let path = match path_of(layer).and_then(|path| Some((path, path.file_name()?))) {
            Some((path, name)) => {
                let folder = fs::canonicalize(directory_of(path)).map_err(failed)?;
                Some(if folder == self.folder { PathBuf::from(name) } else { folder.join(name) })
            }
            None => None,
        };
        Ok(NotedFile { path, stamp: stamp(layer).map_err(failed)? })
    }

    /// Forgets.
    pub(super) fn clear(&self) -> Result<()> {
        self.store.clear()
    }

    fn path(&self, file: &NotedFile) -> Option<PathBuf> {
        file.path.as_ref().map(|path| self.folder.join(path))
    }

    /// The end of what `options` ask for, when it was begun.
    fn begun(&self, options: &MergeOptions) -> Result<Option<Checkpoint>> {
        let saved = match self.store.load()? {
            Some(saved) => Checkpoint::decode(&saved),
            None => return Ok(None),
        };
        let saved = match saved {
            Err(_) if options.restart => None,
            saved => saved?,
        };
        Ok(saved.filter(|saved| self.is_asked(saved, options)))
    }

    fn is_asked(&self, saved: &Checkpoint, options: &MergeOptions) -> bool {
        let real = |path: &Path| fs::canonicalize(path).ok();
        let target = match &options.target {
            Target::Depth(depth) => saved.target.checked_add(1) == Some(*depth),
            Target::File(file) => {
                let noted = saved.files.last().and_then(|target| self.path(target));
                noted.and_then(|noted| real(&noted)).is_some_and(|noted| real(file) == Some(noted))
            }
        };
        // Without either there is no end to be noted.
        let ends = if saved.source == 0 { options.delete } else { options.relink };
        let whole = saved.target.checked_sub(saved.source) == Some(saved.merged.len())
            && saved.files.len() == saved.merged.len() + 1
            && !saved.merged.is_empty();
        saved.source.checked_add(1) == Some(options.source) && target && ends && whole
    }

    /// Whether the survivor of `saved` stands on its target in `chain`.
    fn is_linked(&self, saved: &Checkpoint, chain: &Chain) -> bool {
        let (Some(layer), Some(noted)) = (chain.layers().get(saved.source), saved.files.last()) else { return false };
        match (path_of(layer), self.path(noted)) {
            (Some(path), Some(noted)) => {
                fs::canonicalize(path).is_ok_and(|path| fs::canonicalize(noted).is_ok_and(|noted| noted == path))
            }
            _ => id_of(layer) == saved.target_id,
        }
    }

    /// An end that was begun of the merge that `options` ask of the chain at `leaf`, if that is what is left of it.
    ///
    /// # Errors
    /// What the store answers; `Refused` for a note by a newer version of this program.
    pub(super) fn pending(&self, leaf: &Path, options: &MergeOptions) -> Result<Option<Begun>> {
        let Some(saved) = self.begun(options)? else { return Ok(None) };
        let pending = if saved.source == 0 {
            fs::symlink_metadata(leaf).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        } else {
            let chain = Chain::open(leaf, &short(options, &saved).locked(false));
            chain.is_ok_and(|chain| self.is_linked(&saved, &chain))
        };
        Ok(pending.then_some(Begun(saved)))
    }

    /// Finishes what was begun.
    ///
    /// # Errors
    /// `Refused` when a merged file is not as it was, or other images stand on one; `InUse`; what the system answers.
    pub(super) fn finish(&self, leaf: &Path, options: &MergeOptions, Begun(saved): Begun) -> Result<MergeReport> {
        let survivor = saved.source.checked_sub(1);
        // Held, whatever is left of it, until the end.
        let mut chain = None;
        if let Some(index) = survivor {
            let mut short = Chain::open(leaf, &short(options, &saved).hold(index..saved.source))?;
            if !self.is_linked(&saved, &short) {
                let message = "the chain changed while it was being opened";
                return Err(Error::new(ErrorKind::InUse, message).with_path(leaf));
            }
            short.reopen(index, Access::Recover)?;
            chain = Some(short);
        }
        let left = if options.delete { self.left(&saved)? } else { Vec::new() };
        let target = saved.files.last().and_then(|file| self.path(file));
        let mut report = report(&saved, chain.as_ref());
        report.target.clone_from(&target);
        if !left.is_empty() {
            let alone;
            let layer = match chain.as_ref().and_then(|chain| chain.layers().get(saved.source)) {
                Some(layer) => layer,
                None => {
                    let raw = ChainOptions::new().raw(saved.target_id.is_empty());
                    alone = Chain::open_leaf(target.as_deref().unwrap_or(Path::new("")), &raw)?;
                    &alone
                }
            };
            self.prove(layer, &saved.target_id, saved.files.last())?;
            report.siblings = self.others_on(&left, options, &[chain.as_ref().map_or(&[], Chain::layers), &left])?;
            siblings::require_none(&report.siblings, options.siblings)?;
            report.deleted = run::delete(left.iter().filter_map(|layer| Some(layer.path()?.to_path_buf())).collect())?;
        }
        chain.map_or(Ok(()), Chain::close)?;
        if let Some(beside) = target.as_deref().and_then(|target| BesideTarget::new(target, "merge"))
            && options.store.is_none()
        {
            beside.clear()?;
        }
        self.clear()?;
        Ok(report)
    }

    /// The merged files that are still there, held; all of them proven.
    fn left(&self, saved: &Checkpoint) -> Result<Vec<Layer>> {
        let mut left = Vec::new();
        for (noted, (id, _)) in saved.files.iter().zip(&saved.merged) {
            let Some(path) = self.path(noted) else { continue };
            match Chain::open_leaf(&path, &ChainOptions::new().hold(0..1)) {
                Ok(layer) => {
                    self.prove(&layer, id, Some(noted))?;
                    left.push(layer);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    /// Refuses a file that is not as it was noted.
    fn prove(&self, layer: &Layer, id: &str, noted: Option<&NotedFile>) -> Result<()> {
        let found = stamp(layer).map_err(|error| layer.blame(Error::io("look at the file", error)))?;
        if id_of(layer) == id && noted.is_some_and(|noted| noted.stamp == found) {
            return Ok(());
        }
        Err(layer
            .blame(Error::new(
                ErrorKind::Refused,
                "this file is not as the interrupted merge left it, so nothing was deleted",
            ))
            .with_hint(
                "everything had been merged into the target; see what this file is, delete what is left of the merged \
                 files, and .LEAF.vhdkit-merge-end beside the leaf",
            ))
    }

    /// Images that stand on one of `left` and are none of the merge.
    fn others_on(&self, left: &[Layer], options: &MergeOptions, own: &[&[Layer]]) -> Result<Vec<PathBuf>> {
        let ids: Vec<ImageId> = left.iter().filter_map(|layer| layer.image().id()).collect();
        let paths = own.iter().flat_map(|layers| layers.iter()).filter_map(Layer::path);
        let own: BTreeSet<PathBuf> = paths.filter_map(|path| fs::canonicalize(path).ok()).collect();
        children::find(&ids, &own, &options.search)
    }

    /// The survivor of an end that was begun in `chain` is mended; `None` when there is none.
    pub(super) fn finish_chain(&self, chain: &mut Chain, options: &MergeOptions) -> Result<Option<MergeReport>> {
        let saved = self.begun(options)?.filter(|saved| saved.source > 0 && self.is_linked(saved, chain));
        let Some(saved) = saved else { return Ok(None) };
        chain.reopen(saved.source - 1, Access::Recover)?;
        Ok(Some(report(&saved, Some(chain))))
    }
}

/// What says that the end is all there was to do.
fn report(saved: &Checkpoint, chain: Option<&Chain>) -> MergeReport {
    let path = |index: usize| chain?.layers().get(index)?.path().map(Path::to_path_buf);
    MergeReport {
        target: path(saved.source),
        relinked: saved.source.checked_sub(1).and_then(path),
        resumed_at: Some(saved.done),
        ended: true,
        ..MergeReport::default()
    }
}

/// How the chain is opened when the merged files are no longer of it.
fn short(options: &MergeOptions, saved: &Checkpoint) -> ChainOptions {
    options.chain.clone().without_layers(saved.source..saved.target)
}

/// Where its file is. A storage that is none may have a name.
fn path_of(layer: &Layer) -> Option<&Path> {
    layer.file().and(layer.path())
}

fn id_of(layer: &Layer) -> String {
    layer.image().id().map_or_else(String::new, |id| id.to_string())
}

/// What another writer cannot but change: of a VHDX its identity, which is noted already.
fn stamp(layer: &Layer) -> io::Result<String> {
    match layer.file().and_then(Storage::as_file) {
        Some(file) if layer.image().format() != Format::Vhdx => {
            let metadata = file.metadata()?;
            Ok(format!("{}/{}.{}", metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
        }
        _ => Ok("-".to_owned()),
    }
}

/// The error of planning a merge that has nothing left but its end.
pub(super) fn only_the_end(leaf: &Path) -> Error {
    let message = "everything is merged already: an interrupted merge was relinking or deleting files";
    Error::new(ErrorKind::Refused, message).with_path(leaf).with_hint("run the same merge again, it finishes that")
}

/// What the end of the merge of `span` begins with: the files are closed, so that what is noted of them stays.
pub(super) fn close_files(chain: &mut Chain, span: Span) -> Result<()> {
    for index in span.source..=span.target {
        chain.reopen(index, Access::Read)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
