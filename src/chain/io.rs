//! Reading and writing a chain as a disk.
//!
//! Owns: byte ranges of any alignment turned into pieces, wants and places. Must not know: formats, files.

use super::holders::{PART_LEN, SHORT_CHAIN};
use super::{Chain, Owner, Pieces};
use crate::error::{Error, ErrorKind, Result};
use crate::map::{BlockSink, Content, Place, Reservation, Want};
use crate::units::{MIB, round_down, round_up};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// The most bytes written between two syncs by [`Chain::write_at`]; larger writes are several batches.
const WRITE_BATCH: u64 = 64 * MIB;

impl Chain {
    /// Fills `buf` from the disk, starting at `offset` bytes.
    ///
    /// # Errors
    /// `InvalidInput` when the range reaches past the end of the disk; `Corrupt` when a block of it is broken (then
    /// `buf` holds anything); what the storage answers.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let Range { start, end } = self.range_inside(offset, buf.len())?;
        if self.layers.len() <= SHORT_CHAIN {
            return self.read_pieces(self.pieces(start..end), buf);
        }
        let (mut at, mut rest) = (start, buf);
        while at < end {
            let part = at / PART_LEN;
            let cut = part.saturating_add(1).saturating_mul(PART_LEN).min(end);
            let len = to_len(cut.saturating_sub(at))?.min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            let holders = self.known.holders(&self.layers, part);
            self.read_pieces(Pieces::among(&self.layers, holders, at..cut), now)?;
            (at, rest) = (cut, later);
        }
        Ok(())
    }

    /// Fills `buf` with what `pieces` lead to.
    fn read_pieces(&self, pieces: Pieces<'_>, buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        for piece in pieces {
            let piece = piece?;
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match piece.owner {
                Owner::Zero { .. } | Owner::Below => now.fill(0),
                Owner::Layer { index, at } => {
                    let layer = self.layer(index)?;
                    let read = layer.image.map().storage().read_exact_at(now, at.get());
                    read.map_err(|error| layer.blame(Error::io("read data", error).with_offset(at)))?;
                }
            }
            rest = later;
        }
        Ok(())
    }

    /// The disk as `Read + Seek`.
    #[must_use]
    pub fn reader(&self) -> ChainReader<'_> {
        ChainReader { chain: self, position: 0 }
    }

    /// Writes `data` at `offset` bytes of the disk, into the leaf. Visible at once, durable after [`flush`](Self::flush).
    /// A range that does not start or end on a logical sector is completed from the chain.
    ///
    /// # Errors
    /// `ReadOnly`, `InvalidInput` past the end of the disk, `NoSpace`, `Corrupt`, what the storage answers. Part of the
    /// range may have been written.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let range = self.range_inside(offset, data.len())?;
        let sector = u64::from(self.logical_sector_size());
        let mut at = range.start;
        while at < range.end {
            let cut = round_down(at.saturating_add(WRITE_BATCH), sector);
            let end = range.end.min(cut.max(at.saturating_add(1)));
            let bytes = slice(data, range.start, at..end)?;
            if at.is_multiple_of(sector) && end.is_multiple_of(sector) {
                self.write_aligned(bytes, at)?;
            } else {
                let around = self.widened(at..end, sector);
                let mut whole = vec![0; to_len(around.end.saturating_sub(around.start))?];
                self.read_at(&mut whole, around.start)?;
                let from = to_len(at.saturating_sub(around.start))?;
                let target = whole.get_mut(from..).and_then(|rest| rest.get_mut(..bytes.len()));
                target.ok_or_else(outside)?.copy_from_slice(bytes);
                self.write_aligned(&whole, around.start)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Makes `range` of the disk read as zeros, giving space back where the format can.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn zero(&mut self, range: Range<u64>) -> Result<()> {
        let sector = u64::from(self.logical_sector_size());
        self.range_inside(range.start, to_len(range.end.saturating_sub(range.start))?)?;
        let first = round_up(range.start, sector).ok_or_else(outside)?;
        let last = if range.end == self.virtual_size() { range.end } else { round_down(range.end, sector) };
        if first >= last {
            return self.write_at(&vec![0; to_len(range.end.saturating_sub(range.start))?], range.start);
        }
        self.write_at(&vec![0; to_len(first.saturating_sub(range.start))?], range.start)?;
        self.zero_aligned(first..last)?;
        self.write_at(&vec![0; to_len(range.end.saturating_sub(last))?], last)
    }

    /// Tells the leaf that the contents of `range` no longer matter. Whole blocks inside it read as zeros afterwards and
    /// their space is given back where the format can; the rest of the range keeps its bytes.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn discard(&mut self, range: Range<u64>) -> Result<()> {
        self.range_inside(range.start, to_len(range.end.saturating_sub(range.start))?)?;
        // An image without blocks gives back sectors.
        let block = self.layer(0)?.image().block_size().unwrap_or(self.logical_sector_size()).into();
        let first = round_up(range.start, block).ok_or_else(outside)?;
        let last = if range.end == self.virtual_size() { range.end } else { round_down(range.end, block) };
        if first < last { self.zero_aligned(first..last) } else { Ok(()) }
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn flush(&mut self) -> Result<()> {
        let layer = self.layer_mut(0)?;
        layer.image.sink().flush().map_err(|error| layer.blame(error))
    }

    fn write_aligned(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        self.fill(Want { range: offset..end, content: Content::Data }, |sink, place| {
            let from = place.offset.checked_sub(offset).ok_or_else(outside)?;
            let bytes = slice(bytes, 0, from..from.saturating_add(place.len))?;
            sink.storage().write_all_at(bytes, place.at.get()).map_err(|error| Error::io("write data", error))
        })
    }

    fn zero_aligned(&mut self, range: Range<u64>) -> Result<()> {
        self.fill(Want { range, content: Content::Zero }, |_, _| Err(outside()))
    }

    /// Reserve, fill, sync, publish: the one way bytes get into the leaf.
    fn fill(&mut self, want: Want, write: impl Fn(&dyn BlockSink, &Place) -> Result<()>) -> Result<()> {
        let layer = self.layer_mut(0)?;
        let sink = layer.image.sink();
        let go = || -> Result<()> {
            let reservation: Reservation = sink.reserve(vec![want])?;
            for place in reservation.places() {
                match place.content {
                    Content::Data => write(sink, place)?,
                    Content::Zero => {
                        let end = place.at.get().saturating_add(place.len);
                        let zeroed = sink.storage().zero_range(place.at.get()..end);
                        zeroed.map_err(|error| Error::io("write zeros", error))?;
                    }
                }
            }
            sink.storage().sync().map_err(|error| Error::io("sync data", error))?;
            sink.publish(reservation)
        };
        let done = go();
        done.map_err(|error| layer.blame(error))
    }

    fn widened(&self, range: Range<u64>, sector: u64) -> Range<u64> {
        let end = round_up(range.end, sector).unwrap_or(range.end).min(self.virtual_size());
        round_down(range.start, sector)..end
    }

    fn range_inside(&self, offset: u64, len: usize) -> Result<Range<u64>> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.virtual_size());
        end.map(|end| offset..end).ok_or_else(|| {
            let size = self.virtual_size();
            Error::new(
                ErrorKind::InvalidInput,
                format_args!("{len} bytes at offset {offset} reach past the end of the disk ({size} bytes)"),
            )
        })
    }
}

/// The part `range` of `data`, whose first byte is at `start`.
fn slice(data: &[u8], start: u64, range: Range<u64>) -> Result<&[u8]> {
    let from = to_len(range.start.saturating_sub(start))?;
    let to = to_len(range.end.saturating_sub(start))?;
    data.get(from..to).ok_or_else(outside)
}

fn to_len(len: u64) -> Result<usize> {
    usize::try_from(len).map_err(|_| outside())
}

fn outside() -> Error {
    Error::new(ErrorKind::InvalidInput, "the range is outside the disk or too large for this machine")
}

/// A chain as `Read + Seek`. Reads at the end of the disk answer 0; seeking past it is allowed.
#[derive(Debug)]
pub struct ChainReader<'a> {
    chain: &'a Chain,
    position: u64,
}

impl Read for ChainReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.chain.virtual_size().saturating_sub(self.position);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let buf = buf.get_mut(..len).unwrap_or_default();
        self.chain.read_at(buf, self.position)?;
        self.position = self.position.saturating_add(len as u64);
        Ok(len)
    }
}

impl Seek for ChainReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(delta) => self.chain.virtual_size().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}
