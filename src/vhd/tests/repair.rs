//! Plans of repairs, carried out in memory.

use super::check::{check, check_storage, edit_footers, entry, reseal, sample, set_entry};
use super::{contents, create, memory, new_parent, open, read};
use crate::error::ErrorKind;
use crate::link::DiskKind;
use crate::map::{BlockMap, Source};
use crate::mend::{Edit, RepairKind, Step};
use crate::problem::{Fault, Structure};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::units::MIB;
use crate::vhd::{Vhd, VhdCreate};
use std::ops::Range;
use std::sync::Arc;

const BLOCK: u64 = 64 << 10;

fn shared(storage: &Arc<MemoryStorage>) -> Arc<dyn Storage> {
    Arc::<MemoryStorage>::clone(storage)
}

fn plan(storage: &Arc<MemoryStorage>, allow: &[RepairKind]) -> Vec<Step> {
    Vhd::plan_repair(shared(storage), allow).unwrap()
}

fn carry_out(storage: &MemoryStorage, steps: &[Step]) {
    for edit in steps.iter().flat_map(|step| &step.edits) {
        match edit {
            Edit::Write { at, bytes } => storage.write_all_at(bytes, at.get()).unwrap(),
            Edit::Zero(range) => storage.zero_range(range.clone()).unwrap(),
            Edit::SetLen(len) => storage.set_len(*len).unwrap(),
            Edit::Sync => {}
        }
    }
}

fn kinds(steps: &[Step]) -> Vec<RepairKind> {
    steps.iter().map(|step| step.kind).collect()
}

/// Repairs `bytes`, and holds the result to what every safe repair promises: the same disk, nothing repairable left,
/// nothing to do a second time.
fn repaired(bytes: &[u8], expected: &[RepairKind], name: &str) -> Vec<u8> {
    let storage = memory(bytes);
    let before = contents(&[&open(&storage, Access::Read).0.unwrap()]);
    let steps = plan(&storage, &[]);
    assert_eq!(storage.to_bytes().unwrap(), bytes, "{name}: planning writes nothing");
    assert_eq!(kinds(&steps), expected, "{name}");
    for step in &steps {
        assert!(step.kind.is_safe() && step.loses.is_empty(), "{name}: {step:?}");
        assert_eq!(step.edits.last(), Some(&Edit::Sync), "{name}");
    }
    carry_out(&storage, &steps);
    let (vhd, findings) = open(&storage, Access::Write);
    assert!(contents(&[&vhd.unwrap()]) == before, "{name}: the disk changed");
    assert!(findings.list().iter().all(|finding| !finding.repairable), "{name}: {findings:?}");
    let (_, findings) = check_storage(shared(&storage), true);
    assert!(findings.list().iter().all(|finding| !finding.repairable), "{name}: {findings:?}");
    assert_eq!(plan(&storage, &[]), [], "{name}: a second time");
    storage.to_bytes().unwrap()
}

fn without_tail(good: &[u8]) -> Vec<u8> {
    good[..good.len() - 512].to_vec()
}

#[test]
fn footers_are_restored_from_each_other() {
    use RepairKind as K;
    for options in [VhdCreate::new(MIB), VhdCreate::new(MIB).parent(new_parent())] {
        let good = sample(options);
        assert_eq!(repaired(&good, &[], "good"), good);
        assert_eq!(repaired(&without_tail(&good), &[K::TailFooter], "cut"), good);
        let mut bytes = good.clone();
        let tail = bytes.len() - 512;
        bytes[tail + 100] ^= 1;
        assert_eq!(repaired(&bytes, &[K::TailFooter], "bad tail"), good);
        bytes[tail..].fill(0xC7);
        assert_eq!(repaired(&bytes, &[K::TailFooter], "in use when its host stopped"), good);
        let mut bytes = good.clone();
        bytes[9] ^= 1;
        assert_eq!(repaired(&bytes, &[K::FooterCopy], "bad copy"), good);
        let mut bytes = good.clone();
        bytes[68..84].fill(3);
        reseal(&mut bytes);
        assert_eq!(repaired(&bytes, &[K::FooterCopy], "another copy"), good, "the footer at the end decides");
        // A stray write behind the last block, the footer lost with it.
        let mut bytes = without_tail(&good);
        bytes.extend_from_slice(&[9; 5000]);
        assert_eq!(repaired(&bytes, &[K::TailFooter], "something else at the end"), good);
        let mut bytes = without_tail(&good);
        bytes.resize(bytes.len() + 300_000, 0);
        bytes.extend_from_slice(&good[..512]);
        assert_eq!(repaired(&bytes, &[K::LeakedSpace], "leaked at the end"), good);
    }
}

