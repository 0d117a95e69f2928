//! Bug this finds: a guest write, zeroing or discard that a crash turns into anything but the old or the new bytes, or
//! flushed bytes that a crash takes back.

use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use std::sync::Arc;
use vhdkit::Format;
use vhdkit::storage::sim::{ExploreOptions, SimDisk};
use vhdkit::storage::{Access, Storage};

/// A leaf over a base that has data, the leaf then edited with a flush after each edit.
fn explore(spec: &ChainSpec, edits: &[Edit]) {
    let disk = SimDisk::new();
    let built = chains::build(spec, |index| disk.file(&index.to_string()));
    disk.checkpoint();
    let mut view = built.views[0].clone();
    // What the disk shows after each flushed edit, and from which crash point on it is promised.
    let mut promised = vec![(0, view.clone())];
    let mut chain = chains::open(&built.storages, Access::Write).unwrap();
    for edit in edits {
        chains::apply(&mut chain, &mut view, edit);
        chain.flush().unwrap();
        promised.push((disk.position(), view.clone()));
    }
    chain.close().unwrap();
    let count = spec.layers.len();
    let report = disk.explore(&ExploreOptions::seeded(crate::seed()), |state| {
        let now = promised.iter().rposition(|(point, _)| *point <= state.point()).unwrap();
        let old = &promised[now].1;
        let new = &promised.get(now + 1).unwrap_or(&promised[now]).1;
        for access in [Access::Read, Access::Recover] {
            let disk = state.disk();
            let files: Vec<Arc<dyn Storage>> =
                (0..count).rev().map(|index| disk.file(&index.to_string()) as Arc<dyn Storage>).collect();
            let chain = chains::open(&files, access).map_err(|error| format!("{access:?}: {error}"))?;
            let found = chains::read_all(&chain);
            for (at, sector) in found.chunks(512).enumerate() {
                let range = at * 512..at * 512 + sector.len();
                if sector != &old[range.clone()] && sector != &new[range.clone()] {
                    return Err(format!("{access:?}: sector {at} shows neither the old nor the new bytes"));
                }
            }
        }
        Ok(())
    });
    println!("{:?}: {} crash states at {} points", spec.format, report.states, report.points);
    report.assert_ok();
    assert!(report.states > 100);
}

#[test]
fn vhd_writes_survive_every_crash() {
    for base_only in [true, false] {
        let base = vec![Edit::Write { offset: 4096, len: 9000, seed: 9 }];
        let mut layers = vec![LayerSpec { size: 40 << 10, block_size: 8192, edits: base }];
        if !base_only {
            layers.push(LayerSpec { size: 40 << 10, block_size: 8192, edits: Vec::new() });
        }
        let spec = ChainSpec { format: Format::Vhd, sector: 512, base_fixed: false, layers };
        explore(
            &spec,
            &[
                Edit::Write { offset: 0, len: 1024, seed: 1 },
                Edit::Write { offset: 700, len: 900, seed: 2 },
                Edit::Write { offset: 15 << 10, len: 12 << 10, seed: 3 },
                Edit::Zero { offset: 8192, len: 8192 },
                Edit::Discard { offset: 0, len: 24 << 10 },
                Edit::Write { offset: 39 << 10, len: 1024, seed: 4 },
            ],
        );
    }
}

#[test]
fn vhdx_writes_survive_every_crash() {
    const MIB: u64 = 1 << 20;
    for base_only in [true, false] {
        let base = vec![Edit::Write { offset: 4096, len: 9000, seed: 9 }];
        let mut layers = vec![LayerSpec { size: 3 * MIB, block_size: 1 << 20, edits: base }];
        if !base_only {
            layers.push(LayerSpec { size: 3 * MIB, block_size: 1 << 20, edits: Vec::new() });
        }
        let spec = ChainSpec { format: Format::Vhdx, sector: 512, base_fixed: false, layers };
        explore(
            &spec,
            &[
                Edit::Write { offset: 0, len: 1024, seed: 1 },
                Edit::Write { offset: 700, len: 900, seed: 2 },
                Edit::Zero { offset: 0, len: MIB },
                Edit::Write { offset: 2 * MIB + 4096, len: 4096, seed: 3 },
                Edit::Discard { offset: 0, len: 3 * MIB },
                Edit::Write { offset: MIB, len: 2048, seed: 4 },
            ],
        );
    }
}
