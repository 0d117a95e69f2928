//! Damage that is mended, damage that is mended when its price is accepted, and power cuts in between.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

#[cfg(feature = "sim")]
mod crash;
mod real;

use super::*;
use crate::finding::Severity;
use crate::link::DiskKind;
use crate::map::{BlockSink, Content, Source, Want};
use crate::mend::Edit;
use crate::storage::MemoryStorage;
use crate::units::{KIB, MIB};
use crate::vhdx::VhdxCreate;
use crate::vhdx::check::tests::{check, created, sample, set};
use crate::vhdx::image::tests::disk_hash;
use proptest::prelude::*;

const FULL: u64 = 6;
const PARTIAL: u64 = 7;
/// All that may be allowed together.
const ALL: &[RepairKind] = &[
    RepairKind::UnmapLostBlocks,
    RepairKind::ZeroExtend,
    RepairKind::DropLog,
    RepairKind::UnmapSharedBlocks,
    RepairKind::PartialToParent,
];

fn plan(storage: &Arc<MemoryStorage>, allow: &[RepairKind]) -> Result<Vec<Step>> {
    let before = storage.clone();
    let bytes = before.len().unwrap();
    let steps = Vhdx::plan_repair(before, allow)?;
    assert_eq!(storage.len().unwrap(), bytes, "a plan writes nothing");
    for step in &steps {
        assert_eq!(step.edits.last(), Some(&Edit::Sync), "{}", step.what);
        assert!(step.kind.is_safe() || allow.contains(&step.kind));
        assert!(step.kind.is_safe() <= step.loses.is_empty());
    }
    Ok(steps)
}

fn apply(storage: &dyn Storage, steps: &[Step]) {
    for edit in steps.iter().flat_map(|step| &step.edits) {
        match edit {
            Edit::Write { at, bytes } => storage.write_all_at(bytes, at.get()).unwrap(),
            Edit::Zero(range) => storage.zero_range(range.clone()).unwrap(),
            Edit::SetLen(len) => storage.set_len(*len).unwrap(),
            Edit::Sync => storage.sync().unwrap(),
        }
    }
}

fn open(storage: Arc<dyn Storage>) -> Vhdx {
    Vhdx::open(storage, Access::Read, &mut Findings::new()).unwrap()
}

fn kinds(steps: &[Step]) -> Vec<RepairKind> {
    steps.iter().map(|step| step.kind).collect()
}

/// Starts and ends of what `step` loses.
fn losses(step: &Step) -> Vec<(u64, u64)> {
    step.loses.iter().map(|range| (range.start, range.end)).collect()
}

/// What every 4 KiB of the disk holds: its first byte, or how it is absent, or that it cannot be read.
fn shown(image: &Vhdx) -> Vec<String> {
    let look = |at: u64| match image.extent_at(at, 4096) {
        Err(_) => "lost".to_owned(),
        Ok(extent) => match extent.source {
            Source::Zero => "0".to_owned(),
            Source::Absent => if image.kind() == DiskKind::Differencing { "parent" } else { "0" }.to_owned(),
            Source::Data(place) => {
                let mut byte = [0];
                image.storage().read_exact_at(&mut byte, place.get()).unwrap();
                byte[0].to_string()
            }
        },
    };
    (0..image.virtual_size()).step_by(4096).map(look).collect()
}

