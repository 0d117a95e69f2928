//! Relations and groups by the program: answers, operations in the background, waiting for states.

use crate::tool::{MIB, Tool, pattern};
use serde_json::Value;
use std::fs;

/// A mirror of a disk that holds something, not yet made.
fn mirror() -> Tool {
    let tool = Tool::new();
    tool.ok("create --size 8M disk.vhdx");
    tool.write("disk.vhdx", MIB, &pattern(3_000_000, 1));
    tool.ok("replica create m --no-activate --type mirror disk.vhdx copy.vhdx");
    tool
}

/// Two mirrors in a consistent group, both made.
fn group() -> Tool {
    let tool = Tool::new();
    tool.ok("group create vm");
    for (name, format) in [("a", "vhdx"), ("b", "vhd")] {
        tool.ok(&format!("create --size 4M {name}.{format}"));
        tool.write(&format!("{name}.{format}"), 5, &pattern(9000, 2));
        tool.ok(&format!("replica create {name} --type mirror {name}.{format} copy-{name}.{format}"));
        tool.ok(&format!("group add-sync-pair vm {name}"));
    }
    tool.ok("group activate-consistency vm");
    tool
}

/// Splits the group, its guest holding still only when the file `go` is there.
fn split(tool: &Tool, line: &str) -> crate::tool::Outcome {
    let mut command = tool.command(&format!("group split vm --json {line}"));
    command.arg("--freeze-hook").arg("until [ -e go ]; do sleep 0.01; done");
    command.output().expect("the program starts").into()
}

fn json(outcome: &crate::tool::Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stderr))
}

#[test]
fn what_was_done_is_answered_with_the_numbers_of_cim() {
    let tool = mirror();
    let done = tool.json("replica activate m --json");
    assert_eq!((&done["return_code"], &done["operation"]), (&0.into(), &"activate".into()));
    assert_eq!(done["relation"]["observed_number"], 4);
    assert!(tool.disk("copy.vhdx") == tool.disk("disk.vhdx"));
    let shown = tool.json("replica show m --json");
    assert_eq!((&shown["observed"], &shown["at_work"]), (&"synchronized".into(), &false.into()));
    assert!(tool.text("replica show m").starts_with("m: mirror synchronized, "));
    assert_eq!(tool.json("replica list --json").as_array().unwrap().len(), 1);
    // Never possible; not of single relations; not in this state; with force.
    tool.fails(4, "replica reset-to-sync m");
    tool.fails(6, "replica failback m");
    tool.write("copy.vhdx", 0, b"stray");
    let refused = tool.fails(6, "replica resync-replica m");
    assert!(refused.contains("--force"), "{refused}");
    tool.ok("replica resync-replica m --force");
    assert!(tool.disk("copy.vhdx") == tool.disk("disk.vhdx"));
    tool.fails(3, "replica show other");
}

#[test]
fn an_operation_goes_on_in_the_background_and_is_waited_for() {
    let tool = mirror();
    let started = tool.json("replica activate m --no-wait --json");
    // It may have ended before it was looked at.
    let code = started["return_code"].as_u64().unwrap();
    assert!(code == 4096 && started["job"]["process"].is_u64() || code == 0 && started["job"].is_null(), "{started}");
    let reached = tool.json("replica wait m --for synchronized --timeout 60 --json");
    assert_eq!((&reached["return_code"], &reached["relation"]["observed"]), (&0.into(), &"synchronized".into()));
    assert!(tool.disk("copy.vhdx") == tool.disk("disk.vhdx"));
    // Until a state that it passes through, and until the one it leads to.
    for state in ["unsynchronized", "synchronized"] {
        tool.write("disk.vhdx", 0, state.as_bytes());
        let text = tool.text(&format!("replica resync-replica m --wait {state} --timeout 60"));
        assert!(text.contains("m: mirror "), "{text}");
        tool.ok("replica wait m --for synchronized --timeout 60");
        assert!(tool.disk("copy.vhdx") == tool.disk("disk.vhdx"));
    }
    // One that ends the relation.
    let gone = tool.json("replica detach m --no-wait --json");
    assert!(gone["relation"].is_null(), "{gone}");
    assert_eq!(tool.text("replica list"), "no relations\n");
}

