//! The region table: where the BAT, the metadata and whatever else a producer added lie ([MS-VHDX] 2.2.3).
//!
//! Owns: reading either copy, the rules for regions, building the table's bytes.
//! Must not know: what a region holds; when a changed table may be written.

use super::header::Header;
use super::raw::{
    ALIGNMENT, HEADER_AREA_LEN, MAX_FILE_OFFSET, MAX_REGIONS, REGION_BAT, REGION_METADATA, REGION_REQUIRED,
    REGION_SIGNATURE, REGION_TABLE_AT, REGION_TABLE_LEN, RawRegionEntry, RawRegionHeader, checksum,
};
use crate::error::{Error, Result};
use crate::finding::{Findings, Severity};
use crate::guid::Guid;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::units::FileOffset;
use std::io;
use std::ops::Range;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

const ENTRIES_AT: usize = size_of::<RawRegionHeader>();

/// One region of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// What it holds.
    pub(crate) id: Guid,
    /// Bytes from the start of the file.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u32,
    /// As the file has them; bit 0 is Required.
    pub(crate) flags: u32,
}

impl Region {
    /// The bytes of the file it occupies.
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(u64::from(self.length))
    }

    /// What must hold before a byte of the region may be used at all.
    fn is_usable(&self) -> bool {
        self.length > 0 && self.offset >= HEADER_AREA_LEN && self.offset < MAX_FILE_OFFSET
    }

    fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(ALIGNMENT) && u64::from(self.length).is_multiple_of(ALIGNMENT)
    }
}

/// The regions of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RegionTable {
    all: Vec<Region>,
    bat: Region,
    metadata: Region,
}

impl RegionTable {
    /// A table of the two regions every file has, for a new file.
    pub(crate) fn new(bat: Range<u64>, metadata: Range<u64>) -> Self {
        let region = |id, range: Range<u64>| Region {
            id,
            offset: range.start,
            length: u32::try_from(range.end.saturating_sub(range.start)).unwrap_or(u32::MAX),
            flags: REGION_REQUIRED,
        };
        let (bat, metadata) = (region(REGION_BAT, bat), region(REGION_METADATA, metadata));
        Self { all: vec![bat, metadata], bat, metadata }
    }

    /// Reads the table: copy 1, or copy 2 when copy 1 is damaged. `header` says where the log is.
    ///
    /// # Errors
    /// `Corrupt` when both copies are damaged, the BAT or metadata region is missing or at an impossible place;
    /// `Unsupported` for an unknown required region; what the storage answers.
    pub(crate) fn read(storage: &dyn Storage, header: &Header, findings: &mut Findings) -> Result<Self> {
        let (at, bytes) = choose_copy(storage, findings)?;
        let all = parse(&bytes, at, findings)?;
        let find = |id: Guid| all.iter().copied().find(|region| region.id == id);
        let missing = |name| {
            let allowed = format!("one {name} region");
            Problem::new(Structure::VhdxRegionTable, Fault::Missing, format!("no {name} region"), allowed).at(at)
        };
        let bat = find(REGION_BAT).ok_or_else(|| findings.fatal(missing("BAT")))?;
        let metadata = find(REGION_METADATA).ok_or_else(|| findings.fatal(missing("metadata")))?;
        let table = Self { all, bat, metadata };
        table.check_places(storage, at, findings)?;
        table.check_overlaps(header, at, findings);
        Ok(table)
    }

    /// The block allocation table's region.
    pub(crate) fn bat(&self) -> &Region {
        &self.bat
    }

    /// The metadata region.
    pub(crate) fn metadata(&self) -> &Region {
        &self.metadata
    }

    /// Every region, unknown ones too: their space belongs to somebody.
    pub(crate) fn all(&self) -> &[Region] {
        &self.all
    }

    /// The same table with the BAT at another place. `range` is aligned and shorter than 4 GiB.
    pub(crate) fn with_bat(&self, range: &Range<u64>) -> Self {
        let mut table = self.clone();
        table.bat = table.moved(REGION_BAT, range).unwrap_or(table.bat);
        table
    }

