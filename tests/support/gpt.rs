//! GUID partition tables, written and read from UEFI 2.10, sections 5.2 and 5.3, alone.
//!
//! Owns: a builder, a reader of one copy, and the rules a table that fits its disk keeps.

use super::bytes::{Outcome, le32, le64};

/// The CRC-32 of UEFI: polynomial 0x04C11DB7, reflected.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 })
    })
}

/// A table to be written.
#[derive(Clone, Debug)]
pub struct GptSpec {
    /// Bytes per sector.
    pub sector: usize,
    /// Entries of 128 bytes.
    pub count: usize,
    /// First and last sector of each partition.
    pub partitions: Vec<(u64, u64)>,
}

/// One copy as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The other copy's sector.
    pub other: u64,
    /// First and last usable sector.
    pub usable: (u64, u64),
    /// Where its entries start.
    pub entries_at: u64,
    /// The disk's id.
    pub disk_id: Vec<u8>,
    /// All entries.
    pub entries: Vec<u8>,
}

impl Copy {
    /// First and last sector of each partition.
    pub fn partitions(&self) -> Vec<(u64, u64)> {
        let used = self.entries.chunks_exact(128).filter(|entry| entry[..16].iter().any(|byte| *byte != 0));
        used.map(|entry| (le64(entry, 32), le64(entry, 40))).collect()
    }
}

impl GptSpec {
    /// Sectors of the entries.
    pub fn array(&self) -> u64 {
        (self.count * 128).div_ceil(self.sector) as u64
    }

    /// Writes the table to `disk`, all of it.
    pub fn write(&self, disk: &mut [u8]) {
        let last = (disk.len() / self.sector) as u64 - 1;
        disk[..2 * self.sector].fill(0);
        disk[last as usize * self.sector..].fill(0);
        disk[446 + 4] = 0xEE;
        disk[446 + 8..446 + 12].copy_from_slice(&1u32.to_le_bytes());
        disk[446 + 12..446 + 16].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        let mut entries = vec![0; self.count * 128];
        for (number, (first, end)) in self.partitions.iter().enumerate() {
            let entry = &mut entries[number * 128..][..128];
            entry[..16].fill(0xA2);
            entry[16..32].fill(number as u8 + 1);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&end.to_le_bytes());
        }
        for (own, other, at) in [(1, last, 2), (last, 1, last - self.array())] {
            let mut header = vec![0; 92];
            header[..8].copy_from_slice(b"EFI PART");
            let words = [(8, 0x0001_0000u32), (12, 92), (80, self.count as u32), (84, 128), (88, crc32(&entries))];
            for (offset, value) in words {
                header[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            }
            let long = [(24, own), (32, other), (40, 2 + self.array()), (48, last - self.array() - 1), (72, at)];
            for (offset, value) in long {
                header[offset..offset + 8].copy_from_slice(&u64::to_le_bytes(value));
            }
            header[56..72].fill(0xD1);
            let sum = crc32(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            disk[own as usize * self.sector..][..92].copy_from_slice(&header);
            disk[at as usize * self.sector..][..entries.len()].copy_from_slice(&entries);
        }
    }
}

/// The copy whose header is in sector `own`.
///
/// # Errors
/// What is wrong with it.
pub fn read_copy(disk: &[u8], sector: usize, own: u64) -> Outcome<Copy> {
    let start = own as usize * sector;
    let header = disk.get(start..start + 92).ok_or("a header outside the disk")?;
    if !header.starts_with(b"EFI PART") {
        return Err(format!("no header in sector {own}"));
    }
    let mut summed = header.to_vec();
    summed[16..20].fill(0);
    if crc32(&summed) != le32(header, 16) || le32(header, 12) != 92 {
        return Err(format!("a wrong sum of the header in sector {own}"));
    }
    if le64(header, 24) != own {
        return Err(format!("the header in sector {own} says it is in {}", le64(header, 24)));
    }
    let at = le64(header, 72);
    let len = le32(header, 80) as usize * 128;
    let entries = disk.get(at as usize * sector..at as usize * sector + len).ok_or("entries outside the disk")?;
    if crc32(entries) != le32(header, 88) {
        return Err(format!("a wrong sum of the entries in sector {at}"));
    }
    Ok(Copy {
        other: le64(header, 32),
        usable: (le64(header, 40), le64(header, 48)),
        entries_at: at,
        disk_id: header[56..72].to_vec(),
        entries: entries.to_vec(),
    })
}

/// What keeps the table on `disk` from fitting it; empty when it does.
pub fn gpt_problems(disk: &[u8], sector: usize) -> Vec<String> {
    let last = (disk.len() / sector) as u64 - 1;
    let (first, second) = match (read_copy(disk, sector, 1), read_copy(disk, sector, last)) {
        (Ok(first), Ok(second)) => (first, second),
        (first, second) => return [first.err(), second.err()].into_iter().flatten().collect(),
    };
    let array = (first.entries.len()).div_ceil(sector) as u64;
    let covered = le32(disk, 446 + 12);
    let rules = [
        (first.other == last, "the first copy does not name the last sector"),
        (second.other == 1, "the backup does not name sector 1"),
        (first.entries == second.entries, "the entries differ"),
        (first.disk_id == second.disk_id, "the disk's ids differ"),
        (first.usable == second.usable, "the usable sectors differ"),
        (first.usable.1 == last - array - 1, "the last usable sector is not the one before the backup"),
        (second.entries_at == last - array, "the backup's entries are not right before its header"),
        (first.partitions().iter().all(|(_, end)| *end <= first.usable.1), "a partition outside the usable sectors"),
        (
            disk[446 + 4] != 0xEE || u64::from(covered) == last.min(u32::MAX.into()),
            "the protective record covers another size",
        ),
    ];
    rules.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what.to_owned()).collect()
}
