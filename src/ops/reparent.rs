//! Giving a child another parent file.
//!
//! Owns: what makes a new parent acceptable, and which paths the child gets for it. Must not know: how a format stores a
//! link, in which order it writes one.

use super::create::new_parent;
use crate::chain::{Chain, ChainOptions, Layer, check_link, check_stackable, is_windows_path};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Finding, Severity};
use crate::link::{HintKind, ImageId, NewParent, ParentLink, PathHint};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, FileIdentity, FileStorage};
use std::fs;
use std::path::{Path, PathBuf};

/// What becomes of the absolute Windows path in the child. The relative path is always written anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AbsolutePath {
    /// The one it holds stays, right or wrong: Windows tries the relative path first. A path by volume becomes it when
    /// there is no other.
    #[default]
    Keep,
    /// It holds none.
    Blank,
    /// What [`ChainOptions::map`] says Windows calls the new parent.
    Mapped,
    /// This one.
    Set(String),
}

/// How to re-parent.
#[derive(Clone, Debug, Default)]
pub struct ReparentOptions {
    ignore_id_mismatch: bool,
    absolute: AbsolutePath,
    dry_run: bool,
    chain: ChainOptions,
}

impl ReparentOptions {
    /// The new parent must have the identity that the child names; the absolute path stays.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a parent of another identity is taken: the caller knows that it holds what the child was made over. If it
    /// does not, the child shows a mixture of both, and pointing it back shows the old contents again.
    #[must_use]
    pub fn ignore_id_mismatch(mut self, ignore: bool) -> Self {
        self.ignore_id_mismatch = ignore;
        self
    }

    /// What becomes of the absolute Windows path.
    #[must_use]
    pub fn absolute(mut self, absolute: AbsolutePath) -> Self {
        self.absolute = absolute;
        self
    }

    /// Check everything and write nothing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How the new parent and its own parents are opened; a file named with [`ChainOptions::parent`] is a parent of the
    /// new parent.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }
}

/// What re-parenting did, or with [`dry_run`](ReparentOptions::dry_run) would do.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ReparentReport {
    /// The child.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub child: PathBuf,
    /// Its parent now.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub parent: PathBuf,
    /// The identities it accepted before.
    pub old_ids: Vec<ImageId>,
    /// The paths it held before.
    pub old_hints: Vec<PathHint>,
    /// The identity it names now.
    pub id: ImageId,
    /// The relative path it holds now.
    pub relative: Option<String>,
    /// The absolute path it holds now.
    pub absolute: Option<String>,
    /// What to look at: an identity that was ignored, sizes that differ.
    pub warnings: Vec<Finding>,
    /// Why the chain below the new parent does not open as it is, when it does not.
    pub parent_error: Option<String>,
    /// Whether it was written.
    pub written: bool,
}

/// Makes the file `parent` the parent of `child`: its relative path, its identity, its name. Nothing the child holds
/// itself changes, and its own identity stays, so that its children still find it. A crash leaves the old link or the
/// new one.
///
/// # Errors
/// `ParentMismatch` when the parent is not the one the child names and that is not ignored; `Cycle` when it is the child
/// or one of its descendants; `Chain` when formats or sector sizes cannot be stacked; `InvalidInput` when the child is
/// not differencing, or no absolute path can be made as asked; those of opening the two files. Nothing was written then.
/// What the storage answers while the link is written.
pub fn reparent(
    child: impl AsRef<Path>,
    parent: impl AsRef<Path>,
    options: &ReparentOptions,
) -> Result<ReparentReport> {
    let (child, own) = real(child.as_ref())?;
    let (parent, id) = real(parent.as_ref())?;
    if own == id {
        return Err(circle(&child, "itself"));
    }
    let (parents, broken) = Chain::open_as_far(&parent, &options.chain.clone().access(Access::Read))?;
    for layer in &parents {
        // Before the child is locked: it could be one of these.
        if layer.file().map(FileStorage::identity).and_then(std::io::Result::ok) == Some(own) {
            return Err(circle(&child, &layer.name()));
        }
    }
    let layer = Chain::open_leaf(&child, &ChainOptions::new().hold(0..1))?;
    let (new, mut report) = Checked::new(&layer, &parents, broken)?.plan(options)?;
    if !options.dry_run {
        write(layer, &new)?;
        report.written = true;
    }
    Ok(report)
}

fn real(path: &Path) -> Result<(PathBuf, FileIdentity)> {
    let failed = |error| Error::io("find the file", error).with_path(path);
    let real = fs::canonicalize(path).map_err(failed)?;
    let identity = FileIdentity::of(&fs::metadata(&real).map_err(failed)?);
    Ok((real, identity))
}

fn circle(child: &Path, through: &str) -> Error {
    let problem = Problem::new(
        Structure::ParentLink,
        Fault::Duplicate,
        format_args!("a parent that leads back to the child, through {through}"),
        "a parent that does not stand on the child",
    );
    Error::from_problem(ErrorKind::Cycle, problem).with_path(child)
}

