//! Images made by other software, through the program. They lie outside of the project: `VHDKIT_REAL_IMAGES` says where.

use crate::support::oracle::QemuImg;
use crate::support::real::{self, RealImage};
use crate::tool::Tool;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The size and SHA-256 of what a run writes to its standard output.
pub(crate) fn output_digest(tool: &Tool, line: &str) -> (u64, String) {
    let mut child = tool.command(line).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match stdout.read(&mut buffer).unwrap() {
            0 => break,
            read => {
                digest.update(&buffer[..read]);
                len += read as u64;
            }
        }
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "vhdkit {line}: {}", String::from_utf8_lossy(&output.stderr));
    (len, hex(&digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn file_digest(path: &Path) -> String {
    hex(&Sha256::digest(fs::read(path).unwrap()))
}

pub(crate) fn line(verb: &str, path: &Path, rest: &str) -> String {
    format!("{verb} {} {rest}", path.display())
}

#[test]
fn every_image_decodes_to_its_known_contents_and_stays_as_it_was() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    for image in real::ALL {
        let paths = image.paths(&folder);
        let before: Vec<String> = paths.iter().map(|path| file_digest(path)).collect();
        let found = output_digest(&tool, &line("convert", &paths[0], "- -O raw"));
        assert_eq!(found, (image.size, image.sha256.to_owned()), "{}", image.name());
        let info = tool.json(&line("info --json --chain", &paths[0], ""));
        assert_eq!(info["virtual_size"], image.size, "{}", image.name());
        assert_eq!(info["chain"].as_array().unwrap().len(), paths.len(), "{}", image.name());
        let after: Vec<String> = paths.iter().map(|path| file_digest(path)).collect();
        assert_eq!(before, after, "{} was changed by reading", image.name());
    }
}

#[test]
fn a_dirty_log_is_reported_and_left_in_place() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    let path = folder.join("openvmm/dirty-unapplied.vhdx");
    assert_eq!(tool.json(&line("info --json", &path, ""))["log"], "dirty");
    assert!(tool.text(&line("info", &path, "")).contains("dirty"));
    assert_eq!(tool.json(&line("info --json", &path, ""))["log"], "dirty", "looking did not clean it");
}

/// What opening each damaged image must do.
enum Damaged {
    /// Opens with a finding and shows all of the disk, whose SHA-256 begins so.
    Whole(&'static str),
    /// As `Whole`, but takes no writes until it is repaired.
    WholeReadOnly(&'static str),
    /// Opens; reading all of it fails as damaged.
    Holes,
    /// Does not open; the exit code.
    Refused(i32),
}

const DAMAGED: &[(&str, Damaged)] = &[
    ("vhd-dyn-tail-footer-cut.vhd", Damaged::WholeReadOnly("8b10b52e")),
    ("vhd-dyn-tail-badsum.vhd", Damaged::WholeReadOnly("8b10b52e")),
    ("vhd-dyn-head-copy-badsum.vhd", Damaged::Whole("8b10b52e")),
    ("vhd-dyn-bat-past-eof.vhd", Damaged::Holes),
    ("vhd-dyn-cut-in-last-block.vhd", Damaged::Holes),
    ("vhd-dyn-blocksize-0.vhd", Damaged::Refused(4)),
    ("vhd-fixed-nofooter.vhd", Damaged::Refused(4)),
    ("g-vhdx-hdr2-badcrc.vhdx", Damaged::Whole("5237dd89")),
    ("g-vhdx-rt1-badcrc.vhdx", Damaged::Whole("5237dd89")),
    ("g-vhdx-log-last-entry-badcrc.vhdx", Damaged::Whole("5e9e4770")),
    ("g-vhdx-both-hdr-badcrc.vhdx", Damaged::Refused(4)),
    ("g-vhdx-metadata-badsig.vhdx", Damaged::Refused(4)),
    ("g-vhdx-bat-past-eof.vhdx", Damaged::Holes),
    ("g-vhdx-cut-payload.vhdx", Damaged::Holes),
];

#[test]
fn damaged_images_open_as_far_as_they_can_and_say_what_is_wrong() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    for (name, damaged) in DAMAGED {
        let path = tool.path(name);
        fs::copy(folder.join("malformed").join(name), &path).unwrap();
        let before = file_digest(&path);
        let (info, convert) = (line("info --json", &path, ""), line("convert", &path, "-"));
        match damaged {
            Damaged::Whole(sha256) | Damaged::WholeReadOnly(sha256) => {
                assert!(!tool.json(&info)["findings"].as_array().unwrap().is_empty(), "{name}: no finding");
                assert!(output_digest(&tool, &convert).1.starts_with(sha256), "{name}");
            }
            Damaged::Holes => {
                tool.ok(&info);
                let message = tool.fails(4, &convert);
                let told = ["at file offset 0x", "found", "allowed"].iter().all(|word| message.contains(word));
                assert!(told, "{name}: {message}");
            }
            Damaged::Refused(code) => {
                let message = tool.fails(*code, &info);
                assert!(message.contains(name), "{message}");
                tool.fails(*code, &convert);
            }
        }
        assert_eq!(before, file_digest(&path), "{name} was changed by reading");
        if matches!(damaged, Damaged::WholeReadOnly(_)) {
            let outcome = tool.run_with(&line("write", &path, ""), b"x");
            assert!(outcome.code != Some(0), "{name} took a write");
            assert_eq!(before, file_digest(&path), "{name} was changed by a refused write");
        }
    }
}

#[test]
fn a_changed_parent_is_refused_by_its_identity() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    let path = folder.join("malformed/vhd-diff-parent-uuid-mismatch.vhd");
    let message = tool.fails(5, &line("convert", &path, "-"));
    assert!(message.contains("ERROR_VHD_CHILD_PARENT_ID_MISMATCH") && message.contains("ntfs-parent.vhd"), "{message}");
    let info = tool.json(&line("info --json", &path, ""));
    assert_eq!(info["parent"]["found"], serde_json::Value::Null);
}

