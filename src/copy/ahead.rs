//! Bytes handed to one taker in order, while the next ones are read.
//!
//! Owns: the windows, who reads which, and their order. Must not know: see the module above.
//!
//! The taker runs on the caller's thread, so a slow pipe holds up no worker. Memory is two windows for each reader.

use super::differ::Side;
use super::engine::Copier;
use super::{CHUNK, Meter};
use crate::error::Result;
use crate::storage::aligned::Buffer;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::iter;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

/// The most bytes of data in a window.
const WINDOW: u64 = CHUNK;
/// The most runs in a window; bounds the memory that says what they are.
const WINDOW_RUNS: usize = 1 << 14;
/// The most workers that read ahead: one taker keeps up with no more.
const MAX_READERS: usize = 8;
/// What a reader fills while the taker has what it filled before.
const WINDOWS_EACH: usize = 2;

/// Zeros between data up to this many are bytes like others: a taker has a price for each call.
const FEW_ZEROS: u64 = 64 << 10;

/// Bytes to hand on, or zeros when they are nowhere.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) len: u64,
    pub(crate) from: Side<'a>,
}

/// What the taker gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes<'b> {
    Data(&'b [u8]),
    /// That many zeros.
    Zeros(u64),
}

impl Copier {
    /// Hands the bytes of `runs` to `take` in order; `meter` counts data as moved when it is read.
    ///
    /// # Errors
    /// The first failure of `runs`, of reading or of `take`, which has then had every window before it; `Cancelled`.
    #[expect(single_use_lifetimes, reason = "an elided lifetime here is not stable Rust yet")]
    pub(crate) fn stream<'a>(
        &self,
        runs: impl Iterator<Item = Result<Run<'a>>> + Send,
        meter: &Meter<'_>,
        mut take: impl FnMut(Bytes<'_>) -> Result<()>,
    ) -> Result<()> {
        let source = Mutex::new(Source { runs, held: None, windows: 0, over: false });
        self.pool().in_place_scope(|scope| {
            let (full, mut taken) = (channel::<Full<'_>>(), Vec::new());
            for reader in 0..self.pool().current_num_threads().min(MAX_READERS) {
                let (empty, source) = (channel(), &source);
                for window in iter::repeat_with(Window::default).take(WINDOWS_EACH) {
                    // The other end is three lines below.
                    let _ = empty.0.send(window);
                }
                let full = full.0.clone();
                scope.spawn(move |_| read_ahead(source, (empty.1, full), reader, meter));
                taken.push(empty.0);
            }
            drop(full.0);
            in_order(&full.1, |reader, window| {
                let mut window = window?;
                let bytes = window.bytes.of_len(window.len);
                for part in &window.parts {
                    meter.check()?;
                    take(match part {
                        Part::Data(range) => Bytes::Data(&bytes[range.clone()]),
                        Part::Zeros(len) => Bytes::Zeros(*len),
                    })?;
                }
                // A reader that has ended wants none.
                let _ = taken[reader].send(window);
                Ok(())
            })
        })
    }
}

/// A window that has been read: its number, who read it.
type Full<'a> = (u64, usize, Result<Window<'a>>);

/// Reads one window after the other, until there are no more or nobody wants them.
fn read_ahead<'a>(
    source: &Mutex<Source<'a, impl Iterator<Item = Result<Run<'a>>>>>,
    (empty, full): (Receiver<Window<'a>>, Sender<Full<'a>>),
    reader: usize,
    meter: &Meter<'_>,
) {
    for mut window in empty {
        let Some((number, planned)) = source.lock().unwrap_or_else(PoisonError::into_inner).plan(&mut window) else {
            return;
        };
        let read = planned.and_then(|()| window.read(meter));
        if full.send((number, reader, read.map(|()| window))).is_err() {
            return;
        }
    }
}

/// Hands what comes out of `full` on by its numbers.
fn in_order<'a>(
    full: &Receiver<Full<'a>>,
    mut take: impl FnMut(usize, Result<Window<'a>>) -> Result<()>,
) -> Result<()> {
    // At most the windows there are.
    let mut early = BTreeMap::new();
    let mut next = 0u64;
    for (number, reader, window) in full {
        early.insert(number, (reader, window));
        while let Some((reader, window)) = early.remove(&next) {
            take(reader, window)?;
            next += 1;
        }
    }
    Ok(())
}

