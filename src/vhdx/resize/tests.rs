//! Sizes against a model. The bug each of these looks for: bytes that once lay past the end come back.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::error::ErrorKind;
use crate::finding::Findings;
use crate::link::{DiskKind, GrowAs};
use crate::map::{BlockMap, Source};
use crate::storage::sim::{ExploreOptions, SimDisk};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::support::Report;
use crate::units::{GIB, MIB, TIB};
use crate::vhdx::Vhdx;
use crate::vhdx::bat::PayloadState;
use crate::vhdx::write::tests::{contents, create, data, memory, model, open, pattern, write, zeros};
use proptest::prelude::*;
use std::sync::Arc;

/// The parent's bytes, longer than any disk here; zeros past its end.
fn parent() -> Vec<u8> {
    (0..6 * MIB).map(|at| pattern(at, 0x33)).collect()
}

#[derive(Clone, Debug)]
enum Act {
    Write { start: u64, len: u64, zero: bool, seed: u8 },
    Resize { sectors: u64, grow_as: GrowAs },
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let size = prop_oneof![3 => 1u64..8 * 2048, 1 => (1u64..8).prop_map(|block| block * 2048)];
    // A parent of 6 MiB, as the test has it.
    let grow_as = prop_oneof![Just(GrowAs::Zero), Just(GrowAs::ZeroBelow(6 * MIB)), Just(GrowAs::Parent)];
    let len = prop_oneof![2 => 1u64..64, 1 => 1u64..5000, 1 => Just(1 << 20)];
    let act = prop_oneof![
        3 => (0u64..8 * 2048, len, prop::bool::weighted(0.3), any::<u8>())
            .prop_map(|(start, len, zero, seed)| Act::Write { start, len, zero, seed }),
        3 => (size, grow_as).prop_map(|(sectors, grow_as)| Act::Resize { sectors, grow_as }),
        1 => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 2..14)
}

fn kinds() -> impl Strategy<Value = DiskKind> {
    prop_oneof![1 => Just(DiskKind::Dynamic), 2 => Just(DiskKind::Differencing), 1 => Just(DiskKind::Fixed)]
}

fn run(kind: DiskKind, sector: u32, acts: Vec<Act>) {
    let file = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
    let mut image = create(&storage, 3 * MIB + 4096, kind, sector);
    let parent = if kind == DiskKind::Differencing { parent() } else { Vec::new() };
    let of_parent =
        |from: usize, to: usize| -> Vec<u8> { (from..to).map(|at| parent.get(at).copied().unwrap_or(0)).collect() };
    let mut want = of_parent(0, 3 * MIB as usize + 4096);
    let unit = u64::from(sector);
    for act in acts {
        match act {
            Act::Write { start, len, zero, seed } => {
                let sectors = want.len() as u64 / unit;
                let start = start % sectors;
                let range = start * unit..(start + len).min(sectors) * unit;
                let wants = vec![if zero { zeros(range) } else { data(range) }];
                write(&mut image, wants.clone(), seed);
                model(&mut want, &wants, seed);
            }
            Act::Resize { sectors, grow_as } => {
                let size = sectors * 512 / unit * unit;
                if size == 0 {
                    continue;
                }
                image.set_virtual_size(size, grow_as).unwrap();
                let (from, to) = (want.len(), size as usize);
                want.truncate(to);
                match grow_as {
                    GrowAs::Parent => want.extend(of_parent(from.min(to), to)),
                    GrowAs::Zero | GrowAs::ZeroBelow(_) => want.resize(to, 0),
                }
            }
            Act::Reopen => {
                image.close().unwrap();
                image = open(&storage, Access::Write);
            }
        }
        assert!(contents(&image, &parent) == want, "wrong contents");
    }
    assert!(contents(&open(&storage, Access::Read), &parent) == want, "through the log");
    image.close().unwrap();
    let image = open(&storage, Access::Read);
    assert!(contents(&image, &parent) == want, "after closing");
    if kind == DiskKind::Fixed {
        for block in 0..image.geometry.blocks() {
            assert_eq!(image.payload_entry(block).unwrap().state, PayloadState::FullyPresent);
        }
    }
    Report::vhdx(&file.to_bytes().unwrap()).assert_clean("resized");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_resized_disk_shows_only_what_it_should(kind in kinds(), large in any::<bool>(), acts in acts()) {
        run(kind, if large { 4096 } else { 512 }, acts);
    }
}

