//! What a hostile image may not do: have other files opened, make work that grows faster than it does, or have its parents
//! written. Work is counted in reads of the file, never in time.

#[allow(dead_code)]
#[path = "../support/chains.rs"]
mod chains;
mod paths;
#[path = "../support/mod.rs"]
mod support;
mod work;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vhdkit::storage::{MemoryStorage, Storage};

/// A file that counts how often it is read and how much, and takes no writes.
#[derive(Debug)]
pub(crate) struct Counting {
    inner: MemoryStorage,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    pub(crate) fn new(bytes: &[u8]) -> Arc<Self> {
        let inner = MemoryStorage::from_bytes(bytes);
        Arc::new(Self { inner, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) })
    }

    /// How many reads there were since the last call, and of how many bytes.
    pub(crate) fn take(&self) -> (u64, u64) {
        (self.reads.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

impl Storage for Counting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, _: &[u8], offset: u64) -> io::Result<()> {
        panic!("a write at {offset:#x} to a file that was opened for reading")
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        panic!("a length of {len:#x} for a file that was opened for reading")
    }

    fn sync(&self) -> io::Result<()> {
        panic!("a sync of a file that was opened for reading")
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        panic!("zeros at {:#x} of a file that was opened for reading", range.start)
    }
}
