//! Making a damaged VHDX readable, in memory.
//!
//! Owns: what of the identifier, the headers and the log is believed, and marking entries of the table that are lost.
//! [`layout`] owns finding regions and metadata. Must not know: what is read through the view, or why.

mod layout;

use super::Vhdx;
use super::bat::Geometry;
use super::header::Header;
use super::log::replay::{self, Replay};
use super::log::{LogArea, MAX_FILE_LENGTH};
use super::raw::{
    BAT_ENTRY_LEN, HEADER_AT, HEADER_LEN, HEADER_SIGNATURE, IDENTIFIER_SIGNATURE, LOG_VERSION, REGION_TABLE_AT,
    REGION_TABLE_LEN, RawHeader, VERSION,
};
use super::region::{Region, choose_copy};
use crate::error::{Error, Result};
use crate::finding::Findings;
use crate::guid::{self, Guid};
use crate::mend::{Assumption, Salvaged};
use crate::problem::Structure;
use crate::storage::salvage::{SalvageStorage, try_read};
use crate::storage::{Access, PAGE, Storage};
use crate::units::{FileOffset, MIB, round_down, round_up};
use std::ops::Range;
use std::sync::Arc;
use zerocopy::FromBytes;

/// An entry that is none: state 4 is reserved ([MS-VHDX] 2.5.1.1), so whatever it is of is lost, not absent.
const LOST_ENTRY: [u8; 8] = [4, 0, 0, 0, 0, 0, 0, 0];
/// What a medium loses at least.
const SECTOR_BYTES: usize = 512;
/// Bytes of the table looked at in one go.
const PIECE: usize = 64 << 10;

impl Vhdx {
    /// Whether a header or a region table is left of a VHDX that does not start like one.
    pub(crate) fn leaves_traces(storage: &dyn Storage) -> bool {
        HEADER_AT.into_iter().any(|at| read_header(storage, at).is_ok())
            || choose_copy(storage, &mut Findings::new()).is_ok()
    }

    /// The image in `storage` with what it lacks made up in memory. `storage` is never written.
    ///
    /// # Errors
    /// `Corrupt` when too little is left to say what the disk was; `Unsupported` for another version.
    pub(crate) fn salvage(storage: &Arc<dyn Storage>) -> Result<Salvaged> {
        let mut assumptions = Vec::new();
        let mut header = current_header(&**storage, &mut assumptions);
        let len = storage.len().map_err(|error| Error::io("read the file length", error))?;
        let log = find_log(storage, &header, len, &mut assumptions);
        let shown = log.as_ref().map_or(len, |(_, flushed)| len.max(*flushed));
        let shown = round_up(shown, MIB).unwrap_or(shown);
        let mut mending = Mending::new(storage, (len, shown), assumptions);
        mending.blank_what_cannot_be_read()?;
        if let Some((replay, _)) = log {
            replay.apply(&*mending.view)?;
        }
        let clean = header.log_guid.is_nil();
        header.log_guid = Guid::nil();
        mending.identifier()?;
        if !clean || HEADER_AT.into_iter().all(|at| read_header(&**storage, at).is_err()) {
            mending.put(&header.encode(), HEADER_AT[0])?;
            mending.put(&header.encode(), HEADER_AT[1])?;
        }
        let (regions, metadata) = mending.layout(&header)?;
        mending.mark_lost_entries(regions.bat(), &Geometry::new(&metadata.disk))?;
        let view: Arc<dyn Storage> = mending.view;
        Self::open(Arc::clone(&view), Access::Read, &mut Findings::new())?;
        Ok(Salvaged { view, assumptions: mending.assumptions })
    }
}

