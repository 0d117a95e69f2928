//! Region tables of which one copy is damaged, regions that overlap, stand twice or lie where none may.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::error::ErrorKind;
use crate::storage::MemoryStorage;
use crate::units::MIB;

fn table() -> RegionTable {
    RegionTable::new(3 * MIB..4 * MIB, 2 * MIB..3 * MIB)
}

fn header() -> Header {
    Header {
        sequence: 1,
        file_write_guid: Guid::nil(),
        data_write_guid: Guid::nil(),
        log_guid: Guid::nil(),
        log_version: 0,
        version: 1,
        log_length: 1 << 20,
        log_offset: MIB,
    }
}

fn file(first: &[u8], second: &[u8]) -> MemoryStorage {
    let storage = MemoryStorage::new();
    storage.set_len(4 * MIB).unwrap();
    storage.write_all_at(first, REGION_TABLE_AT[0]).unwrap();
    storage.write_all_at(second, REGION_TABLE_AT[1]).unwrap();
    storage
}

fn read(first: &[u8], second: &[u8]) -> (Result<RegionTable>, Findings) {
    let mut findings = Findings::new();
    let table = RegionTable::read(&file(first, second), &header(), &mut findings);
    (table, findings)
}

/// Reads two copies of the table that holds `regions`.
fn read_regions(regions: &[Region]) -> (Result<RegionTable>, Vec<(Severity, Fault)>) {
    let bytes = RegionTable { all: regions.to_vec(), ..table() }.encode();
    let (table, findings) = read(&bytes, &bytes);
    (table, findings.list().iter().map(|finding| (finding.severity, finding.problem.fault)).collect())
}

fn region(id: u128, offset: u64, length: u32) -> Region {
    Region { id: Guid::from_u128(id), offset, length, flags: 0 }
}

fn with(extra: Region) -> Vec<Region> {
    let mut all = table().all;
    all.push(extra);
    all
}

#[test]
fn checksum_vector() {
    let bytes = table().encode();
    assert_eq!(bytes.len(), REGION_TABLE_LEN);
    assert_eq!(bytes[4..8], 0xC66B_8CAEu32.to_le_bytes());
}

#[test]
fn either_copy_will_do_and_the_first_wins() {
    let good = table().encode();
    let mut bad = good.clone();
    bad[100] ^= 1;
    for (first, second) in [(&good, &bad), (&bad, &good)] {
        let (read, findings) = read(first, second);
        assert_eq!(read.unwrap(), table());
        let [finding] = findings.list() else { panic!("{findings:?}") };
        assert_eq!((finding.severity, finding.problem.fault), (Severity::Warning, Fault::Checksum));
        assert!(finding.repairable);
    }
    assert_eq!(read(&bad, &bad).0.unwrap_err().kind(), ErrorKind::Corrupt);

    let other = table().with_bat(&(8 * MIB..9 * MIB)).encode();
    let (read, findings) = read(&good, &other);
    assert_eq!(read.unwrap(), table());
    assert_eq!(findings.list()[0].problem.fault, Fault::Mismatch);
}

#[test]
fn moved_bat_is_moved_in_the_bytes() {
    let moved = table().with_bat(&(8 * MIB..10 * MIB));
    assert_eq!((moved.bat().offset, moved.bat().length), (8 * MIB, 2 << 20));
    let storage = file(&moved.encode(), &moved.encode());
    storage.set_len(10 * MIB).unwrap();
    let mut findings = Findings::new();
    assert_eq!(RegionTable::read(&storage, &header(), &mut findings).unwrap(), moved);
    assert!(findings.list().is_empty());
}

#[test]
fn unknown_region_is_kept_unless_it_is_required() {
    let (read, findings) = read_regions(&with(region(7, 0x10_0000 * 3, 0)));
    assert_eq!(read.unwrap().all().len(), 3);
    assert_eq!(findings, [(Severity::Error, Fault::Range)]);

    let (read, _) = read_regions(&with(Region { flags: REGION_REQUIRED, ..region(7, 3 * MIB, 1 << 20) }));
    let error = read.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("00000000-0000-0000-0000-000000000007"), "{error}");
}

/// QEMU leaves the Required bit of both clear.
#[test]
fn required_bits_may_be_clear() {
    let mut all = table().all;
    all.iter_mut().for_each(|region| region.flags = 0);
    let (read, findings) = read_regions(&all);
    assert!(read.is_ok());
    assert_eq!(findings, [(Severity::Warning, Fault::Value); 2]);
}

#[test]
fn bat_and_metadata_must_both_be_there() {
    for keep in [0, 1] {
        let (read, _) = read_regions(&table().all[keep..=keep]);
        assert_eq!(read.unwrap_err().problem().unwrap().fault, Fault::Missing);
    }
}

#[test]
fn overlaps_ends_and_doubles_are_errors() {
    for (extra, fault) in [
        (region(7, 2 * MIB, 1 << 20), Fault::Overlap),
        (region(7, MIB, 1 << 20), Fault::Overlap),
        (region(7, 4 * MIB, 1 << 20), Fault::Range),
        (Region { flags: REGION_REQUIRED, ..table().all[0] }, Fault::Duplicate),
    ] {
        let (read, findings) = read_regions(&with(extra));
        assert!(read.is_ok());
        assert_eq!(findings, [(Severity::Error, fault)], "{extra:?}");
    }
}

#[test]
fn known_region_at_an_impossible_place_is_fatal() {
    for (offset, length) in [(0, 1 << 20), (u64::MAX, 1 << 20), (3 * MIB, 0), (3 * MIB + 512, 1 << 20), (3 * MIB, 5)] {
        let mut all = table().all;
        all[0] = Region { offset, length, ..all[0] };
        assert_eq!(read_regions(&all).0.unwrap_err().kind(), ErrorKind::Corrupt, "{offset} {length}");
    }
}

#[test]
fn more_entries_than_fit_are_refused() {
    let mut bytes = table().encode();
    bytes[8..12].copy_from_slice(&2048u32.to_le_bytes());
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(read(&bytes, &bytes).0.unwrap_err().problem().unwrap().fault, Fault::Value);
}
