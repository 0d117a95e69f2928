//! Changing metadata items: the link to the parent, what a merged child hands over to its parent, items of others.
//!
//! Owns: where new item bytes go in the metadata region, that the table and the items it names change together, and
//! giving a region that is full another place. Must not know: what the links are for; the order of a merge.

use super::image::Vhdx;
use super::locator::Locator;
use super::log::PAGE;
use super::metadata::{Metadata, MetadataItem, encode_table};
use super::raw::{
    ALIGNMENT, ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, ITEM_IS_VIRTUAL_DISK, ITEM_LOGICAL_SECTOR,
    ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, MAX_METADATA_ENTRIES, MAX_METADATA_ITEM_LEN,
    MAX_METADATA_REGION, MAX_USER_ITEMS, METADATA_TABLE_LEN, REGION_TABLE_AT,
};
use super::region::RegionTable;
use super::session::Seen;
use super::txn::Transaction;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::guid::Guid;
use crate::link::NewParent;
use crate::units::{FileOffset, round_up};
use std::fmt::Display;
use std::ops::Range;
use std::slice;

/// The most bytes of items taken over from another image: they pass through memory. Real disks have some hundred bytes.
const MAX_TAKEN_OVER: u64 = 64 << 20;
/// Room kept in a transaction for a whole metadata table, in pages.
const TABLE_PAGES: u64 = METADATA_TABLE_LEN as u64 / PAGE + 1;
/// Items start on multiples of this, so that an integer in one does not straddle more pages than it must.
const ITEM_ALIGNMENT: u64 = 8;

/// An item as it is to be.
pub(super) struct NewItem {
    pub(super) id: Guid,
    pub(super) flags: u32,
    pub(super) bytes: Vec<u8>,
}

impl NewItem {
    /// Its entry, as yet without a place.
    fn entry(&self) -> MetadataItem {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        MetadataItem { id: self.id, flags: self.flags, offset: 0, length }
    }
}

/// Where new items go in the region as it is.
struct ItemPlan {
    /// The table.
    items: Vec<MetadataItem>,
    /// The file's bytes for each new item.
    places: Vec<Range<u64>>,
    /// Which of them must show together with the table: all of them, or those that are written over old ones.
    with_table: Vec<bool>,
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

    /// Names the same parent by the id it has now; its paths stay, a second linkage goes. Durable on return, and all of it
    /// at once.
    ///
    /// # Errors
    /// As [`set_linkage2`](Self::set_linkage2).
    pub fn follow_parent(&mut self, id: Guid) -> Result<()> {
        let mut locator = self.parent_locator()?;
        locator.follow(id);
        self.set_locator(&locator)
    }

