//! Wrong arguments, help, and the exit code of each class of failure.

use crate::tool::{MIB, Tool};
use std::fs;
use std::fs::File;

#[test]
fn help_of_every_verb_has_examples() {
    let tool = Tool::new();
    let top = tool.text("--help");
    for verb in [
        "info", "create", "read", "write", "convert", "merge", "check", "repair", "reparent", "chain", "compare",
        "changes", "hash", "map", "info", "create", "read", "write", "convert", "merge", "check", "repair", "reparent",
        "chain", "snapshot", "resize", "set", "metadata",
    ] {
        assert!(top.contains(verb), "{verb} is not in the help");
        let help = tool.text(&format!("{verb} --help"));
        assert!(help.contains("Examples"), "{verb}: {help}");
        assert!(help.contains(&format!("vhdkit {verb} ")), "{verb}: {help}");
    }
    for code in ["0  ", "1  ", "2  ", "3  ", "4  ", "5  ", "6  ", "130  "] {
        assert!(top.contains(code), "exit code {code} is not in the help");
    }
    assert!(tool.text("--version").starts_with("vhdkit "));
}

#[test]
fn wrong_arguments_exit_with_2_and_change_nothing() {
    let tool = Tool::new();
    tool.ok("create --size 4M a.vhdx");
    let before = tool.snapshot();
    for line in [
        "",
        "frobnicate",
        "info",
        "info --frobnicate a.vhdx",
        "create --size 10X b.vhdx",
        "create --size 1.00001K b.vhdx",
        "create --size 16384P b.vhdx",
        "create --size 4M --type round b.vhdx",
        "create --size 4M --format raw b.vhdx",
        "read a.vhdx --offset -1",
        "read a.vhdx --parents under=nowhere",
        "read a.vhdx --parents sometimes",
        "convert a.vhdx b.vhdx -f vhd",
        "merge a.vhdx",
        "merge a.vhdx --depth 0",
        "merge a.vhdx --from 1",
        "merge a.vhdx --to 2",
        "merge a.vhdx --depth 1 --into a.vhdx",
        "merge a.vhdx --depth 1 --from 1 --to 2",
        "merge a.vhdx --depth 1 --no-lock",
        "read a.vhdx --search nowhere",
        "read a.vhdx --map D:\\VMs=nowhere",
        "read a.vhdx --map VMs=.",
        "read a.vhdx --map D:\\VMs",
        "reparent",
        "reparent a.vhdx --ignore-id-mismatch",
        "chain",
        "chain . --parent a.vhdx",
        "resize a.vhdx",
        "resize a.vhdx 10X",
        "resize a.vhdx 8M --to-minimum",
        "resize a.vhdx --frobnicate",
        "resize a.vhdx 1000",
        "snapshot",
        "set a.vhdx",
        "set a.vhdx --disk-id nonsense",
        "set a.vhdx --physical-sector-size 1K",
        "metadata",
        "metadata get a.vhdx",
        "metadata set a.vhdx nonsense --text x",
    ] {
        let outcome = tool.run(line);
        assert_eq!(outcome.code, Some(2), "vhdkit {line}: {}", outcome.stderr);
        assert!(!outcome.stderr.is_empty());
        assert!(outcome.stdout.is_empty());
    }
    // What the parser cannot see, the verbs and the library do.
    for line in [
        "create b.vhdx",
        "create --size 4M b.disk",
        "create --size 4M b.raw",
        "create --size 513 b.vhdx",
        "create --size 65T b.vhdx",
        "create --size 4M --block-size 3M b.vhdx",
        "create --size 4M --logical-sector-size 4096 b.vhd",
        "create --size 4M --type dynamic --parent a.vhdx b.vhdx",
        "create --type differencing b.vhdx",
        "read a.vhdx --offset 4M --length 1",
        "read a.vhdx --offset 5M",
        "read a.vhdx --length 16383P",
        "convert a.vhdx b.disk",
        "convert a.vhdx b.vhdx --type differencing",
        "convert a.vhdx b.raw --type dynamic",
        "convert a.vhdx - -O vhd",
        "convert a.vhdx - --block-size 1M",
        "merge a.vhdx --from 2 --to 2",
    ] {
        tool.fails(2, line);
    }
    assert!(before == tool.snapshot(), "nothing was made or changed");
}

