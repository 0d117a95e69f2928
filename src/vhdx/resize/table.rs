//! The BAT's entries between two sizes.
//!
//! Owns: what every entry past the end of the smaller size is to be. Must not know: the order of a resize.

use crate::bitmap::{self, BitOrder};
use crate::error::{Error, Result};
use crate::link::{DiskKind, GrowAs};
use crate::units::{FileOffset, round_down};
use crate::vhdx::bat::{Geometry, PayloadEntry, PayloadState, Slot, decode_bitmap};
use crate::vhdx::image::Vhdx;
use crate::vhdx::log::PAGE;
use crate::vhdx::raw::{BAT_ENTRY_LEN, BITMAP_BLOCK_LEN, CHUNK_SECTORS};
use crate::vhdx::txn::Transaction;
use std::ops::Range;
use std::slice;

const BITS_PER_PAGE: u64 = PAGE * 8;

/// The indices after the last payload block of `geometry` up to `end`.
fn past(geometry: &Geometry, end: u64) -> Range<u64> {
    let used = geometry.blocks().checked_sub(1).map_or(0, |last| geometry.payload_index(last).saturating_add(1));
    used..end.max(used)
}

impl Vhdx {
    /// Writes the entries a larger disk of shape `new` has and this one has not. A table has old entries, or anything,
    /// past the end of its disk.
    pub(super) fn fill_table(&mut self, new: &Geometry, grow_as: GrowAs) -> Result<()> {
        let old = self.geometry;
        let kind = self.kind();
        // Absent is what zero bytes mean, and holes of the file have those.
        let absent = |block: u64| match kind {
            DiskKind::Fixed => false,
            DiskKind::Dynamic => true,
            DiskKind::Differencing => block.saturating_mul(new.block_size) >= grow_as.zero_end(),
        };
        let mut transaction = Transaction::new();
        for page in in_pages(&past(&old, new.entries())) {
            let before = self.entries_of(&page)?;
            let mut after = Vec::with_capacity(before.len());
            for (index, raw) in page.clone().zip(&before) {
                after.push(match new.slot(index) {
                    Slot::Bitmap(chunk) if new.differencing && chunk < old.chunks() => *raw,
                    Slot::Payload(block) if block < new.blocks() && !absent(block) => self.new_block(kind)?.encode(),
                    _ => 0,
                });
            }
            self.replace_entries(&mut transaction, &page, (&before, &after))?;
        }
        self.commit(&transaction, &mut Vec::new())
    }

    /// The entry of a block of the new range that is more than absent: in a fixed disk zeroed space, else ZERO.
    fn new_block(&mut self, kind: DiskKind) -> Result<PayloadEntry> {
        if kind != DiskKind::Fixed {
            return Ok(PayloadEntry { state: PayloadState::Zero, offset: FileOffset(0) });
        }
        let range = self.take_zeroed(self.geometry.block_size)?;
        Ok(PayloadEntry { state: PayloadState::FullyPresent, offset: FileOffset(range.start) })
    }

    /// Clears the entries that a disk of shape `old` has and a smaller one of shape `new` has not, `first` with the first
    /// of them. Their space is free then.
    pub(super) fn clear_table(&mut self, first: Transaction, old: &Geometry, new: &Geometry) -> Result<()> {
        let (mut transaction, mut freed) = (first, Vec::new());
        for page in in_pages(&past(new, old.entries())) {
            let before = self.entries_of(&page)?;
            let keeps =
                |index| matches!(old.slot(index), Slot::Bitmap(chunk) if old.differencing && chunk < new.chunks());
            let after: Vec<u64> =
                page.clone().zip(&before).map(|(index, raw)| if keeps(index) { *raw } else { 0 }).collect();
            if self.is_full(&transaction, &page)? {
                self.commit(&std::mem::take(&mut transaction), &mut freed)?;
            }
            for (index, raw) in page.clone().zip(&before).filter(|(index, _)| !keeps(*index)) {
                freed.extend(space_of(old, index, *raw));
            }
            self.replace_entries(&mut transaction, &page, (&before, &after))?;
        }
        self.commit(&transaction, &mut freed)
    }

    /// The pages of the table, as ranges of indices, that hold anything past the end of the disk.
    pub(super) fn entries_past_end(&self) -> Result<Vec<Range<u64>>> {
        let geometry = self.geometry;
        let capacity = u64::from(self.regions.bat().length).checked_div(BAT_ENTRY_LEN).unwrap_or_default();
        let end = self.regions.bat().range().end;
        let mut pages = Vec::new();
        for page in in_pages(&past(&geometry, capacity)) {
            let at = self.bat_offset(page.start);
            let failed = |error| Error::io("read the BAT", error).with_offset(FileOffset(at));
            let data = self.storage.next_data(at).map_err(failed)?;
            if data.is_none_or(|data| data >= end) {
                break;
            }
            if data >= Some(self.bat_offset(page.end)) {
                continue;
            }
            if page
                .clone()
                .zip(self.entries_of(&page)?)
                .any(|(index, raw)| raw != 0 && !is_last_bitmap(&geometry, index))
            {
                pages.push(page);
            }
        }
        Ok(pages)
    }

