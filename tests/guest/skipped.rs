//! Bug this finds: a volume believed that must not be: one in use, of an unknown feature, inside something else.

use crate::program::{json, run, sh, try_run};
use crate::systems::{MIB, SIZE, System};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Compacting the disk `raw` leaves every byte of it alone and says why; answers the reasons.
#[track_caller]
fn left_alone(folder: &Path, raw: &str) -> String {
    run(folder, &format!("vhdkit convert -f raw {raw} disk.vhdx -O vhdx --block-size 1M --force"));
    let done = json(folder, "compact disk.vhdx");
    assert_eq!(done["freed"]["file_system"].as_u64(), Some(0), "{done:#}");
    run(folder, "vhdkit convert disk.vhdx after.raw --force");
    assert!(fs::read(folder.join(raw)).unwrap() == fs::read(folder.join("after.raw")).unwrap(), "it differs");
    let volumes = done["volumes"].as_array().expect("a list");
    let reasons: Vec<&str> = volumes.iter().map(|volume| volume["skipped"].as_str().expect("a reason")).collect();
    assert!(!reasons.is_empty(), "{done:#}");
    reasons.join("; ")
}

#[test]
fn a_file_system_in_use_is_left_alone() {
    for (name, reason) in
        [("ext4", "journal"), ("ext2", "not unmounted"), ("XFS", "log is not empty"), ("exFAT", "not unmounted")]
    {
        let folder = tempfile::tempdir().unwrap();
        if System::find(name).in_use(&folder).is_some() {
            let why = left_alone(folder.path(), "in-use.raw");
            assert!(why.contains(reason), "{name}: {why}");
        }
    }
}

/// Changes bytes of `file` at `offset`.
fn patch(file: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(file).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn signs_of_use_in_ntfs_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let system = System::find("NTFS");
    let Some(file) = system.used(&folder) else { return };
    let whole = fs::read(&file).unwrap();
    // Shadow copies: their header and a catalog.
    patch(
        &file,
        0x1E00,
        &[0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52],
    );
    patch(&file, 0x1E00 + 48, &[1]);
    assert!(left_alone(folder.path(), "fs.raw").contains("shadow copies"));
    // The dirty flag of $Volume: behind the attribute of type 0x70 in file record 3, in front of the record's guards.
    fs::write(&file, &whole).unwrap();
    let cluster = u64::from(u16::from_le_bytes([whole[11], whole[12]])) * u64::from(whole[13]);
    let table = u64::from_le_bytes(whole[48..56].try_into().unwrap()) * cluster;
    let record = table + 3 * 1024;
    let bytes = &whole[record as usize..][..512];
    let at = (0..450).step_by(8).find(|at| bytes[*at..].starts_with(&[0x70, 0, 0, 0])).expect("volume information");
    let value = at + usize::from(bytes[at + 20]);
    patch(&file, record + value as u64 + 10, &[1]);
    assert!(left_alone(folder.path(), "fs.raw").contains("dirty"));
    // Asleep: a file for hibernation in the root directory.
    for (head, left) in [(b"HIBR", true), (b"WAKE", false)] {
        fs::write(&file, &whole).unwrap();
        let mounted = crate::systems::Mounted::new(&file, "ntfs", "rw").unwrap();
        fs::write(mounted.folder().join("hiberfil.sys"), [&head[..], &[7; 9000]].concat()).unwrap();
        drop(mounted);
        if left {
            assert!(left_alone(folder.path(), "fs.raw").contains("hibernated"));
        } else {
            run(folder.path(), "vhdkit convert -f raw fs.raw disk.vhdx -O vhdx --block-size 1M --force");
            let done = json(folder.path(), "compact disk.vhdx");
            assert!(done["freed"]["file_system"].as_u64() > Some(5), "{done:#}");
        }
    }
}

