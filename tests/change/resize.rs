//! Bug this finds: a partition that is cut off unasked, a refusal without its name, a table that other tools find fault
//! with, a resized file that others read otherwise, a child that loses its parent.

use crate::lab::{FORMATS, Lab, MIB, pattern, show};
use crate::support::gpt::{GptSpec, gpt_problems};
use crate::support::oracle::skipped;
use std::fs;
use std::path::Path;
use std::process::Command;
use vhdkit::guest::TableKind;
use vhdkit::ops::{GptState, ResizeOptions, ResizeReport, resize};
use vhdkit::{DiskKind, Error, ErrorKind, Watch};

fn run(path: &Path, options: &ResizeOptions) -> Result<ResizeReport, Error> {
    resize(path, options, &Watch::none())
}

#[track_caller]
fn refused(path: &Path, options: &ResizeOptions, name: &str) -> Error {
    let before = fs::read(path).unwrap();
    let error = run(path, options).unwrap_err();
    assert_eq!((error.kind(), error.windows_name()), (ErrorKind::Refused, Some(name)), "{error}");
    assert!(fs::read(path).unwrap() == before, "a refused resize wrote");
    error
}

const TRUNCATES: &str = "ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA";

/// A disk of 8 MiB with two partitions, the last one ending at 5 MiB.
fn gpt_disk() -> Vec<u8> {
    let mut bytes = pattern(8 * MIB, 3);
    bytes[5 * MIB as usize..].fill(0);
    GptSpec { sector: 512, count: 128, partitions: vec![(2048, 4095), (4096, 10239)] }.write(&mut bytes);
    bytes
}

/// A master boot record with one partition from 1 MiB to 3 MiB and an extended one from 4 to 6 MiB.
fn mbr_disk() -> Vec<u8> {
    let mut bytes = vec![0; 8 * MIB as usize];
    let mut entry = |record: usize, index: usize, kind: u8, first: u32, count: u32| {
        let at = record * 512 + 446 + index * 16;
        bytes[at + 4] = kind;
        bytes[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
        bytes[record * 512 + 510..record * 512 + 512].copy_from_slice(&[0x55, 0xAA]);
    };
    entry(0, 0, 0x83, 2048, 4096);
    entry(0, 1, 0x0F, 8192, 4096);
    entry(8192, 0, 0x07, 63, 2000);
    bytes
}

/// What `sgdisk` and `sfdisk` say of the raw disk `bytes`.
fn assert_tools_find_nothing(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    for (program, option, good) in [("sgdisk", "-v", "No problems found"), ("sfdisk", "--verify", "No errors detected")]
    {
        let Ok(output) = Command::new(program).arg(option).arg(file.path()).output() else {
            skipped(&format!("{program} is not installed (packages gdisk, fdisk)"));
            continue;
        };
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success() && text.contains(good), "{program}: {text}");
        assert!(!text.contains("corrupt") && !text.contains("not at the end"), "{program}: {text}");
    }
}

#[test]
fn partition_tables_that_move_are_in_order_for_other_tools() {
    for format in FORMATS {
        for kind in [DiskKind::Dynamic, DiskKind::Fixed, DiskKind::Differencing] {
            let lab = Lab::new(format);
            let view = gpt_disk();
            let path = match kind {
                DiskKind::Differencing => {
                    let base = lab.disk("base", DiskKind::Dynamic, &pattern(20 * MIB, 7));
                    lab.child("disk", &base, &view)
                }
                kind => lab.disk("disk", kind, &view),
            };
            let partitions = |bytes: &[u8]| bytes[MIB as usize..5 * MIB as usize].to_vec();
            // The backup takes 33 sectors, and sizes are whole 4 KiB.
            let minimum = 5 * MIB + 20 * 1024;
            for (options, size) in [
                (ResizeOptions::size(30 * MIB), 30 * MIB),
                (ResizeOptions::shrink_by(8 * MIB), 22 * MIB),
                (ResizeOptions::grow_by(MIB), 23 * MIB),
                (ResizeOptions::to_minimum(), minimum),
                (ResizeOptions::size(9 * MIB), 9 * MIB),
            ] {
                let report = run(&path, &options.fix_gpt(true)).unwrap();
                assert_eq!((report.new_size, report.gpt, report.written), (size, Some(GptState::Fixed), true));
                assert_eq!((report.partition_table, report.minimum_size), (TableKind::Gpt, Some(minimum)));
                let shown = show(&path);
                assert_eq!(shown.len() as u64, size);
                assert_eq!(gpt_problems(&shown, 512), Vec::<String>::new());
                assert!(partitions(&shown) == partitions(&view), "the partitions changed");
                assert_tools_find_nothing(&shown);
                lab.assert_well_formed(&path);
                if kind != DiskKind::Differencing {
                    lab.assert_others_read(&path, &shown);
                }
            }
            let free = show(&path)[minimum as usize..9 * MIB as usize - 33 * 512].to_vec();
            assert!(free.iter().all(|byte| *byte == 0), "a former backup, or the parent, shows");
        }
    }
}