/// Plans and carries out; the parts that are not in the steps' losses show what they showed. The steps come back.
fn mend(storage: &Arc<MemoryStorage>, allow: &[RepairKind]) -> Vec<Step> {
    let image = open(storage.clone());
    let (before, old) = (shown(&image), *image.headers.current());
    drop(image);
    let steps = plan(storage, allow).unwrap();
    apply(&**storage, &steps);
    let image = open(storage.clone());
    let new = *image.headers.current();
    let lossy = steps.iter().any(|step| !step.kind.is_safe());
    assert_eq!(new.file_write_guid != old.file_write_guid, !steps.is_empty());
    assert_eq!(new.data_write_guid != old.data_write_guid, lossy);
    let lost = |at: u64| steps.iter().flat_map(|step| &step.loses).any(|range| range.contains(&at));
    for (at, (before, after)) in (0u64..).step_by(4096).zip(before.iter().zip(shown(&image))) {
        if !lost(at) && !lost(at + 4095) {
            assert_eq!(*before, after, "at {at:#x}");
        }
    }
    let again = plan(storage, allow).unwrap();
    assert!(again.is_empty(), "{again:?}");
    let (_, left) = check(storage);
    assert!(!left.iter().any(|one| one.4), "{left:?}");
    steps
}

#[test]
fn image_in_order_is_left_alone() {
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        assert!(mend(&sample(kind), ALL).is_empty());
    }
}

#[test]
fn safe_repairs_are_all_made_and_change_nothing_a_reader_sees() {
    let storage = sample(DiskKind::Differencing);
    storage.write_all_at(&[0; 4], 128 * KIB).unwrap();
    storage.write_all_at(&[0; 4], 192 * KIB).unwrap();
    for (index, raw) in [(4, 9 * MIB), (5, 9 * MIB + 2), (6, 5 * MIB + 3), (8, 77), (4096, 10 * MIB), (9000, FULL)] {
        set(&*storage, index, raw);
    }
    storage.set_len(10 * MIB + 5).unwrap();
    let steps = mend(&storage, &[]);
    use RepairKind as K;
    assert_eq!(kinds(&steps), [K::Header, K::RegionTable, K::BlockOffsets, K::LeakedSpace]);
    assert_eq!(check(&storage).1, []);
    assert_eq!(storage.len().unwrap(), 8 * MIB);
    let bats: Vec<u8> = storage.to_bytes().unwrap()[3 * MIB as usize..][..80].to_vec();
    let states: Vec<u8> = bats.chunks(8).map(|entry| entry[0]).collect();
    assert_eq!(states, [6, 6, 6, 6, 0, 2, 3, 0, 0, 0]);
}

#[test]
fn both_region_table_copies_end_up_as_the_good_one() {
    for bad in REGION_TABLE_AT {
        let storage = sample(DiskKind::Dynamic);
        let before = storage.to_bytes().unwrap();
        storage.write_all_at(&[7; 100], bad).unwrap();
        assert_eq!(kinds(&mend(&storage, &[])), [RepairKind::RegionTable]);
        let after = storage.to_bytes().unwrap();
        let tables = 192 << 10..320 << 10;
        assert!(before[tables.clone()] == after[tables]);
    }
}

/// Bug this finds: a file that ends inside a copy of the region table called unreadable, as if its medium had failed.
#[test]
fn a_file_that_ends_in_its_first_mebibytes_is_damaged_wherever_it_ends() {
    let whole = sample(DiskKind::Dynamic).to_bytes().unwrap();
    for end in (0..3 * MIB).step_by(4096).flat_map(|end| [end, end + 2432]) {
        let storage = Arc::new(MemoryStorage::from_bytes(&whole[..end as usize]));
        match plan(&storage, ALL) {
            Err(error) => assert!(error.problem().is_some(), "cut at {end:#x}: {error:?}"),
            Ok(steps) => {
                assert!(end > 2 * MIB && steps.is_empty(), "cut at {end:#x}: {steps:?}");
                assert_ne!(check(&storage).1, [], "the table is missing");
            }
        }
    }
}

#[test]
fn file_gets_the_end_of_its_last_block_back() {
    let storage = created(&VhdxCreate::new(8 * MIB - 4096).block_size(1 << 20));
    set(&*storage, 7, 4 * MIB + FULL);
    storage.set_len(5 * MIB - 4096).unwrap();
    assert_eq!(kinds(&mend(&storage, &[])), [RepairKind::FileLength]);
    assert_eq!((storage.len().unwrap(), check(&storage).1), (5 * MIB, vec![]));
    // The log's own space, with nothing in it, and the end of the table's region likewise.
    let storage = created(&VhdxCreate::new(MIB).block_size(1 << 20));
    storage.set_len(4 * MIB - 4096).unwrap();
    assert_eq!(kinds(&mend(&storage, &[])), [RepairKind::FileLength]);
    assert_eq!((storage.len().unwrap(), check(&storage).1), (4 * MIB, vec![]));
}