#[test]
fn what_fails_in_the_background_at_once_is_said_as_if_it_ran_here() {
    let tool = mirror();
    let here = tool.fails(6, "replica fracture m");
    assert_eq!(tool.fails(6, "replica fracture m --no-wait"), here);
    assert_eq!(tool.fails(6, "replica fracture m --wait fractured"), here);
    tool.fails(3, "replica activate none --no-wait");
    // Something that is there instead of the target.
    fs::write(tool.path("copy.vhdx"), "no image").unwrap();
    tool.run("replica activate m --no-wait");
    let failed = tool.run("replica wait m --for synchronized --timeout 60 --json");
    assert_eq!((failed.code, &json(&failed)["return_code"]), (Some(1), &4.into()));
    let shown = tool.json("replica show m --json");
    assert_eq!((&shown["observed"], &shown["at_work"]), (&"invalid".into(), &false.into()));
    assert!(shown["failed"].as_str().unwrap().contains("copy.vhdx"), "{shown}");
    assert!(tool.text("replica show m").contains("activate was begun and has not ended: "));
    // States that are none, that it does not lead to, and times without a state.
    for line in [
        "replica activate m --wait done",
        "replica activate m --wait fractured",
        "replica detach m --wait synchronized",
        "replica activate m --timeout 1",
        "replica activate m --no-wait --wait synchronized",
        "replica wait m",
        "replica wait m --for synchronized --timeout 0",
    ] {
        assert_eq!(tool.run(line).code, Some(2), "{line}");
    }
}

#[test]
fn a_group_that_holds_still_is_waited_for_no_longer_than_asked() {
    for line in ["--no-wait", "--wait unsynchronized", "--wait split --timeout 0.2"] {
        let tool = group();
        let before = [tool.disk("a.vhdx"), tool.disk("b.vhd")];
        let outcome = split(&tool, line);
        let late = line.contains("--timeout");
        assert_eq!(outcome.code, Some(i32::from(late)), "{line}: {}", outcome.stderr);
        let answer = json(&outcome);
        assert_eq!(answer["return_code"], if late { 3 } else { 4096 }, "{answer}");
        assert_eq!((&answer["job"]["operation"], &answer["job"]["operation_number"]), (&"split".into(), &21.into()));
        // It stands still, and says so.
        let shown = tool.json("group show vm --json");
        assert_eq!((&shown["at_work"], &shown["state"]), (&true.into(), &"unsynchronized".into()), "{shown}");
        assert!(tool.text("group show vm").contains("split is at work"));
        let process = answer["job"]["process"].as_u64().unwrap();
        assert!(tool.text("replica show a").contains(&format!("split is at work in process {process}")));
        assert!(tool.fails(6, "replica suspend a").contains("another operation works with these records"));
        let waited = tool.run("group wait vm --for split --timeout 0.1 --json");
        assert_eq!((waited.code, &json(&waited)["return_code"]), (Some(1), &3.into()));
        fs::write(tool.path("go"), "").unwrap();
        tool.ok("group wait vm --for split --timeout 60");
        assert!(tool.disk("a-1.vhdx") == before[0] && tool.disk("b-1.vhd") == before[1]);
    }
}

#[test]
fn an_operation_whose_process_died_in_the_background_is_said_to_be_interrupted() {
    let tool = group();
    let mut command = tool.command("group split vm --no-wait");
    command.arg("--freeze-hook").arg("[ -e go ] || kill -9 $PPID; touch go");
    command.output().expect("the program starts");
    let waited = tool.run("group wait vm --for split --timeout 60");
    assert_eq!(waited.code, Some(1), "{}", waited.stderr);
    let text = tool.text("group show vm");
    assert!(text.starts_with("vm: unsynchronized, consistent, split was begun and has not ended\n"), "{text}");
    fs::write(tool.path("go"), "").unwrap();
    tool.ok("group split vm");
    assert!(tool.text("group show vm").starts_with("vm: split, consistent\n"));
}

#[test]
fn a_group_is_done_to_member_by_member_and_says_who_failed() {
    let tool = group();
    tool.ok("group deactivate-consistency vm");
    tool.ok("replica fracture a");
    let outcome = tool.run("group fracture vm --json");
    assert_eq!((outcome.code, &json(&outcome)["return_code"]), (Some(1), &4.into()));
    assert_eq!(json(&outcome)["done"].as_array().unwrap().len(), 1);
    assert_eq!(tool.json("group modify resync-replica vm --json")["return_code"], 0);
    assert_eq!(tool.json("group list --json")[0]["state"], "synchronized");
    tool.ok("group remove-sync-pair vm a");
    tool.ok("group delete vm");
    assert_eq!(tool.text("group list"), "no groups\n");
}
