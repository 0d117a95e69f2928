//! Which parts of a guest's file systems hold nothing.
//!
//! Owns: finding volumes, telling file systems apart, and when a volume is left alone. Must not know: how each file system
//! keeps its free space (one file each); what is done with the answer.
//!
//! Only what a file system itself says is free counts, and only when nothing speaks against believing it: it was unmounted
//! cleanly, its checksums and counts agree, and it uses no feature that is not known here. In doubt a volume is skipped
//! with the reason; nobody loses a byte by that.

mod exfat;
mod ext;
mod fat;
mod ntfs;
mod part;
mod xfs;

use super::{PartitionKind, PartitionTable, ReadAt, TableKind};
use crate::error::Result;
use crate::guid::Guid;
use part::{Part, Runs, Stop};
use std::ops::Range;

/// A file system whose free space can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum FileSystem {
    /// ext2, ext3, ext4.
    Ext,
    /// XFS.
    Xfs,
    /// NTFS.
    Ntfs,
    /// FAT12, FAT16, FAT32.
    Fat,
    /// exFAT.
    ExFat,
}

impl FileSystem {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext2/3/4",
            Self::Xfs => "XFS",
            Self::Ntfs => "NTFS",
            Self::Fat => "FAT",
            Self::ExFat => "exFAT",
        }
    }
}

/// A part of the disk that a file system may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The number of its partition; `None` for a disk without a partition table.
    pub partition: Option<u32>,
    /// Its bytes of the disk.
    pub range: Range<u64>,
    /// What is in it, or why it is left alone.
    pub content: Result<FileSystem, String>,
}

/// What the free space of a volume came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreeSpace {
    /// So many bytes are free.
    Bytes(u64),
    /// The volume cannot be believed, for this reason; what was shown of it does not count.
    Doubtful(String),
}

/// The volumes of `disk`: its partitions, or the whole of it when it has no partition table. Partitions that are doubtful
/// themselves are among them, with the reason.
///
/// # Errors
/// What reading answers.
pub fn volumes(disk: &dyn ReadAt, table: &PartitionTable) -> Result<Vec<Volume>> {
    let whole = 0..disk.size();
    if table.kind() == TableKind::None {
        return Ok(vec![volume(disk, None, whole)?]);
    }
    let mut volumes = Vec::new();
    // A file system made over a whole disk, or left from before the disk was divided: nobody can tell which counts.
    let over_table = look(&Part::new(disk, whole))?;
    for partition in table.partitions() {
        let mut found = match &partition.doubt {
            Some(doubt) => {
                let content = Err(format!("the partition cannot be believed: {doubt}"));
                Volume { partition: Some(partition.number), range: partition.range.clone(), content }
            }
            None => volume(disk, Some(partition.number), partition.range.clone())?,
        };
        if is_shared(partition.kind) {
            let why =
                "its partition type says that it belongs to a RAID, to LVM, to storage spaces or to a dynamic disk";
            found.content = Err(why.to_owned());
        }
        if !table.is_readable() {
            found.content = Err(format!("the partition table cannot be believed: {}", table.notes().join("; ")));
        } else if let Some(name) = over_table {
            found.content = Err(format!("the disk has a partition table and is marked as {} as a whole", name.words()));
        }
        volumes.push(found);
    }
    Ok(volumes)
}

