//! Reading a metadata region.
//!
//! Owns: the rules of the metadata table and of its items ([MS-VHDX] 2.6.1). Must not know: how anything is written.

use super::super::locator::Locator;
use super::super::raw::{
    ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_GEOMETRY, ITEM_INCOMPLETE, ITEM_IS_REQUIRED, ITEM_IS_USER,
    ITEM_IS_VIRTUAL_DISK, ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR, ITEM_PMEM_LABEL,
    ITEM_VIRTUAL_SIZE, MAX_METADATA_ENTRIES, METADATA_SIGNATURE, PARAMETER_HAS_PARENT, PARAMETER_LEAVE_BLOCKS,
    RawFileParameters, RawMetadataEntry, RawMetadataHeader,
};
use super::super::read_structure;
use super::super::region::Region;
use super::{DiskMetadata, ENTRY_LEN, HEADER_LEN, MetadataItem, find};
use crate::error::Result;
use crate::finding::{Findings, Severity};
use crate::guid::{Guid, RawGuid};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::units::FileOffset;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

/// All flags an item may have.
const ITEM_FLAGS: u32 = ITEM_IS_USER | ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED;
/// System items a reader need not know to read the disk's bytes.
const OTHER_KNOWN_ITEMS: [Guid; 2] = [ITEM_GEOMETRY, ITEM_PMEM_LABEL];

/// One read of a metadata region.
pub(super) struct Reader<'a> {
    pub(super) storage: &'a dyn Storage,
    pub(super) region: &'a Region,
    pub(super) findings: &'a mut Findings,
}

