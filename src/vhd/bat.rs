//! The block allocation table and the sector bitmaps it leads to.
//!
//! Owns: which entries are believed, and reading them without holding the table. Must not know: what the disk is for, or
//! where new blocks go.

use super::header::{BlockLayout, Header};
use super::raw::{FOOTER_LEN, HEADER_LEN};
use super::store::Store;
use crate::bitmap::{self, BitOrder};
use crate::error::{Error, ErrorKind, Result};
use crate::problem::{Fault, Problem, Structure};
use crate::units::{FileOffset, SECTOR};
use std::ops::Range;

/// The entry of a block that has no place.
pub(super) const UNALLOCATED: u32 = u32::MAX;
/// How many blocks a scan for overlaps keeps in memory at four bytes each: 128 TiB of disk at the usual block size, and
/// 256 GiB at the smallest.
const MAX_TRACKED_BLOCKS: usize = 1 << 26;
/// Bytes of BAT read at a time by a scan.
const SCAN_BYTES: usize = 64 << 10;
const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

/// Where the table lies, and what its entries may say.
#[derive(Clone, Debug)]
pub(super) struct Bat {
    pub(super) layout: BlockLayout,
    /// The table with its padding.
    pub(super) table: Range<u64>,
    pub(super) entries: u32,
    /// What blocks must not touch: the footer copy, the header, the table.
    taken: [Range<u64>; 3],
    /// Where blocks must end: the footer, or the end of a file that lost it.
    pub(super) limit: u64,
    /// The virtual size: what lies past it in the last block need not be there.
    size: u64,
}

/// What a scan of the whole table found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Where the last block ends; 0 without blocks.
    pub(super) end: u64,
    /// Where the first block starts; `u64::MAX` without blocks.
    pub(super) first: u64,
}

impl Bat {
    pub(super) fn new(header: &Header, header_at: u64, (size, limit): (u64, u64)) -> Self {
        let table = header.table();
        Self {
            layout: header.layout(),
            entries: header.entries(),
            taken: [0..FOOTER_LEN, header_at..header_at.saturating_add(HEADER_LEN), table.clone()],
            table,
            limit,
            size,
        }
    }

    /// Where the entry of `block` lies in the file.
    pub(super) fn entry_at(&self, block: u64) -> u64 {
        self.table.start.saturating_add(block.saturating_mul(4))
    }

    /// Where the bitmap of `block` starts, or `None` when the block has no place.
    ///
    /// # Errors
    /// `Corrupt` when the entry cannot be believed; what the storage answers.
    pub(super) fn block(&self, store: &Store, block: u64) -> Result<Option<u64>> {
        let entry = store.number_cached("the block allocation table", self.entry_at(block))?;
        self.believe(block, entry).map_err(Error::corrupt)
    }

    /// How many blocks the disk has; the table may have more entries.
    pub(super) fn blocks(&self) -> u64 {
        self.layout.blocks(self.size)
    }

    /// Where a block that starts at `start` must end at the earliest: the part of the last one that lies past the end of
    /// the disk need not be there.
    pub(super) fn end_of(&self, block: u64, start: u64) -> u64 {
        let used = self.size.saturating_sub(self.layout.start(block)).min(self.layout.block_size);
        start.saturating_add(self.layout.bitmap_len).saturating_add(used)
    }

    /// Why the entry cannot be believed; `None` when it can, or when the block has no place.
    pub(super) fn fault(&self, block: u64, entry: u32) -> Option<Fault> {
        if entry == UNALLOCATED {
            return None;
        }
        let start = u64::from(entry).saturating_mul(SECTOR);
        let end = self.end_of(block, start);
        if end > self.limit {
            return Some(Fault::Range);
        }
        self.taken.iter().any(|taken| start < taken.end && taken.start < end).then_some(Fault::Overlap)
    }

    /// Where the bitmap of a block starts by its entry; `None` when the block has no place.
    ///
    /// # Errors
    /// Why the entry cannot be believed.
    pub(super) fn believe(&self, block: u64, entry: u32) -> Result<Option<u64>, Problem> {
        if entry == UNALLOCATED {
            return Ok(None);
        }
        let start = u64::from(entry).saturating_mul(SECTOR);
        let end = self.end_of(block, start);
        let problem = |structure, fault, allowed: String| {
            let found = format!("block {block} in sector {entry:#x}, file offset {start:#x} to {end:#x}");
            Problem::new(structure, fault, found, allowed).at(FileOffset(self.entry_at(block)))
        };
        let fault = self.fault(block, entry);
        if fault == Some(Fault::Range) {
            let allowed = format!("a block that ends by {:#x}, where the data area ends", self.limit);
            return Err(problem(Structure::VhdBat, Fault::Range, allowed));
        }
        if fault.is_some() {
            let allowed = "a block clear of the footer copy, the header and the table".to_owned();
            return Err(problem(Structure::VhdBat, Fault::Overlap, allowed));
        }
        Ok(Some(start))
    }

