//! A machine that stops anywhere in a sequence of writes, resizes and merges: the disk shows the old or the new bytes,
//! sector by sector, and takes writes again.
//!
//! Owns: which crash states of one input are looked at, and what was promised at each.

use crate::chains::{self, apply};
use crate::input::Input;
use crate::workload;
use std::sync::Arc;
use vhdkit::Watch;
use vhdkit::ops::{MergeOptions, merge_chain};
use vhdkit::storage::sim::{ExploreOptions, SimDisk};
use vhdkit::storage::{Access, Storage};

/// The most edits of one input.
const EDITS: usize = 4;
/// The most crash states of one input: enough for some of every point, not for all.
const STATES: u64 = 40;
const NAMES: [&str; 3] = ["0", "1", "2"];

/// One schedule.
pub(super) fn body(data: &[u8]) {
    let mut input = Input::new(data);
    let merges = input.one_in(3);
    let spec = workload::chain(&mut input, if merges { (2, 3) } else { (1, 2) });
    let disk = SimDisk::new();
    let built = chains::build(&spec, |index| disk.file(NAMES[index]));
    let storages = built.storages;
    let seed = u64::from(input.word());
    disk.checkpoint();
    // What the leaf shows after each durable step, and the crash point from which on it is promised.
    let mut promised = vec![(0, built.views[0].clone())];
    let target = if merges { 2 + input.below(storages.len() - 1) } else { 1 };
    if merges {
        let mut chain = chains::open(&storages, Access::Read).expect("what was just made opens");
        merge_chain(&mut chain, &options(target), &Watch::none()).expect("memory takes writes");
        chain.close().expect("memory takes writes");
    } else {
        let mut view = built.views[0].clone();
        let mut chain = chains::open(&storages, Access::Write).expect("what was just made opens");
        for _ in 0..1 + input.below(EDITS) {
            let edit = workload::edit(&mut input, spec.format, view.len() as u64);
            apply(&mut chain, &mut view, &edit);
            chain.flush().expect("memory takes syncs");
            promised.push((disk.position(), view.clone()));
        }
        chain.close().expect("memory takes writes");
    }
    let files = |disk: &SimDisk| -> Vec<Arc<dyn Storage>> {
        (0..storages.len()).rev().map(|index| disk.file(NAMES[index]) as Arc<dyn Storage>).collect()
    };
    // Every so many of them, from one that the seed chooses; the first points have fewer states than the last.
    let stride = 1 + seed % 7 + disk.crash_points() as u64 / 4;
    let (mut met, mut looked_at) = (seed % stride, 0);
    let explore = ExploreOptions { samples_per_point: 4, exhaustive_limit: 3, ..ExploreOptions::seeded(seed) };
    let report = disk.explore(&explore, |state| {
        met += 1;
        if !met.is_multiple_of(stride) || looked_at == STATES {
            return Ok(());
        }
        looked_at += 1;
        let now = promised.iter().rposition(|(point, _)| *point <= state.point()).expect("the first is at 0");
        let (old, new) = (&promised[now].1, &promised.get(now + 1).unwrap_or(&promised[now]).1);
        shows(&files(&state.disk()), Access::Read, (old, new))?;
        let disk = state.disk();
        let files = files(&disk);
        if !merges {
            return shows(&files, Access::Recover, (old, new)).and_then(|()| takes_writes(&files));
        }
        let mut chain =
            chains::open(&files, Access::Read).map_err(|error| format!("opening for the rerun: {error}"))?;
        merge_chain(&mut chain, &options(target), &Watch::none()).map_err(|error| format!("the rerun: {error}"))?;
        chain.close().map_err(|error| format!("closing the rerun: {error}"))?;
        shows(&files, Access::Read, (old, new))?;
        shows(&files[target - 1..], Access::Read, (old, new)).map_err(|error| format!("the target: {error}"))
    });
    report.assert_ok();
}

fn options(target: usize) -> MergeOptions {
    MergeOptions::between(1, target).jobs(1)
}

/// Every sector of the disk is that of `old` or of `new`.
fn shows(files: &[Arc<dyn Storage>], access: Access, (old, new): (&[u8], &[u8])) -> Result<(), String> {
    let chain = chains::open(files, access).map_err(|error| format!("{access:?}: {error}"))?;
    if chain.virtual_size() != old.len() as u64 {
        return Err(format!("{access:?}: a disk of {} bytes", chain.virtual_size()));
    }
    let mut found = vec![0xEE; old.len()];
    chain.read_at(&mut found, 0).map_err(|error| format!("{access:?}: {error}"))?;
    let sectors = found.chunks(512).zip(old.chunks(512).zip(new.chunks(512)));
    for (at, (sector, (old, new))) in sectors.enumerate() {
        if sector != old && sector != new {
            return Err(format!("{access:?}: sector {at} shows neither the old nor the new bytes"));
        }
    }
    Ok(())
}

/// The first sector can be written, and nothing else changes.
fn takes_writes(files: &[Arc<dyn Storage>]) -> Result<(), String> {
    let mut chain = chains::open(files, Access::Recover).map_err(|error| format!("for writing: {error}"))?;
    let mut before = chains::read_all(&chain);
    let len = before.len().min(4096);
    chain.write_at(&vec![0xA5; len], 0).map_err(|error| format!("a write after the crash: {error}"))?;
    chain.close().map_err(|error| format!("closing after the crash: {error}"))?;
    before[..len].fill(0xA5);
    shows(files, Access::Read, (&before, &before)).map_err(|error| format!("after a write after the crash: {error}"))
}