    /// The same table with the metadata at another place. `range` is aligned and shorter than 4 GiB.
    pub(crate) fn with_metadata(&self, range: &Range<u64>) -> Self {
        let mut table = self.clone();
        table.metadata = table.moved(REGION_METADATA, range).unwrap_or(table.metadata);
        table
    }

    fn moved(&mut self, id: Guid, range: &Range<u64>) -> Option<Region> {
        let region = self.all.iter_mut().find(|region| region.id == id)?;
        region.offset = range.start;
        region.length = u32::try_from(range.end.saturating_sub(range.start)).unwrap_or(u32::MAX);
        Some(*region)
    }

    /// The 64 KiB of one copy, checksum included.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; REGION_TABLE_LEN];
        let mut header = RawRegionHeader {
            signature: REGION_SIGNATURE,
            checksum: U32::ZERO,
            entry_count: U32::new(u32::try_from(self.all.len()).unwrap_or(MAX_REGIONS)),
            reserved: U32::ZERO,
        };
        let entries = bytes.get_mut(ENTRIES_AT..).unwrap_or_default();
        for (slot, region) in entries.chunks_exact_mut(size_of::<RawRegionEntry>()).zip(&self.all) {
            let entry = RawRegionEntry {
                id: region.id.into(),
                offset: U64::new(region.offset),
                length: U32::new(region.length),
                flags: U32::new(region.flags),
            };
            slot.copy_from_slice(entry.as_bytes());
        }
        for _ in 0..2 {
            // The second round stores the checksum of the first.
            if let Some(start) = bytes.first_chunk_mut::<ENTRIES_AT>() {
                start.copy_from_slice(header.as_bytes());
            }
            header.checksum = U32::new(checksum(&bytes));
        }
        bytes
    }

    fn check_places(&self, storage: &dyn Storage, at: FileOffset, findings: &mut Findings) -> Result<()> {
        let file_len = storage.len().map_err(|error| Error::io("read the file length", error))?;
        for region in &self.all {
            let known = [REGION_BAT, REGION_METADATA].contains(&region.id);
            let found = format!("region {} at {:#x}, length {:#x}", region.id, region.offset, region.length);
            let problem =
                |fault, allowed: &str| Problem::new(Structure::VhdxRegionTable, fault, &found, allowed).at(at);
            if !region.is_usable() || !region.is_aligned() {
                let fault = if region.is_usable() { Fault::Alignment } else { Fault::Range };
                let placed = problem(fault, "offset and length above 0 in multiples of 1 MiB");
                if known {
                    return Err(findings.fatal(placed));
                }
                findings.note(Severity::Error, placed);
            }
            if region.range().end > file_len {
                findings.note(Severity::Error, problem(Fault::Range, &format!("an end up to {file_len:#x}")));
            }
            if known && region.flags & REGION_REQUIRED == 0 {
                findings.note(Severity::Warning, problem(Fault::Value, "the Required bit set"));
            }
            if region.flags & !REGION_REQUIRED != 0 {
                findings.note(Severity::Warning, problem(Fault::Reserved, "no flag but Required"));
            }
        }
        Ok(())
    }

    fn check_overlaps(&self, header: &Header, at: FileOffset, findings: &mut Findings) {
        let mut ranges: Vec<(Range<u64>, String)> =
            self.all.iter().map(|region| (region.range(), format!("region {}", region.id))).collect();
        ranges.push((header.log_range(), "the log".into()));
        ranges.retain(|(range, _)| !range.is_empty());
        ranges.sort_by_key(|(range, _)| range.start);
        let mut before: Option<&(Range<u64>, String)> = None;
        for next in &ranges {
            if let Some((range, name)) = before
                && next.0.start < range.end
            {
                let found = format!("{} from {:#x} and {name} up to {:#x}", next.1, next.0.start, range.end);
                let problem = Problem::new(Structure::VhdxRegionTable, Fault::Overlap, found, "no shared bytes");
                findings.note(Severity::Error, problem.at(at));
            }
            if before.is_none_or(|(range, _)| next.0.end > range.end) {
                before = Some(next);
            }
        }
    }
}

