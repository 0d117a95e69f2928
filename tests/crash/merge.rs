//! Bug this finds: a write of a merge that reaches the medium before one it depends on, so that for some subset of
//! surviving writes the source shows other bytes, a file does not open, or the rerun does not finish.

use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use std::sync::Arc;
use vhdkit::ops::{MergeOptions, merge_chain};
use vhdkit::storage::sim::{ExploreOptions, ExploreReport, SimDisk};
use vhdkit::storage::{Access, Storage};
use vhdkit::{Format, Watch};

const NAMES: [&str; 6] = ["0", "1", "2", "3", "4", "5"];

/// One merge to crash.
struct Workload {
    spec: ChainSpec,
    source: usize,
    target: usize,
    relink: bool,
}

impl Workload {
    fn options(&self) -> MergeOptions {
        MergeOptions::between(self.source, self.target).relink(self.relink).jobs(1)
    }

    /// The storages of the chain on `disk`, leaf first.
    fn storages(&self, disk: &SimDisk) -> Vec<Arc<dyn Storage>> {
        let files = self.spec.layers.iter().zip(NAMES).map(|(_, name)| disk.file(name) as Arc<dyn Storage>);
        let mut files: Vec<_> = files.collect();
        files.reverse();
        files
    }

    /// The same after the file above the source was pointed at the target.
    fn shortened(&self, disk: &SimDisk) -> Vec<Arc<dyn Storage>> {
        let mut files = self.storages(disk);
        files.drain(self.source - 1..self.target - 1);
        files
    }

    /// Merges on a fresh machine with recorded writes; `spoil` may take barriers away. Answers the machine and the views.
    fn merged(&self, spoil: impl Fn(&SimDisk)) -> (SimDisk, Vec<Vec<u8>>) {
        let disk = SimDisk::new();
        let built = chains::build(&self.spec, |index| disk.file(NAMES[index]));
        disk.checkpoint();
        spoil(&disk);
        let mut chain = chains::open(&built.storages, Access::Read).unwrap();
        merge_chain(&mut chain, &self.options(), &Watch::none()).unwrap();
        chain.close().unwrap();
        (disk, built.views)
    }

    fn explore(&self, options: &ExploreOptions, spoil: impl Fn(&SimDisk)) -> ExploreReport {
        let (disk, views) = self.merged(spoil);
        let end = disk.position();
        disk.explore(options, |state| {
            // The views first, opened for reading, on a machine of their own.
            self.check_views(&state.disk(), &views).map_err(|error| format!("before the rerun: {error}"))?;
            let disk = state.disk();
            self.rerun(&disk, state.point() == end)?;
            self.check_views(&disk, &views).map_err(|error| format!("after the rerun: {error}"))?;
            let target = open(&self.storages(&disk)[self.target - 1..])?;
            same(&target, &views[self.source - 1]).map_err(|error| format!("the target after the rerun: {error}"))
        })
    }

    /// Every file from the leaf to the source shows what it showed.
    fn check_views(&self, disk: &SimDisk, views: &[Vec<u8>]) -> Result<(), String> {
        for (depth, view) in views.iter().enumerate().take(self.source) {
            let files = self.storages(disk);
            let bytes = match open(&files[depth..]) {
                Ok(bytes) => bytes,
                Err(_) if self.relink && depth < self.source - 1 => open(&self.shortened(disk)[depth..])?,
                Err(error) => return Err(format!("depth {}: {error}", depth + 1)),
            };
            same(&bytes, view).map_err(|error| format!("depth {}: {error}", depth + 1))?;
        }
        Ok(())
    }

    fn rerun(&self, disk: &SimDisk, done: bool) -> Result<(), String> {
        let mut chain = match chains::open(&self.storages(disk), Access::Read) {
            Ok(chain) => chain,
            // Relinked already: that was the last write, there is nothing left to finish.
            Err(_) if self.relink && chains::open(&self.shortened(disk), Access::Read).is_ok() => return Ok(()),
            Err(error) => return Err(format!("opening for the rerun: {error}")),
        };
        let rerun = merge_chain(&mut chain, &self.options(), &Watch::none()).map_err(|error| format!("rerun: {error}"));
        rerun.and_then(|_| chain.close().map_err(|error| format!("closing the rerun (done: {done}): {error}")))
    }
}

