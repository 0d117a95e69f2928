//! What the program says and how it ends.
//!
//! Owns: the exit codes, the two lines of an error, standard output. Must not know: any verb.

use crate::args::DisplayArgs;
use serde::Serialize;
use std::error::Error as _;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use vhdkit::{Error, ErrorKind};

/// The exit code of a run that was asked to stop: 128 + SIGINT, as shells say it.
pub(crate) const CANCELLED: u8 = 130;

/// The exit code of a verb whose answer is "something was found".
const FOUND: u8 = 1;

/// The exit code of each kind of failure.
///
/// 1 is a check whose answer is "something was found"; 2 is also what the argument parser exits with.
pub(crate) const fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput => 2,
        ErrorKind::Corrupt | ErrorKind::UnknownFormat | ErrorKind::Unsupported => 4,
        ErrorKind::ParentNotFound
        | ErrorKind::ParentMismatch
        | ErrorKind::ParentDenied
        | ErrorKind::Cycle
        | ErrorKind::Chain => 5,
        ErrorKind::Refused | ErrorKind::InUse => 6,
        ErrorKind::Cancelled => CANCELLED,
        // Io, NoSpace, NotFound, ReadOnly, and kinds of later versions of the library.
        _ => 3,
    }
}

/// Why a verb ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library, or the arguments.
    Error(Error),
    /// The program's own output.
    Output(io::Error),
    /// The answer was given, and it is that something is wrong.
    Found,
    /// Another run of this program has said why, and ended with this code.
    Said(u8),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl Failure {
    /// Whether the reader of our output went away: it has what it wanted. No image is a pipe, so this is never one.
    fn is_closed_pipe(&self) -> bool {
        let source = match self {
            Self::Output(error) => Some(error),
            Self::Error(error) => error.source().and_then(|source| source.downcast_ref::<io::Error>()),
            Self::Found | Self::Said(_) => None,
        };
        source.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// A wrong argument that only the verb could see.
pub(crate) fn usage(message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// Says on standard error why the run failed, in a sentence and, where there is one, a hint; answers the exit code.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    if failure.is_closed_pipe() {
        return ExitCode::SUCCESS;
    }
    let (message, hint, code) = match failure {
        Failure::Error(error) => (error.to_string(), error.hint(), exit_code(error.kind())),
        Failure::Output(error) => (format!("cannot write the output: {error}"), None, exit_code(ErrorKind::Io)),
        Failure::Found => return ExitCode::from(FOUND),
        Failure::Said(code) => return ExitCode::from(*code),
    };
    let mut text = format!("vhdkit: {}\n", shown(&message));
    if let Some(hint) = hint {
        text.push_str(&format!("hint: {}\n", shown(hint)));
    }
    // A closed standard error leaves only the exit code to speak.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

/// Standard output for a disk's bytes: without the line buffer of `io::Stdout`, which would cut them up.
///
/// # Errors
/// What the system answers.
pub(crate) fn raw_stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Prints `value` as JSON.
///
/// # Errors
/// Of standard output.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    print(&(text + "\n"))
}

/// One line of text without control characters: what comes from an image, or is the name of a file, must not move the
/// cursor of a terminal, nor begin a line of its own.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Prints an answer.
///
/// # Errors
/// Of standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Standard output for answers that may be long: written as they are found.
pub(crate) type Answer = io::BufWriter<io::StdoutLock<'static>>;

/// Standard output for a long answer. Flush it at the end.
pub(crate) fn answer() -> Answer {
    io::BufWriter::new(io::stdout().lock())
}

/// A JSON object that ends in a list, written entry by entry: the list may be longer than memory.
pub(crate) struct JsonList<'a> {
    out: &'a mut Answer,
    first: bool,
}

impl<'a> JsonList<'a> {
    /// Starts the object with the members of `head`, itself an object, and then the list called `name`.
    ///
    /// # Errors
    /// Of standard output.
    pub(crate) fn start(out: &'a mut Answer, head: &impl Serialize, name: &str) -> Result<Self, Failure> {
        let text = serde_json::to_string_pretty(head).map_err(io::Error::from)?;
        let members = text.strip_suffix("\n}").unwrap_or("{");
        let comma = if members == "{" { "" } else { "," };
        write!(out, "{members}{comma}\n  \"{name}\": [")?;
        Ok(Self { out, first: true })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Of standard output.
    pub(crate) fn add(&mut self, entry: &impl Serialize) -> Result<(), Failure> {
        let comma = if self.first { "" } else { "," };
        self.first = false;
        let text = serde_json::to_string(entry).map_err(io::Error::from)?;
        Ok(write!(self.out, "{comma}\n    {text}")?)
    }

    /// Ends the list and the object.
    ///
    /// # Errors
    /// Of standard output.
    pub(crate) fn end(self) -> Result<(), Failure> {
        let line = if self.first { "" } else { "\n  " };
        writeln!(self.out, "{line}]\n}}")?;
        Ok(self.out.flush()?)
    }
}

/// Prints what was done, unless the user wants quiet.
///
/// # Errors
/// Of standard output.
pub(crate) fn say(display: DisplayArgs, text: &str) -> Result<(), Failure> {
    if display.quiet { Ok(()) } else { print(text) }
}

/// Prints what a verb that changes files did, in words or as JSON. What it would do is asked for, so it is said to who
/// wants quiet too.
///
/// # Errors
/// Of standard output.
pub(crate) fn conclude<R: Serialize>(
    report: &R,
    (json, dry_run): (bool, bool),
    display: DisplayArgs,
    text: impl FnOnce(&R) -> String,
) -> Result<(), Failure> {
    if json {
        print_json(report)
    } else if dry_run {
        print(&text(report))
    } else {
        say(display, &text(report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_of_failure_has_its_code() {
        let codes = [
            (ErrorKind::InvalidInput, 2),
            (ErrorKind::Io, 3),
            (ErrorKind::NoSpace, 3),
            (ErrorKind::NotFound, 3),
            (ErrorKind::ReadOnly, 3),
            (ErrorKind::Corrupt, 4),
            (ErrorKind::UnknownFormat, 4),
            (ErrorKind::Unsupported, 4),
            (ErrorKind::ParentNotFound, 5),
            (ErrorKind::ParentMismatch, 5),
            (ErrorKind::ParentDenied, 5),
            (ErrorKind::Cycle, 5),
            (ErrorKind::Chain, 5),
            (ErrorKind::Refused, 6),
            (ErrorKind::InUse, 6),
            (ErrorKind::Cancelled, 130),
        ];
        for (kind, code) in codes {
            assert_eq!(exit_code(kind), code, "{kind:?}");
        }
    }

    #[test]
    fn text_of_others_stays_on_its_line() {
        assert_eq!(shown("a\u{1b}[2J\nb\u{9b}c \u{e4}"), "a\u{fffd}[2J\u{fffd}b\u{fffd}c \u{e4}");
    }

    #[test]
    fn a_closed_pipe_is_seen_through_the_library_too() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(Failure::Output(broken()).is_closed_pipe());
        assert!(Failure::Error(Error::io("write the output", broken())).is_closed_pipe());
        assert!(!Failure::Error(Error::new(ErrorKind::Io, "broken pipe")).is_closed_pipe());
        assert!(!Failure::Output(io::Error::from(io::ErrorKind::StorageFull)).is_closed_pipe());
    }
}
