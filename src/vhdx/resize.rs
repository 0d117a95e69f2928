//! Changing the virtual size.
//!
//! Owns: the order in which a disk grows or shrinks so that at every instant it is one or the other, and that a range
//! which once lay outside the disk never shows what it held before. Must not know: how pages reach the file (`txn`).
//!
//! Growing: everything the new range needs is put in order first, past the end, where nobody looks; the size comes last.
//! Shrinking: the size comes first; what lies past the new end is then cleared. If that is cut short, growing again
//! clears it, and so does asking once more for the size the disk has.

mod table;

use super::bat::{Geometry, PayloadEntry, PayloadState};
use super::image::Vhdx;
use super::metadata::{DiskMetadata, Metadata};
use super::raw::{BAT_ENTRY_LEN, ITEM_VIRTUAL_SIZE};
use super::session::Seen;
use super::txn::Transaction;
use super::write::{Bits, Change};
use crate::error::{Error, ErrorKind, Result};
use crate::link::GrowAs;
use crate::problem::{Fault, Problem, Structure};
use crate::units::FileOffset;
use crate::zeros::is_zero;
use std::ops::Range;

/// How much of a moving BAT one read takes.
const COPY_LEN: usize = 1 << 20;

impl Vhdx {
    /// Whether such a disk can have `size` bytes.
    pub(crate) fn check_virtual_size(&self, size: u64) -> Result<()> {
        let disk = DiskMetadata { virtual_size: size, ..self.metadata.disk };
        let Some((_, problem)) = disk.broken_rule() else { return Ok(()) };
        let message = format!("{}; allowed is {}", problem.found, problem.allowed);
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    /// Makes the disk `size` bytes long: a multiple of the logical sector, up to 64 TiB. Durable on return.
    ///
    /// A new range reads as `grow_as` says, and in an image without a parent as zeros. Shrinking drops what lies past the
    /// end for good; its space is used again. Fixed disks stay fully allocated. A reservation that is out is taken back.
    /// Asking for the size the disk has finishes a change that was cut short, and otherwise writes nothing.
    ///
    /// # Errors
    /// `InvalidInput` for a size the format does not allow; `ReadOnly`; `NoSpace`; `Corrupt`; what the storage answers.
    /// The disk then has the old or the new size.
    pub fn set_virtual_size(&mut self, size: u64, grow_as: GrowAs) -> Result<()> {
        self.require_writable()?;
        self.check_virtual_size(size)?;
        let disk = DiskMetadata { virtual_size: size, ..self.metadata.disk };
        if size == self.geometry.virtual_size {
            return self.finish_shrink();
        }
        self.begin(Seen::ByGuest)?;
        self.drop_plan();
        if size > self.geometry.virtual_size { self.grow(disk, grow_as) } else { self.shrink(disk) }
    }

    fn grow(&mut self, disk: DiskMetadata, grow_as: GrowAs) -> Result<()> {
        let new = Geometry::new(&disk);
        if u64::from(self.regions.bat().length) < new.entries().saturating_mul(BAT_ENTRY_LEN) {
            self.move_bat(new.region_len())?;
        }
        // Whatever an interrupted change left there, for the part that even the new size does not reach.
        self.clear_entries_past_end()?;
        self.clear_bits_past_end()?;
        self.open_last_block(&new, grow_as)?;
        self.fill_table(&new, grow_as)?;
        // Zeroed blocks must be zero on the medium before the size shows them.
        self.settle()?;
        let mut last = Transaction::new();
        self.write_size(&mut last, disk.virtual_size)?;
        self.commit(&last, &mut Vec::new())?;
        self.take_size(disk);
        Ok(())
    }

    fn shrink(&mut self, disk: DiskMetadata) -> Result<()> {
        let old = self.geometry;
        let mut first = Transaction::new();
        self.write_size(&mut first, disk.virtual_size)?;
        self.clear_table(first, &old, &Geometry::new(&disk))?;
        self.take_size(disk);
        self.close_last_block()?;
        self.cut_tail()
    }

    /// Clears what an interrupted [`shrink`](Self::shrink) left past the end. Nobody can see it, so no id changes.
    fn finish_shrink(&mut self) -> Result<()> {
        if self.is_clear_past_end()? {
            return Ok(());
        }
        self.begin(Seen::ByNobody)?;
        self.drop_plan();
        self.clear_entries_past_end()?;
        // Nothing shows it, so it need not be durable: who grows clears it again.
        self.close_last_block()
    }

    /// Whether entries, bits and bytes past the end of the disk are all zero.
    fn is_clear_past_end(&self) -> Result<bool> {
        if !self.entries_past_end()?.is_empty() || !self.bits_past_end()?.is_empty() {
            return Ok(false);
        }
        let Some((block, inside)) = self.last_block() else { return Ok(true) };
        let entry = self.payload_entry(block)?;
        if !entry.is_present() {
            return Ok(true);
        }
        let start = entry.offset.get();
        self.reads_as_zero(start.saturating_add(inside)..start.saturating_add(self.geometry.block_size))
    }

    /// Whether `range` of the file, as far as the file reaches, holds nothing but zeros.
    fn reads_as_zero(&self, range: Range<u64>) -> Result<bool> {
        let failed = |error| Error::io("read a block", error).with_offset(FileOffset(range.start));
        let end = range.end.min(self.file_len()?);
        let mut buffer = vec![0; COPY_LEN];
        let mut at = range.start;
        while let Some(data) = self.storage.next_data(at).map_err(failed)?.filter(|data| *data < end) {
            let len = usize::try_from(end.saturating_sub(data)).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..len).unwrap_or_default();
            self.storage.read_exact_at(part, data).map_err(failed)?;
            if !is_zero(part) {
                return Ok(false);
            }
            at = data.saturating_add(len as u64);
        }
        Ok(true)
    }

