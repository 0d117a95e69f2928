//! Parents that were moved: mapped paths, searches, `reparent`, `chain`.

use crate::tool::Tool;
use std::fs;

/// `vm/child` over `vm/base`, which Windows knows as `D:\VMs\base`; then the base is moved to `store/sub/renamed`.
fn moved(format: &str) -> Tool {
    let tool = Tool::new();
    fs::create_dir_all(tool.path("vm")).unwrap();
    fs::create_dir_all(tool.path("store/sub")).unwrap();
    tool.ok(&format!("create --size 4M vm/base.{format}"));
    tool.write(&format!("vm/base.{format}"), 0, b"from the base");
    tool.ok(&format!("create --parent vm/base.{format} vm/child.{format}"));
    let windows = format!("D:\\VMs\\sub\\renamed.{format}");
    tool.ok(&format!("reparent vm/child.{format} --parent vm/base.{format} --absolute {windows} --quiet"));
    fs::rename(tool.path(&format!("vm/base.{format}")), tool.path(&format!("store/sub/renamed.{format}"))).unwrap();
    tool
}

#[test]
fn maps_and_searches_reach_every_verb_that_opens_a_chain() {
    for format in ["vhd", "vhdx"] {
        let tool = moved(format);
        let child = format!("vm/child.{format}");
        let message = tool.fails(5, &format!("read {child}"));
        assert!(message.contains("--map") && message.contains("--search"), "{message}");
        for found in ["--map d:\\vms=store", "--map \\\\?\\D:\\VMs\\sub=store/sub", "--search store", "--search ."] {
            let line = |verb: &str| format!("{verb} {found}");
            assert_eq!(tool.ok(&line(&format!("read {child} --length 13"))), b"from the base", "{format} {found}");
            let info = tool.json(&line(&format!("info --chain --json {child}")));
            assert_eq!(info["chain"].as_array().unwrap().len(), 2);
            tool.ok(&line(&format!("convert {child} out.{format} --force")));
            tool.ok(&line(&format!("create --parent {child} vm/leaf.{format} --force")));
            assert_eq!(tool.ok(&line(&format!("read vm/leaf.{format} --length 4"))), b"from");
            fs::remove_file(tool.path(&format!("vm/leaf.{format}"))).unwrap();
            tool.ok(&line(&format!("merge {child} --depth 1 --dry-run --no-lock")));
        }
        tool.fails(5, &format!("read {child} --map D:\\VM=store"));
        let by_map = "--map D:\\VMs=store";
        tool.run_with(&format!("write {child} {by_map}"), b"F").ok("write");
        tool.ok(&format!("merge {child} --depth 1 {by_map}"));
        assert_eq!(tool.ok(&format!("read store/sub/renamed.{format} --length 13")), b"From the base");
    }
}

#[test]
fn two_candidates_are_both_named() {
    let tool = moved("vhdx");
    fs::copy(tool.path("store/sub/renamed.vhdx"), tool.path("store/copy.vhdx")).unwrap();
    let message = tool.fails(5, "read vm/child.vhdx --search store");
    assert!(message.contains("store/copy.vhdx") && message.contains("store/sub/renamed.vhdx"), "{message}");
}

#[test]
fn a_child_is_pointed_at_its_parent_again() {
    for format in ["vhd", "vhdx"] {
        for found in ["--search store", "--map D:\\VMs=store", "--parent store/sub/renamed.EXT"] {
            let tool = moved(format);
            let child = format!("vm/child.{format}");
            let found = found.replace("EXT", format);
            let before = tool.bytes(&child);
            let plan = tool.text(&format!("reparent {child} {found} --dry-run"));
            assert!(plan.contains("dry run") && tool.bytes(&child) == before, "{plan}");
            let report = tool.json(&format!("reparent {child} {found} --absolute blank --json"));
            assert_eq!(report["relative"], format!("..\\store\\sub\\renamed.{format}"));
            assert_eq!((&report["absolute"], &report["written"]), (&serde_json::Value::Null, &true.into()));
            assert_eq!(tool.ok(&format!("read {child} --length 13 --parents under=.")), b"from the base", "{found}");
        }
        let tool = moved(format);
        tool.ok(&format!("create --size 4M store/other.{format}"));
        let line = format!("reparent vm/child.{format} --parent store/other.{format}");
        let message = tool.fails(5, &line);
        assert!(message.contains("ERROR_VHD_CHILD_PARENT_ID_MISMATCH"), "{message}");
        assert!(message.contains("--ignore-id-mismatch"), "{message}");
        let text = tool.text(&format!("{line} --ignore-id-mismatch --absolute map --map E:\\=."));
        assert!(text.contains("warning") && text.contains(&format!("E:\\store\\other.{format}")), "{text}");
        tool.fails(5, &format!("reparent vm/child.{format} --parent vm/child.{format}"));
        tool.fails(2, &format!("reparent store/other.{format} --search store"));
        tool.fails(2, &format!("{line} --ignore-id-mismatch --absolute base.{format}"));
    }
}

