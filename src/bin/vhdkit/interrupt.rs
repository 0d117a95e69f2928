//! SIGINT and SIGTERM.
//!
//! Owns: what the first and the second signal do. Must not know: how an operation stops.
//!
//! A verb that only reads ends at once. A verb that writes is asked to stop where its files are in order; a second
//! signal ends it where it is, which is safe too, because then its files are as after a crash.

use crate::output::CANCELLED;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::process;
use std::thread;
use vhdkit::CancelToken;

/// What a signal means to a verb.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnSignal {
    /// The first one ends it: nothing is being written.
    Exit,
    /// The first one pulls the token, the second one ends the program after saying `state`: how things are then.
    Cancel {
        /// One sentence without a full stop.
        state: &'static str,
    },
}

/// Starts the thread that waits for signals.
///
/// # Errors
/// What the system answers.
pub(crate) fn install(cancel: &CancelToken, on_signal: OnSignal) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let cancel = cancel.clone();
    let wait = move || {
        for _ in signals.forever() {
            match on_signal {
                OnSignal::Exit => process::exit(CANCELLED.into()),
                OnSignal::Cancel { state } if cancel.is_cancelled() => {
                    eprintln!("vhdkit: ended at once; {state}");
                    process::exit(CANCELLED.into());
                }
                OnSignal::Cancel { .. } => cancel.cancel(),
            }
        }
    };
    thread::Builder::new().name("vhdkit-signals".to_owned()).spawn(wait).map(drop)
}
