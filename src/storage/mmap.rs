//! A file mapped into memory, for reading.
//!
//! Owns: with `kernel` the crate's only `unsafe`. Must not know: any format.
#![allow(unsafe_code)]

use super::{Storage, past_end, read_only};
use std::fs::File;
use std::io;
use std::ops::Range;

/// A read-only memory map of a whole file: reads are copies out of the page cache without a system call.
///
/// A failing disk shows as a signal (`SIGBUS`) that ends the process, not as an error.
#[derive(Debug)]
pub struct MmapStorage {
    map: memmap2::Mmap,
    file: File,
}

impl MmapStorage {
    /// Maps all of `file`, at the length it has now.
    ///
    /// # Safety
    /// Until the storage is dropped nobody, in this process or another, may write to the file or make it shorter: the
    /// compiler takes the mapped bytes for unchanging, and touching a page past a new end is a `SIGBUS`. An advisory lock
    /// does not enforce this.
    ///
    /// # Errors
    /// What the operating system answers; `OutOfMemory` or `InvalidInput` when the file does not fit the address space.
    pub unsafe fn new(file: File) -> io::Result<Self> {
        // SAFETY: the caller promises that the file is neither written nor cut while the map lives.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map, file })
    }
}

impl Storage for MmapStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.map.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.map.get(start..start.checked_add(buf.len())?))
            .ok_or_else(|| past_end(offset, buf.len(), self.map.len() as u64))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, _range: Range<u64>) -> io::Result<()> {
        Err(read_only())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        if offset >= self.len()? {
            return Ok(None);
        }
        super::offload::seek_data(&self.file, offset)
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::storage::conformance::{Part, run};
    use std::sync::Arc;

    fn map(bytes: &[u8]) -> MmapStorage {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        // SAFETY: the file has no name and this is its only handle, which nobody writes through again.
        unsafe { MmapStorage::new(file).unwrap() }
    }

    #[test]
    fn keeps_the_reading_part_of_the_contract() {
        let broken = run(Part::Reading, &|bytes| Arc::new(map(bytes)));
        assert!(broken.is_empty(), "{broken:#?}");
    }

    #[test]
    fn refuses_every_change() {
        let storage = map(b"abc");
        for refused in [storage.write_all_at(b"x", 0), storage.set_len(0), storage.zero_range(0..1)] {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
    }
}