#[test]
fn a_forest_is_drawn() {
    let tool = moved("vhdx");
    tool.ok("create --size 4M vm/solo.vhdx");
    tool.ok("create --parent vm/solo.vhdx vm/one.vhdx");
    tool.ok("create --parent vm/one.vhdx vm/leaf.vhdx");
    fs::write(tool.path("vm/broken.vhd"), b"?").unwrap();
    let outcome = tool.run("chain .");
    assert_eq!(outcome.code, Some(1), "the child does not open: {}", outcome.stderr);
    let root = fs::canonicalize(tool.path("")).unwrap();
    let root = root.display();
    let expected = format!(
        "\
{root}
store/sub/renamed.vhdx  vhdx, dynamic, 4 MiB
└─ vm/child.vhdx  vhdx, differencing, 4 MiB, leaf
      ! its parent is store/sub/renamed.vhdx, but it names .\\base.vhdx
      > vhdkit reparent {root}/vm/child.vhdx --parent {root}/store/sub/renamed.vhdx
        points it at where its parent is now
vm/solo.vhdx  vhdx, dynamic, 4 MiB
└─ vm/one.vhdx  vhdx, differencing, 4 MiB
   └─ vm/leaf.vhdx  vhdx, differencing, 4 MiB, leaf
         > vhdkit merge {root}/vm/leaf.vhdx --depth 2
           merges 2 files into one; nothing else stands on them
vm/broken.vhd  does not open
    ! {root}/vm/broken.vhd: neither a VHD nor a VHDX file (ERROR_VHD_FORMAT_UNKNOWN)
    > vhdkit check {root}/vm/broken.vhd
      says what is wrong with the file
"
    );
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), expected);
    fs::remove_file(tool.path("vm/broken.vhd")).unwrap();
    // The commands that are named are what it takes.
    let command = format!("reparent {root}/vm/child.vhdx --parent {root}/store/sub/renamed.vhdx");
    tool.ok(&command);
    let forest = tool.json("chain --json .");
    assert_eq!(forest["images"].as_array().unwrap().len(), 5);
    let help: Vec<_> =
        forest["images"].as_array().unwrap().iter().filter_map(|i| i["help"]["command"].as_str()).collect();
    assert_eq!(help.len(), 2);
    for command in help {
        tool.ok(command.strip_prefix("vhdkit ").unwrap());
    }
    assert_eq!(tool.ok("read store/sub/renamed.vhdx --length 13"), b"from the base");
    fs::create_dir(tool.path("empty")).unwrap();
    assert!(tool.text("chain empty").ends_with("no images\n"));
    tool.fails(3, "chain nowhere");
}

/// Bug this finds: a drawing that takes stack or time by the square of a chain's length.
#[test]
fn a_long_chain_is_drawn() {
    let tool = Tool::new();
    tool.ok("create --size 1M --block-size 64K 0.vhd");
    for number in 1..200 {
        tool.ok(&format!("create --parent {}.vhd {number}.vhd", number - 1));
    }
    let text = tool.text("chain .");
    assert_eq!(text.lines().filter(|line| line.contains("differencing")).count(), 199);
    assert!(text.contains("--depth 199"));
    assert!(text.lines().all(|line| line.chars().count() < 400));
}

#[test]
fn siblings_below_a_searched_directory_stop_a_merge() {
    let tool = Tool::new();
    fs::create_dir_all(tool.path("far/away")).unwrap();
    tool.ok("create --size 4M base.vhdx");
    tool.ok("create --parent base.vhdx leaf.vhdx");
    tool.ok("create --parent base.vhdx far/away/cousin.vhdx");
    assert!(tool.fails(6, "merge leaf.vhdx --depth 1 --search far").contains("cousin.vhdx"));
}
