//! A bounded cache of file pages, for maps that are too big to hold: block allocation tables and sector bitmaps.
//!
//! Owns: which pages are kept. Must not know: what is in them.

use super::{PAGE, Page, Storage};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;
const PAGE_BYTES: u64 = PAGE as u64;

/// Pages of 4096 bytes of a storage, some of them cached. Shared between threads; a hit takes one lock in sixteen and
/// allocates nothing.
///
/// Whoever writes the pages' bytes calls [`put`](Self::put) or [`forget`](Self::forget) after each write.
pub(crate) struct Pages {
    storage: Arc<dyn Storage>,
    shards: [Mutex<Shard>; SHARDS],
    shard_capacity: usize,
}

/// Evicts by second chance.
#[derive(Default)]
struct Shard {
    slots: Vec<Slot>,
    /// Page number to slot.
    index: HashMap<u64, usize>,
    hand: usize,
    /// Counts changes made by the owner. A page read from the storage while this moved may be the bytes of before, and is
    /// not kept.
    changes: u64,
}

struct Slot {
    number: u64,
    page: Arc<Page>,
    used: bool,
}

impl Shard {
    fn get(&mut self, number: u64) -> Option<Arc<Page>> {
        let slot = self.slots.get_mut(*self.index.get(&number)?)?;
        slot.used = true;
        Some(Arc::clone(&slot.page))
    }

    fn keep(&mut self, number: u64, page: Arc<Page>, capacity: usize) {
        if let Some(&at) = self.index.get(&number) {
            self.slots[at] = Slot { number, page, used: true };
        } else if self.slots.len() < capacity {
            self.index.insert(number, self.slots.len());
            self.slots.push(Slot { number, page, used: false });
        } else {
            while std::mem::take(&mut self.slots[self.hand].used) {
                self.hand = (self.hand + 1) % self.slots.len();
            }
            let at = self.hand;
            self.hand = (at + 1) % self.slots.len();
            self.index.remove(&self.slots[at].number);
            self.index.insert(number, at);
            self.slots[at] = Slot { number, page, used: false };
        }
    }

    fn forget(&mut self, numbers: &Range<u64>) {
        self.changes += 1;
        let mut at = 0;
        while at < self.slots.len() {
            if numbers.contains(&self.slots[at].number) {
                let gone = self.slots.swap_remove(at);
                self.index.remove(&gone.number);
                if let Some(moved) = self.slots.get(at) {
                    self.index.insert(moved.number, at);
                }
            } else {
                at += 1;
            }
        }
        self.hand = 0;
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Pages {
    /// A cache over `storage` of about `capacity` pages: rounded up to a multiple of sixteen, at least sixteen.
    pub(crate) fn new(storage: Arc<dyn Storage>, capacity: usize) -> Self {
        Self { storage, shards: Default::default(), shard_capacity: capacity.div_ceil(SHARDS).max(1) }
    }

    /// The storage below.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    fn shard(&self, number: u64) -> MutexGuard<'_, Shard> {
        // Neighbouring pages go to different shards: a scan by several threads meets no lock twice.
        self.shards[(number % SHARDS as u64) as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page at `offset`, a multiple of 4096. What lies past the end of the storage reads as zeros.
    ///
    /// # Errors
    /// `InvalidInput` when `offset` is not a multiple of 4096; `UnexpectedEof` when the page starts at or past the end;
    /// what the storage answers.
    pub(crate) fn read(&self, offset: u64) -> io::Result<Arc<Page>> {
        match self.read_whole(offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let there = self.storage.len()?.saturating_sub(offset).min(PAGE_BYTES) as usize;
                if there == 0 || there == PAGE {
                    return Err(error);
                }
                let mut page = [0; PAGE];
                self.storage.read_exact_at(&mut page[..there], offset)?;
                // Not kept: bytes appended later would not show.
                Ok(Arc::new(page))
            }
            read => read,
        }
    }

    /// The page at `offset` (a multiple of 4096), all of it in the file: for tables where a missing end is no zeros.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends inside or before it; what the storage answers.
    pub(crate) fn read_whole(&self, offset: u64) -> io::Result<Arc<Page>> {
        let number = page_number(offset)?;
        let changes = {
            let mut shard = self.shard(number);
            if let Some(page) = shard.get(number) {
                return Ok(page);
            }
            shard.changes
        };
        let mut page = [0; PAGE];
        self.storage.read_exact_at(&mut page, offset)?;
        let page = Arc::new(page);
        let mut shard = self.shard(number);
        if shard.changes == changes {
            shard.keep(number, Arc::clone(&page), self.shard_capacity);
        }
        Ok(page)
    }

    /// Fills `buf` from `offset`, which need not lie on a page boundary, through the cache.
    ///
    /// # Errors
    /// `UnexpectedEof` when a page starts at or past the end; what the storage answers.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let inside = (at % PAGE_BYTES) as usize;
            let len = rest.len().min(PAGE - inside);
            let (part, tail) = rest.split_at_mut(len);
            part.copy_from_slice(&self.read(at - inside as u64)?[inside..inside + len]);
            at = at.checked_add(len as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
            rest = tail;
        }
        Ok(())
    }

    /// Takes `page` as the bytes at `offset` (a multiple of 4096), after the caller wrote them there.
    ///
    /// # Errors
    /// `InvalidInput` when `offset` is not a multiple of 4096.
    pub(crate) fn put(&self, offset: u64, page: &Page) -> io::Result<()> {
        let number = page_number(offset)?;
        let mut shard = self.shard(number);
        shard.changes += 1;
        shard.keep(number, Arc::new(*page), self.shard_capacity);
        Ok(())
    }

    /// Drops every page that `range` (in bytes) touches, after the caller changed those bytes.
    pub(crate) fn forget(&self, range: &Range<u64>) {
        let numbers = range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).forget(&numbers);
        }
    }
}

fn page_number(offset: u64) -> io::Result<u64> {
    if offset.is_multiple_of(PAGE_BYTES) {
        Ok(offset / PAGE_BYTES)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "a page starts on a multiple of 4096 bytes"))
    }
}

#[cfg(test)]
mod tests;
