//! Bug this finds: a merge that goes on from where it was interrupted and believes a checkpoint though the child was
//! written to meanwhile, so that the target keeps what the child showed before.

use crate::budget::{self, Dice, Quota};
use crate::case::Case;
use crate::chains::{self, Edit};
use crate::generate::{self, KIB};
use crate::merge::{Merge, MergeSpec};
use crate::view::Model;
use vhdkit::Format;
use vhdkit::storage::Access;
use vhdkit::storage::sim::{SimDisk, SimFailure, SimFault};

/// The merge `spec` as a user runs it again: stopped by a failure after `skip` of its operations, the machine gone down or
/// not, and its leaf then written to.
fn interrupted(spec: MergeSpec, skip: u64, edits: &[Edit], power_cut: bool) -> Option<Merge> {
    let mut merge = Merge::new(spec);
    let disk = merge.base.fork();
    disk.inject(SimFault::nth(skip, SimFailure::Io).from_then_on());
    if merge.merge(&disk).is_ok() {
        return None;
    }
    disk.clear_faults();
    let disk = if power_cut { generate::cut_off(&disk) } else { disk.fork() };
    merge.views[0] = write_to_leaf(&merge, &disk, edits);
    merge.base = disk.fork();
    Some(merge)
}

fn write_to_leaf(merge: &Merge, disk: &SimDisk, edits: &[Edit]) -> Model {
    let mut chain = chains::open(&merge.storages(disk), Access::Recover).expect("the child may still be used");
    let mut view = merge.views[0].to_bytes();
    assert!(chains::read_all(&chain) == view, "{}: the interruption changed the child", merge.spec.name);
    for edit in edits {
        chains::apply(&mut chain, &mut view, edit);
    }
    chain.close().expect("close");
    Model::of(&view)
}

/// Merges that keep a checkpoint and start at the leaf, and what is written to it.
fn workload(format: Format, round: u64) -> Option<Merge> {
    let mut dice = Dice::new(budget::seed() ^ (round << 20) ^ 0xC41D);
    let known: Vec<MergeSpec> = generate::known(format).into_iter().filter(|spec| spec.source == 1).collect();
    let spec = match known.get(round as usize) {
        Some(spec) => spec.clone(),
        None => generate::random(format, round << 8),
    };
    if spec.source != 1 {
        return None;
    }
    let vhd = format == Format::Vhd;
    let size = spec.chain.layers.last().map_or(0, |layer| layer.size);
    let mut edits = generate::edits(&mut dice, size, vhd);
    // Where the first checkpoint has been passed already: the part that a believer would skip.
    edits.push(Edit::Write { offset: 0, len: if vhd { 2 * KIB } else { 8 * KIB }, seed: 0xD1 });
    edits.push(Edit::Write { offset: size - size % 4096 - 4096, len: 4096, seed: 0xD2 });
    let skip = dice.below(if vhd { 60 } else { 90 });
    interrupted(MergeSpec { resume: true, ..spec }, skip, &edits, dice.one_in(2))
}

fn explore_all(name: &'static str, format: Format) {
    let mut quota = Quota::new(name);
    let mut round = 0;
    while round < 8 || quota.wants_more() {
        if let Some(merge) = workload(format, round) {
            let merge = merge.crashed_again(if format == Format::Vhd { 64 } else { 512 });
            merge.explore(&mut quota);
            quota.add(&merge.take_deeper());
        }
        round += 1;
        assert!(round < 1 << 20, "{name}: nothing left to explore");
    }
    quota.finish();
}

#[test]
fn a_vhd_child_that_was_written_to_is_merged_anew() {
    explore_all("VHD children written to before the rerun", Format::Vhd);
}

#[test]
fn a_vhdx_child_that_was_written_to_is_merged_anew() {
    explore_all("VHDX children written to before the rerun", Format::Vhdx);
}

/// Bug this finds: workloads that never get as far as a checkpoint, or never beyond it.
#[test]
fn interrupted_merges_leave_checkpoints_to_go_on_from() {
    for format in [Format::Vhd, Format::Vhdx] {
        let left = (0..40).filter_map(|round| workload(format, round));
        let sizes: Vec<u64> = left
            .map(|merge| vhdkit::storage::Storage::len(&*merge.base.file(crate::merge::CHECKPOINT)).expect("a length"))
            .collect();
        assert!(sizes.iter().filter(|len| **len > 0).count() > 4, "{format}: {sizes:?}");
        assert!(sizes.contains(&0), "{format}: {sizes:?}");
    }
}
