//! Giving a disk new contents: reserve, then publish.
//!
//! Owns: which blocks need space for a batch, what of that space is zeroed, where the caller's bytes go.
//! Must not know: how a change of the map reaches the file (`publish`, `txn`).

mod decide;
mod publish;

pub(super) use publish::{Bits, Change, Plan};

use super::bat::{PayloadEntry, PayloadState};
use super::image::Vhdx;
use super::raw::BITMAP_BLOCK_LEN;
use super::session::Seen;
use super::space::Taken;
use crate::error::{Error, ErrorKind, Result};
use crate::link::DiskKind;
use crate::map::{BlockSink, Content, Place, Reservation, Want};
use crate::problem::{Fault, Problem, Structure};
use crate::units::FileOffset;
use decide::{Asked, Step, decide};
use std::collections::BTreeSet;
use std::ops::Range;

/// The part of a want that lies in one block, in bytes from the block's start.
#[derive(Clone, Debug)]
struct Piece {
    range: Range<u64>,
    content: Content,
}

/// A block and what is wanted in it, in order.
#[derive(Debug)]
struct Touched {
    block: u64,
    pieces: Vec<Piece>,
}

impl BlockSink for Vhdx {
    fn block_size(&self) -> u64 {
        if self.kind() == DiskKind::Fixed { self.geometry.virtual_size } else { self.geometry.block_size }
    }

    fn logical_sector_size(&self) -> u32 {
        self.metadata.disk.logical_sector
    }

    fn space_for(&self, wants: &[Want]) -> Result<u64> {
        self.check_wants(wants)?;
        let mut bytes = 0u64;
        let mut bitmaps = BTreeSet::new();
        each_block(wants, self.geometry.block_size, &mut |touched| {
            let Step::Allocate { partial } = self.step_for(&self.payload_entry(touched.block)?, &touched) else {
                return Ok(());
            };
            bytes = bytes.saturating_add(self.geometry.block_size);
            let chunk = self.geometry.chunk_of(touched.block);
            if partial && self.bitmap_place(chunk)?.is_none() && bitmaps.insert(chunk) {
                bytes = bytes.saturating_add(BITMAP_BLOCK_LEN);
            }
            Ok(())
        })?;
        Ok(bytes)
    }

    /// One reservation is out at a time: reserving again takes back the space of one that was not published.
    fn reserve(&mut self, wants: Vec<Want>) -> Result<Reservation> {
        self.require_writable()?;
        self.check_wants(&wants)?;
        self.begin(Seen::ByGuest)?;
        self.drop_plan();
        let mut batch = Batch { plan: Plan::default(), places: Vec::new(), end: 0 };
        let planned = self.plan(&wants, &mut batch).and_then(|()| self.grow_file(batch.end));
        let Batch { mut plan, places, .. } = batch;
        if let Err(error) = planned {
            self.give_back(&plan);
            return Err(error);
        }
        self.writer.tickets = self.writer.tickets.saturating_add(1);
        plan.ticket = self.writer.tickets;
        let ticket = plan.ticket;
        self.writer.plan = Some(plan);
        Ok(Reservation::new(wants, places, ticket))
    }

    fn publish(&mut self, reservation: Reservation) -> Result<()> {
        self.require_writable()?;
        let plan = self.writer.plan.take_if(|plan| plan.ticket == reservation.ticket());
        let stale = || Error::new(ErrorKind::InvalidInput, "the reservation is not the last one made of this image");
        self.install(plan.ok_or_else(stale)?)
    }

    fn flush(&mut self) -> Result<()> {
        self.require_writable()?;
        self.settle()
    }
}

impl Touched {
    /// Whether the pieces leave nothing out of the first `len` bytes.
    fn covers(&self, len: u64) -> bool {
        let mut covered = 0;
        for piece in &self.pieces {
            if piece.range.start > covered {
                return false;
            }
            covered = piece.range.end;
        }
        covered >= len
    }

    /// Where the bytes of the pieces `wanted` go when the block starts at `place`.
    fn places(
        &self,
        block_size: u64,
        place: FileOffset,
        wanted: impl Fn(Content) -> bool,
    ) -> impl Iterator<Item = Place> {
        let start = self.block.saturating_mul(block_size);
        self.pieces.iter().filter(move |piece| wanted(piece.content)).map(move |piece| Place {
            offset: start.saturating_add(piece.range.start),
            len: piece.range.end.saturating_sub(piece.range.start),
            at: FileOffset(place.get().saturating_add(piece.range.start)),
            content: piece.content,
        })
    }
}

