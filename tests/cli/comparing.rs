//! What `compare`, `changes`, `hash` and `map` answer: over formats and chains, as text and as JSON, with their exit codes.
//!
//! Bugs this finds: a difference with exit code 0, equal disks with another; a digest that is not the disk's; sectors or
//! places in the answer that are not those of the files.

use crate::tool::{KIB, MIB, Tool, pattern};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;

/// A chain of three VHDX files over 8 MiB. The leaf: data at 3 MiB. The middle: data at 1 and 3 MiB. The base: at 0.
fn chain(tool: &Tool) {
    tool.ok("create --size 8M --block-size 1M base.vhdx");
    tool.write("base.vhdx", 0, &pattern(64 * KIB, 1));
    tool.ok("create --parent base.vhdx middle.vhdx");
    tool.write("middle.vhdx", MIB, &pattern(4 * KIB, 2));
    tool.write("middle.vhdx", 3 * MIB, &pattern(8 * KIB, 3));
    tool.ok("create --parent middle.vhdx leaf.vhdx");
    tool.write("leaf.vhdx", 3 * MIB + 4 * KIB, &pattern(4 * KIB, 4));
}

fn code(tool: &Tool, line: &str) -> (Option<i32>, String) {
    let outcome = tool.run(line);
    assert_eq!(outcome.stderr, "", "{line}");
    (outcome.code, String::from_utf8(outcome.stdout).unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_same_disk_in_any_format_compares_equal_and_hashes_the_same() {
    let tool = Tool::new();
    chain(&tool);
    let disk = tool.disk("leaf.vhdx");
    let digest = hex(&Sha256::digest(&disk));
    let tree = tool.text("hash --tree leaf.vhdx");
    for flat in ["flat.raw", "flat.vhd", "flat.vhdx"] {
        tool.ok(&format!("convert leaf.vhdx {flat}"));
        let raw = if flat == "flat.raw" { "-F raw " } else { "" };
        let (exit, text) = code(&tool, &format!("compare {raw}leaf.vhdx {flat}"));
        assert_eq!((exit, text.as_str()), (Some(0), "the same: 8 MiB (8388608 bytes)\n"), "{flat}");
        assert_eq!(code(&tool, &format!("compare --quiet {raw}leaf.vhdx {flat}")), (Some(0), String::new()));
        let raw = if flat == "flat.raw" { "-f raw " } else { "" };
        assert_eq!(tool.text(&format!("hash {raw}{flat}")), format!("{digest}  {flat}\n"));
        assert_eq!(tool.text(&format!("hash --tree {raw}{flat}")), tree.replace("leaf.vhdx", flat));
    }
    let report = tool.json("hash --json --jobs 1 leaf.vhdx");
    let expected = json!({ "kind": "sha256", "digest": digest, "virtual_size": 8 * MIB, "read": MIB + 12 * KIB });
    assert_eq!(report, expected, "a block of the base and the sectors of the others; of the rest nothing is read");
    assert_eq!(tool.json("hash --json --tree leaf.vhdx")["kind"], "sha256-tree");
}

/// Computed here from the definition in RFC 6962, with no knowledge of where zeros are.
#[test]
fn the_tree_digest_is_the_merkle_tree_hash_of_chunks_of_1_mib() {
    fn root(entries: &[&[u8]]) -> Vec<u8> {
        match entries {
            [one] => Sha256::new().chain_update([0]).chain_update(one).finalize().to_vec(),
            _ => {
                let (left, right) = entries.split_at(entries.len().next_power_of_two() / 2);
                Sha256::new().chain_update([1]).chain_update(root(left)).chain_update(root(right)).finalize().to_vec()
            }
        }
    }
    let tool = Tool::new();
    for (size, writes) in [
        (512, vec![]),
        (MIB, vec![(0, 100)]),
        (13 * MIB + 1536, vec![(0, 1), (5 * MIB - 3, 2 * MIB), (13 * MIB + 512, 1024)]),
        (200 * MIB, vec![(99 * MIB, 7 * MIB)]),
    ] {
        tool.ok(&format!("create --force --size {size} d.vhd"));
        for (offset, len) in writes {
            tool.write("d.vhd", offset, &pattern(len, 9));
        }
        let disk = tool.disk("d.vhd");
        let chunks: Vec<&[u8]> = disk.chunks(1 << 20).collect();
        assert_eq!(tool.text("hash --tree d.vhd"), format!("sha256-tree:{}  d.vhd\n", hex(&root(&chunks))), "{size}");
    }
}

#[test]
fn differences_are_listed_in_sectors_and_end_the_program_with_1() {
    let tool = Tool::new();
    chain(&tool);
    tool.ok("convert leaf.vhdx other.vhd");
    tool.write("other.vhd", 700, b"x");
    tool.write("other.vhd", 5 * MIB, &[1; 1024]);
    let (exit, text) = code(&tool, "compare leaf.vhdx other.vhd");
    assert_eq!(exit, Some(1));
    assert!(text.starts_with("different from byte 512 on"), "{text}");
    let (exit, text) = code(&tool, "compare --report leaf.vhdx other.vhd");
    assert_eq!(exit, Some(1));
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[..3], [vec!["offset", "length"], vec!["512", "512"], vec!["5242880", "1024"]], "{text}");
    assert!(rows[3].join(" ").ends_with("1.5 KiB (1536 bytes) in all"), "{text}");

    let outcome = tool.run("compare --json other.vhd leaf.vhdx");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), ""));
    let report: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(report["equal"], false);
    assert_eq!(report["differing"], 1536);
    assert_eq!(report["ranges"], json!([{ "offset": 512, "length": 512 }, { "offset": 5 * MIB, "length": 1024 }]));
    assert_eq!(report["examined"], 8 * MIB);
    // Zeros on both sides needed no reading: neither file has a block in the last 2 MiB.
    let known = report["known_equal"].as_u64().unwrap();
    assert!((2 * MIB..8 * MIB).contains(&known), "{known}");
}