#[test]
fn a_tail_that_does_not_fit_is_replaced_by_the_copy() {
    let good = sample(VhdCreate::new(MIB));
    let mut bytes = good.clone();
    let tail = bytes.len() - 512;
    bytes[tail + 48..tail + 56].copy_from_slice(&(2 * MIB).to_be_bytes());
    reseal(&mut bytes);
    assert_eq!(repaired(&bytes, &[RepairKind::TailFooter], "the table is too short for it"), good);
}

#[test]
fn fields_with_one_right_value_get_it() {
    use RepairKind as K;
    let good = sample(VhdCreate::new(MIB));
    let cases: [(&str, usize, &[u8], &[K]); 3] = [
        ("features", 8, &[0, 0, 0, 0], &[K::ReservedFields]),
        ("geometry", 56, &[0, 1, 1, 1], &[K::Geometry]),
        ("temporary disk", 8, &[0, 0, 0, 3], &[]),
    ];
    for (name, at, field, expected) in cases {
        let mut bytes = good.clone();
        edit_footers(&mut bytes, at, field);
        let after = repaired(&bytes, expected, name);
        assert_eq!(after == good, !expected.is_empty(), "{name}");
    }
    let mut bytes = good.clone();
    bytes[512 + 8..512 + 16].copy_from_slice(&0xFFFF_FFFFu64.to_be_bytes());
    reseal(&mut bytes);
    assert_eq!(repaired(&bytes, &[K::ReservedFields], "header"), good);
    let mut all = good.clone();
    edit_footers(&mut all, 8, &[0; 4]);
    edit_footers(&mut all, 56, &[0, 1, 1, 1]);
    let cut = without_tail(&all);
    assert_eq!(repaired(&cut, &[K::TailFooter, K::ReservedFields, K::Geometry], "all at once"), good);
}

/// What might mean something to somebody, or what other readers go by, is left alone.
#[test]
fn what_is_not_ours_to_decide_stays() {
    let good = sample(VhdCreate::new(MIB));
    let cases: [(&str, usize, &[u8]); 6] = [
        ("unknown features", 8, &[0, 0, 0, 6]),
        ("a null id", 68, &[0; 16]),
        ("reserved bytes", 200, &[1]),
        ("another saved state", 84, &[2]),
        ("a geometry that QEMU takes the size from", 28, b"vpc \0\x01\0\0"),
        ("no geometry, on purpose", 56, &[0xFF, 0xFF, 16, 255]),
    ];
    for (name, at, field) in cases {
        let mut bytes = good.clone();
        edit_footers(&mut bytes, at, field);
        assert_eq!(repaired_if_open(&bytes, name), bytes, "{name}");
    }
    let mut saved = good.clone();
    edit_footers(&mut saved, 84, &[1]);
    edit_footers(&mut saved, 56, &[0, 1, 1, 1]);
    assert_eq!(repaired_if_open(&saved, "a saved state"), saved);
    let mut cut = without_tail(&good);
    cut[84] = 1;
    let mut whole = cut.clone();
    whole.extend_from_slice(&cut[..512]);
    reseal(&mut whole);
    let mended = repaired_if_open(&without_tail(&whole), "a saved state without a tail");
    assert_eq!(mended, whole, "the footer is restored, the saved state in it kept");
}

fn repaired_if_open(bytes: &[u8], name: &str) -> Vec<u8> {
    let storage = memory(bytes);
    let steps = plan(&storage, &[]);
    carry_out(&storage, &steps);
    let (_, findings) = check_storage(shared(&storage), false);
    assert!(findings.list().iter().all(|finding| !finding.repairable), "{name}: {findings:?}");
    storage.to_bytes().unwrap()
}

