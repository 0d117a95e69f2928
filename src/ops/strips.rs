//! What each file of a chain holds, summed up for a picture.
//!
//! Owns: the sums for equal parts of the disk. Must not know: how they are drawn; it reads maps, never data.

use crate::chain::{Chain, Layer, Owner, Piece, Pieces};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SECTOR;
use crate::watch::{Progress, Watch};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The most columns of a picture.
pub const MAX_COLUMNS: usize = 4096;
/// The most cells of a picture, whatever its columns: a chain of many files gets fewer.
const MAX_CELLS: usize = 1 << 20;
/// Pieces walked between two looks at the watch.
const STEP: usize = 4096;

/// What is summed up.
#[derive(Clone, Copy, Debug)]
pub struct StripOptions {
    columns: usize,
    merge: Option<(usize, usize)>,
}

impl StripOptions {
    /// At most `columns` parts of the disk, from 1 to [`MAX_COLUMNS`]; a part is no smaller than a sector.
    #[must_use]
    pub fn new(columns: usize) -> Self {
        Self { columns, merge: None }
    }

    /// Also what a merge of the files at depths `from` to `to - 1` into the one at depth `to` would move.
    #[must_use]
    pub fn merge(mut self, from: usize, to: usize) -> Self {
        self.merge = Some((from, to));
        self
    }
}

/// What a file holds of one part of the disk; numbers in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Cell {
    /// Data that the disk shows.
    pub shown: u64,
    /// Data that files above it cover.
    pub hidden: u64,
    /// What it says is zero, covered or not; none of it in the base, where nothing is zero too.
    pub zero: u64,
    /// Whether a block here is held in part, the rest being left to the parent.
    pub partial: bool,
}

/// One file of the chain.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Strip {
    /// Its depth; the leaf is 1.
    pub depth: usize,
    /// Its file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub path: Option<PathBuf>,
    /// Where its disk ends, in bytes.
    pub virtual_size: u64,
    /// Data it holds inside the disk, in bytes.
    pub held: u64,
    /// How many of its blocks are held in part.
    pub partial_blocks: u64,
    /// The parts of the disk, in order.
    pub cells: Vec<Cell>,
}

/// What a merge would move; numbers in bytes.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MergeStrip {
    /// The depth it starts at.
    pub from: usize,
    /// The depth it ends in.
    pub to: usize,
    /// All data it would move.
    pub moved: u64,
    /// How much of it lies in each part of the disk.
    pub cells: Vec<u64>,
}

/// A chain as strips over the disk: one per file, leaf first.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Strips {
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// How many parts it is cut to: part `n` starts at byte `virtual_size * n / columns`, rounded up.
    pub columns: usize,
    /// The files.
    pub files: Vec<Strip>,
    /// The merge that was asked for.
    pub merge: Option<MergeStrip>,
}

impl Strips {
    /// The bytes of the disk that part `column` is made of.
    #[must_use]
    pub fn range(&self, column: usize) -> Range<u64> {
        Grid { size: self.virtual_size, columns: self.columns }.range(column)
    }
}

