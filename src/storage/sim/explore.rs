//! Walking the crash states of a journal.
//!
//! Owns: which combinations of surviving operations are tried. Must not know: what a fate does to contents.

use super::SimDisk;
use super::journal::{Action, Fate, Operation};
use super::random::Random;
use crate::storage::sparse::Sparse;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Prefixes tried at a point with too many unsynced operations to try all subsets; evenly spread. The other prefixes were
/// "everything survives" of an earlier point.
const MAX_PREFIXES: usize = 16;

/// The newest operations of such a point that are each tried lost alone, and surviving alone.
const MAX_SINGLES: usize = 8;

/// Beyond so many unsynced operations only every [`LONG_STRIDE`]th point is explored, and the last before a sync, whose
/// states include those of the points between.
const LONG: usize = 64;
const LONG_STRIDE: usize = 16;

/// Unsynced operations a failure message lists.
const MAX_LISTED: usize = 40;

/// How thoroughly to explore.
#[derive(Clone, Copy, Debug)]
pub struct ExploreOptions {
    /// Fixes every random choice. Print it when a test fails.
    pub seed: u64,
    /// Random states per crash point, beyond the ones that are always tried.
    pub samples_per_point: u32,
    /// Up to so many unsynced operations all subsets are tried (at most 16).
    pub exhaustive_limit: u32,
    /// Crash points before this one are passed over; compare with [`SimDisk::position`].
    pub from_point: usize,
    /// The visitor judges contents alike at every point between two [promises](SimDisk::promise): what an earlier point
    /// gave is not given again.
    pub by_promise: bool,
}

impl ExploreOptions {
    /// Sixteen samples per point, all subsets of up to six operations, from the beginning.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { seed, samples_per_point: 16, exhaustive_limit: 6, from_point: 0, by_promise: false }
    }
}

/// What an exploration saw.
#[derive(Clone, Debug, Default)]
pub struct ExploreReport {
    /// Crash states the visitor was given. No two of one point hold the same bytes.
    pub states: u64,
    /// Crash states that held what the visitor had seen already.
    pub repeated: u64,
    /// Crash points they belong to.
    pub points: u64,
    /// The first state the visitor did not accept; exploration ended there.
    pub first_failure: Option<ExploreFailure>,
}

impl ExploreReport {
    /// Panics with the first failure, if there is one. For tests.
    ///
    /// # Panics
    /// When a state was not accepted.
    #[track_caller]
    pub fn assert_ok(&self) {
        if let Some(failure) = &self.first_failure {
            panic!("{failure}");
        }
    }
}

/// A crash state that the visitor did not accept.
#[derive(Clone, Debug)]
pub struct ExploreFailure {
    /// Operations before the crash.
    pub point: usize,
    /// The fates of the unsynced operations, in words.
    pub state: String,
    /// What the visitor said.
    pub message: String,
}

impl fmt::Display for ExploreFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nin the state of {}", self.message, self.state)
    }
}

/// What is left after one crash.
pub struct CrashState<'a> {
    journal: &'a Journal,
    point: usize,
    pending: &'a [usize],
    fates: &'a [Fate],
    files: Vec<Sparse>,
}

/// What was recorded, taken out of the disk so that the visitor may use it.
struct Journal {
    names: Vec<Arc<str>>,
    operations: Vec<Operation>,
    promises: Vec<usize>,
}

impl CrashState<'_> {
    /// How many operations there were before the crash; compare with [`SimDisk::position`].
    #[must_use]
    pub fn point(&self) -> usize {
        self.point
    }

    /// A machine that starts with what survived: open the files again, and explore that in turn if need be. Every call
    /// makes a new one.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        SimDisk::from_contents(self.journal.names.iter().cloned().zip(self.files.iter().cloned()))
    }
}

