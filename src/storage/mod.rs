//! Bytes at offsets: the lower seam of the crate.
//!
//! Owns: the [`Storage`] contract and its implementors. Must not know: any image format, any path of a chain.
//!
//! # The contract
//!
//! The `conformance` suite (feature `sim`) checks this list; `tests/storage` runs it over every implementor here.
//!
//! * Calls come from many threads at once; each is one operation on a byte range. Nothing here buffers: a read sees
//!   every write that returned before it started.
//! * Reading past the end is `UnexpectedEof`, never zeros. Reading or writing zero bytes does nothing and succeeds
//!   wherever it is.
//! * A write past the end grows the storage; the gap reads as zeros. [`set_len`](Storage::set_len) to more adds zeros,
//!   to less drops the tail, and growing again shows zeros there.
//! * Between two [`sync`](Storage::sync)s writes (and `set_len`, and `zero_range`) may reach the medium in any order, in
//!   part, torn at 512 bytes. After a `sync` that returned `Ok` all that came before it is durable.
//! * A process that is killed in the middle of a write leaves any part of it, cut between sectors of 512 bytes.
//! * [`start_writeback`](Storage::start_writeback) orders nothing and promises nothing.
//! * A failed `sync` means nothing is known about the writes before it; the caller must not retry it and believe the
//!   second answer. `CheckedStorage` turns the first failed write or sync into a latch.

pub(crate) mod aligned;
pub(crate) mod atomic;
mod checked;
#[cfg(feature = "sim")]
pub mod conformance;
mod file;
#[cfg(target_os = "linux")]
mod kernel;
mod memory;
#[cfg(feature = "mmap")]
mod mmap;
mod offload;
mod overlay;
pub(crate) mod pages;
#[cfg(target_os = "linux")]
mod qemu_locks;
pub(crate) mod salvage;
#[cfg(feature = "sim")]
pub mod sim;
mod sparse;

pub use checked::CheckedStorage;
pub use file::{FileIdentity, FileStorage, Lock};
pub use memory::MemoryStorage;
#[cfg(feature = "mmap")]
pub use mmap::MmapStorage;
pub use overlay::OverlayStorage;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;

/// The unit in which sparse contents, overlays and the page cache keep bytes: the page VHDX logs, and what kernels cache
/// in.
pub(crate) const PAGE: usize = 4096;
/// [`PAGE`] bytes.
pub(crate) type Page = [u8; PAGE];

/// Where `len` bytes at `offset` end, or `InvalidInput` when no file reaches there (positions are signed 64 bit).
fn end_of(offset: u64, len: u64) -> io::Result<u64> {
    offset
        .checked_add(len)
        .filter(|&end| i64::try_from(end).is_ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the range ends past the largest file position"))
}

/// Writes zeros over `range` in pieces.
fn write_zeros(range: Range<u64>, mut write: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(ZEROS.len() as u64);
        write(&ZEROS[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// The error of every read that reaches past the end.
fn past_end(offset: u64, wanted: usize, len: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("{wanted} bytes at file offset {offset:#x} reach past the end of the file at {len:#x}"),
    )
}

/// The error of every write to what is not for writing.
fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the image was opened for reading only")
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reading; nothing is ever written, not even to replay a log.
    Read,
    /// Writing too. An image that a crash left in need of repair is refused.
    Write,
    /// Writing, and first mending what an interrupted writer of ours leaves behind: a VHD's tail footer is rewritten
    /// from its head copy. (A VHDX log is replayed by every writable open.)
    Recover,
}

impl Access {
    /// Whether writes are meant to happen.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read)
    }
}

/// Bytes at offsets, shared between threads. See the [module](self) for the contract.
pub trait Storage: Send + Sync + fmt::Debug {
    /// The length in bytes.
    ///
    /// # Errors
    /// What the operating system answers.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is zero.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the range reaches past the end; what the operating system answers.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills `buf` from `offset` if nobody has to wait for the medium to do so. `Ok(false)`: some of it is not in memory,
    /// or nobody can tell; `buf` then holds anything.
    ///
    /// # Errors
    /// As [`read_exact_at`](Self::read_exact_at).
    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buf, offset);
        Ok(false)
    }

    /// Writes all of `buf` at `offset`, growing the storage when needed; a gap reads as zeros.
    ///
    /// # Errors
    /// What the operating system answers; then any part of the range may hold old, new or no bytes.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the storage `len` bytes long: cut, or grown with zeros.
    ///
    /// # Errors
    /// What the operating system answers.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// The only barrier: when it returns `Ok`, everything before it is durable.
    ///
    /// # Errors
    /// What the operating system answers; nothing is known then about the writes since the last `Ok`.
    fn sync(&self) -> io::Result<()>;

    /// Asks for `range` to be written to the medium now, so that the next [`sync`](Self::sync) has less to wait for. A
    /// hint, given once the bytes were written: nothing is durable before that sync. The default does nothing.
    ///
    /// # Errors
    /// A write that failed; it may also be told by the next sync only.
    fn start_writeback(&self, range: Range<u64>) -> io::Result<()> {
        let _ = range;
        Ok(())
    }

    /// Makes `range` read as zeros, growing the storage when the range ends past its end.
    ///
    /// An implementor may punch a hole; the default writes zeros.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        write_zeros(range, |zeros, at| self.write_all_at(zeros, at))
    }

    /// The first position at or after `offset` that may hold something else than zeros, or `None` when there is none up
    /// to the end. A hint: everything skipped reads as zeros, what is not skipped may be anything.
    ///
    /// # Errors
    /// What the operating system answers.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.len()?).then_some(offset))
    }

    /// Copies `len` bytes from `source` at `from` to `to` here without passing them through this process, if both
    /// ends can. `Ok(false)`: it cannot be done that way and nothing was written; copy by hand.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    fn copy_range(&self, source: &dyn Storage, from: u64, to: u64, len: u64) -> io::Result<bool> {
        let _ = (source, from, to, len);
        Ok(false)
    }

    /// Whether its bytes are another machine's, which [`copy_range`](Self::copy_range) may ask to do the work there.
    fn is_remote(&self) -> bool {
        false
    }

    /// Lets `len` bytes at `to` here be the same space on the medium as those of `source` at `from`, until either is
    /// written: no bytes move. All three are multiples of [`share_unit`](Self::share_unit). `Ok(false)`: that is not
    /// possible between these two, and nothing was changed.
    ///
    /// # Errors
    /// As [`write_all_at`](Self::write_all_at).
    fn share_range(&self, source: &dyn Storage, from: u64, to: u64, len: u64) -> io::Result<bool> {
        let _ = (source, from, to, len);
        Ok(false)
    }

    /// What the numbers of [`share_range`](Self::share_range) are multiples of, in bytes; `None` when nothing is shared.
    ///
    /// # Errors
    /// What the operating system answers.
    fn share_unit(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// The file behind this storage, for reading from it by other means; `None` when its bytes are not simply a file's.
    fn as_file(&self) -> Option<&File> {
        None
    }
}