/// Sums up the maps of every file of `chain`.
///
/// # Errors
/// `InvalidInput` for a number of columns out of range, `Chain` for a merge the chain has no depths for; maps that
/// cannot be read; `Cancelled`.
pub fn strips(chain: &Chain, options: &StripOptions, watch: &Watch<'_>) -> Result<Strips> {
    if !(1..=MAX_COLUMNS).contains(&options.columns) {
        let message = format_args!("a picture has from 1 to {MAX_COLUMNS} columns");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let (layers, size) = (chain.layers(), chain.virtual_size());
    let columns = options.columns.min(MAX_CELLS / layers.len()).min((size / SECTOR) as usize).max(1);
    let grid = Grid { size, columns };
    let merged = options.merge.map(|depths| merged_layers(depths, layers.len())).transpose()?;
    let mut walk = Walk { watch, passed: 0, at: 0, passes: layers.len() as u64 + 1, size };

    let mut files = Vec::with_capacity(layers.len());
    for index in 0..layers.len() {
        files.push(held(layers, index, grid, &mut walk)?);
        walk.next();
    }
    walk.each(chain.pieces(0..size), |piece| {
        if let Owner::Layer { index, .. } = piece.owner
            && let Some(file) = files.get_mut(index)
        {
            grid.spread(piece.offset..piece.end(), |column, bytes| {
                let cell = &mut file.cells[column];
                cell.shown += bytes;
                cell.hidden -= bytes;
            });
        }
    })?;
    let merge = merged.map(|layers| merge_strip(chain, layers, grid, &mut walk)).transpose()?;
    Ok(Strips { virtual_size: size, columns, files, merge })
}

/// The layers that a merge between two depths moves.
fn merged_layers((from, to): (usize, usize), count: usize) -> Result<Range<usize>> {
    if from < 1 || from >= to || to > count {
        let message = format_args!("no merge goes from depth {from} to {to}: the chain has {count} files");
        return Err(Error::new(ErrorKind::Chain, message).with_hint("the leaf is depth 1, its parent depth 2"));
    }
    Ok(from - 1..to - 1)
}

/// What layer `index` alone holds; all its data counts as hidden for now.
fn held(layers: &[Layer], index: usize, grid: Grid, walk: &mut Walk<'_>) -> Result<Strip> {
    let layer = &layers[index];
    let mut cells = vec![Cell::default(); grid.columns];
    let virtual_size = layer.image().virtual_size();
    let block = layer.image().block_size().map_or(u64::MAX, u64::from);
    let (mut held, mut partial_blocks) = (0, 0);
    let (mut last, mut last_partial) = (None, None);
    let end = virtual_size.min(grid.size);
    walk.each(Pieces::over(&layers[index..=index], index, 0..end), |piece| {
        let range = piece.offset..piece.end();
        let is_held = piece.owner != Owner::Below;
        // Where a file stops answering inside a block, that block is held in part.
        if last.is_some_and(|last| last != is_held) && !range.start.is_multiple_of(block) {
            if last_partial != Some(range.start / block) {
                partial_blocks += 1;
                last_partial = Some(range.start / block);
            }
            cells[grid.column(range.start)].partial = true;
        }
        last = Some(is_held);
        match piece.owner {
            Owner::Layer { .. } => {
                held += piece.len;
                grid.spread(range, |column, bytes| cells[column].hidden += bytes);
            }
            // Zeros of the base cover nothing: they are what nobody holds.
            Owner::Zero { .. } if index + 1 < layers.len() => {
                grid.spread(range, |column, bytes| cells[column].zero += bytes);
            }
            Owner::Zero { .. } | Owner::Below => {}
        }
    })?;
    let path = layer.path().map(Path::to_path_buf);
    Ok(Strip { depth: index + 1, path, virtual_size, held, partial_blocks, cells })
}

fn merge_strip(chain: &Chain, layers: Range<usize>, grid: Grid, walk: &mut Walk<'_>) -> Result<MergeStrip> {
    let (from, to) = (layers.start + 1, layers.end + 1);
    let (mut moved, mut cells) = (0, vec![0; grid.columns]);
    walk.next();
    walk.each(chain.pieces_of(layers, 0..grid.size), |piece| {
        if let Owner::Layer { .. } = piece.owner {
            moved += piece.len;
            grid.spread(piece.offset..piece.end(), |column, bytes| cells[column] += bytes);
        }
    })?;
    Ok(MergeStrip { from, to, moved, cells })
}

/// A disk cut to equal parts.
#[derive(Clone, Copy)]
struct Grid {
    size: u64,
    columns: usize,
}

impl Grid {
    fn column(self, offset: u64) -> usize {
        (u128::from(offset) * self.columns as u128 / u128::from(self.size.max(1))) as usize
    }

    fn range(self, column: usize) -> Range<u64> {
        let start = |column: usize| (u128::from(self.size) * column as u128).div_ceil(self.columns as u128) as u64;
        start(column)..start(column + 1)
    }

    /// Tells `add` how many bytes of `range`, which lies inside the disk, fall into each part it touches.
    fn spread(self, range: Range<u64>, mut add: impl FnMut(usize, u64)) {
        let mut at = range.start;
        while at < range.end.min(self.size) {
            let column = self.column(at);
            let end = self.range(column).end.min(range.end);
            add(column, end - at);
            at = end;
        }
    }
}

/// Walks over the disk, one after another, told as one.
struct Walk<'a> {
    watch: &'a Watch<'a>,
    /// Walks that are over.
    passed: u64,
    at: u64,
    passes: u64,
    size: u64,
}

impl Walk<'_> {
    fn each(&mut self, pieces: Pieces<'_>, mut visit: impl FnMut(&Piece)) -> Result<()> {
        for (piece, count) in pieces.zip(0usize..) {
            let piece = piece?;
            visit(&piece);
            self.at = piece.end();
            if count.is_multiple_of(STEP) {
                self.watch.check()?;
                let done = (self.passed * self.size).saturating_add(self.at);
                self.watch.report(Progress { done, total: self.passes.saturating_mul(self.size), moved: 0 });
            }
        }
        Ok(())
    }

    fn next(&mut self) {
        (self.passed, self.at) = (self.passed + 1, 0);
    }
}
