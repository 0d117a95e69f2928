//! Writing against a model: a byte array, with for a differencing image another below it.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::error::ErrorKind;
use crate::finding::Findings;
use crate::guid::Guid;
use crate::link::{DiskKind, ImageId, NewParent, ParentPaths};
use crate::map::{BlockMap, BlockSink, Content, Source, Want};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::support::{Report, SpecDisk};
use crate::units::MIB;
use crate::vhdx::bat::PayloadState;
use crate::vhdx::{Vhdx, VhdxCreate};
use proptest::prelude::*;
use std::sync::Arc;

/// A new image of `size` bytes with blocks of 1 MiB.
pub(in crate::vhdx) fn create(storage: &Arc<dyn Storage>, size: u64, kind: DiskKind, sector: u32) -> Vhdx {
    let mut options =
        VhdxCreate::new(size).kind(kind).block_size(MIB as u32).logical_sector_size(sector).physical_sector_size(4096);
    if kind == DiskKind::Differencing {
        let paths = ParentPaths { relative: Some(r".\parent.vhdx".into()), absolute: None };
        options = options.parent(NewParent { id: ImageId::Vhdx(Guid::from_u128(7)), paths, timestamp: 0 });
    }
    Vhdx::create(Arc::clone(storage), &options).unwrap()
}

pub(in crate::vhdx) fn open(storage: &Arc<dyn Storage>, access: Access) -> Vhdx {
    let mut findings = Findings::new();
    let image = Vhdx::open(Arc::clone(storage), access, &mut findings).unwrap();
    for finding in findings.list() {
        assert_eq!(finding.problem.fault, crate::problem::Fault::Dirty, "{finding:?}");
    }
    image
}

/// Every byte of the disk, absent ones from `parent`.
pub(in crate::vhdx) fn contents(image: &Vhdx, parent: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    let mut at = 0;
    while at < image.virtual_size() {
        let extent = image.extent_at(at, u64::MAX).unwrap();
        let range = at as usize..(at + extent.len) as usize;
        match extent.source {
            Source::Data(from) => image.storage().read_exact_at(&mut bytes[range], from.get()).unwrap(),
            Source::Zero => {}
            Source::Absent => {
                let there = range.start.min(parent.len())..range.end.min(parent.len());
                bytes[there.clone()].copy_from_slice(&parent[there]);
            }
        }
        at += extent.len;
    }
    bytes
}

pub(in crate::vhdx) fn data(range: std::ops::Range<u64>) -> Want {
    Want { range, content: Content::Data }
}

pub(in crate::vhdx) fn zeros(range: std::ops::Range<u64>) -> Want {
    Want { range, content: Content::Zero }
}

/// Fills the places of a reservation, each byte by its position on the disk.
pub(in crate::vhdx) fn fill(image: &Vhdx, reservation: &crate::map::Reservation, byte: impl Fn(u64) -> u8) {
    for place in reservation.places() {
        match place.content {
            Content::Zero => {
                image.storage().zero_range(place.at.get()..place.at.get() + place.len).unwrap();
            }
            Content::Data => {
                let bytes: Vec<u8> = (place.offset..place.offset + place.len).map(&byte).collect();
                image.storage().write_all_at(&bytes, place.at.get()).unwrap();
            }
        }
    }
}

/// One whole batch: reserve, fill with a pattern of `seed`, sync, publish.
pub(in crate::vhdx) fn write(image: &mut Vhdx, wants: Vec<Want>, seed: u8) {
    let room = image.space_for(&wants).unwrap();
    let before = image.storage().len().unwrap();
    let reservation = image.reserve(wants).unwrap();
    assert!(image.storage().len().unwrap() <= before + room, "grew more than foreseen");
    fill(image, &reservation, |at| pattern(at, seed));
    image.storage().sync().unwrap();
    image.publish(reservation).unwrap();
}

pub(in crate::vhdx) fn pattern(at: u64, seed: u8) -> u8 {
    (at / 512) as u8 ^ (at % 251) as u8 ^ seed | 1
}

/// What a batch makes of the model.
pub(in crate::vhdx) fn model(bytes: &mut [u8], wants: &[Want], seed: u8) {
    for want in wants {
        for at in want.range.clone() {
            bytes[at as usize] = if want.content == Content::Data { pattern(at, seed) } else { 0 };
        }
    }
}

