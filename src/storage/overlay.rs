//! Changes held in memory over a storage that is never written.
//!
//! Owns: edited pages, hidden ranges and the length. Must not know: any format, why the changes are made.

use super::{PAGE, Page, Storage, end_of, past_end};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The most pages an overlay holds edits of: 256 MiB. Overlays carry what a log replays for a reading open; writers keep
/// logs of 1 MiB, so more than this is a file made to eat memory.
const MAX_EDITED_PAGES: usize = 1 << 16;

/// The most separate ranges an overlay hides, for the same reason; each costs some fifty bytes.
const MAX_HIDDEN_RANGES: usize = 1 << 20;

const PAGE_BYTES: u64 = PAGE as u64;

/// Past the last page of the largest file.
const PAGES_END: u64 = (u64::MAX / PAGE_BYTES) + 1;

/// Reads as the storage below with changes on top; the changes live in memory and are gone with it.
///
/// Zeroing or resizing costs the same whatever the range. Edits of more than 256 MiB fail with `OutOfMemory`. The storage
/// below must not change its length or contents meanwhile.
pub struct OverlayStorage {
    base: Arc<dyn Storage>,
    base_len: u64,
    edits: RwLock<Edits>,
}

impl fmt::Debug for OverlayStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edits = self.edits();
        f.debug_struct("OverlayStorage")
            .field("base", &self.base)
            .field("len", &edits.len)
            .field("edited_pages", &edits.pages.len())
            .finish_non_exhaustive()
    }
}

/// Invariant: every byte at or past `len` reads as zero, so growing needs no work.
#[derive(Default)]
struct Edits {
    len: u64,
    /// By page number; wins over everything.
    pages: BTreeMap<u64, Box<Page>>,
    /// Ranges of page numbers (start to end) where zeros hide the base. Disjoint, never touching.
    hidden: BTreeMap<u64, u64>,
}

/// What a run of pages reads as.
enum Piece<'a> {
    Edited(&'a Page),
    Hidden,
    Base,
}

impl Edits {
    /// What page `number` reads as, and the page number where that answer ends.
    fn piece(&self, number: u64) -> (Piece<'_>, u64) {
        if let Some(page) = self.pages.get(&number) {
            return (Piece::Edited(page), number + 1);
        }
        let next_edit = self.pages.range(number..).next().map_or(PAGES_END, |(&next, _)| next);
        match self.hidden.range(..=number).next_back() {
            Some((_, &end)) if end > number => (Piece::Hidden, end.min(next_edit)),
            _ => {
                let next_hidden = self.hidden.range(number..).next().map_or(PAGES_END, |(&next, _)| next);
                (Piece::Base, next_hidden.min(next_edit))
            }
        }
    }

    /// Makes whole pages read as zeros.
    fn hide(&mut self, pages: Range<u64>) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        if self.hidden.len() >= MAX_HIDDEN_RANGES {
            return Err(full());
        }
        let edited: Vec<u64> = self.pages.range(pages.clone()).map(|(&number, _)| number).collect();
        for number in edited {
            self.pages.remove(&number);
        }
        let Range { mut start, mut end } = pages;
        if let Some((&before, &before_end)) = self.hidden.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.hidden.range(start..=end).next() {
            end = end.max(next_end);
            self.hidden.remove(&next);
        }
        self.hidden.insert(start, end);
        Ok(())
    }
}

fn full() -> io::Error {
    io::Error::new(
        io::ErrorKind::OutOfMemory,
        format!("more than {} MiB of changes are held in memory", (MAX_EDITED_PAGES * PAGE) >> 20),
    )
}

impl OverlayStorage {
    /// Nothing changed yet over `base`.
    ///
    /// # Errors
    /// What `base` answers when asked for its length.
    pub fn new(base: Arc<dyn Storage>) -> io::Result<Self> {
        let base_len = base.len()?;
        Ok(Self { base, base_len, edits: RwLock::new(Edits { len: base_len, ..Edits::default() }) })
    }

