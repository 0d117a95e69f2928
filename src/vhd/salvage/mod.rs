//! Making a damaged VHD readable, in memory.
//!
//! Owns: which of a file's remains is believed as its footer, and the view of the file in which everything is where it
//! belongs. [`header`] owns the same for the dynamic header. Must not know: what is read through the view, or why.
//!
//! Nothing is believed without a witness: a footer by its checksum, or by a header that asks for as many blocks as the
//! footer's disk has; a header by its checksum, or by the footer; a table by its blocks, which must fill the file.

mod header;

use super::footer::{self, Footer};
use super::header::Header;
use super::image::Vhd;
use super::locate::{self, Found};
use super::raw::{FOOTER_BYTES, FOOTER_COOKIE, FOOTER_LEN, HEADER_LEN, RawFooter, SECTOR_BYTES, Site};
use super::store;
use crate::error::{Error, Result};
use crate::finding::Findings;
use crate::guid;
use crate::link::DiskKind;
use crate::mend::{Assumption, Salvaged};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::salvage::{SalvageStorage, try_read};
use crate::storage::{Access, Storage};
use crate::units::{FileOffset, SECTOR, round_up};
use std::sync::Arc;
use zerocopy::FromBytes;

/// Bytes of table read at a time.
const PIECE: usize = 64 << 10;

/// The most sectors of a table that are marked as lost; there are more only when all around them are.
const MAX_MARKED: usize = 1 << 15;

/// A footer that may be the file's.
struct Guess {
    footer: Footer,
    /// Where the data area ends by it.
    data_end: u64,
    /// It is whole, and lies at the end of the file.
    in_place: bool,
    assumption: Option<Assumption>,
}

impl Vhd {
    /// Whether a dynamic header or a footer is left of a VHD that is not recognised as one.
    ///
    /// # Errors
    /// What the storage answers when asked for its length.
    pub(crate) fn leaves_traces(storage: &dyn Storage) -> Result<bool> {
        let len = store::len(storage)?;
        let copy = record::<FOOTER_BYTES>(storage, 0, len);
        let cookie = |bytes: &[u8; FOOTER_BYTES]| bytes.starts_with(&FOOTER_COOKIE);
        let tail = len.checked_sub(FOOTER_LEN).and_then(|at| record::<FOOTER_BYTES>(storage, at, len));
        Ok(copy.as_ref().is_some_and(cookie)
            || tail.as_ref().is_some_and(cookie)
            || header::find_signed(storage, len).is_some())
    }

    /// The image in `storage` with what it lacks made up in memory. `storage` is never written.
    ///
    /// # Errors
    /// `Corrupt` when too little is left to say what the disk was.
    pub(crate) fn salvage(storage: &Arc<dyn Storage>) -> Result<Salvaged> {
        let len = store::len(&**storage)?;
        let mut failure = None;
        for guess in guesses(&**storage, len) {
            match view(storage, len, guess) {
                Ok(salvaged) => return Ok(salvaged),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| {
            let found = "no footer, no copy of it and no dynamic header";
            let problem = Problem::new(Structure::VhdFooter, Fault::Missing, found, "at least one of them");
            Error::corrupt(problem.at(FileOffset(len.saturating_sub(FOOTER_LEN))))
                .with_hint("if it was a fixed disk, its bytes are all there is: read it with -f raw")
        }))
    }
}

/// The `N` bytes at `at`, zeros for those past the end of the file; `None` when more than one is.
fn record<const N: usize>(storage: &dyn Storage, at: u64, len: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let there = usize::try_from(len.checked_sub(at)?).unwrap_or(N).min(N);
    let part = bytes.get_mut(..there).filter(|part| part.len().saturating_add(1) >= N)?;
    try_read(storage, part, at).then_some(bytes)
}

fn trusted(raw: RawFooter) -> Option<Footer> {
    let site = Site { structure: Structure::VhdFooter, at: 0 };
    Footer::trust(raw, site, &mut Findings::new()).ok()
}

