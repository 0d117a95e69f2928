//! Disks of other sizes, with other ids, other items of metadata, new leaves.

#[path = "../support/chains.rs"]
mod chains;
mod identity;
mod lab;
mod property;
mod resize;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
