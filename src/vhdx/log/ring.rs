//! The log as a ring: reading it, and finding the active sequence.
//!
//! Owns: the search of [MS-VHDX] 2.3.2. Must not know: what entries do.
//!
//! The search gives what the specification's algorithm gives, in one pass: valid entries never share a sector (see
//! [`super::entry`]), so they form disjoint runs in which each entry follows the one before it in the ring and in number.
//! A run counts when its last entry's tail is the start of an entry of the run; the one with the greatest last number is
//! active, of several the one the specification's walk meets first. Numbers only rise along a run, so none can lap itself.

use super::entry::{Check, EntryHeader};
use super::{LogArea, PAGE, Page};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{FileOffset, round_down};
use std::cmp::Reverse;

/// How many bytes of the log are read at once.
const CHUNK: u64 = 256 << 10;

/// A valid entry and where in the ring it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Ring position, a multiple of 4096.
    pub(crate) at: u64,
    /// Its header.
    pub(crate) header: EntryHeader,
}

/// Reads log sectors through a small buffer.
#[derive(Debug)]
pub(crate) struct RingReader<'a> {
    storage: &'a dyn Storage,
    area: LogArea,
    start: u64,
    buffer: Vec<u8>,
}

impl<'a> RingReader<'a> {
    pub(crate) fn new(storage: &'a dyn Storage, area: LogArea) -> Self {
        Self { storage, area, start: 0, buffer: Vec::new() }
    }

    /// The sector at ring position `at` (taken modulo the ring's length).
    pub(crate) fn sector(&mut self, at: u64) -> Result<&Page> {
        let at = self.area.advance(at, 0);
        if !self.holds(at) {
            self.load(at)?;
        }
        let skip = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let sector = self.buffer.get(skip..).and_then(|rest| rest.first_chunk::<4096>());
        sector.ok_or_else(|| Error::io("read the log", std::io::ErrorKind::UnexpectedEof.into()))
    }

    fn holds(&self, at: u64) -> bool {
        at.checked_sub(self.start).is_some_and(|skip| skip < self.buffer.len() as u64)
    }

    /// The first position from `at` on that does not lie in a hole of the file: a hole is zeros, and no entry starts with
    /// those. A log may be 1 GiB long.
    fn past_hole(&self, at: u64) -> Result<u64> {
        if self.holds(at) {
            return Ok(at);
        }
        let from = self.area.file_offset(at);
        let data = self.storage.next_data(from).map_err(|error| Error::io("look for data in the log", error))?;
        let hole = data.map_or(u64::MAX, |data| data.saturating_sub(from));
        Ok(at.saturating_add(round_down(hole, PAGE)).min(self.area.length))
    }

    fn load(&mut self, at: u64) -> Result<()> {
        let len = self.area.length.saturating_sub(at).min(CHUNK);
        let from = self.area.file_offset(at);
        // Forgotten first: a failed read must not leave a buffer that looks filled.
        self.buffer.clear();
        let mut buffer = vec![0; usize::try_from(len).unwrap_or(0)];
        self.storage
            .read_exact_at(&mut buffer, from)
            .map_err(|error| Error::io("read the log", error).with_offset(FileOffset(from)))?;
        self.start = at;
        self.buffer = buffer;
        Ok(())
    }
}

/// Every valid entry, in ring order.
pub(crate) fn index(reader: &mut RingReader<'_>) -> Result<Vec<Placed>> {
    let area = reader.area;
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        at = reader.past_hole(at)?;
        if at >= area.length {
            break;
        }
        let entry = valid_entry(reader, at)?;
        at = at.saturating_add(entry.map_or(PAGE, |header| header.length));
        let start = at.saturating_sub(entry.map_or(PAGE, |header| header.length));
        found.extend(entry.map(|header| Placed { at: start, header }));
    }
    Ok(found)
}

fn valid_entry(reader: &mut RingReader<'_>, start: u64) -> Result<Option<EntryHeader>> {
    let area = reader.area;
    let Some(mut check) = Check::begin(reader.sector(start)?, &area) else { return Ok(None) };
    let mut at = start;
    while check.remaining() > 0 {
        at = area.advance(at, PAGE);
        if check.feed(reader.sector(at)?, &area).is_none() {
            return Ok(None);
        }
    }
    Ok(check.finish())
}

/// The active sequence among `entries` (in ring order), from its tail to its last entry; empty when there is none.
pub(crate) fn active(entries: &[Placed], area: &LogArea) -> Vec<Placed> {
    let at = |position: u64| entries.binary_search_by_key(&position, |one| one.at).ok();
    let follower = |one: &Placed| {
        let next = at(area.advance(one.at, one.header.length))?;
        let number = entries.get(next)?.header.sequence;
        (one.header.sequence.checked_add(1) == Some(number)).then_some(next)
    };
    let next: Vec<Option<usize>> = entries.iter().map(follower).collect();
    let mut starts = vec![true; entries.len()];
    for after in next.iter().flatten() {
        if let Some(start) = starts.get_mut(*after) {
            *start = false;
        }
    }
    let mut best: Vec<Placed> = Vec::new();
    let mut rank = None;
    for (start, _) in starts.iter().enumerate().filter(|(_, is_start)| **is_start) {
        let run = run_from(entries, &next, start);
        let Some(last) = run.last() else { continue };
        let Some(tail) = run.iter().position(|one| one.at == last.header.tail) else { continue };
        let this = Some((last.header.sequence, Reverse(met_at(&run, last))));
        if this > rank {
            rank = this;
            best = run.get(tail..).unwrap_or_default().to_vec();
        }
    }
    best
}

/// The ring position at which the specification's walk, which starts at 0, first finds the run whose last entry is
/// `last`. Of runs with the same last number it keeps the one it finds first.
fn met_at(run: &[Placed], last: &Placed) -> u64 {
    let lowest = run.iter().map(|one| one.at).min().unwrap_or(0);
    // The part of a run behind the ring's end is met before the rest, and is enough when the tail lies in it.
    if last.header.tail <= last.at { lowest } else { run.first().map_or(lowest, |first| first.at) }
}

fn run_from(entries: &[Placed], next: &[Option<usize>], start: usize) -> Vec<Placed> {
    let follow = |at: &usize| next.get(*at).copied().flatten();
    std::iter::successors(Some(start), follow).filter_map(|at| entries.get(at).copied()).collect()
}