pub(in crate::vhdx) fn memory() -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new())
}

#[derive(Clone, Debug)]
enum Act {
    Write(Vec<Want>, u8),
    Abandon(Vec<Want>),
    Flush,
    Reopen,
}

/// Sorted, disjoint wants on a disk of `sectors`, cut at block borders now and then so that whole blocks come up.
fn wants(sectors: u64, sector: u64) -> impl Strategy<Value = Vec<Want>> {
    let per_block = MIB / sector;
    let cut = prop_oneof![3 => 0..=sectors, 2 => (0..=sectors / per_block).prop_map(move |block| block * per_block)];
    prop::collection::vec((cut, any::<bool>(), any::<bool>()), 1..7).prop_map(move |mut cuts| {
        cuts.sort_unstable();
        let mut wants = Vec::new();
        for pair in cuts.windows(2) {
            let range = pair[0].0 * sector..pair[1].0 * sector;
            if !range.is_empty() && pair[0].1 {
                wants.push(Want { range, content: if pair[0].2 { Content::Data } else { Content::Zero } });
            }
        }
        wants
    })
}

fn acts(sectors: u64, sector: u64) -> impl Strategy<Value = Vec<Act>> {
    let wants = move || wants(sectors, sector);
    let act = prop_oneof![
        6 => (wants(), any::<u8>()).prop_map(|(wants, seed)| Act::Write(wants, seed)),
        1 => wants().prop_map(Act::Abandon),
        1 => Just(Act::Flush),
        1 => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 1..12)
}

fn disks() -> impl Strategy<Value = (DiskKind, u32, u64, Vec<Act>)> {
    let kind = prop_oneof![Just(DiskKind::Dynamic), Just(DiskKind::Differencing), Just(DiskKind::Fixed)];
    (kind, prop_oneof![Just(512u32), Just(4096u32)], 1u64..5, 0u64..4).prop_flat_map(|(kind, sector, blocks, odd)| {
        let sectors = blocks * MIB / u64::from(sector) + odd * 7;
        (Just(kind), Just(sector), Just(sectors * u64::from(sector)), acts(sectors, u64::from(sector)))
    })
}

