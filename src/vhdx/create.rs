//! New VHDX files.
//!
//! Owns: the layout of a new file and the order it is written in. Must not know: the rules for what it writes; those
//! are the readers', and every new file is opened by them before it is handed out.

use super::bat::{Geometry, PayloadEntry, PayloadState};
use super::header::Header;
use super::image::Vhdx;
use super::locator::Locator;
use super::metadata::{DiskMetadata, MetadataItem, encode_table};
use super::raw::{
    ALIGNMENT, BAT_ENTRY_LEN, HEADER_AREA_LEN, HEADER_AT, IDENTIFIER_SIGNATURE, ITEM_IS_REQUIRED, ITEM_PARENT_LOCATOR,
    LOG_VERSION, METADATA_TABLE_LEN, REGION_TABLE_AT, RawIdentifier, VERSION,
};
use super::region::RegionTable;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::guid::{self, Guid};
use crate::link::{DiskKind, NewParent};
use crate::storage::{Access, Storage};
use crate::units::{FileOffset, MIB};
use std::ops::Range;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// What Windows gives a new dynamic disk.
const DEFAULT_BLOCK_SIZE: u32 = 32 << 20;
/// What Windows gives a new child: small, since whatever is not written stays the parent's.
const DEFAULT_CHILD_BLOCK_SIZE: u32 = 2 << 20;
const LOG_LEN: u64 = MIB;
const METADATA_LEN: u64 = MIB;
/// Items start right behind the table.
const ITEMS_AT: u32 = 64 << 10;
const _: () = assert!(ITEMS_AT as usize == METADATA_TABLE_LEN);
/// The locator starts on a page of its own, so that changing it in place touches no other item; the rest of the region
/// is left for it to grow into.
const LOCATOR_AT: u32 = ITEMS_AT + 4096;
/// How much of a fixed disk's BAT is written at a time.
const BAT_CHUNK_ENTRIES: u64 = 8192;

/// What a new VHDX is to be. Everything but the size has a default.
#[derive(Clone, Debug)]
pub struct VhdxCreate {
    virtual_size: u64,
    kind: DiskKind,
    block_size: Option<u32>,
    logical_sector_size: u32,
    physical_sector_size: u32,
    parent: Option<NewParent>,
    disk_id: Option<Guid>,
    creator: String,
}