#[test]
fn what_is_not_known_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let Some(file) = System::find("ext4").used(&folder) else { return };
    let whole = fs::read(&file).unwrap();
    // Marks of other things beside the file system's own.
    for (at, mark, reason) in [
        (512, &b"LABELONE"[..], "LVM"),
        (0, b"LUKS\xBA\xBE", "LUKS"),
        (4096, &0xA92B_4EFC_u32.to_le_bytes(), "RAID"),
        (SIZE - (8 << 10), &0xA92B_4EFC_u32.to_le_bytes(), "RAID"),
        (SIZE - (64 << 10), &0xA92B_4EFC_u32.to_le_bytes(), "RAID"),
        (0, b"XFSB", "several"),
        // A block bitmap that lost a bit, a descriptor's count, the superblock's state: checksums tell.
        (1024 + 58, &[3, 0], "errors"),
        (1024 + 96, &[0xC2, 0x02, 0x40], "features"),
    ] {
        fs::write(&file, &whole).unwrap();
        patch(&file, at, mark);
        let why = left_alone(path, "fs.raw");
        assert!(why.contains(reason), "{reason}: {why}");
    }
    fs::write(&file, &whole).unwrap();
    patch(&file, 4096 + 12, &[0x77]);
    assert!(left_alone(path, "fs.raw").contains("checksum"), "a descriptor");
    for options in ["-O bigalloc", "-O mmp", "-O journal_dev"] {
        File::create(&file).unwrap().set_len(SIZE).unwrap();
        run(path, &format!("mkfs.ext4 -q -F {options} fs.raw"));
        patch(&file, 100 * MIB, &[0xAA; 4096]);
        assert!(left_alone(path, "fs.raw").contains("features"), "{options}");
    }
}

/// A child may use what is free in its parent: the parent stays as it is, and the child, over the parent, can go.
#[test]
fn a_parent_is_left_alone_and_a_child_hides_what_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let (path, system) = (folder.path(), System::find("ext4"));
    if system.used(&folder).is_none() {
        return;
    }
    for extension in ["vhdx", "vhd"] {
        run(path, &format!("vhdkit convert -f raw fs.raw base.{extension} -O {extension} --block-size 2M --force"));
        run(path, &format!("vhdkit create --block-size 2M --parent base.{extension} child.{extension}"));
        let refused = try_run(path, &format!("vhdkit compact base.{extension}")).unwrap_err();
        assert!(refused.contains("exit status: 6") && refused.contains("stands on this image"), "{refused}");
        run(path, &format!("vhdkit compact --no-fs base.{extension}"));
        // The child writes where nothing is: into free space over the parent's old data, and over the parent's zeros.
        let shown = fs::read(path.join("fs.raw")).unwrap();
        let deleted = crate::files::blocks_of_deleted(&shown, 2 << 20);
        let at = (deleted[0] * (2 << 20)) as u64;
        let zeros = shown.chunks(2 << 20).rposition(|block| block.iter().all(|byte| *byte == 0)).expect("unused space");
        for offset in [at, (zeros * (2 << 20)) as u64] {
            fs::write(path.join("noise"), vec![0x5A; 2 << 20]).unwrap();
            sh(path, &format!("$VHDKIT write child.{extension} --offset {offset} --quiet < noise"));
        }
        let done = json(path, &format!("compact child.{extension}"));
        assert!(done["volumes"][0]["skipped"].is_null(), "{done:#}");
        let freed = done["freed"]["file_system"].as_u64();
        // A VHD has no way to say that it hides old data of its parent: only what lies over nothing goes.
        assert_eq!(freed, Some(if extension == "vhdx" { 2 } else { 1 }), "{done:#}");
        run(path, &format!("vhdkit convert child.{extension} after.raw --force"));
        let after = fs::read(path.join("after.raw")).unwrap();
        let block = |offset: u64| &after[offset as usize..][..2 << 20];
        let wanted = if extension == "vhdx" { 0 } else { 0x5A };
        assert!(block(at).iter().all(|byte| *byte == wanted), "the parent's old data must not be back");
        assert!(block((zeros * (2 << 20)) as u64).iter().all(|byte| *byte == 0));
        system.assert_sound(&path.join("after.raw"), extension);
    }
}
