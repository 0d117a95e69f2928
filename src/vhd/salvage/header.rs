//! The dynamic header of a damaged file.
//!
//! Owns: where a header may be, and what is taken for a field of it that cannot be true. Must not know: footers beyond
//! the disk they speak of, or what becomes of the header.

use super::super::footer::Footer;
use super::super::header::{self, BlockLayout, Header, block_size_rule};
use super::super::raw::{
    FOOTER_LEN, HEADER_BYTES, HEADER_COOKIE, HEADER_LEN, RawHeader, SECTOR_BYTES, Site, VERSION_1,
};
use super::{PIECE, record};
use crate::error::{Error, Result};
use crate::finding::Findings;
use crate::mend::Assumption;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::storage::salvage::try_read;
use crate::units::{FileOffset, KIB, MIB, SECTOR, round_up};
use zerocopy::FromBytes;

/// How far into a file a header is looked for: producers put it right behind the footer copy.
const MAX_SCAN: u64 = 16 * MIB;
/// How far into a file a table is looked for when nothing says where it is.
const MAX_TABLE_SCAN: u64 = 64 * KIB;
/// The block sizes that producers use, in bytes.
const USUAL_BLOCKS: [u32; 6] = [2 << 20, 512 << 10, 1 << 20, 4 << 20, 256 << 10, 128 << 10];
/// How far behind its last block a footer lies at most: producers pad files to 4 KiB, and blocks likewise.
const MAX_PADDING: u64 = 2 * 4096;
/// The most entries of a table that nothing describes.
const MAX_GUESSED_ENTRIES: u64 = 1 << 20;

/// A header to read the file by.
pub(super) struct FoundHeader {
    pub(super) at: u64,
    pub(super) header: Header,
    pub(super) assumption: Option<Assumption>,
}

/// Whether the header is one of a differencing disk.
pub(super) fn names_parent(raw: &RawHeader) -> bool {
    raw.parent_unique_id != [0; 16] || raw.locators.iter().any(|locator| locator.platform != [0; 4])
}

/// The first header with a cookie and the right checksum.
pub(super) fn find_signed(storage: &dyn Storage, len: u64) -> Option<(u64, RawHeader)> {
    let end = len.min(MAX_SCAN);
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < end {
        let here = usize::try_from(end.saturating_sub(at)).unwrap_or(PIECE).min(PIECE);
        let piece = buffer.get_mut(..here)?;
        if !try_read(storage, piece, at) {
            piece.fill(0);
            for (sector, place) in piece.chunks_mut(SECTOR_BYTES).zip((at..).step_by(SECTOR_BYTES)) {
                let _ = try_read(storage, sector, place);
            }
        }
        for (sector, place) in piece.chunks(SECTOR_BYTES).zip((at..).step_by(SECTOR_BYTES)) {
            if sector.starts_with(&HEADER_COOKIE)
                && let Some(raw) = signed_at(storage, place, len)
            {
                return Some((place, raw));
            }
        }
        at = at.saturating_add(PIECE as u64);
    }
    None
}

fn signed_at(storage: &dyn Storage, at: u64, len: u64) -> Option<RawHeader> {
    let bytes = record::<HEADER_BYTES>(storage, at, len)?;
    header::signed(&bytes, Site { structure: Structure::VhdHeader, at }).ok()
}

/// The header for the disk of `footer`, whose data ends at `data_end`. A footer that is not `certain` needs one that asks
/// for exactly its blocks.
///
/// # Errors
/// `Corrupt` when there is none and the table cannot be told without it.
pub(super) fn find(
    storage: &dyn Storage,
    len: u64,
    (footer, data_end): (&Footer, u64),
    certain: bool,
) -> Result<FoundHeader> {
    let place = footer.data_offset();
    let signed = signed_at(storage, place, len).map(|raw| (place, raw)).or_else(|| find_signed(storage, len));
    if let Some((at, raw)) = signed
        && let Some(found) = mended(raw, (at, len), footer, certain)
    {
        return Ok(found);
    }
    for at in [place, FOOTER_LEN] {
        // Only the first sector matters to where blocks are; a torn write or a bad sector may have taken the other.
        let Some(first) = record::<SECTOR_BYTES>(storage, at, len) else { continue };
        let mut bytes = [0; HEADER_BYTES];
        if let Some((start, rest)) = bytes.split_first_chunk_mut::<SECTOR_BYTES>() {
            *start = first;
            if !try_read(storage, rest, at.saturating_add(SECTOR)) {
                rest.fill(0);
            }
        }
        let Ok(raw) = RawHeader::read_from_bytes(&bytes) else { continue };
        if raw.cookie != HEADER_COOKIE {
            continue;
        }
        if let Some(mut found) = mended(raw, (at, len), footer, true) {
            let why = "its checksum is wrong and there is no copy; it has room for the disk of the footer";
            let assumed = "the fields of the dynamic header hold";
            found.assumption.get_or_insert(Assumption::new(Structure::VhdHeader, assumed, why));
            return Ok(found);
        }
    }
    if certain { by_blocks(storage, footer, data_end) } else { Err(none(place)) }
}

fn none(at: u64) -> Error {
    let found = "no dynamic header that fits the footer, and no table that its blocks would vouch for";
    Error::corrupt(Problem::new(Structure::VhdHeader, Fault::Missing, found, "one of both").at(FileOffset(at)))
        .with_hint("without either nobody can say where which block of the disk lies")
}