impl Copier {
    /// What `work` makes of each of `chunks`, whose runs are at most [`CHUNK`] bytes together.
    ///
    /// # Errors
    /// Of reading; `Cancelled`.
    pub(crate) fn each<T: Send>(
        &self,
        chunks: &[Vec<Run<'_>>],
        meter: &Meter<'_>,
        work: impl Fn(&[u8]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let one = |buffer: &mut Buffer, chunk: &Vec<Run<'_>>| {
            meter.check()?;
            let whole = buffer.of_len(chunk.iter().map(|run| run.len).sum());
            let mut rest = &mut *whole;
            for run in chunk {
                let (bytes, later) = rest.split_at_mut(run.len as usize);
                match run.from {
                    Some((origin, at)) => {
                        origin.read(bytes, at)?;
                        meter.add_moved(run.len);
                    }
                    None => bytes.fill(0),
                }
                rest = later;
            }
            Ok(work(whole))
        };
        self.pool().install(|| chunks.par_iter().map_init(Buffer::default, one).collect())
    }
}

struct Source<'a, I> {
    runs: I,
    held: Option<Run<'a>>,
    /// How many were planned.
    windows: u64,
    /// There is no more, or it is not to be had.
    over: bool,
}

impl<'a, I: Iterator<Item = Result<Run<'a>>>> Source<'a, I> {
    /// The next run, of data at most `room` bytes of it.
    fn next(&mut self, room: u64) -> Result<Option<Run<'a>>> {
        let Some(run) = self.held.take().map_or_else(|| self.runs.next().transpose(), |run| Ok(Some(run)))? else {
            return Ok(None);
        };
        let Some((origin, at)) = run.from else { return Ok(Some(run)) };
        let len = run.len.min(room);
        if len < run.len {
            self.held = Some(Run { len: run.len - len, from: Some((origin, at + len)) });
        }
        Ok(Some(Run { len, from: run.from }))
    }

    /// What `window` is to hold next, and its number; `None` at the end.
    fn plan(&mut self, window: &mut Window<'a>) -> Option<(u64, Result<()>)> {
        if self.over {
            return None;
        }
        let planned = window.plan(self);
        self.over = planned.is_err() || window.parts.is_empty();
        if planned.is_ok() && self.over {
            return None;
        }
        self.windows += 1;
        Some((self.windows - 1, planned))
    }
}

#[derive(Default)]
struct Window<'a> {
    parts: Vec<Part>,
    reads: Vec<Run<'a>>,
    /// How many bytes those are.
    len: u64,
    bytes: Buffer,
}

enum Part {
    /// A range of the window's bytes.
    Data(Range<usize>),
    Zeros(u64),
}

impl<'a> Window<'a> {
    /// Makes room for what comes next; it stays empty at the end.
    fn plan(&mut self, source: &mut Source<'a, impl Iterator<Item = Result<Run<'a>>>>) -> Result<()> {
        self.parts.clear();
        self.reads.clear();
        self.len = 0;
        for _ in 0..WINDOW_RUNS {
            let room = WINDOW - self.len;
            let Some(run) = (if room > 0 { source.next(room)? } else { None }) else { break };
            let few = run.len <= FEW_ZEROS.min(room) && matches!(self.parts.last(), Some(Part::Data(_)));
            match (run.from, self.parts.last_mut()) {
                (None, Some(Part::Zeros(len))) => *len += run.len,
                (None, _) if !few => self.parts.push(Part::Zeros(run.len)),
                (_, last) => {
                    let range = self.len as usize..(self.len + run.len) as usize;
                    match last {
                        Some(Part::Data(data)) => data.end = range.end,
                        _ => self.parts.push(Part::Data(range)),
                    }
                    self.reads.push(run);
                    self.len += run.len;
                }
            }
        }
        Ok(())
    }

