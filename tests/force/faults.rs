//! Merges over a file whose medium fails once.

use crate::lab::{BASE, FORMATS, LEAF, Lab, MIB, MIDDLE, assert_same, quiet, view_of};
use crate::program::say;
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::ops::{MergeOptions, merge_chain};
use vhdkit::storage::sim::{SimDisk, SimFailure, SimFault, SimOperation};
use vhdkit::storage::{Access, FileStorage, Lock, Storage};
use vhdkit::{ErrorKind, Format, Watch};

/// The chain of a lab on a medium that can be made to fail.
fn machine(lab: &Lab) -> SimDisk {
    let _quiet = quiet();
    let disk = SimDisk::new();
    for depth in [LEAF, MIDDLE, BASE] {
        let file = FileStorage::open(&lab.path(depth), Access::Read, Lock::Shared).unwrap();
        disk.import(&lab.name(depth), &file).unwrap();
    }
    disk
}

fn open(lab: &Lab, disk: &SimDisk, first: usize) -> Chain {
    let layers = (first..=BASE).map(|depth| {
        let file: Arc<dyn Storage> = disk.file(&lab.name(depth));
        Layer::open(file, Access::Read).expect("it opens").named(lab.path(depth))
    });
    Chain::from_layers(layers.collect()).expect("the chain fits")
}

#[track_caller]
fn assert_shows(lab: &Lab, disk: &SimDisk, depth: usize, when: &str) {
    let wanted = view_of(lab.format, LEAF);
    let mut bytes = vec![0xEE; wanted.len()];
    open(lab, disk, depth).read_at(&mut bytes, 0).expect("it reads");
    assert_same(&bytes, wanted, when);
}

/// Merges everything into the base; `fault` is met only once the chain is open.
fn merge(lab: &Lab, disk: &SimDisk, fault: Option<SimFault>) -> vhdkit::Result<()> {
    let options = MergeOptions::depth(2).jobs(1).checkpoint_every(MIB);
    let mut chain = open(lab, disk, LEAF);
    fault.into_iter().for_each(|fault| disk.inject(fault));
    merge_chain(&mut chain, &options, &Watch::none()).and_then(|_| chain.close())
}

/// Merges with one failure; answers whether it came before the end.
fn fails_once(format: Format, operation: SimOperation, skip: u64) -> bool {
    let lab = Lab::new(format);
    let disk = machine(&lab);
    let fault = SimFault::nth(skip, SimFailure::Io).of(operation).on(&lab.name(BASE));
    let when = format!("{format}: {operation:?} {skip}");
    let Err(error) = merge(&lab, &disk, Some(fault)) else { return false };
    assert_eq!(error.kind(), ErrorKind::Io, "{when}: {error}");
    assert_eq!(disk.changes_after_failure(), 0, "{when}: it wrote on");
    disk.clear_faults();
    assert_shows(&lab, &disk, LEAF, &when);
    merge(&lab, &disk, None).unwrap_or_else(|error| panic!("{when}: the rerun failed: {error}"));
    assert_shows(&lab, &disk, LEAF, &when);
    assert_shows(&lab, &disk, BASE, &when);
    true
}

#[test]
fn a_merge_over_a_failing_file_stops_and_a_rerun_finishes() {
    for format in FORMATS {
        for operation in [SimOperation::Read, SimOperation::Write, SimOperation::Sync] {
            let failed = (0..6).filter(|&power| fails_once(format, operation, (1 << power) - 1)).count();
            say(format_args!("{format}: {failed} merges stopped by a failed {operation:?}"));
            assert!(failed > 2, "{format}: no {operation:?} of a merge failed");
        }
    }
}
