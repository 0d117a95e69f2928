//! The way back from a repair: the bytes it overwrites, kept in a file of their own before the first of them changes.
//!
//! Owns: the format of that file, what has to be kept, and when it may be put back. Must not know: what a repair is for,
//! or what the file is called.
//!
//! ```text
//! 0   16  "vhdkit-undo", zeros       16  4  version, 1
//! 20   4  1 when the repair was finished (the one field that changes, and that the checksum leaves out)
//! 24   8  the image's length before  32  8  its least and 40 8 its greatest length meanwhile
//! 48   4  runs                       52  4  marks                          56  8  zeros
//! 64      runs: 8 offset, 8 length, 4 whether it may become zeros, 4 zeros, then the bytes of before
//!         marks: 8 sector, 4 CRC-32C of what the repair writes there, 4 zeros; sorted
//!         4 CRC-32C of everything before it
//! ```
//!
//! All little endian. A sector of a run may be put back when it holds what it held before, what the repair wrote, or
//! zeros where the repair makes some; anything else was written by somebody since, and is not thrown away.

use super::apply;
use crate::error::{Error, ErrorKind, Result};
use crate::mend::{Edit, Step};
use crate::storage::{OverlayStorage, Storage};
use crate::units::{SECTOR, round_down, round_up};
use crate::zeros;
use std::ops::Range;
use std::sync::Arc;

/// The most bytes a repair may overwrite: what its undo file takes of the disk it lies on. More is only cut off by a
/// repair that gives back leaked space, or replayed from a log made to be large.
pub(super) const MAX_BYTES: u64 = 4 << 30;
/// The most runs, at 24 bytes in memory each; a repair of the most lost blocks touches fewer sectors.
pub(super) const MAX_RUNS: usize = 1 << 17;
/// The most marks, at 12 bytes in memory each: those of 1 GiB of writes.
const MAX_MARKS: usize = 1 << 21;
const MAGIC: [u8; 16] = *b"vhdkit-undo\0\0\0\0\0";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
/// Where the field that says "finished" lies.
const DONE_AT: usize = 20;
/// Bytes moved at a time, a multiple of a sector.
const STEP: u64 = 64 << 10;
const SECTOR_BYTES: usize = SECTOR as usize;

/// Bytes of the image before the repair.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    range: Range<u64>,
    /// Whether the repair makes zeros of it, or cuts it off.
    zeroed: bool,
}

/// Sectors of the image and the CRC-32C of what a repair writes there; sorted.
type Marks = Vec<(u64, u32)>;

/// What an undo file says, its bytes left where they are.
#[derive(Debug)]
pub(super) struct Undo {
    pub(super) done: bool,
    old_len: u64,
    lengths: Range<u64>,
    /// Each with the place of its bytes in the undo file.
    runs: Vec<(Run, u64)>,
    marks: Marks,
}

impl Undo {
    /// Writes to `file` what brings `image` back to what it is now, after `steps`. Not synced.
    ///
    /// # Errors
    /// `Refused` when that is more than is kept; what the storages answer.
    pub(super) fn write(image: &Arc<dyn Storage>, steps: &[Step], file: &dyn Storage) -> Result<()> {
        let old_len = length(&**image)?;
        let (marks, lengths) = foresee(image, steps)?;
        let runs = runs(&**image, steps, old_len)?;
        let bytes: u64 = runs.iter().map(|run| run.range.end - run.range.start).sum();
        if bytes > MAX_BYTES || runs.len() > MAX_RUNS || marks.len() > MAX_MARKS {
            let message =
                format_args!("the repair overwrites {bytes} bytes in {} places, too many to keep", runs.len());
            return Err(Error::new(ErrorKind::Refused, message).with_hint("convert the image to a new one instead"));
        }
        let mut out = Writer { file, at: 0, crc: 0 };
        let mut header = [0; HEADER_LEN];
        let mut fields = header.as_mut_slice();
        let mut put = |bytes: &[u8]| {
            let (field, rest) = std::mem::take(&mut fields).split_at_mut(bytes.len());
            field.copy_from_slice(bytes);
            fields = rest;
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&0u32.to_le_bytes());
        put(&old_len.to_le_bytes());
        put(&lengths.start.to_le_bytes());
        put(&lengths.end.to_le_bytes());
        put(&(runs.len() as u32).to_le_bytes());
        put(&(marks.len() as u32).to_le_bytes());
        out.put(&header)?;
        let mut buffer = vec![0; STEP as usize];
        for run in &runs {
            out.put(&run.range.start.to_le_bytes())?;
            out.put(&(run.range.end - run.range.start).to_le_bytes())?;
            out.put(&u64::from(run.zeroed).to_le_bytes())?;
            for part in parts(&run.range) {
                let bytes = &mut buffer[..(part.end - part.start) as usize];
                read(&**image, bytes, part.start)?;
                out.put(bytes)?;
            }
        }
        for (sector, crc) in &marks {
            out.put(&sector.to_le_bytes())?;
            out.put(&u64::from(*crc).to_le_bytes())?;
        }
        let crc = out.crc;
        out.put(&crc.to_le_bytes())
    }

