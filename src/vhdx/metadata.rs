//! The metadata region: a table of items, and the items every disk has ([MS-VHDX] 2.6).
//!
//! Owns: the rules for block size, disk size and sector sizes, encoding table and items; `read` owns the table's rules.
//! Must not know: what the parent locator's pairs mean to a chain; when changed metadata may be written.

mod read;

use super::locator::Locator;
use super::raw::{
    ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, ITEM_IS_USER, ITEM_IS_VIRTUAL_DISK, ITEM_LOGICAL_SECTOR,
    ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, MAX_BLOCK_SIZE, MAX_METADATA_ENTRIES, MAX_METADATA_ITEM_LEN,
    MAX_VIRTUAL_SIZE, METADATA_SIGNATURE, METADATA_TABLE_LEN, MIN_BLOCK_SIZE, PARAMETER_HAS_PARENT,
    PARAMETER_LEAVE_BLOCKS, RawFileParameters, RawMetadataEntry, RawMetadataHeader,
};
use super::region::Region;
use crate::error::Result;
use crate::finding::Findings;
use crate::guid::{Guid, RawGuid};
use crate::link::DiskKind;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::units::FileOffset;
use read::Reader;
pub(super) use read::is_known;
use std::ops::Range;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

const HEADER_LEN: usize = size_of::<RawMetadataHeader>();
const ENTRY_LEN: usize = size_of::<RawMetadataEntry>();

/// One entry of the metadata table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetadataItem {
    /// Which item; user items have an id space of their own.
    pub(crate) id: Guid,
    /// `ITEM_IS_USER`, `ITEM_IS_VIRTUAL_DISK`, `ITEM_IS_REQUIRED`.
    pub(crate) flags: u32,
    /// From the start of the metadata region; 0 when the item is empty.
    pub(crate) offset: u32,
    /// Bytes, up to 1 MiB.
    pub(crate) length: u32,
}

impl MetadataItem {
    /// Whether it is a user's.
    pub(crate) fn is_user(&self) -> bool {
        self.flags & ITEM_IS_USER != 0
    }

    fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start.saturating_add(u64::from(self.length))
    }

    /// Whether it lies behind the table, inside a region of `region_len` bytes, and is not too long.
    fn is_placed(&self, region_len: u32) -> bool {
        let empty = self.offset == 0 && self.length == 0;
        let inside = self.range().start >= METADATA_TABLE_LEN as u64
            && self.range().end <= u64::from(region_len)
            && self.length > 0;
        empty || (inside && self.length <= MAX_METADATA_ITEM_LEN)
    }
}

/// What the five required items say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskMetadata {
    /// Bytes, a power of two from 1 to 256 MiB.
    pub(crate) block_size: u32,
    /// Blocks stay allocated: a fixed disk, unless it has a parent.
    pub(crate) leave_blocks: bool,
    /// A differencing disk.
    pub(crate) has_parent: bool,
    /// Bytes, a multiple of the logical sector, up to 64 TiB.
    pub(crate) virtual_size: u64,
    /// The disk's own id, the same in a parent and its children.
    pub(crate) disk_id: Guid,
    /// 512 or 4096.
    pub(crate) logical_sector: u32,
    /// 512 or 4096.
    pub(crate) physical_sector: u32,
}

impl DiskMetadata {
    /// Fixed, dynamic or differencing.
    pub(crate) fn kind(&self) -> DiskKind {
        match (self.has_parent, self.leave_blocks) {
            (true, _) => DiskKind::Differencing,
            (false, true) => DiskKind::Fixed,
            (false, false) => DiskKind::Dynamic,
        }
    }

