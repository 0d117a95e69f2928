//! `rescue`: what it saves of real images that are damaged, what it says of the rest, and what other programs read.

use crate::real_images::{file_digest, line, output_digest};
use crate::support::oracle::{Libvhdi, QemuImg, SevenZip};
use crate::support::real::{self, RealImage};
use crate::tool::{MIB, Tool, pattern};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Rescues `source` and answers the exit code and the report; the source stays as it was.
#[track_caller]
fn rescued(tool: &Tool, source: &Path, rest: &str) -> (i32, Value) {
    let before = file_digest(source);
    let outcome = tool.run(&line("rescue --json --force", source, rest));
    assert!(outcome.stderr.is_empty(), "{}: {}", source.display(), outcome.stderr);
    assert_eq!(file_digest(source), before, "{} was changed", source.display());
    (outcome.code.unwrap(), serde_json::from_slice(&outcome.stdout).unwrap())
}

fn lost(report: &Value) -> Vec<(u64, u64)> {
    let ranges = report["lost"].as_array().unwrap().iter();
    ranges.map(|one| (one["offset"].as_u64().unwrap(), one["length"].as_u64().unwrap())).collect()
}

/// The SHA-256 that other programs read from a rescued image.
fn by_others(path: &Path) -> Vec<(&'static str, String)> {
    let vhdx = path.extension().is_some_and(|extension| extension == "vhdx");
    let mut found = Vec::new();
    if let Some(qemu) = QemuImg::find() {
        found.push(("qemu-img", qemu.contents(path, if vhdx { "vhdx" } else { "vpc" }).sha256));
    }
    if let Some(seven) = SevenZip::find() {
        found.push(("7zz", seven.contents(path, if vhdx { "VHDX" } else { "VHD" }).sha256));
    }
    if let Some(libvhdi) = Libvhdi::find() {
        found.push(("libvhdi", libvhdi.contents(&[path]).sha256));
    }
    found
}

/// The damaged real images of which everything can be had, and how its SHA-256 begins.
const WHOLE: &[(&str, &str)] = &[
    ("vhd-dyn-tail-footer-cut.vhd", "8b10b52e"),
    ("vhd-dyn-tail-badsum.vhd", "8b10b52e"),
    ("vhd-dyn-head-copy-badsum.vhd", "8b10b52e"),
    ("vhd-dyn-blocksize-0.vhd", "8b10b52e"),
    ("g-vhdx-hdr2-badcrc.vhdx", "5237dd89"),
    ("g-vhdx-rt1-badcrc.vhdx", "5237dd89"),
    ("g-vhdx-both-hdr-badcrc.vhdx", "5237dd89"),
    ("g-vhdx-metadata-badsig.vhdx", "5237dd89"),
    ("g-vhdx-log-last-entry-badcrc.vhdx", "5e9e4770"),
];

#[test]
fn damaged_real_images_that_hold_everything_are_read_whole() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    for (name, sha256) in WHOLE {
        let source = folder.join("malformed").join(name);
        for target in ["new.vhd", "new.vhdx", "new.raw"] {
            let (code, report) = rescued(&tool, &source, target);
            assert_eq!((code, lost(&report)), (0, vec![]), "{name}: {report}");
            let path = tool.path(target);
            let shown = if target == "new.raw" {
                file_digest(&path)
            } else {
                output_digest(&tool, &line("convert", &path, "-")).1
            };
            assert!(shown.starts_with(sha256), "{name} as {target}: {shown}");
            if target != "new.raw" {
                tool.ok(&format!("check {target}"));
                for (reader, found) in by_others(&path) {
                    assert!(found.starts_with(sha256), "{name} as {target} by {reader}");
                }
            }
        }
    }
}

/// The damaged ones of which a part is gone: the sound image each was made of.
const PARTS: &[(&str, &str)] = &[
    ("vhd-dyn-bat-past-eof.vhd", "dfvfs/ntfs-dynamic.vhd"),
    ("vhd-dyn-cut-in-last-block.vhd", "dfvfs/ntfs-dynamic.vhd"),
    ("g-vhdx-bat-past-eof.vhdx", "dfvfs/ntfs-fixed.vhdx"),
    ("g-vhdx-cut-payload.vhdx", "dfvfs/ntfs-fixed.vhdx"),
];

