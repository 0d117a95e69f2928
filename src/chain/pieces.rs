//! Resolving virtual ranges to the layers that own them.
//!
//! Owns: the rule how layers compose, and the walk over a range. Must not know: files, formats, what a piece is for.

use super::{Chain, Layer};
use crate::error::Result;
use crate::map::Source;
use crate::units::FileOffset;
use std::ops::Range;

/// Who decides a run of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The layer of this index (leaf = 0) holds the bytes, from this place of its file on.
    Layer {
        /// Index into [`Chain::layers`].
        index: usize,
        /// Where the run's bytes start in that layer's file.
        at: FileOffset,
    },
    /// It reads as zeros because the layer of this index says so, or because that layer ends before it.
    Zero {
        /// Index into [`Chain::layers`].
        index: usize,
    },
    /// None of the layers asked says anything: zeros when they are the whole chain.
    Below,
}

/// A run of the virtual disk with one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Virtual offset in bytes.
    pub offset: u64,
    /// Length in bytes, never zero.
    pub len: u64,
    /// Who decides it.
    pub owner: Owner,
}

impl Piece {
    /// Where the piece ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether `next` carries on where this piece stops, so that both are one.
    fn continues_as(&self, next: &Self) -> bool {
        match (self.owner, next.owner) {
            (Owner::Layer { index: a, at }, Owner::Layer { index: b, at: next_at }) => {
                a == b && at.checked_add(self.len) == Some(next_at)
            }
            (Owner::Zero { index: a }, Owner::Zero { index: b }) => a == b,
            (Owner::Below, Owner::Below) => true,
            _ => false,
        }
    }
}

/// The pieces of a range in order, joined where they continue one another. After an error it ends.
#[derive(Debug)]
pub struct Pieces<'a> {
    layers: &'a [Layer],
    /// The index that the first of `layers` has in its chain.
    first: usize,
    at: u64,
    end: u64,
    /// The piece after the one given out last, found while looking where that one ends.
    ahead: Option<Piece>,
}

impl Chain {
    /// The pieces that make up `range` of the disk. Ranges past the end of the disk are cut off.
    #[must_use]
    pub fn pieces(&self, range: Range<u64>) -> Pieces<'_> {
        self.pieces_of(0..self.layers.len(), range)
    }

    /// The pieces of `range` as the layers `layers` alone decide them, the first of them being the top: what they do not
    /// say is [`Owner::Below`]. Cut off at the top layer's end.
    #[must_use]
    pub fn pieces_of(&self, layers: Range<usize>, range: Range<u64>) -> Pieces<'_> {
        let first = layers.start;
        Pieces::over(self.layers.get(layers).unwrap_or_default(), first, range)
    }
}

impl<'a> Pieces<'a> {
    /// The pieces of `range` as `layers` decide them, the first of which is layer `first` of its chain.
    pub(crate) fn over(layers: &'a [Layer], first: usize, range: Range<u64>) -> Self {
        let size = layers.first().map_or(0, |layer| layer.image().virtual_size());
        Self { layers, first, at: range.start, end: range.end.min(size), ahead: None }
    }

    fn find(&mut self) -> Option<Result<Piece>> {
        if self.at >= self.end {
            return None;
        }
        let found = resolve(self.layers, self.first, self.at..self.end);
        self.at = found.as_ref().map_or(self.end, Piece::end);
        Some(found)
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut piece = match self.ahead.take() {
            Some(piece) => piece,
            None => match self.find()? {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error)),
            },
        };
        while self.at < self.end {
            match self.find()? {
                Ok(next) if piece.continues_as(&next) => piece.len = piece.len.saturating_add(next.len),
                Ok(next) => {
                    self.ahead = Some(next);
                    break;
                }
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(piece))
    }
}

/// The piece at the start of `range` of the disk that `layers` show, whatever comes behind it.
///
/// # Errors
/// As [`Pieces`]; then nothing is known of the byte at its start, and perhaps of those behind.
pub(crate) fn piece_at(layers: &[Layer], range: Range<u64>) -> Result<Piece> {
    resolve(layers, 0, range)
}

/// The piece at the start of `range`, asked of `layers` top down; `first` is the index of the first of them.
fn resolve(layers: &[Layer], first: usize, range: Range<u64>) -> Result<Piece> {
    let offset = range.start;
    let mut len = range.end.saturating_sub(range.start);
    for (layer, index) in layers.iter().zip(first..) {
        let map = layer.image().map();
        let Some(left) = map.virtual_size().checked_sub(offset).filter(|&left| left > 0) else {
            return Ok(Piece { offset, len, owner: Owner::Zero { index } });
        };
        let extent = map.extent_at(offset, len.min(left)).map_err(|error| layer.blame(error))?;
        len = extent.len;
        match extent.source {
            Source::Data(at) => return Ok(Piece { offset, len, owner: Owner::Layer { index, at } }),
            Source::Zero => return Ok(Piece { offset, len, owner: Owner::Zero { index } }),
            Source::Absent => {}
        }
    }
    Ok(Piece { offset, len, owner: Owner::Below })
}
