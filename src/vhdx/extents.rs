//! Which bytes of the file hold a virtual range ([MS-VHDX] 2.5).
//!
//! Owns: what each block state means to a reader, joining neighbouring answers, crossing empty stretches quickly.
//! Must not know: how the map comes to change.

use super::bat::{PayloadEntry, PayloadState, decode_bitmap};
use super::image::Vhdx;
use super::raw::{BAT_ENTRY_LEN, BITMAP_BLOCK_LEN};
use crate::bitmap::{self, BitOrder};
use crate::error::{Error, ErrorKind, Result};
use crate::map::{BlockMap, Extent, Source};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::pages::Words;
use crate::storage::{PAGE, Storage};
use crate::units::FileOffset;
use std::io;
use std::ops::Range;

/// How many pieces one answer joins, so that one call stays short on the largest fixed disk.
const MAX_JOINED: usize = 16 << 10;
/// How many BAT pages one answer about an empty stretch looks at: 2 million blocks.
const MAX_EMPTY_PAGES: usize = 4096;
const PAGE_LEN: u64 = PAGE as u64;
const BITS_PER_PAGE: u64 = PAGE_LEN << 3;

impl BlockMap for Vhdx {
    fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let left = self.geometry.virtual_size.saturating_sub(offset);
        if left == 0 || limit == 0 {
            let message = format!("an extent of {limit} bytes at {offset} of {} bytes", self.geometry.virtual_size);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let limit = limit.min(left);
        let mut extent = self.piece_at(offset, limit)?;
        for _ in 0..MAX_JOINED {
            let end = offset.saturating_add(extent.len);
            // Inside a block a run ends because another answer follows.
            if extent.len >= limit || end.checked_rem(self.geometry.block_size) != Some(0) {
                break;
            }
            // A broken entry further on is the business of the call that starts there.
            let rest = limit.saturating_sub(extent.len);
            let Ok(next) = self.piece_at(end, rest) else { break };
            if !joins(&extent, &next) {
                break;
            }
            extent.len = extent.len.saturating_add(next.len);
        }
        self.inside_file(extent, offset)
    }

    fn storage(&self) -> &dyn Storage {
        &*self.storage
    }
}

/// Whether `next`, which follows in the disk, also continues `extent` in the file.
fn joins(extent: &Extent, next: &Extent) -> bool {
    match (extent.source, next.source) {
        (Source::Data(at), Source::Data(next_at)) => at.checked_add(extent.len) == Some(next_at),
        (Source::Zero, Source::Zero) | (Source::Absent, Source::Absent) => true,
        _ => false,
    }
}

impl Vhdx {
    /// What a block that was never written reads as.
    fn unwritten(&self) -> Source {
        if self.geometry.differencing { Source::Absent } else { Source::Zero }
    }