impl VhdxCreate {
    /// A dynamic disk of `virtual_size` bytes: a multiple of the logical sector, up to 64 TiB.
    #[must_use]
    pub fn new(virtual_size: u64) -> Self {
        Self {
            virtual_size,
            kind: DiskKind::Dynamic,
            block_size: None,
            logical_sector_size: 512,
            physical_sector_size: 4096,
            parent: None,
            disk_id: None,
            creator: concat!("vhdkit ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// Fixed, dynamic (the default) or differencing; a differencing disk needs a [`parent`](Self::parent).
    #[must_use]
    pub fn kind(mut self, kind: DiskKind) -> Self {
        self.kind = kind;
        self
    }

    /// Bytes per block: a power of two from 1 MiB to 256 MiB. The default is 32 MiB, in a differencing disk 2 MiB.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// 512 (the default) or 4096 bytes. A child's must equal its parent's.
    #[must_use]
    pub fn logical_sector_size(mut self, bytes: u32) -> Self {
        self.logical_sector_size = bytes;
        self
    }

    /// 512 or 4096 (the default) bytes, at least the logical sector.
    #[must_use]
    pub fn physical_sector_size(mut self, bytes: u32) -> Self {
        self.physical_sector_size = bytes;
        self
    }

    /// The parent of a differencing disk.
    #[must_use]
    pub fn parent(mut self, parent: NewParent) -> Self {
        self.parent = Some(parent);
        self
    }

    /// The virtual disk's id; fresh by default. A child has its parent's.
    #[must_use]
    pub fn disk_id(mut self, id: Guid) -> Self {
        self.disk_id = Some(id);
        self
    }

    /// What the file names as its creator: up to 256 UTF-16 units. `vhdkit` and its version by default.
    #[must_use]
    pub fn creator(mut self, creator: impl Into<String>) -> Self {
        self.creator = creator.into();
        self
    }

    fn disk(&self) -> Result<DiskMetadata> {
        let differencing = self.kind == DiskKind::Differencing;
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidInput, message));
        match (differencing, &self.parent) {
            (true, None) => return invalid("a differencing disk needs a parent"),
            (false, Some(_)) => return invalid("only a differencing disk has a parent"),
            _ => {}
        }
        if self.logical_sector_size > self.physical_sector_size {
            return invalid("the logical sector size is larger than the physical one");
        }
        let default = if differencing { DEFAULT_CHILD_BLOCK_SIZE } else { DEFAULT_BLOCK_SIZE };
        let disk = DiskMetadata {
            block_size: self.block_size.unwrap_or(default),
            leave_blocks: self.kind == DiskKind::Fixed,
            has_parent: differencing,
            virtual_size: self.virtual_size,
            disk_id: self.disk_id.unwrap_or_else(guid::fresh),
            logical_sector: self.logical_sector_size,
            physical_sector: self.physical_sector_size,
        };
        match disk.broken_rule() {
            Some((_, problem)) => {
                let message = format!("{}; allowed is {}", problem.found, problem.allowed);
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
            None => Ok(disk),
        }
    }

    fn identifier(&self) -> Result<RawIdentifier> {
        let mut raw = RawIdentifier { signature: IDENTIFIER_SIGNATURE, creator: [0; 512] };
        let units: Vec<u16> = self.creator.encode_utf16().collect();
        if units.len() > 256 {
            return Err(Error::new(ErrorKind::InvalidInput, "the creator is longer than 256 UTF-16 units"));
        }
        for (slot, unit) in raw.creator.as_chunks_mut::<2>().0.iter_mut().zip(units) {
            *slot = unit.to_le_bytes();
        }
        Ok(raw)
    }
}

/// Where everything of a new file goes: log, metadata, BAT, blocks, as Windows lays them out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    log: Range<u64>,
    metadata: Range<u64>,
    bat: Range<u64>,
    file_len: u64,
}

impl Layout {
    fn new(geometry: &Geometry, fixed: bool) -> Self {
        let behind = |start: u64, len: u64| start..start.saturating_add(len);
        let log = behind(HEADER_AREA_LEN, LOG_LEN);
        let metadata = behind(log.end, METADATA_LEN);
        let bat = behind(metadata.end, geometry.region_len());
        let blocks = if fixed { geometry.blocks().saturating_mul(geometry.block_size) } else { 0 };
        Self { file_len: bat.end.saturating_add(blocks), log, metadata, bat }
    }
}

impl Vhdx {
    /// Makes a new image in `storage`, which must be empty, and opens it for writing. Durable on return.
    ///
    /// The identifier is written last, after everything else is durable: until then the file is no VHDX. A fixed disk's
    /// blocks take their place in the file, but not on a file system that can leave holes.
    ///
    /// # Errors
    /// `InvalidInput` for options the format does not allow; `Refused` when `storage` is not empty; `NoSpace`; what the
    /// storage answers.
    pub fn create(storage: Arc<dyn Storage>, options: &VhdxCreate) -> Result<Self> {
        let disk = options.disk()?;
        let identifier = options.identifier()?;
        let locator = match &options.parent {
            Some(parent) => Some(Locator::for_parent(parent)?.build()?),
            None => None,
        };
        if !storage.is_empty().map_err(|error| Error::io("read the file length", error))? {
            return Err(Error::new(ErrorKind::Refused, "a new image needs an empty file, and this one is not"));
        }
        let geometry = Geometry::new(&disk);
        let layout = Layout::new(&geometry, disk.leave_blocks && !disk.has_parent);
        let new = NewFile { storage: &*storage, layout: &layout };
        storage.set_len(layout.file_len).map_err(|error| Error::io("reserve the file's length", error))?;
        new.write_metadata(&disk, locator.as_deref())?;
        if disk.kind() == DiskKind::Fixed {
            new.write_fixed_bat(&geometry)?;
        }
        let regions = RegionTable::new(layout.bat.clone(), layout.metadata.clone()).encode();
        for at in REGION_TABLE_AT {
            new.write("region table", &regions, at)?;
        }
        new.write_headers()?;
        new.sync()?;
        new.write("file identifier", identifier.as_bytes(), 0)?;
        new.sync()?;
        Self::open(storage, Access::Write, &mut Findings::new())
    }
}

struct NewFile<'a> {
    storage: &'a dyn Storage,
    layout: &'a Layout,
}