#[test]
fn files_that_two_chains_share_are_not_read() {
    let tool = Tool::new();
    chain(&tool);
    let report = tool.run("compare --json middle.vhdx leaf.vhdx");
    assert_eq!(report.code, Some(1));
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["ranges"], json!([{ "offset": 3 * MIB + 4 * KIB, "length": 4 * KIB }]));
    assert_eq!(report["known_equal"], 8 * MIB - 4 * KIB, "only what the leaf holds was compared");
}

#[test]
fn disks_of_different_sizes_differ_unless_they_are_to_be_padded() {
    let tool = Tool::new();
    tool.ok("create --size 1M a.vhd");
    tool.ok("create --size 3M b.vhdx");
    for (one, other) in [("a.vhd", "b.vhdx"), ("b.vhdx", "a.vhd")] {
        let (exit, text) = code(&tool, &format!("compare {one} {other}"));
        assert_eq!(exit, Some(1));
        assert!(text.starts_with("different sizes: the first disk has "), "{text}");
        assert_eq!(code(&tool, &format!("compare --pad {one} {other}")).0, Some(0));
    }
    tool.write("b.vhdx", 2 * MIB, b"x");
    for (one, other) in [("a.vhd", "b.vhdx"), ("b.vhdx", "a.vhd")] {
        let (exit, text) = code(&tool, &format!("compare --pad --report {one} {other}"));
        assert_eq!(exit, Some(1));
        assert!(text.contains(" 2097152 "), "{text}");
    }
}