/// Shows the free ranges of `volume`, in bytes of the disk, in order, each as long as it can be.
///
/// # Errors
/// What reading answers.
pub fn free_space(disk: &dyn ReadAt, volume: &Volume, visit: &mut dyn FnMut(Range<u64>)) -> Result<FreeSpace> {
    let system = match &volume.content {
        Ok(system) => *system,
        Err(why) => return Ok(FreeSpace::Doubtful(why.clone())),
    };
    let part = Part::new(disk, volume.range.clone());
    let mut runs = Runs::new(&part, visit);
    let read = match system {
        FileSystem::Ext => ext::free(&part, &mut runs),
        FileSystem::Xfs => xfs::free(&part, &mut runs),
        FileSystem::Ntfs => ntfs::free(&part, &mut runs),
        FileSystem::Fat => fat::free(&part, &mut runs),
        FileSystem::ExFat => exfat::free(&part, &mut runs),
    };
    match read {
        Ok(()) => Ok(FreeSpace::Bytes(runs.finish())),
        Err(Stop::Doubt(why)) => Ok(FreeSpace::Doubtful(why)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Types of partitions that hold pieces of volumes, whatever a piece may look like: LVM, Linux' software RAID, Windows'
/// dynamic disks (data, metadata), storage spaces.
const SHARED_TYPES: [Guid; 5] = [
    Guid::from_u128(0xE6D6_D379_F507_44C2_A23C_238F_2A3D_F928),
    Guid::from_u128(0xA19D_880F_05FC_4D3B_A006_743F_0F84_911E),
    Guid::from_u128(0xAF9B_60A0_1431_4F62_BC68_3311_714A_69AD),
    Guid::from_u128(0x5808_C8AA_7E8F_42E0_85D2_E1E9_0434_CFB3),
    Guid::from_u128(0xE75C_AF8F_F680_4CEE_AFA3_B001_E56E_FC2D),
];

/// Whether a partition holds pieces of volumes.
fn is_shared(kind: PartitionKind) -> bool {
    match kind {
        PartitionKind::Mbr(kind) => matches!(kind, 0x42 | 0x8E | 0xE7 | 0xFD),
        PartitionKind::Gpt(id) => SHARED_TYPES.contains(&id),
    }
}

/// What a volume is marked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    System(FileSystem),
    /// Something that is not a file system of this list, in words.
    Other(&'static str),
}

impl Mark {
    fn words(self) -> &'static str {
        match self {
            Self::System(system) => system.name(),
            Self::Other(words) => words,
        }
    }
}

/// Marks at fixed places: offset, bytes, meaning. Those that make a volume something else than it looks come with the
/// file systems, so that a volume with both is skipped.
const MARKS: [(u64, &[u8], Mark); 21] = [
    (0x438, &[0x53, 0xEF], Mark::System(FileSystem::Ext)),
    (0, b"XFSB", Mark::System(FileSystem::Xfs)),
    (3, b"NTFS    ", Mark::System(FileSystem::Ntfs)),
    (3, b"EXFAT   ", Mark::System(FileSystem::ExFat)),
    (54, b"FAT12   ", Mark::System(FileSystem::Fat)),
    (54, b"FAT16   ", Mark::System(FileSystem::Fat)),
    (82, b"FAT32   ", Mark::System(FileSystem::Fat)),
    (3, b"-FVE-FS-", Mark::Other("a BitLocker volume")),
    (3, b"ReFS\0\0\0\0", Mark::Other("ReFS")),
    (0, b"LUKS\xBA\xBE", Mark::Other("a LUKS volume")),
    (0, b"LABELONE", Mark::Other("an LVM physical volume")),
    (512, b"LABELONE", Mark::Other("an LVM physical volume")),
    (1024, b"LABELONE", Mark::Other("an LVM physical volume")),
    (1536, b"LABELONE", Mark::Other("an LVM physical volume")),
    (0x1_0040, b"_BHRfS_M", Mark::Other("Btrfs")),
    (4086, b"SWAPSPACE2", Mark::Other("swap space")),
    (0, &RAID, Mark::Other("a member of a RAID")),
    (4096, &RAID, Mark::Other("a member of a RAID")),
    (4120, &[0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA], Mark::Other("a bcache device")),
    (0x410, &[0xC6, 0x85, 0x73, 0xF6, 0x4E, 0x1A, 0x45, 0xCA], Mark::Other("bcachefs")),
    (0x400, &[0x10, 0x20, 0xF5, 0xF2], Mark::Other("F2FS")),
];
/// The mark of Linux' software RAID.
const RAID: [u8; 4] = 0xA92B_4EFC_u32.to_le_bytes();
/// Linux' software RAID of versions 0.90 and 1.0 has its mark near the end: the last 64 KiB that start on such a multiple,
/// and the last 4 KiB that start at least 8 KiB before the end.
const RAID_AT_END: [(u64, u64); 2] = [(64 << 10, 64 << 10), (8 << 10, 4 << 10)];

/// What is marked in `part`; the first of several marks that disagree comes as [`Mark::Other`].
fn look(part: &Part<'_>) -> Result<Option<Mark>> {
    let mut found: Option<Mark> = None;
    let near_end = RAID_AT_END.iter().filter_map(|&(before, unit)| {
        let at = part.size().checked_sub(before)?;
        Some((at.checked_sub(at.checked_rem(unit)?)?, &RAID[..], Mark::Other("a member of a RAID")))
    });
    for (at, bytes, mark) in MARKS.iter().copied().chain(near_end) {
        if part.has(at, bytes)? {
            found = Some(match found {
                None => mark,
                Some(before) if before == mark => mark,
                Some(Mark::Other(before)) => Mark::Other(before),
                Some(Mark::System(_)) if matches!(mark, Mark::Other(_)) => mark,
                Some(Mark::System(_)) => Mark::Other("several file systems at once"),
            });
        }
    }
    Ok(found)
}

fn volume(disk: &dyn ReadAt, partition: Option<u32>, range: Range<u64>) -> Result<Volume> {
    let content = match look(&Part::new(disk, range.clone()))? {
        Some(Mark::System(system)) => Ok(system),
        Some(Mark::Other(what)) => Err(format!("it is marked as {what}")),
        None => Err("no file system that is known here".to_owned()),
    };
    Ok(Volume { partition, range, content })
}
