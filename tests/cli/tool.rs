//! The binary in a folder of its own.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use tempfile::TempDir;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Runs the program in a temporary folder.
pub(crate) struct Tool {
    folder: TempDir,
}

/// What one run left.
pub(crate) struct Outcome {
    /// The exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8(output.stderr).expect("messages are UTF-8");
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }
}

impl Tool {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect(name)
    }

    /// The program with `line` cut at spaces as its arguments, not started yet.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhdkit"));
        command.args(line.split_whitespace()).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, line: &str) -> Outcome {
        self.command(line).output().expect("the program starts").into()
    }

    /// Runs it with `input` on its standard input.
    pub(crate) fn run_with(&self, line: &str, input: &[u8]) -> Outcome {
        let mut child = self.command(line).stdin(Stdio::piped()).spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        thread::scope(|scope| {
            // It may have ended without reading everything; its answer says so.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().expect("the program ends").into()
        })
    }

    /// Runs it and expects success; answers its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> Vec<u8> {
        self.run(line).ok(line)
    }

    /// As [`ok`](Self::ok), for outputs that are text.
    #[track_caller]
    pub(crate) fn text(&self, line: &str) -> String {
        String::from_utf8(self.ok(line)).expect("text")
    }

    /// As [`ok`](Self::ok), for outputs that are JSON.
    #[track_caller]
    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_slice(&self.ok(line)).expect("JSON")
    }

    /// Runs it and expects the exit code `code` and an error in one or two lines; answers them.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, line: &str) -> String {
        self.run(line).fails(code, line)
    }

    /// Writes `bytes` at `offset` of the disk `image`.
    #[track_caller]
    pub(crate) fn write(&self, image: &str, offset: u64, bytes: &[u8]) {
        let line = format!("write {image} --offset {offset} --quiet");
        assert_eq!(self.run_with(&line, bytes).ok(&line), b"", "quiet");
    }

    /// The whole disk that `image` shows.
    #[track_caller]
    pub(crate) fn disk(&self, image: &str) -> Vec<u8> {
        self.ok(&format!("read {image}"))
    }

    /// Every file of the folder and its bytes.
    pub(crate) fn snapshot(&self) -> Vec<(PathBuf, Vec<u8>)> {
        snapshot(self.folder.path())
    }
}

/// Every file directly in `folder` and its bytes, sorted by name.
pub(crate) fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect();
    files.sort();
    files
}

impl Outcome {
    #[track_caller]
    pub(crate) fn ok(self, line: &str) -> Vec<u8> {
        assert_eq!(self.code, Some(0), "vhdkit {line}: {}", self.stderr);
        self.stdout
    }

    #[track_caller]
    pub(crate) fn fails(self, code: i32, line: &str) -> String {
        assert_eq!(self.code, Some(code), "vhdkit {line}: {}", self.stderr);
        let mut lines = self.stderr.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with("vhdkit: ")), "vhdkit {line}: {}", self.stderr);
        assert!(lines.next().is_some_and(|line| line.starts_with("hint: ")), "vhdkit {line}: {}", self.stderr);
        assert_eq!(lines.next(), None, "vhdkit {line}: {}", self.stderr);
        self.stderr
    }
}

/// `len` bytes that differ from place to place and from seed to seed, none of them zero.
pub(crate) fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at % 251) ^ (at >> 9) ^ u64::from(seed)) as u8 | 1).collect()
}
