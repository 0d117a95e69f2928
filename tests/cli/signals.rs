//! Being asked to stop.

use crate::tool::{MIB, Tool, pattern};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("the program still runs");
}

#[test]
fn a_write_that_waits_for_input_stops_and_says_how_far_it_got() {
    let tool = Tool::new();
    tool.ok("create --size 32M a.vhdx");
    for (name, sent) in [("INT", Signal::INT), ("TERM", Signal::TERM)] {
        // The first piece ends where the next multiple of 16 MiB is, so this much is written without waiting for more.
        let mut command = tool.command("--progress json write a.vhdx --offset 16776704");
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(name.repeat(512).as_bytes()[..512].as_ref()).unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("\"done\":512"), "{line}");
        signal(&child, sent);
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
        assert!(rest.ends_with("vhdkit: a.vhdx: cancelled\nhint: 512 bytes of the input were written\n"), "{rest}");
        drop(stdin);
        let written = tool.ok("read a.vhdx --offset 16776704 --length 512");
        assert!(written == name.repeat(512).as_bytes()[..512], "{name}");
        assert_eq!(tool.json("info --json a.vhdx")["log"], "clean");
    }
}

#[test]
fn a_reader_stops_at_once() {
    let tool = Tool::new();
    tool.ok("create --size 64M a.vhdx");
    let mut child = tool.command("read a.vhdx").spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1]).unwrap();
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// Starts `line` and sends `sent` as soon as it reports that bytes were moved; answers the exit code and what it said.
/// It may be done before the signal arrives.
fn interrupted(tool: &Tool, line: &str, sent: Signal) -> (Option<i32>, String) {
    let mut child = tool.command(&format!("--progress json {line}")).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    stderr.read_line(&mut first).unwrap();
    assert!(first.contains("progress"), "{first}");
    signal(&child, sent);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    (child.wait().unwrap().code(), rest)
}

#[test]
fn an_interrupted_merge_loses_nothing_and_is_finished_by_the_next() {
    for format in ["vhd", "vhdx"] {
        let tool = Tool::new();
        tool.ok(&format!("create --size 64M --block-size 1M base.{format}"));
        tool.ok(&format!("create --parent base.{format} leaf.{format}"));
        let model = pattern(64 * MIB, 5);
        tool.write(&format!("leaf.{format}"), 0, &model);
        let line = format!("merge leaf.{format} --depth 1 --jobs 1");
        for sent in [Signal::KILL, Signal::INT, Signal::TERM, Signal::KILL] {
            let (code, said) = interrupted(&tool, &line, sent);
            if code == Some(130) {
                assert!(said.contains("hint: ") && said.contains("again"), "{said}");
            } else {
                assert!(code.is_none() || code == Some(0), "{sent:?}: {code:?} {said}");
            }
            assert!(tool.disk(&format!("leaf.{format}")) == model, "the leaf's view after {sent:?}");
        }
        tool.ok(&line);
        assert!(tool.disk(&format!("base.{format}")) == model, "{format}");
        assert!(tool.disk(&format!("leaf.{format}")) == model, "{format}");
        assert_eq!(tool.snapshot().len(), 2, "only the two images are left");
    }
}

#[test]
fn an_interrupted_conversion_leaves_no_file() {
    let tool = Tool::new();
    tool.ok("create --size 64M a.vhdx");
    tool.write("a.vhdx", 0, &pattern(64 * MIB, 5));
    let (code, said) = interrupted(&tool, "convert a.vhdx b.vhd --jobs 1", Signal::INT);
    let left = tool.snapshot().len();
    match code {
        Some(130) => assert!(left == 1 && said.contains("hint: no new image was made"), "{left}: {said}"),
        code => assert!(code == Some(0) && left == 2, "{code:?}: {said}"),
    }
}