#[test]
fn lost_blocks_are_left_alone_until_their_price_is_accepted() {
    let damaged = |kind| {
        let storage = sample(kind);
        set(&*storage, 1, 100 * MIB + FULL);
        storage.set_len(8 * MIB - 8192).unwrap();
        storage
    };
    for kind in [DiskKind::Dynamic, DiskKind::Differencing] {
        assert!(mend(&damaged(kind), &[]).is_empty(), "making the file longer would show zeros for lost bytes");

        let storage = damaged(kind);
        let steps = mend(&storage, &[RepairKind::UnmapLostBlocks]);
        assert_eq!(kinds(&steps), [RepairKind::UnmapLostBlocks, RepairKind::LeakedSpace]);
        assert_eq!(steps[0].loses, [MIB..2 * MIB, 3 * MIB..4 * MIB]);
        let below = if kind == DiskKind::Differencing { "parent" } else { "0" };
        let image = open(storage);
        assert!(shown(&image)[256..512].iter().all(|one| one == below));
        assert!(shown(&image)[768..1024].iter().all(|one| one == below));

        let storage = damaged(kind);
        let steps = mend(&storage, &[RepairKind::ZeroExtend]);
        assert_eq!(kinds(&steps), [RepairKind::ZeroExtend]);
        assert_eq!(steps[0].loses, [MIB..2 * MIB, 4 * MIB - 8192..4 * MIB]);
        let image = open(storage.clone());
        assert!(shown(&image)[256..512].iter().all(|one| one == "0"));
        assert_eq!(shown(&image)[1020..1024], ["4", "4", "0", "0"]);
        assert_eq!(storage.len().unwrap(), 8 * MIB);
    }
}

#[test]
fn fixed_disk_gets_its_length_back() {
    let storage = sample(DiskKind::Fixed);
    storage.set_len(10 * MIB).unwrap();
    assert!(mend(&storage, &[]).is_empty());
    let steps = mend(&storage, &[RepairKind::ZeroExtend]);
    assert_eq!(kinds(&steps), [RepairKind::ZeroExtend]);
    assert_eq!(losses(&steps[0]), [(6 * MIB, 8 * MIB)]);
    assert_eq!((storage.len().unwrap(), check(&storage).1), (12 * MIB, vec![]));
}

#[test]
fn first_owner_of_shared_space_keeps_it() {
    let storage = sample(DiskKind::Dynamic);
    for (index, raw) in [(4, 5 * MIB + FULL), (5, 2 * MIB + FULL), (6, 5 * MIB + FULL)] {
        set(&*storage, index, raw);
    }
    assert!(mend(&storage, &[]).is_empty());
    let steps = mend(&storage, &[RepairKind::UnmapSharedBlocks]);
    assert_eq!(kinds(&steps), [RepairKind::UnmapSharedBlocks]);
    assert_eq!(losses(&steps[0]), [(4 * MIB, 7 * MIB)]);
    assert_eq!(shown(&open(storage))[256], "2");
}

/// Blocks 0 and 5 both lie at 9 MiB, where the file, cut off at 4 MiB, has no owners to compare.
#[test]
fn blocks_that_share_space_past_the_end_do_not_share_it_after_the_end_came_back() {
    let storage = sample(DiskKind::Fixed);
    set(&*storage, 0, 9 * MIB + FULL);
    storage.set_len(4 * MIB).unwrap();
    let steps = mend(&storage, &[RepairKind::ZeroExtend, RepairKind::UnmapSharedBlocks]);
    assert_eq!(kinds(&steps), [RepairKind::ZeroExtend, RepairKind::UnmapSharedBlocks]);
    assert_eq!((losses(&steps[0]), losses(&steps[1])), (vec![(0, 8 * MIB)], vec![(5 * MIB, 6 * MIB)]));
    assert_eq!(storage.len().unwrap(), 12 * MIB);
}

