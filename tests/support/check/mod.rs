//! The rules a file that we write must keep.
//!
//! Owns: the list of violations and the map of who owns which bytes of a file. The rules of each format are stricter than
//! what a reader may refuse: files of other producers may break some of them.

mod vhd;
mod vhdx;
mod vhdx_metadata;

use crate::support::bytes::{Bytes, Outcome};
use std::fmt;
use std::fs::File;
use std::path::Path;

pub use vhd::{azure_rules, geometry};

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The rule's short name; tests that expect a violation ask for it.
    pub rule: &'static str,
    /// What was found, and where.
    pub detail: String,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

/// All that a checker found in one file.
#[derive(Debug, Default)]
pub struct Report {
    /// Broken rules, in the order they were met.
    pub issues: Vec<Issue>,
    owned: Vec<Owned>,
}

/// A run of the file that something owns.
#[derive(Debug)]
struct Owned {
    start: u64,
    end: u64,
    by: String,
}

impl Report {
    /// The report on the VHD `file`.
    pub fn vhd(file: &dyn Bytes) -> Self {
        Self::of(|report| vhd::check(report, file))
    }

    /// The report on the VHDX `file`, which must have been closed cleanly.
    pub fn vhdx(file: &dyn Bytes) -> Self {
        Self::of(|report| vhdx::check(report, file))
    }

    fn of(check: impl FnOnce(&mut Self) -> Outcome<()>) -> Self {
        let mut report = Self::default();
        if let Err(detail) = check(&mut report) {
            report.issues.push(Issue { rule: "unreadable", detail });
        }
        report
    }

    /// Whether `rule` was broken.
    pub fn broke(&self, rule: &str) -> bool {
        self.issues.iter().any(|issue| issue.rule == rule)
    }

    /// The names of the broken rules, sorted, each once.
    pub fn rules(&self) -> Vec<&'static str> {
        let mut rules: Vec<_> = self.issues.iter().map(|issue| issue.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Bytes of a file of `len` bytes that nothing owns: alignment gaps and leaked space.
    pub fn unowned(&self, len: u64) -> u64 {
        let mut runs: Vec<_> = self.owned.iter().map(|run| (run.start, run.end.min(len))).collect();
        runs.sort_unstable();
        let mut reached = 0;
        let mut gaps = 0;
        for (start, end) in runs {
            gaps += start.min(len).saturating_sub(reached);
            reached = reached.max(end);
        }
        gaps + len.saturating_sub(reached)
    }

    /// # Panics
    /// With all broken rules, when there are any.
    pub fn assert_clean(&self, name: impl fmt::Display) {
        let list: Vec<_> = self.issues.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "{name}: {} broken rules:\n{}", list.len(), list.join("\n"));
    }

    fn expect(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds {
            self.issues.push(Issue { rule, detail: detail() });
        }
    }

    fn own(&mut self, start: u64, len: u64, by: impl Into<String>) {
        self.owned.push(Owned { start, end: start.saturating_add(len), by: by.into() });
    }

    /// No two owners share a byte, and none reaches past `len`.
    fn judge_owners(&mut self, len: u64) {
        self.owned.sort_by_key(|run| (run.start, run.end));
        let mut issues = Vec::new();
        for run in self.owned.iter().filter(|run| run.end > len) {
            issues.push(Issue { rule: "past-end", detail: format!("{} ends at {:#x} of {len:#x}", run.by, run.end) });
        }
        for pair in self.owned.windows(2).filter(|pair| pair[0].end > pair[1].start) {
            let detail = format!("{} and {} share bytes from {:#x}", pair[0].by, pair[1].by, pair[1].start);
            issues.push(Issue { rule: "overlap", detail });
        }
        self.issues.append(&mut issues);
    }
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// # Panics
/// When the VHD file at `path` breaks a rule.
pub fn assert_well_formed_vhd(path: impl AsRef<Path>) {
    let path = path.as_ref();
    Report::vhd(&open(path)).assert_clean(path.display());
}

/// # Panics
/// When the VHDX file at `path` breaks a rule or was not closed cleanly.
pub fn assert_well_formed_vhdx(path: impl AsRef<Path>) {
    let path = path.as_ref();
    Report::vhdx(&open(path)).assert_clean(path.display());
}

/// What keeps Azure from taking the file at `path` as an upload; empty when nothing does.
pub fn azure_problems(path: impl AsRef<Path>) -> Vec<String> {
    azure_rules(&open(path.as_ref()))
}
