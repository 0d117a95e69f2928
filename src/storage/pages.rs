//! A bounded cache of pieces of a file, for maps that are too big to hold: block allocation tables and sector bitmaps.
//!
//! Owns: which pages are kept, and that readers never wait for one another. Must not know: what is in them.

use super::{PAGE, Page, Storage};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Pages that may take each other's place; their numbers fill one line of a processor's cache.
const WAYS: usize = 8;
/// The number of no page: no file reaches there.
const NONE: u64 = u64::MAX;

/// Pages of a storage, some of them cached. Shared between threads; a hit takes no lock, writes nothing
/// that another reader waits for, and allocates nothing.
///
/// Whoever writes the pages' bytes calls [`put`](Self::put) or [`forget`](Self::forget) after each write.
pub(crate) struct Pages {
    storage: Arc<dyn Storage>,
    /// Bytes in a page: a power of two from 8 to 4096.
    unit: usize,
    /// A power of two of them, made when they are first needed.
    sets: Box<[OnceLock<Box<Set>>]>,
    /// The storage was once seen to be this long, and nothing from here on was forgotten since.
    known_len: AtomicU64,
}

/// A few slots, and the turn of whoever changes them. Evicts by second chance.
struct Set {
    /// The page each slot holds.
    numbers: [AtomicU64; WAYS],
    slots: [Slot; WAYS],
    turn: Mutex<Turn>,
}

#[derive(Default)]
struct Turn {
    hand: usize,
    /// Counts changes made by the owner. A page read from the storage while this moved may be the bytes of before, and is
    /// not kept.
    changes: u64,
}

/// One page, readable while it is being replaced: who reads looks at `version` before and after, and what was seen counts
/// when it was even and stayed the same (a sequence lock; all of it is atomics, so that a torn view is only useless).
#[derive(Default)]
struct Slot {
    version: AtomicU64,
    used: AtomicBool,
    words: OnceLock<Box<[AtomicU64]>>,
}

/// The bytes of a page, eight at a time.
pub(crate) enum Words<'a> {
    /// Kept, and perhaps being replaced.
    Kept(&'a [AtomicU64]),
    /// Just read.
    Read(&'a [u8]),
}

impl Words<'_> {
    /// Bytes `8 * index` and on as a little-endian number; zero past the end of the page.
    pub(crate) fn word(&self, index: usize) -> u64 {
        match self {
            Self::Kept(words) => words.get(index).map_or(0, |word| word.load(Ordering::Relaxed)),
            Self::Read(page) => page.as_chunks::<8>().0.get(index).map_or(0, |word| u64::from_le_bytes(*word)),
        }
    }

    /// Fills `buf` from byte `from` of the page.
    fn copy_to(&self, buf: &mut [u8], from: usize) {
        let mut at = from;
        let mut rest = buf;
        while !rest.is_empty() {
            let word = self.word(at / 8).to_le_bytes();
            let len = rest.len().min(8 - at % 8);
            let (part, tail) = rest.split_at_mut(len);
            part.copy_from_slice(&word[at % 8..at % 8 + len]);
            at += len;
            rest = tail;
        }
    }
}

