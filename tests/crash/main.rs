//! Every crash state of creating, writing, resizing, linking and merging, in simulation; every operation failing; every
//! barrier taken away.
//!
//! `VHDKIT_CRASH_STATES=5000000 VHDKIT_CRASH_SEED=7 cargo test --release --test crash -- --nocapture` explores more,
//! and others. Each test prints its seed, its number of states and the sum so far.

mod barriers;
mod budget;
mod case;
#[allow(dead_code)] // Other test binaries build whole chains with it.
#[path = "../support/chains.rs"]
mod chains;
mod change;
mod compact;
mod create;
mod faults;
mod files;
mod generate;
mod guest;
mod merge;
mod relations;
mod resume;
mod sites;
#[path = "../support/mod.rs"]
mod support;
mod vhdx;
mod view;

pub(crate) use budget::seed;
