//! The [`Storage`] contract as a suite: any implementor can be run through it.
//!
//! Owns: one named check per clause of the contract. Must not know: who implements it.
//!
//! ```
//! use std::sync::Arc;
//! use vhdkit::storage::{MemoryStorage, conformance};
//! let failures = conformance::run(conformance::Part::All, &|bytes| Arc::new(MemoryStorage::from_bytes(bytes)));
//! assert!(failures.is_empty(), "{failures:#?}");
//! ```

mod offers;

use super::Storage;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread;

/// Makes a new storage that holds the given bytes and nobody else uses.
pub type Make<'a> = &'a dyn Fn(&[u8]) -> Arc<dyn Storage>;

/// Which clauses an implementor is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those about reading, for storages that cannot be written.
    Reading,
    /// All.
    All,
}

/// A clause that an implementor does not keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The clause.
    pub clause: &'static str,
    /// What it did instead.
    pub because: String,
}

type Outcome = Result<(), String>;
type Clause = (&'static str, fn(Make<'_>) -> Outcome);

const READING: &[Clause] = &[
    ("the length is that of the contents", length),
    ("a read gives the bytes at its offset, wherever it starts and ends", reads_anywhere),
    ("a read past the end is UnexpectedEof, never zeros", reads_past_the_end),
    ("reading zero bytes succeeds anywhere", empty_reads),
    ("read_cached_at gives what a read gives, or nothing", offers::cached),
    ("next_data skips nothing but zeros and ends at the end", next_data_of_given),
    ("many threads read at once", concurrent_reads),
    ("a sync with nothing to do succeeds", idle_sync),
];

const WRITING: &[Clause] = &[
    ("a read sees every write that returned before", writes_show),
    ("writing zero bytes does nothing and succeeds anywhere", empty_writes),
    ("a write past the end grows the storage and the gap reads as zeros", gaps),
    ("a range past the largest position is refused and changes nothing", impossible_ranges),
    ("set_len adds zeros, drops the tail, and shows zeros where it grows again", lengths),
    ("zero_range zeros its bytes and no others", zeroing),
    ("zero_range past the end grows the storage", zeroing_grows),
    ("next_data skips no byte that was written", next_data_after_changes),
    ("copy_range does what a copy by hand does, or nothing", offers::copies),
    ("share_range does what a copy by hand does, or nothing", offers::shares),
    ("many threads write disjoint ranges at once", concurrent_writes),
    ("many threads grow the storage at once", concurrent_growth),
    ("start_writeback changes nothing that is read, wherever the range lies", offers::writeback),
    ("a sync keeps everything", syncs),
];

/// Runs the clauses of `part` over storages from `make` and lists those that do not hold.
#[must_use]
pub fn run(part: Part, make: Make<'_>) -> Vec<Broken> {
    let writing = if part == Part::All { WRITING } else { &[] };
    let broken = |&(clause, check): &Clause| Some(Broken { clause, because: check(make).err()? });
    READING.iter().chain(writing).filter_map(broken).collect()
}

/// Bytes without zeros and without a period that any page or sector size divides.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 + 1).collect()
}

/// Data, a hole that is not page aligned, data again.
fn holed() -> Vec<u8> {
    let mut bytes = pattern(300_000);
    bytes[5_000..200_001].fill(0);
    bytes
}

fn ok<T>(what: &str, answer: io::Result<T>) -> Result<T, String> {
    answer.map_err(|error| format!("{what}: {error}"))
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn read(storage: &dyn Storage, range: Range<usize>) -> Result<Vec<u8>, String> {
    // Filled beforehand, so that a read that does not fill shows.
    let mut bytes = vec![0xEE; range.len()];
    ok("read", storage.read_exact_at(&mut bytes, range.start as u64))?;
    Ok(bytes)
}

fn holds(storage: &dyn Storage, wanted: &[u8]) -> Outcome {
    let len = ok("len", storage.len())?;
    ensure(len == wanted.len() as u64, || format!("the length is {len} instead of {}", wanted.len()))?;
    let found = read(storage, 0..wanted.len())?;
    match found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
        Some(at) => Err(format!("byte {at} of {len} is {:#04x} instead of {:#04x}", found[at], wanted[at])),
        None => Ok(()),
    }
}

fn length(make: Make<'_>) -> Outcome {
    for len in [0, 1, 511, 4096, 4097, 100_000] {
        let storage = make(&pattern(len));
        holds(&*storage, &pattern(len))?;
        let empty = ok("is_empty", storage.is_empty())?;
        ensure(empty == (len == 0), || format!("is_empty is {empty} at length {len}"))?;
    }
    Ok(())
}

fn reads_anywhere(make: Make<'_>) -> Outcome {
    let bytes = holed();
    let storage = make(&bytes);
    for start in [0, 1, 511, 512, 4095, 4096, 4097, 4999, 199_999, 299_999] {
        for len in [1, 2, 511, 512, 4096, 4097, 8193, 100_000] {
            let end = (start + len).min(bytes.len());
            let found = read(&*storage, start..end)?;
            ensure(found == bytes[start..end], || format!("{start}..{end} reads as something else"))?;
        }
    }
    Ok(())
}

