//! Power cuts while a plan is carried out.

use super::*;
use crate::storage::sim::{ExploreOptions, SimDisk};

const FILE: &str = "a.vhdx";

/// Carries out the plan for `storage` on a machine that may lose its power anywhere: what is left opens, shows the same
/// bytes outside of the plan's losses, and a second repair ends where the first would have.
fn survives(storage: &Arc<MemoryStorage>, allow: &[RepairKind]) {
    let image = open(storage.clone());
    let (before, id) = (shown(&image), image.id());
    drop(image);
    let steps = plan(storage, allow).unwrap();
    assert!(!steps.is_empty());
    let safe = steps.iter().all(|step| step.kind.is_safe());
    let loses: Vec<_> = steps.iter().flat_map(|step| step.loses.clone()).collect();
    let disk = SimDisk::new();
    let file = disk.import(FILE, &**storage).unwrap();
    apply(&*file, &steps);
    let after = shown(&open(file));
    let report = disk.explore(&ExploreOptions::seeded(1), |state| {
        let disk = state.disk();
        let image = Vhdx::open(disk.file(FILE), Access::Read, &mut Findings::new());
        let image = image.map_err(|error| format!("does not open: {error}"))?;
        let now = shown(&image);
        if safe && image.id() != id {
            return Err("children would lose their parent".into());
        }
        for (at, ((before, after), now)) in (0u64..).step_by(4096).zip(before.iter().zip(&after).zip(&now)) {
            let lost = loses.iter().any(|range| range.contains(&at) || range.contains(&(at + 4095)));
            if now != before && (!lost || now != after) {
                return Err(format!("{now} at {at:#x}, where {before} was"));
            }
        }
        drop(image);
        let steps = Vhdx::plan_repair(disk.file(FILE), allow).map_err(|error| error.to_string())?;
        apply(&*disk.file(FILE), &steps);
        let again = shown(&open(disk.file(FILE)));
        if again == after { Ok(()) } else { Err("a second repair ends elsewhere".into()) }
    });
    report.assert_ok();
    assert!(report.states > 10, "{report:?}");
}

#[test]
fn safe_repairs() {
    let storage = sample(DiskKind::Differencing);
    storage.write_all_at(&[0; 4], 64 * KIB).unwrap();
    storage.write_all_at(&[0; 4], 256 * KIB).unwrap();
    for (index, raw) in [(4, 9 * MIB), (5, 9 * MIB + 2), (6, 5 * MIB + 3), (600, 77), (4096, 10 * MIB)] {
        set(&*storage, index, raw);
    }
    storage.set_len(10 * MIB + 5).unwrap();
    survives(&storage, &[]);
}

#[test]
fn replay() {
    survives(&dirty().0, &[]);
}

#[test]
fn replay_with_one_header_bad() {
    let (storage, _) = dirty();
    let mut pair = HeaderPair::read(&*storage, &mut Findings::new()).unwrap();
    pair.update(&*storage, |_| ()).unwrap();
    storage.write_all_at(&[0; 4], 64 * KIB).unwrap();
    survives(&storage, &[]);
}

#[test]
fn repairs_with_a_price() {
    let storage = sample(DiskKind::Differencing);
    for (index, raw) in [(0, 4 * MIB + PARTIAL), (2, 6 * MIB + PARTIAL), (4096, 90 * MIB + FULL), (5, 80 * MIB + FULL)]
    {
        set(&*storage, index, raw);
    }
    storage.set_len(8 * MIB - 8192).unwrap();
    for kind in [RepairKind::UnmapLostBlocks, RepairKind::ZeroExtend] {
        survives(&storage, &[kind]);
    }
    set(&*storage, 6, 5 * MIB + FULL);
    survives(&storage, ALL);
}