fn open(files: &[Arc<dyn Storage>]) -> Result<Vec<u8>, String> {
    let chain = chains::open(files, Access::Read).map_err(|error| error.to_string())?;
    let mut bytes = vec![0xEE; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn same(found: &[u8], wanted: &[u8]) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    let at = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(found.len().min(wanted.len()));
    Err(format!("{} bytes, {} wanted, first difference at {at:#x}", found.len(), wanted.len()))
}

fn write(offset: u64, len: u64, seed: u8) -> Edit {
    Edit::Write { offset, len, seed }
}

/// Three small VHDs: blocks absent, partial and whole in every combination, sizes that differ.
fn vhd(source: usize, target: usize, relink: bool, sizes: [u64; 3]) -> Workload {
    let layers = vec![
        LayerSpec { size: sizes[0], block_size: 8192, edits: vec![write(0, 3000, 1), write(20 << 10, 9000, 2)] },
        LayerSpec { size: sizes[1], block_size: 8192, edits: vec![write(1024, 2048, 3), write(9 << 10, 512, 4)] },
        LayerSpec {
            size: sizes[2],
            block_size: 4096,
            edits: vec![write(1536, 512, 5), write(24 << 10, 4096, 6), Edit::Zero { offset: 512, len: 512 }],
        },
    ];
    Workload { spec: ChainSpec { format: Format::Vhd, sector: 512, base_fixed: false, layers }, source, target, relink }
}

fn vhdx(source: usize, target: usize, relink: bool, sizes: [u64; 3]) -> Workload {
    const MIB: u64 = 1 << 20;
    let layers = vec![
        LayerSpec { size: sizes[0], block_size: 1 << 20, edits: vec![write(0, 9000, 1), write(MIB + 512, 4096, 2)] },
        LayerSpec { size: sizes[1], block_size: 1 << 20, edits: vec![write(4096, 2048, 3)] },
        LayerSpec {
            size: sizes[2],
            block_size: 1 << 20,
            edits: vec![write(4608, 512, 5), Edit::Zero { offset: MIB, len: MIB }],
        },
    ];
    Workload {
        spec: ChainSpec { format: Format::Vhdx, sector: 512, base_fixed: false, layers },
        source,
        target,
        relink,
    }
}

fn thorough() -> ExploreOptions {
    ExploreOptions { samples_per_point: 12, ..ExploreOptions::seeded(crate::seed()) }
}

fn run(name: &str, workload: &Workload) {
    let report = workload.explore(&thorough(), |_| {});
    println!("{name}: {} crash states at {} points", report.states, report.points);
    report.assert_ok();
    assert!(report.points > 5, "{name}: the workload writes something");
}

#[test]
fn vhd_merges_survive_every_crash() {
    let same = [40 << 10; 3];
    run("vhd 1,2", &vhd(1, 2, false, same));
    run("vhd 1,3", &vhd(1, 3, false, same));
    run("vhd 2,3 relinked", &vhd(2, 3, true, same));
    run("vhd 1,2 growing", &vhd(1, 2, false, [48 << 10, 32 << 10, 44 << 10]));
    run("vhd 1,3 growing", &vhd(1, 3, false, [30 << 10, 30 << 10, 90 << 10]));
    run("vhd 1,3 shrinking", &vhd(1, 3, false, [48 << 10, 40 << 10, 29 << 10]));
}

#[test]
fn vhdx_merges_survive_every_crash() {
    const MIB: u64 = 1 << 20;
    let same = [2 * MIB; 3];
    run("vhdx 1,2", &vhdx(1, 2, false, same));
    run("vhdx 1,3", &vhdx(1, 3, false, same));
    run("vhdx 2,3 relinked", &vhdx(2, 3, true, same));
    run("vhdx 1,2 growing", &vhdx(1, 2, false, [3 * MIB, MIB + 4096, 2 * MIB]));
    run("vhdx 1,3 shrinking", &vhdx(1, 3, false, [3 * MIB, 2 * MIB, 2 * MIB]));
}

/// Bug this finds: an explorer, or a workload, that would not notice a missing barrier. Without the syncs of the target
/// the merge must fail in some crash state.
#[test]
fn a_removed_barrier_is_noticed() {
    const MIB: u64 = 1 << 20;
    for workload in [vhd(1, 3, false, [40 << 10; 3]), vhdx(1, 3, false, [2 * MIB; 3])] {
        let report = workload.explore(&thorough(), |disk| disk.drop_syncs(NAMES[0], None));
        assert!(report.first_failure.is_some(), "{:?}: no failure in {} states", workload.spec.format, report.states);
    }
}