/// The valid copy to use and where it is; copy 1 wins when both are valid but differ.
///
/// # Errors
/// `Corrupt` when both copies are damaged; what the storage answers.
pub(super) fn choose_copy(storage: &dyn Storage, findings: &mut Findings) -> Result<(FileOffset, Vec<u8>)> {
    let [first_at, second_at] = REGION_TABLE_AT.map(FileOffset);
    let first = read_copy(storage, first_at)?;
    let second = read_copy(storage, second_at)?;
    match (first, second) {
        (Ok(first), Ok(second)) => {
            if first != second {
                let found = "two valid copies that differ";
                let problem = Problem::new(Structure::VhdxRegionTable, Fault::Mismatch, found, "two equal copies");
                findings.note_repairable(Severity::Warning, problem.at(second_at));
            }
            Ok((first_at, first))
        }
        (Ok(bytes), Err(bad)) => {
            findings.note_repairable(Severity::Warning, bad);
            Ok((first_at, bytes))
        }
        (Err(bad), Ok(bytes)) => {
            findings.note_repairable(Severity::Warning, bad);
            Ok((second_at, bytes))
        }
        (Err(first), Err(second)) => {
            findings.note(Severity::Error, second);
            Err(findings.fatal(first))
        }
    }
}

fn read_copy(storage: &dyn Storage, at: FileOffset) -> Result<Result<Vec<u8>, Problem>> {
    let mut bytes = vec![0; REGION_TABLE_LEN];
    let problem = |fault, found: String, allowed: String| {
        Ok(Err(Problem::new(Structure::VhdxRegionTable, fault, found, allowed).at(at)))
    };
    match storage.read_exact_at(&mut bytes, at.get()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return problem(Fault::Truncated, "end of file".into(), "a region table of 64 KiB".into());
        }
        Err(error) => return Err(Error::io("read the VHDX region table", error).with_offset(at)),
    }
    let Ok((header, _)) = RawRegionHeader::read_from_prefix(&bytes) else {
        return problem(Fault::Truncated, "a cut structure".into(), "a region table of 64 KiB".into());
    };
    if header.signature != REGION_SIGNATURE {
        return problem(Fault::Signature, format!("signature {:02x?}", header.signature), "\"regi\"".into());
    }
    let sum = checksum(&bytes);
    if header.checksum.get() != sum {
        return problem(Fault::Checksum, format!("checksum {:#010x}", header.checksum), format!("{sum:#010x}"));
    }
    Ok(Ok(bytes))
}

/// The entries of a table whose checksum is right, each id once.
fn parse(bytes: &[u8], at: FileOffset, findings: &mut Findings) -> Result<Vec<Region>> {
    let problem =
        |fault, found: String, allowed: &str| Problem::new(Structure::VhdxRegionTable, fault, found, allowed).at(at);
    let (header, rest) = RawRegionHeader::read_from_prefix(bytes)
        .map_err(|_| findings.fatal(problem(Fault::Truncated, "a cut structure".into(), "64 KiB")))?;
    let count = header.entry_count.get();
    findings
        .require(count <= MAX_REGIONS, || problem(Fault::Value, format!("{count} entries"), "up to 2047 entries"))?;
    let mut regions: Vec<Region> = Vec::new();
    let entries = rest.chunks_exact(size_of::<RawRegionEntry>()).take(usize::try_from(count).unwrap_or_default());
    for raw in entries.filter_map(|entry| RawRegionEntry::read_from_bytes(entry).ok()) {
        let region =
            Region { id: raw.id.get(), offset: raw.offset.get(), length: raw.length.get(), flags: raw.flags.get() };
        let known = [REGION_BAT, REGION_METADATA].contains(&region.id);
        findings.require(known || region.flags & REGION_REQUIRED == 0, || {
            problem(Fault::Unsupported, format!("unknown required region {}", region.id), "BAT and metadata")
        })?;
        if regions.iter().any(|other| other.id == region.id) {
            let found = format!("region {} twice", region.id);
            findings.note(Severity::Error, problem(Fault::Duplicate, found, "each region once"));
        } else {
            regions.push(region);
        }
    }
    Ok(regions)
}

#[cfg(test)]
mod tests;
