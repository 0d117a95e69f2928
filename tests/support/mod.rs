//! What vhdkit's tests hold its answers against.
//!
//! * [`spec`]: a slow, plain reader of both formats, written from the format pages alone;
//! * [`check`]: the rules a file that *we* write must keep, as a list of violations;
//! * [`gpt`]: partition tables as their specification has them;
//! * [`oracle`]: programs by other people (qemu-img, 7-Zip, libvhdi);
//! * [`real`]: the images made by other software, when they are at hand;
//! * [`sample`]: the small files of `testdata/`.
//!
//! Every test binary, and the unit tests of the library, include these modules by path as `crate::support`.
//! They must not use vhdkit: an error shared by both sides would be invisible. What builds images *with* vhdkit for
//! tests is a file of its own beside this one.

// Each includer uses another part, and none exports any of it.
#![allow(dead_code, unreachable_pub, unused_imports)]

pub mod bytes;
pub mod check;
pub mod gpt;
pub mod oracle;
pub mod real;
pub mod sample;
pub mod spec;

pub use bytes::{Bytes, Contents};
pub use check::{Issue, Report, assert_well_formed_vhd, assert_well_formed_vhdx, azure_problems};
pub use spec::{SpecDisk, read_chain};
