//! Reserve and publish.
//!
//! Owns: where new blocks go, and the order that keeps them invisible until their bytes are durable. Must not know: what
//! is written, or whether it came from a child, a guest or a growing disk.

use super::bat::UNALLOCATED;
use super::header::BlockLayout;
use super::image::{Sparse, Vhd};
use super::raw::SECTOR_BYTES;
use super::space::{FILE_UNIT, tail_position};
use super::store::Store;
use crate::bitmap::{self, BitOrder};
use crate::error::{Error, ErrorKind, Result};
use crate::link::DiskKind;
use crate::map::{BlockMap, BlockSink, Content, Place, Reservation, Want};
use crate::units::{FileOffset, SECTOR, round_up};
use std::ops::Range;

/// A reservation that has been given out.
#[derive(Debug)]
pub(super) struct Pending {
    ticket: u64,
    /// In the order of blocks.
    fresh: Vec<Fresh>,
    /// Where the data ends once it is published.
    end: u64,
}

/// A block that gets its place.
#[derive(Debug)]
struct Fresh {
    block: u64,
    at: u64,
    /// The sectors whose bits are set.
    sectors: Vec<Range<u64>>,
}

/// Where a batch goes.
#[derive(Debug, Default)]
struct Plan {
    places: Vec<Place>,
    fresh: Vec<Fresh>,
    /// File ranges inside new blocks that no want fills.
    blanks: Vec<Range<u64>>,
    end: u64,
}

/// The part of a want that lies in one block.
#[derive(Clone, Debug)]
struct Piece {
    block: u64,
    /// Bytes into the block.
    within: Range<u64>,
    content: Content,
}

impl Piece {
    fn sectors(&self) -> Range<u64> {
        self.within.start / SECTOR..self.within.end / SECTOR
    }
}

fn pieces(layout: BlockLayout, wants: &[Want]) -> impl Iterator<Item = Piece> {
    wants.iter().flat_map(move |want| {
        let mut at = want.range.start;
        std::iter::from_fn(move || {
            if at >= want.range.end {
                return None;
            }
            let (block, start) = layout.split(at);
            let end = want.range.end.saturating_sub(layout.start(block)).min(layout.block_size);
            at = layout.start(block).saturating_add(end);
            Some(Piece { block, within: start..end, content: want.content })
        })
    })
}

/// Calls `each` with the pieces of one block after another.
fn by_block(layout: BlockLayout, wants: &[Want], mut each: impl FnMut(u64, &[Piece]) -> Result<()>) -> Result<()> {
    let mut rest = pieces(layout, wants).peekable();
    let mut group = Vec::new();
    while let Some(piece) = rest.next() {
        let block = piece.block;
        group.push(piece);
        if rest.peek().is_none_or(|next| next.block != block) {
            each(block, &group)?;
            group.clear();
        }
    }
    Ok(())
}

