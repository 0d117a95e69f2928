//! System calls of Linux that no safe wrapper exists for.
//!
//! Owns: with `mmap` the crate's only `unsafe`: calls that take an open file and numbers, and no memory of the process
//! that outlives them. Must not know: who asks, what an error means.
#![allow(unsafe_code)]

use nix::libc::{self, file_clone_range};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Starts writing `len` bytes from `offset` out of the cache, and does not wait for them.
pub(super) fn start_writeback(file: &File, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the other arguments are numbers.
    let answer = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `len` bytes at `to` of `target` the same blocks of the file system as those at `from` of `source`.
pub(super) fn clone_range(source: (&File, u64), target: (&File, u64), len: u64) -> io::Result<()> {
    let ((source, from), (target, to)) = (source, target);
    let range =
        file_clone_range { src_fd: i64::from(source.as_raw_fd()), src_offset: from, src_length: len, dest_offset: to };
    // SAFETY: both descriptors are open for as long as the files are borrowed; the kernel only reads `range`.
    let answer = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
