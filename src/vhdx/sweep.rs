//! A quick look over the whole block allocation table, by several threads.
//!
//! Owns: dealing the table out and stepping over its holes, counting blocks, and telling a table without flaws from
//! others. Must not know: what is wrong with a table that has flaws (`survey` walks over it, entry by entry).
//!
//! Memory is one bit per MiB of the file for each thread, 8 MiB for a file of 64 TiB, and some 256 KiB of table.

use super::bat::Geometry;
use super::image::Vhdx;
use super::raw::BAT_ENTRY_LEN;
use super::read_structure;
use super::space::Space;
use super::survey::{PLACE_BITS, Survey};
use crate::error::{Error, Result};
use crate::finding::Findings;
use crate::problem::Structure;
use crate::units::{FileOffset, MIB};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Bytes of table read at a time, rounded to whole chunks.
const PIECE_LEN: u64 = 128 << 10;
/// Tables up to this length are not worth a thread.
const ONE_THREAD_LEN: u64 = 2 * MIB;
/// The most threads: each keeps its own picture of the file, and so many read as fast as memory gives.
const MAX_THREADS: usize = 4;

/// What one thread makes of the parts of the table it is shown.
trait Tally: Send {
    /// Takes the entries of `chunk`: the payload blocks', and last the sector bitmap's unless the table ends before it.
    /// Answers false when there is no need to look further.
    fn take(&mut self, chunk: u64, entries: &[[u8; 8]]) -> bool;

    /// The entries of the chunks from `chunk` on are zero, some of them.
    fn blank(&mut self, chunk: u64);
}

/// What the threads share.
struct Deal<'a> {
    image: &'a Vhdx,
    /// How many entries there are.
    count: u64,
    /// Entries in a chunk, and chunks in a piece.
    stride: u64,
    chunks: u64,
    next: AtomicU64,
    stopped: AtomicBool,
}

