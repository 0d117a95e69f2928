//! Showing new contents: the changes of the map, cut into transactions.
//!
//! Owns: which pages one block's change touches, and that they never part: an entry with the bits it relies on, a bitmap
//! with its zeros. Must not know: where the space came from, whether the bytes are there (the caller synced them).

use crate::bitmap::{self, BitOrder};
use crate::error::{Error, Result};
use crate::units::{FileOffset, round_down};
use crate::vhdx::bat::{PayloadEntry, encode_bitmap};
use crate::vhdx::image::Vhdx;
use crate::vhdx::log::PAGE;
use crate::vhdx::raw::{BAT_ENTRY_LEN, BITMAP_BLOCK_LEN};
use crate::vhdx::txn::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const BITS_PER_PAGE: u64 = PAGE * 8;

/// Changes of the map that wait for their bytes.
#[derive(Debug, Default)]
pub(in crate::vhdx) struct Plan {
    /// The reservation's.
    pub(in crate::vhdx) ticket: u64,
    /// In the order of the blocks.
    pub(in crate::vhdx) changes: Vec<Change>,
    /// Places for the bitmaps of chunks that have none.
    pub(in crate::vhdx) bitmaps: BTreeMap<u64, FileOffset>,
    /// Space taken for it.
    pub(in crate::vhdx) taken: Vec<Range<u64>>,
}

/// What becomes of one block.
#[derive(Debug)]
pub(in crate::vhdx) struct Change {
    pub(in crate::vhdx) block: u64,
    /// Its new entry.
    pub(in crate::vhdx) entry: PayloadEntry,
    /// Edits of its bits, in sectors from its start.
    pub(in crate::vhdx) bits: Bits,
    /// Space it no longer uses.
    pub(in crate::vhdx) freed: Option<Range<u64>>,
}

/// Edits of a block's bits: cleared first, then set.
#[derive(Debug, Default)]
pub(in crate::vhdx) struct Bits {
    pub(in crate::vhdx) clear: Option<Range<u64>>,
    pub(in crate::vhdx) set: Vec<Range<u64>>,
}

impl Bits {
    fn is_empty(&self) -> bool {
        self.clear.is_none() && self.set.is_empty()
    }
}

/// The bits of one block.
pub(in crate::vhdx) struct BlockBits {
    bytes: Vec<u8>,
    /// Sectors of the block that belong to the disk.
    sectors: u64,
}

impl BlockBits {
    /// Whether no sector of the disk is set.
    pub(in crate::vhdx) fn none_set(&self) -> bool {
        bitmap::run(&self.bytes, BitOrder::LsbFirst, 0..self.sectors) == (false, self.sectors)
    }

    /// Whether all `ranges` are set.
    pub(in crate::vhdx) fn has_all(&self, ranges: &[Range<u64>]) -> bool {
        ranges.iter().all(|range| bitmap::all_set(&self.bytes, BitOrder::LsbFirst, range.clone()))
    }

    /// Whether with `ranges` set every sector of the disk is.
    pub(in crate::vhdx) fn all_set_with(&self, ranges: &[Range<u64>]) -> bool {
        let mut bytes = self.bytes.clone();
        for range in ranges {
            bitmap::fill(&mut bytes, BitOrder::LsbFirst, range.clone(), true);
        }
        bitmap::all_set(&bytes, BitOrder::LsbFirst, 0..self.sectors)
    }
}

impl Vhdx {
    /// Shows the plan's changes: as few transactions as the log allows, each complete in itself.
    pub(in crate::vhdx) fn install(&mut self, plan: Plan) -> Result<()> {
        let Plan { changes, bitmaps: places, .. } = plan;
        let mut bitmaps = Bitmaps { waiting: places.keys().copied().collect(), places };
        let max = self.session()?.max_entry();
        let (mut transaction, mut freed) = (Transaction::new(), Vec::new());
        for change in changes {
            let footprint = self.footprint(&change, &bitmaps)?;
            if transaction.entry_len_with(&footprint.edits, footprint.zeros) > max {
                self.commit(&std::mem::take(&mut transaction), &mut freed)?;
            }
            self.add(&mut transaction, &change, &mut bitmaps)?;
            freed.extend(change.freed);
        }
        self.commit(&transaction, &mut freed)
    }

