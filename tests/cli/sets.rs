//! Snapshot sets by the program: hooks that are run, fail, take too long, and kill it.

use crate::tool::{MIB, Tool, pattern};
use std::fs;

/// Two disks in two formats that hold something.
fn disks() -> Tool {
    let tool = Tool::new();
    tool.ok("create --size 4M c.vhdx");
    tool.ok("create --size 3M d.vhd");
    tool.write("c.vhdx", MIB, &pattern(5000, 1));
    tool.write("d.vhd", 7, &pattern(9000, 2));
    tool
}

/// Runs `snapshot-set c.vhdx d.vhd` with every hook noting itself in `heard`, and `special` instead at one moment.
fn run(tool: &Tool, moment: &str, special: &str, more: &str) -> crate::tool::Outcome {
    let mut command = tool.command(&format!("snapshot-set c.vhdx d.vhd {more}"));
    for name in ["prepare", "freeze", "thaw", "post", "abort"] {
        let hook = if name == moment { special } else { "true" };
        command.arg(format!("--{name}-hook")).arg(format!("echo {name} >> heard; {hook}"));
    }
    command.output().expect("the program starts").into()
}

fn heard(tool: &Tool) -> Vec<String> {
    let text = fs::read_to_string(tool.path("heard")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_set_is_taken_and_the_hooks_are_run() {
    let tool = disks();
    let before = [tool.disk("c.vhdx"), tool.disk("d.vhd")];
    let special = "printf '%s' \"$VHDKIT_MOMENT $VHDKIT_SESSION $VHDKIT_DISKS $VHDKIT_CHILDREN\" > environment";
    let answer = run(&tool, "freeze", special, "--json").ok("snapshot-set");
    let report: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(report["disks"].as_array().unwrap().len(), 2);
    assert!(report["disks"][0]["child"].as_str().unwrap().ends_with("/c-1.vhdx"));
    assert!(tool.disk("c-1.vhdx") == before[0] && tool.disk("d-1.vhd") == before[1]);
    assert_eq!(heard(&tool), ["prepare", "freeze", "thaw", "post"]);
    let environment = fs::read_to_string(tool.path("environment")).unwrap();
    let id = report["id"].as_str().unwrap();
    assert!(environment.starts_with(&format!("freeze {id} ")), "{environment}");
    assert!(environment.contains("/c.vhdx\n") && environment.ends_with("/d-1.vhd"), "{environment}");
    // On top of the new leaves the next number is taken.
    let text = tool.text("snapshot-set c-1.vhdx d-1.vhd");
    assert!(text.contains("c-2.vhdx stands on"), "{text}");
    assert!(tool.disk("c-2.vhdx") == before[0] && tool.disk("d-2.vhd") == before[1]);
    assert_eq!(tool.text("session list"), "no sessions\n");
    let named = tool.text("snapshot-set c-2.vhdx --suffix nightly");
    assert!(named.contains("c-2-nightly.vhdx stands on"), "{named}");
    tool.fails(6, "snapshot-set c-2.vhdx --suffix nightly");
    tool.fails(3, "snapshot-set none.vhdx");
    tool.fails(2, "snapshot-set c.vhdx c.vhdx");
    tool.run("snapshot-set c.vhdx --freeze-limit 0").code.filter(|&code| code == 2).expect("a usage error");
}

#[test]
fn a_failing_hook_takes_the_set_back() {
    for (moment, code, released) in [("prepare", 6, 2), ("freeze", 6, 4), ("thaw", 6, 5), ("post", 0, 4)] {
        let tool = disks();
        let outcome = run(&tool, moment, "false", "");
        assert_eq!(outcome.code, Some(code), "{moment}: {}", outcome.stderr);
        assert_eq!(tool.path("c-1.vhdx").exists(), moment == "post");
        assert_eq!(tool.path("d-1.vhd").exists(), moment == "post");
        assert_eq!(heard(&tool).len(), released, "{moment}: {:?}", heard(&tool));
        assert_eq!(tool.text("session list"), "no sessions\n");
    }
}

#[test]
fn a_program_killed_at_any_hook_leaves_all_or_nothing() {
    for moment in ["prepare", "freeze", "thaw", "post"] {
        let tool = disks();
        let before = [tool.disk("c.vhdx"), tool.disk("d.vhd")];
        let outcome = run(&tool, moment, "kill -9 $PPID", "");
        assert_eq!(outcome.code, None, "{moment}: {}", outcome.stderr);
        let listed = tool.json("session list --json");
        let id = listed[0]["id"].as_str().unwrap().to_owned();
        assert_eq!((listed.as_array().unwrap().len(), &listed[0]["live"]), (1, &false.into()));
        assert!(tool.text("session list").starts_with(&format!("{id}  its program died, ")));
        if moment == "post" {
            tool.fails(6, &format!("session abort {id}"));
        }
        // The record has the hooks, and runs the one that killed the program again: it must not kill this one.
        let heal = if moment == "thaw" { "--thaw-hook true" } else { "--post-hook true" };
        let text = String::from_utf8(tool.ok(&format!("session recover {heal}"))).unwrap();
        let there = matches!(moment, "thaw" | "post");
        assert_eq!(text.contains("its set of 2 was there and stays"), there, "{moment}: {text}");
        for (name, before) in [("c-1.vhdx", &before[0]), ("d-1.vhd", &before[1])] {
            assert_eq!(tool.path(name).exists(), there, "{moment}");
            assert!(!there || tool.disk(name) == *before);
        }
        assert!(tool.disk("c.vhdx") == before[0] && tool.disk("d.vhd") == before[1]);
        assert_eq!(tool.text("session recover"), "no session is left to recover\n");
        let names: Vec<String> =
            tool.snapshot().iter().map(|(path, _)| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert!(names.iter().all(|name| !name.starts_with('.')), "{names:?}");
        if !there {
            assert!(heard(&tool).iter().any(|hook| hook == "abort") || moment == "prepare", "{:?}", heard(&tool));
        }
    }
}

#[test]
fn a_dead_set_that_was_made_can_be_aborted_before_everybody_is_thawed() {
    let tool = disks();
    run(&tool, "thaw", "kill -9 $PPID", "");
    let id = tool.json("session list --json")[0]["id"].as_str().unwrap().to_owned();
    assert!(tool.path("c-1.vhdx").exists());
    let text = tool.text(&format!("session abort {id} --thaw-hook true"));
    assert_eq!(text, format!("session {id}: taken back, 2 new leaves removed\n"));
    assert!(!tool.path("c-1.vhdx").exists() && !tool.path("d-1.vhd").exists());
    tool.fails(3, &format!("session abort {id}"));
}
