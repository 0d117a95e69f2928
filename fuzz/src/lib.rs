//! What the fuzz targets do, as functions over bytes.
//!
//! Owns: the list of bodies. A body makes files out of its input, asks vhdkit for answers, and panics when one is not
//! what another reader or a plain model says. `fuzz_targets/` hands them to libFuzzer; `tests/seeds.rs` runs the same
//! bodies on a stable toolchain over the committed inputs and over mutations of them.
//!
//! Everything reaches vhdkit through its public interface.

#[allow(dead_code)]
#[path = "../../tests/damage/blame.rs"]
mod blame;
#[allow(dead_code)]
#[path = "../../tests/support/chains.rs"]
mod chains;
mod damage;
#[allow(dead_code)]
#[path = "../../tests/damage/fields.rs"]
mod fields;
mod guarded;
#[allow(dead_code)]
#[path = "../../tests/damage/images.rs"]
mod images;
mod input;
mod scratch;
mod second;
mod subjects;
#[path = "../../tests/support/mod.rs"]
mod support;
mod targets;
mod views;
mod workload;

pub use targets::{Body, TARGETS, body};

/// The most memory one input may take, our own models and the second reader included; more is a failed allocation.
pub const MEMORY_LIMIT: usize = 256 << 20;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, MEMORY_LIMIT);

/// The memory held now, in bytes.
#[must_use]
pub fn memory() -> usize {
    ALLOCATOR.allocated()
}
