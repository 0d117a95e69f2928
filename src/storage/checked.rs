//! The guard in front of every image's storage: no write through a reading handle, and none after the first failure.
//!
//! Owns: the failure latch. Must not know: any format.

use super::{Storage, read_only};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A storage that refuses writes when it was opened for reading, and refuses writes and syncs after the first of them
/// that failed. Reads always go through.
///
/// A sync with no change since the last one that succeeded has nothing to do and is not passed on; the first always is,
/// as the file may hold what another handle, or a killed process, wrote and did not wait for.
///
/// A failed sync may have dropped any of the writes before it, and the kernel reports that once; a second sync that says
/// `Ok` would be a lie about them. What is on the medium is then as after a crash: reopen the file.
#[derive(Debug)]
pub struct CheckedStorage {
    inner: Arc<dyn Storage>,
    writable: bool,
    latched: AtomicBool,
    /// Whether there may be something that no sync has made durable.
    dirty: AtomicBool,
    /// One sync at a time: the kernel tells a failure to one of two syncs that race, and the other must not answer `Ok`.
    syncing: Mutex<()>,
}

impl CheckedStorage {
    /// `inner`, for reading only: every change is `ReadOnlyFilesystem`, a sync does nothing.
    #[must_use]
    pub fn read_only(inner: Arc<dyn Storage>) -> Self {
        Self::new(inner, false)
    }

    /// `inner`, for reading and writing.
    #[must_use]
    pub fn writable(inner: Arc<dyn Storage>) -> Self {
        Self::new(inner, true)
    }

    fn new(inner: Arc<dyn Storage>, writable: bool) -> Self {
        Self { inner, writable, latched: AtomicBool::new(false), dirty: AtomicBool::new(true), syncing: Mutex::new(()) }
    }

    /// Whether a write or sync has failed, so that no more are let through.
    #[must_use]
    pub fn is_latched(&self) -> bool {
        self.latched.load(Ordering::Acquire)
    }

    /// Whether it was made for writing; a latched storage still answers true.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    fn changing<T>(&self, change: impl FnOnce(&dyn Storage) -> io::Result<T>) -> io::Result<T> {
        let changed = self.guarded(change);
        // Once it is done: a sync that begins from now on has to cover it, one that began before may not have.
        self.dirty.store(true, Ordering::Release);
        changed
    }

    fn guarded<T>(&self, change: impl FnOnce(&dyn Storage) -> io::Result<T>) -> io::Result<T> {
        if !self.writable {
            return Err(read_only());
        }
        if self.is_latched() {
            let message = "an earlier write failed, so this file is closed for writing; open it again";
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, message));
        }
        change(&*self.inner).inspect_err(|_| self.latched.store(true, Ordering::Release))
    }
}

impl Storage for CheckedStorage {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, offset)
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.inner.read_cached_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.changing(|inner| inner.write_all_at(buf, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changing(|inner| inner.set_len(len))
    }

    fn sync(&self) -> io::Result<()> {
        if !self.writable {
            return Ok(());
        }
        let _turn = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_latched() && !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.guarded(|inner| inner.sync())
    }

    fn start_writeback(&self, range: Range<u64>) -> io::Result<()> {
        self.guarded(|inner| inner.start_writeback(range))
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.changing(|inner| inner.zero_range(range))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }

    fn copy_range(&self, source: &dyn Storage, from: u64, to: u64, len: u64) -> io::Result<bool> {
        self.changing(|inner| inner.copy_range(source, from, to, len))
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn share_range(&self, source: &dyn Storage, from: u64, to: u64, len: u64) -> io::Result<bool> {
        self.changing(|inner| inner.share_range(source, from, to, len))
    }

    fn share_unit(&self) -> io::Result<Option<u64>> {
        self.inner.share_unit()
    }

    fn as_file(&self) -> Option<&File> {
        self.inner.as_file()
    }
}

#[cfg(test)]
mod tests;