/// `raw` as a header for the disk of `footer`, with the one field corrected that cannot be true, if the others say what it
/// must be.
fn mended(mut raw: RawHeader, (at, len): (u64, u64), footer: &Footer, loose: bool) -> Option<FoundHeader> {
    let site = Site { structure: Structure::VhdHeader, at };
    let (size, entries) = (footer.size(), u64::from(raw.max_table_entries.get()));
    let mut assumption = None;
    if raw.version.get() != VERSION_1 {
        return None;
    }
    if block_size_rule(raw.block_size.get()).is_err() {
        let fits = |block: &u32| BlockLayout::of(*block).blocks(size) == entries;
        let block = (12..29).map(|shift| 1u32 << shift).filter(fits).min_by_key(|block| block.abs_diff(2 << 20))?;
        let why = format_args!("the header says {}; a table of {entries} entries asks for it", raw.block_size.get());
        assumption =
            Some(Assumption::new(Structure::VhdHeader, format_args!("blocks of {block} bytes").to_string(), why));
        raw.block_size = block.into();
    }
    let needed = BlockLayout::of(raw.block_size.get()).blocks(size);
    if !loose && needed != entries {
        return None;
    }
    if entries < needed {
        let entries_needed = u32::try_from(needed).ok()?;
        let why = format_args!("the header says {entries}, too few for {size} bytes").to_string();
        assumption =
            Some(Assumption::new(Structure::VhdHeader, format_args!("a table of {needed} entries").to_string(), why));
        raw.max_table_entries = entries_needed.into();
    }
    // No sound table holds much more than its disk needs.
    if entries > needed.saturating_mul(16).saturating_add(1 << 16) {
        raw.max_table_entries = u32::try_from(needed).ok()?.into();
    }
    let table = raw.table_offset.get();
    if table == 0 || table > len {
        return None;
    }
    raw.seal();
    let header = Header::trust(raw, site, (size, u64::MAX), &mut Findings::new()).ok()?;
    Some(FoundHeader { at, header, assumption })
}

/// A header for a table that lies where tables lie, has an entry for every block, and whose blocks fill the file to its
/// end. There must be just one.
fn by_blocks(storage: &dyn Storage, footer: &Footer, data_end: u64) -> Result<FoundHeader> {
    let mut fitting = Vec::new();
    for block in USUAL_BLOCKS {
        for at in (FOOTER_LEN..MAX_TABLE_SCAN).step_by(SECTOR_BYTES) {
            let layout = BlockLayout::of(block);
            if fills_file(storage, (at, data_end), (layout, footer.size())) {
                fitting.push((at, block));
            }
        }
    }
    let [(table, block)] = fitting.as_slice() else { return Err(none(footer.data_offset())) };
    let entries = u32::try_from(BlockLayout::of(*block).blocks(footer.size())).unwrap_or(u32::MAX);
    let assumed = format_args!("a table of {entries} entries at file offset {table:#x}, of blocks of {block} bytes");
    let why = "the dynamic header is lost; this is the only place where a table's blocks fill the file without gaps";
    Ok(FoundHeader {
        // Where it lies over nothing.
        at: round_up(data_end, SECTOR).unwrap_or(data_end),
        header: Header::fresh(*table, entries, *block),
        assumption: Some(Assumption::new(Structure::VhdHeader, assumed.to_string(), why)),
    })
}

fn fills_file(storage: &dyn Storage, (table, data_end): (u64, u64), (layout, size): (BlockLayout, u64)) -> bool {
    let blocks = layout.blocks(size);
    let bytes = blocks.saturating_mul(4);
    let table_end = table.saturating_add(bytes);
    if blocks > MAX_GUESSED_ENTRIES || table_end > data_end {
        return false;
    }
    let mut places = Vec::new();
    let mut at = table;
    let mut sector = [0; SECTOR_BYTES];
    while at < table_end {
        let len = usize::try_from(table_end.saturating_sub(at)).unwrap_or(SECTOR_BYTES).min(SECTOR_BYTES);
        let Some(part) = sector.get_mut(..len) else { return false };
        if !try_read(storage, part, at) {
            return false;
        }
        for entry in part.as_chunks::<4>().0.iter().filter(|entry| **entry != [0xFF; 4]) {
            let start = u64::from(u32::from_be_bytes(*entry)).saturating_mul(SECTOR);
            if start < table_end || start.saturating_add(layout.stride()) > data_end {
                return false;
            }
            places.push(start);
        }
        at = at.saturating_add(len as u64);
    }
    places.sort_unstable();
    let stride = layout.stride();
    let packed = places.iter().zip(places.iter().skip(1)).all(|(low, high)| {
        let step = high.saturating_sub(*low);
        step >= stride && step.saturating_sub(stride) <= MAX_PADDING
    });
    let ends = places.last().is_some_and(|last| data_end.saturating_sub(last.saturating_add(stride)) <= MAX_PADDING);
    let begins = places.first().is_some_and(|first| first.saturating_sub(table_end) <= MAX_TABLE_SCAN);
    packed && ends && begins
}

const _: () = assert!(HEADER_LEN == HEADER_BYTES as u64);