    /// Reads what was planned.
    fn read(&mut self, meter: &Meter<'_>) -> Result<()> {
        meter.check()?;
        let mut rest = self.bytes.of_len(self.len);
        let mut moved = 0;
        for run in &self.reads {
            let (bytes, later) = rest.split_at_mut(run.len as usize);
            match run.from {
                Some((origin, at)) => {
                    origin.read(bytes, at)?;
                    moved += run.len;
                }
                None => bytes.fill(0),
            }
            rest = later;
        }
        meter.add_moved(moved);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::storage::MemoryStorage;
    use crate::watch::{CancelToken, Watch};

    const SIZE: u64 = 3 * WINDOW + 12_345;

    fn pattern() -> Vec<u8> {
        (0..SIZE).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect()
    }

    #[test]
    fn runs_of_any_length_come_in_order_with_zeros_between() {
        let bytes = pattern();
        let data = MemoryStorage::from_bytes(&bytes);
        let mut runs = vec![Run { len: SIZE, from: Some((&data, 0)) }, Run { len: 5, from: None }];
        // More small runs than one window takes, backwards through the storage, and zeros that join.
        for n in 0..2 * WINDOW_RUNS as u64 {
            runs.push(Run { len: 7, from: Some((&data, SIZE - 7 * (n + 1))) });
            runs.extend([Run { len: n % 3 + 1, from: None }; 2]);
        }
        let mut expected = Vec::new();
        for run in &runs {
            match run.from {
                Some((_, at)) => expected.extend_from_slice(&bytes[at as usize..(at + run.len) as usize]),
                None => expected.resize(expected.len() + run.len as usize, 0),
            }
        }
        for jobs in [1, 3] {
            let (watch, mut out) = (Watch::none(), Vec::new());
            let meter = Meter::new(&watch, 0);
            let taken = Copier::new(jobs).unwrap().stream(runs.iter().copied().map(Ok), &meter, |bytes| {
                match bytes {
                    Bytes::Data(bytes) => out.extend_from_slice(bytes),
                    Bytes::Zeros(len) => out.resize(out.len() + len as usize, 0),
                }
                Ok(())
            });
            taken.unwrap();
            assert!(out == expected);
            assert_eq!(meter.moved(), SIZE + 14 * WINDOW_RUNS as u64);
        }
    }

    #[test]
    fn what_comes_before_a_failure_is_taken_and_nothing_after_it() {
        let data = MemoryStorage::from_bytes(&pattern());
        let good = Run { len: WINDOW + 1, from: Some((&data, 0)) };
        let past = Run { len: WINDOW, from: Some((&data, SIZE - 1)) };
        let broken = Err(Error::new(ErrorKind::Corrupt, "a map is broken"));
        for (last, kind) in [(Ok(past), ErrorKind::Io), (broken, ErrorKind::Corrupt)] {
            let (watch, mut taken) = (Watch::none(), 0);
            let meter = Meter::new(&watch, 0);
            let runs = [Ok(good), last, Ok(good)];
            let error = Copier::new(2).unwrap().stream(runs.into_iter(), &meter, |bytes| {
                let Bytes::Data(bytes) = bytes else { panic!("no zeros") };
                taken += bytes.len() as u64;
                Ok(())
            });
            assert_eq!(error.unwrap_err().kind(), kind);
            assert_eq!(taken, WINDOW, "the window before the one that failed");
        }
    }

    #[test]
    fn the_taker_and_the_token_can_stop_it() {
        let data = MemoryStorage::from_bytes(&pattern());
        let runs = || [Ok(Run { len: SIZE, from: Some((&data as &dyn super::super::Origin, 0)) })].into_iter();
        let token = CancelToken::new();
        let watch = Watch::none().cancel(&token);
        let meter = Meter::new(&watch, 0);
        let copier = Copier::new(2).unwrap();
        let full = copier.stream(runs(), &meter, |_| Err(Error::new(ErrorKind::NoSpace, "full")));
        assert_eq!(full.unwrap_err().kind(), ErrorKind::NoSpace);
        let mut taken = 0;
        let stopped = copier.stream(runs(), &meter, |_| {
            taken += 1;
            token.cancel();
            Ok(())
        });
        assert_eq!((stopped.unwrap_err().kind(), taken), (ErrorKind::Cancelled, 1));
    }
}
