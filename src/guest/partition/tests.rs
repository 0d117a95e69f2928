//! Tables as their specifications write them, and damaged ones.
//!
//! Owns: builders of whole tables, written from the format pages. Must not know: how the readers are cut.

use super::*;
use crate::error::{Error, ErrorKind};

/// A disk in memory.
struct Bytes {
    bytes: Vec<u8>,
    sector: u32,
}

impl ReadAt for Bytes {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn sector_size(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let at = usize::try_from(offset).unwrap();
        let Some(part) = self.bytes.get(at..).and_then(|rest| rest.get(..buf.len())) else {
            return Err(Error::new(ErrorKind::InvalidInput, "past the end of the disk"));
        };
        buf.copy_from_slice(part);
        Ok(())
    }
}

fn read(bytes: &[u8], sector: u32) -> PartitionTable {
    PartitionTable::read(&Bytes { bytes: bytes.to_vec(), sector }).unwrap()
}

fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Entry `index` of the record in sector `record`: type, first sector and number of sectors.
fn entry(disk: &mut [u8], (record, index): (usize, usize), kind: u8, (first, count): (u32, u32)) {
    let at = record * 512 + 446 + index * 16;
    disk[at + 4] = kind;
    put(disk, at + 8, &first.to_le_bytes());
    put(disk, at + 12, &count.to_le_bytes());
    put(disk, record * 512 + 510, &[0x55, 0xAA]);
}

fn ranges(table: &PartitionTable) -> Vec<(u32, Range<u64>)> {
    table.partitions().iter().map(|one| (one.number, one.range.start / 512..one.range.end / 512)).collect()
}

/// A primary partition, and two logical ones in an extended partition from sector 1000 on.
fn with_logical() -> Vec<u8> {
    let mut disk = vec![0; 4000 * 512];
    entry(&mut disk, (0, 0), 0x83, (100, 500));
    entry(&mut disk, (0, 2), 0x0F, (1000, 2000));
    entry(&mut disk, (1000, 0), 0x07, (10, 200));
    entry(&mut disk, (1000, 1), 0x05, (500, 600));
    entry(&mut disk, (1500, 0), 0x0C, (20, 300));
    disk
}

#[test]
fn logical_partitions_count_from_their_own_record() {
    let table = read(&with_logical(), 512);
    assert_eq!(table.kind(), TableKind::Mbr);
    assert_eq!(ranges(&table), [(1, 100..600), (5, 1010..1210), (6, 1520..1820)]);
    assert_eq!(table.partitions()[2].kind, PartitionKind::Mbr(0x0C));
    assert!(table.is_readable() && table.notes().is_empty());
    assert!(table.partitions().iter().all(|one| one.doubt.is_none()));
    assert_eq!(table.minimum_size(), Some(3000 * 512), "the extended partition's end");
}

#[test]
fn a_chain_of_logical_partitions_ends() {
    // Back to itself, to the first record, out of the container, to a sector without a record.
    for next in [0, 500, 5000, 700] {
        let mut disk = with_logical();
        entry(&mut disk, (1500, 1), 0x05, (next, 10));
        let table = read(&disk, 512);
        assert!(!table.is_readable(), "{next}");
        assert_eq!(table.notes().len(), 1);
        assert_eq!(table.minimum_size(), None);
        assert_eq!(ranges(&table).len(), 3, "what was found stays in the list");
    }
}

#[test]
fn partitions_over_each_other_or_past_the_end_are_doubtful() {
    let mut disk = with_logical();
    entry(&mut disk, (0, 1), 0x83, (599, 10));
    entry(&mut disk, (0, 3), 0x83, (3500, 501));
    let table = read(&disk, 512);
    let doubtful: Vec<u32> =
        table.partitions().iter().filter(|one| one.doubt.is_some()).map(|one| one.number).collect();
    assert_eq!(doubtful, [1, 2, 4]);
}

#[test]
fn boot_sectors_of_file_systems_are_no_tables() {
    for (at, name) in [(3, &b"NTFS    "[..]), (3, b"EXFAT   "), (54, b"FAT16   "), (82, b"FAT32   "), (0, b"XFSB")] {
        let mut disk = with_logical();
        put(&mut disk, at, name);
        assert_eq!(read(&disk, 512).kind(), TableKind::None, "{name:?}");
    }
    // Code where the entries would be.
    let mut disk = with_logical();
    disk[446 + 16] = 0x3E;
    assert_eq!(read(&disk, 512).kind(), TableKind::None);
    assert_eq!(read(&[0; 4096], 512).kind(), TableKind::None);
    assert_eq!(read(&[0; 100], 512).kind(), TableKind::None);
}