#[test]
fn each_class_of_failure_has_its_exit_code() {
    let tool = Tool::new();
    tool.ok("create --size 4M base.vhdx");
    tool.ok("create --parent base.vhdx child.vhdx");
    fs::write(tool.path("junk"), vec![7; 100_000]).unwrap();
    fs::write(tool.path("cut.vhdx"), &tool.bytes("base.vhdx")[..300_000]).unwrap();
    fs::create_dir(tool.path("folder")).unwrap();

    assert!(tool.fails(3, "info nothing.vhdx").contains("nothing.vhdx"));
    tool.fails(3, "create --size 4M nowhere/x.vhdx");
    assert!(tool.fails(4, "info junk").contains("hint: if this is a raw disk image, say so with -f raw"));
    tool.fails(4, "info cut.vhdx");
    tool.fails(2, "info folder");
    assert!(tool.fails(6, "create --size 4M base.vhdx").contains("already exists"));
    tool.fails(6, "convert child.vhdx base.vhdx --force");
    tool.fails(5, "merge base.vhdx --depth 1");
    tool.fails(5, "merge child.vhdx --depth 2");
    tool.fails(5, "merge child.vhdx --into junk");
    tool.fails(3, "merge child.vhdx --into nothing.vhdx");
    tool.fails(5, "read child.vhdx --parent child.vhdx");
    tool.fails(5, "read child.vhdx --parents none");
    fs::remove_file(tool.path("base.vhdx")).unwrap();
    let message = tool.fails(5, "read child.vhdx");
    assert!(message.contains("child.vhdx") && message.contains("base.vhdx") && message.contains("--parent FILE"));
    assert!(message.contains("ERROR_VHD_PARENT_VHD_NOT_FOUND"));
}

#[test]
fn a_file_that_somebody_holds_is_left_alone() {
    let tool = Tool::new();
    tool.ok("create --size 4M base.vhdx");
    tool.ok("create --parent base.vhdx child.vhdx");
    tool.write("child.vhdx", 0, b"hello");
    let before = tool.snapshot();

    let child = File::open(tool.path("child.vhdx")).unwrap();
    child.lock().unwrap();
    assert!(tool.fails(6, "read child.vhdx").contains("in use"));
    assert_eq!(tool.ok("read child.vhdx --length 5 --no-lock"), b"hello");
    tool.ok("info child.vhdx --no-lock");
    tool.ok("merge child.vhdx --depth 1 --dry-run --no-lock");
    tool.fails(6, "merge child.vhdx --depth 1");
    tool.fails(6, "create --size 4M --force child.vhdx");
    child.unlock().unwrap();

    child.lock_shared().unwrap();
    assert_eq!(tool.ok("read child.vhdx --length 5"), b"hello");
    assert!(tool.run_with("write child.vhdx", b"bye").fails(6, "write").contains("in use"));
    tool.fails(6, "merge child.vhdx --depth 1");
    child.unlock().unwrap();

    // A reader of the parent is in the way of a merge into it, not of a write to the child.
    let base = File::open(tool.path("base.vhdx")).unwrap();
    base.lock_shared().unwrap();
    assert!(tool.fails(6, "merge child.vhdx --depth 1").contains("base.vhdx"));
    assert!(before == tool.snapshot(), "no refused verb wrote a byte");
    tool.write("child.vhdx", 0, b"there");
}

#[test]
fn fixed_disks_of_both_formats_are_made_whole() {
    let tool = Tool::new();
    for name in ["f.vhd", "f.vhdx"] {
        tool.ok(&format!("create --size 3M --type fixed {name}"));
        assert_eq!(tool.json(&format!("info --json {name}"))["type"], "fixed");
        assert!(tool.bytes(name).len() as u64 > 3 * MIB);
        assert_eq!(tool.disk(name), vec![0; 3 << 20]);
    }
}