/// Shows the blocks of `size` bytes that `wants` touch, in order.
fn each_block(wants: &[Want], size: u64, visit: &mut dyn FnMut(Touched) -> Result<()>) -> Result<()> {
    let mut current: Option<Touched> = None;
    for want in wants {
        let mut at = want.range.start;
        while at < want.range.end {
            let block = at.checked_div(size).unwrap_or_default();
            let start = block.saturating_mul(size);
            let end = start.saturating_add(size).min(want.range.end);
            if let Some(done) = current.take_if(|touched| touched.block != block) {
                visit(done)?;
            }
            let range = at.saturating_sub(start)..end.saturating_sub(start);
            let touched = current.get_or_insert_with(|| Touched { block, pieces: Vec::new() });
            touched.pieces.push(Piece { range, content: want.content });
            at = end;
        }
    }
    current.map_or(Ok(()), visit)
}

/// A batch while it is planned.
struct Batch {
    plan: Plan,
    places: Vec<Place>,
    /// The file must reach to here.
    end: u64,
}

impl Vhdx {
    fn check_wants(&self, wants: &[Want]) -> Result<()> {
        let sector = self.geometry.logical_sector;
        let mut end = 0;
        for Want { range, .. } in wants {
            let aligned = range.start.is_multiple_of(sector) && range.end.is_multiple_of(sector);
            if !aligned || range.start < end || range.start >= range.end || range.end > self.geometry.virtual_size {
                let message = format!(
                    "bytes {} to {} cannot be written: not whole sectors of the disk, in order",
                    range.start, range.end
                );
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            end = range.end;
        }
        Ok(())
    }

    fn step_for(&self, entry: &PayloadEntry, touched: &Touched) -> Step {
        let asked = Asked {
            data: touched.pieces.iter().any(|piece| piece.content == Content::Data),
            whole: touched.covers(self.bytes_in(touched.block)),
        };
        decide(entry.state, self.kind(), asked)
    }

    /// How many bytes of the disk `block` holds.
    pub(super) fn bytes_in(&self, block: u64) -> u64 {
        let start = block.saturating_mul(self.geometry.block_size);
        self.geometry.virtual_size.saturating_sub(start).min(self.geometry.block_size)
    }

    fn plan(&mut self, wants: &[Want], batch: &mut Batch) -> Result<()> {
        each_block(wants, self.geometry.block_size, &mut |touched| self.plan_block(&touched, batch))
    }

    fn plan_block(&mut self, touched: &Touched, batch: &mut Batch) -> Result<()> {
        let entry = self.payload_entry(touched.block)?;
        match self.step_for(&entry, touched) {
            Step::Nothing => Ok(()),
            Step::MakeZero => {
                let zero = PayloadEntry { state: PayloadState::Zero, offset: FileOffset(0) };
                batch.plan.changes.push(self.change(touched.block, zero, &entry));
                Ok(())
            }
            Step::InPlace => self.plan_in_place(touched, entry, batch),
            Step::Allocate { partial } => self.plan_new_block(touched, (entry, partial), batch),
        }
    }

    /// A change of `block` from `old` to `new` that touches no bits; frees the old space when the new entry has another.
    pub(super) fn change(&self, block: u64, new: PayloadEntry, old: &PayloadEntry) -> Change {
        let at = old.offset.get();
        let freed = (at != 0 && new.offset != old.offset).then(|| at..at.saturating_add(self.geometry.block_size));
        Change { block, entry: new, bits: Bits::default(), freed }
    }

    fn plan_in_place(&mut self, touched: &Touched, entry: PayloadEntry, batch: &mut Batch) -> Result<()> {
        batch.places.extend(touched.places(self.geometry.block_size, entry.offset, |_| true));
        if entry.state != PayloadState::PartiallyPresent {
            return Ok(());
        }
        let set = self.sectors_of(&touched.pieces);
        let mut change = self.change(touched.block, entry, &entry);
        let bits = self.block_bits(touched.block)?;
        if bits.all_set_with(&set) {
            change.entry.state = PayloadState::FullyPresent;
        } else if bits.has_all(&set) {
            return Ok(());
        } else {
            change.bits.set = set;
        }
        batch.plan.changes.push(change);
        Ok(())
    }

    fn plan_new_block(
        &mut self,
        touched: &Touched,
        (old, partial): (PayloadEntry, bool),
        batch: &mut Batch,
    ) -> Result<()> {
        let size = self.geometry.block_size;
        let Taken { range, fresh } = self.space()?.take(size);
        batch.plan.taken.push(range.clone());
        batch.end = batch.end.max(range.end);
        if !fresh {
            // Whatever lay here before must not show in what no want covers, nor after a growth of the disk.
            let mut at = 0;
            for piece in touched.pieces.iter().filter(|piece| piece.content == Content::Data) {
                self.zero_part(&range, at..piece.range.start)?;
                at = piece.range.end;
            }
            self.zero_part(&range, at..size)?;
        }
        let place = FileOffset(range.start);
        let data = |content| content == Content::Data;
        batch.places.extend(touched.places(size, place, data));
        let state = if partial { PayloadState::PartiallyPresent } else { PayloadState::FullyPresent };
        let mut change = self.change(touched.block, PayloadEntry { state, offset: place }, &old);
        if partial {
            let set = self.sectors_of(&touched.pieces);
            change.bits = Bits { clear: Some(0..self.geometry.sectors_per_block()), set };
            self.plan_bitmap(self.geometry.chunk_of(touched.block), batch)?;
        }
        batch.plan.changes.push(change);
        Ok(())
    }

    /// Zeroes bytes `part` of the block at `block`.
    fn zero_part(&self, block: &Range<u64>, part: Range<u64>) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        self.zero_file(block.start.saturating_add(part.start)..block.start.saturating_add(part.end))
    }

