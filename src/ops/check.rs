//! Checking an image, or every file of a chain.
//!
//! Owns: the report of `check`, and the rules between a child and its parent. Must not know: the rules inside a file.

use super::children;
use crate::chain::{Chain, ChainOptions, Layer, note_marks};
use crate::error::{Error, Result};
use crate::finding::{Finding, Findings, Severity};
use crate::image::{Format, Image};
use crate::link::ImageId;
use crate::mend::CheckSummary;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, FileStorage, Lock, Storage};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far apart two clocks of a parent's age may be, in seconds: file systems round to two.
const TIME_SLACK: u32 = 2;

/// What [`check`] looks at. By default: one file, its maps and not its data, locked against writers.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    chain: bool,
    deep: bool,
    open: ChainOptions,
}

impl CheckOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Check the parents too, each link, and look for siblings.
    #[must_use]
    pub fn chain(mut self, chain: bool) -> Self {
        self.chain = chain;
        self
    }

    /// Read data as well, where it can contradict the maps.
    #[must_use]
    pub fn deep(mut self, deep: bool) -> Self {
        self.deep = deep;
        self
    }

    /// How files are opened, and where parents may come from.
    #[must_use]
    pub fn open(mut self, open: ChainOptions) -> Self {
        self.open = open;
        self
    }
}

/// A finding and the name Windows gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckedFinding {
    /// What was found.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub finding: Finding,
    /// The name Windows gives it, where it has one; none for a warning about a file that Windows takes.
    pub windows_name: Option<&'static str>,
}

impl From<&Finding> for CheckedFinding {
    fn from(finding: &Finding) -> Self {
        let refused = finding.severity > Severity::Warning;
        let windows_name = finding.problem.windows_name().filter(|_| refused);
        Self { windows_name, finding: finding.clone() }
    }
}

/// What is wrong with one file.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckedFile {
    /// Its depth in the chain; the leaf is 1.
    pub depth: usize,
    /// The file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub path: PathBuf,
    /// Its format.
    pub format: Option<Format>,
    /// What was counted; `None` when the image cannot be opened.
    pub summary: Option<CheckSummary>,
    /// What was found, in the order it was met.
    pub findings: Vec<CheckedFinding>,
    /// How many findings more there were than are listed.
    pub not_listed: u64,
}

/// What [`check`] found.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckReport {
    /// The files, leaf first.
    pub files: Vec<CheckedFile>,
    /// Images near the chain that stand on one of its parents too: that parent must not change.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub siblings: Vec<PathBuf>,
}

impl CheckReport {
    /// The worst finding's severity; `None` when nothing was found.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.files.iter().flat_map(|file| &file.findings).map(|found| found.finding.severity).max()
    }
}

/// Checks the image at `path`: everything that opening it looks at, and everything that takes reading all its maps. With
/// [`CheckOptions::chain`] each file under it is checked, and each against its parent. Nothing is changed.
///
/// What keeps an image from opening is a finding, not an error.
///
/// # Errors
/// `UnknownFormat` when the file at `path` is no image at all; `InUse`; what the system answers.
pub fn check(path: impl AsRef<Path>, options: &CheckOptions) -> Result<CheckReport> {
    let path = path.as_ref();
    let lock = if options.open.is_locked() { Lock::Shared } else { Lock::None };
    let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path, Access::Read, lock)?);
    let leaf = check_file(path, &storage, (1, options.deep))?;
    let opens = leaf.summary.is_some();
    let mut report = CheckReport { files: vec![leaf], siblings: Vec::new() };
    if options.chain && opens {
        check_parents(path, options, &mut report)?;
    }
    Ok(report)
}