/// The header in a slot; otherwise its fields, if at least the signature is there.
fn read_header(storage: &dyn Storage, at: u64) -> Result<Header, Option<Header>> {
    let mut bytes = [0; HEADER_LEN];
    if !try_read(storage, &mut bytes, at) {
        return Err(None);
    }
    Header::decode(&bytes, FileOffset(at)).map_err(|_| {
        let raw = RawHeader::read_from_bytes(&bytes).ok()?;
        let plausible =
            raw.signature == HEADER_SIGNATURE && raw.version.get() == VERSION && raw.log_version.get() == LOG_VERSION;
        plausible.then(|| Header {
            sequence: raw.sequence.get(),
            file_write_guid: raw.file_write_guid.get(),
            data_write_guid: raw.data_write_guid.get(),
            log_guid: raw.log_guid.get(),
            log_version: LOG_VERSION,
            version: VERSION,
            log_length: raw.log_length.get(),
            log_offset: raw.log_offset.get(),
        })
    })
}

/// The current header, or what speaks most for having been it.
fn current_header(storage: &dyn Storage, assumptions: &mut Vec<Assumption>) -> Header {
    let slots = HEADER_AT.map(|at| read_header(storage, at));
    // The first of two with one number, as every reader takes it.
    let best = |headers: &mut dyn Iterator<Item = Header>| {
        headers.reduce(|one, other| if other.sequence > one.sequence { other } else { one })
    };
    if let Some(header) = best(&mut slots.iter().filter_map(|slot| slot.as_ref().ok().copied())) {
        return header;
    }
    let damaged = best(&mut slots.iter().filter_map(|slot| slot.as_ref().err().copied().flatten()));
    let (header, assumed, why) = match damaged {
        Some(header) => (
            header,
            "the fields of a header hold",
            "both headers are damaged; of those with a signature this is the newer one",
        ),
        None => (
            Header {
                sequence: 1,
                file_write_guid: guid::fresh(),
                data_write_guid: guid::fresh(),
                log_guid: Guid::nil(),
                log_version: LOG_VERSION,
                version: VERSION,
                log_length: 0,
                log_offset: 0,
            },
            "the log holds nothing",
            "both headers are lost, and with them where the log is; if it held updates they are lost",
        ),
    };
    let assumption = Assumption::new(Structure::VhdxHeader, assumed, why);
    assumptions.push(if damaged.is_some() { assumption } else { assumption.that_may_lose() });
    header
}

/// What the log has to apply, and how long the file must be for that.
fn find_log(
    storage: &Arc<dyn Storage>,
    header: &Header,
    len: u64,
    assumptions: &mut Vec<Assumption>,
) -> Option<(Replay, u64)> {
    if header.log_guid.is_nil() {
        return None;
    }
    let area = LogArea { offset: header.log_offset, length: u64::from(header.log_length), guid: header.log_guid };
    let find = |shown: u64| -> Result<Replay> {
        let view = SalvageStorage::new(Arc::clone(storage), len, shown);
        if area.is_sound() && area.range().end <= len {
            // A sector of the log that cannot be read ends the sequence, as one that was torn does.
            blank(&view, area.range())?;
        }
        let replay = replay::find_active(&view, &area, &mut Findings::new())?;
        // Once, to see that it can be applied.
        replay.apply(&view).map(|()| replay)
    };
    let mut lost = match find(len) {
        Ok(replay) => return Some((replay, len)),
        Err(error) => error,
    };
    let flushed = replay::flushed_length(&**storage, &area).ok().flatten();
    if let Some(flushed) = flushed.filter(|flushed| (len..=MAX_FILE_LENGTH).contains(flushed)) {
        match find(flushed) {
            Ok(replay) => return Some((replay, flushed)),
            Err(error) => lost = error,
        }
    }
    let why = format_args!("it cannot be applied ({lost}); updates in it are lost, and blocks may show old contents");
    assumptions.push(Assumption::new(Structure::VhdxLog, "the log holds nothing", why.to_string()).that_may_lose());
    None
}

