//! A file's contents in memory, sparse.
//!
//! Owns: the lock around them. Must not know: any format.

use super::Storage;
use super::sparse::Sparse;
use std::io;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes in memory. Zero pages cost nothing, so a file of many terabytes is as cheap as what was written to it.
///
/// A clone is an independent copy made in constant time; the two share pages until one changes them.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    contents: RwLock<Sparse>,
}

impl MemoryStorage {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Holding `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self { contents: RwLock::new(Sparse::from_bytes(bytes)) }
    }

    #[cfg(feature = "sim")]
    pub(super) fn from_sparse(contents: Sparse) -> Self {
        Self { contents: RwLock::new(contents) }
    }

    /// All bytes, zeros included: for small contents.
    ///
    /// # Errors
    /// `OutOfMemory` when the length does not fit into memory.
    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let contents = self.read();
        let mut bytes = Vec::new();
        let len = usize::try_from(contents.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(len, 0);
        contents.read(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// How many bytes of memory the contents take, in whole pages of 4096 bytes.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.read().page_count() as u64 * super::PAGE as u64
    }

    fn read(&self) -> RwLockReadGuard<'_, Sparse> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Sparse> {
        self.contents.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for MemoryStorage {
    fn clone(&self) -> Self {
        Self { contents: RwLock::new(self.read().clone()) }
    }
}

impl Storage for MemoryStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.read().len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read().read(buf, offset)
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_exact_at(buf, offset).map(|()| true)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write().write(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write().set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.write().zero(range)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.read().next_data(offset))
    }
}
