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
    /// [`delete_metadata_item`](Self::delete_metadata_item) would give the file a new DataWriteGuid, so that its children
    /// no longer accepted it.
    ///
    /// # Errors
    /// As [`metadata_item`](Self::metadata_item).
    pub(crate) fn is_seen_by_children(&self, id: Guid, bytes: Option<&[u8]>, virtual_disk: bool) -> Result<bool> {
        let old = self.metadata.item(id, true);
        let was = old.is_some_and(|item| item.flags & ITEM_IS_VIRTUAL_DISK != 0);
        Ok((was || (virtual_disk && bytes.is_some())) && !self.is_already(id, bytes, virtual_disk)?)
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
        if self.is_already(id, Some(bytes), virtual_disk)? {
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

    fn is_already(&self, id: Guid, bytes: Option<&[u8]>, virtual_disk: bool) -> Result<bool> {
        let flags = ITEM_IS_USER | if virtual_disk { ITEM_IS_VIRTUAL_DISK } else { 0 };
        let Some(item) = self.metadata.item(id, true) else { return Ok(bytes.is_none()) };
        let Some(bytes) = bytes.filter(|bytes| bytes.len() as u64 == u64::from(item.length)) else { return Ok(false) };
        Ok(item.flags == flags && self.metadata.read_item(&*self.storage, item)? == bytes)
    }

    /// Gives the virtual disk another id ("page 83 data", [MS-VHDX] 2.6.2.3), by which the machine that uses it tells it
    /// from others. Durable on return. The file gets a new DataWriteGuid: children no longer accept it.
    ///
    /// # Errors
    /// `InvalidInput` for a nil id; `ReadOnly`; what the storage answers, and then the old or the new id is in force.
    pub fn set_disk_id(&mut self, id: Guid) -> Result<()> {
        if id.is_nil() {
            return Err(Error::new(ErrorKind::InvalidInput, "a virtual disk id must not be all zeros"));
        }
        self.set_disk_item(DiskMetadata { disk_id: id, ..self.metadata.disk }, ITEM_DISK_ID)
    }

    /// Says that the disk's physical sectors have `bytes` bytes: 512 or 4096, at least a logical sector. As
    /// [`set_disk_id`](Self::set_disk_id).
    ///
    /// # Errors
    /// `InvalidInput` for any other size; `ReadOnly`; what the storage answers, and then the old or the new size is in
    /// force.
    pub fn set_physical_sector_size(&mut self, bytes: u32) -> Result<()> {
        let disk = DiskMetadata { physical_sector: bytes, ..self.metadata.disk };
        if let Some((_, problem)) = disk.broken_rule() {
            let message = format!("{}; allowed is {}", problem.found, problem.allowed);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        if bytes < disk.logical_sector {
            let message = format_args!("physical sectors of {bytes} bytes, logical ones of {}", disk.logical_sector);
            return Err(Error::new(ErrorKind::InvalidInput, message)
                .with_hint("a physical sector is at least as long as a logical one"));
        }
        self.set_disk_item(disk, ITEM_PHYSICAL_SECTOR)
    }

    /// Writes the one required item in which `disk` differs from what the file says.
    fn set_disk_item(&mut self, disk: DiskMetadata, id: Guid) -> Result<()> {
        self.require_writable()?;
        if disk == self.metadata.disk {
            return Ok(());
        }
        let flags = self.metadata.item(id, false).map(|item| item.flags);
        let wanted = disk.items().into_iter().find(|(item, ..)| *item == id);
        let items: Vec<NewItem> =
            wanted.into_iter().map(|(id, usual, bytes)| NewItem { id, flags: flags.unwrap_or(usual), bytes }).collect();
        self.begin(Seen::ByGuest)?;
        self.replace_items(&|item| item.id == id && !item.is_user(), &items)
    }
}

#[cfg(test)]
mod tests;