/// Shows zeros for every page of `range` that cannot be read.
fn blank(view: &SalvageStorage, range: Range<u64>) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut at = round_down(range.start, PAGE as u64);
    while at < range.end {
        let end = at.saturating_add(PIECE as u64).min(range.end);
        let whole = usize::try_from(end.saturating_sub(at)).ok().and_then(|len| piece.get_mut(..len));
        if whole.is_some_and(|bytes| !try_read(view, bytes, at)) {
            for page in (at..end).step_by(PAGE) {
                if !try_read(view, &mut [0; PAGE], page) {
                    view.zero_range(page..page.saturating_add(PAGE as u64)).map_err(in_memory)?;
                }
            }
        }
        at = end;
    }
    Ok(())
}

fn in_memory(error: std::io::Error) -> Error {
    Error::io("mend the file in memory", error)
}

/// A file being mended in memory.
struct Mending {
    view: Arc<SalvageStorage>,
    /// How much of the file is there.
    len: u64,
    assumptions: Vec<Assumption>,
}

impl Mending {
    fn new(storage: &Arc<dyn Storage>, (len, shown): (u64, u64), assumptions: Vec<Assumption>) -> Self {
        let view = Arc::new(SalvageStorage::new(Arc::clone(storage), len, shown.max(MIB)));
        Self { view, len, assumptions }
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.view.write_all_at(bytes, at).map_err(in_memory)
    }

    fn assume(&mut self, structure: Structure, assumed: impl std::fmt::Display, why: impl std::fmt::Display) {
        self.assumptions.push(Assumption::new(structure, assumed, why));
    }

    /// Makes structures that cannot be read ones that are not valid.
    fn blank_what_cannot_be_read(&self) -> Result<()> {
        blank(&self.view, 0..PAGE as u64)?;
        for at in HEADER_AT {
            blank(&self.view, at..at.saturating_add(HEADER_LEN as u64))?;
        }
        for at in REGION_TABLE_AT {
            blank(&self.view, at..at.saturating_add(REGION_TABLE_LEN as u64))?;
        }
        Ok(())
    }

    fn identifier(&mut self) -> Result<()> {
        let mut start = [0; IDENTIFIER_SIGNATURE.len()];
        if !try_read(&*self.view, &mut start, 0) || start != IDENTIFIER_SIGNATURE {
            self.put(&IDENTIFIER_SIGNATURE, 0)?;
            let why = "it does not start like one, but has a VHDX header or region table with the right checksum";
            self.assume(Structure::VhdxIdentifier, "the file is a VHDX", why);
        }
        Ok(())
    }

    /// Marks the entries that cannot be read in pages of which others can; the rest of the table answers for itself.
    fn mark_lost_entries(&self, bat: &Region, geometry: &Geometry) -> Result<()> {
        let end = bat.offset.saturating_add(geometry.entries().saturating_mul(BAT_ENTRY_LEN));
        let mut piece = vec![0; PIECE];
        let mut at = bat.offset;
        while at < end {
            let next = self.view.next_data(at).map_err(in_memory)?;
            at = at.max(round_down(next.unwrap_or(end), PIECE as u64));
            if at < end && !try_read(&*self.view, &mut piece, at) {
                for page in (at..end.min(at.saturating_add(PIECE as u64))).step_by(PAGE) {
                    self.mark_page(page)?;
                }
            }
            at = at.saturating_add(PIECE as u64);
        }
        Ok(())
    }

    fn mark_page(&self, at: u64) -> Result<()> {
        let mut page = [0; PAGE];
        if try_read(&*self.view, &mut page, at) {
            return Ok(());
        }
        let mut any = false;
        for (sector, place) in page.chunks_mut(SECTOR_BYTES).zip((at..).step_by(SECTOR_BYTES)) {
            // The file may end inside the sector: whole entries of what is there.
            let there = usize::try_from(self.len.saturating_sub(place)).unwrap_or(usize::MAX).min(sector.len()) & !7;
            let (readable, gone) = sector.split_at_mut(there);
            let read = !readable.is_empty() && try_read(&*self.view, readable, place);
            any |= read;
            let lost = if read { gone } else { sector };
            lost.as_chunks_mut::<8>().0.fill(LOST_ENTRY);
        }
        if any { self.put(&page, at) } else { Ok(()) }
    }
}