impl Set {
    fn new() -> Self {
        Self {
            numbers: std::array::from_fn(|_| AtomicU64::new(NONE)),
            slots: Default::default(),
            turn: Mutex::default(),
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `look` makes of page `number`, if it is here.
    fn look<T>(&self, number: u64, look: &mut impl FnMut(&Words<'_>) -> T) -> Option<T> {
        let way = self.numbers.iter().position(|kept| kept.load(Ordering::Relaxed) == number)?;
        let slot = &self.slots[way];
        let before = slot.version.load(Ordering::Acquire);
        if !before.is_multiple_of(2) || self.numbers[way].load(Ordering::Relaxed) != number {
            return None;
        }
        let seen = look(&Words::Kept(slot.words.get()?));
        fence(Ordering::Acquire);
        if slot.version.load(Ordering::Relaxed) != before {
            return None;
        }
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(seen)
    }

    /// Puts `page` where it was, or in the place of one that was not used lately.
    fn keep(&self, turn: &mut Turn, number: u64, page: &[u8]) {
        let here = self.numbers.iter().position(|kept| kept.load(Ordering::Relaxed) == number);
        let free = || self.numbers.iter().position(|kept| kept.load(Ordering::Relaxed) == NONE);
        let way = here.or_else(free).unwrap_or_else(|| {
            while self.slots[turn.hand].used.swap(false, Ordering::Relaxed) {
                turn.hand = (turn.hand + 1) % WAYS;
            }
            let way = turn.hand;
            turn.hand = (way + 1) % WAYS;
            way
        });
        let slot = &self.slots[way];
        let words = slot.words.get_or_init(|| (0..page.len() / 8).map(|_| AtomicU64::new(0)).collect());
        self.replace(way, number, || {
            for (word, bytes) in words.iter().zip(page.as_chunks::<8>().0) {
                word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
            }
        });
        slot.used.store(here.is_some(), Ordering::Relaxed);
    }

    /// Changes what slot `way` holds; the caller has the turn.
    fn replace(&self, way: usize, number: u64, fill: impl FnOnce()) {
        let version = &self.slots[way].version;
        let before = version.load(Ordering::Relaxed);
        version.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.numbers[way].store(number, Ordering::Relaxed);
        fill();
        version.store(before.wrapping_add(2), Ordering::Release);
    }

    /// Drops the pages whose number is in `numbers`.
    fn forget(&self, numbers: &Range<u64>) {
        let mut turn = self.turn();
        turn.changes += 1;
        for way in 0..WAYS {
            if numbers.contains(&self.numbers[way].load(Ordering::Relaxed)) {
                self.replace(way, NONE, || ());
            }
        }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Pages {
    /// A cache over `storage` of about `capacity` pages of 4096 bytes: rounded up to eight times a power of two.
    pub(crate) fn new(storage: Arc<dyn Storage>, capacity: usize) -> Self {
        Self::of_unit(storage, PAGE, capacity)
    }

    /// As [`new`](Self::new), with pages of `unit` bytes, a power of two from 8 to 4096.
    pub(crate) fn of_unit(storage: Arc<dyn Storage>, unit: usize, capacity: usize) -> Self {
        let unit = unit.clamp(8, PAGE).next_power_of_two();
        let sets = capacity.div_ceil(WAYS).next_power_of_two();
        let sets = std::iter::repeat_with(OnceLock::new).take(sets).collect();
        Self { storage, unit, sets, known_len: AtomicU64::new(0) }
    }

    /// The storage below.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The index of the set page `number` belongs to: numbers that lie apart by any fixed step, as the bitmaps of
    /// neighbouring blocks do, are spread evenly.
    fn set_of(&self, number: u64) -> usize {
        let bits = self.sets.len().trailing_zeros();
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15).checked_shr(u64::BITS - bits).unwrap_or(0) as usize
    }

    fn set(&self, number: u64) -> &Set {
        self.sets[self.set_of(number)].get_or_init(|| Box::new(Set::new()))
    }

    /// Whether the storage is at least `end` bytes long. Its length is asked for when that is more than it ever was: a
    /// storage that its owner cuts is [forgotten](Self::forget) from there on, and one that others cut fails when it is
    /// read.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn reaches(&self, end: u64) -> io::Result<bool> {
        if end <= self.known_len.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let len = self.storage.len()?;
        self.known_len.store(len, Ordering::Relaxed);
        Ok(end <= len)
    }

    /// The 4096 bytes at `offset`, a multiple of 4096. What lies past the end of the storage reads as zeros.
    ///
    /// # Errors
    /// `InvalidInput` when `offset` is not a multiple of the page size; `UnexpectedEof` when the page starts at or past the end;
    /// what the storage answers.
    pub(crate) fn read(&self, offset: u64) -> io::Result<Box<Page>> {
        let mut page = Box::new([0; PAGE]);
        self.look(offset, |words| words.copy_to(&mut page[..self.unit], 0))?;
        Ok(page)
    }

    /// What `look` makes of the page at `offset`, a multiple of the page size; what lies past the end of the storage reads
    /// as zeros. `look` may be called twice, the first time on bytes that never were together: it must end whatever it sees.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn look<T>(&self, offset: u64, mut look: impl FnMut(&Words<'_>) -> T) -> io::Result<T> {
        match self.look_whole(offset, &mut look) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let there = self.storage.len()?.saturating_sub(offset).min(self.unit as u64) as usize;
                if there == 0 || there == self.unit {
                    return Err(error);
                }
                let mut page = [0; PAGE];
                self.storage.read_exact_at(&mut page[..there], offset)?;
                // Not kept: bytes appended later would not show.
                Ok(look(&Words::Read(&page[..self.unit])))
            }
            looked => looked,
        }
    }

