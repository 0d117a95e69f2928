//! Every entry of the block allocation table against every other, and against the rest of the file.
//!
//! Owns: which blocks can be read, which share bytes, what lies between them, in memory that does not grow with the table.
//! Must not know: what blocks hold.

use super::parts::{clear_of, windows};
use super::{Owned, least_leak};
use crate::error::Result;
use crate::finding::{Findings, MAX_FINDINGS, Severity};
use crate::problem::{Fault, Problem, Structure};
use crate::units::{FileOffset, SECTOR};
use crate::vhd::bat::UNALLOCATED;
use crate::vhd::image::{Sparse, Vhd};
use crate::vhd::space::{FILE_UNIT, overlap};
use rayon::slice::ParallelSliceMut;
use std::ops::Range;

/// How many blocks are kept at a time, at eight bytes each: 64 MiB, 16 TiB of disk at the usual block size. Larger tables
/// are read several times, for one part of the file after the other.
const MAX_TRACKED: usize = 1 << 23;
/// How often a table is read at most: enough for 2040 GiB in blocks of 4 KiB.
const MAX_PASSES: usize = 64;
/// Blocks are counted by the part of the file they start in: 65 536 parts of as many sectors.
const PART_SECTORS_LOG2: u32 = 16;
/// How many blocks that cannot be read are kept for a repair, at 40 bytes each.
const MAX_LOST: usize = 1 << 20;

/// A block that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::vhd) struct Lost {
    pub(in crate::vhd) block: u64,
    /// Where its bitmap starts, or should.
    pub(in crate::vhd) start: u64,
    /// `Range` when it reaches past the data area, `Overlap` when it lies over the header or the table.
    pub(in crate::vhd) fault: Fault,
}

/// What reading the whole table told.
#[derive(Debug, Default)]
pub(in crate::vhd) struct Survey {
    /// Blocks of the disk with a place, believed or not.
    pub(in crate::vhd) allocated: u64,
    /// Where the last object before the footer ends, blocks that cannot be read left out.
    pub(in crate::vhd) end: u64,
    /// The blocks that cannot be read.
    pub(in crate::vhd) lost: Vec<Lost>,
    /// Bytes between objects, short gaps left out, up to `end`.
    pub(in crate::vhd) gaps: u64,
    /// Entries behind those of the disk that are in use.
    stale: u64,
    /// Blocks whose data does not start on 4 KiB.
    unaligned: u64,
}

/// Reads the table of `vhd`, whose other parts are `owned`, and notes what is wrong with it.
///
/// # Errors
/// What the storage answers.
pub(in crate::vhd) fn survey(vhd: &Vhd, sparse: &Sparse, owned: &[Owned], findings: &mut Findings) -> Result<Survey> {
    survey_keeping(vhd, sparse, (owned, Keep::default()), findings)
}

/// How much of a table is kept in memory, and how often it is read instead.
#[derive(Clone, Copy, Debug)]
pub(in crate::vhd) struct Keep {
    pub(in crate::vhd) places: usize,
    pub(in crate::vhd) passes: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self { places: MAX_TRACKED, passes: MAX_PASSES }
    }
}

/// As [`survey`], within `keep`.
///
/// # Errors
/// What the storage answers.
pub(in crate::vhd) fn survey_keeping(
    vhd: &Vhd,
    sparse: &Sparse,
    (owned, keep): (&[Owned], Keep),
    findings: &mut Findings,
) -> Result<Survey> {
    let mut owned = owned.to_vec();
    owned.sort_by_key(|owned| owned.range.start);
    let clear = clear_of(&owned, sparse.bat.limit);
    let blocks = sparse.bat.blocks();
    let mut sweep = Sweep { vhd, sparse, blocks, owned, clear, keep, findings, survey: Survey::default() };
    let mut line = Line::default();
    let Some(mut places) = sweep.judge(&mut line)? else {
        sweep.finish(&mut line);
        return Ok(sweep.survey);
    };
    if places.len() < keep.places {
        sweep.follow(&mut places, &mut line);
    } else {
        let windows = windows(&sweep.count()?, keep.places);
        for window in windows.iter().take(keep.passes) {
            sweep.collect(0..u64::from(sparse.bat.entries), window, &mut places)?;
            sweep.follow(&mut places, &mut line);
        }
        if windows.len() > keep.passes {
            let found = format_args!("more than {} times {} blocks", keep.passes, keep.places);
            let problem = Problem::new(Structure::VhdBat, Fault::Limit, found, "fewer, to be compared with each other");
            sweep.findings.note(Severity::Error, problem);
        }
    }
    sweep.finish(&mut line);
    Ok(sweep.survey)
}

