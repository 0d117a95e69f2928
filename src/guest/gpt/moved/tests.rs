//! Tables on disks of other sizes, by the rules of the second reader.

use super::*;
use crate::support::gpt::{GptSpec, gpt_problems, read_copy};

struct Bytes(Vec<u8>, u32);

impl ReadAt for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn sector_size(&self) -> u32 {
        self.1
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let at = offset as usize;
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

fn disk(sector: usize, sectors: usize, count: usize) -> Bytes {
    let spec = GptSpec { sector, count, partitions: vec![(40, 99), (120, 150)] };
    let mut bytes = vec![0; sector * sectors];
    spec.write(&mut bytes);
    assert_eq!(gpt_problems(&bytes, sector), Vec::<String>::new());
    Bytes(bytes, sector as u32)
}

fn plan(disk: &Bytes, size: usize) -> Result<GptMove> {
    GptMove::plan(disk, &PartitionTable::read(disk).unwrap(), size as u64)
}

/// The steps in their order, each as one write.
fn steps(moved: &GptMove) -> Vec<Patch> {
    let single = [&moved.entries, &moved.header, &moved.protective].into_iter().flatten();
    moved.backup.iter().chain(single).cloned().collect()
}

fn apply(disk: &mut Bytes, (offset, bytes): &Patch) {
    let at = *offset as usize;
    disk.0[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn after_every_step_a_copy_is_whole_and_names_a_whole_one() {
    for (sector, count) in [(512, 128), (512, 4), (4096, 128), (512, 150)] {
        for (old, new) in [(300, 400), (300, 301), (300, 200), (300, 299)] {
            let mut disk = disk(sector, old, count);
            let moved = plan(&disk, new * sector).unwrap();
            disk.0.resize(old.max(new) * sector, 0);
            for step in steps(&moved) {
                apply(&mut disk, &step);
                let first = read_copy(&disk.0, sector, 1).unwrap();
                assert_eq!(first.partitions(), [(40, 99), (120, 150)]);
                let shared = old.abs_diff(new) <= (count * 128).div_ceil(sector);
                match read_copy(&disk.0, sector, first.other) {
                    Ok(other) => assert_eq!(other.entries, first.entries),
                    Err(why) => assert!(shared, "{sector}: {old} to {new}: {why}"),
                }
            }
            let former = moved.former.start as usize..moved.former.end as usize;
            assert!(new < old || old + 40 > new || !former.is_empty(), "there is a former backup to take away");
            disk.0[former].fill(0);
            disk.0.truncate(new * sector);
            assert_eq!(gpt_problems(&disk.0, sector), Vec::<String>::new(), "{sector}: {old} to {new}");
            assert!(plan(&disk, new * sector).unwrap().is_empty(), "what fits is left alone");
        }
    }
}

#[test]
fn a_damaged_copy_is_made_new_from_the_other() {
    for damaged in [1, 299] {
        let mut disk = disk(512, 300, 128);
        disk.0[damaged * 512 + 20] ^= 1;
        let moved = plan(&disk, 320 * 512).unwrap();
        disk.0.resize(320 * 512, 0);
        for step in steps(&moved) {
            apply(&mut disk, &step);
        }
        assert_eq!(gpt_problems(&disk.0, 512), Vec::<String>::new(), "sector {damaged} was damaged");
    }
}

#[test]
fn what_cannot_be_moved_is_refused() {
    let refused = |disk: &Bytes, size: usize, why: &str| {
        let error = plan(disk, size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains(why), "{error}");
    };
    let good = disk(512, 300, 128);
    refused(&good, 160 * 512, "partition 2 lies where the backup table would");
    refused(&good, 40 * 512, "too small");
    refused(&Bytes(vec![0; 300 * 512], 512), 400 * 512, "no GUID partition table");
    let mut bad = disk(512, 300, 128);
    bad.0[512 + 20] ^= 1;
    bad.0[299 * 512 + 20] ^= 1;
    refused(&bad, 400 * 512, "cannot be believed");
}

#[test]
fn a_record_with_other_entries_is_left_alone() {
    let mut disk = disk(512, 300, 128);
    disk.0[446 + 16 + 4] = 0x07;
    disk.0[446 + 16 + 8] = 40;
    disk.0[446 + 16 + 12] = 10;
    let moved = plan(&disk, 400 * 512).unwrap();
    assert!(moved.protective.is_none() && moved.header.is_some());
}
