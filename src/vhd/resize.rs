//! Another virtual size.
//!
//! Owns: the order of writes that makes a disk longer or shorter. Must not know: whether anybody needs the part that is cut
//! off; who asks has made sure.
//!
//! A size is shown by the footers and changes last when it rises, first when it falls. Nothing past the end of a disk is
//! ever trusted: bits, entries and bytes that an interrupted change or another program left there are cleared before the
//! end moves over them.

use super::bat::{Bat, UNALLOCATED};
use super::create::fill_table;
use super::footer::size_rule;
use super::header::{Header, table_len};
use super::image::{Sparse, Vhd};
use super::raw::{FOOTER_LEN, HEADER_LEN, SECTOR_BYTES};
use super::space::{FILE_UNIT, overlap};
use crate::error::{Error, ErrorKind, Result};
use crate::link::{DiskKind, GrowAs};
use crate::map::{BlockMap, BlockSink, Content, Want};
use crate::units::{SECTOR, round_down, round_up};
use crate::zeros::is_zero;
use std::ops::Range;

/// Entries of a table copied or cleared at a time.
const TABLE_STEP: u64 = 16 << 10;
/// Bytes past the end of a disk looked at in one go.
const SCRUB_STEP: usize = 64 << 10;
/// Blocks that a growing differencing disk fills with zeros at a time.
const ZERO_BATCH: u64 = 1024;

impl Vhd {
    /// Whether such a disk can have `size` bytes.
    pub(crate) fn check_virtual_size(&self, size: u64) -> Result<()> {
        size_rule(size, self.kind()).map_err(|allowed| {
            let message = format_args!("a size of {size} bytes is not {allowed}");
            Error::new(ErrorKind::InvalidInput, message)
        })
    }

    /// Gives the disk `size` bytes: a multiple of 512, at most 2040 GiB unless it is fixed.
    ///
    /// New space reads as zeros, or in a differencing image as `grow` says. Space that is cut off is gone: shrinking and
    /// growing again shows it as new. A crash leaves the old size or the new one, and every byte both have.
    ///
    /// # Errors
    /// `InvalidInput` for a size no such disk can have; `ReadOnly`; `Refused` with a saved state; `Corrupt` when the block
    /// allocation table is broken; `NoSpace`; what the storage answers.
    pub fn set_virtual_size(&mut self, size: u64, grow: GrowAs) -> Result<()> {
        self.require_writable()?;
        self.check_virtual_size(size)?;
        self.pending = None;
        let old = self.virtual_size();
        match (size.cmp(&old), self.sparse.is_some()) {
            // A change that was cut short may have left something behind the end of the disk, or slack in front of a
            // fixed disk's footer.
            (std::cmp::Ordering::Equal, true) => self.finish_shrink(size),
            (std::cmp::Ordering::Equal, false) => self.cut_slack(),
            (std::cmp::Ordering::Greater, true) => self.grow_sparse(old, size, grow),
            (std::cmp::Ordering::Less, true) => self.shrink_sparse(size),
            (std::cmp::Ordering::Greater, false) => self.grow_fixed(old, size),
            (std::cmp::Ordering::Less, false) => self.shrink_fixed(size),
        }
    }

    /// A fixed disk has one footer, and it lies where the disk is to go on. So another one is written at the new end that
    /// still says the old size (the file then merely has slack), the old one is zeroed, and the size changes in place.
    ///
    /// Should only the new length of the file survive of the first step, the old footer is found behind the zeros.
    fn grow_fixed(&mut self, old: u64, size: u64) -> Result<()> {
        self.cut_slack()?;
        let old_len = self.store.len()?;
        self.store.write("the footer", self.footer.bytes(), size)?;
        self.store.sync()?;
        self.set_tail(size);
        self.store.zero("the new end of the disk", old..old_len)?;
        self.store.sync()?;
        self.write_footers(self.footer.with_size(size))
    }

    fn shrink_fixed(&mut self, size: u64) -> Result<()> {
        self.write_footers(self.footer.with_size(size))?;
        self.cut_slack()
    }

    /// Ends a fixed file right behind its disk.
    fn cut_slack(&mut self) -> Result<()> {
        let end = self.virtual_size();
        if end == self.tail_at {
            return Ok(());
        }
        self.store.write("the footer", self.footer.bytes(), end)?;
        self.store.sync()?;
        self.cut_behind(end)
    }

    fn grow_sparse(&mut self, old: u64, size: u64, grow: GrowAs) -> Result<()> {
        self.drop_batmap()?;
        let end = self.data_end()?;
        self.ensure_tail(end)?;
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let layout = sparse.bat.layout;
        let (old_blocks, new_blocks) = (layout.blocks(old), layout.blocks(size));
        self.scrub_last_block(sparse, old)?;
        // Also those that even the new size does not reach: an interrupted growth by more may have left some.
        self.clear_entries(sparse, old_blocks..sparse.bat.entries.into())?;
        self.set_data_end(None);
        self.set_table_size(old_blocks, new_blocks)?;
        if self.kind() == DiskKind::Differencing {
            // There is no word for zeros: a sector that must not show the parent has to hold them.
            self.fill_with_zeros(old..round_up(grow.zero_end(), SECTOR).unwrap_or(size).min(size))?;
        }
        // Up to here everything lies past the end, where nobody looks: all of it is durable before the end moves.
        self.store.sync()?;
        self.resized(size)
    }