    fn write_size(&self, to: &mut Transaction, size: u64) -> Result<()> {
        let missing = || {
            let problem = Problem::new(Structure::VhdxMetadata, Fault::Missing, "no virtual disk size", "one");
            Error::corrupt(problem.at(self.metadata.at))
        };
        let item = self.metadata.item(ITEM_VIRTUAL_SIZE, false).ok_or_else(missing)?;
        to.write(&self.pages, self.metadata.place_of(item).get(), &size.to_le_bytes())
    }

    fn take_size(&mut self, disk: DiskMetadata) {
        let metadata = Metadata { disk, ..self.metadata.clone() };
        self.set_layout(self.regions.clone(), metadata);
    }

    /// The last block when the disk ends inside it, and how many bytes of it are the disk's.
    fn last_block(&self) -> Option<(u64, u64)> {
        let geometry = &self.geometry;
        let inside = geometry.virtual_size.checked_rem(geometry.block_size).unwrap_or_default();
        (inside > 0).then(|| (geometry.virtual_size.checked_div(geometry.block_size).unwrap_or_default(), inside))
    }

    /// Makes the part of the last block that lies past the end read as `grow_as` once the disk covers it. What the disk
    /// shows now stays.
    fn open_last_block(&mut self, new: &Geometry, grow_as: GrowAs) -> Result<()> {
        let Some((block, inside)) = self.last_block() else { return Ok(()) };
        let start = block.saturating_mul(new.block_size);
        let tail = inside..new.virtual_size.saturating_sub(start).min(new.block_size);
        let entry = self.payload_entry(block)?;
        let zero = grow_as.zero_end() > self.geometry.virtual_size;
        let to_parent = self.geometry.differencing && !zero;
        match entry.state {
            PayloadState::FullyPresent if to_parent => {
                self.change_bits((block, entry), vec![self.sectors(&(0..inside))], Vec::new())
            }
            PayloadState::FullyPresent => self.zero_tail(&entry, inside),
            PayloadState::PartiallyPresent if to_parent => self.clear_tail_bits(block, entry, inside),
            PayloadState::PartiallyPresent => {
                self.zero_tail(&entry, inside)?;
                let change = self.change(block, entry, &entry);
                let bits = Bits { clear: None, set: vec![self.sectors(&tail)] };
                self.install_one(Change { bits, ..change }, Vec::new())
            }
            PayloadState::NotPresent if self.geometry.differencing && zero => self.partial_zeros((block, entry), tail),
            PayloadState::Undefined | PayloadState::Zero | PayloadState::Unmapped if to_parent => {
                self.partial_zeros((block, entry), 0..inside)
            }
            _ => Ok(()),
        }
    }