#[test]
fn changes_are_what_the_files_between_two_points_hold() {
    let tool = Tool::new();
    chain(&tool);
    tool.ok("create --parent base.vhdx side.vhdx");
    tool.write("side.vhdx", 5 * MIB, &pattern(512, 5));
    let middle = [(MIB, 4 * KIB), (3 * MIB, 8 * KIB)];
    for (from, to, expected) in [
        ("base.vhdx", "base.vhdx", vec![]),
        ("middle.vhdx", "leaf.vhdx", vec![(3 * MIB + 4 * KIB, 4 * KIB)]),
        ("leaf.vhdx", "middle.vhdx", vec![(3 * MIB + 4 * KIB, 4 * KIB)]),
        ("base.vhdx", "leaf.vhdx", middle.to_vec()),
        ("side.vhdx", "middle.vhdx", [&middle[..], &[(5 * MIB, 512)]].concat()),
    ] {
        let answer = tool.json(&format!("changes --json {from} {to}"));
        let ranges: Vec<Value> =
            expected.iter().map(|(offset, length)| json!({ "offset": offset, "length": length })).collect();
        assert_eq!(answer, json!({ "from_virtual_size": 8 * MIB, "to_virtual_size": 8 * MIB, "ranges": ranges }));
        let text = tool.text(&format!("changes {from} {to}"));
        let listed = text.lines().filter(|line| line.starts_with(' ') && !line.contains("offset")).count();
        assert_eq!(listed, expected.len(), "{text}");
    }
    tool.ok("create --size 8M stranger.vhdx");
    let message = tool.fails(5, "changes stranger.vhdx leaf.vhdx");
    assert!(message.contains("shares no file with leaf.vhdx") && message.contains("vhdkit compare"), "{message}");
}

