//! Batches of a chain's contents on their way into a sink.
//!
//! Owns: cutting a chain to batches, deciding which parts need to move, and the order reserve - copy - sync - publish.
//! Must not know: formats, files, and why the bytes move.

mod feed;

use crate::chain::Layer;
#[cfg(feature = "registry")]
use crate::chain::{Owner, Piece, Pieces};
use crate::copy::{CHUNK, Copier, Meter, Move, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::map::{BlockSink, Content, Place, Source, Want};
use crate::storage::Storage;
use crate::units::round_down;
use feed::{Feed, MAX_BLOCK, Part};
use std::ops::Range;

/// What moves where.
#[derive(Debug)]
pub(super) struct Transfer<'a> {
    /// The layers whose contents move, nearest the leaf first; what they do not say stays as the target has it.
    pub(super) layers: &'a [Layer],
    /// The target has no parent: what it does not hold is zero.
    pub(super) root: bool,
    /// The target was just made and reads as zeros everywhere.
    pub(super) fresh: bool,
    /// Read data bound for unallocated space of a root target first, and leave zeros out.
    pub(super) scan_zeros: bool,
    /// Everything before this offset is in the target already.
    pub(super) skip: u64,
    /// Everything before this offset probably is: compare, and leave out what is the same.
    pub(super) compare: u64,
    /// Data moves inside the file system or not at all.
    pub(super) inside: bool,
}

/// Told how far a transfer has got.
pub(super) struct Milestones<'a> {
    /// Bytes moved between two of them; batches are no larger, or there would be fewer.
    pub(super) every: u64,
    /// Called when everything before the offset is durable in the target.
    pub(super) reached: &'a dyn Fn(u64) -> Result<()>,
}

/// What a transfer would cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Bytes the layers hold.
    pub(super) data: u64,
    /// Bytes the layers declare zero and the target does not show as zero yet.
    pub(super) zeros: u64,
    /// Bytes the target file may grow.
    pub(super) space: u64,
    /// Bytes of the data that lie elsewhere in the file system's blocks than they will in the target: no reflink.
    pub(super) shifted: u64,
}

impl Cost {
    fn count(&mut self, part: &Part) {
        match part.content() {
            Content::Data => self.data += part.len,
            Content::Zero => self.zeros += part.len,
        }
    }
}

