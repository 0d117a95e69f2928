//! Whether two disks hold the same bytes.
//!
//! Owns: walking two chains side by side, what needs no reading, and the report. Must not know: formats, how bytes are
//! read and told apart (the copier does).

use super::map::Backing;
use crate::chain::{Chain, Layer, Owner, Piece, Pieces};
use crate::copy::{CHUNK, Copier, Meter, Origin, Pair, Side};
use crate::error::Result;
use crate::units::{MIB, SECTOR};
use crate::watch::Watch;
use std::ops::Range;

/// The most bytes looked at between two looks at what was found.
const BATCH_BYTES: u64 = 64 * MIB;
/// The most runs in a batch; bounds its memory to a few MiB, and the time until a cancel is seen.
const BATCH_RUNS: usize = 1 << 16;
/// The most ranges a report lists.
pub const MAX_DIFFERING_RANGES: usize = 1 << 20;

/// How two disks are compared.
#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    jobs: usize,
    all: bool,
    pad: bool,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self { jobs: 0, all: true, pad: false }
    }
}

impl CompareOptions {
    /// All differences are looked for, and disks of different sizes differ.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many threads read; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Whether to go on after the first difference (default: yes).
    #[must_use]
    pub fn all(mut self, all: bool) -> Self {
        self.all = all;
        self
    }

    /// Whether the shorter disk counts as followed by zeros up to the size of the longer (default: no, they differ).
    #[must_use]
    pub fn pad_with_zeros(mut self, pad: bool) -> Self {
        self.pad = pad;
        self
    }
}

/// Bytes of a disk that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct DifferingRange {
    /// Where on the disk they start, in bytes.
    pub offset: u64,
    /// How many they are, in whole sectors of 512 bytes (up to the end of the disk).
    pub length: u64,
}

/// What a comparison found; numbers in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CompareReport {
    /// Whether the two are the same: no byte differs, and neither do the sizes, unless they were not to matter.
    pub equal: bool,
    /// The size of the first disk.
    pub virtual_size: u64,
    /// The size of the second disk.
    pub other_virtual_size: u64,
    /// How much of the disks was dealt with; less than the longer one when the comparison ended at a difference.
    pub examined: u64,
    /// Of that, how much was known to be the same without reading it.
    pub known_equal: u64,
    /// How much differs, in whole sectors of 512 bytes. Past the end of the shorter disk, what is not zero.
    pub differing: u64,
    /// Where, in order; at most [`MAX_DIFFERING_RANGES`] of them.
    pub ranges: Vec<DifferingRange>,
    /// How many more ranges there are than are listed.
    pub ranges_left_out: u64,
}

/// Compares what `one` and `other` show, byte by byte, where their maps do not say already that it is the same: zeros
/// on both sides, or the same place of the same file.
///
/// Disks of different sizes are compared up to the end of the longer one, zeros standing in for what the shorter does
/// not have; they differ all the same unless [`pad_with_zeros`](CompareOptions::pad_with_zeros) says otherwise.
///
/// # Errors
/// Those of reading either; `Cancelled`.
pub fn compare(one: &Chain, other: &Chain, options: &CompareOptions, watch: &Watch<'_>) -> Result<CompareReport> {
    Comparison::new(one.layers(), other.layers())?.run(options, watch)
}

/// One disk, as some layers decide it.
struct View<'a> {
    layers: &'a [Layer],
    backings: Vec<Backing>,
    pieces: Pieces<'a>,
    /// What is left of the piece under way.
    rest: Option<Piece>,
    size: u64,
}

impl<'a> View<'a> {
    fn new(layers: &'a [Layer]) -> Result<Self> {
        let size = layers.first().map_or(0, |layer| layer.image().virtual_size());
        let pieces = Pieces::over(layers, 0, 0..size);
        let backings = layers.iter().map(Backing::of).collect::<Result<_>>()?;
        Ok(Self { layers, backings, pieces, rest: None, size })
    }

    /// The run at the start of what is left; `None` past the end of the disk.
    fn peek(&mut self) -> Result<Option<Piece>> {
        if self.rest.is_none() {
            self.rest = self.pieces.next().transpose()?;
        }
        Ok(self.rest)
    }

    /// Takes `len` bytes off the run under way.
    fn advance(&mut self, len: u64) {
        self.rest = self.rest.take().and_then(|piece| {
            let owner = match piece.owner {
                Owner::Layer { index, at } => Owner::Layer { index, at: at.checked_add(len)? },
                other => other,
            };
            (len < piece.len).then(|| Piece { offset: piece.offset + len, len: piece.len - len, owner })
        });
    }

    /// Where the bytes of `piece` are; none for zeros.
    fn side(&self, piece: Option<Piece>) -> Side<'a> {
        let Owner::Layer { index, at } = piece?.owner else { return None };
        Some((self.layers.get(index)? as &dyn Origin, at.get()))
    }

    /// What holds `piece`, and where.
    fn place(&self, piece: Option<Piece>) -> Option<(Backing, u64)> {
        let Owner::Layer { index, at } = piece?.owner else { return None };
        Some((*self.backings.get(index)?, at.get()))
    }
}