    /// Reads the undo file `file`; `None` when it is not one, or not whole.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn read(file: &dyn Storage) -> Result<Option<Self>> {
        let len = length(file)?;
        let Some(crc_at) = len.checked_sub(4).filter(|&at| at >= HEADER_LEN as u64) else { return Ok(None) };
        let mut header = [0; HEADER_LEN];
        read(file, &mut header, 0)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        let (run_count, mark_count) = (word(48) as usize, word(52) as usize);
        let known = header[..16] == MAGIC && word(16) == VERSION && run_count <= MAX_RUNS && mark_count <= MAX_MARKS;
        if !known || checksum(file, crc_at)? != Some(stored_checksum(file, crc_at)?) {
            return Ok(None);
        }
        let mut at = HEADER_LEN as u64;
        let mut runs = Vec::new();
        for _ in 0..run_count {
            let [start, length, zeroed] = words(file, at)?;
            let end = start.saturating_add(length);
            runs.push((Run { range: start..end, zeroed: zeroed != 0 }, at + 24));
            at = at.saturating_add(24).saturating_add(length);
            if at > crc_at || end > long(24) {
                return Ok(None);
            }
        }
        let mut marks = Vec::new();
        for _ in 0..mark_count {
            let [sector, crc] = words(file, at)?;
            marks.push((sector, crc as u32));
            at += 16;
        }
        Ok(Some(Self { done: word(DONE_AT) != 0, old_len: long(24), lengths: long(32)..long(40), runs, marks }))
    }

    /// Notes in the undo file that the repair was finished. Durable on return.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn mark_done(file: &dyn Storage) -> Result<()> {
        file.write_all_at(&1u32.to_le_bytes(), DONE_AT as u64)
            .and_then(|()| file.sync())
            .map_err(|error| Error::io("finish the undo file", error))
    }

    /// Puts `image` back to what it was; durable on return. Answers how many bytes were kept for it. Interrupted, it can
    /// be done again.
    ///
    /// # Errors
    /// `Refused` when somebody else wrote to the image since, and nothing is changed; what the storages answer.
    pub(super) fn restore(&self, image: &dyn Storage, file: &dyn Storage) -> Result<u64> {
        self.require_unchanged(image, file)?;
        let failed = |error| Error::io("put back what the repair overwrote", error);
        if length(image)? != self.old_len {
            image.set_len(self.old_len).map_err(failed)?;
        }
        let mut buffer = vec![0; STEP as usize];
        let mut restored = 0;
        for (run, kept_at) in &self.runs {
            for part in parts(&run.range) {
                let bytes = &mut buffer[..(part.end - part.start) as usize];
                read(file, bytes, kept_at + (part.start - run.range.start))?;
                image.write_all_at(bytes, part.start).map_err(failed)?;
                restored += bytes.len() as u64;
            }
        }
        image.sync().map_err(failed)?;
        Ok(restored)
    }

    fn require_unchanged(&self, image: &dyn Storage, file: &dyn Storage) -> Result<()> {
        let len = length(image)?;
        if !(self.lengths.start..=self.lengths.end).contains(&len) {
            return Err(changed(format_args!("it is {len} bytes long")));
        }
        let (mut now, mut before) = (vec![0; STEP as usize], vec![0; STEP as usize]);
        for (run, kept_at) in &self.runs {
            for part in parts(&run.range) {
                let there = part.start..part.end.min(len);
                if there.is_empty() {
                    break;
                }
                let bytes = (there.end - there.start) as usize;
                let (now, before) = (&mut now[..bytes], &mut before[..bytes]);
                read(image, now, there.start)?;
                read(file, before, kept_at + (there.start - run.range.start))?;
                let sectors = now.chunks(SECTOR_BYTES).zip(before.chunks(SECTOR_BYTES));
                for (number, (now, before)) in (there.start / SECTOR..).zip(sectors) {
                    let zeroed = run.zeroed && zeros::is_zero(now);
                    if now != before && !zeroed && !self.is_marked(image, number, len)? {
                        return Err(changed(format_args!(
                            "the bytes at file offset {:#x} are others",
                            number * SECTOR
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether sector `number` of an image of `len` bytes holds what the repair wrote. All that is there of it counts: the
    /// file may have ended inside of it before.
    fn is_marked(&self, image: &dyn Storage, number: u64, len: u64) -> Result<bool> {
        let start = number * SECTOR;
        let mut sector = [0; SECTOR_BYTES];
        let there = &mut sector[..len.saturating_sub(start).min(SECTOR) as usize];
        read(image, there, start)?;
        Ok(self.marks.binary_search(&(number, crc32c::crc32c(there))).is_ok())
    }
}

fn changed(what: std::fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Refused, format_args!("the image was written to since it was repaired: {what}")).with_hint(
        "undoing the repair would lose what was written; delete the undo file if the image is as it should be",
    )
}

/// What each sector holds after each write of `steps`, and between which lengths the file is meanwhile.
fn foresee(image: &Arc<dyn Storage>, steps: &[Step]) -> Result<(Marks, Range<u64>)> {
    let failed = |error| Error::io("foresee the repair", error);
    let overlay = OverlayStorage::new(Arc::clone(image)).map_err(failed)?;
    let old_len = length(&**image)?;
    let mut lengths = old_len..old_len;
    let mut marks = Vec::new();
    let mut buffer = [0; SECTOR_BYTES];
    for edit in steps.iter().flat_map(|step| &step.edits) {
        apply::edit(&overlay, edit)?;
        let len = length(&overlay)?;
        lengths = lengths.start.min(len)..lengths.end.max(len);
        let Edit::Write { at, bytes } = edit else { continue };
        for number in at.get() / SECTOR..(at.get() + bytes.len() as u64).div_ceil(SECTOR) {
            let there = (len - number * SECTOR).min(SECTOR) as usize;
            read(&overlay, &mut buffer[..there], number * SECTOR)?;
            // Of a sector in which the file ended, a crash can leave the bytes without the growth.
            let before = old_len.saturating_sub(number * SECTOR).min(there as u64) as usize;
            for part in [there, before] {
                if part > 0 && marks.len() <= MAX_MARKS {
                    marks.push((number, crc32c::crc32c(&buffer[..part])));
                }
            }
        }
    }
    marks.sort_unstable();
    marks.dedup();
    Ok((marks, lengths))
}

/// What has to be kept: all that is written over, and what is not zero of what becomes zeros or is cut off.
fn runs(image: &dyn Storage, steps: &[Step], old_len: u64) -> Result<Vec<Run>> {
    let (mut written, mut zeroed) = (Vec::new(), Vec::new());
    for edit in steps.iter().flat_map(|step| &step.edits) {
        match edit {
            Edit::Write { at, bytes } => written.push(sectors(at.get()..at.get() + bytes.len() as u64, old_len)),
            Edit::Zero(range) => zeroed.push(sectors(range.clone(), old_len)),
            Edit::SetLen(len) => zeroed.push(sectors(*len..old_len, old_len)),
            Edit::Sync => {}
        }
    }
    let mut runs: Vec<Run> = joined(written).into_iter().map(|range| Run { range, zeroed: false }).collect();
    let mut buffer = vec![0; STEP as usize];
    for range in joined(zeroed) {
        let mut at = range.start;
        while at < range.end {
            let data = image.next_data(at).map_err(|error| Error::io("look for data in the image", error))?;
            at = at.max(round_down(data.unwrap_or(range.end), SECTOR));
            let part = at..range.end.min(at.saturating_add(STEP));
            if part.is_empty() {
                break;
            }
            let bytes = &mut buffer[..(part.end - part.start) as usize];
            read(image, bytes, part.start)?;
            at = part.end;
            if zeros::is_zero(bytes) {
                continue;
            }
            match runs.last_mut() {
                Some(last) if last.zeroed && last.range.end == part.start => last.range.end = part.end,
                _ => runs.push(Run { range: part, zeroed: true }),
            }
            if runs.len() > MAX_RUNS {
                return Ok(runs);
            }
        }
    }
    Ok(share_leniency(runs))
}

/// A sector that is both written and zeroed may hold zeros in either of its runs.
fn share_leniency(mut runs: Vec<Run>) -> Vec<Run> {
    let zeroed: Vec<Range<u64>> = runs.iter().filter(|run| run.zeroed).map(|run| run.range.clone()).collect();
    for run in runs.iter_mut().filter(|run| !run.zeroed) {
        let next = zeroed.partition_point(|range| range.end <= run.range.start);
        run.zeroed = zeroed.get(next).is_some_and(|range| range.start < run.range.end);
    }
    runs
}

/// `range` of a file of `len` bytes, widened to whole sectors.
fn sectors(range: Range<u64>, len: u64) -> Range<u64> {
    let end = round_up(range.end, SECTOR).unwrap_or(range.end).min(len);
    round_down(range.start, SECTOR).min(end)..end
}

/// The ranges in order, those that touch made one.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

fn parts(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    (range.start..end).step_by(STEP as usize).map(move |at| at..end.min(at + STEP))
}

fn length(storage: &dyn Storage) -> Result<u64> {
    storage.len().map_err(|error| Error::io("find the length of the file", error))
}

fn read(storage: &dyn Storage, bytes: &mut [u8], at: u64) -> Result<()> {
    storage.read_exact_at(bytes, at).map_err(|error| Error::io("read what a repair overwrites", error))
}

fn words<const N: usize>(file: &dyn Storage, at: u64) -> Result<[u64; N]> {
    let mut words = [0; N];
    for (index, word) in words.iter_mut().enumerate() {
        let mut bytes = [0; 8];
        read(file, &mut bytes, at + 8 * index as u64)?;
        *word = u64::from_le_bytes(bytes);
    }
    Ok(words)
}

/// The checksum of the first `len` bytes, the field that changes taken as zero; `None` when the file is no longer there.
fn checksum(file: &dyn Storage, len: u64) -> Result<Option<u32>> {
    let mut buffer = vec![0; STEP as usize];
    let mut crc = 0;
    for part in parts(&(0..len)) {
        let bytes = &mut buffer[..(part.end - part.start) as usize];
        read(file, bytes, part.start)?;
        if part.start == 0
            && let Some(done) = bytes.get_mut(DONE_AT..DONE_AT + 4)
        {
            done.fill(0);
        }
        crc = crc32c::crc32c_append(crc, bytes);
    }
    Ok((len > 0).then_some(crc))
}

fn stored_checksum(file: &dyn Storage, at: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    read(file, &mut bytes, at)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Appends to a file, and sums what it appends.
struct Writer<'a> {
    file: &'a dyn Storage,
    at: u64,
    crc: u32,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.at).map_err(|error| Error::io("write the undo file", error))?;
        self.at += bytes.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }
}