    fn edits(&self) -> RwLockReadGuard<'_, Edits> {
        self.edits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn edits_mut(&self) -> RwLockWriteGuard<'_, Edits> {
        self.edits.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `buf` from `at`; what lies past the end reads as zeros.
    fn compose(&self, edits: &Edits, buf: &mut [u8], at: u64) -> io::Result<()> {
        let (mut at, mut rest) = (at, buf);
        while !rest.is_empty() {
            let (piece, end) = edits.piece(at / PAGE_BYTES);
            let run = end.saturating_mul(PAGE_BYTES) - at;
            let len = rest.len().min(usize::try_from(run).unwrap_or(usize::MAX));
            let (part, tail) = rest.split_at_mut(len);
            match piece {
                Piece::Edited(page) => {
                    let inside = (at % PAGE_BYTES) as usize;
                    part.copy_from_slice(&page[inside..inside + len]);
                }
                Piece::Hidden => part.fill(0),
                Piece::Base => self.read_base(part, at)?,
            }
            at += len as u64;
            rest = tail;
        }
        Ok(())
    }

    fn read_base(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let there = self.base_len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (there, past) = buf.split_at_mut(there);
        past.fill(0);
        if there.is_empty() { Ok(()) } else { self.base.read_exact_at(there, at) }
    }

    /// Changes one page through `change`.
    fn edit(&self, edits: &mut Edits, number: u64, change: impl FnOnce(&mut Page)) -> io::Result<()> {
        if let Some(page) = edits.pages.get_mut(&number) {
            change(page);
            return Ok(());
        }
        if edits.pages.len() >= MAX_EDITED_PAGES {
            return Err(full());
        }
        let mut page = Box::new([0; PAGE]);
        self.compose(edits, &mut page[..], number * PAGE_BYTES)?;
        change(&mut page);
        edits.pages.insert(number, page);
        Ok(())
    }

    /// Zeros bytes `from..to` of one page; costs nothing when they show no base.
    fn zero_inside(&self, edits: &mut Edits, number: u64, inside: Range<usize>) -> io::Result<()> {
        if inside.is_empty() || matches!(edits.piece(number), (Piece::Hidden, _)) {
            return Ok(());
        }
        self.edit(edits, number, |page| page[inside].fill(0))
    }
}

impl Storage for OverlayStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.edits().len)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let edits = self.edits();
        if buf.is_empty() {
            return Ok(());
        }
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > edits.len) {
            return Err(past_end(offset, buf.len(), edits.len));
        }
        self.compose(&edits, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = end_of(offset, buf.len() as u64)?;
        let mut edits = self.edits_mut();
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let inside = (at % PAGE_BYTES) as usize;
            let (part, tail) = rest.split_at(rest.len().min(PAGE - inside));
            self.edit(&mut edits, at / PAGE_BYTES, |page| page[inside..inside + part.len()].copy_from_slice(part))?;
            at += part.len() as u64;
            // Page by page, so that a write the limit stops half way leaves no bytes past the end.
            edits.len = edits.len.max(at);
            rest = tail;
        }
        debug_assert_eq!(at, end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        end_of(len, 0)?;
        let mut edits = self.edits_mut();
        if len < edits.len {
            if !len.is_multiple_of(PAGE_BYTES) {
                self.zero_inside(&mut edits, len / PAGE_BYTES, (len % PAGE_BYTES) as usize..PAGE)?;
            }
            edits.hide(len.div_ceil(PAGE_BYTES)..PAGES_END)?;
        }
        edits.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        end_of(range.end, 0)?;
        let mut edits = self.edits_mut();
        let (first, last) = (range.start / PAGE_BYTES, range.end / PAGE_BYTES);
        let (head, tail) = ((range.start % PAGE_BYTES) as usize, (range.end % PAGE_BYTES) as usize);
        if first == last {
            self.zero_inside(&mut edits, first, head..tail)?;
        } else {
            if head != 0 {
                self.zero_inside(&mut edits, first, head..PAGE)?;
            }
            self.zero_inside(&mut edits, last, 0..tail)?;
            edits.hide(range.start.div_ceil(PAGE_BYTES)..last)?;
        }
        edits.len = edits.len.max(range.end);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let edits = self.edits();
        let mut at = offset;
        while at < edits.len {
            let (piece, end) = edits.piece(at / PAGE_BYTES);
            let end = end.saturating_mul(PAGE_BYTES);
            let found = match piece {
                Piece::Edited(_) => Some(at),
                Piece::Hidden => None,
                Piece::Base => self.base.next_data(at)?.filter(|&found| found < end),
            };
            if found.is_some() {
                return Ok(found.filter(|&found| found < edits.len));
            }
            at = end;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
