//! Where the regions of a damaged file lie, and what its metadata says.
//!
//! Owns: finding the BAT and the metadata without a region table, and a metadata table without its head. Must not know:
//! headers, the log, what the entries lead to.
//!
//! The metadata region says what it is by its signature. The BAT says nothing; it is where a damaged region table says, by
//! an id of 128 bits, or else the only place whose every entry is one and leads into the file.

use super::super::bat::{Geometry, PayloadEntry, Slot, decode_bitmap};
use super::super::header::Header;
use super::super::metadata::{Metadata, MetadataItem, is_known};
use super::super::raw::{
    ALIGNMENT, BAT_ENTRY_LEN, HEADER_AREA_LEN, METADATA_SIGNATURE, METADATA_TABLE_LEN, REGION_BAT, REGION_METADATA,
    REGION_TABLE_AT, REGION_TABLE_LEN, RawMetadataEntry, RawMetadataHeader, RawRegionEntry,
};
use super::super::region::RegionTable;
use super::{Mending, PIECE};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::guid::Guid;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::salvage::try_read;
use crate::units::{FileOffset, MIB};
use std::collections::BTreeSet;
use std::ops::Range;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// How many MiB of a file are looked at for regions: the first TiB.
const MAX_PLACES: u64 = 1 << 20;

impl Mending {
    /// The regions and the metadata, mended where needed.
    pub(super) fn layout(&mut self, header: &Header) -> Result<(RegionTable, Metadata)> {
        let lost = match RegionTable::read(&*self.view, header, &mut Findings::new()) {
            Ok(regions) => {
                let metadata = self.metadata(&regions)?;
                return Ok((regions, metadata));
            }
            // What an unknown region is required for nobody here can say.
            Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
            Err(error) => error,
        };
        let hints = self.hints();
        let metadata = self.find_metadata(&hints).ok_or(lost)?;
        // The BAT's place does not matter to reading the metadata.
        let half = RegionTable::new(HEADER_AREA_LEN..HEADER_AREA_LEN, metadata.clone());
        let geometry = Geometry::new(&self.metadata(&half)?.disk);
        let bat = self.find_bat(&hints, (&geometry, &metadata), header)?;
        let regions = RegionTable::new(bat, metadata);
        for at in REGION_TABLE_AT {
            self.put(&regions.encode(), at)?;
        }
        let read = Metadata::read(&*self.view, regions.metadata(), &mut Findings::new())?;
        Ok((regions, read))
    }

    /// Regions that either copy of the table names, whatever its checksum.
    fn hints(&self) -> Vec<(Guid, Range<u64>)> {
        let mut hints = Vec::new();
        let mut bytes = vec![0; REGION_TABLE_LEN];
        for at in REGION_TABLE_AT {
            if !try_read(&*self.view, &mut bytes, at) {
                continue;
            }
            let entries = bytes.get(16..).unwrap_or_default().chunks_exact(size_of::<RawRegionEntry>());
            for raw in entries.filter_map(|entry| RawRegionEntry::read_from_bytes(entry).ok()) {
                let (start, len) = (raw.offset.get(), u64::from(raw.length.get()));
                let aligned = start.is_multiple_of(ALIGNMENT) && len.is_multiple_of(ALIGNMENT);
                if [REGION_BAT, REGION_METADATA].contains(&raw.id.get())
                    && aligned
                    && len > 0
                    && (HEADER_AREA_LEN..self.len).contains(&start)
                {
                    hints.push((raw.id.get(), start..start.saturating_add(len)));
                }
            }
        }
        hints
    }

    fn is_metadata(&self, at: u64) -> bool {
        let mut start = [0; METADATA_SIGNATURE.len()];
        try_read(&*self.view, &mut start, at) && start == METADATA_SIGNATURE
    }

    fn find_metadata(&mut self, hints: &[(Guid, Range<u64>)]) -> Option<Range<u64>> {
        let hint = hints.iter().find(|(id, _)| *id == REGION_METADATA).map(|(_, range)| range.clone());
        let found = hint.or_else(|| {
            let at = self.places().find(|at| self.is_metadata(*at))?;
            Some(at..at.saturating_add(MIB))
        })?;
        let (start, end) = (found.start, found.end);
        let why = "both copies of the region table are damaged; its id or its signature says so";
        self.assume(Structure::VhdxRegionTable, format!("the metadata at {start:#x} to {end:#x}"), why);
        Some(found)
    }

    fn places(&self) -> impl Iterator<Item = u64> + use<> {
        (1..self.len.div_ceil(MIB).min(MAX_PLACES)).map(|place| place.saturating_mul(MIB))
    }

