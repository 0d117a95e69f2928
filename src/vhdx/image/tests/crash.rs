//! Power cuts while a file is made, while its log is replayed, and while its headers change.

use super::{child_of_nobody, created, disk_hash};
use crate::finding::{Findings, Severity};
use crate::link::DiskKind;
use crate::map::{BlockMap, BlockSink, Content, Want};
use crate::storage::sim::{CrashState, ExploreOptions, SimDisk};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::units::MIB;
use crate::vhdx::header::HeaderPair;
use crate::vhdx::{Vhdx, VhdxCreate};
use crate::{Guid, Result};
use std::sync::Arc;

const FILE: &str = "a.vhdx";

fn explore(disk: &SimDisk, visit: impl FnMut(&CrashState<'_>) -> Result<(), String>) {
    let report = disk.explore(&ExploreOptions::seeded(1), visit);
    report.assert_ok();
    // States that were seen before do not count again.
    assert!(report.states > 5 && report.states + report.repeated > 20, "{report:?}");
}

/// Opens what a crash left, for reading; it may hold nothing worse than a warning.
fn survivor(state: &CrashState<'_>) -> Result<Vhdx, String> {
    let mut findings = Findings::new();
    let opened = Vhdx::open(state.disk().file(FILE), Access::Read, &mut findings);
    let bad = findings.list().iter().find(|finding| finding.severity > Severity::Warning);
    bad.map_or(Ok(()), |finding| Err(finding.problem.to_string()))?;
    opened.map_err(|error| error.to_string())
}

#[test]
fn half_made_file_is_no_vhdx() {
    for options in [
        VhdxCreate::new(10 * MIB),
        VhdxCreate::new(10 * MIB).kind(DiskKind::Fixed).block_size(1 << 20),
        VhdxCreate::new(10 * MIB).kind(DiskKind::Differencing).parent(child_of_nobody()),
    ] {
        let disk = SimDisk::new();
        let made = Vhdx::create(disk.file(FILE), &options).unwrap();
        let id = made.id();
        let done = disk.position();
        drop(made);
        explore(&disk, |state| {
            let exists = Vhdx::probe(&*state.disk().file(FILE)).map_err(|error| error.to_string())?;
            if !exists {
                return if state.point() < done { Ok(()) } else { Err("a finished file is gone".into()) };
            }
            let image = survivor(state)?;
            if image.id() == id && image.allocated_blocks().is_ok() { Ok(()) } else { Err("another file".into()) }
        });
    }
}

/// A file whose writer was cut off: blocks 1 and 3 are published, the table itself may still be in the log.
fn dirty() -> (Arc<MemoryStorage>, String) {
    let storage = created(&VhdxCreate::new(6 * MIB).block_size(1 << 20));
    let mut writer = Vhdx::open(storage.clone(), Access::Write, &mut Findings::new()).unwrap();
    for (block, value) in [(1, 7), (3, 9)] {
        let range = block * MIB + 4096..block * MIB + 8192;
        let reservation = writer.reserve(vec![Want { range, content: Content::Data }]).unwrap();
        for place in reservation.places() {
            writer.storage().write_all_at(&[value; 4096], place.at.get()).unwrap();
        }
        writer.storage().sync().unwrap();
        writer.publish(reservation).unwrap();
    }
    let hash = disk_hash(&writer).unwrap();
    (Arc::new(MemoryStorage::from_bytes(&storage.to_bytes().unwrap())), hash)
}

#[test]
fn replay_may_be_cut_off_anywhere() {
    let (dirty, hash) = dirty();
    let reader = Vhdx::open(dirty.clone(), Access::Read, &mut Findings::new()).unwrap();
    assert!(reader.log_was_dirty());
    let id = reader.id();
    // The pages the log has are taken out of the table, so that only a replay brings them back.
    dirty.write_all_at(&[0; 4096], 3 * MIB).unwrap();

    let disk = SimDisk::new();
    let file = disk.import(FILE, &*dirty).unwrap();
    drop(Vhdx::open(file, Access::Write, &mut Findings::new()).unwrap());
    let done = disk.position();
    explore(&disk, |state| {
        let image = survivor(state)?;
        let contents = disk_hash(&image).map_err(|error| error.to_string())?;
        if contents != hash {
            return Err("other contents".into());
        }
        if image.id() != id {
            return Err("replay is not a change that children may see".into());
        }
        if state.point() == done && image.log_was_dirty() { Err("replayed, but still dirty".into()) } else { Ok(()) }
    });
}

#[test]
fn header_is_the_old_one_or_the_new_one() {
    let disk = SimDisk::new();
    let file = disk.import(FILE, &*created(&VhdxCreate::new(MIB))).unwrap();
    let mut pair = HeaderPair::read(&*file, &mut Findings::new()).unwrap();
    let old = *pair.current();
    let id = Guid::from_u128(4);
    pair.update(&*file, |header| header.data_write_guid = id).unwrap();
    let done = disk.position();
    explore(&disk, |state| {
        let image = survivor(state)?;
        let now = image.headers.current().data_write_guid;
        let allowed = now == id || (now == old.data_write_guid && state.point() < done);
        if allowed { Ok(()) } else { Err(format!("id {now}")) }
    });
}
