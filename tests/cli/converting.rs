//! `convert` in every direction, of parts of chains, from and to streams, for Azure; each result read by other programs.
//!
//! Bugs this finds: a pair of formats that loses or moves a byte; a part of a chain that brings too much or too little, or
//! zeros where the parent should show; an upload Azure refuses; a stream cut short or padded without a word; a file of
//! the target's name that is not whole.

use crate::support::oracle::{QemuImg, SevenZip};
use crate::support::{Contents, assert_well_formed_vhd, assert_well_formed_vhdx, azure_problems};
use crate::tool::{KIB, MIB, Tool, pattern};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Every kind of target: a name and the options that make it.
const TARGETS: [(&str, &str); 6] = [
    ("raw.raw", ""),
    ("fixed.vhd", "--type fixed"),
    ("dynamic.vhd", ""),
    ("small.vhd", "--block-size 512K"),
    ("fixed.vhdx", "--type fixed"),
    ("dynamic.vhdx", "--block-size 1M"),
];

/// What the file is, said to `vhdkit`.
fn raw(name: &str) -> &'static str {
    if name.ends_with(".raw") { "-f raw " } else { "" }
}

/// Our own checker by other rules, and every other reader that knows the format.
#[track_caller]
fn others_agree(path: &Path, disk: &[u8]) {
    let expected = Contents::of(disk);
    let name = path.display().to_string();
    let format = path.extension().unwrap().to_str().unwrap();
    match format {
        "vhd" => assert_well_formed_vhd(path),
        "vhdx" => assert_well_formed_vhdx(path),
        _ => assert!(fs::read(path).unwrap() == disk, "{name}"),
    }
    if let Some(qemu) = QemuImg::find() {
        let driver = if format == "vhd" { "vpc" } else { format };
        assert_eq!(qemu.contents(path, driver), expected, "qemu-img, {name}");
        if format == "vhdx" {
            qemu.assert_checks(path);
        }
    }
    // 7-Zip refuses every VHDX, whoever made it, whose size is not a whole number of MiB.
    let known = format == "vhd" || (format == "vhdx" && disk.len().is_multiple_of(1 << 20));
    if let (Some(seven), true) = (SevenZip::find(), known) {
        assert_eq!(seven.contents(path, &format.to_uppercase()), expected, "7-Zip, {name}");
    }
}

#[test]
fn round_trips_through_every_pair_of_formats_are_identical_and_others_agree() {
    let tool = Tool::new();
    // Zeros between data, a block of zeros that was written, data in the last sector.
    let mut disk = vec![0; 10 << 20];
    for (offset, len, seed) in [(0, 5 * KIB, 1), (3 * MIB - 700, 2 * MIB, 2), (10 * MIB - 512, 512, 3)] {
        disk[offset as usize..(offset + len) as usize].copy_from_slice(&pattern(len, seed));
    }
    fs::write(tool.path("source.raw"), &disk).unwrap();
    for (first, options) in TARGETS {
        tool.ok(&format!("convert -f raw source.raw {first} {options}"));
        others_agree(&tool.path(first), &disk);
        for (second, options) in TARGETS {
            tool.ok(&format!("convert {}{first} again-{second} {options} --verify --force", raw(first)));
            assert!(tool.disk(&format!("{}again-{second}", raw(second))) == disk, "{first} to {second}");
        }
    }
    for (name, _) in TARGETS {
        others_agree(&tool.path(&format!("again-{name}")), &disk);
    }
}

