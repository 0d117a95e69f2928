//! Bug this finds: a block taken from a file, a free block kept, an image another program reads otherwise.

use crate::files;
use crate::program::{json, missing, run, sh};
use crate::support::bytes::Contents;
use crate::support::oracle::{self, QemuImg, SevenZip};
use crate::systems::{MIB, SYSTEMS, System};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// An image format with a block size.
struct Container {
    name: &'static str,
    create: &'static str,
    block: usize,
    qemu: &'static str,
    seven: &'static str,
}

const CONTAINERS: [Container; 3] = [
    Container { name: "disk.vhdx", create: "-O vhdx --block-size 1M", block: 1 << 20, qemu: "vhdx", seven: "VHDX" },
    Container { name: "large.vhdx", create: "-O vhdx --block-size 2M", block: 2 << 20, qemu: "vhdx", seven: "VHDX" },
    Container { name: "disk.vhd", create: "-O vhd --block-size 512K", block: 512 << 10, qemu: "vpc", seven: "VHD" },
];

/// Compacts the disk `raw` in `container` and answers the raw disk afterwards.
#[track_caller]
fn compact(folder: &Path, raw: &str, container: &Container, volumes: usize) -> Vec<u8> {
    let Container { name, create, block, .. } = container;
    let before = fs::read(folder.join(raw)).expect("the raw disk");
    run(folder, &format!("vhdkit convert -f raw {raw} {name} {create} --force"));
    let dry = json(folder, &format!("compact --dry-run {name}"));
    let file_before = fs::metadata(folder.join(name)).expect("the image").len();
    assert_eq!(dry["before"]["file_size"].as_u64(), Some(file_before), "a dry run changes nothing");
    let done = json(folder, &format!("compact {name}"));
    let what = format!("{raw} in {name}: {done:#}");
    for field in ["before", "freed", "volumes"] {
        assert_eq!(dry[field], done[field], "the dry run said something else: {what}");
    }
    let list = done["volumes"].as_array().expect("a list");
    assert_eq!(list.len(), volumes, "{what}");
    assert!(list.iter().all(|volume| volume["skipped"].is_null() && volume["free"].as_u64() > Some(0)), "{what}");
    let file_after = fs::metadata(folder.join(name)).expect("the image").len();
    assert!(file_after <= dry["after"]["file_size"].as_u64().unwrap(), "{what}");

    run(folder, &format!("vhdkit convert {name} after.raw --force"));
    let after = fs::read(folder.join("after.raw")).expect("the raw disk");
    assert_eq!(before.len(), after.len());
    let deleted = files::blocks_of_deleted(&before, *block);
    let of = |disk: &[u8], number: usize| disk[number * block..((number + 1) * block).min(disk.len())].to_vec();
    let freed = deleted.iter().filter(|&&number| of(&after, number).iter().all(|byte| *byte == 0)).count();
    // With blocks of 1 KiB, ext2 and ext3 put a block of pointers into every block of a file of ours: none is whole.
    let by_system = done["freed"]["file_system"].as_u64();
    assert!(deleted.len() >= 4 || by_system >= Some(16), "{} whole blocks of deleted files: {what}", deleted.len());
    assert!(freed * 100 >= deleted.len() * 95, "{freed} of {} blocks are free: {what}", deleted.len());
    let given_back = file_before - file_after;
    assert!(given_back * 100 >= (deleted.len() * block * 95) as u64, "{given_back} bytes: {what}");
    for (number, (old, new)) in before.chunks(*block).zip(after.chunks(*block)).enumerate() {
        assert!(
            old == new || new.iter().all(|byte| *byte == 0),
            "block {number} is neither as it was nor zero: {what}"
        );
    }
    eprintln!(
        "{raw} in {name}: {file_before} became {file_after} bytes, {freed} of {} blocks of deleted files",
        deleted.len()
    );
    let again = json(folder, &format!("compact {name}"));
    assert_eq!(again["freed"], serde_json::json!({"unmapped": 0, "zero": 0, "file_system": 0}), "{what}");
    assert_eq!(again["moved"].as_u64(), Some(0));
    after
}

