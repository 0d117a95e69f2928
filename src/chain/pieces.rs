//! Resolving virtual ranges to the layers that own them.
//!
//! Owns: the rule how layers compose, and the walk over a range. Must not know: files, formats, what a piece is for.

use super::holders::Holders;
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

/// What one layer said of a run of the disk.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Where the run starts and ends.
    run: (u64, u64),
    source: Source,
}

/// Of no run.
const NO_ANSWER: Answer = Answer { run: (0, 0), source: Source::Absent };

/// The pieces of a range in order, joined where they continue one another. After an error it ends.
///
/// Each layer is asked once for each of its runs, however many pieces the layers above cut it to. A range that is one
/// piece allocates nothing.
#[derive(Debug)]
pub struct Pieces<'a> {
    layers: &'a [Layer],
    /// The layers to ask, when it is known that the others leave the whole range to those below them.
    only: Option<Holders>,
    /// The index that the first of `layers` has in its chain.
    first: usize,
    at: u64,
    end: u64,
    /// The piece after the one given out last, found while looking where that one ends.
    ahead: Option<Piece>,
    /// What each layer said last, once there was more than one piece.
    said: Vec<Answer>,
    /// Whether a piece was found.
    begun: bool,
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
        let (at, end) = (range.start, range.end.min(size));
        Self { layers, only: None, first, at, end, ahead: None, said: Vec::new(), begun: false }
    }

    /// The pieces of `range`, of which all layers but those in `only` leave everything to the layers below them.
    pub(super) fn among(layers: &'a [Layer], only: Holders, range: Range<u64>) -> Self {
        Self { only: Some(only), ..Self::over(layers, 0, range) }
    }

    /// How many layers are asked.
    fn asked(&self) -> usize {
        self.only.as_ref().map_or(self.layers.len(), |only| only.len())
    }

    /// Which of the layers is asked after `position` others.
    fn asked_after(&self, position: usize) -> usize {
        self.only.as_ref().map_or(position, |only| only.get(position).map_or(usize::MAX, |&index| index as usize))
    }

    fn find(&mut self) -> Option<Result<Piece>> {
        if self.at >= self.end {
            return None;
        }
        if self.begun && self.said.is_empty() {
            self.said = vec![NO_ANSWER; self.asked()];
        }
        self.begun = true;
        let found = self.resolve();
        self.at = found.as_ref().map_or(self.end, Piece::end);
        Some(found)
    }

    /// The piece at `at`, asked of the layers top down.
    fn resolve(&mut self) -> Result<Piece> {
        let offset = self.at;
        let mut len = self.end.saturating_sub(offset);
        for position in 0..self.asked() {
            let asked = self.asked_after(position);
            let Some(layer) = self.layers.get(asked) else { break };
            let index = self.first.saturating_add(asked);
            let Answer { run, source } = match self.said.get_mut(position) {
                None => ask(layer, offset, len)?,
                Some(said) => {
                    if !(said.run.0..said.run.1).contains(&offset) {
                        *said = ask(layer, offset, self.end.saturating_sub(offset))?;
                    }
                    *said
                }
            };
            len = len.min(run.1.saturating_sub(offset));
            match source {
                Source::Data(at) => {
                    let at = at.checked_add(offset.saturating_sub(run.0)).unwrap_or(at);
                    return Ok(Piece { offset, len, owner: Owner::Layer { index, at } });
                }
                Source::Zero => return Ok(Piece { offset, len, owner: Owner::Zero { index } }),
                Source::Absent => {}
            }
        }
        Ok(Piece { offset, len, owner: Owner::Below })
    }
}

/// What `layer` says of the run that starts at `offset`, at most `limit` bytes long unless it lies behind the layer's end.
fn ask(layer: &Layer, offset: u64, limit: u64) -> Result<Answer> {
    let map = layer.image().map();
    let left = map.virtual_size().saturating_sub(offset);
    if left == 0 {
        return Ok(Answer { run: (offset, u64::MAX), source: Source::Zero });
    }
    let extent = map.extent_at(offset, limit.min(left)).map_err(|error| layer.blame(error))?;
    Ok(Answer { run: (offset, offset.saturating_add(extent.len)), source: extent.source })
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
    Pieces::over(layers, 0, range).resolve()
}
