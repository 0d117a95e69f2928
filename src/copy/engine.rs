//! The parallel mover.
//!
//! Owns: the pool and its buffers. Must not know: see the module above.

use super::Meter;
use super::gather::{close, gather};
use super::share::share;
use crate::error::{Error, ErrorKind, Result};
use crate::storage::aligned::Buffer;
use crate::storage::{PAGE, Storage};
use crate::units::{FileOffset, KIB, MIB};
use crate::zeros;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The most bytes one worker holds.
pub(crate) const CHUNK: u64 = MIB;

/// Runs of zeros shorter than this are written like data when zeros are skipped: a hole costs more than it saves.
const ZERO_GRAIN: usize = 64 * KIB as usize;

/// Runs at least this long are written out to the medium as soon as they are copied; shorter ones are left to the kernel,
/// which may find neighbours for them.
const WRITE_OUT: u64 = 256 * KIB;

/// The most small moves one task takes on, so that scattered copies spread over the workers too.
const MOVES_PER_TASK: usize = 256;

/// One run of bytes to move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move<'a> {
    pub(crate) source: &'a dyn Storage,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) len: u64,
    /// Nobody else writes to what lies in the target between the move before this one and this one: all of it belongs to
    /// one block.
    pub(crate) near: bool,
}

/// What to do to one target.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub(crate) target: &'a dyn Storage,
    pub(crate) moves: Vec<Move<'a>>,
    /// Runs of the target to make zero; disjoint from the moves.
    pub(crate) zeros: Vec<Range<u64>>,
    /// The target reads as zeros wherever a move goes: zeros need not be written.
    pub(crate) target_is_zero: bool,
}

/// A pool of workers.
#[derive(Debug)]
pub(crate) struct Copier {
    pool: rayon::ThreadPool,
    sharing: bool,
}

impl Copier {
    /// A copier with `jobs` workers; 0 means one per processor.
    pub(crate) fn new(jobs: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(jobs).thread_name(|n| format!("vhdkit-copy-{n}"));
        let pool = pool.build().map_err(|error| {
            Error::new(ErrorKind::Io, format_args!("cannot start the worker threads: {error}"))
                .with_hint("try fewer of them with --jobs")
        })?;
        Ok(Self { pool, sharing: true })
    }

    /// Copies every byte when `copies`: a file whose space was reserved must not lose it to space shared with another.
    pub(crate) fn without_sharing(self, copies: bool) -> Self {
        Self { sharing: !copies, ..self }
    }

    /// Shares what it may of `moves`, and answers the rest.
    pub(super) fn share<'a>(
        &self,
        moves: &[Move<'a>],
        target: &dyn Storage,
        meter: &Meter<'_>,
    ) -> Result<Vec<Move<'a>>> {
        let moves = joined(moves);
        if self.sharing { share(moves, target, meter) } else { Ok(moves) }
    }

    /// Its workers.
    pub(super) fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Does `work`, in any order; nothing of it is durable on return.
    ///
    /// # Errors
    /// The first failure of any worker, or `Cancelled`; any part of the work may have been done.
    pub(crate) fn run(&self, work: Work<'_>, meter: &Meter<'_>) -> Result<()> {
        let Work { target, moves, zeros, target_is_zero } = work;
        let tasks = tasks(self.share(&moves, target, meter)?);
        let remote = !target_is_zero && target.is_remote();
        let cause = Cause::default();
        let done = self.pool.install(|| {
            zeros.par_iter().try_for_each(|range| cause.of(|| zero(target, range, meter)))?;
            self.in_turn(&tasks, |buffer, task| {
                cause.of(|| make(task, (target, target_is_zero, remote), buffer, meter))
            })
        });
        done.map_err(|Stopped| cause.into_error())
    }

    /// Does `work` for each of `tasks`, of which every worker takes the next one when it is done with its last: what lies
    /// side by side is written side by side.
    fn in_turn<T: Sync>(
        &self,
        tasks: &[T],
        work: impl Fn(&mut Buffer, &T) -> Result<(), Stopped> + Sync,
    ) -> Result<(), Stopped> {
        let next = AtomicUsize::new(0);
        let outcomes = self.pool.broadcast(|_| {
            let mut buffer = Buffer::default();
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(&mut buffer, task).inspect_err(|_| next.store(tasks.len(), Ordering::Relaxed))?;
            }
            Ok(())
        });
        outcomes.into_iter().collect()
    }

    /// How many of each group of `runs` (storage, offset, length), from its first on, hold nothing but zeros. `groups` says
    /// where in `runs` each one lies; what comes behind the first other byte of a group is not read.
    pub(crate) fn leading_zero_runs(
        &self,
        runs: &[(&dyn Storage, u64, u64)],
        groups: &[Range<usize>],
        meter: &Meter<'_>,
    ) -> Result<Vec<usize>> {
        let count = |buffer: &mut Buffer, group: &Range<usize>| {
            meter.check()?;
            for (count, &(storage, offset, len)) in runs[group.clone()].iter().enumerate() {
                if !is_zero_run(storage, offset..offset + len, buffer)? {
                    return Ok(count);
                }
            }
            Ok(group.len())
        };
        self.pool.install(|| groups.par_iter().map_init(Buffer::default, count).collect())
    }

    /// Which of `runs` (storage, offset, length) hold nothing but zeros; stops reading a run at its first other byte.
    pub(crate) fn zero_runs(&self, runs: &[(&dyn Storage, u64, u64)], meter: &Meter<'_>) -> Result<Vec<bool>> {
        self.pool.install(|| {
            runs.par_iter()
                .map_init(Buffer::default, |buffer, &(storage, offset, len)| {
                    meter.check()?;
                    is_zero_run(storage, offset..offset + len, buffer)
                })
                .collect()
        })
    }
}

