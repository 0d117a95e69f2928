//! What a storage may do for its users and need not: copies and shares of its own, writing early, reading what
//! is in memory.
//!
//! Owns: the clauses on those. Must not know: who implements them.

use super::{Make, Outcome, ensure, holds, holed, ok, pattern};
use crate::storage::{MemoryStorage, Storage};
use std::sync::Arc;

pub(super) fn copies(make: Make<'_>) -> Outcome {
    let given = holed();
    let in_memory: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&given));
    for source in [make(&given), in_memory] {
        for (from, to, len) in
            [(0, 0, 0), (0, 0, 300_000), (4096, 8192, 65_536), (1, 3, 5000), (199_000, 90_000, 70_000)]
        {
            let mut bytes = pattern(100_000);
            let target = make(&bytes);
            let copied = ok("copy_range", target.copy_range(&*source, from as u64, to as u64, len as u64))?;
            if copied && len > 0 {
                bytes.resize(bytes.len().max(to + len), 0);
                bytes[to..to + len].copy_from_slice(&given[from..from + len]);
            }
            holds(&*target, &bytes).map_err(|error| format!("after copying {len} bytes ({copied}): {error}"))?;
        }
        holds(&*source, &given)?;
    }
    Ok(())
}

pub(super) fn shares(make: Make<'_>) -> Outcome {
    let given = holed();
    let in_memory: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&given));
    for source in [make(&given), in_memory] {
        let Some(unit) = ok("share_unit", make(&given).share_unit())? else { continue };
        ensure(unit.is_power_of_two(), || format!("share_unit is {unit}"))?;
        // Data, data and a hole, and over the target's end; then past the end of the source, where there is nothing.
        for (from, to, len) in [(0, 1, 0), (0, 1, 1), (1, 0, 2), (2, 24, 3), (10, 200, 9), (1 << 20, 0, 1)] {
            let (from, to, len) = (from * unit, to * unit, len * unit);
            let mut bytes = pattern(100_000);
            let target = make(&bytes);
            let shared = target.share_range(&*source, from, to, len);
            let inside = from + len <= given.len() as u64;
            if inside && ok("share_range", shared)? && len > 0 {
                let (from, to, len) = (from as usize, to as usize, len as usize);
                bytes.resize(bytes.len().max(to + len), 0);
                bytes[to..to + len].copy_from_slice(&given[from..from + len]);
            }
            holds(&*target, &bytes).map_err(|error| format!("after sharing {len} bytes: {error}"))?;
            // Either file is its own again once it is written.
            ok("write", target.write_all_at(b"own", to))?;
        }
        holds(&*source, &given)?;
    }
    Ok(())
}

pub(super) fn writeback(make: Make<'_>) -> Outcome {
    let mut bytes = pattern(20_000);
    let storage = make(&bytes);
    ok("write", storage.write_all_at(b"begun", 4094))?;
    bytes[4094..4099].copy_from_slice(b"begun");
    for range in [4094..4099, 0..0, 7..7, 0..20_000, 19_999..70_000, 1 << 40..1 << 41] {
        ok("start_writeback", storage.start_writeback(range))?;
        holds(&*storage, &bytes)?;
    }
    ok("sync", storage.sync())?;
    holds(&*storage, &bytes)
}

pub(super) fn cached(make: Make<'_>) -> Outcome {
    let bytes = pattern(20_000);
    let storage = make(&bytes);
    for (at, len) in [(0, 20_000), (0, 0), (1, 4096), (4096, 8192), (19_999, 1), (20_000, 0)] {
        let mut found = vec![0xEE; len];
        if ok("read_cached_at", storage.read_cached_at(&mut found, at as u64))? {
            ensure(found == bytes[at..at + len], || format!("{len} other bytes at {at}"))?;
        }
    }
    for (at, len) in [(0, 20_001), (20_000, 1), (1 << 40, 5), (u64::MAX, 2)] {
        let answer = storage.read_cached_at(&mut vec![0; len], at);
        ensure(!matches!(answer, Ok(true)), || format!("{len} bytes at {at}, where there are none"))?;
    }
    Ok(())
}
