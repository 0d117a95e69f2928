//! Changing metadata items: the link to the parent, and what a merged child hands over to its parent.
//!
//! Owns: where new item bytes go in the metadata region, and that the table and the items it names change together.
//! Must not know: what the links are for; the order of a merge.

use super::image::Vhdx;
use super::locator::Locator;
use super::log::PAGE;
use super::metadata::{Metadata, MetadataItem, encode_table};
use super::raw::{
    ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, ITEM_IS_VIRTUAL_DISK, ITEM_LOGICAL_SECTOR,
    ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, MAX_METADATA_ENTRIES, METADATA_TABLE_LEN,
};
use super::session::Seen;
use super::txn::Transaction;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::guid::Guid;
use crate::link::NewParent;
use std::ops::Range;
use std::slice;

/// The most bytes of items taken over from another image: they pass through memory. Real disks have some hundred bytes.
const MAX_TAKEN_OVER: u64 = 64 << 20;
/// Room kept in a transaction for a whole metadata table, in pages.
const TABLE_PAGES: u64 = METADATA_TABLE_LEN as u64 / PAGE + 1;
/// Items start on multiples of this, so that an integer in one does not straddle more pages than it must.
const ITEM_ALIGNMENT: u64 = 8;

/// An item as it is to be.
struct NewItem {
    id: Guid,
    flags: u32,
    bytes: Vec<u8>,
}

impl Vhdx {
    /// The DataWriteGuid that the parent will have after a merge that was begun; `None` when there is none.
    #[must_use]
    pub fn linkage2(&self) -> Option<Guid> {
        self.metadata.locator.as_ref().and_then(Locator::linkage2)
    }

    /// Sets or removes the second DataWriteGuid by which the parent is accepted. Durable on return.
    ///
    /// # Errors
    /// `InvalidInput` when the image has no parent; `ReadOnly`; `Unsupported` when the metadata region is full; what the
    /// storage answers, and then the old or the new link is in force.
    pub fn set_linkage2(&mut self, id: Option<Guid>) -> Result<()> {
        let mut locator = self.parent_locator()?;
        locator.set_linkage2(id);
        self.set_locator(&locator)
    }

    /// Names another parent: its id and its paths; old paths that are not given and a second linkage go. Durable on
    /// return, and all of it at once.
    ///
    /// # Errors
    /// As [`set_linkage2`](Self::set_linkage2); also `InvalidInput` when no path is given or the parent is no VHDX.
    pub fn set_parent(&mut self, parent: &NewParent) -> Result<()> {
        let mut locator = self.parent_locator()?;
        locator.relink(parent)?;
        self.set_locator(&locator)
    }

    /// Takes over what belongs to the virtual disk from `other`: disk id, physical sector size, and every item flagged
    /// so, users' too; this image's own such items go. The virtual size stays (see
    /// [`set_virtual_size`](Self::set_virtual_size)), as do the block size and this image's own parent. All at once, and
    /// durable on return.
    ///
    /// # Errors
    /// `InvalidInput` when the logical sector sizes differ; `ReadOnly`; `Unsupported` when the items do not fit; what
    /// the storages answer, and then the old or the new items are in force.
    pub fn replace_disk_metadata_from(&mut self, other: &Self) -> Result<()> {
        self.require_writable()?;
        if other.metadata.disk.logical_sector != self.metadata.disk.logical_sector {
            return Err(Error::new(ErrorKind::InvalidInput, "the logical sector sizes differ"));
        }
        let theirs = other.disk_items()?;
        let ours = self.disk_items()?;
        let same = |one: &NewItem, two: &NewItem| one.id == two.id && one.flags == two.flags && one.bytes == two.bytes;
        if ours.len() == theirs.len() && theirs.iter().all(|item| ours.iter().any(|one| same(one, item))) {
            return Ok(());
        }
        self.begin(Seen::ByGuest)?;
        self.replace_items(&belongs_to_disk, &theirs)
    }

    fn parent_locator(&self) -> Result<Locator> {
        self.require_writable()?;
        let none = || Error::new(ErrorKind::InvalidInput, "only a differencing image has a parent");
        self.metadata.locator.clone().ok_or_else(none)
    }

    fn set_locator(&mut self, locator: &Locator) -> Result<()> {
        if self.metadata.locator.as_ref() == Some(locator) {
            return Ok(());
        }
        let bytes = locator.build()?;
        self.begin(Seen::ByNobody)?;
        let flags = self.metadata.item(ITEM_PARENT_LOCATOR, false).map_or(ITEM_IS_REQUIRED, |item| item.flags);
        let item = NewItem { id: ITEM_PARENT_LOCATOR, flags, bytes };
        self.replace_items(&|item| item.id == ITEM_PARENT_LOCATOR && !item.is_user(), &[item])
    }

