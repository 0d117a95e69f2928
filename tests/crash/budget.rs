//! How much is explored, and by which choices.
//!
//! Owns: the seed, the number of states wanted, the running total. Must not know: what is explored.

use std::sync::atomic::{AtomicU64, Ordering};

/// States a run explores unless told otherwise.
const DEFAULT_STATES: u64 = 240_000;

/// States that all tests of this process have explored so far.
static TOTAL: AtomicU64 = AtomicU64::new(0);

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let value = text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number"));
    Some(value)
}

/// The seed of every exploration here: `VHDKIT_CRASH_SEED`, or a fixed one.
pub(crate) fn seed() -> u64 {
    setting("VHDKIT_CRASH_SEED").unwrap_or(0x5eed)
}

/// One test's part of the states that are wanted, and what it has explored of it.
pub(crate) struct Quota {
    name: &'static str,
    wanted: u64,
    states: u64,
    points: u64,
    rounds: u64,
}

impl Quota {
    /// `share` thousandths of `VHDKIT_CRASH_STATES`.
    pub(crate) fn new(name: &'static str, share: u64) -> Self {
        let states = setting("VHDKIT_CRASH_STATES").unwrap_or(DEFAULT_STATES);
        Self { name, wanted: states * share / 1000, states: 0, points: 0, rounds: 0 }
    }

    /// Whether there is more to explore. Every test does one round whatever is wanted.
    pub(crate) fn wants_more(&self) -> bool {
        self.rounds == 0 || self.states < self.wanted
    }

    pub(crate) fn round(&mut self) -> u64 {
        self.rounds += 1;
        self.rounds - 1
    }

    pub(crate) fn add(&mut self, states: u64, points: u64) {
        self.states += states;
        self.points += points;
    }

    /// Prints what was done and the sum over all tests so far.
    pub(crate) fn finish(self) {
        let Self { name, wanted, states, points, rounds } = self;
        let total = TOTAL.fetch_add(states, Ordering::Relaxed) + states;
        let seed = seed();
        println!(
            "{name}: {states} crash states at {points} points in {rounds} rounds (VHDKIT_CRASH_SEED={seed}); {total} \
             states in all so far"
        );
        assert!(states >= wanted, "{name}: {states} states, {wanted} wanted");
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
