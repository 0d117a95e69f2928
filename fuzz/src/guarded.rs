//! Storage that counts what is asked of it, and takes no writes from who promised to make none.
//!
//! Owns: the number of operations one input may take. A number of operations is the same on every machine; the second of
//! real time that libFuzzer allows stands behind it.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vhdkit::storage::{MemoryStorage, Storage};

/// The most operations on one file that all questions of one body may take: the table of the largest disk that fits the
/// files here is read in under a thousand.
const OPERATIONS: u64 = 60_000;
/// The most bytes they may move.
const BYTES: u64 = 512 << 20;

/// A file in memory that counts.
#[derive(Debug)]
pub(crate) struct Guarded {
    inner: MemoryStorage,
    writes: bool,
    operations: AtomicU64,
    bytes: AtomicU64,
}

impl Guarded {
    /// A copy of `file` for a reader, who must not write.
    pub(crate) fn for_reading(file: &MemoryStorage) -> Arc<Self> {
        Arc::new(Self::new(file, false))
    }

    /// A copy of `file` for a writer.
    pub(crate) fn for_writing(file: &MemoryStorage) -> Arc<Self> {
        Arc::new(Self::new(file, true))
    }

    fn new(file: &MemoryStorage, writes: bool) -> Self {
        Self { inner: file.clone(), writes, operations: OPERATIONS.into(), bytes: BYTES.into() }
    }

    /// What the file holds now.
    pub(crate) fn contents(&self) -> MemoryStorage {
        self.inner.clone()
    }

    fn take(&self, bytes: u64) {
        let less = |left: &AtomicU64, by: u64| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(by)).is_ok()
        };
        assert!(less(&self.operations, 1), "more than {OPERATIONS} operations on one file");
        assert!(less(&self.bytes, bytes), "more than {BYTES} bytes moved of one file");
    }

    fn change(&self, bytes: u64) {
        assert!(self.writes, "a reader writes");
        self.take(bytes);
    }
}

impl Storage for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.take(buf.len() as u64);
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(buf.len() as u64);
        self.inner.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(0);
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.change(0);
        self.inner.sync()
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.change(0);
        self.inner.zero_range(range)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.take(0);
        self.inner.next_data(offset)
    }
}