/// Copies the chain of the image `name` into a folder of its own; answers the files, leaf first.
fn copied(tool: &Tool, folder: &Path, name: &str) -> Vec<PathBuf> {
    let files = RealImage::named(name).paths(folder);
    let copy = |from: &PathBuf| {
        let to = tool.path(from.file_name().unwrap().to_str().unwrap());
        fs::copy(from, &to).unwrap();
        to
    };
    files.iter().map(copy).collect()
}

#[test]
fn merging_leaves_what_the_leaf_showed_in_the_target() {
    let Some(folder) = real::folder() else { return };
    let qemu = QemuImg::find();
    for (name, depth) in [
        ("dfvfs/ntfs-differential.vhd", 1),
        ("dfvfs/ntfs-differential.vhdx", 1),
        ("virtualbox/diff2.vhd", 1),
        ("virtualbox/diff2.vhd", 2),
        ("virtualbox/diff1.vhd", 1),
    ] {
        let tool = Tool::new();
        let files = copied(&tool, &folder, name);
        let expected = RealImage::named(name);
        let untouched: Vec<String> = files[depth + 1..].iter().map(|path| file_digest(path)).collect();
        tool.ok(&line("merge", &files[0], &format!("--depth {depth}")));
        for shown in [&files[0], &files[depth]] {
            let found = output_digest(&tool, &line("convert", shown, "-"));
            assert_eq!(
                found,
                (expected.size, expected.sha256.to_owned()),
                "{name}, depth {depth}: {}",
                shown.display()
            );
        }
        let after: Vec<String> = files[depth + 1..].iter().map(|path| file_digest(path)).collect();
        assert_eq!(untouched, after, "{name}, depth {depth}: a file below the target changed");
        let (Some(qemu), true) = (&qemu, depth + 1 == files.len()) else { continue };
        let vhdx = name.ends_with("vhdx");
        let contents = qemu.contents(&files[depth], if vhdx { "vhdx" } else { "vpc" });
        assert_eq!((contents.len, contents.sha256.as_str()), (expected.size, expected.sha256), "{name}, depth {depth}");
        if vhdx {
            qemu.assert_checks(&files[depth]);
        }
    }
}

#[test]
fn deleting_leaves_the_base_alone_with_everything() {
    let Some(folder) = real::folder() else { return };
    let tool = Tool::new();
    let files = copied(&tool, &folder, "virtualbox/diff2.vhd");
    tool.ok(&line("merge", &files[0], "--depth 2 --delete"));
    let left: Vec<_> = tool.snapshot().into_iter().map(|(path, _)| path).collect();
    assert_eq!(left, [files[2].clone()]);
    let expected = RealImage::named("virtualbox/diff2.vhd");
    assert_eq!(output_digest(&tool, &line("convert", &files[2], "-")).1, expected.sha256);
}