#[test]
fn sizes_the_format_does_not_have_are_refused() {
    let storage = memory();
    let mut image = create(&storage, 2 * MIB, DiskKind::Dynamic, 4096);
    for size in [0, 512, 65 * TIB] {
        assert_eq!(image.set_virtual_size(size, GrowAs::Zero).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(image.virtual_size(), 2 * MIB);
}

/// A table of 1 MiB has the entries of 128 GiB; past that it has to move, with everything in it.
#[test]
fn the_bat_moves_when_its_region_is_full() {
    for kind in [DiskKind::Dynamic, DiskKind::Differencing] {
        let storage = memory();
        let mut image = create(&storage, GIB, kind, 512);
        let places = [0, 5 * MIB + 512, GIB - 512];
        for at in places {
            write(&mut image, vec![data(at..at + 512)], 9);
        }
        let before = image.regions.bat().range();
        image.set_virtual_size(300 * GIB, GrowAs::Parent).unwrap();
        assert_ne!(image.regions.bat().range(), before);
        write(&mut image, vec![data(300 * GIB - 512..300 * GIB)], 9);
        let Source::Data(at) = image.extent_at(300 * GIB - 512, 512).unwrap().source else { panic!("not written") };
        assert!(before.contains(&at.get()), "the old table's space is used again");
        image.close().unwrap();
        let image = open(&storage, Access::Read);
        assert_eq!(image.virtual_size(), 300 * GIB);
        for at in [0, 5 * MIB + 512, GIB - 512, 300 * GIB - 512] {
            let Source::Data(from) = image.extent_at(at, 512).unwrap().source else { panic!("lost {at}") };
            let mut bytes = [0; 512];
            image.storage().read_exact_at(&mut bytes, from.get()).unwrap();
            assert!(bytes.iter().zip(at..).all(|(byte, at)| *byte == pattern(at, 9)), "at {at}");
        }
        let nothing = if kind == DiskKind::Dynamic { Source::Zero } else { Source::Absent };
        assert_eq!(image.extent_at(GIB, MIB).unwrap().source, nothing);
    }
}

#[test]
fn a_child_grown_with_zeros_hides_its_parent_everywhere_new() {
    let storage = memory();
    let mut image = create(&storage, MIB + 512, DiskKind::Differencing, 512);
    image.set_virtual_size(4 * MIB, GrowAs::Zero).unwrap();
    assert_eq!(image.extent_at(0, u64::MAX).unwrap().len, MIB + 512);
    assert_eq!(image.payload_entry(2).unwrap().state, PayloadState::Zero);
    let parent = parent();
    let shown = contents(&image, &parent);
    assert!(shown[..MIB as usize + 512] == parent[..MIB as usize + 512]);
    assert!(shown[MIB as usize + 512..].iter().all(|byte| *byte == 0));
}

/// Records `change` of an image with data everywhere, then has `finish` act on every state a crash can leave of it; the
/// file keeps every rule of the format then.
fn finished_after_a_crash(kind: DiskKind, change: fn(&mut Vhdx), finish: fn(&mut Vhdx)) {
    let disk = SimDisk::new();
    let file: Arc<dyn Storage> = disk.file("a.vhdx");
    let mut image = create(&file, 3 * MIB + 4096, kind, 512);
    write(&mut image, vec![data(0..MIB), data(2 * MIB + 512..3 * MIB + 4096)], 7);
    image.close().unwrap();
    disk.checkpoint();
    let mut image = open(&file, Access::Write);
    change(&mut image);
    image.close().unwrap();
    let report = disk.explore(&ExploreOptions::seeded(5), |state| {
        let disk = state.disk();
        let opened = Vhdx::open(disk.file("a.vhdx"), Access::Write, &mut Findings::new());
        let mut image = opened.map_err(|error| error.to_string())?;
        finish(&mut image);
        image.close().map_err(|error| error.to_string())?;
        let broken = Report::vhdx(&disk.file("a.vhdx").contents().to_bytes().unwrap()).rules();
        // A finish that had nothing to do does not rewrite a header that a crash tore.
        let headers = ["headers-agree", "header-checksum", "header-sequence", "clean-log"];
        let broken: Vec<_> = broken.into_iter().filter(|rule| !headers.contains(rule)).collect();
        if broken.is_empty() { Ok(()) } else { Err(format!("breaks {broken:?}")) }
    });
    report.assert_ok();
    assert!(report.states > 20, "{report:?}");
}

/// Bug: a child whose shrink was cut short kept bits past the end of its last chunk, bytes past the end of its last block
/// and entries past the end of its table, even when the same size was asked for again, as the rerun of a merge does.
#[test]
fn a_shrink_cut_short_is_finished_by_asking_again() {
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        let shrink = |image: &mut Vhdx| image.set_virtual_size(2 * MIB + 1024, GrowAs::Zero).unwrap();
        finished_after_a_crash(kind, shrink, |image| {
            image.set_virtual_size(2 * MIB + 1024, GrowAs::Zero).unwrap();
        });
    }
}

/// Bug: a growth or shrink cut short, then a growth by less, left entries and bits that even the new size does not reach.
#[test]
fn a_smaller_growth_after_a_change_cut_short_leaves_nothing_past_the_end() {
    let smaller = |image: &mut Vhdx| {
        let size = image.virtual_size() + 8192;
        image.set_virtual_size(size, GrowAs::Zero).unwrap();
    };
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        finished_after_a_crash(kind, |image| image.set_virtual_size(8 * MIB, GrowAs::Zero).unwrap(), smaller);
        finished_after_a_crash(kind, |image| image.set_virtual_size(MIB + 1024, GrowAs::Zero).unwrap(), smaller);
    }
}

/// Bug this finds: asking for the size a disk has writes to it although nothing is left to finish.
#[test]
fn the_same_size_writes_nothing() {
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        let disk = SimDisk::new();
        let file: Arc<dyn Storage> = disk.file("a.vhdx");
        let mut image = create(&file, 3 * MIB + 4096, kind, 512);
        write(&mut image, vec![data(0..512), data(3 * MIB..3 * MIB + 4096)], 7);
        image.close().unwrap();
        let before = disk.counts().changes();
        let mut image = open(&file, Access::Write);
        image.set_virtual_size(3 * MIB + 4096, GrowAs::Zero).unwrap();
        image.close().unwrap();
        assert_eq!(disk.counts().changes(), before, "{kind:?}");
    }
}