/// What may be the footer, best first.
fn guesses(storage: &dyn Storage, len: u64) -> Vec<Guess> {
    let mut guesses = Vec::new();
    let mut add = |raw: RawFooter, data_end: u64, in_place: bool, assumption: Option<Assumption>| {
        guesses.extend(trusted(raw).map(|footer| Guess { footer, data_end, in_place, assumption }));
    };
    let last = |cut: u64| len.checked_sub(cut).and_then(|at| Some((at, record::<FOOTER_BYTES>(storage, at, len)?)));
    let damaged_tail = last(FOOTER_LEN).filter(|(_, bytes)| bytes.starts_with(&FOOTER_COOKIE));
    // Without a footer at the end all of the file may be data; with a damaged one it ends there.
    let data_end = damaged_tail.map_or(len, |(at, _)| at);
    match locate::locate(storage, len) {
        Ok(Found::Tail { raw, at }) => add(raw, at, true, None),
        Ok(Found::Buried { raw, at, .. }) => add(raw, at, false, None),
        _ => {}
    }
    let copy = record::<FOOTER_BYTES>(storage, 0, len);
    let site = Site { structure: Structure::VhdFooterCopy, at: 0 };
    if let Some(raw) = copy.and_then(|bytes| footer::signed(&bytes, site).ok())
        && matches!(raw.kind.get(), 3 | 4)
    {
        add(raw, data_end, false, None);
    }
    for (structure, bytes) in
        [(Structure::VhdFooter, damaged_tail.map(|(_, bytes)| bytes)), (Structure::VhdFooterCopy, copy)]
    {
        let Some(bytes) = bytes.filter(|bytes| bytes.starts_with(&FOOTER_COOKIE)) else { continue };
        let Ok(mut raw) = RawFooter::read_from_bytes(&bytes) else { continue };
        let fixed = raw.kind.get() == 2;
        if fixed && (structure == Structure::VhdFooterCopy || raw.current_size.get() != data_end) {
            continue;
        }
        raw.seal();
        let witness = if fixed { "its disk ends where the footer begins" } else { "the dynamic header fits it" };
        let why = format_args!("its checksum is wrong and there is no better one; {witness}").to_string();
        let assumed = format_args!("the fields of the {} hold", structure.name()).to_string();
        add(raw, data_end, false, Some(Assumption::new(structure, assumed, why)));
    }
    if let Some((_, header)) = header::find_signed(storage, len) {
        let kind = if header::names_parent(&header) { DiskKind::Differencing } else { DiskKind::Dynamic };
        let size = u64::from(header.max_table_entries.get()).saturating_mul(header.block_size.get().into());
        let raw = *Footer::fresh(kind, size, guid::fresh().to_bytes_le(), 0).raw();
        let assumed = format_args!("a disk of {size} bytes").to_string();
        let why =
            "no footer is left; that is what the dynamic header has room for, and it can be up to a block too long";
        add(raw, data_end, false, Some(Assumption::new(Structure::VhdFooter, assumed, why)));
    }
    guesses
}