    fn find_bat(
        &mut self,
        hints: &[(Guid, Range<u64>)],
        (geometry, metadata): (&Geometry, &Range<u64>),
        header: &Header,
    ) -> Result<Range<u64>> {
        let taken = [metadata.clone(), header.log_range()];
        let len = geometry.region_len();
        let ranges = |at: u64| at..at.saturating_add(len);
        let free = |at: u64| !taken.iter().any(|taken| taken.start < ranges(at).end && at < taken.end);
        let hinted = hints.iter().find(|(id, range)| {
            let entries = geometry.entries().saturating_mul(BAT_ENTRY_LEN);
            *id == REGION_BAT && range.end.saturating_sub(range.start) >= entries
        });
        if let Some((_, range)) = hinted {
            let why = "both copies of the region table are damaged; its id says so";
            self.assume(Structure::VhdxRegionTable, format!("the BAT at {:#x}", range.start), why);
            return Ok(range.clone());
        }
        let mut fitting = self.places().filter(|at| free(*at) && self.is_table(*at, geometry));
        match (fitting.next(), fitting.next()) {
            (Some(at), None) => {
                drop(fitting);
                let why = "no region table is left; it is the only place whose every entry leads into the file";
                self.assume(Structure::VhdxRegionTable, format!("the BAT at {at:#x}"), why);
                Ok(ranges(at))
            }
            (first, _) => {
                let found =
                    if first.is_some() { "several places that could be it" } else { "no place that could be it" };
                let problem = Problem::new(Structure::VhdxBat, Fault::Missing, found, "exactly one");
                let at = FileOffset(REGION_TABLE_AT[0]);
                Err(Error::corrupt(problem.at(at)).with_hint("without the table nobody can say where which block lies"))
            }
        }
    }

    /// Whether the table of `geometry` could begin at `at`: at least one block, and nothing that is not an entry.
    fn is_table(&self, at: u64, geometry: &Geometry) -> bool {
        let end = at.saturating_add(geometry.entries().saturating_mul(BAT_ENTRY_LEN));
        let mut places = BTreeSet::new();
        let mut piece = vec![0; PIECE];
        let mut start = at;
        while start < end {
            let len = usize::try_from(end.saturating_sub(start)).unwrap_or(PIECE).min(PIECE);
            let Some(bytes) = piece.get_mut(..len) else { return false };
            if !try_read(&*self.view, bytes, start) {
                return false;
            }
            let first = start.saturating_sub(at) >> 3;
            for (index, word) in (first..).zip(bytes.as_chunks::<8>().0) {
                let raw = u64::from_le_bytes(*word);
                if raw == 0 {
                    continue;
                }
                let place = match geometry.slot(index) {
                    Slot::Payload(_) => PayloadEntry::decode(raw, geometry.differencing)
                        .map(|entry| entry.is_present().then_some(entry.offset)),
                    Slot::Bitmap(_) => decode_bitmap(raw, geometry.differencing),
                };
                match place {
                    Ok(None) => {}
                    Ok(Some(place)) if place.get() < self.len && places.insert(place) => {}
                    _ => return false,
                }
            }
            start = start.saturating_add(len as u64);
        }
        !places.is_empty() && places.range(FileOffset(at)..FileOffset(end)).next().is_none()
    }

    /// The metadata; a table that has lost its head is given one from the items in it.
    fn metadata(&mut self, regions: &RegionTable) -> Result<Metadata> {
        let region = regions.metadata();
        super::blank(&self.view, region.offset..region.offset.saturating_add(METADATA_TABLE_LEN as u64))?;
        let error = match Metadata::read(&*self.view, region, &mut Findings::new()) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        let mut table = vec![0; METADATA_TABLE_LEN];
        if !try_read(&*self.view, &mut table, region.offset) {
            return Err(only_copy(error, region.offset));
        }
        let head = size_of::<RawMetadataHeader>();
        let mut items: Vec<RawMetadataEntry> = Vec::new();
        for entry in table.get(head..).unwrap_or_default().chunks_exact(size_of::<RawMetadataEntry>()) {
            let Ok(raw) = RawMetadataEntry::read_from_bytes(entry) else { continue };
            let item = MetadataItem {
                id: raw.id.get(),
                flags: raw.flags.get(),
                offset: raw.offset.get(),
                length: raw.length.get(),
            };
            if is_known(&item) && !items.iter().any(|other| other.id == raw.id) {
                items.push(raw);
            }
        }
        let mut header = RawMetadataHeader::new_zeroed();
        header.signature = METADATA_SIGNATURE;
        header.entry_count = U16::new(u16::try_from(items.len()).unwrap_or_default());
        let mut made = header.as_bytes().to_vec();
        items.iter().for_each(|item| made.extend_from_slice(item.as_bytes()));
        self.put(&made, region.offset)?;
        let metadata =
            Metadata::read(&*self.view, region, &mut Findings::new()).map_err(|_| only_copy(error, region.offset))?;
        let why = "the head of the table is damaged; the items every disk has are where their ids are";
        self.assume(Structure::VhdxMetadata, format!("a table of {} items", items.len()), why);
        Ok(metadata)
    }
}

/// What cannot be read of the metadata is nowhere else: that is damage, not a medium to try again.
fn only_copy(error: Error, at: u64) -> Error {
    if error.problem().is_some() {
        return error;
    }
    let found = format!("metadata that cannot be read ({error})");
    let allowed = "the items every disk has, of which there is one copy";
    Error::corrupt(Problem::new(Structure::VhdxMetadata, Fault::Missing, found, allowed).at(FileOffset(at)))
        .with_hint("without them nobody can say how large the disk and its blocks are")
}
