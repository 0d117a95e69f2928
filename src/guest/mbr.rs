//! Master boot records and the logical partitions behind them.
//!
//! Owns: their layout, telling them from the boot sector of a file system, and the walk along extended partitions.
//! Must not know: GUID partition tables beyond the entry that announces one.
//!
//! The layout is the one every PC operating system shares; UEFI 2.10 section 5.2 writes it down.

use super::ReadAt;
use super::partition::{Partition, PartitionKind, PartitionTable, TableKind};
use crate::error::Result;
use std::collections::BTreeSet;
use std::ops::Range;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most logical partitions that are followed: Linux gives numbers to fewer.
const MAX_LOGICAL: u32 = 256;
/// An entry of this type says that a GUID partition table counts.
const PROTECTIVE: u8 = 0xEE;
/// Types of extended partitions: CHS, LBA, Linux.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// What the boot sectors of file systems have where a master boot record has code, and at which offset.
const BOOT_SECTORS: [(usize, &[u8]); 7] = [
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (54, b"FAT12   "),
    (54, b"FAT16   "),
    (54, b"FAT     "),
    (82, b"FAT32   "),
    (0, b"XFSB"),
];
const RECORD_LEN: usize = 512;

/// One entry as it lies in the record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    status: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    first: U32,
    count: U32,
}

/// The first sector of a disk or of an extended partition.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    code: [u8; 446],
    entries: [RawEntry; 4],
    signature: [u8; 2],
}

const _: () = assert!(size_of::<RawRecord>() == RECORD_LEN);

/// What the first sector of a disk is.
pub(super) enum Found {
    /// No partition table.
    Nothing,
    /// The record that stands before a GUID partition table.
    Protective,
    /// A table.
    Table(PartitionTable),
}

impl RawEntry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.count.get() != 0
    }

    /// Its bytes, when it counts from `base` in sectors of `sector` bytes.
    fn range(&self, base: u64, sector: u64) -> Range<u64> {
        let start = base.saturating_add(u64::from(self.first.get()).saturating_mul(sector));
        start..start.saturating_add(u64::from(self.count.get()).saturating_mul(sector))
    }
}

fn record(disk: &dyn ReadAt, offset: u64) -> Result<Option<RawRecord>> {
    if offset.checked_add(RECORD_LEN as u64).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut bytes = [0; RECORD_LEN];
    disk.read_at(&mut bytes, offset)?;
    let record: RawRecord = zerocopy::transmute!(bytes);
    Ok((record.signature == [0x55, 0xAA]).then_some(record))
}

/// What [`protect`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protective {
    /// A record that covers another size; it is changed.
    Changed,
    /// One that is right.
    AsItWas,
    /// Other entries beside the protective one: whoever made them knows what they cover.
    NotAlone,
}

/// Makes the protective record at the start of `bytes` cover a disk that ends with sector `last` (UEFI 2.10, 5.2.3).
pub(super) fn protect(bytes: &mut [u8], last: u64) -> Protective {
    let Ok((record, _)) = RawRecord::mut_from_prefix(bytes) else { return Protective::NotAlone };
    let [entry, others @ ..] = &mut record.entries;
    if entry.kind != PROTECTIVE || entry.first.get() != 1 || others.iter().any(|other| other.kind != 0) {
        return Protective::NotAlone;
    }
    let count = u32::try_from(last).unwrap_or(u32::MAX);
    if entry.count.get() == count {
        return Protective::AsItWas;
    }
    (entry.count, entry.last_chs) = (count.into(), [0xFF; 3]);
    Protective::Changed
}

/// Reads the first sector of `disk`, and the chains of logical partitions it leads to.
///
/// # Errors
/// What reading answers.
pub(super) fn read(disk: &dyn ReadAt) -> Result<Found> {
    let Some(record) = record(disk, 0)? else { return Ok(Found::Nothing) };
    let names = |(at, name): &(usize, &[u8])| record.as_bytes().get(*at..).is_some_and(|rest| rest.starts_with(name));
    if BOOT_SECTORS.iter().any(names) {
        return Ok(Found::Nothing);
    }
    // Boot code of something else can end in the same two bytes; then the entries make no sense.
    let makes_sense = |entry: &RawEntry| entry.status & 0x7F == 0 && (!entry.is_used() || entry.first.get() > 0);
    if !record.entries.iter().all(makes_sense) || !record.entries.iter().any(RawEntry::is_used) {
        return Ok(Found::Nothing);
    }
    if record.entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        return Ok(Found::Protective);
    }
    let mut table = PartitionTable::new(TableKind::Mbr);
    let sector = u64::from(disk.sector_size());
    for (number, entry) in (1u32..).zip(&record.entries).filter(|(_, entry)| entry.is_used()) {
        let range = entry.range(0, sector);
        if EXTENDED.contains(&entry.kind) {
            table.containers.push(range);
        } else {
            table.partitions.push(Partition { number, range, kind: PartitionKind::Mbr(entry.kind), doubt: None });
        }
    }
    let mut number = 5;
    for container in table.containers.clone() {
        follow(disk, &container, &mut number, &mut table)?;
    }
    Ok(Found::Table(table))
}

/// Follows the chain of records in the extended partition `container`, each of which describes one logical partition and
/// the next record. Positions of partitions count from their record, those of records from the container.
fn follow(disk: &dyn ReadAt, container: &Range<u64>, number: &mut u32, table: &mut PartitionTable) -> Result<()> {
    let sector = u64::from(disk.sector_size());
    let mut at = container.start;
    let mut seen = BTreeSet::new();
    loop {
        let place = format!("the record of logical partition {number} at byte {at}");
        if !seen.insert(at) || seen.len() > MAX_LOGICAL as usize {
            table.unreadable(format!("{place} leads back to an earlier one, or they are more than {MAX_LOGICAL}"));
            return Ok(());
        }
        let Some(record) = record(disk, at)? else {
            table.unreadable(format!("{place} is none, or lies outside the disk"));
            return Ok(());
        };
        let mut next = None;
        for entry in record.entries.iter().filter(|entry| entry.is_used()) {
            if EXTENDED.contains(&entry.kind) {
                next = Some(entry.range(container.start, sector));
                continue;
            }
            let range = entry.range(at, sector);
            let outside = range.end > container.end;
            let doubt = outside.then(|| "it reaches out of its extended partition".to_owned());
            table.partitions.push(Partition { number: *number, range, kind: PartitionKind::Mbr(entry.kind), doubt });
            *number = number.saturating_add(1);
        }
        let Some(next) = next else { return Ok(()) };
        if !container.contains(&next.start) {
            table.unreadable(format!("{place} leads out of its extended partition, to byte {}", next.start));
            return Ok(());
        }
        at = next.start;
    }
}
