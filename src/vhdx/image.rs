//! An open VHDX file.
//!
//! Owns: the order in which a file is opened (nothing but identifier, headers and log is read before the log is
//! replayed), what an open image knows, and the plain questions about it.
//! Must not know: how a range is looked up (`extents`), how anything is changed (`write` and its neighbours), any path.

use super::bat::Geometry;
use super::header::HeaderPair;
use super::log::LogArea;
use super::log::replay::{self, Replay};
use super::metadata::Metadata;
use super::raw::{BAT_ENTRY_LEN, HEADER_AREA_LEN, IDENTIFIER_SIGNATURE, RawIdentifier};
use super::read_structure;
use super::region::RegionTable;
use super::session::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Findings, Severity};
use crate::guid::{self, Guid};
use crate::link::{DiskKind, ImageId, ParentLink};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::pages::Pages;
use crate::storage::{Access, CheckedStorage, OverlayStorage, Storage};
use crate::units::{FileOffset, MIB};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Pages of BAT and sector bitmaps kept per image: 4 MiB, the map of 16 GiB to 4 TiB of disk.
const CACHED_PAGES: usize = 1024;
/// How much of the BAT one read of a scan takes.
const SCAN_LEN: usize = 64 << 10;

/// An open VHDX image.
///
/// Its map is read as it is asked for: opening costs some kilobytes whatever the size of the disk.
#[derive(Debug)]
pub struct Vhdx {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) access: Access,
    pub(super) headers: HeaderPair,
    pub(super) regions: RegionTable,
    pub(super) metadata: Metadata,
    pub(super) geometry: Geometry,
    /// BAT and sector bitmap pages; whoever writes such a page tells the cache.
    pub(super) pages: Pages,
    /// What no block may lie in: the header area, the log, the regions. Sorted, disjoint.
    pub(super) occupied: Vec<Range<u64>>,
    creator: String,
    log_was_dirty: bool,
    /// What this open has changed so far.
    pub(super) writer: Writer,
}

/// What a file holds, read through `view`, where its log is already applied.
struct Parsed {
    view: Arc<dyn Storage>,
    headers: HeaderPair,
    replay: Option<Replay>,
    regions: RegionTable,
    metadata: Metadata,
    geometry: Geometry,
    creator: String,
}