impl fmt::Debug for CrashState<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for CrashState<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a crash after {} of {} operations, with", self.point, self.journal.operations.len())?;
        if self.pending.is_empty() {
            return f.write_str(" everything synced");
        }
        let hidden = self.pending.len().saturating_sub(MAX_LISTED);
        if hidden > 0 {
            write!(f, " {hidden} older unsynced operations not listed, and")?;
        }
        for (&place, fate) in self.pending.iter().zip(self.fates).skip(hidden) {
            let Operation { file, action } = &self.journal.operations[place];
            write!(f, "\n  [{place}] {}: {action}: {fate}", self.journal.names[*file])?;
        }
        Ok(())
    }
}

impl SimDisk {
    /// How many crash points the journal has: before, between and after its operations.
    #[must_use]
    pub fn crash_points(&self) -> usize {
        self.position() + 1
    }

    /// Gives `visit` crash states of the journal, until it does not accept one.
    ///
    /// At every point (skipping those that can leave nothing their predecessor could not, and most
    /// inside long runs without a sync): nothing unsynced survives;
    /// everything does; with few unsynced operations every subset of them, and each of them torn in several ways; with
    /// many, prefixes, single losses and tears of the newest; then random subsets with random tears. States of one point
    /// that hold the same bytes are given once. The visitor gets states of one point after those of all earlier ones.
    pub fn explore(
        &self,
        options: &ExploreOptions,
        mut visit: impl FnMut(&CrashState<'_>) -> Result<(), String>,
    ) -> ExploreReport {
        let (journal, mut files) = self.taken();
        let mut random = Random::new(options.seed);
        let mut report = ExploreReport::default();
        let mut pending = Vec::new();
        let mut seen = HashSet::new();
        for point in 0..=journal.operations.len() {
            if !options.by_promise || journal.promises.contains(&point) {
                seen.clear();
            }
            let news = point == 0 || advance(&journal, point - 1, &mut files, &mut pending);
            let skipped = !news || is_inside_long_run(&journal, point, pending.len());
            if point < options.from_point || (skipped && point < journal.operations.len()) {
                continue;
            }
            report.points += 1;
            let actions: Vec<_> = pending
                .iter()
                .map(|&place| (&journal.operations[place].action, files[journal.operations[place].file].len()))
                .collect();
            for fates in Schedule::of(&actions, options, &mut random).list {
                let mut files = files.clone();
                for (&place, &fate) in pending.iter().zip(&fates) {
                    let Operation { file, action } = &journal.operations[place];
                    action.apply_fate(fate, &mut files[*file]);
                }
                if !seen.insert(files.iter().map(Sparse::fingerprint).collect::<Vec<u64>>()) {
                    report.repeated += 1;
                    continue;
                }
                report.states += 1;
                let state = CrashState { journal: &journal, point, pending: &pending, fates: &fates, files };
                if let Err(message) = visit(&state) {
                    report.first_failure = Some(ExploreFailure { point, state: state.to_string(), message });
                    return report;
                }
            }
        }
        report
    }

    fn taken(&self) -> (Journal, Vec<Sparse>) {
        let machine = self.lock();
        let names = machine.files.iter().map(|file| Arc::clone(&file.name)).collect();
        let bases = machine.files.iter().map(|file| file.base.clone()).collect();
        let (operations, promises) = (machine.journal.clone(), machine.promises.clone());
        (Journal { names, operations, promises }, bases)
    }
}

/// Takes one operation into what is durable and what is pending. False when no crash can tell the difference.
fn advance(journal: &Journal, place: usize, durable: &mut [Sparse], pending: &mut Vec<usize>) -> bool {
    let Operation { file, action } = &journal.operations[place];
    let before = pending.len();
    match action {
        Action::Sync => pending.retain(|&at| {
            let operation = &journal.operations[at];
            if operation.file == *file {
                operation.action.apply(&mut durable[*file]);
            }
            operation.file != *file
        }),
        Action::SyncDropped => {}
        Action::SyncFailed { lost } => pending.retain(|at| !lost.contains(at)),
        Action::Write { .. } | Action::Zero(_) | Action::SetLen(_) => pending.push(place),
    }
    pending.len() != before
}

fn is_inside_long_run(journal: &Journal, point: usize, pending: usize) -> bool {
    let syncs_next = journal.operations.get(point).is_some_and(|next| next.action.range().is_none());
    pending > LONG && !pending.is_multiple_of(LONG_STRIDE) && !syncs_next
}

/// The combinations of fates to try at one point.
struct Schedule<'a> {
    /// The unsynced operations, each with the durable length of its file.
    actions: &'a [(&'a Action, u64)],
    list: Vec<Vec<Fate>>,
    seen: HashSet<Vec<Fate>>,
}

