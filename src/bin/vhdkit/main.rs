//! The vhdkit program: the library's operations on a command line.
//!
//! Owns: the order in which a run goes: arguments, limits, signals, the verb, the exit code. Must not know: what a verb
//! does.

mod args;
mod commands;
mod input;
mod interrupt;
mod output;
mod picture;
mod progress;
mod size;

use args::Cli;
use clap::Parser;
use output::Failure;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::io;
use std::process::ExitCode;
use vhdkit::CancelToken;

fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_open_file_limit();
    let session = Session { display: cli.display, cancel: CancelToken::new(), job: cli.job };
    let run = interrupt::install(&session.cancel, cli.verb.on_signal())
        .map_err(Failure::from)
        .and_then(|()| cli.verb.run(&session));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output::report(&failure),
    }
}

/// One less than the open files there is room for from the start.
const OPEN_FILES: i32 = 1023;

/// What every verb is given besides its own arguments.
#[derive(Debug)]
struct Session {
    display: args::DisplayArgs,
    cancel: CancelToken,
    /// Whether this is the background of another run.
    job: bool,
}

/// A chain holds one file open per image, and the usual soft limit is 1024. Failing to raise it is no failure: a chain
/// too long for the limit says so itself.
fn raise_open_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    // The table of open files grows here, before there are threads: with them the kernel waits for every processor, some
    // 7 ms each time.
    let _ = rustix::io::fcntl_dupfd_cloexec(io::stderr(), OPEN_FILES);
}