#[test]
fn blocks_without_a_sector_bitmap_show_what_was_chosen() {
    let damaged = || {
        let storage = sample(DiskKind::Differencing);
        set(&*storage, 1, 5 * MIB + PARTIAL);
        set(&*storage, 3, 7 * MIB + PARTIAL);
        storage
    };
    assert!(mend(&damaged(), &[]).is_empty());
    for (kind, expected) in [(RepairKind::PartialToParent, "parent"), (RepairKind::PartialToData, "4")] {
        let storage = damaged();
        let steps = mend(&storage, &[kind]);
        assert_eq!(steps[0].kind, kind);
        assert_eq!(steps[0].loses, [MIB..2 * MIB, 3 * MIB..4 * MIB]);
        assert_eq!(shown(&open(storage))[800], expected);
    }
    let both = [RepairKind::PartialToData, RepairKind::PartialToParent];
    // The last of them lay at the end of the file, which nothing owns then.
    assert_eq!(kinds(&mend(&damaged(), &both)), [RepairKind::PartialToParent, RepairKind::LeakedSpace]);
}

#[test]
fn lost_sector_bitmap_takes_its_partial_blocks_with_it() {
    for (allow, at) in [
        (RepairKind::UnmapLostBlocks, 90),
        (RepairKind::ZeroExtend, 90),
        (RepairKind::ZeroExtend, 8),
        (RepairKind::UnmapSharedBlocks, 4),
    ] {
        let storage = sample(DiskKind::Differencing);
        set(&*storage, 1, 5 * MIB + PARTIAL);
        set(&*storage, 4096, at * MIB + FULL);
        storage.set_len(8 * MIB + 4096).unwrap();
        let steps = mend(&storage, &[allow]);
        assert_eq!((steps[0].kind, losses(&steps[0])), (allow, vec![(MIB, 2 * MIB)]));
        let image = open(storage);
        assert_eq!((&*shown(&image)[0], &*shown(&image)[300]), ("1", "parent"));
    }
}

#[test]
fn log_without_a_sequence_is_given_up_only_when_allowed() {
    let storage = sample(DiskKind::Dynamic);
    let mut pair = HeaderPair::read(&*storage, &mut Findings::new()).unwrap();
    pair.update(&*storage, |header| header.log_guid = Guid::from_u128(1)).unwrap();
    let old = *pair.current();
    let error = plan(&storage, &[]).unwrap_err();
    assert_eq!(error.problem().unwrap().structure, Structure::VhdxLog);
    assert!(error.hint().unwrap().contains("drop-log"));
    let steps = plan(&storage, &[RepairKind::DropLog]).unwrap();
    assert_eq!(kinds(&steps), [RepairKind::DropLog]);
    assert_eq!(losses(&steps[0]), [(0, 8 * MIB)]);
    apply(&*storage, &steps);
    let image = open(storage.clone());
    assert_ne!(image.headers.current().data_write_guid, old.data_write_guid);
    assert_eq!(check(&storage).1, []);
}

#[test]
fn headers_that_cannot_be_told_apart_are_not_touched() {
    let storage = sample(DiskKind::Dynamic);
    let mut pair = HeaderPair::read(&*storage, &mut Findings::new()).unwrap();
    pair.update_once(&*storage, |_| ()).unwrap();
    let mut other = *pair.current();
    other.data_write_guid = Guid::from_u128(3);
    let [first, second] = crate::vhdx::raw::HEADER_AT;
    storage.write_all_at(&pair.current().encode(), first).unwrap();
    storage.write_all_at(&other.encode(), second).unwrap();
    assert_eq!(plan(&storage, ALL).unwrap_err().kind(), ErrorKind::Refused);
}

