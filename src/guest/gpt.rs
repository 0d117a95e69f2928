//! GUID partition tables (UEFI 2.10, section 5.3).
//!
//! Owns: the layout of a header and its entries, their checksums, and which of the two copies counts.
//! Must not know: what a partition holds.

mod moved;

pub use moved::GptMove;

use super::ReadAt;
use super::partition::{Partition, PartitionKind, PartitionTable, TableKind};
use crate::error::Result;
use crate::guid::{Guid, RawGuid};
use crate::units::round_up;
use std::mem::offset_of;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const SIGNATURE: [u8; 8] = *b"EFI PART";
/// The largest array of entries that is read, in bytes: 8192 entries of the usual size. Every known tool writes 128.
const MAX_ENTRIES_LEN: u64 = 1 << 20;
/// The smallest entry.
const ENTRY_LEN: u64 = size_of::<RawEntry>() as u64;

/// The header as it lies on the disk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    signature: [u8; 8],
    revision: U32,
    len: U32,
    checksum: U32,
    reserved: U32,
    own: U64,
    other: U64,
    first_usable: U64,
    last_usable: U64,
    disk: RawGuid,
    entries: U64,
    count: U32,
    entry_len: U32,
    entries_checksum: U32,
}

const _: () = assert!(size_of::<RawHeader>() == 92);

/// An entry as it lies on the disk.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    kind: RawGuid,
    id: RawGuid,
    first: U64,
    last: U64,
    attributes: U64,
    name: [u8; 72],
}

const _: () = assert!(ENTRY_LEN == 128);

/// One of the two copies, with both checksums right. Places are sector numbers of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GptCopy {
    /// The header's bytes, as long as it says it is.
    pub header: Vec<u8>,
    /// The whole array of entries, used or not.
    pub entries: Vec<u8>,
    /// Where this header lies.
    pub own: u64,
    /// Where the other copy's header lies.
    pub other: u64,
    /// The first sector partitions may use.
    pub first_usable: u64,
    /// The last one.
    pub last_usable: u64,
    /// The disk's id.
    pub disk_id: Guid,
    /// Where this copy's array of entries starts.
    pub entries_at: u64,
    /// How many entries the array has.
    pub count: u32,
    /// Bytes per entry: 128 times a power of two.
    pub entry_len: u32,
}

/// Both copies of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpt {
    /// Bytes per sector.
    pub sector_size: u32,
    /// The copy at the start of the disk, or what is wrong with it.
    pub primary: Result<GptCopy, String>,
    /// The copy at the end, where the primary one says it is, or else in the last sector; or what is wrong with it.
    pub backup: Result<GptCopy, String>,
}

impl Gpt {
    /// The copy that counts: the first one, or the backup when the first is damaged.
    #[must_use]
    pub fn in_force(&self) -> Option<&GptCopy> {
        self.primary.as_ref().or(self.backup.as_ref()).ok()
    }

    /// How many bytes a disk whose last partition ends at byte `end` needs: its backup table follows.
    pub(super) fn size_with_backup(&self, end: u64) -> Option<u64> {
        let sector = u64::from(self.sector_size);
        let copy = self.in_force()?;
        let array = round_up(copy.entries.len() as u64, sector)?;
        let least = copy.first_usable.checked_mul(sector)?;
        round_up(end.max(least), sector)?.checked_add(array)?.checked_add(sector)
    }
}

/// Reads both copies from `disk`.
///
/// # Errors
/// What reading answers.
pub(super) fn read(disk: &dyn ReadAt) -> Result<PartitionTable> {
    let sector = u64::from(disk.sector_size());
    let last = disk.size().checked_div(sector).unwrap_or(0).saturating_sub(1);
    let primary = copy(disk, 1)?;
    let at = primary.as_ref().map_or(last, |copy| copy.other);
    let mut backup = copy(disk, at)?;
    if backup.is_err() && at != last {
        let moved = copy(disk, last)?;
        backup = if moved.is_ok() { moved } else { backup };
    }
    let gpt = Gpt { sector_size: disk.sector_size(), primary, backup };
    let mut table = PartitionTable::new(TableKind::Gpt);
    match (&gpt.primary, &gpt.backup) {
        (Err(first), Err(second)) => {
            table.unreadable(format!("the GUID partition table is damaged ({first}), and so is its backup ({second})"));
        }
        (Err(why), Ok(_)) => table.notes.push(format!("the GUID partition table is damaged: {why}; its backup counts")),
        (Ok(_), Err(why)) => table.notes.push(format!("the backup of the GUID partition table is damaged: {why}")),
        (Ok(one), Ok(other)) if one.entries != other.entries || one.disk_id != other.disk_id => {
            table.unreadable("the GUID partition table and its backup say different things");
        }
        _ => {}
    }
    if let Some(copy) = gpt.in_force() {
        partitions(copy, sector, &mut table);
    }
    table.gpt = Some(Box::new(gpt));
    Ok(table)
}

