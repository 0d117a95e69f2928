//! Repairing an image in place.
//!
//! Owns: the order in which a repair goes: what an interrupted one left, the plan, the way back, the writes, the proof.
//! Must not know: what is wrong with an image, or what mends it.

mod apply;
mod undo;

use super::check::CheckedFinding;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::image::Image;
use crate::mend::{RepairKind, Step};
use crate::storage::atomic::{AtomicFile, sync_directory_of};
use crate::storage::{Access, CheckedStorage, FileStorage, Lock, Storage};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use undo::Undo;

/// How [`repair`] goes about it. By default: safe repairs only, and they are made.
#[derive(Clone, Debug, Default)]
pub struct RepairOptions {
    dry_run: bool,
    allow: Vec<RepairKind>,
    discard_undo: bool,
}

impl RepairOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plan only: nothing is written.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Also make repairs of `kind`, which loses or invents data. Safe kinds need not be named.
    #[must_use]
    pub fn allow(mut self, kind: RepairKind) -> Self {
        self.allow.push(kind);
        self
    }

    /// Give up the way back from an earlier repair, if there was one.
    #[must_use]
    pub fn discard_undo(mut self, discard: bool) -> Self {
        self.discard_undo = discard;
        self
    }
}

/// One repair that was made, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Repaired {
    /// Its kind.
    pub kind: RepairKind,
    /// What it does, in words.
    pub what: String,
    /// Whether everything a reader of the disk sees stays as it is.
    pub safe: bool,
    /// The ranges of the virtual disk, in bytes, whose contents are lost or made up.
    pub loses: Vec<Range<u64>>,
}

impl From<&Step> for Repaired {
    fn from(step: &Step) -> Self {
        Self { kind: step.kind, what: step.what.clone(), safe: step.kind.is_safe(), loses: step.loses.clone() }
    }
}

/// What [`repair`] did, or would do.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RepairReport {
    /// The image.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub path: PathBuf,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Whether an earlier repair had been interrupted, and was taken back first.
    pub resumed: bool,
    /// The repairs, in order.
    pub repairs: Vec<Repaired>,
    /// The file with which [`undo_repair`] brings back the image as it was; `None` when nothing was written.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub undo: Option<PathBuf>,
    /// What is still wrong with the image; in a dry run, what is wrong with it now.
    pub findings: Vec<CheckedFinding>,
}

/// What [`undo_repair`] did.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct UndoReport {
    /// The image.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub path: PathBuf,
    /// Bytes that were put back.
    pub restored: u64,
}

/// The file beside the image at `path` that holds the way back from a repair of it: `.NAME.vhdkit-undo`.
///
/// # Errors
/// `InvalidInput` when `path` names no file.
pub fn undo_file(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(path));
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".vhdkit-undo");
    Ok(path.with_file_name(hidden))
}

/// Repairs the image at `path`: what can be mended without changing what its disk shows, and what `options` allow
/// besides.
///
/// Everything that is overwritten is first kept beside the image, durable; [`undo_repair`] puts it back. A repair that was
/// interrupted is taken back and made anew. An image in good order is left alone.
///
/// # Errors
/// `Corrupt`, `Unsupported`, `UnknownFormat` when the image is damaged beyond repair; `InUse`; `Refused` when the way back
/// from an earlier repair is still there, or when the image was changed since a repair that was interrupted; what the
/// system answers.
pub fn repair(path: impl AsRef<Path>, options: &RepairOptions) -> Result<RepairReport> {
    let path = path.as_ref();
    repair_file(path, options).map_err(|error| error.with_path(path))
}

fn repair_file(path: &Path, options: &RepairOptions) -> Result<RepairReport> {
    let undo_path = undo_file(path)?;
    let (access, lock) = if options.dry_run { (Access::Read, Lock::Shared) } else { (Access::Write, Lock::Exclusive) };
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path, access, lock)?);
    let mut report = RepairReport {
        path: path.to_path_buf(),
        dry_run: options.dry_run,
        resumed: false,
        repairs: Vec::new(),
        undo: None,
        findings: Vec::new(),
    };
    let earlier = earlier(&undo_path)?;
    if let Some((file, undo)) = earlier.as_ref().filter(|(_, undo)| !undo.done && !options.dry_run) {
        undo.restore(&CheckedStorage::writable(Arc::clone(&storage)), file)?;
        report.resumed = true;
    }
    let steps = plan(&storage, options, earlier.is_some())?;
    report.repairs = steps.iter().map(Repaired::from).collect();
    if !options.dry_run && !steps.is_empty() {
        let finished = earlier.as_ref().is_some_and(|(_, undo)| undo.done);
        if finished && !options.discard_undo {
            return Err(Error::new(ErrorKind::Refused, "the way back from an earlier repair is still there")
                .with_hint(format_args!(
                    "take that repair back with `vhdkit repair --undo`, or give up the way back with --discard-undo; it is {}",
                    undo_path.display()
                )));
        }
        drop(earlier);
        let kept = AtomicFile::create(&undo_path)?;
        let file = Arc::clone(kept.storage());
        copy_permissions(path, &file)?;
        Undo::write(&storage, &steps, &*file)?;
        kept.commit(true)?;
        let made = make(&storage, &steps, &options.allow);
        made.map_err(|error| error.with_hint("take it back with `vhdkit repair --undo`"))?;
        Undo::mark_done(&*file).map_err(|error| error.with_path(&undo_path))?;
        report.undo = Some(undo_path);
    } else if report.resumed {
        drop(earlier);
        remove(&undo_path)?;
    }
    let mut findings = Findings::new();
    Image::check(storage, false, &mut findings)?;
    report.findings = findings.list().iter().map(CheckedFinding::from).collect();
    Ok(report)
}

