//! Transactions: the one way metadata changes after a file was created.
//!
//! Owns: the set of page edits that must appear together ([`Transaction`]), and the ring they go through ([`Session`]).
//! Must not know: what the pages mean; when the headers change.
//!
//! A commit writes one log entry, syncs, and only then writes the pages to their places. Those writes need no sync of
//! their own: the sync of the next entry covers them, and until then the entry stays in the live part of the ring. So in
//! the ring at most two entries are live (the one before the last until the last is durable, then the last), and an
//! entry of a third of the ring always fits:
//!
//! ```text
//! | stale ... | entry n-1 | entry n | free ...        tail of n = n-1: its pages may not be durable in place
//! | stale ............... | entry n | entry n+1 | .. tail of n+1 = n: the sync of n made the pages of n-1 durable
//! ```
//!
//! What the tail of the last durable entry says is live is never overwritten, even when memory knows better: after a
//! crash that tail is all there is.

use super::log::entry::{Draft, encoded_len};
use super::log::{LogArea, PAGE, Page};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::Storage;
use crate::storage::pages::Pages;
use crate::units::{FileOffset, MIB, round_down, round_up};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

/// Page edits and zeroed ranges that appear together or not at all. Zeroing comes before the edits.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pages: BTreeMap<u64, Box<Page>>,
    zeros: Vec<Range<u64>>,
}

impl Transaction {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Whether there is nothing to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.zeros.is_empty()
    }

    /// Zeroes `range` (multiples of 4096) before the edits. Edits made in it so far are gone.
    pub(crate) fn zero(&mut self, range: Range<u64>) {
        self.pages.retain(|at, _| !range.contains(at));
        self.zeros.push(range);
    }

    /// The page at `offset` (a multiple of 4096), as it is after the edits so far, for editing.
    pub(crate) fn page_mut(&mut self, store: &Pages, offset: u64) -> Result<&mut Page> {
        if !self.pages.contains_key(&offset) {
            let zeroed = self.zeros.iter().any(|range| range.contains(&offset));
            let page = if zeroed { [0; 4096] } else { *store.read(offset).map_err(|e| failed("read", e, offset))? };
            self.pages.insert(offset, Box::new(page));
        }
        let page = self.pages.get_mut(&offset);
        page.map(|page| &mut **page).ok_or_else(|| Error::new(ErrorKind::Io, "a page was lost"))
    }

    /// Writes `bytes` at `offset`, wherever that is.
    pub(crate) fn write(&mut self, store: &Pages, offset: u64, bytes: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let start = round_down(at, PAGE);
            let inside = usize::try_from(at.saturating_sub(start)).unwrap_or_default();
            let page = self.page_mut(store, start)?.get_mut(inside..).unwrap_or_default();
            let (part, tail) = rest.split_at(rest.len().min(page.len()));
            if let Some(to) = page.get_mut(..part.len()) {
                to.copy_from_slice(part);
            }
            (at, rest) = (at.saturating_add(part.len() as u64), tail);
        }
        Ok(())
    }

    /// The length of the log entry, were the pages of `ranges` edited and `zeros` more ranges zeroed too.
    pub(crate) fn entry_len_with(&self, ranges: &[Range<u64>], zeros: u64) -> u64 {
        let mut extra: Vec<u64> = ranges
            .iter()
            .flat_map(|range| pages_of(range).step_by(4096))
            .filter(|page| !self.pages.contains_key(page))
            .collect();
        extra.sort_unstable();
        extra.dedup();
        let pages = (self.pages.len() as u64).saturating_add(extra.len() as u64);
        encoded_len((self.zeros.len() as u64).saturating_add(zeros), pages)
    }
}

/// The offsets from the first byte of the first page `range` touches to the end of the last one.
fn pages_of(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    round_down(range.start, PAGE)..round_up(range.end, PAGE).unwrap_or(u64::MAX)
}

fn failed(verb: &str, error: io::Error, offset: u64) -> Error {
    Error::io(format_args!("{verb} VHDX metadata"), error).with_offset(FileOffset(offset))
}

/// A logging session: the writer's end of the ring.
#[derive(Debug)]
pub(crate) struct Session {
    area: LogArea,
    /// Number of the last entry.
    sequence: u64,
    /// Ring position of the next entry.
    head: u64,
    /// Bytes before `head` that the last durable entry's tail keeps alive.
    live: u64,
    /// Length of the last entry while its pages may not be durable in place; else 0.
    unsettled: u64,
    /// The file is known to be this long on the medium.
    durable_len: u64,
    failed: bool,
}