    /// Clears what the last block and its chunk's bitmap hold past the end of the disk, for whoever grows it again.
    fn close_last_block(&mut self) -> Result<()> {
        if let Some((block, inside)) = self.last_block() {
            let entry = self.payload_entry(block)?;
            if entry.is_present() {
                self.zero_tail(&entry, inside)?;
            }
        }
        self.clear_bits_past_end()
    }

    /// Zeroes a present block from byte `inside` on; durable on return.
    fn zero_tail(&mut self, entry: &PayloadEntry, inside: u64) -> Result<()> {
        let start = entry.offset.get();
        let end = start.saturating_add(self.geometry.block_size);
        self.zero_file(start.saturating_add(inside)..end)?;
        self.settle()
    }

    fn clear_tail_bits(&mut self, block: u64, entry: PayloadEntry, inside: u64) -> Result<()> {
        let change = self.change(block, entry, &entry);
        let clear = Some(self.sectors(&(inside..self.geometry.block_size)));
        self.install_one(Change { bits: Bits { clear, set: Vec::new() }, ..change }, Vec::new())
    }

    /// Makes the block partially present in new, zeroed space, with `part` of it (in bytes) its own.
    fn partial_zeros(&mut self, (block, old): (u64, PayloadEntry), part: Range<u64>) -> Result<()> {
        let range = self.take_zeroed(self.geometry.block_size)?;
        // The zeros are durable before the entry shows them.
        self.settle()?;
        let entry = PayloadEntry { state: old.state, offset: FileOffset(range.start) };
        let freed = self.change(block, entry, &old).freed;
        self.change_bits((block, entry), vec![self.sectors(&part)], vec![range])?;
        freed.map_or(Ok(()), |range| {
            self.space()?.release(&range);
            Ok(())
        })
    }

    /// Makes the block partially present where it is, with exactly the sectors `set` its own.
    fn change_bits(
        &mut self,
        (block, entry): (u64, PayloadEntry),
        set: Vec<Range<u64>>,
        taken: Vec<Range<u64>>,
    ) -> Result<()> {
        let partial = PayloadEntry { state: PayloadState::PartiallyPresent, offset: entry.offset };
        let bits = Bits { clear: Some(0..self.geometry.sectors_per_block()), set };
        self.install_one(Change { block, entry: partial, bits, freed: None }, taken)
    }

    fn install_one(&mut self, change: Change, taken: Vec<Range<u64>>) -> Result<()> {
        let plan = self.plan_change(change, taken)?;
        self.install(plan)
    }

    /// Gives the BAT a region of `len` bytes elsewhere. The disk stays as it is.
    fn move_bat(&mut self, len: u64) -> Result<()> {
        let old = self.regions.bat().range();
        let range = self.take_zeroed(len)?;
        let copied = self.copy_file(&old, range.start).and_then(|()| self.settle());
        self.pages.forget(&range);
        copied?;
        self.move_regions(self.regions.with_bat(&range), self.metadata.clone(), old)
    }

    /// Copies what is not a hole of `from` to `to`, where zeros are.
    fn copy_file(&self, from: &Range<u64>, to: u64) -> Result<()> {
        let failed = |error| Error::io("move the BAT", error).with_offset(FileOffset(from.start));
        let end = from.end.min(self.file_len()?);
        let mut buffer = vec![0; COPY_LEN];
        let mut at = from.start;
        while let Some(data) = self.storage.next_data(at).map_err(failed)?.filter(|data| *data < end) {
            let len = usize::try_from(end.saturating_sub(data)).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..len).unwrap_or_default();
            self.storage.read_exact_at(part, data).map_err(failed)?;
            let target = to.saturating_add(data.saturating_sub(from.start));
            self.storage.write_all_at(part, target).map_err(failed)?;
            at = data.saturating_add(len as u64);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