impl<'a> Schedule<'a> {
    fn of(actions: &'a [(&'a Action, u64)], options: &ExploreOptions, random: &mut Random) -> Self {
        let mut schedule = Self { actions, list: Vec::new(), seen: HashSet::new() };
        let count = actions.len();
        schedule.push(vec![Fate::Lost; count]);
        schedule.push(vec![Fate::Whole; count]);
        if count <= options.exhaustive_limit.min(16) as usize {
            for subset in 0..1u32 << count {
                schedule.push((0..count).map(|at| whole_if(subset >> at & 1 == 1)).collect());
            }
            schedule.tear_each(0..count, random);
        } else {
            for prefix in 1..=MAX_PREFIXES {
                let kept = count * prefix / (MAX_PREFIXES + 1);
                schedule.push((0..count).map(|at| whole_if(at < kept)).collect());
            }
            for single in count.saturating_sub(MAX_SINGLES)..count {
                schedule.push((0..count).map(|at| whole_if(at != single)).collect());
                schedule.push((0..count).map(|at| whole_if(at == single)).collect());
            }
            schedule.tear_each(count - 1..count, random);
        }
        if count > 0 {
            for _ in 0..options.samples_per_point {
                schedule.sample(random);
            }
        }
        schedule
    }

    fn push(&mut self, fates: Vec<Fate>) {
        if self.seen.insert(fates.clone()) {
            self.list.push(fates);
        }
    }

    /// Each operation in each kind of tear, with the others all lost, all whole, and cut off behind it.
    fn tear_each(&mut self, operations: Range<usize>, random: &mut Random) {
        let count = self.actions.len();
        for torn in operations {
            for tear in self.tears(torn, random) {
                for (earlier, later) in [(false, false), (true, true), (true, false)] {
                    let fate = |at| if at < torn { whole_if(earlier) } else { whole_if(later) };
                    self.push((0..count).map(|at| if at == torn { tear } else { fate(at) }).collect());
                }
            }
        }
    }

    fn tears(&self, at: usize, random: &mut Random) -> Vec<Fate> {
        let (action, len) = self.actions[at];
        let Some(range) = action.range() else { return Vec::new() };
        let sectors = action.sectors();
        let mut tears = Vec::new();
        if sectors > 1 {
            let some = 1 + random.below(sectors - 1);
            tears.extend([Fate::First(1), Fate::First(some), Fate::Last(1), Fate::Last(some)]);
            tears.push(Fate::Scattered(random.next()));
        }
        if range.end > len {
            tears.push(Fate::LengthOnly);
            if range.start < len {
                tears.push(Fate::WithinLength);
            }
        }
        tears
    }

    /// A random subset, often a thin or a nearly full one, with some of it torn.
    fn sample(&mut self, random: &mut Random) {
        let chances = [1, 4, 8, 12, 15][random.below(5) as usize];
        let mut fates = Vec::with_capacity(self.actions.len());
        for at in 0..self.actions.len() {
            let mut fate = whole_if(random.hit(chances, 16));
            if fate == Fate::Whole && random.hit(1, 4) {
                let tears = self.tears(at, random);
                fate = tears.get(random.below(tears.len() as u64) as usize).copied().unwrap_or(fate);
            }
            fates.push(fate);
        }
        self.push(fates);
    }
}

fn whole_if(survives: bool) -> Fate {
    if survives { Fate::Whole } else { Fate::Lost }
}