/// A block of the table: the sector it starts in above, its number below. One number sorts faster than a pair.
type Place = u64;

fn place(entry: u32, block: u64) -> Place {
    u64::from(entry) << 32 | block.min(u64::from(u32::MAX))
}

/// How far the sweep along the file has got.
#[derive(Debug, Default)]
struct Line {
    /// Everything before this is owned, or counted as a gap.
    reach: u64,
    /// The next of the parts that are no blocks.
    next_owned: usize,
    /// The block of the disk that reaches furthest: its start and its end.
    furthest: Option<(u64, u64)>,
    /// Where the last of all blocks ends.
    end: u64,
}

struct Sweep<'a> {
    vhd: &'a Vhd,
    sparse: &'a Sparse,
    /// How many the disk has: a division, asked of each entry.
    blocks: u64,
    /// Sorted by start.
    owned: Vec<Owned>,
    /// A part of the file that none of those touches, the longest.
    clear: Range<u64>,
    keep: Keep,
    findings: &'a mut Findings,
    survey: Survey,
}

impl Sweep<'_> {
    /// Looks at each entry by itself, and follows `line` along the blocks for as long as each lies behind the one before.
    /// Unless all lay in order, answers the blocks, as far as they may be kept; `line` has then not begun.
    fn judge(&mut self, line: &mut Line) -> Result<Option<Vec<Place>>> {
        let mut places: Option<Vec<Place>> = None;
        let (vhd, bat) = (self.vhd, &self.sparse.bat);
        bat.for_each_piece(&vhd.store, 0..u64::from(bat.entries), |first, entries| {
            let mut at = 0usize;
            while let Some((&entry, behind)) = entries.get(at..).and_then(<[_]>::split_first) {
                let (block, entry) = (first.saturating_add(at as u64), u32::from_be_bytes(entry));
                at = at.saturating_add(1);
                if entry != UNALLOCATED {
                    self.judge_one((block, entry), line, &mut places)?;
                    let row = if places.is_none() { self.row((block, entry), line, behind) } else { 0 };
                    at = at.saturating_add(row);
                }
            }
            Ok(())
        })?;
        Ok(places)
    }

    fn judge_one(
        &mut self,
        (block, entry): (u64, u32),
        line: &mut Line,
        places: &mut Option<Vec<Place>>,
    ) -> Result<()> {
        let count = if block < self.blocks { &mut self.survey.allocated } else { &mut self.survey.stale };
        *count = count.saturating_add(1);
        let Some(range) = self.believed(block, entry) else { return Ok(()) };
        if places.is_none() {
            if range.start >= line.end {
                self.step(line, block, &range);
                return Ok(());
            }
            *line = Line::default();
            self.survey.gaps = 0;
            let mut before = Vec::new();
            self.collect(0..block, &(0..u32::MAX), &mut before)?;
            *places = Some(before);
        }
        if let Some(places) = places.as_mut().filter(|places| places.len() < self.keep.places) {
            places.push(place(entry, block));
        }
        Ok(())
    }

    /// Moves `line`, which stands behind the block of `entry`, past those of the entries `behind` it that are nothing but
    /// the next block of the disk each, clear of all else: most of most tables. Answers how many those are.
    fn row(&mut self, (block, entry): (u64, u32), line: &mut Line, behind: &[[u8; 4]]) -> usize {
        let layout = self.sparse.bat.layout;
        let (stride, bitmap) = (layout.stride() / SECTOR, layout.bitmap_len / SECTOR);
        let bytes = |sector: u64| sector.saturating_mul(SECTOR);
        let mut last = u64::from(entry);
        let end = bytes(last.saturating_add(stride));
        let alone = line.furthest == Some((bytes(last), end)) && line.reach == end;
        let left = usize::try_from(self.blocks.saturating_sub(block).saturating_sub(1)).unwrap_or(usize::MAX);
        if !alone || bytes(last) < self.clear.start {
            return 0;
        }
        let room = (self.clear.end / SECTOR).saturating_sub(stride).min(u64::from(UNALLOCATED).saturating_sub(1));
        let leak = least_leak(self.sparse).div_ceil(SECTOR);
        let (mut row, mut unaligned) = (0usize, 0u64);
        for next in behind.iter().take(left).map(|entry| u64::from(u32::from_be_bytes(*entry))) {
            if next.wrapping_sub(last.wrapping_add(stride)) >= leak || next > room {
                break;
            }
            let data = bytes(next.wrapping_add(bitmap));
            unaligned = unaligned.wrapping_add(u64::from(!data.is_multiple_of(FILE_UNIT)));
            row = row.wrapping_add(1);
            last = next;
        }
        let end = bytes(last.saturating_add(stride));
        (line.furthest, line.reach, line.end) = (Some((bytes(last), end)), end, end);
        self.survey.allocated = self.survey.allocated.saturating_add(row as u64);
        self.survey.unaligned = self.survey.unaligned.saturating_add(unaligned);
        row
    }

    /// How many blocks start in which part of the file.
    fn count(&self) -> Result<Vec<u32>> {
        let mut parts = vec![0u32; 1 << (u32::BITS.saturating_sub(PART_SECTORS_LOG2))];
        let bat = &self.sparse.bat;
        bat.for_each(&self.vhd.store, 0..u64::from(bat.entries), |block, entry| {
            let part = usize::try_from(entry >> PART_SECTORS_LOG2).ok();
            if let Some(count) = part.and_then(|part| parts.get_mut(part))
                && entry != UNALLOCATED
                && bat.fault(block, entry).is_none()
            {
                *count = count.saturating_add(1);
            }
            Ok(())
        })?;
        Ok(parts)
    }

    /// The bytes of a block that can be where its entry says; notes what is wrong with it.
    #[inline]
    fn believed(&mut self, block: u64, entry: u32) -> Option<Range<u64>> {
        let start = u64::from(entry).saturating_mul(SECTOR);
        let layout = self.sparse.bat.layout;
        let mut range = start..start.saturating_add(layout.stride());
        let on_disk = block < self.blocks;
        if range.start < self.clear.start || self.clear.end < range.end {
            if let Some(fault) = self.sparse.bat.fault(block, entry) {
                if on_disk {
                    self.lose(block, entry, fault);
                }
                return None;
            }
            if on_disk {
                self.meet(block, entry);
            }
            range = self.extent(entry, block);
        }
        let data = start.saturating_add(layout.bitmap_len);
        if on_disk && !data.is_multiple_of(FILE_UNIT) {
            self.survey.unaligned = self.survey.unaligned.saturating_add(1);
        }
        Some(range)
    }

    fn lose(&mut self, block: u64, entry: u32, fault: Fault) {
        let start = u64::from(entry).saturating_mul(SECTOR);
        if self.survey.lost.len() < MAX_LOST {
            self.survey.lost.push(Lost { block, start, fault });
        }
        // Words for what will not be kept would be most of the work on a table full of nonsense.
        if self.findings.list().len() < MAX_FINDINGS
            && let Err(problem) = self.sparse.bat.believe(block, entry)
        {
            self.findings.note(Severity::Error, problem);
        }
    }

    /// Compares a block of the disk with the parts of the file that opening has not held it against.
    fn meet(&mut self, block: u64, entry: u32) {
        let range = self.extent(entry, block);
        let guest = |owned: &&Owned| matches!(owned.structure, Structure::VhdLocator | Structure::VhdBatmap);
        if let Some(met) = self.owned.iter().filter(guest).find(|owned| overlap(&owned.range, &range)) {
            let found = format_args!("block {block} at file offset {:#x} to {:#x}", range.start, range.end);
            let (name, at, end) = (met.structure.name(), met.range.start, met.range.end);
            let allowed = format_args!("a block clear of the {name} at {at:#x} to {end:#x}");
            let problem = Problem::new(Structure::VhdBat, Fault::Overlap, found, allowed);
            self.findings.note(Severity::Error, problem.at(FileOffset(self.sparse.bat.entry_at(block))));
        }
    }

    /// The bytes of a block; the last one of a disk may be cut where the disk ends.
    fn extent(&self, entry: u32, block: u64) -> Range<u64> {
        let start = u64::from(entry).saturating_mul(SECTOR);
        let whole = start.saturating_add(self.sparse.bat.layout.stride());
        let must = self.sparse.bat.end_of(block, start);
        start..if block < self.blocks { whole.min(self.sparse.bat.limit.max(must)) } else { whole }
    }

    /// Those of `blocks` that start in the parts `window` of the file.
    fn collect(&self, blocks: Range<u64>, window: &Range<u32>, places: &mut Vec<Place>) -> Result<()> {
        places.clear();
        let bat = &self.sparse.bat;
        bat.for_each(&self.vhd.store, blocks, |block, entry| {
            let inside = entry != UNALLOCATED && window.contains(&(entry >> PART_SECTORS_LOG2));
            // More than fit into one part share bytes, and enough of them are kept to say so.
            if inside && places.len() < self.keep.places && bat.fault(block, entry).is_none() {
                places.push(place(entry, block));
            }
            Ok(())
        })
    }

    /// Moves `line` along the blocks `places`, all of which start behind those before.
    fn follow(&mut self, places: &mut [Place], line: &mut Line) {
        places.par_sort_unstable();
        for &place in places.iter() {
            let (entry, block) = ((place >> 32) as u32, place & u64::from(u32::MAX));
            let range = self.extent(entry, block);
            if block < self.blocks {
                match line.furthest {
                    Some((start, end)) if range.start < end => self.clash(block, &range, start),
                    _ => {}
                }
            }
            self.step(line, block, &range);
        }
    }

    /// Moves `line` past the block at `range`, which starts no earlier than the one before.
    #[inline]
    fn step(&mut self, line: &mut Line, block: u64, range: &Range<u64>) {
        if block < self.blocks && line.furthest.is_none_or(|(_, end)| end < range.end) {
            line.furthest = Some((range.start, range.end));
        }
        line.end = line.end.max(range.end);
        self.advance(line, range.start);
        self.cover(line, range);
    }

    /// Notes a block that shares bytes with the one at `other`.
    fn clash(&mut self, block: u64, range: &Range<u64>, other: u64) {
        if self.findings.list().len() >= MAX_FINDINGS {
            return;
        }
        let fault = if range.start == other { Fault::Duplicate } else { Fault::Overlap };
        let found = format_args!("block {block} at file offset {:#x} to {:#x}", range.start, range.end);
        let allowed = format_args!("a block clear of the one at {other:#x}");
        let problem = Problem::new(Structure::VhdBat, fault, found, allowed);
        self.findings.note(Severity::Error, problem.at(FileOffset(self.sparse.bat.entry_at(block))));
    }

    /// Passes the parts that start before `to`.
    fn advance(&mut self, line: &mut Line, to: u64) {
        while let Some(owned) = self.owned.get(line.next_owned).filter(|owned| owned.range.start <= to) {
            let range = owned.range.clone();
            self.cover(line, &range);
            line.next_owned = line.next_owned.saturating_add(1);
        }
    }

    fn cover(&mut self, line: &mut Line, range: &Range<u64>) {
        let gap = range.start.saturating_sub(line.reach);
        if gap >= least_leak(self.sparse) {
            self.survey.gaps = self.survey.gaps.saturating_add(gap);
        }
        line.reach = line.reach.max(range.end);
    }

    fn finish(&mut self, line: &mut Line) {
        self.advance(line, u64::MAX);
        self.survey.end = line.reach;
        if self.survey.stale > 0 {
            let found = format_args!("{} entries in use behind those of the disk", self.survey.stale);
            let problem = Problem::new(Structure::VhdBat, Fault::Value, found, "none");
            let at = FileOffset(self.sparse.bat.entry_at(self.blocks));
            self.findings.note(Severity::Warning, problem.at(at));
        }
        if self.survey.unaligned > 0 {
            let found = format_args!("{} blocks whose data is not on 4 KiB", self.survey.unaligned);
            let allowed = "data on whole 4 KiB, for speed";
            self.findings.note(Severity::Warning, Problem::new(Structure::VhdBlock, Fault::Alignment, found, allowed));
        }
    }
}
