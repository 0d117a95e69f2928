//! Compaction by the free space of real file systems: made by their own tools, used through a mount, checked by their own
//! checkers.

mod files;
mod mutated;
mod program;
mod skipped;
#[path = "../support/mod.rs"]
mod support;
mod systems;
mod whole;
mod xfs_db;
