//! A VHD's file as its metadata code uses it: guarded, named in errors, with pages cached.
//!
//! Owns: keeping cached pages true to what is written here. Must not know: what the bytes mean.

use super::raw::SECTOR_BYTES;
use crate::bitmap::{self, BitOrder};
use crate::error::{Error, Result};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::pages::Pages;
use crate::storage::{Access, CheckedStorage, PAGE, Storage};
use crate::units::{FileOffset, SECTOR, round_down};
use std::ops::Range;
use std::sync::Arc;

/// How many 4 KiB pages of BAT are kept: 2 MiB, the BAT of a 1 TiB disk.
const CACHED_PAGES: usize = 512;
/// How many sectors of bitmaps are kept: 2 MiB, those of 8 GiB in blocks of the usual size. Each block has its bitmap
/// beside it, so that larger pieces would hold little of it.
const CACHED_SECTORS: usize = 4096;
const BITS_PER_SECTOR: u64 = SECTOR * 8;

/// The file, and cached pages of its BAT and bitmaps.
///
/// Payload is written past this, straight to the storage; no page is ever asked for payload bytes, and bytes that turn
/// into metadata are written through here first.
#[derive(Debug)]
pub(super) struct Store {
    storage: Arc<CheckedStorage>,
    pages: Pages,
    bitmaps: Pages,
}

impl Store {
    pub(super) fn new(storage: Arc<dyn Storage>, access: Access) -> Self {
        let checked =
            if access.writes() { CheckedStorage::writable(storage) } else { CheckedStorage::read_only(storage) };
        let storage = Arc::new(checked);
        let below: Arc<dyn Storage> = Arc::<CheckedStorage>::clone(&storage);
        let bitmaps = Pages::of_unit(Arc::clone(&below), SECTOR_BYTES, CACHED_SECTORS);
        Self { storage, pages: Pages::new(below, CACHED_PAGES), bitmaps }
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

    /// The big-endian number of four bytes at `at`, through the cache.
    pub(super) fn number_cached(&self, what: &str, at: u64) -> Result<u32> {
        if !at.is_multiple_of(4) {
            let mut bytes = [0; 4];
            self.read_cached(what, &mut bytes, at)?;
            return Ok(u32::from_be_bytes(bytes));
        }
        let page = round_down(at, PAGE as u64);
        let inside = usize::try_from(at.saturating_sub(page)).unwrap_or(0);
        let word = self.pages.look(page, |words| words.word(inside / 8));
        let word = word.map_err(|error| failed("read", what, at, error))?;
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        Ok(u32::from_be_bytes(if inside.is_multiple_of(8) { [a, b, c, d] } else { [e, f, g, h] }))
    }

    /// The value of the first of `bits` of the bitmap at `at`, a multiple of 512, and how many agree with it, within a
    /// sector; through the cache.
    pub(super) fn bitmap_run(&self, at: u64, bits: Range<u64>) -> Result<(bool, u64)> {
        let sector = at.saturating_add((bits.start / BITS_PER_SECTOR).saturating_mul(SECTOR));
        let first = bits.start % BITS_PER_SECTOR;
        let end = first.saturating_add(bits.end.saturating_sub(bits.start)).min(BITS_PER_SECTOR);
        let run = self.bitmaps.look(sector, |words| {
            let word = |index| words.word(usize::try_from(index).unwrap_or(usize::MAX));
            bitmap::run_of_words(word, BitOrder::MsbFirst, first..end)
        });
        run.map_err(|error| failed("read", "a sector bitmap", sector, error))
    }

    pub(super) fn write(&self, what: &str, bytes: &[u8], at: u64) -> Result<()> {
        let done = self.storage.write_all_at(bytes, at).map_err(|error| failed("write", what, at, error));
        self.forget(&(at..at.saturating_add(bytes.len() as u64)));
        done
    }

    pub(super) fn zero(&self, what: &str, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let done = self.storage.zero_range(range.clone()).map_err(|error| failed("zero", what, range.start, error));
        self.forget(&range);
        done
    }

    pub(super) fn set_len(&self, len: u64) -> Result<()> {
        let done = self.storage.set_len(len).map_err(|error| Error::io("set the length of the file", error));
        self.forget(&(len..u64::MAX));
        done
    }

    /// Drops what is cached of `range`, whose bytes were changed.
    pub(super) fn forget(&self, range: &Range<u64>) {
        self.pages.forget(range);
        self.bitmaps.forget(range);
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
    if source.kind() == std::io::ErrorKind::UnexpectedEof {
        // The medium is in order: the image names a place that its file does not have.
        let found = format_args!("a file that ends before {what}");
        let problem = Problem::new(Structure::File, Fault::Truncated, found, "a file that holds all that it names");
        return Error::corrupt(problem.at(FileOffset(at)));
    }
    Error::io(format_args!("{verb} {what}"), source).with_offset(FileOffset(at))
}