/// A VHDX chain of three: the base has data in every MiB, the files above change some sectors, and make some zero.
fn chain(tool: &Tool, format: &str) -> [Vec<u8>; 3] {
    let block = if format == "vhd" { "2M" } else { "1M" };
    tool.ok(&format!("create --size 8M --block-size {block} base.{format}"));
    let mut base = vec![0; 8 << 20];
    for at in 0..8 {
        let bytes = pattern(300 * KIB, at as u8);
        tool.write(&format!("base.{format}"), at * MIB + 512, &bytes);
        base[(at * MIB + 512) as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let mut disks = [base.clone(), base.clone(), base];
    for (name, parent, from, edits) in [
        ("middle", "base", 1, [(MIB, 4 * KIB, 20), (5 * MIB + 512, 512, 21), (6 * MIB, 64 * KIB, 0)]),
        ("leaf", "middle", 0, [(MIB + 2 * KIB, 4 * KIB, 30), (2 * MIB, MIB, 31), (7 * MIB, 8 * KIB, 0)]),
    ] {
        tool.ok(&format!("create --parent {parent}.{format} {name}.{format}"));
        for (offset, len, seed) in edits {
            let bytes = if seed == 0 { vec![0; len as usize] } else { pattern(len, seed) };
            tool.write(&format!("{name}.{format}"), offset, &bytes);
            for disk in &mut disks[..=from] {
                disk[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
        }
    }
    disks
}

#[test]
fn a_part_of_a_chain_becomes_one_child_of_the_file_below_it() {
    for format in ["vhd", "vhdx"] {
        let tool = Tool::new();
        let disks = chain(&tool, format);
        for (depths, expected, over) in [
            ("--to-depth 2", &disks[0], "base"),
            ("--to-depth 1", &disks[0], "middle"),
            ("--from-depth 2 --to-depth 2", &disks[1], "base"),
        ] {
            let said = tool.text(&format!("convert leaf.{format} part.{format} {depths} --verify --force"));
            assert!(said.contains(&format!("{over}.{format}")) && said.contains("read back"), "{said}");
            let info = tool.json(&format!("info --json part.{format}"));
            assert_eq!(info["type"], "differencing");
            assert!(info["parent"]["found"].as_str().unwrap().ends_with(&format!("{over}.{format}")), "{info}");
            assert!(tool.disk(&format!("part.{format}")) == *expected, "{format} {depths}");
            let changes = |from: &str, to: &str| tool.json(&format!("changes --json {from}.{format} {to}.{format}"));
            if depths == "--to-depth 2" {
                assert_eq!(changes("base", "part")["ranges"], changes("base", "leaf")["ranges"], "no more, no less");
            }
            if let Some(seven) = SevenZip::find() {
                let found = seven.contents(&tool.path(&format!("part.{format}")), &format.to_uppercase());
                assert_eq!(found, Contents::of(expected), "7-Zip: {format} {depths}");
            }
        }
    }
}

#[test]
fn a_part_over_a_stand_in_holds_what_the_files_hold_and_nothing_else() {
    for format in ["vhd", "vhdx"] {
        let tool = Tool::new();
        chain(&tool, format);
        // By the maps, the sectors of the two upper files, and what they hold there.
        let ranges = tool.json(&format!("changes --json base.{format} leaf.{format}"));
        let leaf = tool.disk(&format!("leaf.{format}"));
        let mut expected = vec![0; leaf.len()];
        for range in ranges["ranges"].as_array().unwrap() {
            let (at, len) = (range["offset"].as_u64().unwrap() as usize, range["length"].as_u64().unwrap() as usize);
            expected[at..at + len].copy_from_slice(&leaf[at..at + len]);
        }
        assert!(expected.iter().any(|&byte| byte != 0) && expected != leaf);
        let other = if format == "vhd" { "vhdx" } else { "vhd" };
        for target in [format, other] {
            tool.ok(&format!(
                "convert leaf.{format} week.{target} --to-depth 2 --stand-in empty.{target} --verify --no-zero-scan"
            ));
            assert!(tool.disk(&format!("week.{target}")) == expected, "{format} to {target}");
            let held = tool.json(&format!("changes --json empty.{target} week.{target}"));
            assert_eq!(held["ranges"], ranges["ranges"], "{format} to {target}: zeros are held too");
            assert!(tool.disk(&format!("empty.{target}")).iter().all(|&byte| byte == 0));
            let message = tool.fails(
                6,
                &format!("convert leaf.{format} other.{target} --to-depth 2 --stand-in empty.{target} --force"),
            );
            assert!(message.contains("already exists"), "a stand-in that others stand on is not replaced: {message}");
        }
        // The same, flat and as a stream.
        tool.ok(&format!("convert leaf.{format} flat.{other} --to-depth 2 --type dynamic"));
        assert!(tool.disk(&format!("flat.{other}")) == expected);
        assert!(tool.ok(&format!("convert leaf.{format} - --to-depth 2")) == expected);
        // Back on the real chain it shows what the chain shows.
        tool.ok(&format!("reparent week.{format} --parent base.{format} --ignore-id-mismatch"));
        assert!(tool.disk(&format!("week.{format}")) == leaf);
    }
}

#[test]
fn parts_that_cannot_be_are_refused_and_leave_no_file() {
    let tool = Tool::new();
    chain(&tool, "vhdx");
    fs::write(tool.path("old.vhdx"), b"old").unwrap();
    let before = tool.snapshot();
    for (code, line, words) in [
        (5, "convert leaf.vhdx a.vhdx --to-depth 4", "it has 3 files"),
        (5, "convert leaf.vhdx a.vhdx --from-depth 0", "depth 0"),
        (5, "convert leaf.vhdx - --from-depth 3 --to-depth 2", "depth 3 to 2"),
        (2, "convert leaf.vhdx a.vhdx --type differencing", "--stand-in"),
        (2, "convert leaf.vhdx a.vhd --to-depth 2", "vhd child cannot stand on a vhdx parent"),
        (2, "convert leaf.vhdx a.vhdx --type dynamic --stand-in s.vhdx", "only a differencing image"),
        (2, "convert leaf.vhdx a.raw --stand-in s.raw", "only a differencing image"),
        (2, "convert leaf.vhdx a.vhdx --preallocate", "raw and fixed"),
        (2, "convert leaf.vhdx a.vhdx --size 7M", "less than"),
        (6, "convert leaf.vhdx old.vhdx --stand-in s.vhdx --to-depth 2", "already exists"),
        (2, "convert leaf.vhdx - --verify", "are for files"),
        (2, "convert leaf.vhdx - --azure", "standard output"),
        (2, "convert - a.vhdx", "-f raw"),
        (2, "convert -f raw - a.vhdx --to-depth 1 --stand-in s.vhdx", "whole disk"),
    ] {
        let message = tool.fails(code, line);
        assert!(message.contains(words), "{line}: {message}");
        assert!(tool.snapshot() == before, "{line}");
    }
}

#[test]
fn a_vhd_for_azure_keeps_every_rule_and_every_byte() {
    let tool = Tool::new();
    for (size, expected) in
        [(20 * MIB, 20 * MIB), (21 * MIB - 512, 21 * MIB), (512, 20 * MIB), (25 * MIB + 1024, 26 * MIB)]
    {
        tool.ok(&format!("create --size {size} --force d.vhdx"));
        let bytes = pattern(size.min(3 * KIB), 7);
        tool.write("d.vhdx", size - bytes.len() as u64, &bytes);
        let said = tool.text("convert --azure d.vhdx up.vhd --force --verify");
        assert_eq!(azure_problems(tool.path("up.vhd")), Vec::<String>::new(), "{size}");
        assert_eq!(fs::metadata(tool.path("up.vhd")).unwrap().len(), expected + 512);
        assert_eq!(said.contains("of zeros were added"), size != expected, "{said}");
        let mut disk = tool.disk("d.vhdx");
        disk.resize(expected as usize, 0);
        others_agree(&tool.path("up.vhd"), &disk);
    }
    // One MiB more than the most is refused before a byte is copied.
    tool.ok("create --size 33553409M --block-size 256M large.vhdx");
    let message = tool.fails(2, "convert --azure large.vhdx large.vhd");
    assert!(message.contains("from 20 MiB to 32767 GiB"), "{message}");
    assert!(!tool.path("large.vhd").exists());
}

#[test]
fn space_is_reserved_when_asked_for_and_left_out_when_not() {
    let tool = Tool::new();
    tool.ok("create --size 32M d.vhdx");
    tool.write("d.vhdx", 20 * MIB, &pattern(MIB, 1));
    let disk = tool.disk("d.vhdx");
    for name in ["a.raw", "a.vhd", "a.vhdx"] {
        let kind = if name == "a.raw" { "" } else { "--type fixed" };
        let taken = || fs::metadata(tool.path(name)).unwrap().blocks() * 512;
        tool.ok(&format!("convert d.vhdx {name} {kind}"));
        assert!(taken() < 8 * MIB, "{name}: zeros are holes, {} bytes taken", taken());
        tool.ok(&format!("convert d.vhdx {name} {kind} --force --preallocate --verify"));
        assert!(taken() >= 32 * MIB, "{name}: {} bytes taken", taken());
        others_agree(&tool.path(name), &disk);
    }
}

#[test]
fn a_pipe_becomes_an_image_of_any_kind() {
    let tool = Tool::new();
    let mut disk = vec![0; (70 * MIB) as usize];
    for (offset, len, seed) in [(0, 100, 1), (31 * MIB, 2 * MIB, 2), (70 * MIB - 5, 5, 3)] {
        disk[offset as usize..(offset + len) as usize].copy_from_slice(&pattern(len, seed));
    }
    for (name, options) in TARGETS {
        tool.run_with(&format!("convert -f raw - {name} {options} --verify"), &disk).ok(name);
        others_agree(&tool.path(name), &disk);
        // With a size the image is what it would be when made from a file.
        tool.run_with(&format!("convert -f raw - {name} {options} --size 70M --force"), &disk).ok(name);
        others_agree(&tool.path(name), &disk);
    }
    let taken = fs::metadata(tool.path("raw.raw")).unwrap().blocks() * 512;
    assert!(taken < 16 * MIB, "zeros are holes: {taken}");
    tool.run_with("convert --azure -f raw - up.vhd", &disk[..21 << 20]).ok("azure");
    assert_eq!(azure_problems(tool.path("up.vhd")), Vec::<String>::new());
}

#[test]
fn a_stream_that_ends_inside_a_sector_is_filled_up_with_a_word() {
    let tool = Tool::new();
    let bytes = pattern(70 * KIB + 100, 5);
    let mut filled = bytes.clone();
    filled.resize(70 << 10 | 512, 0);
    fs::write(tool.path("odd"), &bytes).unwrap();
    for name in ["a.vhd", "a.vhdx"] {
        for piped in [true, false] {
            let line = format!("convert -f raw {} {name} --force --verify", if piped { "-" } else { "odd" });
            let said = String::from_utf8(tool.run_with(&line, &bytes).ok(&line)).unwrap();
            assert!(said.contains("412 bytes of zeros were added"), "{said}");
            others_agree(&tool.path(name), &filled);
        }
    }
    for source in ["-", "odd"] {
        tool.run_with(&format!("convert -f raw {source} a.raw --force --verify"), &bytes).ok(source);
        assert!(tool.bytes("a.raw") == bytes, "a raw disk ends where it ends");
    }
    let message = tool.run_with("convert -f raw - b.vhdx --size 64K", &bytes).fails(2, "longer than said");
    assert!(message.contains("goes on after the 65536 bytes"), "{message}");
    tool.run_with("convert -f raw - b.vhdx --size 1M", &bytes).ok("padded");
    filled.resize(1 << 20, 0);
    others_agree(&tool.path("b.vhdx"), &filled);
}

#[test]
fn a_file_on_standard_input_is_read_from_where_it_stands() {
    let tool = Tool::new();
    let bytes = pattern(3 * MIB, 5);
    fs::write(tool.path("in"), &bytes).unwrap();
    for skip in [0, MIB] {
        let mut file = File::open(tool.path("in")).unwrap();
        file.seek(SeekFrom::Start(skip)).unwrap();
        let output = tool.command("convert -f raw - out.vhd --force").stdin(file).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(tool.disk("out.vhd") == bytes[skip as usize..], "{skip}");
    }
    // A named pipe is a stream too.
    let made = std::process::Command::new("mkfifo").arg(tool.path("fifo")).status().unwrap();
    assert!(made.success());
    let child = tool.command("convert -f raw fifo piped.vhdx").spawn().unwrap();
    File::options().write(true).open(tool.path("fifo")).unwrap().write_all(&bytes).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
    assert!(tool.disk("piped.vhdx") == bytes);
}
