//! resize, snapshot, set and metadata by the program.

use crate::tool::{MIB, Tool};
use serde_json::Value;

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn a_disk_is_resized_by_any_way_to_say_a_size() {
    for format in ["vhd", "vhdx"] {
        let tool = Tool::new();
        tool.ok(&format!("create --size 8M --block-size 1M a.{format}"));
        for (size, bytes) in [("+4M", 12 * MIB), ("-2M", 10 * MIB), ("9M", 9 * MIB), ("9437184", 9 * MIB)] {
            let report = json(&tool.ok(&format!("resize a.{format} {size} --json")));
            assert_eq!((&report["new_size"], &report["written"]), (&bytes.into(), &true.into()), "{size}");
        }
        let dry = json(&tool.ok(&format!("resize a.{format} 20M --dry-run --json")));
        assert_eq!((&dry["old_size"], &dry["written"]), (&(9 * MIB).into(), &false.into()));
        let text = tool.text(&format!("resize a.{format} 20M"));
        assert!(text.contains("9 MiB (9437184 bytes) becomes 20 MiB (20971520 bytes)"), "{text}");
    }
}

#[test]
fn refusals_of_a_resize_have_their_windows_names_and_code_6() {
    let tool = Tool::new();
    tool.ok("create --size 8M --block-size 1M a.vhdx");
    let outcome = tool.run_with("write a.vhdx --offset 7M", b"data");
    assert_eq!(outcome.code, Some(0));
    let outcome = tool.run("resize a.vhdx 4M");
    assert_eq!(outcome.code, Some(6), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("hint: --allow-data-loss"), "{}", outcome.stderr);
    let outcome = tool.run("resize a.vhdx --to-minimum");
    assert_eq!(outcome.code, Some(6));
    assert!(outcome.stderr.contains("ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE"), "{}", outcome.stderr);
    let outcome = tool.run("resize a.vhdx 65T");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("ERROR_VHD_INVALID_SIZE"), "{}", outcome.stderr);
    tool.ok("snapshot a.vhdx");
    let outcome = tool.run("resize a.vhdx +1M");
    assert_eq!(outcome.code, Some(6));
    assert!(outcome.stderr.contains("a-1.vhdx stands on this one"), "{}", outcome.stderr);
}

#[test]
fn a_raw_disk_is_resized_when_it_is_called_raw() {
    let tool = Tool::new();
    std::fs::write(tool.path("a.img"), [7; 4096]).unwrap();
    assert_eq!(tool.run("resize a.img 8K").code, Some(4));
    tool.ok("resize -f raw a.img 8K");
    let mut want = vec![7; 4096];
    want.resize(8192, 0);
    assert_eq!(tool.bytes("a.img"), want);
    assert_eq!(tool.run("resize -f raw a.img 2K").code, Some(6));
    tool.ok("resize -f raw a.img 2K --allow-data-loss");
    assert_eq!(tool.bytes("a.img"), [7; 2048]);
}

#[test]
fn a_snapshot_says_what_to_attach_and_replaces_nothing() {
    let tool = Tool::new();
    tool.ok("create --size 4M a.vhd");
    let text = tool.text("snapshot a.vhd");
    assert!(text.contains("Attach") && text.contains("a-1.vhd from now on"), "{text}");
    assert_eq!(tool.run("snapshot a.vhd a-1.vhd").code, Some(6));
    let report = json(&tool.ok("snapshot a-1.vhd --json"));
    assert_eq!(report["child"], "a-2.vhd");
    let chain = json(&tool.ok("info --chain --json a-2.vhd"));
    assert_eq!(chain["chain"].as_array().map(Vec::len), Some(3));
}

#[test]
fn ids_are_set_shown_and_relinked() {
    let tool = Tool::new();
    let id = "7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4";
    for (format, option) in [("vhd", "--unique-id"), ("vhdx", "--disk-id")] {
        tool.ok(&format!("create --size 4M a.{format}"));
        tool.ok(&format!("set a.{format} {option} {id}"));
        assert_eq!(json(&tool.ok(&format!("info --json a.{format}")))["id"], id);
        tool.ok(&format!("snapshot a.{format}"));
        assert_eq!(tool.run(&format!("set a.{format} {option} new")).code, Some(6));
        let report = json(&tool.ok(&format!("set a.{format} {option} new --relink --json")));
        assert_eq!(report["relinked"].as_array().map(Vec::len), Some(1));
        assert_ne!(json(&tool.ok(&format!("info --json a.{format}")))["id"], id);
        tool.ok(&format!("read a-1.{format} --length 512"));
    }
    tool.ok("set a-1.vhdx --physical-sector-size 512");
    assert_eq!(json(&tool.ok("info --json a-1.vhdx"))["physical_sector_size"], 512);
    assert_eq!(tool.run("set a.vhd --disk-id new").code, Some(4));
}

#[test]
fn items_of_metadata_go_in_and_come_out() {
    let tool = Tool::new();
    let id = "7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4";
    tool.ok("create --size 4M a.vhdx");
    tool.ok(&format!("metadata set a.vhdx {id} --text note"));
    assert_eq!(tool.ok(&format!("metadata get a.vhdx {{{id}}}")), b"note");
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    assert_eq!(tool.run_with(&format!("metadata set a.vhdx {id} --virtual-disk"), &bytes).code, Some(0));
    assert_eq!(tool.ok(&format!("metadata get a.vhdx {id}")), bytes);
    let items = json(&tool.ok("metadata list a.vhdx --json"));
    let item = items.as_array().unwrap().iter().find(|item| item["id"] == id).unwrap();
    assert_eq!((&item["user"], &item["virtual_disk"], &item["length"]), (&true.into(), &true.into(), &300_000.into()));
    let text = tool.text("metadata list a.vhdx");
    assert!(text.contains(id) && text.contains("virtual disk id"), "{text}");
    let disk_id = "beca12ab-b2e6-4523-93ef-c309e000c746";
    let shown = json(&tool.ok(&format!("metadata get a.vhdx {disk_id} --system --json")));
    assert_eq!(shown["hex"].as_str().map(str::len), Some(32));
    tool.ok(&format!("metadata delete a.vhdx {id}"));
    for line in [format!("metadata get a.vhdx {id}"), format!("metadata delete a.vhdx {id}")] {
        assert_eq!(tool.run(&line).code, Some(3), "{line}");
    }
    let too_long = vec![1; (1 << 20) + 1];
    assert_eq!(tool.run_with(&format!("metadata set a.vhdx {id}"), &too_long).code, Some(2));
    tool.ok("create --size 4M a.vhd");
    assert_eq!(tool.run("metadata list a.vhd").code, Some(4));
}