/// Writes the link. The child was open for reading until here, so that a refusal never changes it.
fn write(mut child: Layer, parent: &NewParent) -> Result<()> {
    child.reopen(Access::Recover)?;
    let done = child.image_mut().set_parent(parent);
    done.map_err(|error| child.blame(error))?;
    child.close()
}

/// A child and the parent it is to get.
struct Checked<'a> {
    child: &'a Layer,
    parent: &'a Layer,
    link: ParentLink,
    broken: Option<Error>,
}

impl<'a> Checked<'a> {
    /// Checks what no option waives.
    fn new(child: &'a Layer, parents: &'a [Layer], broken: Option<Error>) -> Result<Self> {
        let Some(link) = child.image().parent_link() else {
            return Err(child.blame(Error::new(ErrorKind::InvalidInput, "only a differencing image has a parent")));
        };
        let (Some(parent), Some(last)) = (parents.first(), parents.last()) else {
            return Err(Error::new(ErrorKind::InvalidInput, "no parent was opened"));
        };
        check_stackable(child, parent)?;
        if let Some(error) = &broken {
            // Where the chain breaks, the file that is missing may be the child under another name.
            let wanted = last.image().parent_link();
            let is_child = child.image().id().is_some_and(|id| wanted.is_some_and(|link| link.accepts(id)));
            if is_child || error.kind() == ErrorKind::Cycle {
                return Err(circle(Path::new(&child.name()), &last.name()));
            }
        }
        Ok(Self { child, parent, link, broken })
    }

    /// The link to write, and what is said of it.
    fn plan(self, options: &ReparentOptions) -> Result<(NewParent, ReparentReport)> {
        let mut warnings = Vec::new();
        if let Err(error) = check_link(self.child, self.parent) {
            let Some(problem) = error.problem().filter(|_| options.ignore_id_mismatch).cloned() else {
                return Err(error);
            };
            warnings.push(warning(problem));
            warnings.extend(self.sizes().map(warning));
        }
        let nameless = || Error::new(ErrorKind::InvalidInput, "both images need a file name");
        let (child, parent) = (self.child.path().ok_or_else(nameless)?, self.parent.path().ok_or_else(nameless)?);
        let mut new = new_parent(child, self.parent)?;
        new.paths.absolute = absolute(&options.absolute, &self.link, parent, &options.chain)?;
        let report = ReparentReport {
            child: child.to_path_buf(),
            parent: parent.to_path_buf(),
            old_ids: self.link.ids,
            old_hints: self.link.hints,
            id: new.id,
            relative: new.paths.relative.clone(),
            absolute: new.paths.absolute.clone(),
            warnings,
            parent_error: self.broken.map(|error| error.to_string()),
            written: false,
        };
        Ok((new, report))
    }

    /// Disks of different sizes are no fault of a chain, but a sign that a parent of another identity is the wrong one.
    fn sizes(&self) -> Option<Problem> {
        let (above, below) = (self.child.image().virtual_size(), self.parent.image().virtual_size());
        let means = match above.cmp(&below) {
            std::cmp::Ordering::Equal => return None,
            std::cmp::Ordering::Less => "its end is cut off",
            std::cmp::Ordering::Greater => "zeros are shown past its end",
        };
        let found = format!("a parent of {below} bytes under a child of {above}: {means}");
        Some(Problem::new(Structure::ParentLink, Fault::Value, found, "the same size, unless the child was resized"))
    }
}

fn warning(problem: Problem) -> Finding {
    Finding { severity: Severity::Warning, problem, repairable: false }
}

/// The absolute path the child is to hold.
fn absolute(wish: &AbsolutePath, old: &ParentLink, parent: &Path, chain: &ChainOptions) -> Result<Option<String>> {
    match wish {
        AbsolutePath::Keep => Ok(kept(old)),
        AbsolutePath::Blank => Ok(None),
        AbsolutePath::Set(path) if is_windows_path(path) => Ok(Some(path.clone())),
        AbsolutePath::Set(path) => {
            Err(Error::new(ErrorKind::InvalidInput, format_args!("{path:?} is not an absolute Windows path"))
                .with_hint("spell it as Windows would: D:\\VMs\\parent.vhdx"))
        }
        AbsolutePath::Mapped => {
            let spelled = chain.windows_path(parent);
            spelled.map(Some).ok_or_else(|| {
                Error::new(ErrorKind::InvalidInput, "no map says what Windows calls the new parent")
                    .with_path(parent)
                    .with_hint("say it with --map 'D:\\VMs=/dir', /dir being a directory above the parent")
            })
        }
    }
}

/// The absolute Windows path that `old` holds, if it holds one: other programs put other paths in its place.
fn kept(old: &ParentLink) -> Option<String> {
    let is_kept =
        |hint: &&PathHint| is_windows_path(&hint.path) && !hint.path.starts_with('/') && !hint.path.contains('\0');
    let of = |kind| old.hints.iter().filter(is_kept).find(|hint| hint.kind == kind);
    let hint = of(HintKind::Absolute).or_else(|| of(HintKind::Volume)).or_else(|| of(HintKind::Name));
    hint.map(|hint| hint.path.clone())
}

#[cfg(test)]
mod tests;
