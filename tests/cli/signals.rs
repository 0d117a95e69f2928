//! Being asked to stop.

use crate::tool::Tool;
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
