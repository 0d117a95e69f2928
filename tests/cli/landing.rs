//! Chains that land on another machine, by the program: export, import, adopt, imports, break.

use crate::support::oracle;
use crate::tool::{MIB, Tool, pattern};
use std::fs;
use std::process::Command;

/// A chain of three that holds something, and what it shows.
fn chain() -> (Tool, Vec<u8>) {
    let tool = Tool::new();
    tool.ok("create --size 4M base.vhdx");
    tool.write("base.vhdx", 7, &pattern(90_000, 1));
    tool.ok("create --parent base.vhdx one.vhdx");
    tool.write("one.vhdx", MIB, &pattern(9_000, 2));
    tool.ok("create --parent one.vhdx --parent base.vhdx two.vhdx");
    tool.write("two.vhdx", 3 * MIB, &pattern(9_000, 3));
    let shows = tool.disk("two.vhdx");
    (tool, shows)
}

#[test]
fn a_chain_is_exported_moved_imported_and_taken_back() {
    let (tool, shows) = chain();
    assert_eq!(tool.text("export two.vhdx --hash -o chain.json"), "wrote chain.json: 3 files\n");
    tool.fails(6, "export two.vhdx -o chain.json");
    let printed = tool.json("export two.vhdx");
    assert_eq!(printed["record"]["files"][2]["name"], "two.vhdx");
    for (name, to) in [("base.vhdx", "srv/a/x.vhdx"), ("one.vhdx", "srv/b/y.vhdx"), ("two.vhdx", "srv/z.vhdx")] {
        fs::create_dir_all(tool.path(to).parent().unwrap()).unwrap();
        fs::rename(tool.path(name), tool.path(to)).unwrap();
    }
    tool.fails(5, "read srv/z.vhdx");
    let look = tool.json("import chain.json srv --read-only --json");
    assert_eq!((&look["outcome"], &look["id"]), (&"complete".into(), &serde_json::Value::Null));
    let parents = look["chains"][0]["parents"].as_array().unwrap();
    let named: String = parents.iter().map(|path| format!(" --parent {}", path.as_str().unwrap())).collect();
    assert!(tool.ok(&format!("read srv/z.vhdx{named}")) == shows);
    let text = tool.text("import chain.json srv --verify hash");
    assert!(text.contains("one.vhdx: ") && text.contains("(by identity, linked anew)"), "{text}");
    assert!(tool.ok("read srv/z.vhdx --parents any") == shows);
    let id = tool.text("imports list --registry srv/.vhdkit");
    let cleanup = format!("imports cleanup {} --registry srv/.vhdkit", id.trim());
    assert_eq!(tool.text(&cleanup), "2 links are as they were\n");
    tool.fails(5, "read srv/z.vhdx --parents any");
    tool.fails(3, &cleanup);
    assert_eq!(tool.text("imports list --registry srv/.vhdkit"), "no imports\n");
    let text = tool.text("adopt srv");
    assert!(text.contains("opens: ") && text.contains("with 2 below it"), "{text}");
    assert!(tool.ok("read srv/z.vhdx --parents any") == shows);
    // What is missing is said, and an exit code says that something is.
    fs::remove_file(tool.path("srv/a/x.vhdx")).unwrap();
    let outcome = tool.run("import chain.json srv");
    assert_eq!(outcome.code, Some(5), "without its base none of the chain is there: {}", outcome.stderr);
    fs::copy(tool.path("srv/b/y.vhdx"), tool.path("srv/b/copy.vhdx")).unwrap();
    tool.ok("create --size 2M srv/other.vhdx");
    let outcome = tool.run("adopt srv --json");
    assert_eq!(outcome.code, Some(1));
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(report["outcome"], "some-not-imported");
    fs::write(tool.path("chain.json"), "{}").unwrap();
    tool.fails(4, "import chain.json srv");
}

#[test]
fn manifests_fit_their_schema() {
    let (tool, _) = chain();
    fs::write(tool.path("schema.json"), tool.ok("export --schema")).unwrap();
    tool.ok("export two.vhdx --hash -o chain.json");
    let validate = "import json, sys, jsonschema\n\
                    jsonschema.validate(json.load(open(sys.argv[1])), json.load(open(sys.argv[2])))";
    let python = |args: &[&str]| Command::new("/usr/bin/python3").current_dir(tool.path("")).args(args).output();
    let has = python(&["-c", "import jsonschema"]).is_ok_and(|output| output.status.success());
    if !has {
        return oracle::skipped("python3 has no jsonschema (package python3-jsonschema)");
    }
    let judge = |file: &str| python(&["-c", validate, file, "schema.json"]).unwrap();
    let output = judge("chain.json");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(tool.path("chain.json")).unwrap();
    fs::write(tool.path("wrong.json"), text.replacen("\"vhdx\"", "\"raw\"", 1)).unwrap();
    assert!(!judge("wrong.json").status.success(), "the schema would let anything pass");
}

#[test]
fn a_broken_off_disk_stands_alone() {
    let (tool, shows) = chain();
    let text = tool.text("break two.vhdx alone.vhdx");
    assert!(text.contains("alone.vhdx: vhdx"), "{text}");
    assert!(tool.disk("alone.vhdx") == shows);
    let (old, new) = (tool.json("info two.vhdx --json"), tool.json("info alone.vhdx --json"));
    assert_eq!(new["type"], "dynamic");
    assert_ne!(new["id"], old["id"]);
    assert!(tool.disk("two.vhdx") == shows, "the chain stays");
    tool.fails(6, "break two.vhdx alone.vhdx");
    tool.ok("break -O vhd two.vhdx alone.vhd");
    assert!(tool.disk("alone.vhd") == shows);
}

#[test]
fn a_copy_is_refreshed_by_what_differs() {
    let (tool, shows) = chain();
    tool.ok("create --size 8M copy.vhdx --block-size 1M");
    let dry = tool.text("resync two.vhdx copy.vhdx --dry-run");
    assert!(dry.starts_with("copy.vhdx: ") && dry.contains("would be made what two.vhdx shows"), "{dry}");
    let report = tool.json("resync two.vhdx copy.vhdx --json");
    assert_eq!(report["pairs"][0]["resized_from"], 8 * MIB);
    assert!(tool.disk("copy.vhdx") == shows);
    tool.write("copy.vhdx", 2 * MIB, b"stray");
    let text = tool.text("resync two.vhdx copy.vhdx");
    assert!(text.starts_with("copy.vhdx shows what two.vhdx shows: 512 bytes moved"), "{text}");
    assert!(tool.disk("copy.vhdx") == shows);
    tool.fails(2, "resync two.vhdx copy.vhdx one.vhdx");
    tool.fails(6, "resync two.vhdx base.vhdx");
    tool.ok("create --size 2M small.vhdx");
    tool.fails(3, "resync two.vhdx small.vhdx");
    tool.ok("resync two.vhdx small.vhdx --grow --quiet");
    assert!(tool.disk("small.vhdx") == shows);
}
