//! Planted damage, and what a check of the whole file says of it.

use super::{create, data, memory, new_parent, put};
use crate::error::Result;
use crate::finding::{Findings, Severity};
use crate::link::DiskKind;
use crate::mend::CheckSummary;
use crate::problem::{Fault, Structure};
use crate::storage::{MemoryStorage, Storage};
use crate::units::{FileOffset, GIB, KIB, MIB};
use crate::vhd::raw::{self, SECTOR_BYTES};
use crate::vhd::{Vhd, VhdCreate};
use std::sync::Arc;

type Told = (Severity, Structure, Fault);

pub(super) const BLOCK: u32 = 64 << 10;
/// Bitmap and data.
pub(super) const STRIDE: u64 = 512 + BLOCK as u64;
/// The sample's blocks.
const WRITTEN: [u64; 4] = [0, 3, 7, 15];
/// Where the table of the sample lies.
const TABLE: usize = 1536;

/// 1 MiB in 16 blocks, four of them full of their numbers.
pub(super) fn sample(options: VhdCreate) -> Vec<u8> {
    let (storage, mut vhd) = create(&options.block_size(BLOCK));
    for block in WRITTEN {
        let range = block * u64::from(BLOCK)..(block + 1) * u64::from(BLOCK);
        put(&mut vhd, vec![data(range)], |_| block as u8 + 1).unwrap();
    }
    vhd.close().unwrap();
    storage.to_bytes().unwrap()
}

pub(super) fn check_storage(storage: Arc<dyn Storage>, deep: bool) -> (Result<CheckSummary>, Findings) {
    let mut findings = Findings::new();
    (Vhd::check(storage, deep, &mut findings), findings)
}

pub(super) fn check(bytes: &[u8], deep: bool) -> (Result<CheckSummary>, Findings) {
    check_storage(memory(bytes), deep)
}

fn told(findings: &Findings) -> Vec<Told> {
    findings.list().iter().map(|f| (f.severity, f.problem.structure, f.problem.fault)).collect()
}