    /// Space for the bitmap of `chunk` if it has none. It is zeroed by the transaction that shows it.
    fn plan_bitmap(&mut self, chunk: u64, batch: &mut Batch) -> Result<()> {
        if self.bitmap_place(chunk)?.is_none() && !batch.plan.bitmaps.contains_key(&chunk) {
            let Taken { range, .. } = self.space()?.take(BITMAP_BLOCK_LEN);
            batch.end = batch.end.max(range.end);
            batch.plan.bitmaps.insert(chunk, FileOffset(range.start));
            batch.plan.taken.push(range);
        }
        Ok(())
    }

    /// A plan with `change` alone, with space for the bitmap it may need.
    pub(super) fn plan_change(&mut self, change: Change, taken: Vec<Range<u64>>) -> Result<Plan> {
        let mut batch = Batch { plan: Plan { taken, ..Plan::default() }, places: Vec::new(), end: 0 };
        if change.entry.state == PayloadState::PartiallyPresent {
            self.plan_bitmap(self.geometry.chunk_of(change.block), &mut batch)?;
        }
        batch.plan.changes.push(change);
        self.grow_file(batch.end)?;
        Ok(batch.plan)
    }

    /// The sectors of a block that `pieces` cover.
    fn sectors_of(&self, pieces: &[Piece]) -> Vec<Range<u64>> {
        pieces.iter().map(|piece| self.sectors(&piece.range)).collect()
    }

    /// The sectors of a block that bytes `range` of it lie in.
    pub(super) fn sectors(&self, range: &Range<u64>) -> Range<u64> {
        let sector = self.geometry.logical_sector;
        range.start.checked_div(sector).unwrap_or_default()..range.end.div_ceil(sector)
    }

    /// Forgets the reservation that is out, if one is; its space is free again.
    pub(super) fn drop_plan(&mut self) {
        if let Some(plan) = self.writer.plan.take() {
            self.give_back(&plan);
        }
    }

    fn give_back(&mut self, plan: &Plan) {
        if let Ok(space) = self.space() {
            for range in &plan.taken {
                space.release(range);
            }
        }
    }

    /// A partially present block whose chunk has no bitmap.
    pub(super) fn missing_bitmap(&self, block: u64) -> Error {
        let at = FileOffset(self.bat_offset(self.geometry.payload_index(block)));
        let found = format!("block {block} partially present without a sector bitmap");
        Error::corrupt(Problem::new(Structure::VhdxBat, Fault::State, found, "a sector bitmap block").at(at))
    }
}

#[cfg(test)]
pub(in crate::vhdx) mod tests;