impl Vhdx {
    /// Whether `storage` starts as a VHDX does.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn probe(storage: &dyn Storage) -> Result<bool> {
        let mut signature = [0; IDENTIFIER_SIGNATURE.len()];
        match storage.read_exact_at(&mut signature, 0) {
            Ok(()) => Ok(signature == IDENTIFIER_SIGNATURE),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(Error::io("read the start of the file", error)),
        }
    }

    /// Opens the image in `storage`; what is odd about it is added to `findings`.
    ///
    /// A log with updates in it is replayed: in memory when opened for reading, and the file stays as it is; in the
    /// file when opened for writing, after everything was found to be in order.
    ///
    /// # Errors
    /// `Corrupt` when a rule is broken that no reader can do without; `Unsupported` for a version, region, metadata item
    /// or parent locator this crate must not guess at; `Refused` when opened for writing and something is damaged that
    /// writing could make worse; what the storage answers.
    pub fn open(storage: Arc<dyn Storage>, access: Access, findings: &mut Findings) -> Result<Self> {
        let mut own = Findings::new();
        let guarded: Arc<dyn Storage> = if access.writes() {
            Arc::new(CheckedStorage::writable(storage))
        } else {
            Arc::new(CheckedStorage::read_only(storage))
        };
        let opened = Parsed::read(Arc::clone(&guarded), &mut own).and_then(|mut parsed| {
            if access.writes() {
                parsed.make_writable(&guarded, &own)?;
            }
            Ok(parsed.into_image(access))
        });
        findings.absorb(own);
        opened
    }

    /// Takes a changed layout as the one in force: after regions or metadata were changed on disk.
    pub(super) fn set_layout(&mut self, regions: RegionTable, metadata: Metadata) {
        self.geometry = Geometry::new(&metadata.disk);
        self.occupied = occupied(&self.headers, &regions);
        self.regions = regions;
        self.metadata = metadata;
    }

    /// Fixed, dynamic or differencing.
    #[must_use]
    pub fn kind(&self) -> DiskKind {
        self.metadata.disk.kind()
    }

    /// Who it is to its children: its DataWriteGuid.
    #[must_use]
    pub fn id(&self) -> ImageId {
        ImageId::Vhdx(self.headers.current().data_write_guid)
    }

    /// Whom it names as its parent, when it is a differencing image.
    #[must_use]
    pub fn parent_link(&self) -> Option<ParentLink> {
        self.metadata.locator.as_ref().map(super::locator::Locator::link)
    }

    /// The virtual disk's id ("page 83 data"), the same in a parent and its children.
    #[must_use]
    pub fn disk_id(&self) -> Guid {
        self.metadata.disk.disk_id
    }

    /// What made the file, as it says itself; empty when it does not say.
    #[must_use]
    pub fn creator(&self) -> &str {
        &self.creator
    }

    /// Bytes per block: a power of two from 1 MiB to 256 MiB.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.metadata.disk.block_size
    }

    /// The logical sector size in bytes: 512 or 4096.
    #[must_use]
    pub fn logical_sector_size(&self) -> u32 {
        self.metadata.disk.logical_sector
    }

    /// The physical sector size in bytes: 512 or 4096.
    #[must_use]
    pub fn physical_sector_size(&self) -> u32 {
        self.metadata.disk.physical_sector
    }

    /// The id that children are bound to; it changes with every session that changes what the disk shows.
    #[must_use]
    pub fn data_write_guid(&self) -> Guid {
        self.headers.current().data_write_guid
    }

    /// The id that changes with every session that writes to the file.
    #[must_use]
    pub fn file_write_guid(&self) -> Guid {
        self.headers.current().file_write_guid
    }

    /// Whether the log held updates to replay when the file was opened.
    #[must_use]
    pub fn log_was_dirty(&self) -> bool {
        self.log_was_dirty
    }

    /// How many blocks have data in this file, in whole or in part. Reads the whole block allocation table, in pieces.
    ///
    /// # Errors
    /// `Corrupt` when the file ends inside the table; what the storage answers.
    pub fn allocated_blocks(&self) -> Result<u64> {
        self.count_allocated()
    }

    /// Shows every entry of the block allocation table that is not zero, with its index, in order. Holes of the file are
    /// jumped over.
    ///
    /// # Errors
    /// What `visit` answers; `Corrupt` when the file ends inside the table; what the storage answers.
    pub(super) fn scan_bat(&self, visit: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        self.scan_entries(self.geometry.entries(), visit)
    }

    /// As [`scan_bat`](Self::scan_bat), but of the first `count` entries of the region.
    ///
    /// # Errors
    /// As [`scan_bat`](Self::scan_bat).
    pub(super) fn scan_entries(&self, count: u64, visit: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let start = self.regions.bat().offset;
        let end = start.saturating_add(count.saturating_mul(BAT_ENTRY_LEN));
        let mut buffer = vec![0; SCAN_LEN];
        let mut at = start;
        while at < end {
            let data = self.storage.next_data(at).map_err(|error| Error::io("look for data in the BAT", error))?;
            let file_len = self.storage.len().map_err(|error| Error::io("read the file length", error))?;
            // Entries are jumped over whole; a BAT that the file cuts off is read up to the cut, and fails there.
            let next = data.unwrap_or(file_len.max(at)).min(end) & !BAT_ENTRY_LEN.saturating_sub(1);
            at = at.max(next);
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(SCAN_LEN);
            let Some(bytes) = buffer.get_mut(..len).filter(|bytes| !bytes.is_empty()) else { break };
            read_structure(&*self.storage, bytes, (Structure::VhdxBat, FileOffset(at)), &mut Findings::new())?;
            let first = at.saturating_sub(start) >> 3;
            for (index, word) in (first..).zip(bytes.as_chunks::<8>().0) {
                let raw = u64::from_le_bytes(*word);
                if raw != 0 {
                    visit(index, raw)?;
                }
            }
            at = at.saturating_add(len as u64);
        }
        Ok(())
    }
}