    /// How many of `blocks`, the first of which has no place, have none. Stops early after a few hundred pages of table.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn unallocated_run(&self, store: &Store, blocks: Range<u64>) -> Result<u64> {
        /// A 2040 GiB disk of 2 MiB blocks has 1020 pages of table: a quarter of it at a time keeps a call short.
        const MAX_PAGES: usize = 256;
        if blocks.end.saturating_sub(blocks.start) <= 1 {
            return Ok(1);
        }
        let mut page = [0; PAGE_BYTES];
        let mut at = blocks.start;
        for _ in 0..MAX_PAGES {
            if at >= blocks.end {
                break;
            }
            let (from, end) = (self.entry_at(at), self.entry_at(blocks.end));
            let room = PAGE.saturating_sub(from.checked_rem(PAGE).unwrap_or(0)) & !3;
            let len = end.saturating_sub(from).min(room.max(4));
            let Some(part) = usize::try_from(len).ok().and_then(|len| page.get_mut(..len)) else { break };
            store.read_cached("the block allocation table", part, from)?;
            let (ones, bits) = bitmap::run(part, BitOrder::MsbFirst, 0..len.saturating_mul(8));
            let run = if ones { bits / 32 } else { 0 };
            at = at.saturating_add(run);
            if run < len / 4 {
                break;
            }
        }
        Ok(at.saturating_sub(blocks.start))
    }

    /// Hands every entry of `blocks` to `visit`, reading past the cache.
    ///
    /// # Errors
    /// What `visit` and the storage answer.
    pub(super) fn for_each(
        &self,
        store: &Store,
        blocks: Range<u64>,
        mut visit: impl FnMut(u64, u32) -> Result<()>,
    ) -> Result<()> {
        self.for_each_piece(store, blocks, |first, entries| {
            for (block, entry) in (first..).zip(entries) {
                visit(block, u32::from_be_bytes(*entry))?;
            }
            Ok(())
        })
    }

    /// Hands the entries of `blocks` to `visit` as they lie in the file, some at a time with the number of the first.
    ///
    /// # Errors
    /// What `visit` and the storage answer.
    pub(super) fn for_each_piece(
        &self,
        store: &Store,
        blocks: Range<u64>,
        mut visit: impl FnMut(u64, &[[u8; 4]]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; SCAN_BYTES];
        let mut block = blocks.start;
        while block < blocks.end {
            let count = blocks.end.saturating_sub(block).min(SCAN_BYTES as u64 / 4);
            let len = usize::try_from(count.saturating_mul(4)).unwrap_or(0);
            let Some(part) = buffer.get_mut(..len) else { break };
            store.read("the block allocation table", part, self.entry_at(block))?;
            visit(block, part.as_chunks::<4>().0)?;
            block = block.saturating_add(count);
        }
        Ok(())
    }

    /// How many blocks of the disk have a place, believed or not.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn allocated(&self, store: &Store) -> Result<u64> {
        let mut count = 0u64;
        self.for_each_piece(store, 0..self.layout.blocks(self.size), |_, entries| {
            let placed = entries.iter().filter(|&&entry| entry != UNALLOCATED.to_be_bytes()).count();
            count = count.saturating_add(placed as u64);
            Ok(())
        })?;
        Ok(count)
    }

    /// Reads the whole table: where blocks lie. What entries past the end of the disk point to
    /// is not written over while they stand, if they can be believed.
    ///
    /// # Errors
    /// `Corrupt` when an entry of the disk cannot be believed or two blocks share bytes: nothing can be placed safely in
    /// such a file. `Unsupported` when the table is too big to be checked. What the storage answers.
    pub(super) fn usage(&self, store: &Store) -> Result<Usage> {
        let blocks = self.layout.blocks(self.size);
        let stride = self.layout.stride();
        let mut places: Vec<u32> = Vec::new();
        let mut past_end = 0;
        self.for_each(store, 0..u64::from(self.entries), |block, entry| {
            let place = match self.believe(block, entry) {
                Err(problem) if block < blocks => return Err(Error::corrupt(problem)),
                place => place.ok().flatten(),
            };
            let Some(place) = place else { return Ok(()) };
            if block >= blocks {
                past_end = past_end.max(place.saturating_add(stride));
            } else if places.len() < MAX_TRACKED_BLOCKS {
                places.push(entry);
            } else {
                let message = format_args!("writing to an image of more than {MAX_TRACKED_BLOCKS} allocated blocks");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
            Ok(())
        })?;
        places.sort_unstable();
        let offset = |sector: u32| u64::from(sector).saturating_mul(SECTOR);
        for (&low, &high) in places.iter().zip(places.iter().skip(1)) {
            if offset(high).saturating_sub(offset(low)) < stride {
                let fault = if low == high { Fault::Duplicate } else { Fault::Overlap };
                let found = format_args!("blocks at file offsets {:#x} and {:#x}", offset(low), offset(high));
                let allowed = format_args!("every block on {stride} bytes of its own");
                let problem = Problem::new(Structure::VhdBlock, fault, found, allowed);
                return Err(Error::corrupt(problem.at(FileOffset(offset(high)))));
            }
        }
        Ok(Usage {
            end: places.last().map_or(0, |&last| offset(last).saturating_add(stride)).max(past_end),
            first: places.first().map_or(u64::MAX, |&first| offset(first)),
        })
    }

    /// Whether the sectors from `sectors.start` on of the block at `block_at` are set, and how many of `sectors` agree.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn bitmap_run(&self, store: &Store, block_at: u64, sectors: Range<u64>) -> Result<(bool, u64)> {
        let mut answer = None;
        let mut bit = sectors.start;
        while bit < sectors.end {
            let (value, run) = store.bitmap_run(block_at, bit..sectors.end)?;
            if run == 0 || answer.is_some_and(|answer| answer != value) {
                break;
            }
            answer = Some(value);
            bit = bit.saturating_add(run);
        }
        Ok((answer.unwrap_or(false), bit.saturating_sub(sectors.start)))
    }
}