#[test]
fn a_table_that_is_not_to_be_fixed_is_left_alone_and_said_to_be_stale() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let view = gpt_disk();
        let path = lab.disk("disk", DiskKind::Dynamic, &view);
        let report = run(&path, &ResizeOptions::grow_by(MIB)).unwrap();
        assert_eq!(report.gpt, Some(GptState::Stale));
        let mut want = view.clone();
        want.resize(9 * MIB as usize, 0);
        assert!(show(&path) == want);
        // Growing is over; only the table is left to do.
        let report = run(&path, &ResizeOptions::grow_by(0).fix_gpt(true)).unwrap();
        assert_eq!((report.new_size, report.gpt), (9 * MIB, Some(GptState::Fixed)));
        assert_eq!(gpt_problems(&show(&path), 512), Vec::<String>::new());
        let report = run(&path, &ResizeOptions::grow_by(0).fix_gpt(true)).unwrap();
        assert_eq!(report.gpt, Some(GptState::Fits));
    }
}

#[test]
fn partitions_past_the_new_end_are_a_refusal_by_name() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let path = lab.disk("disk", DiskKind::Dynamic, &gpt_disk());
        let error = refused(&path, &ResizeOptions::size(4 * MIB), TRUNCATES);
        assert!(error.to_string().contains("partition 2 (bytes 2097152 to 5242880)"), "{error}");
        let error = refused(&path, &ResizeOptions::size(MIB), TRUNCATES);
        assert!(error.to_string().contains("partition 1") && error.to_string().contains("1 more"), "{error}");
        refused(&path, &ResizeOptions::size(5 * MIB + 512), TRUNCATES);
        let dry = run(&path, &ResizeOptions::size(4 * MIB).allow_data_loss(true).dry_run(true)).unwrap();
        assert_eq!((dry.truncated.len(), dry.written), (1, false));
        assert!(show(&path) == gpt_disk(), "a dry run wrote");
        let mut want = gpt_disk();
        want.truncate(4 * MIB as usize);
        run(&path, &ResizeOptions::size(4 * MIB).allow_data_loss(true)).unwrap();
        assert!(show(&path) == want);
        lab.assert_well_formed(&path);
        lab.assert_others_read(&path, &want);

        let path = lab.disk("mbr", DiskKind::Dynamic, &mbr_disk());
        let error = refused(&path, &ResizeOptions::size(6 * MIB - 512), TRUNCATES);
        assert!(error.to_string().contains("partition table's own space"), "the extended partition's end: {error}");
        let error = refused(&path, &ResizeOptions::size(2 * MIB), TRUNCATES);
        assert!(error.to_string().contains("partition 1"), "{error}");
        let report = run(&path, &ResizeOptions::to_minimum()).unwrap();
        assert_eq!((report.new_size, report.partition_table, report.gpt), (6 * MIB, TableKind::Mbr, None));
        assert!(show(&path) == mbr_disk()[..6 * MIB as usize]);
        refused(&path, &ResizeOptions::to_minimum(), "ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE");
    }
}

