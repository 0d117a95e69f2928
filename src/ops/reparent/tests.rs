//! Every state a crash can leave while a link is rewritten, over simulated storages.

use super::write;
use crate::chain::Layer;
use crate::guid::Guid;
use crate::link::{DiskKind, ImageId, NewParent, ParentLink, ParentPaths};
use crate::storage::Access;
use crate::storage::sim::{ExploreOptions, SimDisk};
use crate::vhd::{Vhd, VhdCreate};
use crate::vhdx::{Vhdx, VhdxCreate};

const SEED: u64 = 0x5EED_0008;

fn vhd_id(number: u8) -> ImageId {
    ImageId::Vhd([number; 16])
}

fn vhdx_id(number: u128) -> ImageId {
    ImageId::Vhdx(Guid::from_u128(number))
}

fn parent(id: ImageId, path: &str) -> NewParent {
    let paths = ParentPaths { relative: Some(format!(".\\{path}")), absolute: Some(format!("D:\\VMs\\{path}")) };
    NewParent { id, paths, timestamp: 77 }
}

fn create(disk: &SimDisk, parent: &NewParent) {
    let storage = disk.file("child");
    match parent.id {
        ImageId::Vhd(_) => {
            let create = VhdCreate::new(64 << 10).kind(DiskKind::Differencing).block_size(8192).parent(parent.clone());
            Vhd::create(storage, &create).unwrap().close().unwrap();
        }
        ImageId::Vhdx(_) => {
            let create = VhdxCreate::new(2 << 20).kind(DiskKind::Differencing).block_size(1 << 20);
            Vhdx::create(storage, &create.parent(parent.clone())).unwrap().close().unwrap();
        }
    }
}

fn open(disk: &SimDisk, access: Access) -> Result<ParentLink, String> {
    let layer = Layer::open(disk.file("child"), access).map_err(|error| format!("{access:?}: {error}"))?;
    layer.image().parent_link().ok_or_else(|| "no link at all".to_owned())
}

/// Bug this finds: a link that is half the old one and half the new one, or gone, after a power cut; and a rerun that does
/// not finish.
fn explore(old: &NewParent, new: &NewParent) {
    let disk = SimDisk::new();
    create(&disk, old);
    disk.checkpoint();
    let before = open(&disk, Access::Read).unwrap();
    let start = disk.position();
    write(Layer::open(disk.file("child"), Access::Read).unwrap(), new).unwrap();
    let after = open(&disk, Access::Read).unwrap();
    assert_eq!(after.ids, [new.id]);
    assert_ne!(before, after);
    let end = disk.position();
    let report = disk.explore(&ExploreOptions::seeded(SEED), |state| {
        let seen = open(&state.disk(), Access::Read)?;
        if seen != before && seen != after {
            return Err(format!("neither the old link nor the new one: {seen:?}"));
        }
        if state.point() >= end && seen != after {
            return Err("the old link after the new one was promised".to_owned());
        }
        let disk = state.disk();
        let child = Layer::open(disk.file("child"), Access::Read).map_err(|error| error.to_string())?;
        write(child, new).map_err(|error| format!("the rerun: {error}"))?;
        if open(&disk, Access::Write)? == after { Ok(()) } else { Err("another link after the rerun".to_owned()) }
    });
    println!("{}: {} crash states at {} points", old.id, report.states, report.points);
    report.assert_ok();
    assert!(end > start && report.states > 20, "the workload writes something");
}

#[test]
fn a_crash_leaves_the_old_link_or_the_new_one() {
    let long = format!("{}.vhdx", "moved far away\\".repeat(40));
    for (old, new) in [("a.vhdx", "b.vhdx"), ("a.vhdx", long.as_str()), (long.as_str(), "a.vhdx")] {
        explore(&parent(vhd_id(1), old), &parent(vhd_id(2), new));
        explore(&parent(vhdx_id(1), old), &parent(vhdx_id(2), new));
    }
}

/// Bug this finds: an exploration that would not notice a link that is written without barriers.
#[test]
fn a_removed_barrier_is_noticed() {
    for (old, new) in [(vhd_id(1), vhd_id(2)), (vhdx_id(1), vhdx_id(2))] {
        let disk = SimDisk::new();
        create(&disk, &parent(old, "a"));
        disk.checkpoint();
        disk.drop_syncs("child", None);
        write(Layer::open(disk.file("child"), Access::Read).unwrap(), &parent(new, "b")).unwrap();
        let report = disk.explore(&ExploreOptions::seeded(SEED), |state| open(&state.disk(), Access::Read).map(drop));
        assert!(report.first_failure.is_some(), "{old}: no failure in {} states", report.states);
    }
}
