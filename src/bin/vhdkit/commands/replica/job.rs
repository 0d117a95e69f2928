//! Operations that go on in the background, and waiting for states.
//!
//! Owns: the process that an operation goes on in, what the one who started it hears of it, how long is waited. Must not
//! know: what an operation does, how a relation reads.
//!
//! The process in the background is this program with the same arguments. It says every state that is reached, one word
//! to a line, on its standard output, until nobody listens any more; what goes wrong later is in the record.

use super::operations::{OperationArgs, WaitArgs, Waiting};
use crate::Session;
use crate::output::{Failure, usage};
use serde::Serialize;
use std::collections::BTreeSet;
use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use vhdkit::ops::{CopyState, Leads, ModifyOptions, Operation, ReturnCode, SyncType, capabilities};
use vhdkit::{Error, ErrorKind};

/// Between two looks at a relation whose operation goes on elsewhere.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An operation that goes on.
#[derive(Debug, Serialize)]
pub(super) struct Started {
    pub(super) operation: Operation,
    pub(super) operation_number: u16,
    /// The number of its process.
    pub(super) process: u32,
}

/// What somebody who did not want to wait for the end hears.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It goes on; the state that was waited for, if any, is reached.
    GoesOn(Started),
    /// It goes on, and the time is up.
    TimeUp(Started),
    /// It has ended.
    Ended,
}

/// A state by its name.
pub(super) fn state(text: &str) -> Result<CopyState, String> {
    let named = CopyState::ALL.into_iter().find(|state| state.to_string() == text);
    let all = || CopyState::ALL.map(|state| state.to_string()).join(", ");
    named.ok_or_else(|| format!("the states are {}", all()))
}

/// The options of an operation; in the background every state that is reached is said on standard output.
pub(super) fn options(args: &OperationArgs, session: &Session) -> ModifyOptions {
    let options = ModifyOptions::new().force(args.force).jobs(args.jobs);
    if !session.job {
        return options;
    }
    let (sender, states) = channel::<CopyState>();
    thread::spawn(move || {
        for state in states {
            // Whoever started this may have stopped listening: it goes on all the same.
            let _ = writeln!(io::stdout(), "{state}");
        }
    });
    options.tell(sender)
}

/// Leaves the terminal: its hang-up and its interrupts are for whoever started this.
pub(super) fn detach() {
    // It fails for a leader of a group, which this process is not.
    let _ = rustix::process::setsid();
}

/// Whether the arguments ask for the background.
pub(super) fn is_wanted(wait: &WaitArgs, session: &Session) -> bool {
    !session.job && (wait.no_wait || wait.wait.is_some())
}

/// Starts this run once more in the background, and listens until there is an answer. `is_reached` says whether the state
/// that is waited for was reached when the word `state` came.
///
/// # Errors
/// A state that the operation never leads to; what the system answers; that it failed, as it said itself.
pub(super) fn start(
    operation: Operation,
    wait: &WaitArgs,
    is_reached: &mut dyn FnMut(CopyState) -> Result<bool, Failure>,
) -> Result<Outcome, Failure> {
    if let Some(state) = wait.wait.filter(|state| !leads_to(operation).contains(state)) {
        let names: Vec<String> = leads_to(operation).iter().map(CopyState::to_string).collect();
        return Err(usage(format_args!("{operation} never leads to {state}, but to: {}", names.join(", "))).into());
    }
    let mut command = Command::new(env::current_exe()?);
    command.arg("--job").args(env::args_os().skip(1)).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let started = Started { operation, operation_number: operation.number(), process: child.id() };
    let states = listen(&mut child);
    let deadline = wait.timeout.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    loop {
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        match states.recv_timeout(left) {
            Ok(_) if wait.no_wait => return Ok(Outcome::GoesOn(started)),
            Ok(state) if is_reached(state)? => return Ok(Outcome::GoesOn(started)),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(Outcome::TimeUp(started)),
            Err(RecvTimeoutError::Disconnected) => return ended(child),
        }
    }
}

/// The states that `operation` passes through, on a relation of any type.
fn leads_to(operation: Operation) -> BTreeSet<CopyState> {
    let rows = SyncType::ALL.into_iter().flat_map(capabilities).filter(|row| row.operation == operation);
    let states = rows.filter_map(|row| match row.leads {
        Some(Leads::To(state)) => Some([state, CopyState::Unsynchronized]),
        _ => None,
    });
    states.flatten().collect()
}

fn listen(child: &mut Child) -> Receiver<CopyState> {
    let (sender, states) = channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            let words = BufReader::new(stdout).lines().map_while(Result::ok);
            let _ = words.filter_map(|word| state(&word).ok()).try_for_each(|state| sender.send(state));
        });
    }
    states
}

/// How one ended that said no more: well, or with the words of its own failure.
fn ended(mut child: Child) -> Result<Outcome, Failure> {
    let mut said = String::new();
    if let Some(stderr) = child.stderr.as_mut() {
        // What it cannot say any more is in its exit code.
        let _ = stderr.read_to_string(&mut said);
    }
    match child.wait()?.code() {
        Some(0) => Ok(Outcome::Ended),
        code => {
            let _ = io::stderr().write_all(said.as_bytes());
            Err(Failure::Said(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(3)))
        }
    }
}

/// What waiting for somebody else's operation came to; `look` answers the state.
pub(super) fn wait_for(
    wanted: CopyState,
    waiting: &Waiting,
    session: &Session,
    look: &mut dyn FnMut() -> Result<CopyState, Failure>,
) -> Result<ReturnCode, Failure> {
    let deadline = waiting.timeout.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let (ended, end) = channel();
    let replicas = waiting.common.replicas();
    // Where this thread is when the answer is there does not matter: the program ends.
    thread::spawn(move || ended.send(replicas.wait_until_idle()));
    loop {
        // In this order: what it has reached when it has ended is looked at once more.
        let is_over = match end.recv_timeout(LOOK_EVERY) {
            Ok(idle) => idle.map(|()| true)?,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        if look()? == wanted {
            return Ok(ReturnCode::Completed);
        }
        if is_over {
            return Ok(ReturnCode::Failed);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(ReturnCode::Timeout);
        }
        if session.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped waiting; the operation goes on").into());
        }
    }
}