/// Repairs the image in `storage`, a storage of the caller's own, which must take writes: what can be mended without
/// changing what its disk shows, and the kinds in `allow` besides. Answers what was done, in order. There is no way back:
/// who wants one keeps a copy.
///
/// # Errors
/// `Corrupt`, `Unsupported`, `UnknownFormat` when the image is damaged beyond repair; `Refused` when the repair did not
/// help; what the storage answers, and then the image is as after a crash and may be repaired again.
pub fn repair_storage(storage: &Arc<dyn Storage>, allow: &[RepairKind]) -> Result<Vec<Repaired>> {
    let steps = Image::plan_repair(Arc::clone(storage), allow)?;
    if !steps.is_empty() {
        make(storage, &steps, allow)?;
    }
    Ok(steps.iter().map(Repaired::from).collect())
}

fn plan(storage: &Arc<dyn Storage>, options: &RepairOptions, undoable: bool) -> Result<Vec<Step>> {
    Image::plan_repair(Arc::clone(storage), &options.allow).map_err(|error| {
        if undoable {
            error.with_hint("an earlier repair can be taken back: `vhdkit repair --undo`")
        } else {
            error.with_hint(
                "this cannot be repaired; a backup, or `vhdkit check` for all that is wrong, may help further",
            )
        }
    })
}

/// Carries out `steps`, and proves that none of them is wanted any more.
fn make(storage: &Arc<dyn Storage>, steps: &[Step], allow: &[RepairKind]) -> Result<()> {
    apply::steps(&CheckedStorage::writable(Arc::clone(storage)), steps)?;
    let left = Image::plan_repair(Arc::clone(storage), allow)?;
    match left.iter().find(|step| steps.iter().any(|done| done.kind == step.kind)) {
        Some(step) => {
            let message = format_args!("the repair did not help: it would {} again", step.what);
            Err(Error::new(ErrorKind::Refused, message))
        }
        None => Ok(()),
    }
}

/// Takes back the last repair of the image at `path`, finished or not, byte for byte, and removes its undo file.
///
/// # Errors
/// `NotFound` when there is no undo file; `Refused` when it is damaged, or when the image was written to since the repair;
/// `InUse`; what the system answers.
pub fn undo_repair(path: impl AsRef<Path>) -> Result<UndoReport> {
    let path = path.as_ref();
    let undo_path = undo_file(path)?;
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path, Access::Write, Lock::Exclusive)?);
    let Some((file, undo)) = earlier(&undo_path)? else {
        return Err(Error::new(ErrorKind::NotFound, "there is no repair to take back: its undo file is not there")
            .with_path(&undo_path));
    };
    let restored = undo.restore(&CheckedStorage::writable(storage), &file).map_err(|error| error.with_path(path))?;
    drop(file);
    remove(&undo_path)?;
    Ok(UndoReport { path: path.to_path_buf(), restored })
}

/// The undo file of an earlier repair, if there is one.
fn earlier(undo_path: &Path) -> Result<Option<(FileStorage, Undo)>> {
    let file = match FileStorage::open(undo_path, Access::Read, Lock::None) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match Undo::read(&file).map_err(|error| error.with_path(undo_path))? {
        Some(undo) => Ok(Some((file, undo))),
        None => Err(Error::new(ErrorKind::Refused, "this is no undo file, or it is damaged")
            .with_path(undo_path)
            .with_hint("move it away if the image beside it needs no way back")),
    }
}

/// Whoever may not read the image may not read what the repair overwrites either.
fn copy_permissions(image: &Path, undo: &FileStorage) -> Result<()> {
    let failed = |error| Error::io("set the permissions of the undo file", error);
    let permissions = std::fs::metadata(image).map_err(failed)?.permissions();
    undo.as_file().map_or(Ok(()), |file| file.set_permissions(permissions)).map_err(failed)
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|error| Error::io("remove the undo file", error).with_path(path))?;
    sync_directory_of(path)
}

#[cfg(test)]
mod tests;