impl Transfer<'_> {
    /// Moves everything into `sink`, batch by batch, each durable before the next; ends with a flush.
    ///
    /// # Errors
    /// Of reading, writing and publishing; `Cancelled`. What was published stays.
    pub(super) fn run(
        &self,
        sink: &mut dyn BlockSink,
        copier: &Copier,
        meter: &Meter<'_>,
        milestones: &Milestones<'_>,
    ) -> Result<()> {
        let mut feed = Feed::new(self.layers, self.skip, milestones.every);
        let mut end = self.skip;
        let (mut passed, mut passed_at) = (end, meter.moved());
        loop {
            let step = self.step(&mut feed, sink, copier, meter);
            match step {
                Ok(Some(reached)) => end = reached,
                Ok(None) => return sink.flush(),
                Err(error) => {
                    // A caller who cancels means to go on later: keep the place, if the target still takes a flush.
                    if error.kind() == ErrorKind::Cancelled && end > passed && sink.flush().is_ok() {
                        (milestones.reached)(end)?;
                    }
                    return Err(error);
                }
            }
            meter.reached(end);
            if meter.moved() - passed_at >= milestones.every {
                sink.flush()?;
                (milestones.reached)(end)?;
                (passed, passed_at) = (end, meter.moved());
            }
        }
    }

    /// One batch: answers where it ended, `None` when there was none left.
    fn step(
        &self,
        feed: &mut Feed<'_>,
        sink: &mut dyn BlockSink,
        copier: &Copier,
        meter: &Meter<'_>,
    ) -> Result<Option<u64>> {
        meter.check()?;
        let Some(batch) = feed.next_batch(sink.block_size())? else { return Ok(None) };
        let end = batch.last().map_or(0, Part::end);
        self.write(batch, sink, copier, meter)?;
        Ok(Some(end))
    }

    /// Moves all that the layers show in `ranges`, which ascend, into `sink`: zeros where none of them says anything. One
    /// batch: the caller sees to it that it is not too large, and flushes.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    #[cfg(feature = "registry")]
    pub(super) fn run_ranges(
        &self,
        ranges: &[Range<u64>],
        sink: &mut dyn BlockSink,
        copier: &Copier,
        meter: &Meter<'_>,
    ) -> Result<()> {
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            for piece in Pieces::over(self.layers, 0, range.clone()) {
                let Piece { offset, len, owner } = piece?;
                let from = if let Owner::Layer { index, at } = owner { Some((index, at.get())) } else { None };
                parts.push(Part { offset, len, from });
            }
        }
        self.write(parts, sink, copier, meter)
    }

    /// Reserve, copy, sync, publish.
    fn write(&self, batch: Vec<Part>, sink: &mut dyn BlockSink, copier: &Copier, meter: &Meter<'_>) -> Result<()> {
        let parts = self.needed(batch, sink, copier, meter)?;
        if !parts.is_empty() {
            let reservation = sink.reserve(wants(&parts))?;
            let work = self.work(&parts, reservation.places(), sink)?;
            match self.inside {
                #[cfg(feature = "registry")]
                true => copier.run_inside(work, meter)?,
                _ => copier.run(work, meter)?,
            }
            sink.storage().sync().map_err(|error| Error::io("sync data", error))?;
            sink.publish(reservation)?;
        }
        Ok(())
    }

    /// What [`run`](Self::run) would cost, from the maps alone.
    ///
    /// # Errors
    /// Of reading the maps.
    pub(super) fn cost(&self, sink: &dyn BlockSink) -> Result<Cost> {
        let mut cost = Cost::default();
        let unit = sink.storage().share_unit().map_err(|error| Error::io("ask for the block size", error))?;
        let mut feed = Feed::new(self.layers, 0, u64::MAX);
        let unit = unit.filter(|&unit| unit > 0);
        while let Some(batch) = feed.next_batch(sink.block_size())? {
            let size = sink.virtual_size();
            let inside = batch.iter().filter_map(|part| part.cut(0..size)).collect();
            let parts = self.without_zeros_over_zero(inside, sink)?;
            cost.space += sink.space_for(&wants(&parts))?;
            for part in &parts {
                cost.count(part);
                cost.shifted += unit.map_or(Ok(0), |unit| shifted(part, sink, unit))?;
            }
            // Past its end the target has yet to grow: all of it is new, with a bitmap of at most 1/256 of its size.
            for part in batch.iter().filter_map(|part| part.cut(size..u64::MAX)) {
                cost.count(&part);
                cost.space += part.len + part.len / 256 + 2 * sink.block_size().min(MAX_BLOCK);
            }
        }
        Ok(cost)
    }

    /// The parts of `batch` that have to be written.
    fn needed(&self, batch: Vec<Part>, sink: &dyn BlockSink, copier: &Copier, meter: &Meter<'_>) -> Result<Vec<Part>> {
        let parts = self.without_zeros_over_zero(batch, sink)?;
        let parts = self.without_equal(parts, sink, copier, meter)?;
        let blocks = sink.block_size();
        if !self.scan_zeros || !self.root || blocks > MAX_BLOCK {
            return Ok(parts);
        }
        // Data bound for space that reads as zero: cut at blocks, so that a block of zeros is not allocated for them.
        let mut cut = Vec::with_capacity(parts.len());
        let mut suspects = Vec::new();
        let mut runs = Vec::new();
        // Of the parts of one block: what lies behind the first byte that is not zero goes with it.
        let mut groups: Vec<Range<usize>> = Vec::new();
        let mut block = None;
        for part in parts {
            let Some((layer, _)) = part.from else {
                cut.push(part);
                continue;
            };
            for piece in split(part, blocks) {
                for (piece, zero) in self.by_target(piece, sink)? {
                    if let (true, Some((_, at))) = (zero, piece.from) {
                        let this = Some(piece.offset / blocks);
                        match groups.last_mut() {
                            Some(group) if block == this => group.end += 1,
                            _ => groups.push(runs.len()..runs.len() + 1),
                        }
                        block = this;
                        suspects.push(cut.len());
                        runs.push((storage_of(self.layers, layer)?, at, piece.len));
                    }
                    cut.push(piece);
                }
            }
        }
        let zero = copier.leading_zero_runs(&runs, &groups, meter)?;
        let drop = groups.iter().zip(zero).flat_map(|(group, count)| &suspects[group.start..group.start + count]);
        Ok(without(cut, drop.copied()))
    }

    /// `parts` without the data before `compare` that the target holds already.
    fn without_equal(
        &self,
        parts: Vec<Part>,
        sink: &dyn BlockSink,
        copier: &Copier,
        meter: &Meter<'_>,
    ) -> Result<Vec<Part>> {
        if parts.first().is_none_or(|part| part.offset >= self.compare) {
            return Ok(parts);
        }
        let mut cut = Vec::with_capacity(parts.len());
        let mut pairs = Vec::new();
        for part in parts {
            let (Some((layer, from)), true) = (part.from, part.offset < self.compare) else {
                cut.push(part);
                continue;
            };
            let mut at = part.offset;
            while at < part.end() {
                let extent = sink.extent_at(at, (part.end() - at).min(CHUNK))?;
                if let Source::Data(to) = extent.source {
                    let source = storage_of(self.layers, layer)?;
                    let from = from + (at - part.offset);
                    pairs.push((cut.len(), Move { source, from, to: to.get(), len: extent.len, near: false }));
                }
                cut.extend(part.cut(at..at + extent.len));
                at += extent.len;
            }
        }
        let moves: Vec<Move<'_>> = pairs.iter().map(|(_, one)| *one).collect();
        let equal = copier.equal_runs(&moves, sink.storage(), meter)?;
        Ok(without(cut, pairs.iter().zip(equal).filter(|(_, equal)| *equal).map(|(pair, _)| pair.0)))
    }

    /// `batch` without the zeros that the target shows as zero already.
    fn without_zeros_over_zero(&self, batch: Vec<Part>, sink: &dyn BlockSink) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(batch.len());
        for part in batch {
            match part.content() {
                Content::Data => parts.push(part),
                Content::Zero if self.fresh => {}
                Content::Zero => {
                    for (piece, zero) in self.by_target(part, sink)? {
                        if !zero {
                            parts.push(piece);
                        }
                    }
                }
            }
        }
        Ok(parts)
    }

    /// `part` cut into runs that read as zero in the target (true) and others.
    fn by_target(&self, part: Part, sink: &dyn BlockSink) -> Result<Vec<(Part, bool)>> {
        let mut runs: Vec<(Part, bool)> = Vec::new();
        let mut at = part.offset;
        while at < part.end() {
            let extent = sink.extent_at(at, part.end() - at)?;
            let zero = match extent.source {
                Source::Zero => true,
                Source::Absent => self.root,
                Source::Data(_) => false,
            };
            match runs.last_mut() {
                Some((run, last)) if *last == zero => run.len += extent.len,
                _ => runs.extend(part.cut(at..at + extent.len).map(|run| (run, zero))),
            }
            at += extent.len;
        }
        Ok(runs)
    }

    fn work<'a>(&'a self, parts: &[Part], places: &[Place], sink: &'a dyn BlockSink) -> Result<Work<'a>> {
        let mut moves = Vec::with_capacity(places.len());
        let mut zeros = Vec::new();
        let mut next = 0;
        let mut last = None;
        for place in places {
            let end = place.offset + place.len;
            if place.content == Content::Zero {
                zeros.push(place.at.get()..place.at.get() + place.len);
                continue;
            }
            while parts.get(next).is_some_and(|part| part.end() <= place.offset) {
                next += 1;
            }
            let here = parts.iter().skip(next).take_while(|part| part.offset < end);
            for part in here.filter_map(|part| part.cut(place.offset..end)) {
                let Some((layer, from)) = part.from else { continue };
                let source = storage_of(self.layers, layer)?;
                let to = place.at.get() + (part.offset - place.offset);
                let block = |offset: u64| offset / sink.block_size().max(1);
                // What lies between two moves of one block is the target's, and no other move goes there.
                let near = last.is_some_and(|(offset, end): (u64, u64)| {
                    block(offset) == block(part.offset) && to.checked_sub(end) == part.offset.checked_sub(offset)
                });
                last = Some((part.end(), to + part.len));
                moves.push(Move { source, from, to, len: part.len, near });
            }
        }
        Ok(Work { target: sink.storage(), moves, zeros, target_is_zero: self.fresh })
    }
}

