//! A VHD's file as its metadata code uses it: guarded, named in errors, with pages cached.
//!
//! Owns: keeping cached pages true to what is written here. Must not know: what the bytes mean.

use crate::error::{Error, Result};
use crate::storage::pages::Pages;
use crate::storage::{Access, CheckedStorage, Storage};
use crate::units::FileOffset;
use std::ops::Range;
use std::sync::Arc;

/// How many 4 KiB pages of BAT and bitmaps are kept: 2 MiB, the BAT of a 1 TiB disk.
const CACHED_PAGES: usize = 512;

/// The file, and cached pages of its BAT and bitmaps.
///
/// Payload is written past this, straight to the storage; no page is ever asked for payload bytes, and bytes that turn
/// into metadata are written through here first.
#[derive(Debug)]
pub(super) struct Store {
    storage: Arc<CheckedStorage>,
    pages: Pages,
}

impl Store {
    pub(super) fn new(storage: Arc<dyn Storage>, access: Access) -> Self {
        let checked =
            if access.writes() { CheckedStorage::writable(storage) } else { CheckedStorage::read_only(storage) };
        let storage = Arc::new(checked);
        let below: Arc<dyn Storage> = Arc::<CheckedStorage>::clone(&storage);
        Self { storage, pages: Pages::new(below, CACHED_PAGES) }
    }

    pub(super) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub(super) fn len(&self) -> Result<u64> {
        len(self.storage())
    }

    /// Fills `buf` from `at`, past the cache.
    pub(super) fn read(&self, what: &str, buf: &mut [u8], at: u64) -> Result<()> {
        read(self.storage(), what, buf, at)
    }

    /// The first position from `at` on that may hold anything but zeros, if there is one.
    pub(super) fn next_data(&self, at: u64) -> Result<Option<u64>> {
        self.storage.next_data(at).map_err(|error| Error::io("look for data in the file", error))
    }

    /// Fills `buf` from `at`, through the cache.
    pub(super) fn read_cached(&self, what: &str, buf: &mut [u8], at: u64) -> Result<()> {
        self.pages.read_exact_at(buf, at).map_err(|error| failed("read", what, at, error))
    }

    pub(super) fn write(&self, what: &str, bytes: &[u8], at: u64) -> Result<()> {
        let done = self.storage.write_all_at(bytes, at).map_err(|error| failed("write", what, at, error));
        self.pages.forget(&(at..at.saturating_add(bytes.len() as u64)));
        done
    }

    pub(super) fn zero(&self, what: &str, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let done = self.storage.zero_range(range.clone()).map_err(|error| failed("zero", what, range.start, error));
        self.pages.forget(&range);
        done
    }

    pub(super) fn set_len(&self, len: u64) -> Result<()> {
        let done = self.storage.set_len(len).map_err(|error| Error::io("set the length of the file", error));
        self.pages.forget(&(len..u64::MAX));
        done
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.storage.sync().map_err(|error| Error::io("sync the file", error))
    }
}

/// The length of the file.
pub(super) fn len(storage: &dyn Storage) -> Result<u64> {
    storage.len().map_err(|error| Error::io("find the length of the file", error))
}

/// Fills `buf` from `at`.
pub(super) fn read(storage: &dyn Storage, what: &str, buf: &mut [u8], at: u64) -> Result<()> {
    storage.read_exact_at(buf, at).map_err(|error| failed("read", what, at, error))
}

fn failed(verb: &str, what: &str, at: u64, source: std::io::Error) -> Error {
    Error::io(format_args!("{verb} {what}"), source).with_offset(FileOffset(at))
}