/// A file whose writer was cut off: blocks 1 and 3 are published, the table's pages are only in the log.
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
    let copy = MemoryStorage::from_bytes(&storage.to_bytes().unwrap());
    copy.write_all_at(&[0; 4096], 3 * MIB).unwrap();
    (Arc::new(copy), hash)
}

#[test]
fn log_is_replayed() {
    let (storage, hash) = dirty();
    let steps = mend(&storage, &[]);
    assert_eq!(steps[0].kind, RepairKind::LogReplay);
    let image = open(storage);
    assert!(!image.log_was_dirty());
    assert_eq!(disk_hash(&image).unwrap(), hash);
}

#[test]
fn log_that_relies_on_a_longer_file_is_replayed_when_zeros_are_allowed() {
    let (storage, _) = dirty();
    let header = *open(storage.clone()).headers.current();
    let area = LogArea { offset: header.log_offset, length: u64::from(header.log_length), guid: header.log_guid };
    let flushed = replay::flushed_length(&*storage, &area).unwrap().unwrap();
    assert!(flushed > 4 * MIB, "the test cuts a block: {flushed:#x}");
    storage.set_len(flushed - MIB).unwrap();
    let error = plan(&storage, &[]).unwrap_err();
    assert_eq!(error.problem().unwrap().fault, Fault::Truncated);
    assert!(error.hint().unwrap().contains("zero-extend"));
    let steps = plan(&storage, &[RepairKind::ZeroExtend]).unwrap();
    assert_eq!(kinds(&steps)[..2], [RepairKind::ZeroExtend, RepairKind::LogReplay]);
    assert!(!steps[0].loses.is_empty());
    apply(&*storage, &steps);
    let lost = shown(&open(storage.clone()));
    assert!(!lost.contains(&"lost".to_owned()));
    assert!(check(&storage).1.iter().all(|one| one.0 == Severity::Warning));
}

/// Entries that break every rule, on a disk of 8 MiB.
fn nasty() -> impl Strategy<Value = u64> {
    let place = prop_oneof![6 => 0u64..12, 1 => Just(90u64), 1 => Just((1 << 44) - 1)];
    (place, 0u64..8, prop_oneof![9 => Just(0u64), 1 => Just(8)]).prop_map(|(at, state, bits)| at << 20 | state | bits)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn whatever_is_mended_stays_mended_and_the_rest_shows_what_it_showed(
        kind in prop_oneof![Just(DiskKind::Fixed), Just(DiskKind::Dynamic), Just(DiskKind::Differencing)],
        entries in prop::collection::vec((prop_oneof![9 => 0u64..9, 2 => Just(4096u64), 1 => Just(5000)], nasty()), 0..8),
        len in prop_oneof![Just(None), (0u64..9 * MIB).prop_map(Some)],
        allow in prop::sample::subsequence(ALL, 0..=ALL.len()),
    ) {
        let storage = sample(kind);
        for (index, raw) in entries {
            set(&*storage, index, raw);
        }
        if let Some(len) = len {
            storage.set_len(4 * MIB + len).unwrap();
        }
        let whole = mend(&storage, &allow);
        prop_assert!(whole.len() <= 7);
        let (_, left) = check(&storage);
        if allow.len() == ALL.len() {
            let worse = left.iter().filter(|one| {
                let unmended = matches!(one.2, Fault::Range | Fault::Overlap | Fault::Duplicate);
                one.0 == Severity::Error && one.1 == Structure::VhdxBat && unmended
            });
            // What is no entry at all, and zero places of present blocks, nobody can mend.
            let zero_place = |raw: u64| matches!(raw & 7, 6 | 7) && raw >> 20 == 0;
            let mut raw = [0; 8];
            for one in worse {
                storage.read_exact_at(&mut raw, one.3.unwrap()).unwrap();
                prop_assert!(zero_place(u64::from_le_bytes(raw)), "{:?}", one);
            }
        }
    }
}