/// Asserts that `found` is `expected` but for the `lost` ranges, which hold `fill`.
#[track_caller]
fn assert_but(found: &[u8], expected: &[u8], lost: &[(u64, u64)], fill: u8) {
    let mut expected = expected.to_vec();
    for (offset, length) in lost {
        expected[*offset as usize..(offset + length) as usize].fill(fill);
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(found.iter().zip(&expected).position(|(a, b)| a != b), None);
}

#[test]
fn of_damaged_real_images_all_that_is_left_is_read() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    for (name, sound) in PARTS {
        tool.ok(&line("convert", &folder.join(sound), "sound.raw --force"));
        let expected = tool.bytes("sound.raw");
        let source = folder.join("malformed").join(name);
        let (code, report) = rescued(&tool, &source, "new.raw --fill a5 --map-file map.json");
        let lost = lost(&report);
        let bytes: u64 = lost.iter().map(|(_, length)| length).sum();
        assert_eq!((code, bytes), (1, report["lost_bytes"].as_u64().unwrap()), "{name}");
        assert!(bytes > 0 && bytes < expected.len() as u64, "{name}: {report}");
        assert_but(&tool.bytes("new.raw"), &expected, &lost, 0xA5);
        let map: Value = serde_json::from_slice(&tool.bytes("map.json")).unwrap();
        assert_eq!((&map["lost"], &map["virtual_size"]), (&report["lost"], &report["virtual_size"]), "{name}");
        if name.contains("cut") {
            let len = |path: &Path| fs::metadata(path).unwrap().len();
            let cut = len(&folder.join(sound)) - len(&source);
            assert!(bytes <= cut + 511, "{name}: no more is lost than {cut} bytes that were cut off: {report}");
        }
        let target = if name.ends_with("vhd") { "new.vhd" } else { "new.vhdx" };
        assert_eq!(rescued(&tool, &source, &format!("{target} --fill a5")).0, 1);
        let raw = file_digest(&tool.path("new.raw"));
        for (reader, found) in by_others(&tool.path(target)) {
            assert_eq!(found, raw, "{name} by {reader}");
        }
    }
}

#[test]
fn what_cannot_be_told_is_refused_and_raw_is_a_way_out() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    let source = folder.join("malformed/vhd-fixed-nofooter.vhd");
    let message = tool.fails(4, &line("rescue", &source, "new.vhd"));
    assert!(message.contains("-f raw"), "{message}");
    assert!(tool.snapshot().is_empty(), "nothing is left behind");
    let (code, _) = rescued(&tool, &source, "new.vhd -f raw");
    assert_eq!(code, 0);
    assert!(output_digest(&tool, "convert new.vhd -").1 == file_digest(&source));

    // Whoever names another parent than the one the child was made over is refused, as everywhere.
    let child = folder.join("malformed/vhd-diff-parent-uuid-mismatch.vhd");
    let message = tool.fails(5, &line("rescue", &child, "x.raw"));
    assert!(message.contains("ERROR_VHD_CHILD_PARENT_ID_MISMATCH"), "{message}");
    let (code, report) = rescued(&tool, &child, "x.raw --alone");
    assert_eq!(code, 0);
    assert!(!report["absent"].as_array().unwrap().is_empty());
}