impl Session {
    /// Begins a session in `area`: one empty entry with its guid at the start of the ring, synced. Until a header names
    /// the guid nobody reads the log. The file is known to be `durable_len` bytes long on the medium.
    pub(crate) fn start(storage: &dyn Storage, area: LogArea, durable_len: u64) -> Result<Self> {
        let mut session = Self { area, sequence: 0, head: 0, live: 0, unsettled: 0, durable_len, failed: false };
        session.append(storage, &[], &[])?;
        session.unsettled = 0;
        Ok(session)
    }

    /// The longest entry a commit can make.
    pub(crate) fn max_entry(&self) -> u64 {
        round_down(self.area.length / 3, PAGE)
    }

    /// Whether a commit or sync failed, so that nothing more is written.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Makes `transaction` durable, then visible. One sync.
    ///
    /// # Errors
    /// `InvalidInput` when it is longer than [`max_entry`](Self::max_entry); what the storage answers, and then the
    /// session is closed for writing.
    pub(crate) fn commit(&mut self, store: &Pages, transaction: &Transaction) -> Result<()> {
        if transaction.is_empty() {
            return Ok(());
        }
        if self.failed {
            return Err(Error::new(ErrorKind::ReadOnly, "an earlier write failed; open the image again"));
        }
        if transaction.entry_len_with(&[], 0) > self.max_entry() {
            return Err(Error::new(ErrorKind::InvalidInput, "the change is too large for the image's log"));
        }
        let result = self.commit_unchecked(store, transaction);
        self.failed |= result.is_err();
        result
    }

    fn commit_unchecked(&mut self, store: &Pages, transaction: &Transaction) -> Result<()> {
        let storage = &**store.storage();
        let pages: Vec<(u64, &Page)> = transaction.pages.iter().map(|(at, page)| (*at, &**page)).collect();
        self.append(storage, &transaction.zeros, &pages)?;
        for range in &transaction.zeros {
            storage.zero_range(range.clone()).map_err(|error| failed("zero", error, range.start))?;
            store.forget(range);
        }
        for run in pages.chunk_by(|one, two| one.0.checked_add(PAGE) == Some(two.0)) {
            let Some((start, _)) = run.first() else { continue };
            let bytes: Vec<u8> = run.iter().flat_map(|(_, page)| page.iter().copied()).collect();
            storage.write_all_at(&bytes, *start).map_err(|error| failed("write", error, *start))?;
            for (at, page) in run {
                store.put(*at, page).map_err(|error| failed("keep", error, *at))?;
            }
        }
        Ok(())
    }

    /// Writes one entry at the head and syncs.
    fn append(&mut self, storage: &dyn Storage, zeros: &[Range<u64>], pages: &[(u64, &Page)]) -> Result<()> {
        let now = length(storage)?;
        let sequence = self.sequence.saturating_add(1);
        let draft = Draft {
            guid: self.area.guid,
            sequence,
            tail: self.area.before(self.head, self.unsettled),
            flushed_file_offset: round_down(self.durable_len, MIB),
            last_file_offset: round_up(now, MIB).unwrap_or(now),
            zeros,
            pages,
        };
        let bytes = draft.encode().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a log entry is too long"))?;
        let len = bytes.len() as u64;
        if self.live.saturating_add(len) > self.area.length {
            return Err(Error::new(ErrorKind::InvalidInput, "the image's log is full"));
        }
        let to_end = usize::try_from(self.area.length.saturating_sub(self.head)).unwrap_or(usize::MAX);
        let (first, wrapped) = bytes.split_at(bytes.len().min(to_end));
        for (part, at) in [(first, self.head), (wrapped, 0)] {
            let offset = self.area.file_offset(at);
            storage
                .write_all_at(part, offset)
                .map_err(|error| Error::io("write the log", error).with_offset(FileOffset(offset)))?;
        }
        storage.sync().map_err(|error| Error::io("sync the log", error))?;
        self.durable_len = now;
        self.sequence = sequence;
        self.live = self.unsettled.saturating_add(len);
        self.head = self.area.advance(self.head, len);
        self.unsettled = len;
        Ok(())
    }

    /// Makes everything committed so far durable in its place.
    pub(crate) fn flush(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.failed {
            return Err(Error::new(ErrorKind::ReadOnly, "an earlier write failed; open the image again"));
        }
        let now = length(storage)?;
        if let Err(error) = storage.sync() {
            self.failed = true;
            return Err(Error::io("sync the image", error));
        }
        self.durable_len = now;
        self.unsettled = 0;
        Ok(())
    }
}

fn length(storage: &dyn Storage) -> Result<u64> {
    storage.len().map_err(|error| Error::io("read the file's length", error))
}

#[cfg(test)]
mod tests;