    /// Clears the entries past the end of the disk, whatever they say. Nothing of what they point to is known to be in use,
    /// so there is nothing to give back.
    pub(super) fn clear_entries_past_end(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let mut transaction = Transaction::new();
        for page in self.entries_past_end()? {
            let before = self.entries_of(&page)?;
            let kept = |(index, raw): (u64, &u64)| if is_last_bitmap(&geometry, index) { *raw } else { 0 };
            let after: Vec<u64> = page.clone().zip(&before).map(kept).collect();
            self.replace_entries(&mut transaction, &page, (&before, &after))?;
        }
        self.commit(&transaction, &mut Vec::new())
    }

    /// The pages of the bitmap of the disk's last chunk that have bits set past the end of the disk: where they are in the
    /// file, and the first bit of each that is past the end.
    pub(super) fn bits_past_end(&self) -> Result<Vec<(u64, u64)>> {
        let chunk = self.geometry.chunks().saturating_sub(1);
        let bitmap = if self.geometry.differencing { self.bitmap_place(chunk)? } else { None };
        let Some(bitmap) = bitmap else { return Ok(Vec::new()) };
        let sectors = self.sectors(&(0..self.geometry.virtual_size)).end;
        let used = sectors.saturating_sub(chunk.saturating_mul(CHUNK_SECTORS));
        let mut pages = Vec::new();
        let mut at = round_down(used >> 3, PAGE);
        while at < BITMAP_BLOCK_LEN {
            let place = bitmap.get().saturating_add(at);
            let failed = |error| Error::io("read a sector bitmap", error).with_offset(FileOffset(place));
            let first = used.saturating_sub(at << 3);
            let page = self.pages.read(place).map_err(failed)?;
            let (set, run) = bitmap::run(&page[..], BitOrder::LsbFirst, first..BITS_PER_PAGE);
            if set || run < BITS_PER_PAGE.saturating_sub(first) {
                pages.push((place, first));
            }
            at = at.saturating_add(PAGE);
        }
        Ok(pages)
    }

    /// Clears the bits past the end of the disk in the bitmap of its last chunk.
    pub(super) fn clear_bits_past_end(&mut self) -> Result<()> {
        let mut transaction = Transaction::new();
        for (place, first) in self.bits_past_end()? {
            let here = place..place.saturating_add(PAGE);
            if transaction.entry_len_with(slice::from_ref(&here), 0) > self.session()?.max_entry() {
                self.commit(&std::mem::take(&mut transaction), &mut Vec::new())?;
            }
            let page = transaction.page_mut(&self.pages, place)?;
            bitmap::fill(page, BitOrder::LsbFirst, first..BITS_PER_PAGE, false);
        }
        self.commit(&transaction, &mut Vec::new())
    }

    fn entries_of(&self, indices: &Range<u64>) -> Result<Vec<u64>> {
        let at = self.bat_offset(indices.start);
        let len = indices.end.saturating_sub(indices.start).saturating_mul(BAT_ENTRY_LEN);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        let failed = |error| Error::io("read the BAT", error).with_offset(FileOffset(at));
        self.pages.read_exact_at(&mut bytes, at).map_err(failed)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    fn is_full(&mut self, transaction: &Transaction, indices: &Range<u64>) -> Result<bool> {
        let range = self.bat_offset(indices.start)..self.bat_offset(indices.end);
        Ok(transaction.entry_len_with(slice::from_ref(&range), 0) > self.session()?.max_entry())
    }

    fn replace_entries(
        &mut self,
        to: &mut Transaction,
        indices: &Range<u64>,
        (before, after): (&[u64], &[u64]),
    ) -> Result<()> {
        if before == after {
            return Ok(());
        }
        if self.is_full(to, indices)? {
            self.commit(&std::mem::take(to), &mut Vec::new())?;
        }
        let bytes: Vec<u8> = after.iter().flat_map(|raw| raw.to_le_bytes()).collect();
        to.write(&self.pages, self.bat_offset(indices.start), &bytes)
    }
}

/// Whether the entry at `index`, behind those of the disk's blocks, is that of its last bitmap.
fn is_last_bitmap(geometry: &Geometry, index: u64) -> bool {
    matches!(geometry.slot(index), Slot::Bitmap(chunk) if geometry.differencing && chunk < geometry.chunks())
}

/// `indices` cut at the pages of the BAT, which starts on a page.
fn in_pages(indices: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let per_page = PAGE / BAT_ENTRY_LEN;
    let (mut at, end) = (indices.start, indices.end);
    std::iter::from_fn(move || {
        let next = round_down(at, per_page).saturating_add(per_page).min(end);
        let page = at..next;
        at = next;
        (!page.is_empty()).then_some(page)
    })
}

/// The space an entry of a table of shape `geometry` owns.
fn space_of(geometry: &Geometry, index: u64, raw: u64) -> Option<Range<u64>> {
    let (at, len) = match geometry.slot(index) {
        Slot::Payload(block) if block < geometry.blocks() => {
            (PayloadEntry::decode(raw, geometry.differencing).ok()?.offset, geometry.block_size)
        }
        Slot::Bitmap(chunk) if chunk < geometry.chunks() => {
            (decode_bitmap(raw, geometry.differencing).ok()??, BITMAP_BLOCK_LEN)
        }
        _ => return None,
    };
    (at.get() != 0).then(|| at.get()..at.get().saturating_add(len))
}
