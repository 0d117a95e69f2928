//! The map of a disk against a reader that goes sector by sector, where runs, chunks, table and file end.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation, clippy::panic)]

use super::super::create::VhdxCreate;
use super::super::image::tests::{Counting, child_of_nobody};
use super::*;
use crate::finding::Findings;
use crate::link::DiskKind;
use crate::storage::{Access, MemoryStorage};
use crate::units::{GIB, MIB, TIB};
use proptest::prelude::*;
use std::sync::Arc;

const BAT: u64 = 3 * MIB;

/// A disk whose BAT is written by hand.
struct Handmade {
    storage: Arc<MemoryStorage>,
    sector: u64,
    block: u64,
    size: u64,
    differencing: bool,
}

impl Handmade {
    fn new(size: u64, block: u64, sector: u64, differencing: bool) -> Self {
        let storage = Arc::new(MemoryStorage::new());
        let mut options = VhdxCreate::new(size).block_size(block as u32).logical_sector_size(sector as u32);
        if differencing {
            options = options.kind(DiskKind::Differencing).parent(child_of_nobody());
        }
        drop(Vhdx::create(storage.clone(), &options).unwrap());
        Self { storage, sector, block, size, differencing }
    }

    fn ratio(&self) -> u64 {
        (1 << 23) * self.sector / self.block
    }

    fn set(&self, index: u64, raw: u64) {
        self.storage.write_all_at(&raw.to_le_bytes(), BAT + index * 8).unwrap();
    }

    fn set_block(&self, block: u64, raw: u64) {
        self.set(block + block / self.ratio(), raw);
    }

    fn set_bitmap(&self, chunk: u64, raw: u64) {
        self.set((chunk + 1) * self.ratio() + chunk, raw);
    }

