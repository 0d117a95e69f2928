//! Every crash point of creating, writing and merging, in simulation.

#[path = "../support/chains.rs"]
mod chains;
mod create;
mod merge;
mod vhdx;
mod write;

/// The seed of every exploration here: `VHDKIT_CRASH_SEED`, or a fixed one, printed either way.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("VHDKIT_CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed);
    println!("crash exploration with VHDKIT_CRASH_SEED={seed}");
    seed
}
