//! Parents: where they may come from, and chains longer than the usual limit of open files.

use crate::tool::{MIB, Tool, pattern};
use std::fs;
use std::process::Command;

/// A base, and a child of it one folder below.
fn parent_above() -> Tool {
    let tool = Tool::new();
    fs::create_dir(tool.path("sub")).unwrap();
    tool.ok("create --size 4M base.vhdx");
    tool.write("base.vhdx", 0, b"from the base");
    tool.ok("create --parent base.vhdx sub/child.vhdx");
    tool
}

#[test]
fn the_policy_decides_which_parent_is_opened() {
    let tool = parent_above();
    let message = tool.fails(5, "read sub/child.vhdx");
    assert!(message.contains("base.vhdx") && message.contains("--parents under=DIR"), "{message}");
    tool.fails(5, "read sub/child.vhdx --parents same-dir");
    tool.fails(5, "read sub/child.vhdx --parents under=sub");
    tool.fails(5, "read sub/child.vhdx --parents none");
    for allowed in ["--parents under=.", "--parents any", "--parents none --parent base.vhdx", "--parent base.vhdx"] {
        assert_eq!(tool.ok(&format!("read sub/child.vhdx --length 13 {allowed}")), b"from the base", "{allowed}");
        assert_eq!(
            tool.json(&format!("info --json sub/child.vhdx {allowed}"))["parent"]["error"],
            serde_json::Value::Null
        );
    }
    // Every verb that opens a chain asks the same.
    tool.fails(5, "convert sub/child.vhdx out.raw");
    tool.fails(5, "merge sub/child.vhdx --depth 1");
    tool.run_with("write sub/child.vhdx", b"x").fails(5, "write");
    tool.ok("convert sub/child.vhdx out.raw --parents any");
    tool.run_with("write sub/child.vhdx --parents any", b"F").ok("write");
    tool.ok("merge sub/child.vhdx --depth 1 --parents any");
    assert_eq!(tool.ok("read base.vhdx --length 13"), b"From the base");
}

#[test]
fn parents_are_named_nearest_first() {
    let tool = parent_above();
    fs::create_dir(tool.path("other")).unwrap();
    tool.fails(5, "create --parent sub/child.vhdx other/leaf.vhdx");
    tool.ok("create --type differencing --parent sub/child.vhdx --parent base.vhdx other/leaf.vhdx");
    assert_eq!(tool.json("info --json other/leaf.vhdx --parents any")["parent"]["path"], "..\\sub\\child.vhdx");
    let named = "--parents none --parent sub/child.vhdx --parent base.vhdx";
    assert_eq!(tool.ok(&format!("read other/leaf.vhdx --length 13 {named}")), b"from the base");
    tool.fails(5, "read other/leaf.vhdx --parents none --parent base.vhdx --parent sub/child.vhdx");
}

#[test]
fn a_chain_may_not_lead_back_to_itself() {
    let tool = parent_above();
    let message = tool.fails(5, "read sub/child.vhdx --parent sub/child.vhdx");
    assert!(message.contains("ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED"), "{message}");
}

#[test]
fn a_vhd_over_a_vhdx_is_refused() {
    let tool = parent_above();
    assert!(tool.fails(5, "create --parent base.vhdx child.vhd").contains("convert"), "the way out is named");
}

#[test]
fn a_chain_of_300_files_opens_reads_and_merges() {
    const FILES: usize = 300;
    let tool = Tool::new();
    let mut model = vec![0; MIB as usize];
    tool.ok("create --size 1M --block-size 64K 0.vhd");
    for number in 1..FILES {
        tool.ok(&format!("create --parent {}.vhd {number}.vhd", number - 1));
        if number % 20 == 0 {
            let at = number * 3000;
            let bytes = pattern(5000, number as u8);
            tool.write(&format!("{number}.vhd"), at as u64, &bytes);
            model[at..at + 5000].copy_from_slice(&bytes);
        }
    }
    // Fewer files than the chain has may be open at first: the program raises the limit itself.
    let shell = |line: &str| {
        let script = format!("ulimit -Sn 64 && exec {} {line}", env!("CARGO_BIN_EXE_vhdkit"));
        let output = Command::new("sh").arg("-c").arg(script).current_dir(tool.path("")).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let info: serde_json::Value = serde_json::from_slice(&shell("info --json --chain 299.vhd")).unwrap();
    assert_eq!(info["chain"].as_array().unwrap().len(), FILES);
    assert!(shell("read 299.vhd") == model);
    shell("merge 299.vhd --depth 299");
    assert!(shell("read 0.vhd") == model);
    assert!(shell("read 299.vhd") == model);
}
