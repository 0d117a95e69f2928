//! `vhdkit compact`: what it says, what it refuses, what it leaves alone.

use crate::tool::{KIB, MIB, Tool, pattern};
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};

/// An image of eight blocks: data, zeros as data, data, nothing, data ..
fn tool(create: &str) -> Tool {
    let tool = Tool::new();
    tool.ok(&format!("create --size 8M --block-size 1M {create}"));
    let name = create.split_whitespace().last().expect("a name");
    for (block, seed) in [(6, 6), (0, 1), (1, 0), (4, 5), (3, 0)] {
        let bytes = if seed == 0 { vec![0; MIB as usize] } else { pattern(MIB, seed) };
        tool.write(name, block * MIB, &bytes);
    }
    tool
}

#[test]
fn compact_gives_back_zeros_and_says_how_much() {
    for name in ["disk.vhdx", "disk.vhd"] {
        let tool = tool(name);
        let (disk, before) = (tool.disk(name), tool.bytes(name));
        let dry = tool.json(&format!("compact --dry-run --json {name}"));
        assert!(tool.bytes(name) == before, "a dry run changes nothing");
        let text = tool.text(&format!("compact --dry-run {name}"));
        assert!(text.contains("would be at most") && text.contains("2, 2 MiB"), "{text}");
        let unscanned = tool.json(&format!("compact --dry-run --no-zero-scan --json {name}"));
        assert_eq!(unscanned["freed"]["zero"], 0);
        let done = tool.json(&format!("compact --json {name}"));
        assert_eq!((&done["freed"]["zero"], &done["dry_run"]), (&2.into(), &false.into()), "{done}");
        assert_eq!((&done["before"], &done["after"]), (&dry["before"], &dry["after"]), "{done}");
        let after = tool.bytes(name);
        assert!(after.len() as u64 <= before.len() as u64 - 2 * MIB, "{done}");
        assert_eq!(done["after"]["file_size"].as_u64(), Some(after.len() as u64));
        assert!(tool.disk(name) == disk, "{name} shows other bytes");
        assert_eq!(tool.json(&format!("compact --json {name}"))["moved"], 0);
    }
}

/// A child finds its parent after the parent was compacted, and blocks of zeros hide the parent or stay.
#[test]
fn compact_leaves_children_and_hidden_parents_as_they_are() {
    for extension in ["vhdx", "vhd"] {
        let base = format!("base.{extension}");
        let tool = tool(&base);
        let child = format!("child.{extension}");
        tool.ok(&format!("create --parent {base} --block-size 1M {child}"));
        tool.write(&child, 4 * MIB, &vec![0; MIB as usize]);
        tool.write(&child, 6 * MIB + 512, &pattern(5000, 9));
        let (disk, parent) = (tool.disk(&child), tool.disk(&base));
        let done = tool.json(&format!("compact --json {base}"));
        assert_eq!(done["freed"]["zero"], 2, "{done}");
        let done = tool.json(&format!("compact --json {child}"));
        assert_eq!(done["freed"]["zero"], i32::from(extension == "vhdx"), "{done}");
        assert!(tool.disk(&child) == disk && tool.disk(&base) == parent, "{extension}");
        tool.ok(&format!("check --chain {child}"));
    }
}

/// Flips the saved state of the VHD `name` in both of its footers.
fn save_state(tool: &Tool, name: &str) {
    let bytes = tool.bytes(name);
    let mut file = OpenOptions::new().write(true).open(tool.path(name)).unwrap();
    for at in [0, bytes.len() - 512] {
        let mut footer = bytes[at..at + 512].to_vec();
        footer[84] = 1;
        footer[64..68].fill(0);
        let sum = !footer.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        footer[64..68].copy_from_slice(&sum.to_be_bytes());
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&footer).unwrap();
    }
}

#[test]
fn compact_refuses_what_it_must() {
    let tool = tool("disk.vhd");
    tool.ok("create --size 4M --type fixed fixed.vhdx");
    tool.ok("create --size 4M --type fixed fixed.vhd");
    for name in ["fixed.vhdx", "fixed.vhd"] {
        let error = tool.fails(6, &format!("compact {name}"));
        assert!(error.contains("fixed") && error.contains("hint: convert"), "{error}");
    }
    let before = {
        save_state(&tool, "disk.vhd");
        tool.bytes("disk.vhd")
    };
    for line in ["compact disk.vhd", "compact --dry-run disk.vhd", "compact --no-fs disk.vhd"] {
        let error = tool.fails(6, line);
        assert!(error.contains("saved state"), "{error}");
    }
    assert!(tool.bytes("disk.vhd") == before, "a refusal changes nothing");
    std::fs::write(tool.path("flat.img"), vec![7; 64 * KIB as usize]).unwrap();
    tool.fails(4, "compact flat.img");
    tool.fails(3, "compact nothing.vhdx");
}

#[test]
fn compact_refuses_an_image_in_use() {
    use vhdkit::storage::{Access, FileStorage, Lock};
    let tool = tool("disk.vhdx");
    let held = FileStorage::open(&tool.path("disk.vhdx"), Access::Read, Lock::Shared).unwrap();
    let before = tool.bytes("disk.vhdx");
    tool.fails(6, "compact disk.vhdx");
    tool.ok("compact --dry-run --no-fs disk.vhdx");
    drop(held);
    assert!(tool.bytes("disk.vhdx") == before);
    tool.ok("compact disk.vhdx");
}
