//! Other people's programs, and ours.
//!
//! Owns: starting them and what their failure looks like. Must not know: what they are asked.

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `line`, cut at spaces, in `folder`; answers what it printed.
///
/// # Errors
/// Both of its outputs, when it fails or is not there.
pub(crate) fn try_run(folder: &Path, line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let name = words.next().expect("a program");
    let name = if name == "vhdkit" { env!("CARGO_BIN_EXE_vhdkit") } else { name };
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(name).args(words).current_dir(folder).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{line}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
    }
}

/// Runs `script` by a shell in `folder`; `$VHDKIT` is our program.
#[track_caller]
pub(crate) fn sh(folder: &Path, script: &str) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", script]).current_dir(folder).env("VHDKIT", env!("CARGO_BIN_EXE_vhdkit"));
    let output = shell.stdin(Stdio::null()).output().expect("a shell");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{script}: {text}");
    text
}

/// As [`try_run`], of a program that must do what it is asked.
#[track_caller]
pub(crate) fn run(folder: &Path, line: &str) -> String {
    try_run(folder, line).unwrap_or_else(|text| panic!("{text}"))
}

/// Runs `vhdkit LINE` and answers its JSON.
#[track_caller]
pub(crate) fn json(folder: &Path, line: &str) -> serde_json::Value {
    serde_json::from_str(&run(folder, &format!("vhdkit {line} --json"))).expect("JSON")
}

/// Whether every program of `names` can be started.
pub(crate) fn missing<'a>(names: &[&'a str]) -> Option<&'a str> {
    let there = |name: &&&str| {
        let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        paths.split(':').any(|path| Path::new(path).join(name).is_file())
    };
    names.iter().find(|name| !there(name)).copied()
}
