//! VHD and VHDX virtual disks and their differencing chains: read, write, create, merge.
//!
//! Owns: the names a user of the library imports, and the map of its layers; no logic.
//!
//! # Layers
//!
//! Imports point down only; `tests/tidy.rs` fails otherwise.
//!
//! ```text
//! 8  bin/vhdkit                 arguments, progress bars, printing
//! 7  ops                        create convert merge ...
//! 6  chain                      who is whose parent; the composed map
//! 5  image                      enum over formats: probe, open, info
//! 4  vhd  vhdx  raw  |  copy  |  guest   formats, the copier, and what guests put on disks are siblings
//! 3  map  link  mend  pack      the seams between them
//! 2  storage                    bytes at offsets, one barrier, locks, faults
//! 1  finding watch
//! 0  error problem units guid bitmap zeros
//! ```

mod bitmap;
pub mod chain;
mod copy;
mod error;
mod finding;
pub mod guest;
mod guid;
mod image;
mod link;
mod map;
mod mend;
pub mod ops;
mod pack;
mod problem;
mod raw;
pub mod storage;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
pub mod units;
pub mod vhd;
pub mod vhdx;
mod watch;
mod zeros;

pub use error::{Error, ErrorKind, Result};
pub use finding::{Finding, Findings, MAX_FINDINGS, Severity};
pub use guid::Guid;
pub use image::{Format, Image};
pub use link::{DiskKind, GrowAs, HintKind, ImageId, NewParent, ParentLink, ParentPaths, PathHint, SavedLink};
pub use map::{BlockMap, BlockSink, Content, Extent, Place, Reservation, Source, Want};
pub use mend::{Assumption, CheckSummary, RepairKind};
pub use problem::{Fault, Problem, Structure};
pub use raw::Raw;
pub use watch::{CancelToken, Observer, Progress, Watch};

/// The example in the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExample;
