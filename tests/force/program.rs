//! The program as a process that is watched, stopped and killed.
//!
//! Owns: starting it, its two outputs, signals. Must not know: what it does.

use crate::lab::FORKING;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The longest a test waits for the program to say something.
const PATIENCE: Duration = Duration::from_secs(120);

/// Says something past the test harness, which keeps what tests that pass print to itself: how often a run hit what it
/// was aimed at is a result too.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    io::stderr().write_all(format!("{text}\n").as_bytes()).expect("standard error is open");
}

/// The program with `line` cut at spaces as its arguments, in `folder`.
pub(crate) fn vhdkit(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhdkit"));
    command.args(line.split_whitespace()).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn spawn(command: &mut Command) -> Child {
    let _forking = FORKING.write().expect("nothing panics while it forks");
    command.spawn().expect("the program starts")
}

/// Runs a program that may be missing; whether it did what it was to do.
pub(crate) fn succeeds(mut command: Command) -> bool {
    let forking = FORKING.write().expect("nothing panics while it forks");
    let child = command.spawn();
    drop(forking);
    child.and_then(|mut child| child.wait()).is_ok_and(|status| status.success())
}

/// Runs it to its end.
pub(crate) fn run(mut command: Command) -> End {
    spawn(&mut command).wait_with_output().expect("the program ends").into()
}

/// Runs `vhdkit LINE` in `folder` and expects success; answers its standard output.
#[track_caller]
pub(crate) fn ok(folder: &Path, line: &str) -> Vec<u8> {
    let end = run(vhdkit(folder, line));
    assert_eq!(end.code, Some(0), "vhdkit {line}: {}", end.stderr);
    end.stdout
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct End {
    /// The exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) killed: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl From<Output> for End {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
        let killed = output.status.signal() == Some(Signal::KILL.as_raw());
        Self { code: output.status.code(), killed, stdout: output.stdout, stderr }
    }
}

/// A run whose standard error is followed line by line.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    stderr: String,
    ended: bool,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = spawn(&mut command);
        let (sender, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, stderr: String::new(), ended: false }
    }

    /// Waits for the next line; false when there was none in time, or when none will come because the program ended.
    fn line(&mut self, patience: Duration) -> bool {
        match self.lines.recv_timeout(patience) {
            Ok(line) => {
                self.stderr.push_str(&line);
                self.stderr.push('\n');
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                false
            }
        }
    }

    /// Waits until it says that it has moved something; false when it ended instead.
    pub(crate) fn reaches_copying(&mut self) -> bool {
        let said = self.line(PATIENCE);
        assert!(said || self.ended, "nothing was said for {PATIENCE:?}");
        said && self.stderr.contains("\"moved\"")
    }

    /// Lets it work for `time`; false when it ended in between.
    pub(crate) fn works_for(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while !self.ended {
            match deadline.checked_duration_since(Instant::now()) {
                Some(left) => self.line(left),
                None => return true,
            };
        }
        false
    }

    /// Lets it work until `done`; false when it ended before.
    pub(crate) fn works_until(&mut self, done: impl Fn() -> bool) -> bool {
        while !done() {
            if !self.works_for(Duration::from_micros(200)) {
                return false;
            }
        }
        true
    }

    /// Whether its process is still there.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }

    /// Sends `signal`, unless the process has ended: then its number may be somebody else's.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            kill_process(Pid::from_child(&self.child), signal).expect("our own child");
        }
    }

    /// Kills it where it is.
    pub(crate) fn kill(mut self) -> End {
        self.child.kill().expect("our own child");
        self.end()
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> End {
        let mut stdout = Vec::new();
        self.child.stdout.take().expect("a pipe").read_to_end(&mut stdout).expect("a pipe");
        let status = self.child.wait().expect("our own child");
        while self.line(PATIENCE) {}
        End {
            code: status.code(),
            killed: status.signal() == Some(Signal::KILL.as_raw()),
            stdout,
            stderr: std::mem::take(&mut self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a test that failed leaves one behind; stopped processes would stay for ever.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers that only look random: the same for the same seed.
pub(crate) struct Dice(u64);

impl Dice {
    /// Seeded by `VHDKIT_SEED` where it is set.
    pub(crate) fn new(salt: u64) -> Self {
        let seed = std::env::var("VHDKIT_SEED").map_or(7, |text| text.parse().expect("VHDKIT_SEED is a number"));
        Self((seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    /// Some time shorter than `end`.
    pub(crate) fn time_below(&mut self, end: Duration) -> Duration {
        let micros = u64::try_from(end.as_micros()).expect("a short time");
        Duration::from_micros(self.below(micros.max(1)))
    }
}