    /// The items that go with the virtual disk.
    fn disk_items(&self) -> Result<Vec<NewItem>> {
        let items: Vec<&MetadataItem> = self.metadata.items.iter().filter(|item| belongs_to_disk(item)).collect();
        let total: u64 = items.iter().fold(0, |sum, item| sum.saturating_add(u64::from(item.length)));
        if total > MAX_TAKEN_OVER {
            let message =
                format!("{total} bytes of metadata belong to the virtual disk; up to {MAX_TAKEN_OVER} are handled");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let read = |item: &MetadataItem| {
            let bytes = self.metadata.read_item(&*self.storage, item)?;
            Ok(NewItem { id: item.id, flags: item.flags, bytes })
        };
        items.into_iter().map(read).collect()
    }

    /// Replaces the items that `goes` names by `new`; they show together, with the table.
    ///
    /// A short item is written over the one it replaces. The rest goes to where no item is, before the table if it is too
    /// much for one transaction.
    fn replace_items(&mut self, goes: &dyn Fn(&MetadataItem) -> bool, new: &[NewItem]) -> Result<()> {
        let old = self.metadata.items.clone();
        let mut items: Vec<MetadataItem> = old.iter().filter(|item| !goes(item)).copied().collect();
        let mut taken: Vec<Range<u64>> = old.iter().map(span).collect();
        let max = self.session()?.max_entry().saturating_sub(TABLE_PAGES.saturating_mul(PAGE));
        let fits = |ranges: &[Range<u64>]| Transaction::new().entry_len_with(ranges, 0) <= max;
        let (mut over, mut all) = (Vec::new(), Vec::new());
        for item in new {
            let length = u32::try_from(item.bytes.len()).unwrap_or(u32::MAX);
            let mut entry = MetadataItem { id: item.id, flags: item.flags, offset: 0, length };
            if length > 0 {
                let room = old.iter().find(|one| goes(one) && key(one) == key(&entry) && one.length >= length);
                entry.offset = room.map_or(0, |room| room.offset);
                over.push(self.bytes_of(&entry));
                if room.is_none() || !fits(&over) {
                    over.pop();
                    entry.offset = self.gap(&mut taken, length)?;
                }
                all.push(self.bytes_of(&entry));
            } else {
                all.push(0..0);
            }
            items.push(entry);
        }
        if items.len() > usize::from(MAX_METADATA_ENTRIES) {
            return Err(Error::new(ErrorKind::Unsupported, "more metadata items than a VHDX can hold"));
        }
        let at_once = fits(&all);
        let (with_table, before): (Vec<_>, Vec<_>) =
            all.iter().zip(new).partition(|(range, _)| at_once || over.contains(range));
        // The pages of one transaction are read after the other is in place: they may share some.
        self.write_loose(&before)?;
        let mut last = Transaction::new();
        for (range, item) in with_table {
            last.write(&self.pages, range.start, &item.bytes)?;
        }
        self.write_changed(&mut last, self.metadata.at.get(), &encode_table(&items))?;
        self.commit(&last, &mut Vec::new())?;
        let metadata = Metadata::read(&*self.storage, self.regions.metadata(), &mut Findings::new())?;
        self.set_layout(self.regions.clone(), metadata);
        Ok(())
    }

    /// Bytes of the file an item takes.
    fn bytes_of(&self, item: &MetadataItem) -> Range<u64> {
        let start = self.metadata.place_of(item).get();
        start..start.saturating_add(u64::from(item.length))
    }

    /// Offset in the region of `length` bytes that no item uses; they are added to `taken`.
    fn gap(&self, taken: &mut Vec<Range<u64>>, length: u32) -> Result<u32> {
        taken.sort_by_key(|range| range.start);
        let length = u64::from(length);
        let mut start = METADATA_TABLE_LEN as u64;
        for range in taken.iter() {
            if start.saturating_add(length) <= range.start {
                break;
            }
            start = start.max(range.end).checked_next_multiple_of(ITEM_ALIGNMENT).unwrap_or(u64::MAX);
        }
        let end = start.saturating_add(length);
        let full = || {
            Error::new(ErrorKind::Unsupported, "the image's metadata region is full")
                .with_hint("convert the image to a new file")
        };
        if end > u64::from(self.metadata.length) {
            return Err(full());
        }
        taken.push(start..end);
        u32::try_from(start).map_err(|_| full())
    }

    /// Writes items that nothing names yet, in as many transactions as it takes.
    fn write_loose(&mut self, items: &[(&Range<u64>, &NewItem)]) -> Result<()> {
        let max = self.session()?.max_entry();
        let mut transaction = Transaction::new();
        for (range, item) in items {
            let mut at = range.start;
            for part in item.bytes.chunks(4096) {
                let here = at..at.saturating_add(part.len() as u64);
                if transaction.entry_len_with(slice::from_ref(&here), 0) > max {
                    self.commit(&std::mem::take(&mut transaction), &mut Vec::new())?;
                }
                transaction.write(&self.pages, at, part)?;
                at = here.end;
            }
        }
        self.commit(&transaction, &mut Vec::new())
    }

    /// Writes `bytes` at `at` (a multiple of 4096), leaving pages that are like that already alone.
    pub(super) fn write_changed(&self, to: &mut Transaction, at: u64, bytes: &[u8]) -> Result<()> {
        for (offset, part) in (at..).step_by(4096).zip(bytes.chunks(4096)) {
            let same = self.pages.read(offset).is_ok_and(|page| page.get(..part.len()) == Some(part));
            if !same {
                to.write(&self.pages, offset, part)?;
            }
        }
        Ok(())
    }
}

/// Items are named by id and by whose they are.
fn key(item: &MetadataItem) -> (Guid, bool) {
    (item.id, item.is_user())
}

fn span(item: &MetadataItem) -> Range<u64> {
    let start = u64::from(item.offset);
    start..start.saturating_add(u64::from(item.length))
}

/// Whether an item goes with the virtual disk: by its flag, or because the format says so of it.
fn belongs_to_disk(item: &MetadataItem) -> bool {
    if item.is_user() {
        return item.flags & ITEM_IS_VIRTUAL_DISK != 0;
    }
    match item.id {
        ITEM_FILE_PARAMETERS | ITEM_PARENT_LOCATOR | ITEM_VIRTUAL_SIZE => false,
        ITEM_DISK_ID | ITEM_LOGICAL_SECTOR | ITEM_PHYSICAL_SECTOR => true,
        _ => item.flags & ITEM_IS_VIRTUAL_DISK != 0,
    }
}

#[cfg(test)]
mod tests;
