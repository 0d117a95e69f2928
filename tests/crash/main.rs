//! Every crash state of creating, writing, resizing, linking and merging, in simulation; every operation failing; every
//! barrier taken away.
//!
//! `VHDKIT_CRASH_STATES=5000000 VHDKIT_CRASH_SEED=7 cargo test --release --test crash -- --nocapture` explores more,
//! and others. Each test prints its seed, its number of states and the sum so far.

mod budget;
mod case;
#[path = "../support/chains.rs"]
mod chains;
mod create;
mod files;
mod generate;
mod merge;
#[path = "../support/mod.rs"]
mod support;
mod vhdx;
mod view;
mod write;

pub(crate) use budget::seed;