/// The file as `guess` says it is.
fn view(storage: &Arc<dyn Storage>, len: u64, guess: Guess) -> Result<Salvaged> {
    let mut assumptions = Vec::new();
    let Guess { footer, data_end, in_place, assumption } = guess;
    let certain = assumption.is_none();
    let mut header = None;
    if footer.kind() != DiskKind::Fixed {
        let found = header::find(&**storage, len, (&footer, data_end), certain)?;
        assumptions.extend(found.assumption);
        header = Some((found.at, found.header));
    }
    assumptions.extend(assumption);
    let mut lost = Vec::new();
    let mut end = data_end.max(if header.is_none() { footer.size() } else { 0 });
    if let Some((at, header)) = &header {
        end = end.max(at.saturating_add(HEADER_LEN)).max(header.table().end);
        end = end.max(scan_table(&**storage, header, (footer.size(), data_end), &mut lost));
    }
    let moved = !in_place || end > data_end;
    let tail_at = round_up(end, SECTOR).unwrap_or(end);
    let (readable, shown) = if moved { (data_end.min(len), tail_at.saturating_add(FOOTER_LEN)) } else { (len, len) };
    let view = SalvageStorage::new(Arc::clone(storage), readable, shown);
    let put = |bytes: &[u8], at: u64| {
        view.write_all_at(bytes, at).map_err(|error| Error::io("mend the file in memory", error))
    };
    let blank = |range| view.zero_range(range).map_err(|error| Error::io("mend the file in memory", error));
    let mut footer = footer;
    if let Some((at, header)) = &header {
        footer = footer.with_data_offset(*at);
        put(header.bytes(), *at)?;
        // An entry of 0 is none: whatever block it is of is lost, not absent.
        // More than the view takes cannot be read either way.
        lost.into_iter().take(MAX_MARKED).try_for_each(blank)?;
        blank_unreadable_locators(&view, header)?;
        if footer.has_batmap() {
            footer = footer.as_ours();
        }
        put(footer.bytes(), 0)?;
    }
    let at = if moved { tail_at } else { data_end };
    put(footer.bytes(), at)?;
    let view: Arc<dyn Storage> = Arc::new(view);
    Vhd::open(Arc::clone(&view), Access::Read, &mut Findings::new())?;
    Ok(Salvaged { view, assumptions })
}

/// Reads the table: notes the ranges of it that cannot be read, and answers where the last block ends that begins before
/// `data_end`.
fn scan_table(
    storage: &dyn Storage,
    header: &Header,
    (size, data_end): (u64, u64),
    lost: &mut Vec<std::ops::Range<u64>>,
) -> u64 {
    let (table, layout) = (header.table(), header.layout());
    let blocks = layout.blocks(size);
    let mut end = 0;
    let mut note = |at: u64, bytes: &[u8]| {
        let first = at.saturating_sub(table.start) / 4;
        for (block, entry) in (first..blocks).zip(bytes.as_chunks::<4>().0) {
            let start = u64::from(u32::from_be_bytes(*entry)).saturating_mul(SECTOR);
            if start >= FOOTER_LEN && start < data_end && *entry != [0xFF; 4] {
                let used = size.saturating_sub(layout.start(block)).min(layout.block_size);
                end = end.max(start.saturating_add(layout.bitmap_len).saturating_add(used));
            }
        }
    };
    let mut buffer = vec![0; PIECE];
    let mut at = table.start;
    while at < table.end {
        let len = usize::try_from(table.end.saturating_sub(at)).unwrap_or(PIECE).min(PIECE);
        let piece_end = at.saturating_add(len as u64);
        let Some(piece) = buffer.get_mut(..len) else { break };
        if piece_end <= data_end && try_read(storage, piece, at) {
            note(at, piece);
        } else {
            for sector in piece.chunks_mut(SECTOR_BYTES) {
                let next = at.saturating_add(sector.len() as u64);
                if next <= data_end && try_read(storage, sector, at) {
                    note(at, sector);
                } else {
                    lost.push(at..next);
                }
                at = next;
            }
        }
        at = piece_end;
    }
    end
}

/// A path that cannot be read is no path; the image opens without it.
fn blank_unreadable_locators(view: &SalvageStorage, header: &Header) -> Result<()> {
    for locator in header.locators() {
        let (at, len) = (locator.data_offset.get(), locator.data_length.get());
        // As long as any locator that is read at all.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0).min(PIECE)];
        let end = at.saturating_add(bytes.len() as u64);
        if len > 0 && view.len().is_ok_and(|len| end <= len) && !try_read(view, &mut bytes, at) {
            view.zero_range(at..end).map_err(|error| Error::io("mend the file in memory", error))?;
        }
    }
    Ok(())
}