#[test]
fn the_map_names_states_depths_and_places() {
    let tool = Tool::new();
    chain(&tool);
    let map = tool.json("map --json leaf.vhdx");
    assert_eq!(map["virtual_size"], 8 * MIB);
    let paths: Vec<&str> = map["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(paths.len(), 3);
    assert!(paths[0] == "leaf.vhdx" && paths[1].ends_with("middle.vhdx") && paths[2].ends_with("base.vhdx"));
    let disk = tool.disk("leaf.vhdx");
    let files = ["leaf.vhdx", "middle.vhdx", "base.vhdx"].map(|name| tool.bytes(name));
    let (mut at, mut of) = (0, [0u64; 3]);
    for extent in map["extents"].as_array().unwrap() {
        let number = |name: &str| extent[name].as_u64();
        let (offset, length) = (number("offset").unwrap(), number("length").unwrap());
        assert_eq!(offset, at);
        at += length;
        let shown = &disk[offset as usize..at as usize];
        match extent["state"].as_str().unwrap() {
            "data" => {
                let depth = number("depth").unwrap() as usize;
                let from = number("file_offset").unwrap() as usize;
                of[depth - 1] += length;
                assert!(files[depth - 1][from..from + length as usize] == *shown, "{extent}");
            }
            "zero" => assert!(extent["depth"] == 3 && shown.iter().all(|&byte| byte == 0), "{extent}"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(at, 8 * MIB);
    assert_eq!(of, [4 * KIB, 8 * KIB, MIB], "the base holds a whole block, the others sectors");

    let text = tool.text("map leaf.vhdx --offset 3M --length 8K");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["depth", "1", "leaf.vhdx"]);
    let extents: Vec<&[&str]> = rows[4..].iter().map(|row| &row[..4]).collect();
    assert_eq!(extents, [["3145728", "4096", "data", "2"], ["3149824", "4096", "data", "1"]], "{text}");
}

#[test]
fn the_map_of_a_grown_child_says_where_its_parent_ends() {
    let tool = Tool::new();
    fs::write(tool.path("raw"), pattern(4 * KIB, 1)).unwrap();
    let map = tool.json("map --json -f raw raw");
    assert_eq!(map["extents"], json!([{ "offset": 0, "length": 4096, "state": "data", "depth": 1, "file_offset": 0 }]));
    tool.ok("create --size 2M base.vhd");
    tool.ok("create --size 4M --parent base.vhd leaf.vhd");

    let map = tool.json("map --json leaf.vhd");
    let unallocated =
        json!({ "offset": 0, "length": 2 * MIB, "state": "unallocated", "depth": null, "file_offset": null });
    let past = json!({ "offset": 2 * MIB, "length": 2 * MIB, "state": "past-end", "depth": 2, "file_offset": null });
    assert_eq!(map["extents"], json!([unallocated, past]));
}

#[test]
fn the_picture_shows_who_holds_what_and_what_a_merge_moves() {
    let tool = Tool::new();
    chain(&tool);
    // Sixteen parts of 512 KiB.
    let text = tool.text("map leaf.vhdx --picture --width 40 --merge 2");
    let rows: Vec<&str> = text.lines().collect();
    let strip = |label: &str| {
        let row = rows.iter().find(|row| row.starts_with(label)).unwrap_or_else(|| panic!("{label}: {text}"));
        row.chars().skip(20).take(16).collect::<String>()
    };
    assert_eq!(rows[0], "a disk of 8 MiB, in 16 parts of 512 KiB");
    assert_eq!(strip("    disk"), "332\u{b7}\u{b7}\u{b7}1\u{b7}\u{b7}\u{b7}\u{b7}\u{b7}\u{b7}\u{b7}\u{b7}\u{b7}");
    assert_eq!(strip("  1 leaf.vhdx"), "      \u{259a}         ");
    assert_eq!(strip("  2 middle.vhdx"), "  \u{259a}   \u{259a}         ");
    assert_eq!(strip("  3 base.vhdx"), "\u{2588}\u{2588}              ");
    assert_eq!(strip("    merge 1 to 3"), "  ^   ^         ");
    assert!(text.contains("4 KiB, 1 block in part") && text.contains("12 KiB, 2 blocks in part"), "{text}");
    assert!(text.contains("12 KiB moves"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours unless it is a terminal");
    let colored = tool.text("map leaf.vhdx --picture --width 40 --merge 2 --color always");
    let mut plain = String::new();
    for (part, first) in colored.split('\u{1b}').zip(std::iter::once(true).chain(std::iter::repeat(false))) {
        plain += if first { part } else { part.split_once('m').unwrap().1 };
    }
    assert_eq!(plain, text, "colours change nothing else");
    assert!(tool.fails(5, "map leaf.vhdx --picture --merge 3").contains("the chain has 3 files"));
    tool.fails(5, "map leaf.vhdx --picture --merge 2-4");
}

#[test]
fn the_svg_is_one_that_programs_draw() {
    let tool = Tool::new();
    chain(&tool);
    fs::rename(tool.path("leaf.vhdx"), tool.path("a<b>&\"c\".vhdx")).unwrap();
    tool.ok("map a<b>&\"c\".vhdx --svg chain.svg");
    let text = String::from_utf8(tool.bytes("chain.svg")).unwrap();
    assert!(text.starts_with("<svg xmlns=") && text.ends_with("</svg>\n"));
    assert!(text.contains(">a&lt;b&gt;&amp;&quot;c&quot;.vhdx<"), "{text}");
    for words in ["1  a&lt;b&gt;&amp;", "2  middle.vhdx", "3  base.vhdx", "a merge of 1 into 2", "4 KiB moves", "8 MiB"]
    {
        assert!(text.contains(words), "{words}");
    }
    assert!(tool.fails(6, "map middle.vhdx --svg chain.svg").contains("already exists"));
    assert!(tool.ok("map middle.vhdx --svg - ").starts_with(b"<svg "));
    tool.ok("map middle.vhdx --svg chain.svg --force");
    assert!(String::from_utf8(tool.bytes("chain.svg")).unwrap().contains(">middle.vhdx<"));
    let drawn = std::process::Command::new("rsvg-convert").arg(tool.path("chain.svg")).output();
    match drawn {
        Ok(drawn) => {
            assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
            assert!(drawn.stdout.starts_with(b"\x89PNG"));
            let pixels = |at: usize| u32::from_be_bytes(drawn.stdout[at..at + 4].try_into().unwrap());
            assert_eq!(
                (pixels(16), pixels(20)),
                (1200, 92 + 4 * 54 + 74),
                "width and height: two files, disk and merge"
            );
        }
        Err(_) => crate::support::oracle::skipped("rsvg-convert is not installed (package librsvg2-bin)"),
    }
}
