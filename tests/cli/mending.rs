//! `check` and `repair`: what they say, how they end, and what other programs read after a repair.

use crate::real_images::{file_digest, line, output_digest};
use crate::support::oracle::{QemuImg, SevenZip};
use crate::support::real::{self, RealImage};
use crate::tool::{Outcome, Tool};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// Runs a check and answers its exit code and its report.
fn checked(tool: &Tool, path: &str) -> (i32, Value) {
    let outcome = tool.run(&format!("check --json {path}"));
    assert!(outcome.stderr.is_empty(), "{path}: {}", outcome.stderr);
    (outcome.code.unwrap(), serde_json::from_slice(&outcome.stdout).unwrap())
}

fn findings(report: &Value) -> &Vec<Value> {
    report["files"][0]["findings"].as_array().unwrap()
}

fn has(report: &Value, structure: &str, fault: &str) -> bool {
    findings(report).iter().any(|finding| finding["structure"] == structure && finding["fault"] == fault)
}

fn kinds(report: &Value) -> Vec<&str> {
    report["repairs"].as_array().unwrap().iter().map(|repair| repair["kind"].as_str().unwrap()).collect()
}

/// A copy of the damaged image `name`.
fn copy(tool: &Tool, name: &str) -> Option<PathBuf> {
    let path = tool.path(name);
    fs::copy(real::folder()?.join("malformed").join(name), &path).unwrap();
    Some(path)
}

#[test]
fn an_image_in_good_order_is_clean_and_needs_no_repair() {
    let tool = Tool::new();
    for name in ["a.vhd", "a.vhdx"] {
        tool.ok(&format!("create --size 5M {name}"));
        tool.write(name, 4096, b"hello");
        let before = tool.snapshot();
        let (code, report) = checked(&tool, name);
        assert_eq!((code, findings(&report).len()), (0, 0), "{report}");
        assert_eq!(report["files"][0]["summary"]["virtual_size"], 5 << 20);
        assert!(tool.text(&format!("check {name}")).contains("findings          none"));
        assert!(tool.text(&format!("repair {name}")).contains("repairs  none"));
        assert_eq!(tool.run(&format!("repair --quiet {name}")).ok("repair"), b"");
        assert!(before == tool.snapshot(), "nothing was written");
        tool.fails(3, &format!("repair --undo {name}"));
    }
}