impl NewFile<'_> {
    fn write(&self, what: &str, bytes: &[u8], at: u64) -> Result<()> {
        self.storage
            .write_all_at(bytes, at)
            .map_err(|error| Error::io(format_args!("write the VHDX {what}"), error).with_offset(FileOffset(at)))
    }

    fn sync(&self) -> Result<()> {
        self.storage.sync().map_err(|error| Error::io("sync the new VHDX", error))
    }

    fn write_metadata(&self, disk: &DiskMetadata, locator: Option<&[u8]>) -> Result<()> {
        let mut items = Vec::new();
        let mut place = |(id, flags, bytes): (Guid, u32, &[u8]), offset: u32| -> Result<u32> {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            items.push(MetadataItem { id, flags, offset, length });
            self.write("metadata item", bytes, self.layout.metadata.start.saturating_add(u64::from(offset)))?;
            Ok(offset.saturating_add(length))
        };
        let mut next = ITEMS_AT;
        for (id, flags, bytes) in &disk.items() {
            next = place((*id, *flags, bytes), next)?;
        }
        if let Some(bytes) = locator {
            place((ITEM_PARENT_LOCATOR, ITEM_IS_REQUIRED, bytes), LOCATOR_AT)?;
        }
        self.write("metadata table", &encode_table(&items), self.layout.metadata.start)
    }

    /// Every block present, one behind the other. Sector bitmap entries stay zero.
    fn write_fixed_bat(&self, geometry: &Geometry) -> Result<()> {
        let entries = geometry.entries();
        let mut chunk = Vec::new();
        let mut start = 0;
        while start < entries {
            let end = entries.min(start.saturating_add(BAT_CHUNK_ENTRIES));
            chunk.clear();
            for index in start..end {
                let raw = if geometry.is_bitmap(index) {
                    0
                } else {
                    let offset = FileOffset(self.layout.bat.end.saturating_add(geometry.offset_of(index)));
                    PayloadEntry { state: PayloadState::FullyPresent, offset }.encode()
                };
                chunk.extend_from_slice(&raw.to_le_bytes());
            }
            let at = self.layout.bat.start.saturating_add(start.saturating_mul(BAT_ENTRY_LEN));
            self.write("block allocation table", &chunk, at)?;
            start = end;
        }
        Ok(())
    }

    fn write_headers(&self) -> Result<()> {
        debug_assert!(self.layout.log.start.is_multiple_of(ALIGNMENT));
        let length = self.layout.log.end.saturating_sub(self.layout.log.start);
        let mut header = Header {
            sequence: 1,
            file_write_guid: guid::fresh(),
            data_write_guid: guid::fresh(),
            log_guid: Guid::nil(),
            log_version: LOG_VERSION,
            version: VERSION,
            log_length: u32::try_from(length).unwrap_or_default(),
            log_offset: self.layout.log.start,
        };
        for at in HEADER_AT {
            self.write("header", &header.encode(), at)?;
            header.sequence = header.sequence.saturating_add(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