#[test]
fn fixed_disks_are_repaired_as_far_as_one_footer_goes() {
    use RepairKind as K;
    let (storage, vhd) = create(&VhdCreate::new(MIB).kind(DiskKind::Fixed));
    vhd.storage().write_all_at(&[7; 4096], MIB - 4096).unwrap();
    drop(vhd);
    let good = storage.to_bytes().unwrap();
    let mut grown = good.clone();
    grown.resize(good.len() + 100_000, 0);
    assert_eq!(repaired(&grown, &[K::TailFooter], "being grown"), good);
    let mut bytes = good.clone();
    let tail = bytes.len() - 512;
    bytes[tail + 16..tail + 24].copy_from_slice(&0xFFFF_FFFFu64.to_be_bytes());
    bytes[tail + 56..tail + 60].copy_from_slice(&[0, 1, 1, 1]);
    let sum =
        crate::vhd::raw::checksum(&bytes[tail..], u32::from_be_bytes(bytes[tail + 64..tail + 68].try_into().unwrap()));
    bytes[tail + 64..tail + 68].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(repaired(&bytes, &[K::ReservedFields, K::Geometry], "fields"), good);
    let lost = memory(&good[..good.len() - 512]);
    assert_eq!(Vhd::plan_repair(shared(&lost), &K::ALL).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// Which sectors of the disk read as they did, which as zeros, which not at all.
fn compare(bytes: &[u8], good: &[u8]) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
    let (good, now) = (memory(good), memory(bytes));
    let (good, now) = (open(&good, Access::Read).0.unwrap(), open(&now, Access::Read).0.unwrap());
    let (mut zeros, mut errors): (Vec<Range<u64>>, Vec<Range<u64>>) = (Vec::new(), Vec::new());
    for at in (0..good.virtual_size()).step_by(512) {
        let range = at..at + 512;
        let expected = read(&[&good], range.clone()).unwrap();
        let list = match read(&[&now], range.clone()) {
            Ok(bytes) if bytes == expected => continue,
            Ok(bytes) => {
                assert_eq!(bytes, [0; 512], "sector at {at:#x} shows something else");
                &mut zeros
            }
            Err(_) => &mut errors,
        };
        match list.last_mut() {
            Some(last) if last.end == at => last.end = range.end,
            _ => list.push(range),
        }
    }
    (zeros, errors)
}

fn after(bytes: &[u8], allow: &[RepairKind]) -> (Vec<Step>, Vec<u8>) {
    let storage = memory(bytes);
    let steps = plan(&storage, allow);
    carry_out(&storage, &steps);
    (steps, storage.to_bytes().unwrap())
}

#[test]
fn blocks_outside_of_the_file_are_given_up_or_made_up_only_when_told() {
    use RepairKind as K;
    let good = sample(VhdCreate::new(MIB));
    let block = |block: u64| block * BLOCK..(block + 1) * BLOCK;
    let cut_at = entry(&good, 15) as usize * 512 + 512 + 10_240;
    let cut = good[..cut_at + 100].to_vec();
    let mut past = good.clone();
    set_entry(&mut past, 3, 0x0010_0000);
    let mut over_header = good.clone();
    set_entry(&mut over_header, 3, 1);
    let mut over_tail = good[..cut_at].to_vec();
    over_tail.extend_from_slice(&good[good.len() - 512..]);
    let kept_of_cut = 15 * BLOCK + 10_240..16 * BLOCK;
    // What cannot be read before; what is lost by giving up; what is lost by extending (`None`: it cannot be).
    let cases = [
        ("cut", &cut, block(15), block(15), Some(kept_of_cut.clone())),
        ("past the end", &past, block(3), block(3), Some(block(3))),
        ("over the header", &over_header, block(3), block(3), None),
        ("over the footer", &over_tail, block(15), block(15), Some(kept_of_cut)),
    ];
    for (name, bytes, unread, given_up, extended) in cases {
        let (steps, left) = after(bytes, &[]);
        assert_eq!((steps, &left), (vec![], bytes), "{name}: nothing without being told");
        assert_eq!(compare(bytes, &good), (vec![], vec![unread.clone()]), "{name}");

        let (steps, left) = after(bytes, &[K::UnmapLostBlocks]);
        assert_eq!(steps[0].kind, K::UnmapLostBlocks, "{name}");
        assert_eq!(steps[0].loses, vec![given_up.clone()], "{name}");
        assert!(steps[1..].iter().all(|step| step.loses.is_empty()), "{name}");
        assert_eq!(compare(&left, &good), (vec![given_up], vec![]), "{name}");
        assert!(
            check(&left, false).1.list().iter().all(|f| !f.repairable && f.problem.fault != Fault::Range),
            "{name}"
        );
        assert_eq!(after(&left, &[K::UnmapLostBlocks]), (vec![], left), "{name}: a second time");

        let (steps, left) = after(bytes, &[K::ZeroExtend]);
        let Some(extended) = extended else {
            assert_eq!((steps, &left), (vec![], bytes), "{name}: no longer file helps");
            continue;
        };
        assert_eq!((steps[0].kind, &steps[0].loses[..]), (K::ZeroExtend, &[extended][..]), "{name}");
        let (zeros, errors) = compare_lost(&left, &good, &steps[0].loses);
        assert!(zeros && errors, "{name}");
        let (_, findings) = check(&left, false);
        let wrong = |f: &&crate::finding::Finding| f.problem.structure == Structure::VhdBat || f.repairable;
        assert_eq!(findings.list().iter().filter(wrong).count(), 0, "{name}: {findings:?}");
        assert_eq!(after(&left, &[K::ZeroExtend]).0, [], "{name}: a second time");
    }
}

/// Whether all outside of `lost` reads as in `good`, and whether everything can be read.
fn compare_lost(bytes: &[u8], good: &[u8], lost: &[Range<u64>]) -> (bool, bool) {
    let (good, now) = (memory(good), memory(bytes));
    let now = read(&[&open(&now, Access::Read).0.unwrap()], 0..MIB);
    let good = contents(&[&open(&good, Access::Read).0.unwrap()]);
    let Ok(now) = now else { return (false, false) };
    let same = (0..MIB).filter(|at| !lost.iter().any(|range| range.contains(at)));
    (same.into_iter().all(|at| now[at as usize] == good[at as usize]), true)
}

#[test]
fn both_permissions_extend_what_is_partly_there_and_give_up_the_rest() {
    let good = sample(VhdCreate::new(MIB));
    let cut_at = entry(&good, 15) as usize * 512 + 512 + 4096;
    let mut bytes = good[..cut_at].to_vec();
    set_entry(&mut bytes, 3, 0x0010_0000);
    let (steps, left) = after(&bytes, &[RepairKind::UnmapLostBlocks, RepairKind::ZeroExtend]);
    assert_eq!(kinds(&steps), [RepairKind::UnmapLostBlocks, RepairKind::ZeroExtend]);
    assert_eq!(steps[0].loses.first(), Some(&(3 * BLOCK..4 * BLOCK)));
    assert_eq!(steps[1].loses.first(), Some(&(15 * BLOCK + 4096..16 * BLOCK)));
    let expected = steps.iter().flat_map(|step| step.loses.clone()).collect::<Vec<_>>();
    assert_eq!(compare(&left, &good), (expected, vec![]));
    assert!(check(&left, false).1.list().iter().all(|finding| !finding.repairable));
}

/// Nothing in a file makes a check or a plan panic or run on, and no plan of safe repairs changes what can be read.
#[test]
fn damaged_files_are_checked_and_planned_without_a_panic() {
    use proptest::prelude::*;
    let good = sample(VhdCreate::new(MIB).parent(new_parent()));
    let spot = prop_oneof![0usize..2600, Just(good.len() - 512).prop_flat_map(|at| at..at + 512)];
    let value = prop_oneof![Just(0u8), Just(0xFF), Just(0x7F), any::<u8>()];
    let edits = proptest::collection::vec((spot, value), 1..6);
    proptest!(ProptestConfig::with_cases(128), |(edits in edits, cut in 0usize..1200, sealed: bool)| {
        let mut bytes = good.clone();
        for (at, value) in edits {
            bytes[at] = value;
        }
        if sealed {
            reseal(&mut bytes);
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(600));
        let storage = memory(&bytes);
        let (summary, _) = check(&bytes, true);
        let (opened, _) = open(&storage, Access::Read);
        prop_assert!(summary.is_err() || opened.is_ok());
        let before = opened.ok().map(|vhd| shown(&vhd));
        if let Ok(steps) = Vhd::plan_repair(shared(&storage), &[]) {
            carry_out(&storage, &steps);
            let now = open(&storage, Access::Read).0.ok().map(|vhd| shown(&vhd));
            prop_assert_eq!(now, before);
            let again = Vhd::plan_repair(shared(&storage), &[]).unwrap();
            prop_assert!(again.is_empty(), "{:?} after {:?}", again, steps);
        }
        if let Ok(steps) = Vhd::plan_repair(shared(&storage), &RepairKind::ALL) {
            let most = 8 * good.len() as u64;
            if steps.iter().flat_map(|step| &step.edits).all(|edit| !matches!(edit, Edit::Write { at, .. } if at.get() > most)) {
                carry_out(&storage, &steps);
                prop_assert!(open(&storage, Access::Read).0.is_ok());
            }
        }
    });
}

/// What each 4 KiB of the layer says: bytes, nothing, or an error.
fn shown(vhd: &Vhd) -> Vec<Result<Option<Vec<u8>>, ()>> {
    let size = vhd.virtual_size().min(2 * MIB);
    let at = |offset: u64| {
        let extent = vhd.extent_at(offset, 512.min(size - offset)).map_err(drop)?;
        let mut bytes = vec![0; extent.len as usize];
        match extent.source {
            Source::Data(from) => vhd.storage().read_exact_at(&mut bytes, from.get()).map_err(drop)?,
            Source::Zero => {}
            Source::Absent => return Ok(None),
        }
        Ok(Some(bytes))
    };
    (0..size).step_by(4096).map(at).collect()
}
