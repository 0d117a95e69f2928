//! Sparse contents in memory: what a file holds, at the price of the pages that are not zero.
//!
//! Owns: the page map, copy-on-write between clones, and a number that tells contents apart. Must not know: locks,
//! journals, who reads it.

use super::{PAGE, Page, end_of, past_end};
use crate::zeros::is_zero;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
#[cfg(feature = "sim")]
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::OnceLock,
};

const PAGE_BYTES: u64 = PAGE as u64;

/// A length and the pages that may hold something else than zeros. A clone shares every page until one side changes it.
///
/// Invariant: no byte at or past `len` is set, so growing needs no work.
#[derive(Clone, Default)]
pub(super) struct Sparse {
    len: u64,
    pages: Arc<BTreeMap<u64, Arc<Held>>>,
}

/// A page, and its hash once somebody asked for it.
#[derive(Clone)]
struct Held {
    bytes: Page,
    #[cfg(feature = "sim")]
    hash: OnceLock<u64>,
}

impl Held {
    fn new(bytes: Page) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            #[cfg(feature = "sim")]
            hash: OnceLock::new(),
        })
    }

    /// The bytes of a page that is no clone's, for changing.
    fn bytes_mut(held: &mut Arc<Self>) -> &mut Page {
        let held = Arc::make_mut(held);
        #[cfg(feature = "sim")]
        held.hash.take();
        &mut held.bytes
    }
}

impl fmt::Debug for Sparse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sparse").field("len", &self.len).field("pages", &self.pages.len()).finish()
    }
}

impl Sparse {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let pages = bytes
            .chunks(PAGE)
            .zip(0u64..)
            .filter(|(chunk, _)| !is_zero(chunk))
            .map(|(chunk, number)| {
                let mut page = [0; PAGE];
                page[..chunk.len()].copy_from_slice(chunk);
                (number, Held::new(page))
            })
            .collect();
        Self { len: bytes.len() as u64, pages: Arc::new(pages) }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many pages are held.
    pub(super) fn page_count(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.len) {
            return Err(past_end(offset, buf.len(), self.len));
        }
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let inside = (at % PAGE_BYTES) as usize;
            let len = rest.len().min(PAGE - inside);
            let (part, tail) = rest.split_at_mut(len);
            match self.pages.get(&(at / PAGE_BYTES)) {
                Some(page) => part.copy_from_slice(&page.bytes[inside..inside + len]),
                None => part.fill(0),
            }
            at += len as u64;
            rest = tail;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = end_of(offset, buf.len() as u64)?;
        let pages = Arc::make_mut(&mut self.pages);
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let inside = (at % PAGE_BYTES) as usize;
            let (part, tail) = rest.split_at(rest.len().min(PAGE - inside));
            let number = at / PAGE_BYTES;
            if part.len() == PAGE && is_zero(part) {
                pages.remove(&number);
            } else {
                let page = Held::bytes_mut(pages.entry(number).or_insert_with(|| Held::new([0; PAGE])));
                page[inside..inside + part.len()].copy_from_slice(part);
            }
            at += part.len() as u64;
            rest = tail;
        }
        self.len = self.len.max(end);
        Ok(())
    }

    pub(super) fn set_len(&mut self, len: u64) -> io::Result<()> {
        end_of(len, 0)?;
        if len < self.len {
            let pages = Arc::make_mut(&mut self.pages);
            drop(pages.split_off(&len.div_ceil(PAGE_BYTES)));
            if let Some(page) = pages.get_mut(&(len / PAGE_BYTES)) {
                Held::bytes_mut(page)[(len % PAGE_BYTES) as usize..].fill(0);
            }
        }
        self.len = len;
        Ok(())
    }

    pub(super) fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        end_of(range.end, 0)?;
        let pages = Arc::make_mut(&mut self.pages);
        let touched: Vec<u64> =
            pages.range(range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES)).map(|(&number, _)| number).collect();
        for number in touched {
            let first = number * PAGE_BYTES;
            let from = range.start.saturating_sub(first) as usize;
            let to = (range.end - first).min(PAGE_BYTES) as usize;
            if from == 0 && to == PAGE {
                pages.remove(&number);
            } else if let Some(page) = pages.get_mut(&number) {
                Held::bytes_mut(page)[from..to].fill(0);
            }
        }
        self.len = self.len.max(range.end);
        Ok(())
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        let (&number, _) = self.pages.range(offset / PAGE_BYTES..).next()?;
        Some(offset.max(number * PAGE_BYTES)).filter(|&at| at < self.len)
    }

    /// A number by which other contents are told apart: equal contents that came about in different ways may still differ
    /// in it, different ones agree by an accident of 1 in 2^64.
    #[cfg(feature = "sim")]
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.len.hash(&mut hasher);
        for (number, page) in &*self.pages {
            let hash = page.hash.get_or_init(|| {
                let mut hasher = DefaultHasher::new();
                page.bytes.hash(&mut hasher);
                hasher.finish()
            });
            (number, hash).hash(&mut hasher);
        }
        hasher.finish()
    }
}