/// Two disks side by side.
pub(super) struct Comparison<'a> {
    views: [View<'a>; 2],
    at: u64,
    end: u64,
    /// What one side leaves to a parent differs from zeros of the other.
    exact_maps: bool,
}

/// What was found of some of both.
pub(super) struct Step {
    pub(super) known_equal: u64,
    pub(super) ranges: Vec<Range<u64>>,
}

/// Some of both, to be compared next.
#[derive(Default)]
struct Batch<'a> {
    pairs: Vec<Pair<'a>>,
    known_equal: u64,
    /// Differences that the maps show.
    different: Vec<Range<u64>>,
}

impl<'a> Comparison<'a> {
    /// What `one` decides against what `other` does; what neither decides is the same.
    pub(super) fn new(one: &'a [Layer], other: &'a [Layer]) -> Result<Self> {
        let views = [View::new(one)?, View::new(other)?];
        let end = views.iter().map(|view| view.size).max().unwrap_or(0);
        Ok(Self { views, at: 0, end, exact_maps: false })
    }

    /// What is left to a parent must be so on both sides.
    pub(super) fn exact_maps(mut self) -> Self {
        self.exact_maps = true;
        self
    }

    /// The part `range` of both only.
    #[cfg(feature = "registry")]
    pub(super) fn within(mut self, range: Range<u64>) -> Result<Self> {
        for view in &mut self.views {
            view.pieces = Pieces::over(view.layers, 0, range.clone());
        }
        (self.at, self.end) = (range.start, range.end);
        Ok(self)
    }

    /// How far it has got.
    #[cfg(feature = "registry")]
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Some more of both: how much of it needs no reading, and where the rest differs, in multiples of `unit` bytes.
    pub(super) fn step(&mut self, copier: &Copier, unit: u64, meter: &Meter<'_>) -> Result<Step> {
        let batch = self.next_batch()?;
        let mut ranges = copier.differences(&batch.pairs, unit, meter)?;
        ranges.extend(batch.different);
        ranges.sort_by_key(|range| range.start);
        Ok(Step { known_equal: batch.known_equal, ranges })
    }

    pub(super) fn run(mut self, options: &CompareOptions, watch: &Watch<'_>) -> Result<CompareReport> {
        let [one, other] = [self.views[0].size, self.views[1].size];
        let mut report = CompareReport { virtual_size: one, other_virtual_size: other, ..CompareReport::default() };
        let meter = Meter::new(watch, self.end);
        let copier = Copier::new(options.jobs)?;
        while self.at < self.end {
            meter.check()?;
            let step = self.step(&copier, SECTOR, &meter)?;
            report.known_equal += step.known_equal;
            step.ranges.into_iter().for_each(|range| report.add(range));
            report.examined = self.at;
            meter.reached(self.at);
            if report.differing > 0 && !options.all {
                break;
            }
        }
        report.equal = report.differing == 0 && (one == other || options.pad);
        Ok(report)
    }

    fn next_batch(&mut self) -> Result<Batch<'a>> {
        let mut batch = Batch::default();
        let (mut bytes, mut count) = (0, 0);
        while self.at < self.end && bytes < BATCH_BYTES && count < BATCH_RUNS {
            count += 1;
            let runs = [self.views[0].peek()?, self.views[1].peek()?];
            let len = runs.iter().flatten().map(|piece| piece.len).min().unwrap_or(self.end - self.at);
            let [one, other] = &self.views;
            let sides = [one.side(runs[0]), other.side(runs[1])];
            let place = one.place(runs[0]);
            let len = if self.left_open_by_one(runs) {
                batch.different.push(self.at..self.at + len);
                len
            } else if sides.iter().all(Option::is_none) || (place.is_some() && place == other.place(runs[1])) {
                batch.known_equal += len;
                len
            } else {
                // Chunks of the disk, so that a pair's differences come out in whole sectors.
                let len = len.min(CHUNK - self.at % CHUNK);
                batch.pairs.push(Pair { offset: self.at, len, one: sides[0], other: sides[1] });
                bytes += len;
                len
            };
            self.views.iter_mut().for_each(|view| view.advance(len));
            self.at += len;
        }
        Ok(batch)
    }

    fn left_open_by_one(&self, runs: [Option<Piece>; 2]) -> bool {
        let [one, other] = runs.map(|piece| piece.is_some_and(|piece| piece.owner == Owner::Below));
        self.exact_maps && one != other
    }
}

impl CompareReport {
    fn add(&mut self, range: Range<u64>) {
        let length = range.end - range.start;
        self.differing += length;
        let full = self.ranges.len() >= MAX_DIFFERING_RANGES;
        match self.ranges.last_mut() {
            Some(last) if last.offset + last.length == range.start => last.length += length,
            _ if full => self.ranges_left_out += 1,
            _ => self.ranges.push(DifferingRange { offset: range.start, length }),
        }
    }
}
