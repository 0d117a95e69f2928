//! QEMU's image locks: noticing a QEMU that has a file open, and being noticed by it.
//!
//! Owns: which bytes QEMU locks, which of them are taken and asked after for each [`Lock`]. Must not know: what is in the
//! file, how a refusal is worded.
//!
//! # How QEMU locks
//!
//! QEMU takes read locks on single bytes, whether or not the file is that long, as locks of the open file description
//! (`F_OFD_SETLK`, `fcntl(2)`), which `flock(2)` does not see. Each of its four permissions has a number: 0 consistent
//! read, 1 write, 2 write unchanged data, 3 resize. A lock on byte 100 + n says "I use permission n", one on byte 200 + n
//! says "nobody else may use permission n". A newcomer first takes its own locks and then asks for those of others, with
//! the query for a write lock that nobody ever takes: what it wants to use must not be locked at 200 + n, what it will not
//! share must not be locked at 100 + n. As both of two newcomers take before they ask, at least one of them sees the
//! other. [`hold`] follows the same steps in the same order.
//!
//! A reader that leaves 200 + 0 alone can read beside a writer when it promises to bear inconsistent data, which
//! `qemu-img -U` does. While we write there is nothing sensible to read, so that byte is taken too, and QEMU then refuses
//! everything but looking at the header.
//!
//! # What this cannot see
//!
//! * A QEMU that takes no locks (`locking=off`) or shares everything (`force-share=on`, `-U`) and only reads.
//! * Locks are the kernel's: a QEMU on another machine is seen only as far as the file system carries locks between
//!   machines. NFS does, unless mounted with `local_lock` or `nolock`, and there `flock` is a lock on the whole file that
//!   conflicts with QEMU's by itself. A kernel reports one lock per query: behind another reader's lock on the whole file
//!   a QEMU that writes can stay hidden.
//! * On SMB mounts nothing is taken or asked: there a read lock on a byte keeps its own holder from writing it, and the
//!   `flock` of the whole file is mandatory for every client already.
//! * File systems without such locks: the answer is "nobody".
//! * Software that takes no such locks: VirtualBox, Hyper-V, QEMU on other systems than Linux.

use super::file::Lock;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::fstatfs;
use std::fs::File;
use std::io;
use std::ops::Range;

/// The bytes between which all of QEMU's locks lie, with room for permissions that it may add.
const ALL: Range<libc::off_t> = 100..300;
/// "Permission n is in use" is a lock on byte `USED + n`.
const USED: libc::off_t = 100;
/// "Permission n is not shared" is a lock on byte `UNSHARED + n`.
const UNSHARED: libc::off_t = 200;

const CONSISTENT_READ: libc::off_t = 0;
const WRITE: libc::off_t = 1;
const WRITE_UNCHANGED: libc::off_t = 2;
const RESIZE: libc::off_t = 3;

/// The file system types of SMB mounts, as the kernel numbers them.
const SMB_MAGICS: [u32; 2] = [0xff53_4d42, 0xfe53_4d42];

/// Takes the locks by which QEMU notices `lock`, then looks for a QEMU that excludes it. `Ok(false)`: there is one.
///
/// Until [`release`] they stay, those of a refused one too.
pub(super) fn hold(file: &File, lock: Lock) -> io::Result<bool> {
    if lock == Lock::None || on_smb(file) {
        return Ok(true);
    }
    match take(file, lock).and_then(|()| is_free(file, lock)) {
        Ok(free) => Ok(free),
        // A lock for writing that covers a byte of ours; not QEMU's own, but somebody's who means the same bytes.
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) if is_unsupported(errno) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives up what [`hold`] took. A failure is not told: the locks then go with the last handle of the open file.
pub(super) fn release(file: &File) {
    let _ = retry(|| fcntl(file, FcntlArg::F_OFD_SETLK(&describe(libc::F_UNLCK, ALL))));
}

fn take(file: &File, lock: Lock) -> Result<(), Errno> {
    let bytes: &[libc::off_t] = match lock {
        Lock::Exclusive => &[
            USED + CONSISTENT_READ,
            USED + WRITE,
            USED + RESIZE,
            UNSHARED + CONSISTENT_READ,
            UNSHARED + WRITE,
            UNSHARED + WRITE_UNCHANGED,
            UNSHARED + RESIZE,
        ],
        Lock::Shared => &[USED + CONSISTENT_READ, UNSHARED + WRITE, UNSHARED + RESIZE],
        Lock::None => &[],
    };
    bytes.iter().try_for_each(|&byte| {
        let flock = describe(libc::F_RDLCK, byte..byte + 1);
        retry(|| fcntl(file, FcntlArg::F_OFD_SETLK(&flock)))
    })
}

/// Whether nobody else holds what excludes `lock`.
fn is_free(file: &File, lock: Lock) -> Result<bool, Errno> {
    match lock {
        Lock::Exclusive => Ok(conflict(file, ALL)?.is_none()),
        Lock::Shared => {
            // The second question of QEMU's own readers is left out: who merely changes nothing of what is read
            // (permission 2) does no harm.
            for byte in [USED + WRITE, USED + RESIZE, UNSHARED + CONSISTENT_READ] {
                if conflict(file, byte..byte + 1)?.is_some_and(|found| !is_a_reader_of_all(&found)) {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Lock::None => Ok(true),
    }
}

/// Whether this is the lock of a reader on more than QEMU's bytes: NFS turns the shared `flock` of others into one.
fn is_a_reader_of_all(found: &libc::flock) -> bool {
    let reaches_past = found.l_len == 0 || found.l_start.saturating_add(found.l_len) > ALL.end;
    found.l_type == libc::F_RDLCK as libc::c_short && (found.l_start < ALL.start || reaches_past)
}

/// A lock of somebody else in `range`; locks of this open file are not seen.
fn conflict(file: &File, range: Range<libc::off_t>) -> Result<Option<libc::flock>, Errno> {
    let mut flock = describe(libc::F_WRLCK, range);
    retry(|| fcntl(file, FcntlArg::F_OFD_GETLK(&mut flock)))?;
    Ok((flock.l_type != libc::F_UNLCK as libc::c_short).then_some(flock))
}

fn describe(kind: libc::c_int, range: Range<libc::off_t>) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start,
        l_len: range.end - range.start,
        // Must be zero: a lock of a file description has no process.
        l_pid: 0,
    }
}

/// Again as long as signals interrupt it, which only network file systems let happen.
fn retry(mut call: impl FnMut() -> Result<libc::c_int, Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome.map(drop),
        }
    }
}

/// The file system has no locks, or the kernel none of this kind.
fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL)
}

fn on_smb(file: &File) -> bool {
    fstatfs(file).is_ok_and(|found| SMB_MAGICS.contains(&(found.f_type as u32)))
}

#[cfg(test)]
mod tests;
