//! How much is explored, and by which choices.
//!
//! Owns: the seed, the number of states wanted, who explores which part of them, the total. Must not know: what is
//! explored.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// States a run explores unless told otherwise: the sum of all tests here. `.ci/run` fails below 200 000.
const DEFAULT_STATES: u64 = 210_000;

/// Who explores how many thousandths of the states. What is not here cannot explore, and they come to 1000.
const SHARES: [(&str, u64); 6] = [
    ("VHD merges", 270),
    ("VHDX merges", 210),
    ("VHD children written to before the rerun", 70),
    ("VHDX children written to before the rerun", 60),
    ("VHD guests", 230),
    ("VHDX guests", 160),
];

/// What the tests of this process have explored so far.
static DONE: Mutex<Total> = Mutex::new(Total { share: 0, states: 0, repeated: 0, points: 0 });

struct Total {
    share: u64,
    states: u64,
    repeated: u64,
    points: u64,
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let value = text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number"));
    Some(value)
}

/// The seed of every exploration here: `VHDKIT_CRASH_SEED`, or a fixed one.
pub(crate) fn seed() -> u64 {
    setting("VHDKIT_CRASH_SEED").unwrap_or(0x5eed)
}

/// Says something past the test harness, which keeps what a passing test prints to itself.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// One test's part of the states that are wanted, and what it has explored of it.
pub(crate) struct Quota {
    name: &'static str,
    share: u64,
    wanted: u64,
    states: u64,
    repeated: u64,
    points: u64,
    rounds: u64,
}

impl Quota {
    /// The part of `VHDKIT_CRASH_STATES` that [`SHARES`] gives to `name`.
    pub(crate) fn new(name: &'static str) -> Self {
        assert_eq!(SHARES.iter().map(|(_, share)| share).sum::<u64>(), 1000);
        let (_, share) = *SHARES.iter().find(|(of, _)| *of == name).expect("a share of the states");
        let states = setting("VHDKIT_CRASH_STATES").unwrap_or(DEFAULT_STATES);
        Self { name, share, wanted: states * share / 1000, states: 0, repeated: 0, points: 0, rounds: 0 }
    }

    /// Whether there is more to explore. Every test does one round whatever is wanted.
    pub(crate) fn wants_more(&self) -> bool {
        self.rounds == 0 || self.states < self.wanted
    }

    pub(crate) fn round(&mut self) -> u64 {
        self.rounds += 1;
        self.rounds - 1
    }

    pub(crate) fn add(&mut self, report: &Seen) {
        self.states += report.states;
        self.repeated += report.repeated;
        self.points += report.points;
    }

    /// Says what was done, and after the last test what all of them did.
    pub(crate) fn finish(self) {
        let Self { name, share, wanted, states, repeated, points, rounds } = self;
        println!(
            "{name}: {states} crash states ({repeated} repeated) at {points} points in {rounds} rounds \
             (VHDKIT_CRASH_SEED={})",
            seed()
        );
        assert!(states >= wanted, "{name}: {states} states, {wanted} wanted");
        let mut total = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        total.share += share;
        total.states += states;
        total.repeated += repeated;
        total.points += points;
        if total.share == 1000 {
            // `.ci/run` reads this line.
            say(&format!(
                "crash states explored: {} different ones at {} points, none against the rules (VHDKIT_CRASH_SEED={})",
                total.states,
                total.points,
                seed()
            ));
        }
    }
}

/// How much was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) states: u64,
    pub(crate) repeated: u64,
    pub(crate) points: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, report: &vhdkit::storage::sim::ExploreReport) {
        self.states += report.states;
        self.repeated += report.repeated;
        self.points += report.points;
    }
}

/// A stream of choices that its seed fixes (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x9E37_79B9_7F4A_7C15)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `of` times.
    pub(crate) fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