    fn word(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.storage.read_exact_at(&mut bytes, BAT + index * 8).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// The answer for the sector at `offset`, the long way: straight from the bytes, one sector at a time.
    fn naive(&self, offset: u64) -> Source {
        let block = offset / self.block;
        let chunk = block / self.ratio();
        let raw = self.word(block + chunk);
        let data = Source::Data(FileOffset((raw >> 20 << 20) + offset % self.block));
        match raw & 7 {
            0 if self.differencing => Source::Absent,
            6 => data,
            7 => {
                let bitmap = self.word((chunk + 1) * self.ratio() + chunk) >> 20 << 20;
                let sector = offset / self.sector % (1 << 23);
                let mut byte = [0];
                self.storage.read_exact_at(&mut byte, bitmap + sector / 8).unwrap();
                if byte[0] >> (sector % 8) & 1 == 1 { data } else { Source::Absent }
            }
            _ => Source::Zero,
        }
    }

    fn open(&self) -> Vhdx {
        Vhdx::open(self.storage.clone(), Access::Read, &mut Findings::new()).unwrap()
    }

    fn fault_at(&self, offset: u64) -> (Fault, u64) {
        let error = self.open().extent_at(offset, 512).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let problem = error.problem().unwrap();
        assert_eq!(problem.structure, Structure::VhdxBat);
        (problem.fault, problem.offset.unwrap().get())
    }
}

/// Where an extent says its byte `inside` is.
fn at(extent: Extent, inside: u64) -> Source {
    match extent.source {
        Source::Data(place) => Source::Data(FileOffset(place.get() + inside)),
        other => other,
    }
}

/// Walks the whole disk in steps of at most `limit` and compares every sector.
fn compare(disk: &Handmade, limit: u64) -> Result<(), TestCaseError> {
    let image = disk.open();
    let mut offset = 0;
    while offset < disk.size {
        let extent = image.extent_at(offset, limit).unwrap();
        prop_assert!(extent.len > 0 && extent.len <= limit && offset + extent.len <= disk.size);
        let mut inside = 0;
        while inside < extent.len {
            let sector = (offset + inside) / disk.sector * disk.sector;
            let skew = offset + inside - sector;
            let expected = at(Extent { len: 1, source: disk.naive(sector) }, skew);
            prop_assert_eq!(at(extent, inside), expected, "at {}", offset + inside);
            inside += disk.sector - skew;
        }
        offset += extent.len;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_sector_agrees_with_a_reader_that_goes_one_by_one(
        differencing in any::<bool>(),
        large_sectors in any::<bool>(),
        states in proptest::collection::vec((0u64..8, 0u64..4), 5),
        bits in proptest::collection::vec((0u32..5 * 2048, 1u32..3000, any::<bool>()), 0..12),
        limit in prop_oneof![Just(u64::MAX), 1u64..3_000_000],
        tail in 1u64..256,
    ) {
        let sector = if large_sectors { 4096 } else { 512 };
        let disk = Handmade::new(4 * MIB + tail * 4096, MIB, sector, differencing);
        let mut bitmap = vec![0; MIB as usize];
        for (start, len, value) in bits {
            bitmap::fill(&mut bitmap, BitOrder::LsbFirst, u64::from(start)..u64::from(start + len), value);
        }
        disk.storage.write_all_at(&bitmap, 4 * MIB).unwrap();
        disk.storage.set_len(24 * MIB).unwrap();
        if differencing {
            disk.set_bitmap(0, (4 * MIB) | 6);
        }
        for (block, (state, place)) in states.into_iter().enumerate() {
            let state = match state {
                4 | 5 => 6,
                7 if !differencing => 0,
                other => other,
            };
            // Neighbours that follow one another, neighbours that do not, and offsets that mean nothing.
            disk.set_block(block as u64, ((5 + block as u64 + place * place) * MIB) | state);
        }
        compare(&disk, limit)?;
    }
}

#[test]
fn blocks_of_several_chunks_agree_where_runs_begin_and_end() {
    let block = 256 * MIB;
    let disk = Handmade::new(40 * block + 4096, block, 512, true);
    disk.storage.set_len(64 * GIB).unwrap();
    for (number, raw) in [
        (3, GIB | 6),
        (4, (GIB + block) | 6),
        (15, (2 * GIB) | 7),
        (16, (2 * GIB + block) | 7),
        (17, 2),
        (31, 3),
        (33, (4 * GIB) | 6),
        (40, (5 * GIB) | 7),
    ] {
        disk.set_block(number, raw);
    }
    let bitmaps = [16 * MIB, 17 * MIB, 18 * MIB];
    for (chunk, place) in bitmaps.into_iter().enumerate() {
        disk.set_bitmap(chunk as u64, place | 6);
    }
    // Block 15 is present from its sector 100 on, block 16 up to its sector 70000, block 40 at its last sectors.
    let mut bytes = vec![0; MIB as usize];
    let sectors = block / 512;
    bitmap::fill(&mut bytes, BitOrder::LsbFirst, 15 * sectors + 100..16 * sectors, true);
    disk.storage.write_all_at(&bytes, bitmaps[0]).unwrap();
    bytes.fill(0);
    bitmap::fill(&mut bytes, BitOrder::LsbFirst, 0..70_000, true);
    disk.storage.write_all_at(&bytes, bitmaps[1]).unwrap();
    bytes.fill(0);
    bitmap::fill(&mut bytes, BitOrder::LsbFirst, 8 * sectors + 2..8 * sectors + 9, true);
    disk.storage.write_all_at(&bytes, bitmaps[2]).unwrap();

    let image = disk.open();
    let mut runs = Vec::new();
    let mut offset = 0;
    while offset < disk.size {
        let extent = image.extent_at(offset, u64::MAX).unwrap();
        assert_eq!(extent.source, disk.naive(offset));
        assert_eq!(at(extent, extent.len - 512), disk.naive(offset + extent.len - 512));
        runs.push((offset / 512, extent.len / 512, matches!(extent.source, Source::Data(_))));
        offset += extent.len;
    }
    // Data of blocks 15 and 16 is one run in the file as well as on the disk.
    assert_eq!(
        runs,
        [
            (0, 3 * sectors, false),
            (3 * sectors, 2 * sectors, true),
            (5 * sectors, 10 * sectors + 100, false),
            (15 * sectors + 100, sectors - 100 + 70_000, true),
            (16 * sectors + 70_000, sectors - 70_000, false),
            (17 * sectors, sectors, false),
            (18 * sectors, 13 * sectors, false),
            (31 * sectors, sectors, false),
            (32 * sectors, sectors, false),
            (33 * sectors, sectors, true),
            (34 * sectors, 6 * sectors + 2, false),
            (40 * sectors + 2, 6, true),
        ]
    );
}

#[test]
fn largest_empty_disk_is_one_run_and_costs_kilobytes() {
    for differencing in [false, true] {
        let disk = Handmade::new(64 * TIB, MIB, 512, differencing);
        assert!(disk.storage.allocated() < MIB, "{} bytes", disk.storage.allocated());
        // Two blocks far apart, so that the table is not all hole.
        disk.storage.set_len(600 * MIB).unwrap();
        disk.set_block(1, (520 * MIB) | 6);
        disk.set_block(50_000_000, (521 * MIB) | 6);
        let counting = Arc::new(Counting::new(disk.storage.clone()));
        let image = Vhdx::open(counting.clone(), Access::Read, &mut Findings::new()).unwrap();
        let (mut offset, mut runs) = (0, 0);
        while offset < 64 * TIB {
            offset += image.extent_at(offset, u64::MAX).unwrap().len;
            runs += 1;
        }
        assert_eq!((offset, runs), (64 * TIB, 5));
        assert_eq!(image.allocated_blocks().unwrap(), 2);
        assert!(counting.bytes_read() < 2 * MIB, "{} bytes", counting.bytes_read());
    }
}

#[test]
fn broken_entries_are_errors_only_when_their_block_is_read() {
    let size = 4 * MIB;
    for (raw, fault) in [
        ((8 * MIB) | 4, Fault::State),
        ((8 * MIB) | 5, Fault::State),
        ((8 * MIB) | 7, Fault::State),
        ((8 * MIB) | 8 | 6, Fault::Reserved),
        (6, Fault::Range),
        (MIB | 6, Fault::Overlap),
        ((2 * MIB) | 6, Fault::Overlap),
        ((3 * MIB) | 6, Fault::Overlap),
        (1 << 40 | 6, Fault::Range),
        (u64::MAX << 20 | 6, Fault::Range),
    ] {
        let disk = Handmade::new(size, MIB, 512, false);
        disk.set_block(2, raw);
        assert_eq!(disk.fault_at(2 * MIB), (fault, BAT + 16), "{raw:#x}");
        assert_eq!(disk.fault_at(3 * MIB - 512), (fault, BAT + 16));
        let image = disk.open();
        assert_eq!(image.extent_at(0, size).unwrap(), Extent { len: 2 * MIB, source: Source::Zero });
        assert_eq!(image.extent_at(3 * MIB, size).unwrap(), Extent { len: MIB, source: Source::Zero });
    }
}

#[test]
fn partially_present_block_needs_a_sector_bitmap_inside_the_file() {
    let disk = Handmade::new(4 * MIB, MIB, 512, true);
    disk.storage.set_len(8 * MIB).unwrap();
    disk.set_block(1, (5 * MIB) | 7);
    assert_eq!(disk.fault_at(MIB), (Fault::State, BAT + 8));
    for (raw, fault) in [
        ((100 * MIB) | 6, Fault::Range),
        ((7 * MIB) | 512 | 6, Fault::Reserved),
        ((2 * MIB) | 6, Fault::Overlap),
        ((7 * MIB) | 3, Fault::State),
        (6, Fault::Range),
    ] {
        disk.set_bitmap(0, raw);
        assert_eq!(disk.fault_at(MIB), (fault, BAT + 8 * 4096), "{raw:#x}");
    }
}

/// A present block is all there: its bits, and even its bitmap entry, do not count.
#[test]
fn fully_present_block_never_looks_at_the_bitmap() {
    let disk = Handmade::new(4 * MIB, MIB, 512, true);
    disk.storage.set_len(8 * MIB).unwrap();
    disk.set_block(0, (5 * MIB) | 6);
    disk.set_bitmap(0, (2 * MIB) | 5);
    let extent = disk.open().extent_at(0, u64::MAX).unwrap();
    assert_eq!(extent, Extent { len: MIB, source: Source::Data(FileOffset(5 * MIB)) });
}

#[test]
fn file_may_end_inside_a_block_where_the_disk_has_ended() {
    let disk = Handmade::new(MIB + 4096, MIB, 512, false);
    disk.set_block(0, (4 * MIB) | 6);
    disk.set_block(1, (5 * MIB) | 6);
    disk.storage.set_len(5 * MIB + 4096).unwrap();
    let whole = Extent { len: MIB + 4096, source: Source::Data(FileOffset(4 * MIB)) };
    assert_eq!(disk.open().extent_at(0, u64::MAX).unwrap(), whole);

    disk.storage.set_len(5 * MIB + 700).unwrap();
    assert_eq!(disk.open().extent_at(0, u64::MAX).unwrap(), Extent { len: MIB + 512, ..whole });
    assert_eq!(disk.fault_at(MIB + 512), (Fault::Range, BAT + 8));
}

#[test]
fn table_that_the_file_cuts_off_is_read_up_to_the_cut() {
    // 600 GiB of 1 MiB blocks: a table of 614 400 entries, 4.7 MiB; the file holds its first 2 MiB and 20 bytes.
    let disk = Handmade::new(600 * GIB, MIB, 512, false);
    disk.storage.set_len(BAT + 2 * MIB + 20).unwrap();
    let image = disk.open();
    let entries = 2 * MIB / 8 + 2;
    let blocks = entries - entries / 4097;
    let mut offset = 0;
    let error = loop {
        match image.extent_at(offset, u64::MAX) {
            Ok(extent) => offset += extent.len,
            Err(error) => break error,
        }
    };
    assert!(offset / MIB >= blocks, "{} of {blocks}", offset / MIB);
    assert_eq!(error.problem().unwrap().fault, Fault::Truncated);
    assert_eq!(image.allocated_blocks().unwrap_err().problem().unwrap().fault, Fault::Truncated);
}

#[test]
fn question_outside_the_disk_is_invalid_input() {
    let image = Handmade::new(4 * MIB, MIB, 512, false).open();
    for (offset, limit) in [(4 * MIB, 1), (u64::MAX, 1), (0, 0)] {
        assert_eq!(image.extent_at(offset, limit).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

/// Bug this finds: a table cut off inside a page, whose missing end reads as blocks that were never written.
#[test]
fn a_table_that_ends_with_the_file_is_an_error_and_never_zeros() {
    for differencing in [false, true] {
        let disk = Handmade::new(64 * MIB, MIB, 512, differencing);
        for len in [BAT + 100, BAT + 8 * 20] {
            let cut = Arc::new(disk.storage.as_ref().clone());
            cut.set_len(len).unwrap();
            let image = Vhdx::open(cut, Access::Read, &mut Findings::new()).unwrap();
            let error = image.extent_at(40 * MIB, MIB).unwrap_err();
            let problem = error.problem().unwrap();
            assert_eq!((problem.structure, problem.fault), (Structure::VhdxBat, Fault::Truncated));
        }
    }
}