impl Reader<'_> {
    fn problem(&self, fault: Fault, found: impl Into<String>, allowed: &str) -> Problem {
        Problem::new(Structure::VhdxMetadata, fault, found.into(), allowed).at(FileOffset(self.region.offset))
    }

    fn read(&mut self, bytes: &mut [u8], offset: u64) -> Result<()> {
        let at = FileOffset(self.region.offset.saturating_add(offset));
        read_structure(self.storage, bytes, (Structure::VhdxMetadata, at), self.findings)
    }

    /// The table's entries; what lies past the entry count means nothing, and real files have stale entries there.
    pub(super) fn table(&mut self) -> Result<Vec<MetadataItem>> {
        let mut start = [0; HEADER_LEN];
        self.read(&mut start, 0)?;
        let header: RawMetadataHeader = zerocopy::transmute!(start);
        if header.signature != METADATA_SIGNATURE {
            let found = format!("signature {:02x?}", header.signature);
            let problem = self.problem(Fault::Signature, found, "\"metadata\"");
            return Err(self.findings.fatal(problem));
        }
        let count = header.entry_count.get();
        if count > MAX_METADATA_ENTRIES {
            let problem = self.problem(Fault::Value, format!("{count} entries"), "up to 2047 entries");
            return Err(self.findings.fatal(problem));
        }
        let mut bytes = vec![0; usize::from(count).saturating_mul(ENTRY_LEN)];
        self.read(&mut bytes, HEADER_LEN as u64)?;
        let mut items: Vec<MetadataItem> = Vec::new();
        for raw in bytes.chunks_exact(ENTRY_LEN).filter_map(|entry| RawMetadataEntry::read_from_bytes(entry).ok()) {
            items.push(MetadataItem {
                id: raw.id.get(),
                flags: raw.flags.get(),
                offset: raw.offset.get(),
                length: raw.length.get(),
            });
        }
        Ok(items)
    }

    /// The rules every item keeps, known or not.
    pub(super) fn check_items(&mut self, items: &[MetadataItem]) -> Result<()> {
        for item in items {
            self.check_item(item)?;
        }
        let mut sorted: Vec<&MetadataItem> = items.iter().collect();
        sorted.sort_by_key(|item| (item.id, item.is_user()));
        for (one, two) in sorted.iter().zip(sorted.iter().skip(1)) {
            if (one.id, one.is_user()) == (two.id, two.is_user()) {
                let problem = self.problem(Fault::Duplicate, format!("item {} twice", one.id), "each item once");
                self.findings.note(Severity::Error, problem);
            }
        }
        sorted.retain(|item| item.length > 0);
        sorted.sort_by_key(|item| item.offset);
        let mut end = 0;
        for item in sorted {
            if item.range().start < end {
                let found = format!("item {} at {:#x} inside another", item.id, item.offset);
                let problem = self.problem(Fault::Overlap, found, "items that share no bytes");
                self.findings.note(Severity::Error, problem);
            }
            end = end.max(item.range().end);
        }
        Ok(())
    }

    fn check_item(&mut self, item: &MetadataItem) -> Result<()> {
        let required = item.flags & ITEM_IS_REQUIRED != 0;
        if item.id == ITEM_INCOMPLETE && !item.is_user() {
            let found = "the mark of a file whose creation did not finish";
            let problem = self.problem(Fault::Dirty, found, "a finished file");
            return Err(self.findings.fatal(problem));
        }
        if required && !is_known(item) {
            let found = format!("unknown required item {}", item.id);
            let problem = self.problem(Fault::Unsupported, found, "items of VHDX version 1");
            return Err(self.findings.fatal(problem));
        }
        if !item.is_placed(self.region.length) {
            let found = format!("item {} at {:#x}, length {:#x}", item.id, item.offset, item.length);
            let allowed = format!("64 KiB to {:#x}, up to 1 MiB long", self.region.length);
            let problem = self.problem(Fault::Range, found, &allowed);
            if is_known(item) {
                return Err(self.findings.fatal(problem));
            }
            self.findings.note(Severity::Error, problem);
        }
        if item.flags & !ITEM_FLAGS != 0 {
            let found = format!("item {} flags {:#x}", item.id, item.flags);
            let problem = self.problem(Fault::Reserved, found, "bits 0 to 2");
            self.findings.note(Severity::Warning, problem);
        }
        Ok(())
    }

    pub(super) fn disk(&mut self, items: &[MetadataItem]) -> Result<DiskMetadata> {
        let parameters: RawFileParameters = zerocopy::transmute!(self.value::<8>(items, ITEM_FILE_PARAMETERS)?);
        let flags = parameters.flags.get();
        let disk = DiskMetadata {
            block_size: parameters.block_size.get(),
            leave_blocks: flags & PARAMETER_LEAVE_BLOCKS != 0,
            has_parent: flags & PARAMETER_HAS_PARENT != 0,
            virtual_size: U64::from_bytes(self.value(items, ITEM_VIRTUAL_SIZE)?).get(),
            disk_id: RawGuid(self.value(items, ITEM_DISK_ID)?).get(),
            logical_sector: U32::from_bytes(self.value(items, ITEM_LOGICAL_SECTOR)?).get(),
            physical_sector: U32::from_bytes(self.value(items, ITEM_PHYSICAL_SECTOR)?).get(),
        };
        if let Some((id, problem)) = disk.broken_rule() {
            let at = find(items, id, false).map_or(0, |item| u64::from(item.offset));
            return Err(self.findings.fatal(problem.at(FileOffset(self.region.offset.saturating_add(at)))));
        }
        if flags & !(PARAMETER_LEAVE_BLOCKS | PARAMETER_HAS_PARENT) != 0 {
            let problem = self.problem(Fault::Reserved, format!("file parameters {flags:#x}"), "bits 0 and 1");
            self.findings.note(Severity::Warning, problem);
        }
        if disk.logical_sector > disk.physical_sector {
            let found =
                format!("logical sectors of {} on physical ones of {}", disk.logical_sector, disk.physical_sector);
            let problem = self.problem(Fault::Value, found, "a physical sector at least as long as a logical one");
            self.findings.note(Severity::Warning, problem);
        }
        Ok(disk)
    }

    /// The first `N` bytes of a required item.
    fn value<const N: usize>(&mut self, items: &[MetadataItem], id: Guid) -> Result<[u8; N]> {
        let Some(item) = find(items, id, false) else {
            let problem = self.problem(Fault::Missing, format!("no item {id}"), "every required item");
            return Err(self.findings.fatal(problem));
        };
        let length = u64::from(item.length);
        if length < N as u64 {
            let found = format!("item {id} of {length} bytes");
            let problem = self.problem(Fault::Truncated, found, &format!("{N} bytes"));
            return Err(self.findings.fatal(problem));
        }
        if length > N as u64 {
            let problem = self.problem(Fault::Value, format!("item {id} of {length} bytes"), &format!("{N} bytes"));
            self.findings.note(Severity::Warning, problem);
        }
        let mut bytes = [0; N];
        self.read(&mut bytes, u64::from(item.offset))?;
        Ok(bytes)
    }

    pub(super) fn locator(&mut self, items: &[MetadataItem], has_parent: bool) -> Result<Option<Locator>> {
        match (find(items, ITEM_PARENT_LOCATOR, false), has_parent) {
            (Some(item), true) => {
                let bytes = self.bytes_of(item)?;
                let at = FileOffset(self.region.offset.saturating_add(u64::from(item.offset)));
                Locator::parse(&bytes, at, self.findings).map(Some)
            }
            (None, true) => {
                let found = "a disk with a parent but no parent locator";
                let problem = self.problem(Fault::Missing, found, "a parent locator item");
                Err(self.findings.fatal(problem))
            }
            (Some(_), false) => {
                let found = "a parent locator in a disk without a parent";
                let problem = self.problem(Fault::Mismatch, found, "no parent locator");
                self.findings.note(Severity::Error, problem);
                Ok(None)
            }
            (None, false) => Ok(None),
        }
    }

    pub(super) fn bytes_of(&mut self, item: &MetadataItem) -> Result<Vec<u8>> {
        if !item.is_placed(self.region.length) {
            let found = format!("item {} at {:#x}, length {:#x}", item.id, item.offset, item.length);
            let problem = self.problem(Fault::Range, found, "an item inside the metadata region");
            return Err(self.findings.fatal(problem));
        }
        // At most MAX_METADATA_ITEM_LEN.
        let mut bytes = vec![0; usize::try_from(item.length).unwrap_or_default()];
        self.read(&mut bytes, u64::from(item.offset))?;
        Ok(bytes)
    }
}

/// Whether the format, or other software's use of it, says what the item is. A user's items are their own business.
pub(in crate::vhdx) fn is_known(item: &MetadataItem) -> bool {
    let required = [
        ITEM_FILE_PARAMETERS,
        ITEM_VIRTUAL_SIZE,
        ITEM_DISK_ID,
        ITEM_LOGICAL_SECTOR,
        ITEM_PHYSICAL_SECTOR,
        ITEM_PARENT_LOCATOR,
    ];
    !item.is_user() && (required.contains(&item.id) || OTHER_KNOWN_ITEMS.contains(&item.id))
}