fn reads_past_the_end(make: Make<'_>) -> Outcome {
    for len in [0u64, 1, 4096, 5000] {
        let storage = make(&pattern(len as usize));
        let largest = i64::MAX as u64;
        for (offset, count) in [
            (len, 1),
            (len.saturating_sub(1), 2),
            (0, len as usize + 1),
            (len + 100_000, 4096),
            (largest, 1),
            (u64::MAX, 1),
            (u64::MAX - 3, 8),
        ] {
            match storage.read_exact_at(&mut vec![0; count], offset) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                other => return Err(format!("reading {count} bytes at {offset} of {len} answers {other:?}")),
            }
        }
    }
    Ok(())
}

fn empty_reads(make: Make<'_>) -> Outcome {
    let storage = make(b"abc");
    for offset in [0, 3, 4, 1 << 50, u64::MAX] {
        ok("a read of nothing", storage.read_exact_at(&mut [], offset))?;
    }
    Ok(())
}

/// Walks `storage` with `next_data` and makes sure everything it skips is zero in `bytes`.
fn skips_only_zeros(storage: &dyn Storage, bytes: &[u8]) -> Outcome {
    let len = bytes.len() as u64;
    for step in [1 << 20, 4096, 1777] {
        let mut at = 0;
        loop {
            let found = ok("next_data", storage.next_data(at))?;
            let end = found.unwrap_or(len.max(at));
            ensure(end >= at && (found.is_none() || end < len), || format!("next_data({at}) of {len} is {found:?}"))?;
            let skipped = bytes.get(at as usize..end as usize).unwrap_or_default();
            ensure(skipped.iter().all(|&byte| byte == 0), || format!("next_data({at}) is {found:?}, past data"))?;
            if found.is_none() {
                break;
            }
            at = end + step;
        }
    }
    for past in [len, len + 1, u64::MAX] {
        let found = ok("next_data past the end", storage.next_data(past))?;
        ensure(found.is_none(), || format!("next_data({past}) of {len} is {found:?}"))?;
    }
    Ok(())
}

fn next_data_of_given(make: Make<'_>) -> Outcome {
    for bytes in [Vec::new(), vec![0; 50_000], pattern(50_000), holed()] {
        skips_only_zeros(&*make(&bytes), &bytes)?;
    }
    Ok(())
}

fn concurrent_reads(make: Make<'_>) -> Outcome {
    let bytes = pattern(200_000);
    let storage = make(&bytes);
    threads(8, |thread| {
        for round in 0..50 {
            let start = (thread * 7919 + round * 4099) % 150_000;
            let found = read(&*storage, start..start + 9000)?;
            ensure(found == bytes[start..start + 9000], || format!("{start} reads as something else"))?;
        }
        Ok(())
    })
}

fn threads(count: usize, work: impl Fn(usize) -> Outcome + Sync) -> Outcome {
    let work = &work;
    thread::scope(|scope| {
        let handles: Vec<_> = (0..count).map(|thread| scope.spawn(move || work(thread))).collect();
        handles.into_iter().try_for_each(|handle| handle.join().unwrap_or_else(|_| Err("a thread panicked".into())))
    })
}

fn idle_sync(make: Make<'_>) -> Outcome {
    let storage = make(b"abc");
    ok("sync", storage.sync())?;
    holds(&*storage, b"abc")
}

fn writes_show(make: Make<'_>) -> Outcome {
    let mut bytes = pattern(100_000);
    let storage = make(&bytes);
    for (at, len) in [(0, 1), (511, 2), (4096, 4096), (4000, 10_000), (65_535, 3), (99_999, 1), (1, 90_000)] {
        let new: Vec<u8> = pattern(len).iter().map(|byte| !byte).collect();
        ok("write", storage.write_all_at(&new, at as u64))?;
        bytes[at..at + len].copy_from_slice(&new);
        holds(&*storage, &bytes)?;
    }
    Ok(())
}

fn empty_writes(make: Make<'_>) -> Outcome {
    let storage = make(b"abc");
    for offset in [0, 2, 3, 4, 1 << 50, u64::MAX] {
        ok("a write of nothing", storage.write_all_at(&[], offset))?;
    }
    ok("zeroing nothing", storage.zero_range(1 << 40..1 << 40))?;
    holds(&*storage, b"abc")
}

fn gaps(make: Make<'_>) -> Outcome {
    for (len, at) in [(0, 1), (3, 4), (100, 4096), (5000, 70_001)] {
        let mut bytes = pattern(len);
        let storage = make(&bytes);
        ok("write", storage.write_all_at(b"end", at as u64))?;
        bytes.resize(at, 0);
        bytes.extend(b"end");
        holds(&*storage, &bytes)?;
    }
    Ok(())
}

