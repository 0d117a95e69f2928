//! What a guest put on its disk: partition tables and, with feature `fs`, the free space of its file systems.
//!
//! Owns: reading those structures, and how a GUID partition table looks on a disk of another size; it writes nothing.
//! Must not know: image formats, files, or what is done with the answers. Everything read is somebody else's word: it never panics, and every count in it has a limit here.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[cfg(feature = "fs")]
mod fs;
mod gpt;
mod mbr;
mod partition;

#[cfg(feature = "fs")]
pub use fs::{FileSystem, FreeSpace, Volume, free_space, volumes};
pub use gpt::{Gpt, GptCopy, GptMove};
pub use partition::{Partition, PartitionKind, PartitionTable, TableKind};

use crate::error::Result;

/// A disk, or a part of one, to read from.
pub trait ReadAt: Sync {
    /// Its length in bytes.
    fn size(&self) -> u64;

    /// Its logical sector size in bytes, in which partition tables count.
    fn sector_size(&self) -> u32;

    /// Fills `buf` from `offset` bytes on.
    ///
    /// # Errors
    /// `InvalidInput` when the range reaches past the end; what reading answers.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
}
