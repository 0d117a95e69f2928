//! A QEMU that has an image open and a file that is held here keep each other out.
//!
//! The QEMU is its tool `qemu-io`, which opens images as a virtual machine does and keeps them open while it waits for
//! commands.
//!
//! A program that another test is just starting has a copy of this process's open files for a moment, and with it their
//! locks. What should be possible is therefore waited for; what should not be is asked once.
#![cfg(target_os = "linux")]

use crate::support::oracle::{QemuImg, skipped};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhdkit::ErrorKind;
use vhdkit::storage::{Access, FileStorage, Lock};

const FORMATS: [&str; 3] = ["raw", "vpc", "vhdx"];

/// qemu-img and qemu-io, if they are here.
fn tools() -> Option<QemuImg> {
    let image_tool = QemuImg::find()?;
    if Command::new("qemu-io").arg("--version").output().is_err() {
        skipped("qemu-io is not installed (package qemu-utils)");
        return None;
    }
    Some(image_tool)
}

fn made(tool: &QemuImg, folder: &TempDir, format: &str) -> PathBuf {
    let path = folder.path().join(format!("disk.{format}"));
    tool.run(["create", "-q", "-f", format, path.to_str().unwrap(), "8M"]).unwrap();
    path
}

fn io_tool(format: &str, options: &[&str], path: &Path) -> Command {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]).args(options).arg(path).stdin(Stdio::null());
    command
}

/// Whether QEMU does `what` with the image; when it does not, its locks are the reason.
fn does(what: &str, format: &str, path: &Path) -> bool {
    let options: &[&str] = if what.starts_with("read") { &["-r", "-c", what] } else { &["-c", what] };
    let output = io_tool(format, options, path).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || (errors.contains("Failed to get") && errors.contains("lock")), "{errors}");
    output.status.success()
}

/// Whether it becomes so.
fn soon(mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() > Duration::from_secs(30) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// A QEMU that has an image open until it is stopped.
struct Running(Child);

impl Running {
    fn start(format: &str, options: &[&str], path: &Path) -> Self {
        let mut command = io_tool(format, options, path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It asks for a command once the image is open; when it ends instead, the text ends.
        let (mut text, mut byte) = (Vec::new(), [0]);
        let stdout = child.stdout.as_mut().unwrap();
        while !text.ends_with(b"qemu-io> ") {
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "ended with {:?}", String::from_utf8_lossy(&text));
            text.push(byte[0]);
        }
        Self(child)
    }

    fn stop(mut self) {
        self.0.stdin.take().unwrap().write_all(b"quit\n").unwrap();
        let mut rest = Vec::new();
        self.0.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
        assert!(self.0.wait().unwrap().success(), "{}", String::from_utf8_lossy(&rest));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `stop` there is nothing to do and both say so; after a failed test it must not be left running.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens the file; refused, it must be for QEMU.
fn is_given(path: &Path, access: Access, lock: Lock) -> bool {
    let mut outcome = None;
    let answered = soon(|| {
        let opened = FileStorage::open(path, access, lock).map(drop);
        // The lock of a handle that was closed here, in a program that is being started.
        let lingers = opened.as_ref().is_err_and(|error| !error.to_string().contains("QEMU process"));
        outcome = Some(opened);
        !lingers
    });
    let outcome = outcome.unwrap();
    assert!(answered, "{outcome:?}");
    outcome.inspect_err(|error| assert_eq!((error.kind(), error.path()), (ErrorKind::InUse, Some(path)))).is_ok()
}

#[test]
fn an_image_that_qemu_has_open_is_refused() {
    let Some(tool) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = made(&tool, &folder, format);
        let before = std::fs::read(&path).unwrap();
        // Writing; reading; reading beside any writer.
        for (options, shared) in [(&[][..], false), (&["-r"], true), (&["-r", "-U"], true)] {
            let qemu = Running::start(format, options, &path);
            assert!(!is_given(&path, Access::Write, Lock::Exclusive), "{format} {options:?}");
            assert_eq!(is_given(&path, Access::Read, Lock::Shared), shared, "{format} {options:?}");
            assert!(is_given(&path, Access::Read, Lock::None), "{format} {options:?}");
            qemu.stop();
            assert!(is_given(&path, Access::Write, Lock::Exclusive), "{format} {options:?}, stopped");
        }
        // Only QEMU itself may have touched the file: a VHDX gets a new header by being opened for writing.
        assert!(format == "vhdx" || std::fs::read(&path).unwrap() == before);
    }
}

#[test]
fn qemu_refuses_an_image_that_is_held_for_writing() {
    let Some(tool) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = made(&tool, &folder, format);
        let name = path.to_str().unwrap();
        let held = FileStorage::open(&path, Access::Write, Lock::Exclusive).unwrap();
        assert!(!does("write 0 512", format, &path), "{format}");
        assert!(!does("read 0 512", format, &path), "{format}");
        let copy = folder.path().join("copy");
        for options in [&["convert"][..], &["convert", "-U"]] {
            let arguments = [options, &["-f", format, name, "-O", "raw", copy.to_str().unwrap()]].concat();
            let text = tool.run(arguments).unwrap_err();
            assert!(text.contains("lock") && text.contains(name), "{format}: {text}");
        }
        // Looking at what a file is, without a claim on its contents.
        tool.run(["info", "-U", "-f", format, name]).unwrap();
        drop(held);
        assert!(soon(|| does("write 0 512", format, &path)), "{format}, released");
    }
}

#[test]
fn qemu_may_read_but_not_write_an_image_that_is_held_for_reading() {
    let Some(tool) = tools() else { return };
    let folder = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = made(&tool, &folder, format);
        let held = FileStorage::open(&path, Access::Read, Lock::Shared).unwrap();
        assert!(!does("write 0 512", format, &path), "{format}");
        assert!(does("read 0 512", format, &path), "{format}");
        tool.run(["info", "-f", format, path.to_str().unwrap()]).unwrap();
        drop(held);
        assert!(soon(|| does("write 0 512", format, &path)), "{format}, released");
    }
}