    fn footprint(&self, change: &Change, bitmaps: &Bitmaps) -> Result<Footprint> {
        let slot = |index: u64| {
            let at = self.bat_offset(index);
            at..at.saturating_add(BAT_ENTRY_LEN)
        };
        let mut footprint = Footprint { edits: vec![slot(self.geometry.payload_index(change.block))], zeros: 0 };
        if !change.bits.is_empty() {
            let chunk = self.geometry.chunk_of(change.block);
            if bitmaps.waiting.contains(&chunk) {
                footprint.edits.push(slot(self.geometry.bitmap_index(chunk)));
                footprint.zeros = 1;
            }
            let start =
                self.bitmap_of(change.block, bitmaps)?.get().saturating_add(self.geometry.first_bit(change.block) >> 3);
            let end = start.saturating_add(self.geometry.sectors_per_block() >> 3);
            footprint.edits.push(start..end);
        }
        Ok(footprint)
    }

    /// Where the bitmap of the block's chunk is, or will be.
    fn bitmap_of(&self, block: u64, bitmaps: &Bitmaps) -> Result<FileOffset> {
        let chunk = self.geometry.chunk_of(block);
        match bitmaps.places.get(&chunk) {
            Some(place) => Ok(*place),
            None => self.bitmap_place(chunk)?.ok_or_else(|| self.missing_bitmap(block)),
        }
    }

    /// Adds one block's change. The first change that needs a new bitmap brings it.
    fn add(&self, to: &mut Transaction, change: &Change, bitmaps: &mut Bitmaps) -> Result<()> {
        let geometry = &self.geometry;
        if !change.bits.is_empty() {
            let chunk = geometry.chunk_of(change.block);
            let place = self.bitmap_of(change.block, bitmaps)?;
            if bitmaps.waiting.remove(&chunk) {
                to.zero(place.get()..place.get().saturating_add(BITMAP_BLOCK_LEN));
                let entry = encode_bitmap(Some(place)).to_le_bytes();
                to.write(&self.pages, self.bat_offset(geometry.bitmap_index(chunk)), &entry)?;
            }
            let first = geometry.first_bit(change.block);
            let edits = change.bits.clear.iter().map(|range| (range, false));
            for (range, value) in edits.chain(change.bits.set.iter().map(|range| (range, true))) {
                self.edit_bits(to, place, (first.saturating_add(range.start)..first.saturating_add(range.end), value))?;
            }
        }
        let at = self.bat_offset(geometry.payload_index(change.block));
        to.write(&self.pages, at, &change.entry.encode().to_le_bytes())
    }

    fn edit_bits(&self, to: &mut Transaction, bitmap: FileOffset, (bits, value): (Range<u64>, bool)) -> Result<()> {
        let mut at = bits.start;
        while at < bits.end {
            let first = round_down(at, BITS_PER_PAGE);
            let end = bits.end.min(first.saturating_add(BITS_PER_PAGE));
            let page = to.page_mut(&self.pages, bitmap.get().saturating_add(first >> 3))?;
            bitmap::fill(page, BitOrder::LsbFirst, at.saturating_sub(first)..end.saturating_sub(first), value);
            at = end;
        }
        Ok(())
    }

    /// The bits of a partially present block.
    pub(in crate::vhdx) fn block_bits(&self, block: u64) -> Result<BlockBits> {
        let geometry = &self.geometry;
        let place = self.bitmap_place(geometry.chunk_of(block))?.ok_or_else(|| self.missing_bitmap(block))?;
        let at = place.get().saturating_add(geometry.first_bit(block) >> 3);
        let mut bytes = vec![0; usize::try_from(geometry.sectors_per_block() >> 3).unwrap_or_default()];
        let failed = |error| Error::io("read a sector bitmap", error).with_offset(FileOffset(at));
        self.pages.read_exact_at(&mut bytes, at).map_err(failed)?;
        Ok(BlockBits { bytes, sectors: self.sectors(&(0..self.bytes_in(block))).end })
    }
}

/// Bitmaps of chunks that had none.
struct Bitmaps {
    places: BTreeMap<u64, FileOffset>,
    /// Those that no transaction shows yet.
    waiting: BTreeSet<u64>,
}

/// What a change adds to a transaction.
struct Footprint {
    /// Bytes of the file whose pages it edits.
    edits: Vec<Range<u64>>,
    /// Ranges it zeroes.
    zeros: u64,
}