impl Parsed {
    /// Reads everything an open image knows, and writes nothing.
    fn read(storage: Arc<dyn Storage>, findings: &mut Findings) -> Result<Self> {
        let creator = read_identifier(&*storage, findings)?;
        let headers = HeaderPair::read(&*storage, findings)?;
        let replay = find_replay(&*storage, &headers, findings)?;
        let view = match &replay {
            Some(replay) => {
                let failed = |error| Error::io("replay the log in memory", error);
                let overlay = OverlayStorage::new(storage).map_err(failed)?;
                replay.apply(&overlay)?;
                Arc::new(overlay)
            }
            None => storage,
        };
        let file_len = view.len().map_err(|error| Error::io("read the file length", error))?;
        if !file_len.is_multiple_of(MIB) {
            let found = format!("a length of {file_len} bytes");
            let problem = Problem::new(Structure::File, Fault::Alignment, found, "a multiple of 1 MiB");
            findings.note_repairable(Severity::Warning, problem);
        }
        let regions = RegionTable::read(&*view, headers.current(), findings)?;
        let metadata = Metadata::read(&*view, regions.metadata(), findings)?;
        let geometry = Geometry::new(&metadata.disk);
        check_bat(&regions, &geometry, findings)?;
        Ok(Self { view, headers, replay, regions, metadata, geometry, creator })
    }

    /// Makes the file itself what `view` shows: an image to write to must have an empty log.
    fn make_writable(&mut self, storage: &Arc<dyn Storage>, findings: &Findings) -> Result<()> {
        if let Some(bad) = findings.list().iter().find(|finding| finding.severity >= Severity::Error) {
            return Err(Error::from_problem(ErrorKind::Refused, bad.problem.clone())
                .with_hint("the image opens for reading; check it, and repair or convert it before writing to it"));
        }
        let Some(replay) = &self.replay else { return Ok(()) };
        self.headers.update_once(&**storage, |header| header.file_write_guid = guid::fresh())?;
        replay.apply(&**storage)?;
        storage.sync().map_err(|error| Error::io("sync the replayed log", error))?;
        self.headers.update(&**storage, |header| header.log_guid = Guid::nil())?;
        self.view = Arc::clone(storage);
        Ok(())
    }

    fn into_image(self, access: Access) -> Vhdx {
        // Replaying a log in the file was this open's first change of it.
        let replayed = self.replay.is_some() && access.writes();
        Vhdx {
            pages: Pages::new(Arc::clone(&self.view), CACHED_PAGES),
            storage: self.view,
            access,
            occupied: occupied(&self.headers, &self.regions),
            headers: self.headers,
            regions: self.regions,
            metadata: self.metadata,
            geometry: self.geometry,
            creator: self.creator,
            log_was_dirty: self.replay.is_some(),
            writer: Writer::new(replayed),
        }
    }
}

/// Reads the identifier and gives the creator it names.
fn read_identifier(storage: &dyn Storage, findings: &mut Findings) -> Result<String> {
    let mut bytes = [0; size_of::<RawIdentifier>()];
    let at = FileOffset(0);
    read_structure(storage, &mut bytes, (Structure::VhdxIdentifier, at), findings)?;
    let raw: RawIdentifier = zerocopy::transmute!(bytes);
    findings.require(raw.signature == IDENTIFIER_SIGNATURE, || {
        let found = format!("signature {:02x?}", raw.signature);
        Problem::new(Structure::VhdxIdentifier, Fault::Signature, found, "\"vhdxfile\"").at(at)
    })?;
    let units = raw.creator.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let text: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
    Ok(String::from_utf16_lossy(&text))
}

/// What the log still has to apply; `None` when the header says it is empty.
fn find_replay(storage: &dyn Storage, headers: &HeaderPair, findings: &mut Findings) -> Result<Option<Replay>> {
    let header = headers.current();
    if header.log_guid.is_nil() {
        return Ok(None);
    }
    let area = LogArea { offset: header.log_offset, length: u64::from(header.log_length), guid: header.log_guid };
    replay::find_active(storage, &area, findings).map(Some)
}

/// The BAT region must have room for every entry the disk needs.
fn check_bat(regions: &RegionTable, geometry: &Geometry, findings: &mut Findings) -> Result<()> {
    let bat = regions.bat();
    let needed = geometry.entries();
    let have = u64::from(bat.length) >> 3;
    findings.require(have >= needed, || {
        let found = format!("a region for {have} entries");
        Problem::new(Structure::VhdxBat, Fault::Range, found, format!("at least {needed} entries"))
            .at(FileOffset(bat.offset))
    })
}

/// The ranges of the file that no block may lie in, sorted and merged.
fn occupied(headers: &HeaderPair, regions: &RegionTable) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = regions.all().iter().map(super::region::Region::range).collect();
    ranges.extend([0..HEADER_AREA_LEN, headers.current().log_range()]);
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
pub(in crate::vhdx) mod tests;
