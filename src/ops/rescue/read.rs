//! Reading a disk in spite of errors.
//!
//! Owns: how much is lost to an error, and that nothing else is. Must not know: formats, where the bytes go.

use super::write::Writer;
use super::{LossCause, LostRange, MAX_LOST_RANGES};
use crate::chain::{Layer, Owner, Piece, piece_at};
use crate::copy::Meter;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::storage::Storage;
use crate::units::{FileOffset, MIB, round_down};
use std::ops::Range;

/// Bytes read at a time.
const CHUNK: u64 = MIB;
/// How far to go on after an error about where bytes are: blocks are at least this long, or as long as their image says,
/// and one page of a sector bitmap stands for more.
const STEP: u64 = MIB;
/// The lost ranges that keep the error's words.
const MAX_TOLD: usize = 1000;

/// What was not read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) lost: Vec<LostRange>,
    pub(super) absent: Vec<Range<u64>>,
}

/// One walk over a disk.
pub(super) struct Salvager<'a> {
    layers: &'a [Layer],
    fill: Vec<u8>,
    meter: &'a Meter<'a>,
    size: u64,
    step: u64,
    sector: u64,
    /// Whether what no layer says is a parent's.
    rooted: bool,
    found: Found,
}

impl<'a> Salvager<'a> {
    pub(super) fn new(layers: &'a [Layer], fill: &[u8], meter: &'a Meter<'a>) -> Self {
        let leaf = layers.first().map(Layer::image);
        let blocks = layers.iter().filter_map(|layer| layer.image().block_size()).map(u64::from);
        Self {
            layers,
            fill: if fill.iter().all(|byte| *byte == 0) { Vec::new() } else { fill.to_vec() },
            meter,
            size: leaf.map_or(0, Image::virtual_size),
            step: blocks.min().unwrap_or(STEP).min(STEP),
            sector: leaf.map_or(512, Image::logical_sector_size).into(),
            rooted: layers.last().is_none_or(|last| last.image().parent_link().is_none()),
            found: Found::default(),
        }
    }

    pub(super) fn into_found(self) -> Found {
        self.found
    }

    /// Hands everything that can be read to `writer`.
    ///
    /// # Errors
    /// Those of writing; `Cancelled`.
    pub(super) fn run(&mut self, writer: &mut Writer<'_>) -> Result<()> {
        let mut buffer = vec![0; CHUNK as usize];
        let mut at = 0;
        while at < self.size {
            self.meter.check()?;
            at = match piece_at(self.layers, at..self.size) {
                Ok(piece) => self.take(&piece, &mut buffer, writer)?,
                Err(error) => {
                    let end = (round_down(at, self.step) + self.step).min(self.size);
                    self.lose(at..end, LossCause::Map, &error)?;
                    if !self.fill.is_empty() {
                        let bytes = &mut buffer[..(end - at) as usize];
                        self.fill(at, bytes);
                        writer.put(at, bytes)?;
                    }
                    end
                }
            };
            self.meter.reached(at);
        }
        Ok(())
    }

    /// Deals with `piece`, and answers where it ends.
    fn take(&mut self, piece: &Piece, buffer: &mut [u8], writer: &mut Writer<'_>) -> Result<u64> {
        let (mut at, end) = (piece.offset, piece.end());
        match piece.owner {
            Owner::Layer { index, at: from } => {
                while at < end {
                    let next = end.min(round_down(at, CHUNK) + CHUNK);
                    let bytes = &mut buffer[..(next - at) as usize];
                    self.read((index, from.get() + (at - piece.offset)), at, bytes)?;
                    writer.put(at, bytes)?;
                    at = next;
                    self.meter.reached(at);
                }
            }
            Owner::Below if !self.rooted => self.absent(at..end),
            Owner::Zero { .. } | Owner::Below => {}
        }
        Ok(end)
    }

    /// Fills `bytes`, which are the disk's at `offset`, from `from` of a layer's file: what cannot be read is lost, in
    /// pieces as small as a sector.
    fn read(&mut self, (index, from): (usize, u64), offset: u64, bytes: &mut [u8]) -> Result<()> {
        let layers = self.layers;
        let Some(layer) = layers.get(index) else { return Ok(()) };
        let storage: &dyn Storage = layer.image().map().storage();
        let mut rest = vec![(0, bytes.len())];
        while let Some((start, end)) = rest.pop() {
            let range = start..end;
            self.meter.check()?;
            let len = range.len() as u64;
            let (place, at) = (from + range.start as u64, offset + range.start as u64);
            let part = &mut bytes[range.clone()];
            match storage.read_exact_at(part, place) {
                Ok(()) => self.meter.add_moved(len),
                Err(_) if len > self.sector => {
                    let half = range.start + round_down(len.div_ceil(2), self.sector).max(self.sector) as usize;
                    // The first half comes off the stack first: losses are noted in order.
                    rest.push((half, range.end));
                    rest.push((range.start, half));
                }
                Err(error) => {
                    let error = layer.blame(Error::io("read data", error).with_offset(FileOffset(place)));
                    self.lose(at..at + len, LossCause::Medium, &error)?;
                    self.fill(at, part);
                }
            }
        }
        Ok(())
    }

    /// What stands in lost bytes at `offset`.
    fn fill(&self, offset: u64, bytes: &mut [u8]) {
        if self.fill.is_empty() {
            bytes.fill(0);
            return;
        }
        let skip = (offset % self.fill.len() as u64) as usize;
        for (byte, value) in bytes.iter_mut().zip(self.fill.iter().cycle().skip(skip)) {
            *byte = *value;
        }
    }

    fn lose(&mut self, range: Range<u64>, cause: LossCause, error: &Error) -> Result<()> {
        let (offset, length) = (range.start, range.end - range.start);
        let lost = &mut self.found.lost;
        if let Some(last) = lost.last_mut()
            && last.cause == cause
            && last.offset + last.length == offset
        {
            last.length += length;
            return Ok(());
        }
        self.require_room()?;
        let lost = &mut self.found.lost;
        let error = if lost.len() < MAX_TOLD { error.to_string() } else { String::new() };
        lost.push(LostRange { offset, length, cause, error });
        Ok(())
    }

    fn absent(&mut self, range: Range<u64>) {
        match self.found.absent.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.found.absent.push(range),
        }
    }

    /// A map that is not whole would be worse than none.
    fn require_room(&self) -> Result<()> {
        if self.found.lost.len() < MAX_LOST_RANGES {
            return Ok(());
        }
        let message = format!("more than {MAX_LOST_RANGES} separate ranges are lost");
        Err(Error::new(ErrorKind::Unsupported, message)
            .with_hint("copy the medium with a tool for failing disks first"))
    }
}