/// A table with two partitions, as UEFI 2.10 section 5.3 describes it, in sectors of `sector` bytes.
fn gpt(sector: usize, sectors: usize) -> Vec<u8> {
    let mut disk = vec![0; sector * sectors];
    entry(&mut disk, (0, 0), 0xEE, (1, u32::MAX));
    let mut entries = vec![0; 128 * 128];
    for (index, first, last) in [(0, 64u64, 99u64), (3, 100, 119)] {
        put(&mut entries, index * 128, &[0x11; 16]);
        put(&mut entries, index * 128 + 16, &[index as u8 + 1; 16]);
        put(&mut entries, index * 128 + 32, &first.to_le_bytes());
        put(&mut entries, index * 128 + 40, &last.to_le_bytes());
    }
    let (last, array) = (sectors - 1, entries.len() / sector);
    for (own, other, at) in [(1, last, 2), (last, 1, last - array)] {
        let mut header = vec![0; 92];
        put(&mut header, 0, b"EFI PART");
        put(&mut header, 8, &[0, 0, 1, 0, 92, 0, 0, 0]);
        for (field, value) in [(24, own), (32, other), (40, 40), (48, last - array - 1), (72, at)] {
            put(&mut header, field, &(value as u64).to_le_bytes());
        }
        put(&mut header, 80, &[128, 0, 0, 0, 128, 0, 0, 0]);
        put(&mut header, 88, &crc32fast::hash(&entries).to_le_bytes());
        let sum = crc32fast::hash(&header);
        put(&mut header, 16, &sum.to_le_bytes());
        put(&mut disk, own * sector, &header);
        put(&mut disk, at * sector, &entries);
    }
    disk
}

#[test]
fn a_gpt_is_read_in_its_sectors() {
    for sector in [512usize, 4096] {
        let table = read(&gpt(sector, 200), sector as u32);
        assert_eq!(table.kind(), TableKind::Gpt);
        assert!(table.is_readable() && table.notes().is_empty(), "{:?}", table.notes());
        let found: Vec<_> = table.partitions().iter().map(|one| (one.number, one.range.clone())).collect();
        let bytes = |first: usize, end: usize| (first * sector) as u64..(end * sector) as u64;
        assert_eq!(found, [(1, bytes(64, 100)), (4, bytes(100, 120))]);
        assert!(table.partitions().iter().all(|one| one.doubt.is_none()));
        let backup = 128 * 128 + sector;
        assert_eq!(table.minimum_size(), Some((120 * sector + backup) as u64));
    }
}

#[test]
fn a_damaged_copy_gives_way_to_the_other() {
    let whole = gpt(512, 200);
    let partitions = read(&whole, 512).partitions;
    // A byte of the first header, of the first array; of the last header, of the last array.
    for at in [512 + 60, 1024 + 5, 199 * 512 + 60, 170 * 512] {
        let mut disk = whole.clone();
        disk[at] ^= 1;
        let table = read(&disk, 512);
        assert!(table.is_readable(), "{at}");
        assert_eq!((table.notes().len(), &table.partitions), (1, &partitions), "{at}");
    }
    let mut both = whole;
    both[512 + 60] ^= 1;
    both[199 * 512 + 60] ^= 1;
    let table = read(&both, 512);
    assert!(!table.is_readable() && table.partitions().is_empty() && table.minimum_size().is_none());
}

#[test]
fn a_gpt_on_a_disk_that_grew_has_its_backup_where_the_first_copy_says() {
    let mut disk = gpt(512, 200);
    disk.resize(300 * 512, 0);
    let table = read(&disk, 512);
    assert!(table.is_readable() && table.notes().is_empty());
    assert_eq!(table.gpt().unwrap().backup.as_ref().unwrap().own, 199);
}

/// Every byte of the tables set to several values: no panic, no answer that was not in the file.
#[test]
fn bytes_from_anywhere_are_survived() {
    for (disk, end) in [(with_logical(), 512), (with_logical(), 1001 * 512), (gpt(512, 200), 2048)] {
        for at in (0..end).rev().take(1100) {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut disk = disk.clone();
                disk[at] = value;
                let table = read(&disk, 512);
                assert!(table.partitions().len() <= 128);
            }
        }
    }
}
