//! Making the file no longer than its blocks.
//!
//! Owns: which entries may lose their space, where the file can end, and the entries that follow a moved block.
//! Must not know: why a block is given up; how bytes are copied; how a change reaches the file (`txn`).
//!
//! Payload blocks and sector bitmap blocks move; headers, log and regions stay where they are. Moving changes nothing a
//! guest sees, so the DataWriteGuid stays, and with it the children ([MS-VHDX] 2.2.2). The file is cut after the log is
//! marked empty: while there is a log to replay, the file is as long as its entries say.

use super::bat::{PayloadEntry, PayloadState, Slot, decode_bitmap, encode_bitmap};
use super::image::Vhdx;
use super::raw::{BAT_ENTRY_LEN, BITMAP_BLOCK_LEN};
use super::session::Seen;
use super::space::Space;
use super::txn::Transaction;
use super::write::Plan;
use crate::error::{Error, Result};
use crate::pack::{Block, Blocks, Held, Marks, Pack, Packing, Relocation, smallest};
use crate::problem::Fault;
use crate::units::{FileOffset, MIB};
use std::ops::Range;
use std::slice;

/// Where things are, in MiB: one bit each.
struct Layout {
    space: Space,
    payload: Marks,
    bitmaps: Marks,
    /// Where headers, log and regions end.
    fixed_end: u64,
}

impl Layout {
    /// Whether all that ends behind `limit` (in MiB) finds room before it.
    fn fits(&self, limit: u64, block: u64) -> bool {
        // What starts so late that it ends behind the limit.
        let payload = self.payload.count_from((limit.saturating_add(1)).saturating_sub(block));
        let bitmaps = self.bitmaps.count_from(limit);
        let (mut room, mut slots) = (0u64, 0u64);
        self.space.each_gap(limit, &mut |gap| {
            let len = gap.end.saturating_sub(gap.start);
            room = room.saturating_add(len);
            slots = slots.saturating_add(len.checked_div(block).unwrap_or(0));
        });
        slots >= payload && room.saturating_sub(payload.saturating_mul(block)) >= bitmaps
    }
}