    /// The answer for a run that starts at `offset`; within one block when it has data.
    fn piece_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let geometry = &self.geometry;
        let block = offset.checked_div(geometry.block_size).unwrap_or_default();
        let inside = offset.checked_rem(geometry.block_size).unwrap_or_default();
        let len = limit.min(geometry.block_size.saturating_sub(inside));
        let entry = self.payload_entry(block)?;
        match entry.state {
            PayloadState::NotPresent => self.unwritten_run(offset, limit),
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped => {
                Ok(Extent { len, source: Source::Zero })
            }
            PayloadState::FullyPresent => {
                Ok(Extent { len, source: Source::Data(FileOffset(entry.offset.get().saturating_add(inside))) })
            }
            PayloadState::PartiallyPresent => self.partial_run(block, entry.offset, inside..inside.saturating_add(len)),
        }
    }

    /// The entry of payload block `block`, with its place checked against everything but the end of the file.
    ///
    /// # Errors
    /// `Corrupt` when the entry breaks a rule or the block lies over something else; what the storage answers.
    pub(super) fn payload_entry(&self, block: u64) -> Result<PayloadEntry> {
        let index = self.geometry.payload_index(block);
        let entry = PayloadEntry::decode(self.bat_entry(index)?, self.geometry.differencing)
            .map_err(|(fault, found, allowed)| self.bad_entry(index, fault, &found, allowed))?;
        if entry.is_present() {
            self.check_place(index, entry.offset, self.geometry.block_size)?;
        }
        Ok(entry)
    }

    /// Where the sector bitmap of `chunk` is, `None` when it has none.
    ///
    /// # Errors
    /// As [`payload_entry`](Self::payload_entry); also when the file ends inside the bitmap.
    pub(super) fn bitmap_place(&self, chunk: u64) -> Result<Option<FileOffset>> {
        let index = self.geometry.bitmap_index(chunk);
        let place = decode_bitmap(self.bat_entry(index)?, self.geometry.differencing)
            .map_err(|(fault, found, allowed)| self.bad_entry(index, fault, &found, allowed))?;
        if let Some(at) = place {
            self.check_place(index, at, BITMAP_BLOCK_LEN)?;
            let end = at.get().saturating_add(BITMAP_BLOCK_LEN);
            if !self.file_reaches(end)? {
                let file_len = self.file_len()?;
                let found = format!("a sector bitmap at {at} that ends past the end of the file");
                return Err(self.bad_entry(index, Fault::Range, &found, &format!("an end up to {file_len:#x}")));
            }
        }
        Ok(place)
    }

    /// The 64 bits of the BAT entry at `index`.
    ///
    /// # Errors
    /// `Corrupt` when the file ends before it; what the storage answers.
    pub(super) fn bat_entry(&self, index: u64) -> Result<u64> {
        let at = self.bat_offset(index);
        self.look_at_map(Structure::VhdxBat, at, |words| words.word(word_of(at)))
    }

    /// Where the BAT entry at `index` is in the file.
    pub(super) fn bat_offset(&self, index: u64) -> u64 {
        self.regions.bat().offset.saturating_add(index.saturating_mul(BAT_ENTRY_LEN))
    }

    /// What `look` makes of the page of BAT or bitmap that holds file offset `at`.
    fn look_at_map<T>(&self, structure: Structure, at: u64, look: impl FnMut(&Words<'_>) -> T) -> Result<T> {
        let start = at & !PAGE_LEN.saturating_sub(1);
        self.pages.look_whole(start, look).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                Error::corrupt(
                    Problem::new(structure, Fault::Truncated, "end of file", "4096 bytes").at(FileOffset(start)),
                )
            } else {
                Error::io(format_args!("read the {}", structure.name()), error).with_offset(FileOffset(start))
            }
        })
    }

    pub(super) fn file_len(&self) -> Result<u64> {
        self.storage.len().map_err(|error| Error::io("read the file length", error))
    }

    /// Whether the file is at least `end` bytes long, as far as its length was ever asked for.
    fn file_reaches(&self, end: u64) -> Result<bool> {
        self.pages.reaches(end).map_err(|error| Error::io("read the file length", error))
    }

    pub(super) fn bad_entry(&self, index: u64, fault: Fault, found: &str, allowed: &str) -> Error {
        let at = FileOffset(self.bat_offset(index));
        Error::corrupt(Problem::new(Structure::VhdxBat, fault, found, allowed).at(at))
    }

    /// No block may lie over the headers, the log or a region.
    fn check_place(&self, index: u64, at: FileOffset, len: u64) -> Result<()> {
        let range = at.get()..at.get().saturating_add(len);
        match self.structure_under(&range) {
            None => Ok(()),
            Some(taken) => {
                let found = format!("a block at {:#x} to {:#x}", range.start, range.end);
                let allowed = format!("no byte of {:#x} to {:#x}", taken.start, taken.end);
                Err(self.bad_entry(index, Fault::Overlap, &found, &allowed))
            }
        }
    }

    /// The first range of headers, log or regions that shares bytes with `range`.
    pub(super) fn structure_under(&self, range: &Range<u64>) -> Option<&Range<u64>> {
        let first = self.occupied.partition_point(|taken| taken.end <= range.start);
        self.occupied.get(first).filter(|taken| taken.start < range.end)
    }

    /// Cuts a run of data at the end of the file. A file may end inside a block as long as the disk ends before it does;
    /// bytes of the disk past the end of the file are lost, and saying anything else would be inventing them.
    fn inside_file(&self, extent: Extent, offset: u64) -> Result<Extent> {
        let Source::Data(at) = extent.source else { return Ok(extent) };
        if self.file_reaches(at.get().saturating_add(extent.len))? {
            return Ok(extent);
        }
        let there = self.file_len()?.saturating_sub(at.get());
        if there >= extent.len {
            return Ok(extent);
        }
        // Whole sectors: the disk offset the run is cut at must be one a reader can go on from.
        let end = offset.saturating_add(there) & !self.geometry.logical_sector.saturating_sub(1);
        let len = end.saturating_sub(offset);
        if len > 0 {
            return Ok(Extent { len, ..extent });
        }
        let block = offset.checked_div(self.geometry.block_size).unwrap_or_default();
        let found = format!("data of block {block} at {at}, past the end of the file");
        let allowed = format!("an end up to {:#x}", self.file_len()?);
        Err(self.bad_entry(self.geometry.payload_index(block), Fault::Range, &found, &allowed))
    }

    /// The run of equal bits in a partially present block; `inside` are byte positions within the block.
    fn partial_run(&self, block: u64, place: FileOffset, inside: Range<u64>) -> Result<Extent> {
        let geometry = &self.geometry;
        let chunk = geometry.chunk_of(block);
        let Some(bitmap) = self.bitmap_place(chunk)? else {
            let found = format!("block {block} partially present but no sector bitmap for its chunk {chunk}");
            return Err(self.bad_entry(geometry.payload_index(block), Fault::State, &found, "a sector bitmap block"));
        };
        let sector = geometry.logical_sector;
        let first = geometry.first_bit(block);
        let start = inside.start.checked_div(sector).unwrap_or_default().saturating_add(first);
        let end = inside.end.div_ceil(sector).saturating_add(first);
        let (mut at, mut value) = (start, None);
        while at < end {
            let (bit, run) = self.bits(bitmap, at..end)?;
            if *value.get_or_insert(bit) != bit {
                break;
            }
            at = at.saturating_add(run);
        }
        let run_end = at.saturating_sub(first).saturating_mul(sector).min(inside.end);
        let len = run_end.saturating_sub(inside.start);
        let source = if value == Some(true) {
            Source::Data(FileOffset(place.get().saturating_add(inside.start)))
        } else {
            Source::Absent
        };
        Ok(Extent { len, source })
    }

    /// The first of `bits` of the sector bitmap at `bitmap`, and how many follow that are the same, within one page.
    fn bits(&self, bitmap: FileOffset, bits: Range<u64>) -> Result<(bool, u64)> {
        let skipped = bits.start & !BITS_PER_PAGE.saturating_sub(1);
        let range = bits.start.saturating_sub(skipped)..bits.end.saturating_sub(skipped).min(BITS_PER_PAGE);
        self.look_at_map(Structure::VhdxBitmap, bitmap.get().saturating_add(bits.start >> 3), |words| {
            let word = |index| words.word(usize::try_from(index).unwrap_or(usize::MAX));
            bitmap::run_of_words(word, BitOrder::LsbFirst, range.clone())
        })
    }

    /// The run of blocks in state 0 from `offset` on. A page of zeros is a page of state 0, and a hole of the file is
    /// pages of zeros, so that an empty disk of any size is crossed in a few steps.
    fn unwritten_run(&self, offset: u64, limit: u64) -> Result<Extent> {
        let geometry = &self.geometry;
        let last = offset.saturating_add(limit).saturating_sub(1);
        let block_of = |offset: u64| offset.checked_div(geometry.block_size).unwrap_or_default();
        let start = geometry.payload_index(block_of(offset));
        let end = geometry.payload_index(block_of(last)).saturating_add(1);
        let mut index = start;
        for _ in 0..MAX_EMPTY_PAGES {
            if index >= end {
                break;
            }
            // As above: what cannot be read further on ends the run, and is answered to whoever asks there.
            let Ok(next) = self.skip_unwritten(index, end) else { break };
            index = next.0;
            if !next.1 {
                break;
            }
        }
        let index = index.max(start.saturating_add(1));
        let len = if index >= end { limit } else { geometry.offset_of(index).saturating_sub(offset).min(limit) };
        Ok(Extent { len, source: self.unwritten() })
    }

    /// Skips entries in state 0 (and bitmap entries between them) from `index` to the end of its page or hole; the index
    /// reached, and whether the run goes on from there.
    pub(super) fn skip_unwritten(&self, index: u64, end: u64) -> Result<(u64, bool)> {
        let at = self.bat_offset(index);
        let page_end = (at & !PAGE_LEN.saturating_sub(1)).saturating_add(PAGE_LEN);
        let (reached, blank) = self.look_at_map(Structure::VhdxBat, at, |words| {
            let left = end.saturating_sub(index).min(page_end.saturating_sub(at) >> 3);
            let stop = (0..left).find(|&step| {
                let raw = words.word(word_of(at.saturating_add(step << 3)));
                raw != 0 && self.ends_unwritten(index.saturating_add(step), raw)
            });
            let blank = stop.is_none() && (0..PAGE >> 3).all(|word| words.word(word) == 0);
            (stop.map(|step| index.saturating_add(step)), blank)
        })?;
        if let Some(reached) = reached {
            return Ok((reached, false));
        }
        let mut next = page_end;
        if blank {
            let io = |error| Error::io("look for data in the BAT", error);
            next = match self.storage.next_data(page_end).map_err(io)? {
                Some(data) => (data & !PAGE_LEN.saturating_sub(1)).max(page_end),
                None => self.file_len()?.max(page_end),
            };
        }
        Ok(((next.saturating_sub(self.regions.bat().offset) >> 3).min(end), true))
    }

    /// Whether the entry at `index`, which is not zero, ends a run of blocks in state 0.
    fn ends_unwritten(&self, index: u64, raw: u64) -> bool {
        let state = || PayloadEntry::decode(raw, self.geometry.differencing).map(|entry| entry.state);
        !self.geometry.is_bitmap(index) && state() != Ok(PayloadState::NotPresent)
    }
}

/// Which word of its page file offset `at`, a multiple of 8, is.
fn word_of(at: u64) -> usize {
    usize::try_from((at & PAGE_LEN.saturating_sub(1)) >> 3).unwrap_or_default()
}

#[cfg(test)]
mod tests;
