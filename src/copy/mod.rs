//! The copier: moves runs of bytes from storages to a storage, many at once.
//!
//! Owns: chunking, parallelism, buffers, and counting. Must not know: formats, block tables, chains, paths; what it is
//! told to move is durable and published by somebody else.
//!
//! A flat list of moves is cut to chunks and handed to a pool; each worker has one buffer, so memory is jobs x chunk.
//! Inside one call nothing is ordered: whoever needs order calls twice with a sync between.

mod ahead;
mod differ;
mod engine;
mod gather;
#[cfg(feature = "registry")]
mod inside;
mod meter;
mod share;

pub(crate) use ahead::{Bytes, Run};
pub(crate) use differ::{Origin, Pair, Side};
pub(crate) use engine::{CHUNK, Copier, Move, Work};
pub(crate) use meter::Meter;
