//! The block allocation table as arithmetic ([MS-VHDX] 2.5).
//!
//! Owns: where the entry of a block or of a sector bitmap is, how many entries there are, what one entry says and how it
//! is written. Must not know: any storage; where the table or a block lies in the file.

use super::metadata::DiskMetadata;
use super::raw::{BAT_ENTRY_LEN, CHUNK_SECTORS};
use crate::problem::Fault;
use crate::units::{FileOffset, MIB};

/// The shape of a disk's block allocation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes.
    pub(crate) virtual_size: u64,
    /// Bytes, a power of two from 1 to 256 MiB.
    pub(crate) block_size: u64,
    /// Bytes, 512 or 4096.
    pub(crate) logical_sector: u64,
    /// Payload blocks per sector bitmap block, a power of two.
    pub(crate) chunk_ratio: u64,
    /// Whether the disk has a parent.
    pub(crate) differencing: bool,
}

/// What the entry at an index of the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Payload block of this number.
    Payload(u64),
    /// Sector bitmap block of this chunk.
    Bitmap(u64),
}

impl Geometry {
    /// The shape that valid metadata describes.
    #[allow(clippy::arithmetic_side_effects)] // 2^23 sectors of at most 4096 bytes; block_size is not 0 when valid.
    pub(crate) fn new(disk: &DiskMetadata) -> Self {
        let block_size = u64::from(disk.block_size).max(MIB);
        Self {
            virtual_size: disk.virtual_size,
            block_size,
            logical_sector: u64::from(disk.logical_sector),
            chunk_ratio: CHUNK_SECTORS * u64::from(disk.logical_sector) / block_size,
            differencing: disk.has_parent,
        }
    }

    /// The number of payload blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size)
    }

    /// The number of chunks, which is the number of sector bitmap blocks a differencing disk can have.
    pub(crate) fn chunks(&self) -> u64 {
        self.blocks().div_ceil(self.chunk_ratio)
    }

    /// The chunk that `block` belongs to.
    pub(crate) fn chunk_of(&self, block: u64) -> u64 {
        block.checked_div(self.chunk_ratio).unwrap_or_default()
    }

    /// The table index of payload block `block`.
    pub(crate) fn payload_index(&self, block: u64) -> u64 {
        block.saturating_add(self.chunk_of(block))
    }

    /// The table index of the sector bitmap of `chunk`.
    pub(crate) fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk.saturating_add(1).saturating_mul(self.chunk_ratio).saturating_add(chunk)
    }

    /// What the entry at `index` is about; block and chunk may lie past the end of the disk.
    pub(crate) fn slot(&self, index: u64) -> Slot {
        let stride = self.chunk_ratio.saturating_add(1);
        let chunk = index.checked_div(stride).unwrap_or_default();
        let inside = index.checked_rem(stride).unwrap_or_default();
        if inside == self.chunk_ratio {
            Slot::Bitmap(chunk)
        } else {
            Slot::Payload(chunk.saturating_mul(self.chunk_ratio).saturating_add(inside))
        }
    }

    /// Whether the entry at `index` is a sector bitmap's.
    pub(crate) fn is_bitmap(&self, index: u64) -> bool {
        matches!(self.slot(index), Slot::Bitmap(_))
    }

    /// The virtual offset of the payload entry at `index`, or of the next one after a sector bitmap's.
    pub(crate) fn offset_of(&self, index: u64) -> u64 {
        let block = match self.slot(index) {
            Slot::Payload(block) => block,
            Slot::Bitmap(chunk) => chunk.saturating_add(1).saturating_mul(self.chunk_ratio),
        };
        block.saturating_mul(self.block_size)
    }

    /// How many entries a table for this disk must have.
    pub(crate) fn entries(&self) -> u64 {
        if self.differencing {
            self.entries_with_bitmaps()
        } else {
            self.blocks().checked_sub(1).map_or(0, |last| self.payload_index(last).saturating_add(1))
        }
    }

    /// How many entries the table of a differencing disk of this size has.
    pub(crate) fn entries_with_bitmaps(&self) -> u64 {
        self.chunks().saturating_mul(self.chunk_ratio.saturating_add(1))
    }

    /// Bytes a new BAT region gets: room for the bitmaps' entries whatever the kind, whole MiB.
    pub(crate) fn region_len(&self) -> u64 {
        let bytes = self.entries_with_bitmaps().saturating_mul(BAT_ENTRY_LEN);
        bytes.max(1).checked_next_multiple_of(MIB).unwrap_or(u64::MAX)
    }

    /// Logical sectors per block.
    pub(crate) fn sectors_per_block(&self) -> u64 {
        self.block_size.checked_div(self.logical_sector).unwrap_or_default()
    }

    /// The bit of the chunk's sector bitmap that stands for the first sector of `block`.
    pub(crate) fn first_bit(&self, block: u64) -> u64 {
        block.checked_rem(self.chunk_ratio).unwrap_or_default().saturating_mul(self.sectors_per_block())
    }
}