fn check_file(path: &Path, storage: &Arc<dyn Storage>, (depth, deep): (usize, bool)) -> Result<CheckedFile> {
    let mut findings = Findings::new();
    note_marks(path, &mut findings);
    let summary = match Image::check(Arc::clone(storage), deep, &mut findings) {
        Ok(summary) => Some(summary),
        Err(_) if findings.list().iter().any(|finding| finding.severity == Severity::Fatal) => None,
        Err(error) => return Err(error.with_path(path)),
    };
    Ok(CheckedFile {
        depth,
        path: path.to_path_buf(),
        format: Image::probe(&**storage).map_err(|error| error.with_path(path))?,
        summary,
        findings: findings.list().iter().map(CheckedFinding::from).collect(),
        not_listed: findings.dropped(),
    })
}

/// Walks down from the leaf at `path`; a link that does not hold is a finding about the child, and the end.
fn check_parents(path: &Path, options: &CheckOptions, report: &mut CheckReport) -> Result<()> {
    let (layers, broken) = Chain::open_as_far(path, &options.open)?;
    for (child, parent) in layers.iter().zip(layers.iter().skip(1)) {
        compare(child, parent, report);
        if !matches!(parent.image(), Image::Raw(_)) {
            let path = parent.path().unwrap_or(Path::new(""));
            report.files.push(check_file(path, parent.storage(), (report.files.len() + 1, options.deep))?);
        }
    }
    if let Some(error) = broken {
        add(report, Severity::Error, broken_link(&error));
    }
    let ids: Vec<ImageId> = layers.iter().skip(1).filter_map(|layer| layer.image().id()).collect();
    report.siblings = siblings_of(report, &ids);
    Ok(())
}

/// A problem about a link, and the name Windows gives it.
struct Link {
    problem: Problem,
    windows_name: Option<&'static str>,
}

impl From<Problem> for Link {
    fn from(problem: Problem) -> Self {
        Self { windows_name: problem.windows_name(), problem }
    }
}

fn broken_link(error: &Error) -> Link {
    // What is wrong inside the parent's file is said of the link here: the child is what does not open.
    let problem = match error.problem() {
        Some(problem) if problem.structure == Structure::ParentLink => problem.clone(),
        _ => Problem::new(Structure::ParentLink, Fault::Missing, error, "a parent that opens and fits"),
    };
    Link { problem, windows_name: error.windows_name() }
}

fn add(report: &mut CheckReport, severity: Severity, link: Link) {
    if let Some(file) = report.files.last_mut() {
        let finding = Finding { severity, problem: link.problem, repairable: false };
        file.findings.push(CheckedFinding { finding, windows_name: link.windows_name });
    }
}

/// Compares what opening a chain leaves to its layers: sizes and times. Identity and format have been compared.
fn compare(child: &Layer, parent: &Layer, report: &mut CheckReport) {
    let (above, below) = (child.image().virtual_size(), parent.image().virtual_size());
    if above != below {
        let found = format_args!("a disk of {above} bytes over a parent of {below} bytes");
        let allowed = "the same size, unless one was resized on purpose";
        add(report, Severity::Warning, Problem::new(Structure::ParentLink, Fault::Value, found, allowed).into());
    }
    if let (Image::Vhd(vhd), Some(path)) = (child.image(), parent.path()) {
        let noted = vhd.parent_timestamp().unwrap_or(0);
        let modified = super::create::modified(path);
        if noted != 0 && noted.abs_diff(modified) > TIME_SLACK {
            let found = format_args!("a parent that was last written at {modified} s");
            let allowed = format_args!("{noted} s after 2000, when the link was made");
            let problem = Problem::new(Structure::ParentLink, Fault::Mismatch, found, allowed);
            let windows_name = Some("ERROR_VHD_CHILD_PARENT_TIMESTAMP_MISMATCH");
            add(report, Severity::Warning, Link { problem, windows_name });
        }
    }
}

/// Images beside the files of the chain that name one of its parents, `ids`, as theirs.
fn siblings_of(report: &CheckReport, ids: &[ImageId]) -> Vec<PathBuf> {
    let own: BTreeSet<PathBuf> =
        report.files.iter().filter_map(|file| std::fs::canonicalize(&file.path).ok()).collect();
    children::find(ids, &own, &[]).unwrap_or_default()
}