/// A worker that met a failure; which one is with the [`Cause`].
struct Stopped;

/// Why the workers stopped. The first failed write closes the target for writing, so of several failures one that is
/// not about a closed target is the one to tell of, whichever worker it came from.
#[derive(Default)]
struct Cause(Mutex<Option<Error>>);

impl Cause {
    fn of(&self, step: impl FnOnce() -> Result<()>) -> Result<(), Stopped> {
        step().map_err(|error| {
            let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if told.as_ref().is_none_or(|told| told.kind() == ErrorKind::ReadOnly) {
                *told = Some(error);
            }
            Stopped
        })
    }

    fn into_error(self) -> Error {
        let told = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        told.unwrap_or_else(|| Error::new(ErrorKind::Io, "a worker stopped without a reason"))
    }
}

fn zero(target: &dyn Storage, range: &Range<u64>, meter: &Meter<'_>) -> Result<()> {
    meter.check()?;
    let done = target.zero_range(range.clone());
    done.map_err(|error| Error::io("write zeros", error).with_offset(FileOffset(range.start)))?;
    meter.add_zeroed(range.end - range.start);
    Ok(())
}

impl Copier {
    /// Which of `moves` would change nothing: `target` holds the same bytes there already. Runs of at most [`CHUNK`].
    pub(crate) fn equal_runs(&self, moves: &[Move<'_>], target: &dyn Storage, meter: &Meter<'_>) -> Result<Vec<bool>> {
        self.pool.install(|| {
            moves
                .par_iter()
                .map_init(<(Buffer, Buffer)>::default, |(ours, theirs), one| {
                    meter.check()?;
                    let (ours, theirs) = (ours.of_len(one.len), theirs.of_len(one.len));
                    read_data(ours, (one.source, one.from))?;
                    read_data(theirs, (target, one.to))?;
                    Ok(ours == theirs)
                })
                .collect()
        })
    }
}

/// `moves` cut to chunks, and grouped so that each task is worth a worker's while.
fn tasks<'a>(moves: Vec<Move<'a>>) -> Vec<Vec<Move<'a>>> {
    let mut tasks = Vec::new();
    let mut task: Vec<Move<'a>> = Vec::new();
    let mut bytes = 0;
    let mut put = |one: Move<'a>| {
        if bytes + one.len > CHUNK || task.len() >= MOVES_PER_TASK {
            tasks.push(std::mem::take(&mut task));
            bytes = 0;
        }
        bytes += one.len;
        task.push(one);
    };
    for run in moves {
        let mut at = 0;
        while at < run.len {
            // Cut where a page of the target ends, so that no page is written out twice.
            let len = (run.len - at).min(CHUNK - (run.to + at) % PAGE as u64);
            put(Move { from: run.from + at, to: run.to + at, len, ..run });
            at += len;
        }
    }
    tasks.push(task);
    tasks.retain(|task| !task.is_empty());
    tasks
}