    fn shrink_sparse(&mut self, size: u64) -> Result<()> {
        self.drop_batmap()?;
        // A table that cannot be believed is found out before anything changes.
        let end = self.data_end()?;
        self.ensure_tail(end)?;
        self.resized(size)?;
        self.cut_table(size)
    }

    /// Ends the table of a disk of `size` bytes with its last block, and leaves nothing behind the end of the disk.
    fn cut_table(&mut self, size: u64) -> Result<()> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let blocks = sparse.bat.layout.blocks(size);
        self.clear_entries(sparse, blocks..sparse.bat.entries.into())?;
        self.scrub_last_block(sparse, size)?;
        self.store.sync()?;
        self.set_data_end(None);
        self.set_table_size(blocks, blocks)?;
        self.trim()
    }

    /// Clears what an interrupted [`shrink_sparse`](Self::shrink_sparse) left: a table with more entries than the disk has
    /// blocks, which Windows refuses, and bits and bytes of the last block past the end.
    fn finish_shrink(&mut self, size: u64) -> Result<()> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        if sparse.bat.layout.blocks(size) < u64::from(sparse.bat.entries) {
            return self.cut_table(size);
        }
        if self.is_clear_past_end(sparse, size)? {
            return Ok(());
        }
        self.drop_batmap()?;
        let Some(sparse) = &self.sparse else { return Ok(()) };
        // Nothing shows it, so it need not be durable: who grows clears it again.
        self.scrub_last_block(sparse, size)
    }

    /// Whether the last block of a disk of `size` bytes has neither bits nor bytes past the end.
    fn is_clear_past_end(&self, sparse: &Sparse, size: u64) -> Result<bool> {
        let layout = sparse.bat.layout;
        let (block, within) = layout.split(size);
        let place = if within == 0 { None } else { sparse.bat.block(&self.store, block)? };
        let Some(at) = place else { return Ok(true) };
        let past = within / SECTOR..layout.block_size / SECTOR;
        let (set, run) = sparse.bat.bitmap_run(&self.store, at, past.clone())?;
        if set || run < past.end.saturating_sub(past.start) {
            return Ok(false);
        }
        // The part of a last block past the end of the disk need not be there.
        let end = at.saturating_add(layout.stride()).min(self.tail_at);
        let mut from = at.saturating_add(layout.bitmap_len).saturating_add(within);
        let mut buffer = vec![0; SCRUB_STEP];
        while let Some(data) = self.store.next_data(from)?.filter(|data| *data < end) {
            let len = usize::try_from(end.saturating_sub(data)).unwrap_or(usize::MAX).min(SCRUB_STEP);
            let part = buffer.get_mut(..len).unwrap_or_default();
            self.store.read("a block past the end of the disk", part, data)?;
            if !is_zero(part) {
                return Ok(false);
            }
            from = data.saturating_add(len as u64);
        }
        Ok(true)
    }

    /// Writes the footers that say `size`.
    fn resized(&mut self, size: u64) -> Result<()> {
        self.write_footers(self.footer.with_size(size))?;
        self.rebuild_bat(None);
        Ok(())
    }

    /// Takes over a header that is in its place, and the size the footer says.
    fn rebuild_bat(&mut self, header: Option<Header>) {
        let limits = (self.virtual_size(), self.tail_at);
        if let Some(sparse) = &mut self.sparse {
            sparse.header = header.unwrap_or_else(|| sparse.header.clone());
            sparse.bat = Bat::new(&sparse.header, sparse.header_at, limits);
        }
    }

    /// Clears what the last block of a disk of `size` bytes holds past the end: bits, then bytes.
    fn scrub_last_block(&self, sparse: &Sparse, size: u64) -> Result<()> {
        let layout = sparse.bat.layout;
        let (block, within) = layout.split(size);
        if within == 0 {
            return Ok(());
        }
        let Some(at) = sparse.bat.block(&self.store, block)? else { return Ok(()) };
        sparse.edit_bitmap(&self.store, at, within / SECTOR..layout.block_size / SECTOR, false)?;
        let data = at.saturating_add(layout.bitmap_len);
        self.store
            .zero("a block past the end of the disk", data.saturating_add(within)..at.saturating_add(layout.stride()))
    }

    /// Takes the places of `blocks` away.
    pub(super) fn clear_entries(&self, sparse: &Sparse, blocks: Range<u64>) -> Result<()> {
        let mut from = blocks.start;
        while from < blocks.end {
            let to = from.saturating_add(TABLE_STEP).min(blocks.end);
            let mut placed = Vec::new();
            sparse.bat.for_each(&self.store, from..to, |block, entry| {
                if entry != UNALLOCATED {
                    placed.push((block, UNALLOCATED));
                }
                Ok(())
            })?;
            sparse.write_entries(&self.store, &placed)?;
            from = to;
        }
        Ok(())
    }

    /// Makes the table exactly `blocks` entries long, of which the first `kept` keep what they say.
    ///
    /// The header's first sector holds all that changes, so the switch is one sector write.
    fn set_table_size(&mut self, kept: u64, blocks: u64) -> Result<()> {
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let entries = u32::try_from(blocks)
            .map_err(|_| Error::new(ErrorKind::InvalidInput, "more blocks than a block allocation table can have"))?;
        if entries == sparse.bat.entries {
            return Ok(());
        }
        let table_at = match entries.checked_sub(sparse.bat.entries) {
            None => sparse.bat.table.start,
            Some(_) if self.has_room(sparse, entries)? => {
                self.extend_table(sparse, entries)?;
                sparse.bat.table.start
            }
            Some(_) => self.move_table(kept.min(sparse.bat.entries.into()), entries)?,
        };
        self.store.sync()?;
        let Some(sparse) = &self.sparse else { return Ok(()) };
        let header = sparse.header.with_table(table_at, entries);
        let first_sector = header.bytes().get(..SECTOR_BYTES).unwrap_or_default();
        self.store.write("the dynamic header", first_sector, sparse.header_at)?;
        self.store.sync()?;
        self.rebuild_bat(Some(header));
        self.set_data_end(None);
        Ok(())
    }

    /// Whether nothing lies behind the table up to where a table of `entries` would end.
    fn has_room(&self, sparse: &Sparse, entries: u32) -> Result<bool> {
        let table = &sparse.bat.table;
        let wanted = table.end..table.start.saturating_add(table_len(entries));
        if wanted.is_empty() {
            return Ok(true);
        }
        let header = sparse.header_at..sparse.header_at.saturating_add(HEADER_LEN);
        let footer = self.tail_at..self.tail_at.saturating_add(FOOTER_LEN);
        let blocks = sparse.bat.usage(&self.store)?;
        let blocks = blocks.first..blocks.end;
        let mut others = sparse.locators.areas.iter().chain([&header, &footer, &blocks]);
        Ok(!others.any(|other| overlap(other, &wanted)))
    }

    /// Writes the entries behind the table that a longer one adds, and its padding.
    fn extend_table(&self, sparse: &Sparse, entries: u32) -> Result<()> {
        let table = &sparse.bat.table;
        let old_end = sparse.bat.entry_at(sparse.bat.entries.into());
        if old_end < table.end {
            let at = table.end.saturating_sub(SECTOR);
            let mut bytes = [0; SECTOR_BYTES];
            self.store.read("the block allocation table", &mut bytes, at)?;
            let kept = usize::try_from(old_end.saturating_sub(at)).unwrap_or(usize::MAX);
            bytes.get_mut(kept..).unwrap_or_default().fill(0xFF);
            self.store.write("the block allocation table", &bytes, at)?;
        }
        fill_table(&self.store, table.end..table.start.saturating_add(table_len(entries)))
    }

    /// Writes a table of `entries` behind the data, the first `kept` of them as they are now, and answers where it starts.
    fn move_table(&mut self, kept: u64, entries: u32) -> Result<u64> {
        let end = self.data_end()?;
        let start = round_up(end, FILE_UNIT).unwrap_or(end);
        let new_end = start.saturating_add(table_len(entries));
        self.ensure_tail(new_end)?;
        let Some(sparse) = &self.sparse else { return Ok(start) };
        let copied = start.saturating_add(kept.saturating_mul(4));
        fill_table(&self.store, round_down(copied, SECTOR)..new_end)?;
        let mut from = 0;
        while from < kept {
            let to = from.saturating_add(TABLE_STEP).min(kept);
            let mut bytes = Vec::with_capacity(usize::try_from(TABLE_STEP.saturating_mul(4)).unwrap_or(0));
            sparse.bat.for_each(&self.store, from..to, |_, entry| {
                bytes.extend(entry.to_be_bytes());
                Ok(())
            })?;
            self.store.write("the block allocation table", &bytes, start.saturating_add(from.saturating_mul(4)))?;
            from = to;
        }
        Ok(start)
    }

    /// Gives every sector of `range`, which lies past the end of the disk, a bit and zeros: the parent must not show.
    fn fill_with_zeros(&mut self, range: Range<u64>) -> Result<()> {
        let batch = BlockSink::block_size(self).saturating_mul(ZERO_BATCH);
        let mut at = range.start;
        while at < range.end {
            let next = round_down(at, batch).saturating_add(batch).min(range.end);
            let reservation = self.reserve_unchecked(vec![Want { range: at..next, content: Content::Zero }])?;
            for place in reservation.places() {
                self.store
                    .zero("a block of a growing disk", place.at.get()..place.at.get().saturating_add(place.len))?;
            }
            // The block that the old end lies in shows by its bitmap what it showed.
            self.store.sync()?;
            self.publish(reservation)?;
            at = next;
        }
        Ok(())
    }
}