impl Deal<'_> {
    /// Takes pieces while there are any.
    fn work<T: Tally>(&self, mut tally: T) -> Result<T> {
        let span = self.stride.saturating_mul(self.chunks);
        let mut buffer = Vec::new();
        while !self.stopped.load(Ordering::Relaxed) {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            let first = piece.saturating_mul(span);
            if first >= self.count {
                break;
            }
            let entries = first..first.saturating_add(span).min(self.count);
            if !self.piece(piece.saturating_mul(self.chunks), entries, (&mut tally, &mut buffer))? {
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
        Ok(tally)
    }

    /// Shows the entries `entries`, the first of which begins chunk `chunk`.
    fn piece<T: Tally>(
        &self,
        chunk: u64,
        entries: Range<u64>,
        (tally, buffer): (&mut T, &mut Vec<u8>),
    ) -> Result<bool> {
        let image = self.image;
        let place = image.bat_offset(entries.start);
        let data = image.storage.next_data(place).map_err(|error| Error::io("look for data in the BAT", error))?;
        let hole = match data {
            Some(data) => data.saturating_sub(place),
            // A table that the file cuts off is read where the file ends, and fails.
            None => image.file_len()?.saturating_sub(place),
        };
        let skipped = (hole / BAT_ENTRY_LEN).checked_div(self.stride).unwrap_or_default();
        if skipped > 0 {
            tally.blank(chunk);
        }
        let start = entries.start.saturating_add(skipped.saturating_mul(self.stride));
        if start >= entries.end {
            // Whoever takes the next piece starts where the hole ends.
            let after = chunk.saturating_add(skipped).checked_div(self.chunks).unwrap_or_default();
            self.next.fetch_max(after, Ordering::Relaxed);
            return Ok(true);
        }
        let len = entries.end.saturating_sub(start).saturating_mul(BAT_ENTRY_LEN);
        buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
        let at = FileOffset(image.bat_offset(start));
        read_structure(&*image.storage, buffer, (Structure::VhdxBat, at), &mut Findings::new())?;
        let stride = usize::try_from(self.stride).unwrap_or(usize::MAX).max(1);
        let chunks = buffer.as_chunks::<8>().0.chunks(stride);
        Ok((chunk.saturating_add(skipped)..).zip(chunks).all(|(chunk, entries)| tally.take(chunk, entries)))
    }
}

impl Vhdx {
    /// Shows the first `count` entries of the table to tallies that `make` makes, one for each thread.
    ///
    /// # Errors
    /// `Corrupt` when the file ends inside the table; what `make` and the storage answer.
    fn sweep<T: Tally>(&self, count: u64, make: impl Fn() -> Result<T>) -> Result<Vec<T>> {
        let stride = self.geometry.chunk_ratio.saturating_add(1);
        let chunks = (PIECE_LEN / BAT_ENTRY_LEN).checked_div(stride).unwrap_or_default().max(1);
        let deal =
            Deal { image: self, count, stride, chunks, next: AtomicU64::new(0), stopped: AtomicBool::new(false) };
        let threads = if count.saturating_mul(BAT_ENTRY_LEN) <= ONE_THREAD_LEN {
            1
        } else {
            thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
        };
        if threads == 1 {
            return Ok(vec![deal.work(make()?)?]);
        }
        let tallies = (0..threads).map(|_| make()).collect::<Result<Vec<T>>>()?;
        thread::scope(|scope| {
            let work = |tally| deal.work(tally);
            let threads: Vec<_> = tallies.into_iter().map(|tally| scope.spawn(move || work(tally))).collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.collect()
        })
    }

    /// How many payload entries say that there is data.
    ///
    /// # Errors
    /// `Corrupt` when the file ends inside the table; what the storage answers.
    pub(super) fn count_allocated(&self) -> Result<u64> {
        let ratio = usize::try_from(self.geometry.chunk_ratio).unwrap_or(usize::MAX);
        let tallies = self.sweep(self.geometry.entries(), || Ok(Allocated { ratio, count: 0 }))?;
        Ok(tallies.iter().map(|tally| tally.count).sum())
    }

    /// What [`survey`](Self::survey) learns about a table all of whose first `count` entries are without a flaw, in a
    /// file of `file_len` bytes; `None` when one is not, or may not be.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn survey_if_sound(&self, count: u64, file_len: u64) -> Result<Option<Survey>> {
        let mut space = self.structure_space(file_len)?;
        let tallies = self.sweep(count, || Ok(Sound::new(self.geometry, space.blank_copy(), file_len)))?;
        let mut survey = (0u64, 0u64, u64::MAX);
        for mut tally in tallies {
            tally.end_run();
            if !tally.sound || tally.space.taken() != tally.owned || !space.join(&tally.space) {
                return Ok(None);
            }
            let (allocated, stated, first_unstated) = survey;
            survey = (
                allocated.saturating_add(tally.allocated),
                stated.saturating_add(tally.stated),
                first_unstated.min(tally.first_unstated),
            );
        }
        let (allocated, stated, first_unstated) = survey;
        let first_unstated = Some(first_unstated).filter(|&block| block < self.geometry.blocks());
        Ok(Some(Survey { allocated, stated, first_unstated, ..Survey::over(space, 0) }))
    }
}

/// Counts blocks.
struct Allocated {
    /// Payload entries in a chunk.
    ratio: usize,
    count: u64,
}

impl Tally for Allocated {
    fn take(&mut self, _: u64, entries: &[[u8; 8]]) -> bool {
        let payload = entries.iter().take(self.ratio);
        let present = payload.filter(|entry| u64::from_le_bytes(**entry) & 0b110 == 0b110).count();
        self.count = self.count.saturating_add(present as u64);
        true
    }

    fn blank(&mut self, _: u64) {}
}

/// Looks for a reason to look closer.
struct Sound {
    geometry: Geometry,
    /// MiB of the file that are there as a whole.
    units: u64,
    /// MiB per block.
    block: u64,
    /// What is owned, but for `run`.
    space: Space,
    /// MiB owned one after the other, by the entries seen last.
    run: Range<u64>,
    /// How many MiB those were that are no longer in `run`; more than `space` has when two own the same.
    owned: u64,
    sound: bool,
    allocated: u64,
    stated: u64,
    /// The lowest block in state 0.
    first_unstated: u64,
}

