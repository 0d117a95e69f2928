//! Writing what was rescued.
//!
//! Owns: collecting runs to batches, and leaving out zeros. Must not know: where the bytes come from.

use crate::error::{Error, Result};
use crate::map::{BlockSink, Content, Want};
use crate::zeros::is_zero;

/// Bytes held before they are written.
const BATCH: usize = 32 << 20;
/// Runs held before they are written.
const BATCH_RUNS: usize = 1 << 12;
/// Zeros in runs of this many bytes are left out: the new image shows zeros where nothing is written.
const GRAIN: usize = 64 << 10;

/// Fills a new image from its start to its end.
pub(super) struct Writer<'a> {
    sink: &'a mut dyn BlockSink,
    /// Where each run goes. Ascending, apart.
    runs: Vec<(u64, Vec<u8>)>,
    held: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(sink: &'a mut dyn BlockSink) -> Self {
        Self { sink, runs: Vec::new(), held: 0 }
    }

    /// Takes `bytes` for `offset` of the disk: behind all that came before, whole sectors unless they end the disk.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut at = offset;
        for grain in bytes.chunks(GRAIN) {
            if !is_zero(grain) {
                match self.runs.last_mut() {
                    Some((start, run)) if *start + run.len() as u64 == at => run.extend_from_slice(grain),
                    _ => self.runs.push((at, grain.to_vec())),
                }
                self.held += grain.len();
            }
            at += grain.len() as u64;
        }
        if self.held >= BATCH || self.runs.len() >= BATCH_RUNS { self.write() } else { Ok(()) }
    }

    /// Writes what is held.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.write()?;
        self.sink.flush()
    }

    fn write(&mut self) -> Result<()> {
        let runs = std::mem::take(&mut self.runs);
        self.held = 0;
        if runs.is_empty() {
            return Ok(());
        }
        let want = |(at, run): &(u64, Vec<u8>)| Want { range: *at..*at + run.len() as u64, content: Content::Data };
        let reservation = self.sink.reserve(runs.iter().map(want).collect())?;
        let failed = |error| Error::io("write data", error);
        let mut next = 0;
        for place in reservation.places() {
            let (storage, place_end) = (self.sink.storage(), place.offset + place.len);
            if place.content == Content::Zero {
                storage.zero_range(place.at.get()..place.at.get() + place.len).map_err(failed)?;
                continue;
            }
            while runs.get(next).is_some_and(|(at, run)| at + run.len() as u64 <= place.offset) {
                next += 1;
            }
            for (at, run) in runs.iter().skip(next).take_while(|(at, _)| *at < place_end) {
                let (start, end) = (place.offset.max(*at), place_end.min(*at + run.len() as u64));
                let bytes = &run[(start - at) as usize..(end - at) as usize];
                storage.write_all_at(bytes, place.at.get() + (start - place.offset)).map_err(failed)?;
            }
        }
        self.sink.storage().sync().map_err(|error| Error::io("sync data", error))?;
        self.sink.publish(reservation)
    }
}
