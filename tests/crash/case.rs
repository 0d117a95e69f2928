//! A run to be crashed: what every kind of workload here has in common.
//!
//! Owns: recording a run, walking its crash states into a quota. Must not know: what a run does.

use crate::budget::{self, Quota, Seen};
use vhdkit::storage::sim::{CrashState, ExploreOptions, ExploreReport, SimDisk};

/// Says whether a crash state is one that may be.
pub(crate) type Judge<'a> = Box<dyn Fn(&CrashState<'_>) -> Result<(), String> + 'a>;

/// What was recorded, and how its crash states are judged. The machine has noted a promise wherever the judge asks for
/// more than before.
pub(crate) struct Recorded<'a> {
    pub(crate) disk: SimDisk,
    pub(crate) judge: Judge<'a>,
}

/// A run that can be repeated.
pub(crate) trait Case {
    fn name(&self) -> &str;

    /// Does the run on a fresh machine; `spoil` is called on it first, to take barriers away.
    fn record(&self, spoil: &dyn Fn(&SimDisk)) -> Recorded<'_>;

    /// Walks the crash states of the run.
    fn walk(&self, options: &ExploreOptions, spoil: &dyn Fn(&SimDisk)) -> ExploreReport {
        let Recorded { disk, judge } = self.record(spoil);
        disk.explore(options, |state| judge(state))
    }

    /// Every state must be one that may be.
    fn explore(&self, quota: &mut Quota) {
        let round = quota.round();
        let report = self.walk(&options(round), &|_| {});
        if let Some(failure) = &report.first_failure {
            panic!("{}: VHDKIT_CRASH_SEED={}\n{failure}", self.name(), budget::seed());
        }
        assert!(report.points > 1, "{}: the run writes nothing", self.name());
        let mut seen = Seen::default();
        seen.add(&report);
        quota.add(&seen);
    }
}

/// How the `round`th run is explored.
pub(crate) fn options(round: u64) -> ExploreOptions {
    let seed = budget::seed() ^ round.wrapping_mul(0x9E37_79B9);
    ExploreOptions { samples_per_point: 8, exhaustive_limit: 5, by_promise: true, ..ExploreOptions::seeded(seed) }
}

/// A quick look: the ends of each point, and a few samples.
pub(crate) fn quick(seed: u64) -> ExploreOptions {
    ExploreOptions { samples_per_point: 2, exhaustive_limit: 2, by_promise: true, ..ExploreOptions::seeded(seed) }
}