/// State of a payload block ([MS-VHDX] 2.5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PayloadState {
    /// Never written, or in a differencing disk: ask the parent.
    NotPresent = 0,
    /// Contents undefined; reads as zeros here. May keep its space.
    Undefined = 1,
    /// Zeros, explicitly.
    Zero = 2,
    /// Trimmed: reads as zeros here. May keep its space.
    Unmapped = 3,
    /// All of it is in the file.
    FullyPresent = 6,
    /// The sectors whose bit is set are in the file; the parent has the rest.
    PartiallyPresent = 7,
}

/// A payload entry that keeps the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PayloadEntry {
    /// What reading the block means.
    pub(crate) state: PayloadState,
    /// Where its space is; 0 when it has none. In states `Undefined` and `Unmapped` space that is kept but not read.
    pub(crate) offset: FileOffset,
}

/// Why an entry is not allowed: kind of fault, what was found, what is allowed.
pub(crate) type EntryFault = (Fault, String, &'static str);

const STATE_BITS: u64 = 0b111;
const RESERVED_BITS: u64 = 0xF_FFF8;

impl PayloadEntry {
    /// Decodes an entry of the table of a disk that is differencing or not.
    pub(crate) fn decode(raw: u64, differencing: bool) -> Result<Self, EntryFault> {
        check_reserved(raw)?;
        let state = match raw & STATE_BITS {
            0 => PayloadState::NotPresent,
            1 => PayloadState::Undefined,
            2 => PayloadState::Zero,
            3 => PayloadState::Unmapped,
            6 => PayloadState::FullyPresent,
            7 if differencing => PayloadState::PartiallyPresent,
            7 => return Err((Fault::State, "state 7 without a parent".into(), "states 0 to 3 and 6")),
            other => return Err((Fault::State, format!("state {other}"), "states 0 to 3, 6 and 7")),
        };
        let offset = FileOffset(raw & !(MIB.saturating_sub(1)));
        let present = matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent);
        if present && offset.get() == 0 {
            return Err((Fault::Range, "a present block at file offset 0".into(), "a file offset from 1 MiB"));
        }
        // States 0 and 2 have no space of their own; what the field holds there means nothing.
        let kept = !matches!(state, PayloadState::NotPresent | PayloadState::Zero);
        Ok(Self { state, offset: if kept { offset } else { FileOffset(0) } })
    }

    /// The entry's 64 bits.
    pub(crate) fn encode(self) -> u64 {
        let keeps = !matches!(self.state, PayloadState::NotPresent | PayloadState::Zero);
        self.state as u64 | if keeps { self.offset.get() & !(MIB.saturating_sub(1)) } else { 0 }
    }

    /// Whether the block has bytes in the file that a read may see.
    pub(crate) fn is_present(self) -> bool {
        matches!(self.state, PayloadState::FullyPresent | PayloadState::PartiallyPresent)
    }
}

/// Decodes a sector bitmap entry: where the bitmap block is, `None` when there is none ([MS-VHDX] 2.5.1.2).
pub(crate) fn decode_bitmap(raw: u64, differencing: bool) -> Result<Option<FileOffset>, EntryFault> {
    check_reserved(raw)?;
    let offset = FileOffset(raw & !(MIB.saturating_sub(1)));
    match raw & STATE_BITS {
        0 => Ok(None),
        6 if !differencing => Err((Fault::State, "a sector bitmap without a parent".into(), "state 0")),
        6 if offset.get() == 0 => {
            Err((Fault::Range, "a sector bitmap at file offset 0".into(), "a file offset from 1 MiB"))
        }
        6 => Ok(Some(offset)),
        other => Err((Fault::State, format!("sector bitmap state {other}"), "states 0 and 6")),
    }
}

/// A sector bitmap entry's 64 bits.
pub(crate) fn encode_bitmap(place: Option<FileOffset>) -> u64 {
    place.map_or(0, |offset| 6 | offset.get() & !(MIB.saturating_sub(1)))
}

fn check_reserved(raw: u64) -> Result<(), EntryFault> {
    let reserved = raw & RESERVED_BITS;
    if reserved == 0 { Ok(()) } else { Err((Fault::Reserved, format!("entry {raw:#018x}"), "bits 3 to 19 clear")) }
}

#[cfg(test)]
mod tests;
