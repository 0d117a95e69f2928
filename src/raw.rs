//! Raw images: the file is the disk.
//!
//! Owns: a flat file seen through the two seams. Must not know: any other format, or how somebody decided that a file
//! is raw (nobody here guesses).

use crate::error::{Error, ErrorKind, Result};
use crate::map::{BlockMap, BlockSink, Content, Extent, Place, Reservation, Source, Want};
use crate::storage::{Access, CheckedStorage, Storage};
use crate::units::{FileOffset, MIB};
use std::sync::Arc;

/// How far one answer reaches into data before the file is asked for holes again.
const DATA_RUN: u64 = MIB;

/// A flat file as a virtual disk. Its size is the file's length.
#[derive(Debug)]
pub struct Raw {
    storage: Arc<dyn Storage>,
    size: u64,
    writable: bool,
}

impl Raw {
    /// Takes `storage` as a disk.
    ///
    /// # Errors
    /// What the storage answers when asked for its length.
    pub fn open(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        let size = storage.len().map_err(|error| Error::io("read the file length", error))?;
        let storage: Arc<dyn Storage> = if access.writes() {
            Arc::new(CheckedStorage::writable(storage))
        } else {
            Arc::new(CheckedStorage::read_only(storage))
        };
        Ok(Self { storage, size, writable: access.writes() })
    }

    /// Makes `storage` a disk of `size` bytes that reads as zeros.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn create(storage: Arc<dyn Storage>, size: u64) -> Result<Self> {
        storage.set_len(size).map_err(|error| Error::io("set the file length", error))?;
        Self::open(storage, Access::Write)
    }

    /// Cuts the disk, or grows it with zeros.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn set_virtual_size(&mut self, size: u64) -> Result<()> {
        self.storage.set_len(size).map_err(|error| Error::io("set the file length", error))?;
        self.size = size;
        Ok(())
    }

    /// Syncs and ends.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn close(mut self) -> Result<()> {
        self.end_session()
    }

    /// As [`close`](Self::close), the disk staying open.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn end_session(&mut self) -> Result<()> {
        if self.writable { self.flush() } else { Ok(()) }
    }
}

impl BlockMap for Raw {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let left = self.size.checked_sub(offset).filter(|&left| left > 0);
        let left = left.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "offset past the end of the disk"))?;
        let limit = limit.min(left);
        let data = self.storage.next_data(offset).map_err(|error| Error::io("look for data", error))?;
        Ok(match data {
            Some(at) if at <= offset => Extent { len: limit.min(DATA_RUN), source: Source::Data(FileOffset(offset)) },
            Some(at) => Extent { len: limit.min(at - offset), source: Source::Zero },
            None => Extent { len: limit, source: Source::Zero },
        })
    }

    fn storage(&self) -> &dyn Storage {
        &*self.storage
    }
}

impl BlockSink for Raw {
    fn block_size(&self) -> u64 {
        self.size.max(1)
    }

    fn logical_sector_size(&self) -> u32 {
        512
    }

    fn space_for(&self, _wants: &[Want]) -> Result<u64> {
        Ok(0)
    }

    fn reserve(&mut self, wants: Vec<Want>) -> Result<Reservation> {
        if !self.writable {
            return Err(Error::new(ErrorKind::ReadOnly, "the image was opened for reading"));
        }
        let mut places = Vec::with_capacity(wants.len());
        for Want { range, content } in &wants {
            if range.end > self.size {
                return Err(Error::new(ErrorKind::InvalidInput, "the range reaches past the end of the disk"));
            }
            let needed = match content {
                Content::Data => true,
                Content::Zero => !self.reads_zero(range.start, range.end)?,
            };
            if needed {
                places.push(Place {
                    offset: range.start,
                    len: range.end - range.start,
                    at: FileOffset(range.start),
                    content: *content,
                });
            }
        }
        Ok(Reservation::new(wants, places, 0))
    }

    fn publish(&mut self, reservation: Reservation) -> Result<()> {
        drop(reservation);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.storage.sync().map_err(|error| Error::io("sync", error))
    }
}

impl Raw {
    fn reads_zero(&self, start: u64, end: u64) -> Result<bool> {
        let data = self.storage.next_data(start).map_err(|error| Error::io("look for data", error))?;
        Ok(data.is_none_or(|at| at >= end))
    }
}
