//! The pieces of some layers, dealt out in batches.
//!
//! Owns: how large a batch gets and where it ends. Must not know: the target beyond its block size.

use crate::chain::{Layer, Owner, Piece, Pieces};
use crate::copy::CHUNK;
use crate::error::Result;
use crate::map::Content;
use crate::units::{FileOffset, MIB, round_up};
use std::ops::Range;

/// The most bytes of data per batch, up to the end of the block they end in: enough that two syncs a batch do not count.
const BATCH_BYTES: u64 = 256 * MIB;
/// The most parts a batch is let grow to before it ends at the next block; bounds its memory to a few MiB.
const BATCH_PARTS: usize = 1 << 16;
/// The most blocks of zeros in a batch: their table entries are what it costs.
const BATCH_ZERO_BLOCKS: u64 = 1 << 14;
/// The largest block either format has; sinks that answer more have no blocks.
pub(super) const MAX_BLOCK: u64 = 256 * MIB;

/// A part of a batch: a range, and the layer and file offset of its bytes, or none for zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) from: Option<(usize, u64)>,
}

impl Part {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }

    pub(super) fn content(&self) -> Content {
        if self.from.is_some() { Content::Data } else { Content::Zero }
    }

    /// The part of it inside `range`.
    pub(super) fn cut(&self, range: Range<u64>) -> Option<Self> {
        let (start, end) = (self.offset.max(range.start), self.end().min(range.end));
        (start < end).then(|| Self {
            offset: start,
            len: end - start,
            from: self.from.map(|(layer, at)| (layer, at + (start - self.offset))),
        })
    }
}

/// The pieces of some layers, dealt out in batches.
pub(super) struct Feed<'a> {
    pieces: Pieces<'a>,
    held: Option<Piece>,
    /// Bytes of data per batch.
    batch: u64,
}

impl<'a> Feed<'a> {
    /// Deals out what `layers` hold from `start` on, at most `batch` bytes at a time, rounded up to a block.
    pub(super) fn new(layers: &'a [Layer], start: u64, batch: u64) -> Self {
        let size = layers.first().map_or(0, |layer| layer.image().virtual_size());
        let pieces = Pieces::over(layers, 0, start..size.max(start));
        Self { pieces, held: None, batch: batch.clamp(1, BATCH_BYTES) }
    }

    fn next_piece(&mut self) -> Result<Option<Piece>> {
        match self.held.take() {
            Some(piece) => Ok(Some(piece)),
            None => self.pieces.next().transpose(),
        }
    }

    /// The next batch, ended at a multiple of `block` where it can be; `None` at the end.
    pub(super) fn next_batch(&mut self, block: u64) -> Result<Option<Vec<Part>>> {
        let align = if block > MAX_BLOCK { CHUNK } else { block };
        let mut parts = Vec::new();
        let mut room = self.batch;
        let mut stop = u64::MAX;
        while let Some(piece) = self.next_piece()? {
            let (from, span) = match piece.owner {
                Owner::Below => continue,
                Owner::Zero { .. } => (None, BATCH_ZERO_BLOCKS.saturating_mul(align)),
                Owner::Layer { index, at } => (Some((index, at.get())), room),
            };
            if piece.offset >= stop {
                self.held = Some(piece);
                break;
            }
            let cut = round_up(piece.offset.saturating_add(span), align).unwrap_or(u64::MAX).min(stop);
            let part = Part { offset: piece.offset, len: piece.len.min(cut - piece.offset), from };
            if part.len < piece.len {
                let owner = match piece.owner {
                    Owner::Layer { index, at } => Owner::Layer { index, at: FileOffset(at.get() + part.len) },
                    other => other,
                };
                self.held = Some(Piece { offset: part.end(), len: piece.len - part.len, owner });
                stop = stop.min(part.end());
            }
            if from.is_some() {
                room = room.saturating_sub(part.len);
            }
            parts.push(part);
            if stop == u64::MAX && (room == 0 || parts.len() >= BATCH_PARTS) {
                stop = round_up(part.end(), align).unwrap_or(u64::MAX);
            }
        }
        Ok((!parts.is_empty()).then_some(parts))
    }
}
