//! Metadata items as their owners see them: the ids of the disk, and what users keep in a file ([MS-VHDX] 2.6).
//!
//! Owns: which items may be changed by whom, and which change gives the file a new DataWriteGuid. Must not know: where an
//! item's bytes go (`edit`).

use super::edit::NewItem;
use super::image::Vhdx;
use super::metadata::{DiskMetadata, MetadataItem};
use super::raw::{
    ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_GEOMETRY, ITEM_IS_REQUIRED, ITEM_IS_USER, ITEM_IS_VIRTUAL_DISK,
    ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR, ITEM_PMEM_LABEL, ITEM_VIRTUAL_SIZE,
};
use super::session::Seen;
use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;

/// One item of a VHDX's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MetadataEntry {
    /// Which item.
    pub id: Guid,
    /// A user's item; else one of the format's. Both have ids of their own, so an id can be there twice.
    pub user: bool,
    /// It belongs to the virtual disk: it goes with the contents when a child is made or merged.
    pub virtual_disk: bool,
    /// A reader that does not know it must not open the file.
    pub required: bool,
    /// Bytes, up to 1 MiB.
    pub length: u32,
    /// What the format calls it, where it does.
    pub name: Option<&'static str>,
}

impl From<&MetadataItem> for MetadataEntry {
    fn from(item: &MetadataItem) -> Self {
        Self {
            id: item.id,
            user: item.is_user(),
            virtual_disk: item.flags & ITEM_IS_VIRTUAL_DISK != 0,
            required: item.flags & ITEM_IS_REQUIRED != 0,
            length: item.length,
            name: if item.is_user() { None } else { name(item.id) },
        }
    }
}

fn name(id: Guid) -> Option<&'static str> {
    let names = [
        (ITEM_FILE_PARAMETERS, "file parameters"),
        (ITEM_VIRTUAL_SIZE, "virtual disk size"),
        (ITEM_DISK_ID, "virtual disk id"),
        (ITEM_LOGICAL_SECTOR, "logical sector size"),
        (ITEM_PHYSICAL_SECTOR, "physical sector size"),
        (ITEM_PARENT_LOCATOR, "parent locator"),
        (ITEM_GEOMETRY, "drive geometry"),
        (ITEM_PMEM_LABEL, "persistent memory label"),
    ];
    names.into_iter().find(|(known, _)| *known == id).map(|(_, name)| name)
}

impl Vhdx {
    /// The items of the file's metadata, the format's and users', in the order of its table.
    #[must_use]
    pub fn metadata_items(&self) -> Vec<MetadataEntry> {
        self.metadata.items.iter().map(MetadataEntry::from).collect()
    }

    /// The bytes of an item, a user's or the format's; `None` when there is no such item.
    ///
    /// # Errors
    /// `Corrupt` when it lies outside the metadata region; what the storage answers.
    pub fn metadata_item(&self, id: Guid, user: bool) -> Result<Option<Vec<u8>>> {
        let item = self.metadata.item(id, user);
        item.map(|item| self.metadata.read_item(&*self.storage, item)).transpose()
    }

    /// Whether [`set_metadata_item`](Self::set_metadata_item) or, without `bytes`,
    /// [`delete_metadata_item`](Self::delete_metadata_item) would change anything.
    ///
    /// # Errors
    /// As [`metadata_item`](Self::metadata_item).
    pub(crate) fn would_change_item(&self, id: Guid, bytes: Option<&[u8]>, virtual_disk: bool) -> Result<bool> {
        let flags = ITEM_IS_USER | if virtual_disk { ITEM_IS_VIRTUAL_DISK } else { 0 };
        let Some(item) = self.metadata.item(id, true) else { return Ok(bytes.is_some()) };
        let Some(bytes) = bytes.filter(|bytes| bytes.len() as u64 == u64::from(item.length)) else { return Ok(true) };
        Ok(item.flags != flags || self.metadata.read_item(&*self.storage, item)? != bytes)
    }

    /// Whether that would give the file a new DataWriteGuid, so that its children no longer accepted it.
    ///
    /// # Errors
    /// As [`metadata_item`](Self::metadata_item).
    pub(crate) fn is_seen_by_children(&self, id: Guid, bytes: Option<&[u8]>, virtual_disk: bool) -> Result<bool> {
        let old = self.metadata.item(id, true);
        let was = old.is_some_and(|item| item.flags & ITEM_IS_VIRTUAL_DISK != 0);
        Ok((was || (virtual_disk && bytes.is_some())) && self.would_change_item(id, bytes, virtual_disk)?)
    }