pub(super) fn entry(bytes: &[u8], block: u64) -> u32 {
    let at = TABLE + block as usize * 4;
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(super) fn set_entry(bytes: &mut [u8], block: u64, sector: u32) {
    let at = TABLE + block as usize * 4;
    bytes[at..at + 4].copy_from_slice(&sector.to_be_bytes());
}

/// Makes the checksums of both footers and of the header fit.
pub(super) fn reseal(bytes: &mut [u8]) {
    let tail = bytes.len() - 512;
    for (at, len, field) in [(0, 512, 64), (512, 1024, 36), (tail, 512, 64)] {
        let stored = u32::from_be_bytes(bytes[at + field..at + field + 4].try_into().unwrap());
        let sum = raw::checksum(&bytes[at..at + len], stored);
        bytes[at + field..at + field + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The same change in both footers, with checksums that fit.
pub(super) fn edit_footers(bytes: &mut [u8], at: usize, field: &[u8]) {
    let tail = bytes.len() - 512;
    for footer in [0, tail] {
        bytes[footer + at..footer + at + field.len()].copy_from_slice(field);
    }
    reseal(bytes);
}

#[test]
fn images_in_good_order_have_no_findings() {
    for options in [VhdCreate::new(MIB), VhdCreate::new(MIB).parent(new_parent())] {
        let bytes = sample(options);
        let (summary, findings) = check(&bytes, true);
        assert_eq!(told(&findings), []);
        let file_size = bytes.len() as u64;
        let expected =
            CheckSummary { file_size, virtual_size: MIB, allocated_blocks: 4, leaked_bytes: 0, trailing_bytes: 0 };
        assert_eq!(summary.unwrap(), expected);
    }
    let (storage, _) = create(&VhdCreate::new(MIB).kind(DiskKind::Fixed));
    let (summary, findings) = check_storage(storage, true);
    assert_eq!((told(&findings), summary.unwrap().allocated_blocks), (vec![], 0));
}

#[test]
fn every_entry_is_held_against_every_other_and_the_rest_of_the_file() {
    const ERROR: Severity = Severity::Error;
    const LEAK: Told = (Severity::Warning, Structure::VhdBlock, Fault::Leaked);
    let good = sample(VhdCreate::new(MIB));
    let tail_sector = (good.len() / 512 - 1) as u32;
    type Damage<'a> = Box<dyn Fn(&mut [u8]) + 'a>;
    let moved = |block: u64, sector: u32| -> Damage<'_> { Box::new(move |b: &mut [u8]| set_entry(b, block, sector)) };
    let cases: [(&str, Damage<'_>, Fault, u64); 7] = [
        ("the same place twice", moved(7, entry(&good, 0)), Fault::Duplicate, 7),
        ("one sector on", moved(7, entry(&good, 0) + 1), Fault::Overlap, 7),
        ("one sector before", moved(7, entry(&good, 3) - 1), Fault::Overlap, 3),
        ("over the footer copy", moved(3, 0), Fault::Overlap, 3),
        ("over the table", moved(3, 3), Fault::Overlap, 3),
        ("past the end", moved(3, 0x0FFF_0000), Fault::Range, 3),
        ("over the footer", moved(3, tail_sector - 100), Fault::Range, 3),
    ];
    for (name, damage, fault, block) in cases {
        let mut bytes = good.clone();
        damage(&mut bytes);
        let (summary, findings) = check(&bytes, false);
        let told: Vec<Told> = told(&findings).into_iter().filter(|told| *told != LEAK).collect();
        let unaligned = (Severity::Warning, Structure::VhdBlock, Fault::Alignment);
        assert_eq!(told[0], (ERROR, Structure::VhdBat, fault), "{name}: {findings:?}");
        assert!(told[1..].iter().all(|told| *told == unaligned), "{name}: {told:?}");
        let at = findings.list()[0].problem.offset;
        assert_eq!(at, Some(FileOffset(TABLE as u64 + block * 4)), "{name}: the offset of the entry");
        assert!(findings.list()[0].problem.windows_name().is_some());
        assert!(!findings.list()[0].repairable, "{name}");
        let summary = summary.unwrap();
        assert_eq!(summary.allocated_blocks, 4, "{name}");
        assert!(summary.leaked_bytes >= STRIDE || name.starts_with("one sector before"), "{name}: {summary:?}");
    }
}

#[test]
fn space_that_nothing_owns_is_counted() {
    let good = sample(VhdCreate::new(MIB));
    let mut bytes = good.clone();
    set_entry(&mut bytes, 3, u32::MAX);
    let (summary, findings) = check(&bytes, false);
    assert_eq!(told(&findings), [(Severity::Warning, Structure::VhdBlock, Fault::Leaked)]);
    let leaked = summary.unwrap().leaked_bytes;
    assert!((STRIDE..STRIDE + 8192).contains(&leaked), "{leaked}");

    let mut bytes = good[..good.len() - 512].to_vec();
    bytes.resize(good.len() - 512 + (256 << 10), 0);
    bytes.extend_from_slice(&good[..512]);
    let (summary, findings) = check(&bytes, false);
    assert_eq!(told(&findings), [(Severity::Warning, Structure::File, Fault::Leaked)]);
    assert!(findings.list()[0].repairable);
    let summary = summary.unwrap();
    assert_eq!((summary.leaked_bytes, summary.trailing_bytes), (256 << 10, 256 << 10));
}

#[test]
fn entries_behind_those_of_the_disk_are_a_warning() {
    let mut bytes = sample(VhdCreate::new(MIB));
    edit_footers(&mut bytes, 48, &(512 * KIB).to_be_bytes());
    let (summary, findings) = check(&bytes, false);
    let told = told(&findings);
    assert!(told.contains(&(Severity::Warning, Structure::VhdBat, Fault::Value)), "{told:?}");
    assert!(told.iter().all(|told| told.0 == Severity::Warning), "{told:?}");
    let summary = summary.unwrap();
    assert_eq!((summary.allocated_blocks, summary.leaked_bytes), (3, 0), "the entry still keeps its space");
}

#[test]
fn locators_are_held_against_everything() {
    let good = sample(VhdCreate::new(MIB).parent(new_parent()));
    let mut bytes = good.clone();
    set_entry(&mut bytes, 3, 4);
    let (_, findings) = check(&bytes, false);
    assert_eq!(told(&findings)[0], (Severity::Error, Structure::VhdBat, Fault::Overlap), "{findings:?}");
    assert!(findings.list()[0].problem.allowed.contains("locator"), "{findings:?}");

    // The locator's data offset: its entry starts 576 bytes into the header, the field 16 bytes on.
    for (place, met) in [(1024u64, "dynamic header"), (1536, "block allocation table"), (2560, "parent locator")] {
        let mut bytes = good.clone();
        bytes[512 + 576 + 16..][..8].copy_from_slice(&place.to_be_bytes());
        reseal(&mut bytes);
        let (_, findings) = check(&bytes, false);
        let found = findings.list().iter().find(|finding| finding.problem.fault == Fault::Overlap).unwrap();
        assert_eq!((found.severity, found.problem.structure), (Severity::Error, Structure::VhdLocator));
        assert!(found.problem.allowed.contains(met), "{met}: {found:?}");
    }
}

#[test]
fn data_under_clear_bits_is_found_when_asked_for() {
    let mut bytes = sample(VhdCreate::new(MIB));
    let block_at = entry(&bytes, 7) as usize * SECTOR_BYTES;
    bytes[block_at + 3] = 0b1110_1111;
    assert_eq!(told(&check(&bytes, false).1), []);
    let (_, findings) = check(&bytes, true);
    assert_eq!(told(&findings), [(Severity::Warning, Structure::VhdBitmap, Fault::Mismatch)]);
    assert_eq!(findings.list()[0].problem.offset, Some(FileOffset(block_at as u64)));
    let data_at = block_at + 512 + 27 * 512;
    assert!(findings.list()[0].problem.found.contains(&format!("{data_at:#x}")), "{findings:?}");
    bytes[data_at..data_at + 512].fill(0);
    assert_eq!(told(&check(&bytes, true).1), [], "zeros under a clear bit are as they should be");
    let mut child = sample(VhdCreate::new(MIB).parent(new_parent()));
    let block_at = entry(&child, 7) as usize * SECTOR_BYTES;
    child[block_at + 3] = 0;
    assert_eq!(told(&check(&child, true).1), [], "the parent shows through");
}

/// XenServer's map of full blocks, made here as its tools make it.
pub(super) fn with_batmap(map_byte: u8) -> Vec<u8> {
    let mut bytes = sample(VhdCreate::new(MIB));
    edit_footers(&mut bytes, 28, b"tap\0\0\x01\0\x03");
    let header = TABLE + 512;
    assert!(bytes[header..header + 1024].iter().all(|&byte| byte == 0));
    bytes[header..header + 8].copy_from_slice(b"tdbatmap");
    bytes[header + 8..header + 16].copy_from_slice(&(header as u64 + 512).to_be_bytes());
    bytes[header + 16..header + 20].copy_from_slice(&1u32.to_be_bytes());
    bytes[header + 20..header + 24].copy_from_slice(&0x0001_0002u32.to_be_bytes());
    bytes[header + 24..header + 28].copy_from_slice(&(!u32::from(map_byte)).to_be_bytes());
    bytes[header + 512] = map_byte;
    bytes
}

#[test]
fn a_batmap_must_tell_the_truth() {
    const MISMATCH: Told = (Severity::Error, Structure::VhdBatmap, Fault::Mismatch);
    let told_of = |bytes: &[u8]| told(&check(bytes, false).1);
    assert_eq!(told_of(&with_batmap(0b1001_0001)), [], "blocks 0, 3 and 7 are full");
    assert_eq!(told_of(&with_batmap(0)), [], "a clear bit is always safe");
    assert_eq!(told_of(&with_batmap(0b1101_0001)), [MISMATCH], "block 1 has no place");
    let mut partial = with_batmap(0b1001_0001);
    let block_at = entry(&partial, 7) as usize * SECTOR_BYTES;
    partial[block_at + 15] = 0xFE;
    assert_eq!(told_of(&partial), [MISMATCH]);
    let mut unsummed = with_batmap(0b1001_0001);
    unsummed[TABLE + 512 + 24] ^= 1;
    assert_eq!(told_of(&unsummed), [(Severity::Error, Structure::VhdBatmap, Fault::Checksum)]);
    let mut elsewhere = with_batmap(0b1001_0001);
    elsewhere[TABLE + 512 + 8..][..8].copy_from_slice(&1024u64.to_be_bytes());
    assert!(told_of(&elsewhere).contains(&(Severity::Error, Structure::VhdBatmap, Fault::Overlap)));
}

#[test]
fn what_does_not_open_is_a_fatal_finding() {
    let mut bytes = sample(VhdCreate::new(MIB));
    bytes[700] ^= 1;
    let (summary, findings) = check(&bytes, false);
    assert!(summary.is_err());
    assert_eq!(told(&findings), [(Severity::Fatal, Structure::VhdHeader, Fault::Checksum)]);
    let headless: Vec<u8> = bytes[..bytes.len() - 512].to_vec();
    assert!(!Vhd::probe(&*memory(&headless)).unwrap());
    assert!(Vhd::probe_damaged(&*memory(&headless)).unwrap(), "the footer copy is still there");
    assert_eq!(told(&check(&headless, false).1)[0].0, Severity::Fatal);
    assert!(!Vhd::probe_damaged(&*memory(&[0; 4096])).unwrap());
}

#[test]
fn a_lost_footer_is_not_called_repairable_while_blocks_are_lost() {
    let good = sample(VhdCreate::new(MIB));
    let footer = |findings: &Findings| {
        findings.list().iter().find(|f| f.problem.structure == Structure::VhdFooter).unwrap().repairable
    };
    assert!(footer(&check(&good[..good.len() - 512], false).1));
    let (_, findings) = check(&good[..good.len() - 512 - (32 << 10)], false);
    assert!(!footer(&findings));
    assert!(findings.list().iter().all(|f| f.problem.fault != Fault::Leaked), "what is left of the block is no leak");
    assert!(told(&findings).contains(&(Severity::Error, Structure::VhdBat, Fault::Range)));
}

/// Bug this finds: an odd field of a footer called repairable that no repair can write: a footer of 511 bytes has no last
/// byte, and a lost one has no place while blocks are lost.
#[test]
fn odd_fields_of_a_footer_that_cannot_be_written_are_not_called_repairable() {
    let mut odd = sample(VhdCreate::new(MIB));
    edit_footers(&mut odd, 56, &[0, 1, 1, 1]);
    let fixed = {
        let (storage, vhd) = create(&VhdCreate::new(MIB).kind(DiskKind::Fixed));
        drop(vhd);
        let mut bytes = storage.to_bytes().unwrap();
        let tail = bytes.len() - 512;
        bytes[tail + 56..tail + 60].copy_from_slice(&[0, 1, 1, 1]);
        let stored = u32::from_be_bytes(bytes[tail + 64..tail + 68].try_into().unwrap());
        let sum = raw::checksum(&bytes[tail..], stored);
        bytes[tail + 64..tail + 68].copy_from_slice(&sum.to_be_bytes());
        bytes
    };
    let geometry = |bytes: &[u8]| -> bool {
        let findings = check(bytes, false).1;
        let odd = |f: &&crate::Finding| f.problem.fault == Fault::Value && f.problem.found.starts_with("C/H/S");
        let called = findings.list().iter().find(odd).unwrap().repairable;
        let plan = Vhd::plan_repair(memory(bytes), &[]).unwrap();
        assert_eq!(called, plan.iter().any(|step| step.kind == crate::RepairKind::Geometry), "{plan:?}");
        called
    };
    assert!(geometry(&odd) && geometry(&fixed));
    assert!(geometry(&odd[..odd.len() - 512]), "the footer is written anew");
    assert!(!geometry(&odd[..odd.len() - 1]) && !geometry(&fixed[..fixed.len() - 1]), "511 bytes");
    assert!(!geometry(&odd[..odd.len() - 512 - (32 << 10)]), "nobody knows where the footer goes");
}

/// As large as a table can be: every block of 2040 GiB has a place.
#[test]
fn a_full_table_is_checked_in_one_pass_or_many() {
    const STEP: u32 = 4097;
    let (storage, vhd) = create(&VhdCreate::new(2040 * GIB));
    let footer = vhd.footer.bytes().to_vec();
    drop(vhd);
    let blocks = 2040u32 * 512;
    let first = (TABLE as u32 + blocks * 4).div_ceil(512);
    let write = |at: u64, bytes: &[u8]| storage.write_all_at(bytes, at).unwrap();
    let table: Vec<u8> = (0..blocks).rev().flat_map(|block| (first + block * STEP).to_be_bytes()).collect();
    write(TABLE as u64, &table);
    write((u64::from(first) + u64::from(blocks) * u64::from(STEP)) * 512, &footer);
    let shared = || Arc::<MemoryStorage>::clone(&storage) as Arc<dyn Storage>;
    let (summary, findings) = check_storage(shared(), false);
    assert!(findings.list().iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
    let summary = summary.unwrap();
    assert_eq!((summary.allocated_blocks, summary.leaked_bytes), (u64::from(blocks), 0));

    // Two blocks that meet, and two that are one, at places far apart.
    let put = |block: u32, sector: u32| write(TABLE as u64 + u64::from(block) * 4, &sector.to_be_bytes());
    let sector = |block: u32| first + (blocks - 1 - block) * STEP;
    put(500_000, sector(500_000) + 1);
    put(9, sector(900_000));
    let mut told = Vec::new();
    for keep in [1 << 23, 1 << 16] {
        let mut findings = Findings::new();
        let vhd = Vhd::open(shared(), crate::storage::Access::Read, &mut Findings::new()).unwrap();
        let sparse = vhd.sparse.as_ref().unwrap();
        let keep = crate::vhd::check::Keep { places: keep, ..Default::default() };
        let survey =
            crate::vhd::check::survey_keeping(&vhd, sparse, (&vhd.owned(sparse), keep), &mut findings).unwrap();
        assert_eq!(survey.gaps, u64::from(STEP) * 512);
        told.push(findings.list().to_vec());
    }
    assert_eq!(told[0], told[1]);
    let errors: Vec<_> = told[0].iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
}

/// Blocks that lie in a row are taken at once; the same blocks out of order are looked at one by one, and are as many,
/// reach as far, leave as much between them and are as badly aligned. What stands in the way of a row: gaps, blocks that
/// share bytes, places that cannot be, a parent locator, holes, entries behind those of the disk.
#[test]
fn blocks_in_a_row_are_judged_as_blocks_one_by_one() {
    const BLOCKS: u32 = 400;
    const SECTORS: u32 = STRIDE as u32 / 512;
    let mut seed = 1u32;
    let mut dice = |sides: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % sides
    };
    let (mut errors, mut unaligned, mut stale) = (0, 0, 0);
    for round in 0..200 {
        let mut options = VhdCreate::new(u64::from(BLOCKS) * u64::from(BLOCK)).block_size(BLOCK);
        let linked = dice(4) == 0;
        if linked {
            options = options.parent(new_parent());
        }
        let (storage, vhd) = create(&options);
        drop(vhd);
        let mut bytes = storage.to_bytes().unwrap();
        let at = u64::from_be_bytes(bytes[528..536].try_into().unwrap());
        let mut next = (at as u32 + BLOCKS * 4).div_ceil(512);
        let disk = if dice(4) == 0 { BLOCKS - dice(50) } else { BLOCKS };
        edit_footers(&mut bytes, 48, &(u64::from(disk) * u64::from(BLOCK)).to_be_bytes());
        if linked {
            let within = u64::from(next + dice(BLOCKS / 3) * SECTORS + dice(SECTORS)) * 512;
            bytes[512 + 576 + 16..][..8].copy_from_slice(&within.to_be_bytes());
            reseal(&mut bytes);
        }
        let write = |at: u64, bytes: &[u8]| storage.write_all_at(bytes, at).unwrap();
        write(0, &bytes);
        let mut table: Vec<u32> = Vec::new();
        for _ in 0..BLOCKS {
            let odd = [0, dice(3), 8 * dice(12), 120 + dice(20), 300][dice(40).saturating_sub(35) as usize];
            table.push(if dice(30) == 0 { u32::MAX } else { next + odd });
            if table.last() != Some(&u32::MAX) {
                next += odd + SECTORS - u32::from(round % 3 == 0 && dice(100) == 0) * dice(SECTORS);
            }
        }
        write(u64::from(next) * 512, &bytes[..512]);
        if round % 5 == 0 {
            table[dice(BLOCKS) as usize] = [0, 3, next, u32::MAX - 1][dice(4) as usize];
        }
        let ask = |table: &[u32]| {
            let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            write(at, &bytes);
            let (summary, findings) = check_storage(Arc::<MemoryStorage>::clone(&storage) as Arc<dyn Storage>, false);
            let summary = summary.unwrap();
            let mut told = told(&findings);
            told.sort_unstable_by_key(|told| format!("{told:?}"));
            let words: Vec<_> = findings.list().iter().filter(|f| f.severity == Severity::Warning).cloned().collect();
            (summary.allocated_blocks, summary.leaked_bytes, told, words)
        };
        let in_order = ask(&table);
        // Blocks of the disk change places with each other, so that each is still one of the disk.
        table[..disk as usize].reverse();
        let reversed = ask(&table);
        assert_eq!(in_order, reversed, "round {round}");
        errors += usize::from(in_order.2.iter().any(|(severity, ..)| *severity == Severity::Error));
        unaligned += usize::from(in_order.2.iter().any(|(_, _, fault)| *fault == Fault::Alignment));
        stale += usize::from(disk < BLOCKS);
    }
    assert!(errors > 20 && unaligned > 20 && stale > 20, "{errors} {unaligned} {stale}");
}

/// Windows, QEMU and VirtualBox have their own layouts; none of their sound images has an error but those it is known for.
#[test]
fn real_images_have_no_errors() {
    let Some(folder) = super::real::folder() else { return };
    for image in super::real::ALL.iter().filter(|image| image.name().ends_with(".vhd")) {
        let bytes = std::fs::read(folder.join(image.name())).unwrap();
        let (summary, findings) = check(&bytes, true);
        summary.unwrap();
        let errors: Vec<_> = findings.list().iter().filter(|finding| finding.severity > Severity::Warning).collect();
        let expected = if image.name() == "plaso/image.vhd" { 1 } else { 0 };
        assert_eq!(errors.len(), expected, "{}: {errors:?}", image.name());
    }
}
