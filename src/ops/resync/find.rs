//! What of two disks differs.
//!
//! Owns: looking at both in steps, between which the target is written. Must not know: what is done about it.

use super::options::ResyncedPair;
use crate::chain::Chain;
use crate::copy::{Copier, Meter};
use crate::error::Result;
use crate::ops::compare::Comparison;
use std::ops::Range;

/// What one step found.
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

/// What differs from `at` on, some of it at a time; `None` at the end of the source. What the target has past that is not
/// looked at.
///
/// # Errors
/// Those of reading either; `Cancelled`.
pub(super) fn next(
    source: &Chain,
    target: &Chain,
    at: u64,
    (copier, meter): (&Copier, &Meter<'_>),
) -> Result<Option<Found>> {
    let end = source.virtual_size();
    if at >= end {
        return Ok(None);
    }
    meter.check()?;
    let unit = source.logical_sector_size().into();
    let mut comparison = Comparison::new(source.layers(), target.layers())?.within(at..end)?;
    let batch = comparison.step(copier, unit, meter)?;
    let end = comparison.at();
    let known_equal = batch.known_equal;
    Ok(Some(Found { ranges: batch.ranges, known_equal, compared: (end - at).saturating_sub(known_equal), end }))
}