/// Where the next block goes: from `end` on, so that its data starts on 4 KiB.
fn place_block(layout: BlockLayout, end: u64) -> Result<u64> {
    let data = round_up(end.saturating_add(layout.bitmap_len), FILE_UNIT);
    let at = data.unwrap_or(u64::MAX).saturating_sub(layout.bitmap_len);
    if at / SECTOR >= u64::from(UNALLOCATED) {
        let message = "the file would grow past 2 TiB, where a block allocation table cannot point";
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    Ok(at)
}

impl Plan {
    fn add_place(&mut self, layout: BlockLayout, piece: &Piece, block_at: u64) {
        self.places.push(Place {
            offset: layout.start(piece.block).saturating_add(piece.within.start),
            len: piece.within.end.saturating_sub(piece.within.start),
            at: FileOffset(block_at.saturating_add(layout.bitmap_len).saturating_add(piece.within.start)),
            content: piece.content,
        });
    }

    /// Gives the block of `pieces` a place behind everything else.
    fn add_block(&mut self, layout: BlockLayout, pieces: &[Piece]) -> Result<()> {
        let Some(block) = pieces.first().map(|piece| piece.block) else { return Ok(()) };
        let at = place_block(layout, self.end)?;
        let data = at.saturating_add(layout.bitmap_len);
        let mut blank = data;
        for piece in pieces.iter().filter(|piece| piece.content == Content::Data) {
            self.blanks.push(blank..data.saturating_add(piece.within.start));
            blank = data.saturating_add(piece.within.end);
            self.add_place(layout, piece, at);
        }
        self.end = at.saturating_add(layout.stride());
        self.blanks.push(blank..self.end);
        self.fresh.push(Fresh { block, at, sectors: pieces.iter().map(Piece::sectors).collect() });
        Ok(())
    }
}

impl Sparse {
    fn plan(&self, store: &Store, wants: &[Want], root: bool, end: u64) -> Result<Plan> {
        let layout = self.bat.layout;
        let mut plan = Plan { end, ..Plan::default() };
        by_block(layout, wants, |block, pieces| {
            match self.bat.block(store, block)? {
                Some(at) => pieces.iter().for_each(|piece| plan.add_place(layout, piece, at)),
                None if root && pieces.iter().all(|piece| piece.content == Content::Zero) => {}
                None => plan.add_block(layout, pieces)?,
            }
            Ok(())
        })?;
        Ok(plan)
    }

    /// Sets or clears the bits of `sectors` of the block at `block_at`; writes only the bitmap sectors that change.
    pub(super) fn edit_bitmap(&self, store: &Store, block_at: u64, sectors: Range<u64>, value: bool) -> Result<()> {
        const BITS: u64 = SECTOR * 8;
        let mut at = sectors.start;
        while at < sectors.end {
            let index = at / BITS;
            let end = index.saturating_add(1).saturating_mul(BITS).min(sectors.end);
            let offset = block_at.saturating_add(index.saturating_mul(SECTOR));
            let mut bytes = [0; SECTOR_BYTES];
            store.read_cached("a sector bitmap", &mut bytes, offset)?;
            let before = bytes;
            let shift = index.saturating_mul(BITS);
            let bits = at.saturating_sub(shift)..end.saturating_sub(shift);
            bitmap::fill(&mut bytes, BitOrder::MsbFirst, bits, value);
            if bytes != before {
                store.write("a sector bitmap", &bytes, offset)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Writes table entries, whole sectors at a time; `entries` are in the order of blocks.
    pub(super) fn write_entries(&self, store: &Store, entries: &[(u64, u32)]) -> Result<()> {
        let sector_of = |block: u64| self.bat.entry_at(block) / SECTOR;
        for group in entries.chunk_by(|a, b| sector_of(a.0) == sector_of(b.0)) {
            let Some(&(first, _)) = group.first() else { continue };
            let at = sector_of(first).saturating_mul(SECTOR);
            let mut bytes = [0; SECTOR_BYTES];
            store.read_cached("the block allocation table", &mut bytes, at)?;
            let before = bytes;
            for &(block, entry) in group {
                let inside = usize::try_from(self.bat.entry_at(block).saturating_sub(at)).unwrap_or(usize::MAX);
                let slot = bytes.get_mut(inside..).and_then(<[u8]>::first_chunk_mut::<4>);
                *slot.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a table entry across two sectors"))? =
                    entry.to_be_bytes();
            }
            if bytes != before {
                store.write("the block allocation table", &bytes, at)?;
            }
        }
        Ok(())
    }
}

impl Vhd {
    fn is_root(&self) -> bool {
        self.kind() != DiskKind::Differencing
    }

    fn check_wants(&self, wants: &[Want]) -> Result<()> {
        let mut free = 0;
        for want in wants {
            let Range { start, end } = want.range;
            let aligned = start.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR);
            if start < free || start >= end || end > self.virtual_size() || !aligned {
                let message = format_args!(
                    "the range {start} to {end} is empty, out of order, not in whole sectors, or outside the disk of {} \
                     bytes",
                    self.virtual_size()
                );
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            free = end;
        }
        Ok(())
    }

    /// [`BlockSink::reserve`] for wants that may lie past the end of the disk, where a growing disk prepares its blocks.
    pub(super) fn reserve_unchecked(&mut self, wants: Vec<Want>) -> Result<Reservation> {
        self.pending = None;
        self.tickets = self.tickets.wrapping_add(1);
        let ticket = self.tickets;
        let Some(sparse) = &self.sparse else {
            let place = |want: &Want| Place {
                offset: want.range.start,
                len: want.range.end.saturating_sub(want.range.start),
                at: FileOffset(want.range.start),
                content: want.content,
            };
            let places = wants.iter().map(place).collect();
            self.pending = Some(Pending { ticket, fresh: Vec::new(), end: 0 });
            return Ok(Reservation::new(wants, places, ticket));
        };
        let plan = sparse.plan(&self.store, &wants, self.is_root(), self.data_end()?)?;
        if !plan.fresh.is_empty() {
            self.prepare(&plan)?;
        }
        self.pending = Some(Pending { ticket, fresh: plan.fresh, end: plan.end });
        Ok(Reservation::new(wants, plan.places, ticket))
    }

    /// Makes room for new blocks and fills in everything but the wanted data: their bitmaps, and zeros wherever the file
    /// held anything before. Nothing refers to them yet.
    fn prepare(&mut self, plan: &Plan) -> Result<()> {
        if let Some(batmap) = self.sparse.as_ref().and_then(|sparse| sparse.batmap.as_ref()) {
            let mut lies = false;
            for fresh in &plan.fresh {
                lies |= batmap.says_full(&self.store, fresh.block)?;
            }
            if lies {
                self.drop_batmap()?;
            }
        }
        let old_len = self.store.len()?;
        self.ensure_tail(plan.end)?;
        for blank in &plan.blanks {
            // Past the old end the file was grown with zeros.
            self.store.zero("a new block", blank.start..blank.end.min(old_len))?;
        }
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let mut bytes = vec![0; usize::try_from(sparse.bat.layout.bitmap_len).unwrap_or(0)];
        for fresh in &plan.fresh {
            bytes.fill(0);
            for sectors in &fresh.sectors {
                bitmap::fill(&mut bytes, BitOrder::MsbFirst, sectors.clone(), true);
            }
            self.store.write("a sector bitmap", &bytes, fresh.at)?;
        }
        Ok(())
    }

    /// Sets the bits of what was wanted in blocks that had their place before.
    fn publish_bits(&self, sparse: &Sparse, wants: &[Want], fresh: &[Fresh]) -> Result<()> {
        let mut fresh = fresh.iter().peekable();
        by_block(sparse.bat.layout, wants, |block, pieces| {
            if fresh.next_if(|fresh| fresh.block == block).is_some() {
                return Ok(());
            }
            let Some(at) = sparse.bat.block(&self.store, block)? else { return Ok(()) };
            pieces.iter().try_for_each(|piece| sparse.edit_bitmap(&self.store, at, piece.sectors(), true))
        })
    }
}

impl BlockSink for Vhd {
    fn block_size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.virtual_size(), |sparse| sparse.bat.layout.block_size)
    }

    fn logical_sector_size(&self) -> u32 {
        512
    }

    fn space_for(&self, wants: &[Want]) -> Result<u64> {
        self.check_wants(wants)?;
        let Some(sparse) = &self.sparse else { return Ok(0) };
        let plan = sparse.plan(&self.store, wants, self.is_root(), self.data_end()?)?;
        if plan.fresh.is_empty() || plan.end <= self.tail_at {
            return Ok(0);
        }
        let len = tail_position(plan.end).saturating_add(super::raw::FOOTER_LEN);
        Ok(len.saturating_sub(self.store.len()?))
    }

    fn reserve(&mut self, wants: Vec<Want>) -> Result<Reservation> {
        self.require_writable()?;
        self.check_wants(&wants)?;
        self.reserve_unchecked(wants)
    }

    fn publish(&mut self, reservation: Reservation) -> Result<()> {
        let Some(pending) = self.pending.take_if(|pending| pending.ticket == reservation.ticket()) else {
            let message = "the reservation is not the last one made: its space has been given out again";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        if self.sparse.is_some() {
            // Before the first entry is written: whatever fails from here on, the space is not given out again.
            self.set_data_end(Some(pending.end));
        }
        let Some(sparse) = &self.sparse else { return Ok(()) };
        self.publish_bits(sparse, reservation.wants(), &pending.fresh)?;
        let mut entries = Vec::with_capacity(pending.fresh.len());
        for fresh in &pending.fresh {
            let sector = u32::try_from(fresh.at / SECTOR).unwrap_or(UNALLOCATED);
            entries.push((fresh.block, sector));
        }
        sparse.write_entries(&self.store, &entries)
    }

    fn flush(&mut self) -> Result<()> {
        self.store.sync()
    }
}
