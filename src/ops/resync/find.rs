//! What of two disks differs.
//!
//! Owns: looking at both in steps, between which the target is written. Must not know: what is done about it.

use super::options::ResyncedPair;
use crate::chain::Chain;
use crate::copy::{Copier, Meter};
use crate::error::Result;
use crate::ops::compare::Comparison;
use std::ops::Range;

/// What was found up to the first place where something has to be written.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Where the two differ, in whole sectors.
    pub(super) ranges: Vec<Range<u64>>,
    known_equal: u64,
    compared: u64,
    /// Where the next step starts.
    pub(super) end: u64,
}

impl Found {
    /// Adds it to what was found before.
    pub(super) fn count(&self, report: &mut ResyncedPair) {
        report.known_equal += self.known_equal;
        report.compared += self.compared;
        report.differing += self.ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    }
}

/// What differs from `at` on, some of it at a time, and how far that was looked for; `None` at the end of the source. What the target has past that is not
/// looked at.
///
/// `meter` counts what is read, `progress` is told how far it got.
///
/// # Errors
/// Those of reading either; `Cancelled`.
pub(super) fn next(
    source: &Chain,
    target: &Chain,
    at: u64,
    (copier, meter, progress): (&Copier, &Meter<'_>, &Meter<'_>),
) -> Result<Option<Found>> {
    let end = source.virtual_size();
    if at >= end {
        return Ok(None);
    }
    let unit = source.logical_sector_size().into();
    let mut comparison = Comparison::new(source.layers(), target.layers())?.within(at..end)?;
    let mut found = Found { end: at, ..Found::default() };
    // Until there is something to write, for which the target has to be let go.
    while found.ranges.is_empty() && found.end < end {
        meter.check()?;
        let from = found.end;
        let step = comparison.step(copier, unit, meter)?;
        found.end = comparison.at();
        found.known_equal += step.known_equal;
        found.compared += (found.end - from).saturating_sub(step.known_equal);
        found.ranges = step.ranges;
        progress.reached(found.end);
    }
    Ok(Some(found))
}
