//! What a kernel does better than a loop of reads and writes: holes, space in advance, copies inside the file system,
//! exclusive renames.
//!
//! Owns: the system calls, and which of their refusals only mean "not here". Must not know: who asks.
//! Where a system has no such call the answer is always "not here".

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

/// The most one `copy_file_range` is asked for, so that one call does not hold up the process for minutes.
#[cfg(target_os = "linux")]
const MAX_COPY: u64 = 1 << 30;

#[cfg(target_os = "linux")]
mod refusal {
    use rustix::io::Errno;

    /// The file system, or this pair of files, cannot do it; a plain loop can.
    pub(super) fn is_unsupported(errno: Errno) -> bool {
        matches!(
            errno,
            Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::XDEV | Errno::NODEV | Errno::PERM | Errno::NOTTY
        )
    }
}

/// Starts writing `range` out of the cache, where that can be asked for.
#[cfg(target_os = "linux")]
pub(super) fn start_writeback(file: &File, range: Range<u64>) -> io::Result<()> {
    let numbers = (i64::try_from(range.start), i64::try_from(range.end.saturating_sub(range.start)));
    // A length of 0 would mean all the rest.
    let (Ok(offset), Ok(len @ 1..)) = numbers else { return Ok(()) };
    match super::kernel::start_writeback(file, offset, len) {
        Err(error) if !is_refused(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether the error of a call of [`kernel`](super::kernel) only means "not here".
#[cfg(target_os = "linux")]
fn is_refused(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error).is_some_and(refusal::is_unsupported)
}

/// Fills `buf` from the cache. `Ok(false)`: not all of it is there, or the file system does not say.
#[cfg(target_os = "linux")]
pub(super) fn read_cached(file: &File, buf: &mut [u8], offset: u64) -> io::Result<bool> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};
    let len = buf.len();
    match retry_on_intr(|| preadv2(file, &mut [io::IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT)) {
        Ok(read) => Ok(read == len),
        Err(errno) if errno == Errno::AGAIN || refusal::is_unsupported(errno) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes `range` a hole; the length stays. `Ok(false)`: the file system has no holes, nothing was changed.
#[cfg(target_os = "linux")]
pub(super) fn punch_hole(file: &File, range: Range<u64>) -> io::Result<bool> {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| fallocate(file, flags, range.start, range.end - range.start)) {
        Ok(()) => Ok(true),
        Err(errno) if refusal::is_unsupported(errno) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Reserves space for the first `len` bytes. `Ok(false)`: the file system does not know how.
#[cfg(target_os = "linux")]
pub(super) fn allocate(file: &File, len: u64) -> io::Result<bool> {
    use rustix::fs::{FallocateFlags, fallocate};
    if len == 0 {
        return Ok(true);
    }
    match rustix::io::retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, len)) {
        Ok(()) => Ok(true),
        Err(errno) if refusal::is_unsupported(errno) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Drops what the system has cached of the file, where it can.
#[cfg(target_os = "linux")]
pub(super) fn forget_cached(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// The next position that is not in a hole, `None` when only a hole is left. The answer may be early, never late.
///
/// This moves the file's cursor, which nothing uses: all reads and writes name their position.
#[cfg(target_os = "linux")]
pub(super) fn seek_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    match seek(file, SeekFrom::Data(offset)) {
        Ok(found) => Ok(Some(found.max(offset))),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) if refusal::is_unsupported(errno) => Ok(Some(offset)),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies `len` bytes between files. `Ok(false)`: not between these two, nothing was written.
#[cfg(target_os = "linux")]
pub(super) fn copy(source: (&File, u64), target: (&File, u64), len: u64) -> io::Result<bool> {
    use rustix::fs::copy_file_range;
    let ((source, mut from), (target, mut to)) = (source, target);
    let mut left = len;
    while left > 0 {
        let step = left.min(MAX_COPY) as usize;
        let started = left < len;
        match rustix::io::retry_on_intr(|| {
            // On a retry nothing has been copied and the positions have not moved.
            copy_file_range(source, Some(&mut from), target, Some(&mut to), step)
        }) {
            // Past the source's end, or a file system that cannot and does not say so: the loop by hand finds out.
            Ok(0) if !started => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => left -= copied as u64,
            Err(errno) if !started && refusal::is_unsupported(errno) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

/// Whether the file is on a file server.
#[cfg(target_os = "linux")]
pub(super) fn is_remote(file: &File) -> bool {
    /// NFS, SMB as `cifs` and as `smb3`, Ceph, AFS: `statfs(2)` and the kernel's `magic.h`.
    const SERVED: [u64; 5] = [0x6969, 0xFF53_4D42, 0xFE53_4D42, 0x00C3_6400, 0x5346_414F];
    rustix::fs::fstatfs(file).is_ok_and(|system| SERVED.contains(&(system.f_type as u64 & 0xFFFF_FFFF)))
}

/// Lets `len` bytes of `target` be blocks of `source`. `Ok(false)`: not between these two, nothing was changed.
#[cfg(target_os = "linux")]
pub(super) fn share(source: (&File, u64), target: (&File, u64), len: u64) -> io::Result<bool> {
    // A length of 0 would mean all the rest.
    if len == 0 {
        return Ok(false);
    }
    match super::kernel::clone_range(source, target, len) {
        Ok(()) => Ok(true),
        Err(error) if is_refused(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames unless `to` exists (`AlreadyExists`). `Ok(false)`: the file system cannot promise that.
#[cfg(target_os = "linux")]
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(errno) if refusal::is_unsupported(errno) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn start_writeback(_file: &File, _range: Range<u64>) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read_cached(_file: &File, _buf: &mut [u8], _offset: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn punch_hole(_file: &File, _range: Range<u64>) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn allocate(_file: &File, _len: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn forget_cached(_file: &File) {}

#[cfg(not(target_os = "linux"))]
pub(super) fn seek_data(_file: &File, offset: u64) -> io::Result<Option<u64>> {
    Ok(Some(offset))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn copy(_source: (&File, u64), _target: (&File, u64), _len: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_remote(_file: &File) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(super) fn share(_source: (&File, u64), _target: (&File, u64), _len: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn rename_new(_from: &Path, _to: &Path) -> io::Result<bool> {
    Ok(false)
}