    /// The first rule of [MS-VHDX] 2.6.2 these values break, and the item that breaks it. For disks being opened,
    /// created and resized alike.
    pub(crate) fn broken_rule(&self) -> Option<(Guid, Problem)> {
        let problem = |id, found: String, allowed: &str| {
            Some((id, Problem::new(Structure::VhdxMetadata, Fault::Value, found, allowed)))
        };
        let block_size = u64::from(self.block_size);
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
            let found = format!("block size {block_size}");
            return problem(ITEM_FILE_PARAMETERS, found, "a power of two from 1 MiB to 256 MiB");
        }
        for (id, size, name) in [
            (ITEM_LOGICAL_SECTOR, self.logical_sector, "logical"),
            (ITEM_PHYSICAL_SECTOR, self.physical_sector, "physical"),
        ] {
            if ![512, 4096].contains(&size) {
                return problem(id, format!("{name} sector size {size}"), "512 or 4096");
            }
        }
        let size = self.virtual_size;
        if size == 0 || size > MAX_VIRTUAL_SIZE || !size.is_multiple_of(u64::from(self.logical_sector)) {
            let allowed = format!("a multiple of {} bytes above 0, up to 64 TiB", self.logical_sector);
            return problem(ITEM_VIRTUAL_SIZE, format!("virtual size {size}"), &allowed);
        }
        None
    }

    /// The required items as id, flags and bytes.
    pub(crate) fn items(&self) -> [(Guid, u32, Vec<u8>); 5] {
        const SYSTEM: u32 = ITEM_IS_REQUIRED;
        const DISK: u32 = ITEM_IS_REQUIRED | ITEM_IS_VIRTUAL_DISK;
        let leave = if self.leave_blocks { PARAMETER_LEAVE_BLOCKS } else { 0 };
        let parent = if self.has_parent { PARAMETER_HAS_PARENT } else { 0 };
        let parameters = RawFileParameters { block_size: U32::new(self.block_size), flags: U32::new(leave | parent) };
        [
            (ITEM_FILE_PARAMETERS, SYSTEM, parameters.as_bytes().to_vec()),
            (ITEM_VIRTUAL_SIZE, DISK, self.virtual_size.to_le_bytes().to_vec()),
            (ITEM_DISK_ID, DISK, self.disk_id.to_bytes_le().to_vec()),
            (ITEM_LOGICAL_SECTOR, DISK, self.logical_sector.to_le_bytes().to_vec()),
            (ITEM_PHYSICAL_SECTOR, DISK, self.physical_sector.to_le_bytes().to_vec()),
        ]
    }
}

/// The metadata of a file: the table, the items every disk has, and the parent locator.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    /// Where the region starts.
    pub(crate) at: FileOffset,
    /// Length of the region.
    pub(crate) length: u32,
    /// The table, in file order.
    pub(crate) items: Vec<MetadataItem>,
    /// The required items.
    pub(crate) disk: DiskMetadata,
    /// There when and only when the disk has a parent.
    pub(crate) locator: Option<Locator>,
}

impl Metadata {
    /// Reads the table and the items the format defines.
    ///
    /// # Errors
    /// `Corrupt` when the table or a required item breaks a rule; `Unsupported` for an unknown required item; what the
    /// storage answers.
    pub(crate) fn read(storage: &dyn Storage, region: &Region, findings: &mut Findings) -> Result<Self> {
        let mut reader = Reader { storage, region, findings };
        let items = reader.table()?;
        reader.check_items(&items)?;
        let disk = reader.disk(&items)?;
        let locator = reader.locator(&items, disk.has_parent)?;
        Ok(Self { at: FileOffset(region.offset), length: region.length, items, disk, locator })
    }

    /// The table's entry for an item.
    pub(crate) fn item(&self, id: Guid, is_user: bool) -> Option<&MetadataItem> {
        find(&self.items, id, is_user)
    }

    /// Where an item's bytes are in the file.
    pub(crate) fn place_of(&self, item: &MetadataItem) -> FileOffset {
        FileOffset(self.at.get().saturating_add(u64::from(item.offset)))
    }

    /// An item's bytes.
    ///
    /// # Errors
    /// `Corrupt` when it lies outside the region or the file; what the storage answers.
    pub(crate) fn read_item(&self, storage: &dyn Storage, item: &MetadataItem) -> Result<Vec<u8>> {
        let region = Region { id: item.id, offset: self.at.get(), length: self.length, flags: 0 };
        Reader { storage, region: &region, findings: &mut Findings::new() }.bytes_of(item)
    }
}

fn find(items: &[MetadataItem], id: Guid, is_user: bool) -> Option<&MetadataItem> {
    items.iter().find(|item| item.id == id && item.is_user() == is_user)
}

/// The 64 KiB of a metadata table.
pub(crate) fn encode_table(items: &[MetadataItem]) -> Vec<u8> {
    let mut bytes = vec![0; METADATA_TABLE_LEN];
    let header = RawMetadataHeader {
        signature: METADATA_SIGNATURE,
        reserved: U16::ZERO,
        entry_count: U16::new(u16::try_from(items.len()).unwrap_or(MAX_METADATA_ENTRIES)),
        reserved2: [0; 20],
    };
    if let Some((start, entries)) = bytes.split_first_chunk_mut::<HEADER_LEN>() {
        start.copy_from_slice(header.as_bytes());
        for (slot, item) in entries.chunks_exact_mut(ENTRY_LEN).zip(items) {
            slot.copy_from_slice(encode_entry(item).as_bytes());
        }
    }
    bytes
}

/// One entry of the table.
pub(crate) fn encode_entry(item: &MetadataItem) -> RawMetadataEntry {
    RawMetadataEntry {
        id: RawGuid::from(item.id),
        offset: U32::new(item.offset),
        length: U32::new(item.length),
        flags: U32::new(item.flags),
        reserved: U32::ZERO,
    }
}

#[cfg(test)]
mod tests;