fn impossible_ranges(make: Make<'_>) -> Outcome {
    let storage = make(b"abc");
    for at in [u64::MAX, u64::MAX - 1, i64::MAX as u64] {
        ensure(storage.write_all_at(b"xy", at).is_err(), || format!("a write at {at} is accepted"))?;
        // A storage may keep itself closed after that, but not changed.
        holds(&*storage, b"abc")?;
    }
    Ok(())
}

fn lengths(make: Make<'_>) -> Outcome {
    let mut bytes = pattern(10_000);
    let storage = make(&bytes);
    for len in [20_000, 4097, 4096, 30_000, 1, 4095, 0, 9000] {
        ok("set_len", storage.set_len(len as u64))?;
        bytes.resize(len, 0);
        holds(&*storage, &bytes)?;
        if len == 20_000 {
            ok("write", storage.write_all_at(&pattern(20_000), 0))?;
            bytes = pattern(20_000);
        }
    }
    Ok(())
}

fn zeroing(make: Make<'_>) -> Outcome {
    for range in [0..1, 0..4096, 5..6, 4095..4097, 100..9000, 8192..90_000, 1..100_000, 99_999..100_000] {
        let mut bytes = pattern(100_000);
        let storage = make(&bytes);
        ok("zero_range", storage.zero_range(range.start as u64..range.end as u64))?;
        bytes[range.clone()].fill(0);
        holds(&*storage, &bytes).map_err(|error| format!("after zeroing {range:?}: {error}"))?;
        ok("write", storage.write_all_at(b"x", range.start as u64))?;
        bytes[range.start] = b'x';
        holds(&*storage, &bytes)?;
    }
    Ok(())
}

fn zeroing_grows(make: Make<'_>) -> Outcome {
    for range in [3..20_000, 10_000..10_001, 10_001..300_000, 12_288..16_384] {
        let mut bytes = pattern(10_000);
        let storage = make(&bytes);
        ok("zero_range", storage.zero_range(range.start as u64..range.end as u64))?;
        bytes.truncate(range.start);
        bytes.resize(range.end, 0);
        holds(&*storage, &bytes).map_err(|error| format!("after zeroing {range:?}: {error}"))?;
    }
    Ok(())
}

fn next_data_after_changes(make: Make<'_>) -> Outcome {
    let mut bytes = holed();
    let storage = make(&bytes);
    ok("write", storage.write_all_at(b"x", 100_000))?;
    bytes[100_000] = b'x';
    skips_only_zeros(&*storage, &bytes)?;
    ok("zero_range", storage.zero_range(250_000..500_000))?;
    bytes.resize(500_000, 0);
    bytes[250_000..].fill(0);
    skips_only_zeros(&*storage, &bytes)?;
    ok("write", storage.write_all_at(b"y", 499_999))?;
    bytes[499_999] = b'y';
    skips_only_zeros(&*storage, &bytes)?;
    ok("set_len", storage.set_len(100_000))?;
    skips_only_zeros(&*storage, &bytes[..100_000])
}

fn concurrent_writes(make: Make<'_>) -> Outcome {
    // Stripes that share pages and sectors: a storage that reads, changes and writes back must lock for it.
    const STRIPE: usize = 100;
    let storage = make(&vec![0; 8 * STRIPE * 50]);
    threads(8, |thread| {
        for round in 0..50 {
            let at = (round * 8 + thread) * STRIPE;
            ok("write", storage.write_all_at(&[thread as u8 + 1; STRIPE], at as u64))?;
            let found = read(&*storage, at..at + STRIPE)?;
            ensure(found == [thread as u8 + 1; STRIPE], || format!("the stripe at {at} lost a write"))?;
        }
        Ok(())
    })?;
    let wanted: Vec<u8> = (0..8 * STRIPE * 50).map(|at| (at / STRIPE % 8) as u8 + 1).collect();
    holds(&*storage, &wanted)
}

fn concurrent_growth(make: Make<'_>) -> Outcome {
    const PART: usize = 10_000;
    for _ in 0..10 {
        let storage = make(&[]);
        threads(8, |thread| {
            let at = thread * PART;
            if thread % 2 == 0 {
                ok("write", storage.write_all_at(&[7; PART], at as u64))
            } else {
                ok("zero_range", storage.zero_range(at as u64..(at + PART) as u64))
            }
        })?;
        let wanted: Vec<u8> = (0..8 * PART).map(|at| if (at / PART).is_multiple_of(2) { 7 } else { 0 }).collect();
        holds(&*storage, &wanted)?;
    }
    Ok(())
}

fn syncs(make: Make<'_>) -> Outcome {
    let mut bytes = pattern(9000);
    let storage = make(&bytes);
    ok("write", storage.write_all_at(b"kept", 8998))?;
    bytes.truncate(8998);
    bytes.extend(b"kept");
    ok("sync", storage.sync())?;
    ok("sync", storage.sync())?;
    holds(&*storage, &bytes)
}