    /// Copies the items that belong to the virtual disk from `parent`, over which this image was just made: users' items
    /// flagged so, and the format's that this image has not. All at once, and durable on return.
    ///
    /// # Errors
    /// As [`replace_disk_metadata_from`](Self::replace_disk_metadata_from).
    pub(crate) fn copy_disk_items_of(&mut self, parent: &Self) -> Result<()> {
        let mut items = parent.disk_items()?;
        items.retain(|item| self.metadata.item(item.id, item.entry().is_user()).is_none());
        if items.is_empty() {
            return Ok(());
        }
        self.begin(Seen::ByGuest)?;
        self.replace_items(&|_| false, &items)
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

    pub(super) fn parent_locator(&self) -> Result<Locator> {
        self.require_writable()?;
        let none = || Error::new(ErrorKind::InvalidInput, "only a differencing image has a parent");
        self.metadata.locator.clone().ok_or_else(none)
    }

    pub(super) fn set_locator(&mut self, locator: &Locator) -> Result<()> {
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
    /// much for one transaction; and when there is no such place left, everything goes to a new region.
    pub(super) fn replace_items(&mut self, goes: &dyn Fn(&MetadataItem) -> bool, new: &[NewItem]) -> Result<()> {
        let kept: Vec<MetadataItem> = self.metadata.items.iter().filter(|item| !goes(item)).copied().collect();
        limits(&kept, new)?;
        match self.plan_items(goes, kept.clone(), new)? {
            Some(plan) => self.write_items(&plan, new)?,
            None => return self.move_metadata(&kept, new),
        }
        let metadata = Metadata::read(&*self.storage, self.regions.metadata(), &mut Findings::new())?;
        self.set_layout(self.regions.clone(), metadata);
        Ok(())
    }

    /// Places for `new` beside the items that are `kept`; none when the region is full.
    fn plan_items(
        &mut self,
        goes: &dyn Fn(&MetadataItem) -> bool,
        kept: Vec<MetadataItem>,
        new: &[NewItem],
    ) -> Result<Option<ItemPlan>> {
        let max = self.session()?.max_entry().saturating_sub(TABLE_PAGES.saturating_mul(PAGE));
        let fits = |ranges: &[Range<u64>]| Transaction::new().entry_len_with(ranges, 0) <= max;
        let old = &self.metadata.items;
        let mut taken: Vec<Range<u64>> = old.iter().map(span).collect();
        let (mut over, mut all, mut items) = (Vec::new(), Vec::new(), kept);
        for item in new {
            let mut entry = item.entry();
            if entry.length > 0 {
                let room = old.iter().find(|one| goes(one) && key(one) == key(&entry) && one.length >= entry.length);
                entry.offset = room.map_or(0, |room| room.offset);
                over.push(self.bytes_of(&entry));
                if room.is_none() || !fits(&over) {
                    over.pop();
                    let Some(offset) = self.gap(&mut taken, entry.length) else { return Ok(None) };
                    entry.offset = offset;
                }
                all.push(self.bytes_of(&entry));
            } else {
                all.push(0..0);
            }
            items.push(entry);
        }
        let at_once = fits(&all);
        let with_table = all.iter().map(|range| at_once || over.contains(range)).collect();
        Ok(Some(ItemPlan { items, places: all, with_table }))
    }

    fn write_items(&mut self, plan: &ItemPlan, new: &[NewItem]) -> Result<()> {
        let each = || plan.places.iter().zip(new).zip(&plan.with_table);
        let before: Vec<_> = each().filter(|(_, last)| !**last).map(|(item, _)| item).collect();
        // The pages of one transaction are read after the other is in place: they may share some.
        self.write_loose(&before)?;
        let mut last = Transaction::new();
        for ((range, item), _) in each().filter(|(_, last)| **last) {
            last.write(&self.pages, range.start, &item.bytes)?;
        }
        self.write_changed(&mut last, self.metadata.at.get(), &encode_table(&plan.items))?;
        self.commit(&last, &mut Vec::new())
    }

    /// Gives the metadata another region, with room for the items that are `kept` and for `new`. It is written and durable
    /// before both region tables name it, in one transaction.
    fn move_metadata(&mut self, kept: &[MetadataItem], new: &[NewItem]) -> Result<()> {
        let mut items = Vec::with_capacity(kept.len().saturating_add(new.len()));
        let mut end = METADATA_TABLE_LEN as u64;
        for mut item in kept.iter().copied().chain(new.iter().map(NewItem::entry)) {
            if item.length > 0 {
                let start = end.checked_next_multiple_of(ITEM_ALIGNMENT).unwrap_or(u64::MAX);
                item.offset = u32::try_from(start).unwrap_or(u32::MAX);
                end = start.saturating_add(u64::from(item.length));
            }
            items.push(item);
        }
        let len = round_up(end, ALIGNMENT).unwrap_or(u64::MAX);
        if len > MAX_METADATA_REGION {
            return Err(full(format_args!("{end} bytes of metadata, at most {MAX_METADATA_REGION} have room")));
        }
        let range = self.take_zeroed(len)?;
        let filled = self.fill_region(&range, (kept, new), &items).and_then(|()| self.settle());
        self.pages.forget(&range);
        let old = self.regions.metadata().range();
        let regions = self.regions.with_metadata(&range);
        let read = filled.and_then(|()| Metadata::read(&*self.storage, regions.metadata(), &mut Findings::new()));
        let metadata = read.inspect_err(|_| {
            let _ = self.space().map(|space| space.release(&range));
        })?;
        self.move_regions(regions, metadata, old)
    }

    /// Writes the table and the items where nothing is named yet.
    fn fill_region(
        &self,
        region: &Range<u64>,
        (kept, new): (&[MetadataItem], &[NewItem]),
        items: &[MetadataItem],
    ) -> Result<()> {
        let write = |bytes: &[u8], offset: u64| {
            let at = region.start.saturating_add(offset);
            let failed = |error| Error::io("move the metadata", error).with_offset(FileOffset(at));
            self.storage.write_all_at(bytes, at).map_err(failed)
        };
        let (first, second) = items.split_at_checked(kept.len()).unwrap_or((items, &[]));
        for (item, old) in first.iter().zip(kept) {
            write(&self.metadata.read_item(&*self.storage, old)?, u64::from(item.offset))?;
        }
        for (item, new) in second.iter().zip(new) {
            write(&new.bytes, u64::from(item.offset))?;
        }
        write(&encode_table(items), 0)
    }

    /// Makes `regions` the ones in force, both tables at once. What lay in `old` is copied and durable elsewhere.
    pub(super) fn move_regions(&mut self, regions: RegionTable, metadata: Metadata, old: Range<u64>) -> Result<()> {
        let bytes = regions.encode();
        let mut move_it = Transaction::new();
        for at in REGION_TABLE_AT {
            self.write_changed(&mut move_it, at, &bytes)?;
        }
        self.commit(&move_it, &mut vec![old])?;
        self.set_layout(regions, metadata);
        Ok(())
    }

    /// Bytes of the file an item takes.
    fn bytes_of(&self, item: &MetadataItem) -> Range<u64> {
        let start = self.metadata.place_of(item).get();
        start..start.saturating_add(u64::from(item.length))
    }

    /// Offset in the region of `length` bytes that no item uses; they are added to `taken`. None when there is no room.
    fn gap(&self, taken: &mut Vec<Range<u64>>, length: u32) -> Option<u32> {
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
        if end > u64::from(self.metadata.length) {
            return None;
        }
        taken.push(start..end);
        u32::try_from(start).ok()
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

/// What the format, and the software that shares these files, put up with ([MS-VHDX] 2.6.1).
fn limits(kept: &[MetadataItem], new: &[NewItem]) -> Result<()> {
    let all = || kept.iter().copied().chain(new.iter().map(NewItem::entry));
    let users = all().filter(MetadataItem::is_user).count();
    let count = all().count();
    if users > MAX_USER_ITEMS {
        return Err(full(format_args!("{users} items of users, at most {MAX_USER_ITEMS} have room")));
    }
    if count > usize::from(MAX_METADATA_ENTRIES) {
        return Err(full(format_args!("{count} metadata items, at most {MAX_METADATA_ENTRIES} have room")));
    }
    match all().find(|item| item.length > MAX_METADATA_ITEM_LEN) {
        Some(item) => {
            let message = format_args!("an item of {} bytes; the longest are {MAX_METADATA_ITEM_LEN}", item.length);
            Err(Error::new(ErrorKind::InvalidInput, message))
        }
        None => Ok(()),
    }
}

fn full(message: impl Display) -> Error {
    Error::new(ErrorKind::Unsupported, message)
        .with_windows_name("ERROR_VHD_METADATA_FULL")
        .with_hint("delete items that nobody needs: `vhdkit metadata list` shows them")
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