#[test]
fn a_finding_is_told_with_its_place_its_windows_name_and_whether_it_can_be_mended() {
    let tool = Tool::new();
    tool.ok("create --size 5M a.vhd");
    let mut bytes = tool.bytes("a.vhd");
    bytes[100] ^= 1;
    fs::write(tool.path("a.vhd"), &bytes).unwrap();
    let outcome = tool.run("check a.vhd");
    assert_eq!(outcome.code, Some(1));
    let text = String::from_utf8(outcome.stdout).unwrap();
    for word in
        ["error: VHD footer copy at file offset 0x40", "found", "allowed", "FOOTER_CHECKSUM_MISMATCH", "[repairable]"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(outcome.stderr.is_empty());
    assert!(tool.text("repair --dry-run a.vhd").contains("would repair  footer-copy"));
    assert_eq!(tool.bytes("a.vhd"), bytes);
    assert!(tool.text("repair a.vhd").contains(".a.vhd.vhdkit-undo"));
    assert_eq!(checked(&tool, "a.vhd").0, 0);
    assert!(tool.text("repair --undo a.vhd").contains("brought back"));
    assert_eq!(tool.bytes("a.vhd"), bytes);
}

#[test]
fn what_is_no_image_and_what_nobody_knows_how_to_allow() {
    let tool = Tool::new();
    fs::write(tool.path("junk"), [7; 100_000]).unwrap();
    tool.ok("create --size 5M a.vhd");
    for verb in ["check", "repair"] {
        tool.fails(4, &format!("{verb} junk"));
        tool.fails(3, &format!("{verb} nothing.vhd"));
    }
    let message = tool.run("repair --allow everything a.vhd");
    assert_eq!(message.code, Some(2));
    assert!(message.stderr.contains("unmap-lost-blocks"), "{}", message.stderr);
    assert_eq!(tool.run("repair --undo --dry-run a.vhd").code, Some(2));
    let held = fs::File::open(tool.path("a.vhd")).unwrap();
    held.lock().unwrap();
    tool.fails(6, "repair a.vhd");
    tool.fails(6, "check a.vhd");
    tool.ok("check --no-lock a.vhd");
}

#[test]
fn a_chain_is_checked_with_its_links_and_siblings() {
    let tool = Tool::new();
    tool.ok("create --size 5M base.vhdx");
    tool.ok("create --parent base.vhdx leaf.vhdx");
    tool.ok("create --parent base.vhdx twin.vhdx");
    let text = tool.text("check --chain leaf.vhdx");
    assert!(text.contains("base.vhdx") && text.contains("twin.vhdx stands on a parent"), "{text}");
    tool.write("base.vhdx", 0, b"changed");
    let outcome = tool.run("check --chain leaf.vhdx");
    assert_eq!(outcome.code, Some(1));
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert!(text.contains("ERROR_VHD_CHILD_PARENT_ID_MISMATCH"), "{text}");
    tool.ok("check leaf.vhdx");
}

/// The rows of the damaged VHD images that lose nothing by a repair.
#[test]
fn damaged_footers_of_real_images_are_restored() {
    let tool = Tool::new();
    let whole = RealImage::named("dfvfs/ntfs-dynamic.vhd");
    let (qemu, seven_zip) = (QemuImg::find(), SevenZip::find());
    for (name, structure, fault, kind) in [
        ("vhd-dyn-tail-footer-cut.vhd", "vhd-footer", "missing", "tail-footer"),
        ("vhd-dyn-tail-badsum.vhd", "vhd-footer", "checksum", "tail-footer"),
        ("vhd-dyn-head-copy-badsum.vhd", "vhd-footer-copy", "checksum", "footer-copy"),
    ] {
        let Some(path) = copy(&tool, name) else { return };
        let before = file_digest(&path);
        let (code, report) = checked(&tool, name);
        assert_eq!(code, 1, "{name}: {report}");
        assert!(has(&report, structure, fault), "{name}: {report}");
        let plan = tool.json(&format!("repair --dry-run --json {name}"));
        assert_eq!((kinds(&plan), file_digest(&path)), (vec![kind], before.clone()), "{name}");

        let report = tool.json(&format!("repair --json {name}"));
        assert_eq!(kinds(&report), [kind], "{name}");
        assert_eq!(checked(&tool, name).0, 0, "{name}");
        assert_eq!(output_digest(&tool, &line("convert", &path, "-")), (whole.size, whole.sha256.to_owned()), "{name}");
        let seen = [
            qemu.as_ref().map(|qemu| qemu.contents(&path, "vpc")),
            seven_zip.as_ref().map(|seven_zip| seven_zip.contents(&path, "VHD")),
        ];
        for contents in seen.into_iter().flatten() {
            assert_eq!((contents.len, contents.sha256.as_str()), (whole.size, whole.sha256), "{name}");
        }
        tool.ok(&format!("repair --undo {name}"));
        assert_eq!(file_digest(&path), before, "{name}");
    }
}

/// The rows that lose something: only what is allowed, and it is said which ranges.
#[test]
fn lost_blocks_of_real_images_are_given_up_or_made_up_only_when_allowed() {
    let tool = Tool::new();
    let whole = RealImage::named("dfvfs/ntfs-dynamic.vhd");
    let Some(folder) = real::folder() else { return };
    let good = tool.ok(&line("convert", &whole.paths(&folder)[0], "-"));
    let (qemu, seven_zip) = (QemuImg::find(), SevenZip::find());
    for name in ["vhd-dyn-bat-past-eof.vhd", "vhd-dyn-cut-in-last-block.vhd"] {
        for kind in ["unmap-lost-blocks", "zero-extend"] {
            let path = copy(&tool, name).unwrap();
            let before = file_digest(&path);
            let (code, report) = checked(&tool, name);
            assert_eq!(code, 1, "{name}: {report}");
            assert!(has(&report, "vhd-bat", "range"), "{name}: {report}");
            let lost = findings(&report).iter().find(|finding| finding["structure"] == "vhd-bat").unwrap();
            assert_eq!((&lost["severity"], &lost["repairable"]), (&"error".into(), &false.into()), "{name}");
            assert_eq!(lost["windows_name"], "ERROR_VHD_BLOCK_ALLOCATION_TABLE_CORRUPT", "{name}");
            let outcome = tool.run(&format!("repair --json {name}"));
            assert_eq!(outcome.code, Some(1), "{name}: errors are left");
            let told: Value = serde_json::from_slice(&outcome.stdout).unwrap();
            assert_eq!((kinds(&told), file_digest(&path)), (vec![], before.clone()), "{name}: not without being told");

            let report = tool.json(&format!("repair --json --allow {kind} {name}"));
            assert_eq!(kinds(&report)[0], kind, "{name}");
            let repair = &report["repairs"][0];
            assert_eq!(repair["safe"], false);
            let mut expected = good.clone();
            let ranges = repair["loses"].as_array().unwrap();
            assert!(!ranges.is_empty(), "{name}: the lost ranges are listed");
            for range in ranges {
                let at = |end: &str| range[end].as_u64().unwrap() as usize;
                expected[at("start")..at("end")].fill(0);
            }
            assert!(tool.ok(&line("convert", &path, "-")) == expected, "{name} after {kind}");
            assert!(checked(&tool, name).0 == 0, "{name} after {kind}: {}", checked(&tool, name).1);
            let digest = {
                use sha2::Digest;
                sha2::Sha256::digest(&expected).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            };
            let seen = [
                qemu.as_ref().map(|qemu| qemu.contents(&path, "vpc")),
                seven_zip.as_ref().map(|seven_zip| seven_zip.contents(&path, "VHD")),
            ];
            for contents in seen.into_iter().flatten() {
                assert_eq!((contents.len, &contents.sha256), (good.len() as u64, &digest), "{name} after {kind}");
            }
            tool.ok(&format!("repair --undo {name}"));
            assert_eq!(file_digest(&path), before, "{name} after {kind}");
        }
    }
}

/// The rows without a repair: fatal findings, an error with a hint, and no byte changed.
#[test]
fn what_cannot_be_repaired_is_left_as_it_is() {
    let tool = Tool::new();
    let Some(path) = copy(&tool, "vhd-dyn-blocksize-0.vhd") else { return };
    let before = file_digest(&path);
    let (code, report) = checked(&tool, "vhd-dyn-blocksize-0.vhd");
    assert_eq!(code, 1);
    assert!(has(&report, "vhd-header", "value"), "{report}");
    assert_eq!(
        (&findings(&report).last().unwrap()["severity"], &report["files"][0]["summary"]),
        (&"fatal".into(), &Value::Null)
    );
    let message = tool.fails(4, "repair --allow unmap-lost-blocks --allow zero-extend vhd-dyn-blocksize-0.vhd");
    assert!(message.contains("VHD dynamic header") && message.contains("hint: "), "{message}");
    assert_eq!(file_digest(&path), before);

    let path = copy(&tool, "vhd-fixed-nofooter.vhd").unwrap();
    let before = file_digest(&path);
    for verb in ["check", "repair"] {
        tool.fails(4, &format!("{verb} vhd-fixed-nofooter.vhd"));
    }
    assert_eq!(file_digest(&path), before);
}

#[test]
fn a_parent_with_another_identity_is_told_by_a_check_of_the_chain() {
    let tool = Tool::new();
    let Some(_) = copy(&tool, "vhd-diff-parent-uuid-mismatch.vhd") else { return };
    copy(&tool, "ntfs-parent.vhd").unwrap();
    let Outcome { code, stdout, .. } = tool.run("check --chain --json vhd-diff-parent-uuid-mismatch.vhd");
    let report: Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(code, Some(1));
    let mismatch = findings(&report).iter().find(|finding| finding["structure"] == "parent-link").unwrap();
    assert_eq!(mismatch["windows_name"], "ERROR_VHD_CHILD_PARENT_ID_MISMATCH");
    assert!(kinds(&tool.json("repair --json vhd-diff-parent-uuid-mismatch.vhd")).is_empty(), "no repair re-parents");
}
