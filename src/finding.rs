//! Findings: what a reader of an image noticed, and the one place that decides whether reading goes on.
//!
//! Owns: severities and the list a parse fills. `open` and `check` run the same parsers over the same list.
//! Must not know: any format.

use crate::error::{Error, ErrorKind, Result};
use crate::problem::{Fault, Problem};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Severity {
    /// Legal but worth knowing: an unusual producer, a dirty log, slack.
    Warning,
    /// Broken, but the image opens; data may be at risk.
    Error,
    /// The image cannot be opened.
    Fatal,
}

/// A problem with its weight and whether a repair exists that cannot lose data.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub problem: Problem,
    /// Whether a repair exists that changes nothing a reader of the disk sees.
    pub repairable: bool,
}

/// The most findings one parse keeps; beyond it only a count grows.
pub const MAX_FINDINGS: usize = 1000;

/// The findings of one parse, in the order they were met.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    dropped: u64,
}

impl Findings {
    /// No findings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a problem that does not keep the image from opening.
    pub fn note(&mut self, severity: Severity, problem: Problem) {
        self.push(Finding { severity, problem, repairable: false });
    }

    /// Notes a problem that a safe repair can mend.
    pub fn note_repairable(&mut self, severity: Severity, problem: Problem) {
        self.push(Finding { severity, problem, repairable: true });
    }

    /// Notes a problem no reader can go on from, and gives the error to return.
    pub fn fatal(&mut self, problem: Problem) -> Error {
        let kind = if problem.fault == Fault::Unsupported { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
        self.push(Finding { severity: Severity::Fatal, problem: problem.clone(), repairable: false });
        Error::from_problem(kind, problem)
    }

    /// `Ok` when `rule` holds, else [`fatal`](Self::fatal) with the problem that `problem` builds.
    ///
    /// # Errors
    /// The problem, as `Corrupt` or `Unsupported`.
    pub fn require(&mut self, rule: bool, problem: impl FnOnce() -> Problem) -> Result<()> {
        if rule { Ok(()) } else { Err(self.fatal(problem())) }
    }

    /// Takes back that a repair exists for the findings that `which` picks.
    pub(crate) fn retract_repair(&mut self, which: impl Fn(&Problem) -> bool) {
        for finding in self.list.iter_mut().filter(|finding| which(&finding.problem)) {
            finding.repairable = false;
        }
    }

    /// Counts findings that were not worth building, because [`MAX_FINDINGS`] are here already.
    pub(crate) fn count_dropped(&mut self, more: u64) {
        self.dropped = self.dropped.saturating_add(more);
    }

    fn push(&mut self, finding: Finding) {
        if self.list.len() < MAX_FINDINGS {
            self.list.push(finding);
            return;
        }
        self.dropped = self.dropped.saturating_add(1);
        // Why the image does not open is worth more than the last of many findings that do not matter then.
        if finding.severity == Severity::Fatal
            && let Some(last) = self.list.last_mut().filter(|last| last.severity != Severity::Fatal)
        {
            *last = finding;
        }
    }

    /// What was found, in order.
    #[must_use]
    pub fn list(&self) -> &[Finding] {
        &self.list
    }

    /// How many findings past [`MAX_FINDINGS`] were counted but not kept.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds what another parse found.
    pub fn absorb(&mut self, other: Self) {
        self.dropped = self.dropped.saturating_add(other.dropped);
        for finding in other.list {
            self.push(finding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Structure;

    /// A region table full of doubles used to hide why the file behind it does not open.
    #[test]
    fn what_is_fatal_is_kept_when_there_is_no_room() {
        let problem = |found: &str| Problem::new(Structure::File, Fault::Value, found, "another");
        let mut findings = Findings::new();
        for _ in 0..MAX_FINDINGS + 3 {
            findings.note(Severity::Error, problem("one of many"));
        }
        let error = findings.fatal(problem("the end"));
        assert_eq!((findings.list().len(), findings.dropped()), (MAX_FINDINGS, 4));
        let kept: Vec<&Finding> = findings.list().iter().filter(|one| one.severity == Severity::Fatal).collect();
        assert_eq!(kept.len(), 1);
        assert_eq!(error.problem(), Some(&kept[0].problem));
        findings.note(Severity::Error, problem("one more"));
        assert_eq!(findings.list().last().map(|one| one.severity), Some(Severity::Fatal));
    }
}