#[test]
fn dynamic_disks_and_damaged_tables_have_no_minimum() {
    const NONE: &str = "ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE";
    let lab = Lab::new(FORMATS[1]);
    let mut dynamic = mbr_disk();
    dynamic[446 + 4] = 0x42;
    let mut damaged = gpt_disk();
    let last = damaged.len() - 512;
    damaged[512 + 20] ^= 1;
    damaged[last + 20] ^= 1;
    for (name, bytes) in [("dynamic", dynamic), ("damaged", damaged), ("blank", vec![0; 4 * MIB as usize])] {
        let path = lab.disk(name, DiskKind::Dynamic, &bytes);
        refused(&path, &ResizeOptions::to_minimum(), NONE);
        if name != "blank" {
            refused(&path, &ResizeOptions::size(7 * MIB), TRUNCATES);
        }
    }
}

#[test]
fn without_a_table_data_past_the_new_end_is_a_refusal() {
    for format in FORMATS {
        for kind in [DiskKind::Dynamic, DiskKind::Fixed] {
            let lab = Lab::new(format);
            let mut view = vec![0; 8 * MIB as usize];
            view[5 * MIB as usize + 1000] = 1;
            let path = lab.disk("disk", kind, &view);
            let error = refused(&path, &ResizeOptions::size(5 * MIB), TRUNCATES);
            assert!(error.to_string().contains("data (bytes 5243880 to 8388608)"), "{error}");
            // Zeros that take space are nobody's data.
            run(&path, &ResizeOptions::size(5 * MIB + 4096)).unwrap();
            view.truncate(5 * MIB as usize + 4096);
            assert!(show(&path) == view);
            lab.assert_well_formed(&path);
            lab.assert_others_read(&path, &view);
        }
        // What a child shows of its parent is what its guest would lose.
        let lab = Lab::new(format);
        let base = lab.disk("base", DiskKind::Dynamic, &pattern(4 * MIB, 5));
        let leaf = lab.child("leaf", &base, &pattern(4 * MIB, 5));
        refused(&leaf, &ResizeOptions::size(2 * MIB), TRUNCATES);
        run(&leaf, &ResizeOptions::size(2 * MIB).allow_data_loss(true)).unwrap();
        run(&leaf, &ResizeOptions::size(6 * MIB)).unwrap();
        let mut want = pattern(4 * MIB, 5);
        want[2 * MIB as usize..].fill(0);
        want.resize(6 * MIB as usize, 0);
        assert!(show(&leaf) == want, "the longer parent shows");
        assert!(show(&base) == pattern(4 * MIB, 5));
        lab.assert_well_formed(&leaf);
    }
}

#[test]
fn images_that_stand_on_it_are_a_refusal() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let view = pattern(2 * MIB, 1);
        let base = lab.disk("base", DiskKind::Dynamic, &view);
        let leaf = lab.child("leaf", &base, &view);
        let before = fs::read(&base).unwrap();
        for options in [ResizeOptions::grow_by(MIB), ResizeOptions::grow_by(MIB).dry_run(true)] {
            let error = run(&base, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("leaf"), "{error}");
        }
        // Elsewhere it is found only where it is looked for.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::rename(&leaf, elsewhere.path().join("moved")).unwrap();
        let error = run(&base, &ResizeOptions::grow_by(MIB).search(elsewhere.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(fs::read(&base).unwrap() == before);
        run(&base, &ResizeOptions::grow_by(MIB)).unwrap();
    }
}

#[test]
fn sizes_no_disk_can_have_and_saved_states_are_refused() {
    let lab = Lab::new(FORMATS[0]);
    let path = lab.disk("disk", DiskKind::Dynamic, &pattern(2 * MIB, 1));
    for options in [
        ResizeOptions::size(0),
        ResizeOptions::size(1000),
        ResizeOptions::size(2041 << 30),
        ResizeOptions::shrink_by(3 * MIB),
        ResizeOptions::grow_by(u64::MAX),
    ] {
        assert_eq!(run(&path, &options.allow_data_loss(true)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    // Both footers get the mark of a saved state.
    let mut bytes = fs::read(&path).unwrap();
    for at in [0, bytes.len() - 512] {
        bytes[at + 84] = 1;
        let sum = crate::support::bytes::vhd_checksum(&bytes[at..at + 512], 64);
        bytes[at + 64..at + 68].copy_from_slice(&sum.to_be_bytes());
    }
    fs::write(&path, &bytes).unwrap();
    let error = run(&path, &ResizeOptions::grow_by(MIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(fs::read(&path).unwrap() == bytes, "a refused resize wrote");
}