/// The copy whose header is in sector `at`, or what is wrong with it.
fn copy(disk: &dyn ReadAt, at: u64) -> Result<Result<GptCopy, String>> {
    let sector = u64::from(disk.sector_size());
    let mut bytes = vec![0; usize::try_from(sector).unwrap_or(0)];
    let Some(start) = at.checked_mul(sector).filter(|start| inside(disk, *start, sector)) else {
        return Ok(Err(format!("its header would lie in sector {at}, outside the disk")));
    };
    disk.read_at(&mut bytes, start)?;
    let Some((raw, _)) = RawHeader::read_from_prefix(&bytes).ok() else {
        return Ok(Err("sectors too small for a header".to_owned()));
    };
    if raw.signature != SIGNATURE {
        return Ok(Err(format!("no signature in sector {at}")));
    }
    let header = usize::try_from(raw.len.get()).ok().and_then(|len| bytes.get(..len));
    let Some(header) = header.filter(|header| header.len() >= size_of::<RawHeader>()) else {
        return Ok(Err(format!("a header of {} bytes in sector {at}", raw.len)));
    };
    let mut summed = header.to_vec();
    if let Some(field) = summed.get_mut(offset_of!(RawHeader, checksum)..).and_then(<[u8]>::first_chunk_mut::<4>) {
        *field = [0; 4];
    }
    if crc32fast::hash(&summed) != raw.checksum.get() {
        return Ok(Err(format!("a wrong checksum of the header in sector {at}")));
    }
    if raw.own.get() != at {
        return Ok(Err(format!("a header in sector {at} that says it lies in sector {}", raw.own)));
    }
    let entry_len = u64::from(raw.entry_len.get());
    let array = u64::from(raw.count.get()).saturating_mul(entry_len);
    let multiple = entry_len.checked_div(ENTRY_LEN).unwrap_or(0);
    if !multiple.is_power_of_two() || entry_len % ENTRY_LEN != 0 || array > MAX_ENTRIES_LEN {
        return Ok(Err(format!("{} entries of {entry_len} bytes", raw.count)));
    }
    let start = raw.entries.get().checked_mul(sector);
    let Some(start) = start.filter(|start| inside(disk, *start, array)) else {
        return Ok(Err(format!("entries in sector {}, outside the disk", raw.entries)));
    };
    let mut entries = vec![0; usize::try_from(array).unwrap_or(0)];
    disk.read_at(&mut entries, start)?;
    if crc32fast::hash(&entries) != raw.entries_checksum.get() {
        return Ok(Err(format!("a wrong checksum of the entries in sector {}", raw.entries)));
    }
    Ok(Ok(GptCopy {
        header: header.to_vec(),
        entries,
        own: raw.own.get(),
        other: raw.other.get(),
        first_usable: raw.first_usable.get(),
        last_usable: raw.last_usable.get(),
        disk_id: raw.disk.get(),
        entries_at: raw.entries.get(),
        count: raw.count.get(),
        entry_len: raw.entry_len.get(),
    }))
}

fn inside(disk: &dyn ReadAt, start: u64, len: u64) -> bool {
    start.checked_add(len).is_some_and(|end| end <= disk.size())
}

/// The used entries of `copy`.
fn partitions(copy: &GptCopy, sector: u64, table: &mut PartitionTable) {
    let len = usize::try_from(copy.entry_len).unwrap_or(usize::MAX).max(1);
    for (number, bytes) in (1u32..).zip(copy.entries.chunks_exact(len)) {
        let mut raw = RawEntry::new_zeroed();
        if let Some(part) = bytes.get(..raw.as_bytes().len()) {
            raw.as_mut_bytes().copy_from_slice(part);
        }
        if raw.kind.get().is_nil() {
            continue;
        }
        let (first, last) = (raw.first.get(), raw.last.get());
        let start = first.saturating_mul(sector);
        let end = last.saturating_add(1).saturating_mul(sector);
        let doubt = if last < first {
            Some(format!("it ends in sector {last}, before it starts in sector {first}"))
        } else if first < copy.first_usable || last > copy.last_usable {
            Some(format!("sectors {first} to {last} are not among those partitions may use"))
        } else {
            None
        };
        let range = start..end.max(start);
        table.partitions.push(Partition { number, range, kind: PartitionKind::Gpt(raw.kind.get()), doubt });
    }
}