    /// Gives a user's item these bytes, or makes it; `virtual_disk` says whether it belongs to the disk's contents.
    /// Nothing is written when it is like that already. All at once, and durable on return; a region that is full is
    /// given another place in the file. An item that belongs, or belonged, to the disk is part of what children were made
    /// over: the file then gets a new DataWriteGuid.
    ///
    /// # Errors
    /// `InvalidInput` for more than 1 MiB; `Unsupported` for more than 1024 items of users, or more bytes of items than
    /// 128 MiB hold; `ReadOnly`; what the storage answers, and then the old or the new item is in force.
    pub fn set_metadata_item(&mut self, id: Guid, bytes: &[u8], virtual_disk: bool) -> Result<()> {
        self.require_writable()?;
        if !self.would_change_item(id, Some(bytes), virtual_disk)? {
            return Ok(());
        }
        let seen = self.is_seen_by_children(id, Some(bytes), virtual_disk)?;
        let flags = ITEM_IS_USER | if virtual_disk { ITEM_IS_VIRTUAL_DISK } else { 0 };
        let item = NewItem { id, flags, bytes: bytes.to_vec() };
        self.begin(if seen { Seen::ByGuest } else { Seen::ByNobody })?;
        self.replace_items(&|item| item.id == id && item.is_user(), &[item])
    }

    /// Removes a user's item; answers whether there was one. As [`set_metadata_item`](Self::set_metadata_item).
    ///
    /// # Errors
    /// `ReadOnly`; what the storage answers, and then the item is there or not.
    pub fn delete_metadata_item(&mut self, id: Guid) -> Result<bool> {
        self.require_writable()?;
        if self.metadata.item(id, true).is_none() {
            return Ok(false);
        }
        let seen = self.is_seen_by_children(id, None, false)?;
        self.begin(if seen { Seen::ByGuest } else { Seen::ByNobody })?;
        self.replace_items(&|item| item.id == id && item.is_user(), &[])?;
        Ok(true)
    }

    /// Gives the virtual disk another id ("page 83 data", [MS-VHDX] 2.6.2.3), by which the machine that uses it tells it
    /// from others. Durable on return. The file gets a new DataWriteGuid: children no longer accept it.
    ///
    /// # Errors
    /// `InvalidInput` for a nil id; `ReadOnly`; what the storage answers, and then the old or the new id is in force.
    pub fn set_disk_id(&mut self, id: Guid) -> Result<()> {
        self.set_identity(Some(id), None)
    }

    /// Says that the disk's physical sectors have `bytes` bytes: 512 or 4096, at least a logical sector. As
    /// [`set_disk_id`](Self::set_disk_id).
    ///
    /// # Errors
    /// `InvalidInput` for any other size; `ReadOnly`; what the storage answers, and then the old or the new size is in
    /// force.
    pub fn set_physical_sector_size(&mut self, bytes: u32) -> Result<()> {
        self.set_identity(None, Some(bytes))
    }

    /// Both of the above at once.
    pub(crate) fn set_identity(&mut self, disk_id: Option<Guid>, physical_sector: Option<u32>) -> Result<()> {
        self.require_writable()?;
        let old = self.metadata.disk;
        let disk = self.identity(disk_id, physical_sector)?;
        if disk == old {
            return Ok(());
        }
        let new: Vec<NewItem> = disk
            .items()
            .into_iter()
            .zip(old.items())
            .filter(|(new, old)| new != old)
            .map(|((id, usual, bytes), _)| {
                let flags = self.metadata.item(id, false).map_or(usual, |item| item.flags);
                NewItem { id, flags, bytes }
            })
            .collect();
        self.begin(Seen::ByGuest)?;
        self.replace_items(&|item| !item.is_user() && new.iter().any(|new| new.id == item.id), &new)
    }

    /// What the disk would say of itself with another id and another physical sector size.
    ///
    /// # Errors
    /// `InvalidInput` when no disk can say that.
    fn identity(&self, disk_id: Option<Guid>, physical_sector: Option<u32>) -> Result<DiskMetadata> {
        let old = self.metadata.disk;
        let disk = DiskMetadata {
            disk_id: disk_id.unwrap_or(old.disk_id),
            physical_sector: physical_sector.unwrap_or(old.physical_sector),
            ..old
        };
        if disk_id.is_some_and(|id| id.is_nil()) {
            return Err(Error::new(ErrorKind::InvalidInput, "a virtual disk id must not be all zeros"));
        }
        if let Some((_, problem)) = disk.broken_rule() {
            let message = format!("{}; allowed is {}", problem.found, problem.allowed);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        if physical_sector.is_some_and(|bytes| bytes < disk.logical_sector) {
            let message = format_args!(
                "physical sectors of {} bytes, logical ones of {}",
                disk.physical_sector, disk.logical_sector
            );
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_hint("a physical sector is at least as long as a logical one"));
        }
        Ok(disk)
    }

    /// Whether [`set_identity`](Self::set_identity) would change anything.
    ///
    /// # Errors
    /// As that.
    pub(crate) fn would_change_identity(&self, disk_id: Option<Guid>, physical_sector: Option<u32>) -> Result<bool> {
        Ok(self.identity(disk_id, physical_sector)? != self.metadata.disk)
    }
}

#[cfg(test)]
mod tests;
