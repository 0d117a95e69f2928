//! Bug this finds: bytes of a file system, or of a partition table, that make its reader panic, run for ever, or call
//! something free that lies outside the volume.

use crate::systems::System;
use std::fs;
use vhdkit::guest::{FreeSpace, PartitionTable, ReadAt, free_space, volumes};
use vhdkit::{Error, ErrorKind};

/// How many damaged copies of each file system are read.
const ROUNDS: usize = 600;

struct Disk(Vec<u8>);

impl ReadAt for Disk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn sector_size(&self) -> u32 {
        512
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let bytes = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)?.get(..buf.len()));
        let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "past the end of the disk"))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// Reads everything there is to read; answers whether a volume was believed, and how much of it is free.
fn read(disk: &Disk) -> Option<u64> {
    let table = PartitionTable::read(disk).expect("memory does not fail");
    let mut believed = None;
    for volume in volumes(disk, &table).expect("memory does not fail") {
        let (mut end, mut sum) = (volume.range.start, 0);
        let mut visit = |range: std::ops::Range<u64>| {
            assert!(end <= range.start && range.start < range.end && range.end <= volume.range.end, "{range:?}");
            end = range.end;
            sum += range.end - range.start;
        };
        if let FreeSpace::Bytes(bytes) = free_space(disk, &volume, &mut visit).expect("memory does not fail") {
            assert_eq!(bytes, sum);
            believed = Some(bytes);
        }
    }
    believed
}

fn damage(system: &System, seed: u64) -> Option<(usize, usize)> {
    let folder = tempfile::tempdir().unwrap();
    let file = system.fresh(&folder)?;
    let mut disk = Disk(fs::read(file).unwrap());
    let free = read(&disk).expect("a new file system is believed");
    assert!(free > system.size / 3 && free < system.size, "{}: {free} bytes", system.name);
    // Structures are where anything is, and those that are read lie at the start.
    let places: Vec<usize> = (0..disk.0.len()).filter(|at| disk.0[*at] != 0).take(60_000).collect();
    let mut random = seed | 1;
    let mut below = |end: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) as usize % end
    };
    let (mut doubted, mut believed) = (0, 0);
    for _ in 0..ROUNDS {
        let changes: Vec<(usize, u8)> = (0..1 + below(3))
            .map(|_| {
                // Mostly the first structures: their fields lead to all others.
                let near = if below(3) == 0 { places.len() } else { places.len().min(400) };
                let at = places[below(near)] + below(3);
                let at = at.min(disk.0.len() - 1);
                let before = disk.0[at];
                disk.0[at] = [0, 1, 0x7F, 0x80, 0xFF, before ^ (1 << below(8))][below(6)];
                (at, before)
            })
            .collect();
        match read(&disk) {
            Some(_) => believed += 1,
            None => doubted += 1,
        }
        for (at, before) in changes.into_iter().rev() {
            disk.0[at] = before;
        }
    }
    assert_eq!(read(&disk), Some(free), "{}: put back", system.name);
    Some((doubted, believed))
}

#[test]
fn damaged_file_systems_are_survived() {
    for (seed, name) in ["ext4", "ext2", "XFS", "NTFS", "FAT32", "FAT12", "exFAT"].into_iter().enumerate() {
        if let Some((doubted, believed)) = damage(&System::find(name), seed as u64 * 77 + 5) {
            eprintln!("{name}: {doubted} doubted, {believed} believed");
            assert!(doubted > 10, "{name}: {doubted} doubted, {believed} believed");
        }
    }
}
