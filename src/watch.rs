//! Watching and stopping long operations.
//!
//! Owns: progress numbers, the observer trait and the cancel token. Must not know: which operation runs.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How far an operation is. A ratio, not a promise: the total may rise, and `done == total` is not "finished".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Progress {
    /// Bytes of the virtual disk dealt with.
    pub done: u64,
    /// Bytes of the virtual disk to deal with.
    pub total: u64,
    /// Bytes moved from file to file so far.
    pub moved: u64,
}

/// Something that wants to know how an operation goes. Called from worker threads; must return quickly.
pub trait Observer: Send + Sync {
    /// A new state of affairs.
    fn progress(&self, progress: Progress);
}

/// Asks an operation to stop; clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    cancelled: AtomicBool,
    /// Looked at before the lock is taken, so that workers that are not to pause never meet on it.
    paused: AtomicBool,
    gate: Mutex<()>,
    opened: Condvar,
}

impl CancelToken {
    /// A token nobody has pulled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the stop. Asking twice is harmless.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.wake();
    }

    /// Makes the operation stand still at its next look at the token.
    pub(crate) fn suspend(&self) {
        self.0.paused.store(true, Ordering::Release);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.0.paused.store(false, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // Under the lock, so that nobody falls asleep between looking at the flags and waiting.
        let _gate = self.0.gate.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.opened.notify_all();
    }

    fn wait_while_paused(&self) {
        if !self.0.paused.load(Ordering::Acquire) {
            return;
        }
        let mut gate = self.0.gate.lock().unwrap_or_else(PoisonError::into_inner);
        while self.0.paused.load(Ordering::Acquire) && !self.is_cancelled() {
            gate = self.0.opened.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the stop was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }
}

/// What every long operation takes: who watches it and who may stop it.
#[derive(Clone, Default)]
pub struct Watch<'a> {
    observer: Option<&'a dyn Observer>,
    cancel: Option<&'a CancelToken>,
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("observed", &self.observer.is_some()).field("cancel", &self.cancel).finish()
    }
}

impl<'a> Watch<'a> {
    /// Nobody watches, nobody stops it.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reports progress to `observer`.
    #[must_use]
    pub fn observer(mut self, observer: &'a dyn Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Stops when `cancel` is pulled.
    #[must_use]
    pub fn cancel(mut self, cancel: &'a CancelToken) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// One stage of an operation of several: stopped with it, and told to `observer`.
    pub(crate) fn stage<'b>(&self, observer: &'b dyn Observer) -> Watch<'b>
    where
        'a: 'b,
    {
        Watch { observer: Some(observer), cancel: self.cancel }
    }

    /// The same without the observer: for the part of an operation whose numbers are not those it reports.
    #[cfg(feature = "registry")]
    pub(crate) fn unobserved(&self) -> Self {
        Self { observer: None, cancel: self.cancel }
    }

    /// Tells the observer, if there is one.
    pub(crate) fn report(&self, progress: Progress) {
        if let Some(observer) = self.observer {
            observer.progress(progress);
        }
    }

    /// `Err(Cancelled)` once the token was pulled; waits here while the operation is suspended.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(token) = self.cancel {
            token.wait_while_paused();
        }
        match self.cancel {
            Some(token) if token.is_cancelled() => Err(Error::new(ErrorKind::Cancelled, "cancelled")),
            _ => Ok(()),
        }
    }
}