/// Real images cut off at several places: what is not in the map is what the whole image shows.
#[test]
fn truncated_real_images_show_no_other_bytes() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    let mut cuts = 0;
    for image in real::ALL.iter().filter(|image| image.size <= 16 * MIB) {
        let sound = image.paths(&folder);
        tool.ok(&line("convert", &sound[0], "sound.raw --force"));
        let expected = tool.bytes("sound.raw");
        let copies: Vec<PathBuf> =
            sound.iter().map(|path| tool.path(path.file_name().unwrap().to_str().unwrap())).collect();
        for (from, to) in sound.iter().zip(&copies) {
            fs::copy(from, to).unwrap();
        }
        let len = fs::metadata(&sound[0]).unwrap().len();
        for cut in [len - 512, len * 7 / 8, len / 2, len / 3] {
            fs::copy(&sound[0], &copies[0]).unwrap();
            fs::OpenOptions::new().write(true).open(&copies[0]).unwrap().set_len(cut).unwrap();
            let outcome = tool.run(&line("rescue --json --force", &copies[0], "new.raw --fill a5"));
            cuts += 1;
            if let Some(4) = outcome.code {
                // Nothing is left of a fixed VHD's footer, or of the tables behind the cut.
                let fixed =
                    ["dfvfs/ntfs-fixed.vhd", "dfvfs/ntfs-parent.vhd", "qemu/fixed-chs.vhd", "virtualbox/fixed.vhd"];
                let name = image.name();
                assert!(fixed.contains(&name) || name.contains("plaso") || cut <= len / 2, "{name} at {cut}");
                continue;
            }
            let report: Value = serde_json::from_slice(&outcome.stdout)
                .unwrap_or_else(|error| panic!("{} at {cut}: {error}: {}", image.name(), outcome.stderr));
            assert_but(&tool.bytes("new.raw"), &expected, &lost(&report), 0xA5);
        }
    }
    println!("{cuts} cuts");
    assert!(cuts >= 40);
}

#[test]
fn a_chain_with_a_damaged_parent_is_read_over_it() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    let image = RealImage::named("dfvfs/ntfs-differential.vhdx");
    for path in image.paths(&folder) {
        fs::copy(&path, tool.path(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    let parent = tool.path("ntfs-parent.vhdx");
    let mut bytes = fs::read(&parent).unwrap();
    // Both headers and both region tables of the parent.
    for at in [64 << 10, 128 << 10, 192 << 10, 256 << 10] {
        bytes[at + 100] ^= 1;
    }
    fs::write(&parent, bytes).unwrap();
    tool.fails(4, "info --chain ntfs-differential.vhdx");
    let (code, report) = rescued(&tool, &tool.path("ntfs-differential.vhdx"), "new.vhdx");
    assert_eq!(code, 0, "{report}");
    assert_eq!(output_digest(&tool, "convert new.vhdx -").1, image.sha256);
    assert!(!report["files"][1]["assumptions"].as_array().unwrap().is_empty(), "{report}");
}

#[test]
fn its_answer_reads_well_and_files_are_not_replaced() {
    let tool = Tool::new();
    tool.ok("create --size 4M --block-size 1M disk.vhdx --quiet");
    tool.write("disk.vhdx", 0, &pattern(4 * MIB, 1));
    let mut bytes = tool.bytes("disk.vhdx");
    let len = bytes.len();
    bytes[(64 << 10) + 100] ^= 1;
    bytes[(128 << 10) + 100] ^= 1;
    fs::write(tool.path("cut.vhdx"), &bytes[..len - 5000]).unwrap();
    let outcome = tool.run("rescue cut.vhdx new.raw --map-file map.json");
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let text = String::from_utf8(outcome.stdout).unwrap();
    for words in ["assumed", "VHDX header", "because", "lost in all", "5120"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let map: Value = serde_json::from_slice(&tool.bytes("map.json")).unwrap();
    assert_eq!(map["lost"][0]["length"], 5120, "whole sectors: {map}");

    for existing in ["new.raw", "other.raw --map-file map.json"] {
        tool.fails(6, &format!("rescue cut.vhdx {existing}"));
    }
    assert!(!tool.path("other.raw").exists());
    tool.fails(6, "rescue cut.vhdx cut.vhdx --force");
    tool.fails(2, "rescue cut.vhdx new");
    tool.fails(3, "rescue missing.vhdx x.raw");
    for fill in ["", "f", "xy"] {
        let outcome = tool.command("rescue cut.vhdx x.raw").arg("--fill").arg(fill).output().unwrap();
        assert_eq!(outcome.status.code(), Some(2), "{fill:?}");
    }
    // Progress and quiet, as everywhere.
    let outcome = tool.run("rescue cut.vhdx new.raw --force --quiet --progress json");
    assert!(outcome.stdout.is_empty() && outcome.stderr.contains("\"done\""), "{}", outcome.stderr);
}
