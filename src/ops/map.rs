//! Where each byte of a disk comes from, and what two points of a chain can differ in.
//!
//! Owns: the words for it, and the walk for two points. Must not know: how a person sees it; it reads maps, never data.

use crate::chain::{Chain, Layer, Owner, Piece, Pieces};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileIdentity;
use crate::units::FileOffset;
use std::ops::Range;
use std::sync::Arc;

/// Why a run of a disk reads as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ExtentState {
    /// A file holds its bytes.
    Data,
    /// A file says that it is zero.
    Zero,
    /// A file ends before it, so it is zero whatever lies deeper.
    PastEnd,
    /// No file holds it, so it is zero.
    Unallocated,
}

/// A run of a disk that reads as it does for one reason; positions and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MapExtent {
    /// Where on the disk it starts.
    pub offset: u64,
    /// How long it is, never 0.
    pub length: u64,
    /// Why it reads as it does.
    pub state: ExtentState,
    /// The depth of the file that decides it, the leaf being 1; `None` when it is unallocated.
    pub depth: Option<usize>,
    /// Where in that file its bytes start; `None` when it holds none.
    pub file_offset: Option<FileOffset>,
}

/// The extents of a disk in order, one after another without a gap; after an error they end.
#[derive(Debug)]
pub struct MapExtents<'a> {
    layers: &'a [Layer],
    pieces: Pieces<'a>,
    /// What is left of a piece that reaches over the end of the file that decides it.
    rest: Option<Piece>,
}

/// The extents that make up `range` of the disk `chain` shows; ranges past its end are cut off. Reads maps, no data.
#[must_use]
pub fn map(chain: &Chain, range: Range<u64>) -> MapExtents<'_> {
    MapExtents { layers: chain.layers(), pieces: chain.pieces(range), rest: None }
}

impl MapExtents<'_> {
    fn next_piece(&mut self) -> Option<Result<Piece>> {
        self.rest.take().map(Ok).or_else(|| self.pieces.next())
    }

    fn extent(&mut self, mut piece: Piece) -> MapExtent {
        let (state, depth, file_offset) = match piece.owner {
            Owner::Layer { index, at } => (ExtentState::Data, Some(index + 1), Some(at)),
            Owner::Below => (ExtentState::Unallocated, None, None),
            Owner::Zero { index } => {
                let end = self.layers.get(index).map_or(0, |layer| layer.image().virtual_size());
                if piece.offset < end && end < piece.end() {
                    self.rest = Some(Piece { offset: end, len: piece.end() - end, owner: piece.owner });
                    piece.len = end - piece.offset;
                }
                let state = if piece.offset < end { ExtentState::Zero } else { ExtentState::PastEnd };
                (state, Some(index + 1), None)
            }
        };
        MapExtent { offset: piece.offset, length: piece.len, state, depth, file_offset }
    }
}

impl Iterator for MapExtents<'_> {
    type Item = Result<MapExtent>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.next_piece()?;
        Some(piece.map(|piece| self.extent(piece)))
    }
}

/// A run of a disk in which two points of a chain can differ, in bytes; whole sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ChangedRange {
    /// Where on the disk it starts.
    pub offset: u64,
    /// How long it is, never 0.
    pub length: u64,
}

/// The runs in which two points of a chain can differ, in order and never touching; after an error they end.
#[derive(Debug)]
pub struct Changes<'a> {
    /// The layers of either point that the other does not have.
    own: [Runs<'a>; 2],
    /// Past the end of the shorter disk there is nothing to compare.
    tail: Range<u64>,
    /// A run found while looking where the one before it ends.
    held: Option<Range<u64>>,
    failed: bool,
}

/// The sectors in which the disks `from` and `to` show can differ: what the files of either hold that are not files of
/// both, and, when one disk is longer, all of its rest. Everything else is the same byte by byte. Reads maps, no data:
/// a sector that was written with what it held before counts as well.
///
/// The two are points of one chain (one is an ancestor of the other) or of two chains that share a file.
///
/// # Errors
/// `Chain` when no file is in both; what the system answers.
pub fn changes<'a>(from: &'a Chain, to: &'a Chain) -> Result<Changes<'a>> {
    let backings = |chain: &Chain| chain.layers().iter().map(Backing::of).collect::<Result<Vec<_>>>();
    let (ours, theirs) = (backings(from)?, backings(to)?);
    let shared = ours.iter().enumerate().find_map(|(index, backing)| {
        let other = theirs.iter().position(|other| backing == other)?;
        Some((index, other))
    });
    let Some((ours, theirs)) = shared else {
        return Err(from
            .leaf()
            .blame(Error::new(ErrorKind::Chain, format_args!("it shares no file with {}", to.leaf().name())))
            .with_hint("`vhdkit compare` compares any two disks, byte by byte"));
    };
    let (sizes, own) = ((from.virtual_size(), to.virtual_size()), [Runs::of(from, ours), Runs::of(to, theirs)]);
    Ok(Changes { own, tail: sizes.0.min(sizes.1)..sizes.0.max(sizes.1), held: None, failed: false })
}

/// What the bytes of a layer are kept in: two layers over the same read the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    File(FileIdentity),
    /// The address of a storage that the layer keeps alive.
    Storage(usize),
}

impl Backing {
    pub(super) fn of(layer: &Layer) -> Result<Self> {
        match layer.file() {
            Some(file) => file.identity().map(Self::File),
            None => Ok(Self::Storage(Arc::as_ptr(layer.storage()).cast::<()>().addr())),
        }
        .map_err(|error| layer.blame(Error::io("look at the file", error)))
    }
}

/// The runs that the first layers of a chain decide.
#[derive(Debug)]
struct Runs<'a> {
    pieces: Pieces<'a>,
    ahead: Option<Range<u64>>,
}

impl<'a> Runs<'a> {
    fn of(chain: &'a Chain, layers: usize) -> Self {
        Self { pieces: chain.pieces_of(0..layers, 0..chain.virtual_size()), ahead: None }
    }

    /// The next run, which stays the next until it is taken.
    fn peek(&mut self) -> Result<Option<Range<u64>>> {
        while self.ahead.is_none() {
            let Some(piece) = self.pieces.next().transpose()? else { break };
            if piece.owner != Owner::Below {
                self.ahead = Some(piece.offset..piece.end());
            }
        }
        Ok(self.ahead.clone())
    }
}

impl Changes<'_> {
    /// The run that starts first of those not given out yet.
    fn first(&mut self) -> Result<Option<Range<u64>>> {
        if self.held.is_some() {
            return Ok(self.held.take());
        }
        let [ours, theirs] = &mut self.own;
        let tail = (!self.tail.is_empty()).then(|| self.tail.clone());
        let found = [ours.peek()?, theirs.peek()?, tail];
        let first = found.iter().enumerate().filter_map(|(index, run)| Some((run.as_ref()?.start, index))).min();
        Ok(match first {
            None => None,
            Some((_, 0)) => ours.ahead.take(),
            Some((_, 1)) => theirs.ahead.take(),
            Some(_) => Some(std::mem::replace(&mut self.tail, 0..0)),
        })
    }

    fn joined(&mut self) -> Result<Option<ChangedRange>> {
        let Some(mut run) = self.first()? else { return Ok(None) };
        while let Some(next) = self.first()? {
            if next.start > run.end {
                self.held = Some(next);
                break;
            }
            run.end = run.end.max(next.end);
        }
        Ok(Some(ChangedRange { offset: run.start, length: run.end - run.start }))
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<ChangedRange>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let found = self.joined();
        self.failed = found.is_err();
        found.transpose()
    }
}