/// `moves` joined where they run on.
fn joined<'a>(moves: &[Move<'a>]) -> Vec<Move<'a>> {
    let mut runs: Vec<Move<'a>> = Vec::with_capacity(moves.len());
    for &next in moves {
        match runs.last_mut() {
            Some(run)
                if std::ptr::addr_eq(run.source, next.source)
                    && run.from + run.len == next.from
                    && run.to + run.len == next.to =>
            {
                run.len += next.len;
            }
            _ => runs.push(next),
        }
    }
    runs
}

/// Lets the server do it that both files lie on; small runs are not worth asking for.
fn offload(one: &Move<'_>, target: &dyn Storage) -> Result<bool> {
    if one.len < ZERO_GRAIN as u64 {
        return Ok(false);
    }
    let done = target.copy_range(one.source, one.from, one.to, one.len);
    done.map_err(|error| Error::io("copy data", error).with_offset(FileOffset(one.to)))
}

/// Starts the medium on a run that is worth it, so that it works while the next ones are copied.
fn write_out(moves: &[Move<'_>], target: &dyn Storage) -> Result<()> {
    let (Some(first), Some(last)) = (moves.first(), moves.last()) else { return Ok(()) };
    let run = first.to..last.to + last.len;
    if run.end - run.start < WRITE_OUT {
        return Ok(());
    }
    target.start_writeback(run).map_err(|error| Error::io("write data", error).with_offset(FileOffset(first.to)))
}

/// Makes the moves of `task`.
fn make(
    task: &[Move<'_>],
    (target, target_is_zero, remote): (&dyn Storage, bool, bool),
    buffer: &mut Buffer,
    meter: &Meter<'_>,
) -> Result<()> {
    // What a whole file that is zero holds between two moves is for others to write.
    let mut gathers = !target_is_zero && !remote;
    let mut rest = task;
    while !rest.is_empty() {
        meter.check()?;
        let (now, later) = rest.split_at(if gathers { close(rest) } else { 1 });
        rest = later;
        if now.len() > 1 && gather(now, target, buffer)? {
            meter.add_moved(now.iter().map(|one| one.len).sum());
            write_out(now, target)?;
            continue;
        }
        gathers &= now.len() == 1;
        for one in now {
            if remote && offload(one, target)? {
                meter.add_offloaded(one.len);
            } else {
                copy(one, target, target_is_zero, buffer)?;
                meter.add_moved(one.len);
            }
            write_out(std::slice::from_ref(one), target)?;
        }
    }
    Ok(())
}

pub(super) fn read_data(bytes: &mut [u8], (source, from): (&dyn Storage, u64)) -> Result<()> {
    source.read_exact_at(bytes, from).map_err(|error| Error::io("read data", error).with_offset(FileOffset(from)))
}

pub(super) fn write_data(bytes: &[u8], (target, to): (&dyn Storage, u64)) -> Result<()> {
    target.write_all_at(bytes, to).map_err(|error| Error::io("write data", error).with_offset(FileOffset(to)))
}

fn copy(one: &Move<'_>, target: &dyn Storage, target_is_zero: bool, buffer: &mut Buffer) -> Result<()> {
    // At most a chunk, which fits any usize.
    let bytes = buffer.bound_for(one.to, one.len as usize);
    read_data(bytes, (one.source, one.from))?;
    if !target_is_zero {
        return write_data(bytes, (target, one.to));
    }
    let mut start = 0;
    while start < bytes.len() {
        let mut end = start;
        let mut grains = bytes[start..].chunks(ZERO_GRAIN);
        while let Some(grain) = grains.next().filter(|grain| !zeros::is_zero(grain)) {
            end += grain.len();
        }
        if end > start {
            write_data(&bytes[start..end], (target, one.to + start as u64))?;
        }
        // The grain that ended the run is zero, or there is none.
        start = end + ZERO_GRAIN;
    }
    Ok(())
}

fn is_zero_run(storage: &dyn Storage, range: Range<u64>, buffer: &mut Buffer) -> Result<bool> {
    // A short first look: most runs of data show themselves at once.
    let mut step = 4 * KIB;
    let mut at = range.start;
    while at < range.end {
        let data = storage.next_data(at).map_err(|error| Error::io("look for data", error))?;
        let Some(data) = data.filter(|&data| data < range.end) else { return Ok(true) };
        at = at.max(data);
        let bytes = buffer.of_len((range.end - at).min(step));
        read_data(bytes, (storage, at))?;
        if !zeros::is_zero(bytes) {
            return Ok(false);
        }
        at += bytes.len() as u64;
        step = CHUNK;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;
    use crate::watch::{CancelToken, Watch};

    #[test]
    fn a_write_refused_because_another_failed_is_not_the_reason() {
        let fail = |kind| move || Err(Error::new(kind, "of a worker"));
        let cause = Cause::default();
        assert!(cause.of(|| Ok(())).is_ok());
        for kind in [ErrorKind::ReadOnly, ErrorKind::NoSpace, ErrorKind::ReadOnly, ErrorKind::Io] {
            assert!(cause.of(fail(kind)).is_err());
        }
        assert_eq!(cause.into_error().kind(), ErrorKind::NoSpace);
        let cause = Cause::default();
        assert!(cause.of(fail(ErrorKind::ReadOnly)).is_err());
        assert_eq!(cause.into_error().kind(), ErrorKind::ReadOnly);
    }

    fn pattern(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
    }

    #[test]
    fn scattered_and_joined_moves_land_where_they_should() {
        let source = MemoryStorage::from_bytes(&pattern(3 << 20, 7));
        let target = MemoryStorage::from_bytes(&pattern(3 << 20, 99));
        let mut model = pattern(3 << 20, 99);
        let mut moves = vec![
            Move { source: &source, from: 0, to: 512, len: 1 << 20, near: false },
            Move { source: &source, from: 1 << 20, to: (1 << 20) + 512, len: 700_000, near: false },
        ];
        for n in 0..1000u64 {
            moves.push(Move { source: &source, from: n * 1024, to: (2 << 20) + n * 1024, len: 512, near: n % 3 > 0 });
        }
        let from = pattern(3 << 20, 7);
        for one in &moves {
            let (from_at, to, len) = (one.from as usize, one.to as usize, one.len as usize);
            model[to..to + len].copy_from_slice(&from[from_at..from_at + len]);
        }
        model[100..400].fill(0);
        let watch = Watch::none();
        let meter = Meter::new(&watch, 0);
        let work =
            Work { target: &target, moves, zeros: Vec::from([Range { start: 100, end: 400 }]), target_is_zero: false };
        Copier::new(2).unwrap().run(work, &meter).unwrap();
        assert!(target.to_bytes().unwrap() == model);
        assert_eq!((meter.moved(), meter.zeroed()), ((1 << 20) + 700_000 + 512_000, 300));
    }

    #[test]
    fn zeros_are_not_written_into_a_target_that_is_zero() {
        let mut bytes = vec![0; 4 << 20];
        bytes[3 << 20] = 1;
        let source = MemoryStorage::from_bytes(&bytes);
        let target = MemoryStorage::from_bytes(&[]);
        let watch = Watch::none();
        let meter = Meter::new(&watch, 0);
        let moves = vec![Move { source: &source, from: 0, to: 0, len: 4 << 20, near: false }];
        let work = Work { target: &target, moves, zeros: Vec::new(), target_is_zero: true };
        Copier::new(1).unwrap().run(work, &meter).unwrap();
        assert_eq!(target.len().unwrap(), (3 << 20) + ZERO_GRAIN as u64, "only the run with the set byte was written");
        assert_eq!(target.to_bytes().unwrap()[3 << 20], 1);
        let runs: [(&dyn Storage, u64, u64); 3] =
            [(&source, 0, 3 << 20), (&source, 1 << 20, 3 << 20), (&source, 3 << 20, 1)];
        assert_eq!(Copier::new(2).unwrap().zero_runs(&runs, &meter).unwrap(), [true, false, false]);
    }

    #[test]
    fn a_pulled_token_stops_the_copy() {
        let source = MemoryStorage::from_bytes(&[1; 4096]);
        let target = MemoryStorage::from_bytes(&[]);
        let token = CancelToken::new();
        token.cancel();
        let watch = Watch::none().cancel(&token);
        let meter = Meter::new(&watch, 0);
        let moves = vec![Move { source: &source, from: 0, to: 0, len: 4096, near: false }];
        let work = Work { target: &target, moves, zeros: Vec::new(), target_is_zero: false };
        let error = Copier::new(1).unwrap().run(work, &meter).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(target.len().unwrap(), 0);
    }
}