fn run(kind: DiskKind, sector: u32, size: u64, acts: Vec<Act>) -> Result<(), TestCaseError> {
    let file = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
    let parent: Vec<u8> = (0..size + MIB).map(|at| pattern(at, 0x55)).collect();
    let mut image = create(&storage, size, kind, sector);
    let mut want =
        if kind == DiskKind::Differencing { parent[..size as usize].to_vec() } else { vec![0; size as usize] };
    for act in acts {
        match act {
            Act::Write(wants, seed) => {
                write(&mut image, wants.clone(), seed);
                model(&mut want, &wants, seed);
            }
            Act::Abandon(wants) => {
                // In place means visible at once; so only what needs new space is filled.
                let reservation = image.reserve(wants).unwrap();
                let mapped: Vec<u64> = reservation.places().iter().map(|place| place.offset).collect();
                for (place, at) in reservation.places().iter().zip(mapped) {
                    if !matches!(image.extent_at(at, 1).unwrap().source, Source::Data(_)) {
                        image.storage().write_all_at(&[0xEE; 512], place.at.get()).unwrap();
                    }
                }
            }
            Act::Flush => image.flush().unwrap(),
            Act::Reopen => {
                drop(image);
                image = open(&storage, Access::Write);
                prop_assert!(!image.log_was_dirty());
            }
        }
        prop_assert!(contents(&image, &parent) == want, "after {:?}", "an act");
    }
    // A second handle that only reads replays the live log, and sees the same.
    prop_assert!(contents(&open(&storage, Access::Read), &parent) == want, "through the log");
    image.close().unwrap();
    let image = open(&storage, Access::Read);
    prop_assert!(!image.log_was_dirty());
    prop_assert!(contents(&image, &parent) == want, "after closing");
    if kind == DiskKind::Fixed {
        let blocks = size.div_ceil(MIB);
        for block in 0..blocks {
            prop_assert_eq!(image.payload_entry(block).unwrap().state, PayloadState::FullyPresent);
        }
    }
    let bytes = file.to_bytes().unwrap();
    Report::vhdx(&bytes).assert_clean("written");
    if kind != DiskKind::Differencing {
        let disk = SpecDisk::from_bytes(vec![Box::new(bytes)]).unwrap();
        prop_assert!(disk.read(0, size as usize).unwrap() == want, "the second reader");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_writes_read_back((kind, sector, size, acts) in disks()) {
        run(kind, sector, size, acts)?;
    }
}

#[test]
fn freed_blocks_are_used_again_and_show_nothing_old() {
    let storage = memory();
    let mut image = create(&storage, 4 * MIB, DiskKind::Dynamic, 512);
    write(&mut image, vec![data(0..2 * MIB)], 1);
    let len = storage.len().unwrap();
    write(&mut image, vec![zeros(0..2 * MIB)], 0);
    assert_eq!(image.allocated_blocks().unwrap(), 0);
    write(&mut image, vec![data(2 * MIB + 512..2 * MIB + 1024), data(3 * MIB..3 * MIB + 512)], 2);
    assert_eq!(storage.len().unwrap(), len, "freed space is used first");
    let mut want = vec![0; 4 * MIB as usize];
    model(&mut want, &[data(2 * MIB + 512..2 * MIB + 1024), data(3 * MIB..3 * MIB + 512)], 2);
    assert!(contents(&image, &[]) == want);
}

/// A block that loses its bitmap bits to ZERO and comes back partially must not show the bits it had.
#[test]
fn a_block_that_comes_back_has_none_of_its_old_bits() {
    let storage = memory();
    let mut image = create(&storage, 2 * MIB, DiskKind::Differencing, 512);
    write(&mut image, vec![data(0..4096)], 1);
    write(&mut image, vec![zeros(0..MIB)], 1);
    // By hand back to NOT_PRESENT, as another tool that reverts a block would.
    let entry = image.payload_entry(0).unwrap();
    assert_eq!(entry.state, PayloadState::Zero);
    let absent =
        crate::vhdx::bat::PayloadEntry { state: PayloadState::NotPresent, offset: crate::units::FileOffset(0) };
    let plan = image.plan_change(image.change(0, absent, &entry), Vec::new()).unwrap();
    image.install(plan).unwrap();
    write(&mut image, vec![data(8192..8704)], 2);
    let extent = image.extent_at(0, MIB).unwrap();
    assert_eq!((extent.len, extent.source), (8192, Source::Absent));
}

#[test]
fn the_last_sector_makes_a_block_fully_present() {
    let storage = memory();
    let mut image = create(&storage, MIB + 512 * 3, DiskKind::Differencing, 512);
    write(&mut image, vec![data(MIB..MIB + 512)], 1);
    write(&mut image, vec![data(0..512 * 1024)], 1);
    assert_eq!(image.payload_entry(0).unwrap().state, PayloadState::PartiallyPresent);
    write(&mut image, vec![data(MIB + 512..MIB + 512 * 3)], 1);
    assert_eq!(image.payload_entry(1).unwrap().state, PayloadState::FullyPresent, "up to the end of the disk");
    write(&mut image, vec![zeros(512 * 1024..MIB)], 1);
    assert_eq!(image.payload_entry(0).unwrap().state, PayloadState::FullyPresent);
}

/// A publish that needs more pages than one log entry holds: the bitmaps of blocks of 256 MiB take 16 pages each.
#[test]
fn a_publish_longer_than_the_log_is_several_transactions() {
    let storage = memory();
    let paths = ParentPaths { relative: Some(r".\parent.vhdx".into()), absolute: None };
    let parent = NewParent { id: ImageId::Vhdx(Guid::from_u128(7)), paths, timestamp: 0 };
    let size = 64u64 << 30;
    let options = VhdxCreate::new(size).kind(DiskKind::Differencing).block_size(256 << 20).parent(parent);
    let mut image = Vhdx::create(Arc::clone(&storage), &options).unwrap();
    let offsets: Vec<u64> = (0..size / (256 << 20)).map(|block| block * (256 << 20) + 4096 * (block + 1)).collect();
    let wants: Vec<Want> = offsets.iter().map(|at| data(*at..at + 512)).collect();
    write(&mut image, wants, 3);
    image.close().unwrap();
    let image = open(&storage, Access::Read);
    for at in offsets {
        assert_eq!(image.extent_at(at - 512, 512).unwrap().source, Source::Absent);
        let extent = image.extent_at(at, u64::MAX).unwrap();
        assert_eq!(extent.len, 512);
        let Source::Data(from) = extent.source else { panic!("{at}: {extent:?}") };
        let mut bytes = [0; 512];
        image.storage().read_exact_at(&mut bytes, from.get()).unwrap();
        assert!(bytes.iter().zip(at..).all(|(byte, at)| *byte == pattern(at, 3)));
    }
}

#[test]
fn wants_that_are_no_sectors_of_the_disk_are_refused() {
    let storage = memory();
    let mut image = create(&storage, 2 * MIB, DiskKind::Dynamic, 4096);
    for wants in [
        vec![data(0..512)],
        vec![data(4096..4096)],
        vec![data(0..2 * MIB + 4096)],
        vec![data(8192..12288), data(0..4096)],
        vec![data(0..8192), data(4096..12288)],
    ] {
        assert_eq!(image.reserve(wants.clone()).unwrap_err().kind(), ErrorKind::InvalidInput, "{wants:?}");
    }
    let first = image.reserve(vec![data(0..4096)]).unwrap();
    let second = image.reserve(vec![data(0..4096)]).unwrap();
    assert_eq!(image.publish(first).unwrap_err().kind(), ErrorKind::InvalidInput, "taken back");
    image.publish(second).unwrap();
}

#[test]
fn a_reading_handle_writes_nothing() {
    let storage = memory();
    drop(create(&storage, 2 * MIB, DiskKind::Dynamic, 512));
    let mut image = open(&storage, Access::Read);
    assert_eq!(image.reserve(vec![data(0..512)]).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(image.set_data_write_guid(Guid::from_u128(1)).unwrap_err().kind(), ErrorKind::ReadOnly);
}

/// Damage that a reader of other parts never meets must stop a writer before it changes anything.
#[test]
fn a_file_whose_parts_overlap_is_not_written_to() {
    let file = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
    let mut image = create(&storage, 4 * MIB, DiskKind::Dynamic, 512);
    write(&mut image, vec![data(0..512), data(MIB..MIB + 512)], 1);
    let (first, second) = (image.bat_offset(0), image.bat_offset(1));
    let len = storage.len().unwrap();
    image.close().unwrap();
    let mut entry = [0; 8];
    storage.read_exact_at(&mut entry, first).unwrap();
    // The second block where the first is; over the log; past the end; in a state that is none.
    for bad in [u64::from_le_bytes(entry), MIB | 6, len | 6, 5, 4 << 20 | 8 | 6] {
        storage.write_all_at(&bad.to_le_bytes(), second).unwrap();
        let before = file.to_bytes().unwrap();
        let mut image = open(&storage, Access::Write);
        let error = image.reserve(vec![data(3 * MIB..3 * MIB + 512)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{bad:#x}");
        assert!(error.offset().is_some() && error.hint().is_some(), "{error:?}");
        drop(image);
        assert!(file.to_bytes().unwrap() == before, "{bad:#x}: changed");
    }
}

/// The ids change once per open, and only for what they stand for.
#[test]
fn ids_change_once_per_open() {
    let storage = memory();
    let image = create(&storage, 2 * MIB, DiskKind::Dynamic, 512);
    let ids = |image: &Vhdx| (image.file_write_guid(), image.id());
    let created = ids(&image);
    drop(image);
    let mut image = open(&storage, Access::Write);
    assert_eq!(ids(&image), created, "opening changes nothing");
    write(&mut image, vec![data(0..512)], 1);
    let written = ids(&image);
    assert!(written.0 != created.0 && written.1 != created.1);
    write(&mut image, vec![data(512..1024)], 1);
    assert_eq!(ids(&image), written);
    let chosen = Guid::from_u128(99);
    image.set_data_write_guid(chosen).unwrap();
    write(&mut image, vec![data(1024..1536)], 1);
    assert_eq!(ids(&image), (written.0, ImageId::Vhdx(chosen)), "a chosen id stays");
    image.close().unwrap();
    let mut image = open(&storage, Access::Write);
    image.set_data_write_guid(Guid::from_u128(100)).unwrap();
    write(&mut image, vec![data(0..512)], 2);
    assert_eq!(image.id(), ImageId::Vhdx(Guid::from_u128(100)));
}