/// The bytes of `part` that could not be shared with the target, even if its file system shares blocks of `unit` bytes.
fn shifted(part: &Part, sink: &dyn BlockSink, unit: u64) -> Result<u64> {
    let Some((_, from)) = part.from else { return Ok(0) };
    let (mut at, mut shifted) = (part.offset, 0);
    while at < part.end() {
        let extent = sink.extent_at(at, part.end() - at)?;
        // New blocks are placed so that their data starts on a block of the file system.
        let to = if let Source::Data(to) = extent.source { to.get() } else { at % sink.block_size().max(1) };
        if (from + (at - part.offset)) % unit != to % unit {
            shifted += extent.len;
        }
        at += extent.len;
    }
    Ok(shifted)
}

fn storage_of(layers: &[Layer], index: usize) -> Result<&dyn Storage> {
    let layer =
        layers.get(index).ok_or_else(|| Error::new(ErrorKind::Chain, "a piece names a layer that is not there"))?;
    Ok(layer.image().map().storage())
}

/// `parts` without those at the positions `drop`, which ascend.
fn without(parts: Vec<Part>, drop: impl Iterator<Item = usize>) -> Vec<Part> {
    let mut drop = drop.peekable();
    let mut parts = parts;
    let mut index = 0;
    parts.retain(|_| {
        let keep = drop.next_if_eq(&index).is_none();
        index += 1;
        keep
    });
    parts
}

/// `part` cut at multiples of `unit`.
fn split(part: Part, unit: u64) -> impl Iterator<Item = Part> {
    let mut at = part.offset;
    std::iter::from_fn(move || {
        let end = round_down(at, unit).saturating_add(unit).min(part.end());
        let piece = part.cut(at..end);
        at = end;
        piece
    })
}

/// The parts as wants, neighbours of one content joined.
fn wants(parts: &[Part]) -> Vec<Want> {
    let mut wants: Vec<Want> = Vec::new();
    for part in parts {
        match wants.last_mut() {
            Some(want) if want.content == part.content() && want.range.end == part.offset => {
                want.range.end = part.end();
            }
            _ => wants.push(Want { range: part.offset..part.end(), content: part.content() }),
        }
    }
    wants
}