/// Other programs read the compacted image as we do.
fn assert_read_by_others(folder: &Path, container: &Container) {
    let image = folder.join(container.name);
    let ours = Contents::of(&fs::read(folder.join("after.raw")).expect("the raw disk"));
    if let Some(qemu) = QemuImg::find() {
        assert_eq!(qemu.contents(&image, container.qemu), ours, "qemu-img {}", container.name);
        if container.qemu == "vhdx" {
            qemu.assert_checks(&image);
        }
    }
    if let Some(seven) = SevenZip::find() {
        assert_eq!(seven.contents(&image, container.seven), ours, "7zz {}", container.name);
    }
}

fn one(system: &System, containers: &[Container]) {
    let folder = tempfile::tempdir().unwrap();
    if system.used(&folder).is_none() {
        return;
    }
    system.assert_sound(&folder.path().join("fs.raw"), "before");
    for container in containers {
        compact(folder.path(), "fs.raw", container, 1);
        system.assert_sound(&folder.path().join("after.raw"), "after");
        assert_read_by_others(folder.path(), container);
    }
}

#[test]
fn every_file_stays_in_ext() {
    for (at, system) in SYSTEMS.iter().filter(|system| system.name.starts_with("ext")).enumerate() {
        one(system, if at == 0 { &CONTAINERS } else { &CONTAINERS[at % 2 * 2..][..1] });
    }
}

#[test]
fn every_file_stays_in_xfs() {
    for (system, containers) in ["XFS", "XFS version 4"].into_iter().zip([&CONTAINERS[..1], &CONTAINERS[2..]]) {
        one(&System::find(system), containers);
    }
}

#[test]
fn every_file_stays_in_ntfs() {
    for (system, containers) in
        ["NTFS", "NTFS of 64 KiB clusters"].into_iter().zip([&CONTAINERS[..1], &CONTAINERS[2..]])
    {
        one(&System::find(system), containers);
    }
}

#[test]
fn every_file_stays_in_fat() {
    for (system, container) in ["FAT32", "FAT16", "FAT12"].into_iter().zip(&CONTAINERS) {
        one(&System::find(system), std::slice::from_ref(container));
    }
    one(&System::find("FAT32"), &CONTAINERS[2..]);
}

#[test]
fn every_file_stays_in_exfat() {
    one(&System::find("exFAT"), &[&CONTAINERS[0], &CONTAINERS[2]].map(|one| Container { ..*one }));
}

/// File systems behind a partition table of each kind, one of them in a logical partition.
#[test]
fn every_file_stays_in_partitions() {
    if let Some(name) = missing(&["sfdisk"]) {
        oracle::skipped(&format!("{name} is not installed (package fdisk)"));
        return;
    }
    let system = System::find("ext4");
    let folder = tempfile::tempdir().unwrap();
    let (Some(file), path) = (system.used(&folder), folder.path()) else { return };
    let content = fs::read(&file).unwrap();
    for (name, script, places) in [
        ("mbr", "label: dos\n2048,262144,83\n,,05\n266240,262144,83\n", [1, 130]),
        ("gpt", "label: gpt\n2048,262144\n266240,262144\n", [1, 130]),
    ] {
        let disk =
            File::options().create(true).truncate(true).read(true).write(true).open(path.join("disk.raw")).unwrap();
        disk.set_len(260 * MIB).unwrap();
        fs::write(path.join("script"), script).unwrap();
        sh(path, "PATH=$PATH:/usr/sbin:/sbin sfdisk --quiet disk.raw < script");
        for place in places {
            disk.write_all_at(&content, place * MIB).unwrap();
        }
        drop(disk);
        compact(path, "disk.raw", &CONTAINERS[0], 2);
        let after = fs::read(path.join("after.raw")).unwrap();
        for place in places {
            let start = (place * MIB) as usize;
            fs::write(path.join("part.raw"), &after[start..start + content.len()]).unwrap();
            system.assert_sound(&path.join("part.raw"), name);
        }
        assert_read_by_others(path, &CONTAINERS[0]);
    }
}