    /// As [`look`](Self::look), at a page all of which is in the file: for tables where a missing end is no zeros.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends inside or before it; what the storage answers.
    pub(crate) fn look_whole<T>(&self, offset: u64, mut look: impl FnMut(&Words<'_>) -> T) -> io::Result<T> {
        let number = self.number(offset)?;
        let set = self.set(number);
        if let Some(seen) = set.look(number, &mut look) {
            return Ok(seen);
        }
        let changes = set.turn().changes;
        let mut page = [0; PAGE];
        let page = &mut page[..self.unit];
        self.storage.read_exact_at(page, offset)?;
        let mut turn = set.turn();
        if turn.changes == changes {
            set.keep(&mut turn, number, page);
        }
        drop(turn);
        Ok(look(&Words::Read(page)))
    }

    /// Fills `buf` from `offset`, which need not lie on a page boundary, through the cache.
    ///
    /// # Errors
    /// `UnexpectedEof` when a page starts at or past the end; what the storage answers.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let inside = (at % self.unit as u64) as usize;
            let len = rest.len().min(self.unit - inside);
            let (part, tail) = rest.split_at_mut(len);
            self.look(at - inside as u64, |words| words.copy_to(part, inside))?;
            at = at.checked_add(len as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
            rest = tail;
        }
        Ok(())
    }

    /// Takes `page` as the bytes at `offset` (a multiple of 4096, the page size), after the caller wrote them there.
    ///
    /// # Errors
    /// `InvalidInput` when `offset` is not a multiple of 4096.
    pub(crate) fn put(&self, offset: u64, page: &Page) -> io::Result<()> {
        let number = self.number(offset)?;
        let set = self.set(number);
        let mut turn = set.turn();
        turn.changes += 1;
        set.keep(&mut turn, number, page);
        Ok(())
    }

    /// Drops every page that `range` (in bytes) touches, after the caller changed those bytes or cut them off.
    pub(crate) fn forget(&self, range: &Range<u64>) {
        self.known_len.fetch_min(range.start, Ordering::Relaxed);
        let unit = self.unit as u64;
        let numbers = range.start / unit..range.end.div_ceil(unit);
        if numbers.end.saturating_sub(numbers.start) < self.sets.len() as u64 {
            // Also the sets not made yet: a read that is on its way may be making one.
            numbers.clone().for_each(|number| self.set(number).forget(&numbers));
        } else {
            self.sets.iter().for_each(|set| set.get_or_init(|| Box::new(Set::new())).forget(&numbers));
        }
    }

    fn number(&self, offset: u64) -> io::Result<u64> {
        let unit = self.unit as u64;
        if offset.is_multiple_of(unit) {
            Ok(offset / unit)
        } else {
            let message = format!("a page starts on a multiple of {unit} bytes");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
    }
}

#[cfg(test)]
mod tests;
