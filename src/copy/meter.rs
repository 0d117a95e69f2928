//! Counting what was moved, from many threads.
//!
//! Owns: the totals of one operation and telling its observer. Must not know: what the numbers are of.

use crate::error::Result;
use crate::watch::{Progress, Watch};
use std::sync::atomic::{AtomicU64, Ordering};

/// Shared by the workers of one operation.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    watch: &'a Watch<'a>,
    total: u64,
    done: AtomicU64,
    moved: AtomicU64,
    zeroed: AtomicU64,
    offloaded: AtomicU64,
    shared: AtomicU64,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(watch: &'a Watch<'a>, total: u64) -> Self {
        let zero = || AtomicU64::new(0);
        Self { watch, total, done: zero(), moved: zero(), zeroed: zero(), offloaded: zero(), shared: zero() }
    }

    /// `Err(Cancelled)` once the caller asked for it.
    pub(crate) fn check(&self) -> Result<()> {
        self.watch.check()
    }

    /// The operation has dealt with the first `offset` bytes of the disk.
    pub(crate) fn reached(&self, offset: u64) {
        self.done.store(offset, Ordering::Relaxed);
        self.report();
    }

    pub(crate) fn add_moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    pub(crate) fn add_offloaded(&self, bytes: u64) {
        self.offloaded.fetch_add(bytes, Ordering::Relaxed);
        self.add_moved(bytes);
    }

    pub(crate) fn add_shared(&self, bytes: u64) {
        self.shared.fetch_add(bytes, Ordering::Relaxed);
        self.add_offloaded(bytes);
    }

    pub(crate) fn add_zeroed(&self, bytes: u64) {
        self.zeroed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes moved so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Of those, bytes that never passed through this process.
    pub(crate) fn offloaded(&self) -> u64 {
        self.offloaded.load(Ordering::Relaxed)
    }

    /// Of those, bytes that were not copied at all: both files hold the same blocks of the file system.
    pub(crate) fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }

    /// Bytes made zero without a source.
    pub(crate) fn zeroed(&self) -> u64 {
        self.zeroed.load(Ordering::Relaxed)
    }

    fn report(&self) {
        let done = self.done.load(Ordering::Relaxed);
        self.watch.report(Progress { done, total: self.total, moved: self.moved() });
    }
}