impl Vhdx {
    fn layout(&mut self, without: &Marks) -> Result<Layout> {
        self.take_stock()?;
        let mut space = self.space()?.clone();
        let (mut payload, mut bitmaps) = (Marks::default(), Marks::default());
        let geometry = self.geometry;
        self.scan_bat(&mut |index, raw| {
            match geometry.slot(index) {
                Slot::Payload(block) if block < geometry.blocks() => {
                    let decoded = PayloadEntry::decode(raw, geometry.differencing);
                    let at = decoded.map(|entry| entry.offset.get()).unwrap_or_default();
                    if at != 0 && without.get(block) {
                        space.release(&(at..at.saturating_add(geometry.block_size)));
                    } else if at != 0 {
                        payload.set(at / MIB);
                    }
                }
                Slot::Bitmap(chunk) if chunk < geometry.chunks() => {
                    if let Ok(Some(at)) = decode_bitmap(raw, geometry.differencing) {
                        bitmaps.set(at.get() / MIB);
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        let fixed_end = self.occupied.last().map_or(1, |range| range.end.div_ceil(MIB));
        Ok(Layout { space, payload, bitmaps, fixed_end })
    }

    /// Where the block or bitmap at `index` of the table is and its length, when it has space that ends behind `limit`.
    fn behind(&self, index: u64, limit: u64) -> Result<Option<(FileOffset, u64)>> {
        let (at, len) = match self.geometry.slot(index) {
            Slot::Payload(block) if block < self.geometry.blocks() => {
                (self.payload_entry(block)?.offset, self.geometry.block_size)
            }
            Slot::Bitmap(chunk) if chunk < self.geometry.chunks() => {
                (self.bitmap_place(chunk)?.unwrap_or_default(), BITMAP_BLOCK_LEN)
            }
            _ => return Ok(None),
        };
        let behind = at.get() != 0 && at.get().saturating_add(len) > limit;
        Ok(behind.then_some((at, len)))
    }

    /// How much of the `len` bytes at `at` the file has. It may end inside its last block, if the disk ends before it does.
    fn there(&self, index: u64, at: FileOffset, len: u64) -> Result<u64> {
        let there = self.file_len()?.saturating_sub(at.get()).min(len);
        let read = match self.geometry.slot(index) {
            Slot::Payload(block) => self.bytes_in(block),
            Slot::Bitmap(_) => len,
        };
        if there < read {
            let found = format!("a block at {at} of which the file has {there} bytes");
            return Err(self.bad_entry(index, Fault::Range, &found, &format!("at least {read}")));
        }
        Ok(there)
    }

    /// The index of the next payload block from `index` on, below `end`, in another state than 0.
    fn next_stated(&self, index: u64, end: u64) -> Result<u64> {
        let mut at = index;
        while at < end {
            let (reached, goes_on) = self.skip_unwritten(at, end)?;
            at = reached;
            if !goes_on {
                break;
            }
        }
        Ok(at.min(end))
    }

    /// The index of the next thing that may have to move, `None` when all were looked at: blocks first, then bitmaps, for
    /// those fit into what is left between blocks, and the other way round not always.
    fn next_thing(&self, packing: &mut Packing) -> Result<Option<u64>> {
        if packing.pass == 0 {
            let end = self.geometry.entries();
            let index = self.next_stated(packing.next, end)?;
            if index < end {
                packing.next = index.saturating_add(1);
                return Ok(Some(index));
            }
            (packing.pass, packing.next, packing.room) = (1, 0, 0);
        }
        let chunk = packing.next;
        packing.next = chunk.saturating_add(1);
        let there = self.geometry.differencing && chunk < self.geometry.chunks();
        Ok(there.then(|| self.geometry.bitmap_index(chunk)))
    }

    /// What `block` holds; `None` when it has no space.
    fn held(&self, block: u64) -> Result<Option<Held>> {
        let entry = self.payload_entry(block)?;
        Ok(match entry.state {
            PayloadState::NotPresent | PayloadState::Zero => None,
            PayloadState::Undefined | PayloadState::Unmapped => (entry.offset.get() != 0).then_some(Held::Nothing),
            PayloadState::FullyPresent => Some(Held::All),
            PayloadState::PartiallyPresent if self.block_bits(block)?.none_set() => Some(Held::Nothing),
            PayloadState::PartiallyPresent => Some(Held::Part),
        })
    }

    /// Shows sector bitmaps in their new places.
    fn moved_bitmaps(&mut self, moves: &[Relocation]) -> Result<()> {
        let max = self.session()?.max_entry();
        let (mut transaction, mut freed) = (Transaction::new(), Vec::new());
        for one in moves {
            let at = self.bat_offset(one.slot);
            let here = at..at.saturating_add(BAT_ENTRY_LEN);
            if transaction.entry_len_with(slice::from_ref(&here), 0) > max {
                self.commit(&std::mem::take(&mut transaction), &mut freed)?;
            }
            self.pages.forget(&space_of(one.to, one.len));
            transaction.write(&self.pages, at, &encode_bitmap(Some(one.to)).to_le_bytes())?;
            freed.push(space_of(one.from, one.len));
        }
        self.commit(&transaction, &mut freed)
    }
}

impl Pack for Vhdx {
    fn blocks(&self, from: u64, limit: usize) -> Result<Blocks> {
        let (geometry, mut list) = (self.geometry, Vec::new());
        let end = geometry.entries();
        let mut index = geometry.payload_index(from);
        while list.len() < limit {
            index = self.next_stated(index, end)?;
            if index >= end {
                return Ok(Blocks { list, next: None });
            }
            if let Slot::Payload(number) = geometry.slot(index) {
                if number >= geometry.blocks() {
                    return Ok(Blocks { list, next: None });
                }
                if let Some(held) = self.held(number)? {
                    list.push(Block { number, range: self.disk_range(number), held });
                }
            }
            index = index.saturating_add(1);
        }
        let next = geometry.offset_of(index).checked_div(geometry.block_size);
        Ok(Blocks { list, next: next.filter(|next| *next < geometry.blocks()) })
    }

    fn give_up(&mut self, blocks: &[u64], shows: bool) -> Result<()> {
        self.begin(if shows { Seen::ByGuest } else { Seen::ByNobody })?;
        self.drop_plan();
        let mut plan = Plan::default();
        for &block in blocks {
            let old = self.payload_entry(block)?;
            // A partial block that is not to change has no sectors of its own.
            let absent = old.state == PayloadState::PartiallyPresent && !shows;
            let state = if absent { PayloadState::NotPresent } else { PayloadState::Zero };
            plan.changes.push(self.change(block, PayloadEntry { state, offset: FileOffset(0) }, &old));
        }
        self.install(plan)
    }

    fn packing(&mut self, without: &Marks) -> Result<Packing> {
        let layout = self.layout(without)?;
        let block = self.geometry.block_size / MIB;
        let used = layout.space.unowned().1;
        let limit = smallest(layout.fixed_end..(used / MIB).max(layout.fixed_end), |limit| layout.fits(limit, block));
        let limit = limit.saturating_mul(MIB);
        Ok(Packing { file_size: limit.min(self.file_len()?), limit, ..Packing::default() })
    }

    fn next_moves(&mut self, packing: &mut Packing, max: u64) -> Result<Vec<Relocation>> {
        let (mut moves, mut bytes) = (Vec::new(), 0u64);
        while bytes < max {
            let Some(index) = self.next_thing(packing)? else { break };
            let Some((from, len)) = self.behind(index, packing.limit)? else { continue };
            if moves.is_empty() {
                self.begin(Seen::ByNobody)?;
                self.drop_plan();
            }
            // The count said that there is room; without it the thing stays, and the file is longer.
            let Some(room) = self.space()?.take_within(len, packing.room..packing.limit) else { continue };
            packing.room = room.end;
            let len = self.there(index, from, len)?;
            moves.push(Relocation { slot: index, from, to: FileOffset(room.start), len });
            bytes = bytes.saturating_add(len);
        }
        Ok(moves)
    }

    fn moved(&mut self, moves: &[Relocation]) -> Result<()> {
        let (bitmaps, blocks): (Vec<_>, Vec<_>) =
            moves.iter().copied().partition(|one| self.geometry.is_bitmap(one.slot));
        let mut plan = Plan::default();
        for one in &blocks {
            let Slot::Payload(block) = self.geometry.slot(one.slot) else { continue };
            let old = self.payload_entry(block)?;
            plan.changes.push(self.change(block, PayloadEntry { offset: one.to, ..old }, &old));
        }
        self.install(plan)?;
        self.moved_bitmaps(&bitmaps)
    }

    fn cut(&mut self) -> Result<()> {
        self.take_stock()?;
        let used = self.space()?.unowned().1;
        if used < self.file_len()? {
            // The session that ends here gave the file its new id, as every change must.
            self.begin(Seen::ByNobody)?;
        }
        self.end_session()?;
        if used < self.file_len()? {
            let failed = |error| Error::io("cut the file", error).with_offset(FileOffset(used));
            self.storage.set_len(used).map_err(failed)?;
            self.pages.forget(&(used..u64::MAX));
            self.storage.sync().map_err(failed)?;
        }
        self.forget_stock();
        Ok(())
    }
}

fn space_of(at: FileOffset, len: u64) -> Range<u64> {
    at.get()..at.get().saturating_add(len)
}