impl Sound {
    fn new(geometry: Geometry, space: Space, file_len: u64) -> Self {
        Self {
            geometry,
            units: file_len / MIB,
            block: geometry.block_size / MIB,
            space,
            run: 0..0,
            owned: 0,
            sound: true,
            allocated: 0,
            stated: 0,
            first_unstated: u64::MAX,
        }
    }

    /// Gives `len` MiB to the entry `raw`.
    fn own(&mut self, raw: u64, len: u64) {
        let start = (raw & PLACE_BITS) / MIB;
        let end = start.saturating_add(len);
        if start != self.run.end {
            self.end_run();
            self.run = start..start;
        }
        self.run.end = end;
        self.sound &= start > 0 && end <= self.units;
    }

    fn end_run(&mut self) {
        let range = self.run.start.saturating_mul(MIB)..self.run.end.saturating_mul(MIB);
        self.space.mark_unseen(&range);
        self.owned = self.owned.saturating_add(self.run.end.saturating_sub(self.run.start));
        self.run = 0..0;
    }

    /// How many of `entries`, the first of which is `raw`, say that a block lies right behind the one before, as in a table
    /// of a file that was filled from its start.
    fn in_a_row(&self, raw: u64, entries: &[[u8; 8]]) -> usize {
        let step = self.geometry.block_size;
        let row = entries.iter().scan(raw, |expected, entry| {
            let fits = u64::from_le_bytes(*entry) == *expected;
            *expected = expected.wrapping_add(step);
            Some(fits)
        });
        row.take_while(|&fits| fits).count()
    }

    /// Takes the entries of blocks of the disk, the first of them `block`; answers whether one is partially present.
    fn blocks(&mut self, block: u64, entries: &[[u8; 8]]) -> bool {
        let (mut partial, mut at) = (false, 0usize);
        while let Some(entry) = entries.get(at) {
            let raw = u64::from_le_bytes(*entry);
            let mut taken = 1usize;
            match raw & !PLACE_BITS {
                6 => taken = self.in_a_row(raw, entries.get(at..).unwrap_or_default()),
                7 if self.geometry.differencing => partial = true,
                0 if raw == 0 => {
                    self.first_unstated = self.first_unstated.min(block.saturating_add(at as u64));
                    at = at.saturating_add(1);
                    continue;
                }
                1..=3 if raw <= 3 => {
                    self.stated = self.stated.saturating_add(1);
                    at = at.saturating_add(1);
                    continue;
                }
                _ => {
                    self.sound = false;
                    break;
                }
            }
            self.allocated = self.allocated.saturating_add(taken as u64);
            self.stated = self.stated.saturating_add(taken as u64);
            self.own(raw, self.block.saturating_mul(taken as u64));
            at = at.saturating_add(taken);
        }
        partial
    }
}

impl Tally for Sound {
    fn take(&mut self, chunk: u64, entries: &[[u8; 8]]) -> bool {
        let geometry = self.geometry;
        let first = chunk.saturating_mul(geometry.chunk_ratio);
        let on_disk = geometry.blocks().saturating_sub(first).min(geometry.chunk_ratio);
        let on_disk = usize::try_from(on_disk).unwrap_or(usize::MAX).min(entries.len());
        let (blocks, rest) = entries.split_at_checked(on_disk).unwrap_or((entries, &[]));
        let partial = self.blocks(first, blocks);
        let bitmap = usize::try_from(geometry.chunk_ratio).ok().and_then(|at| entries.get(at));
        let bitmap = bitmap.map_or(0, |entry| u64::from_le_bytes(*entry));
        if bitmap != 0 {
            self.sound &= geometry.differencing && chunk < geometry.chunks() && bitmap & !PLACE_BITS == 6;
            self.own(bitmap, 1);
        }
        // Behind the blocks of the disk there is nothing but perhaps that bitmap.
        let others = rest.iter().filter(|entry| **entry != [0; 8]).count();
        self.sound &= others == usize::from(bitmap != 0) && !(partial && bitmap == 0);
        self.sound
    }

    fn blank(&mut self, chunk: u64) {
        self.first_unstated = self.first_unstated.min(chunk.saturating_mul(self.geometry.chunk_ratio));
    }
}

#[cfg(test)]
mod tests;
