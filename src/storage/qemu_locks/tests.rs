//! A QEMU that is not noticed or does not notice us, readers that take each other for one.

use super::*;
use crate::ErrorKind;
use crate::storage::{Access, FileStorage};
use std::path::{Path, PathBuf};

/// Who uses permissions `used` and lets nobody else use `unshared`, as QEMU says it; on an open file of its own.
struct Qemu(File);

impl Qemu {
    fn with(path: &Path, bytes: &[libc::off_t]) -> Self {
        let qemu = Self::with_nothing(path);
        for &byte in bytes {
            qemu.lock(libc::F_RDLCK, byte..byte + 1);
        }
        qemu
    }

    fn with_nothing(path: &Path) -> Self {
        Self(File::options().read(true).write(true).open(path).unwrap())
    }

    fn lock(&self, kind: libc::c_int, range: Range<libc::off_t>) {
        fcntl(&self.0, FcntlArg::F_OFD_SETLK(&describe(kind, range))).unwrap();
    }

    /// The bytes of others that it sees.
    fn sees(&self) -> Vec<libc::off_t> {
        (0..400).filter(|&byte| conflict(&self.0, byte..byte + 1).unwrap().is_some()).collect()
    }
}

fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhdx");
    std::fs::write(&path, b"shorter than the locked bytes").unwrap();
    (dir, path)
}

/// Opening beside somebody else: refused by name, or not.
fn is_given(path: &Path, lock: Lock) -> bool {
    match FileStorage::open(path, Access::Read, lock) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!((error.kind(), error.path()), (ErrorKind::InUse, Some(path)));
            assert!(error.to_string().contains("QEMU"), "{error}");
            assert!(error.hint().is_some());
            false
        }
    }
}

#[test]
fn a_qemu_is_noticed_by_what_it_locks() {
    let (_dir, path) = image();
    // Locked bytes, and whether Exclusive and Shared are given beside them.
    let cases: [(&[libc::off_t], bool, bool); 17] = [
        (&[], true, true),
        (&[100], false, true),
        (&[101], false, false),
        (&[102], false, true),
        (&[103], false, false),
        (&[200], false, false),
        (&[201], false, true),
        (&[202], false, true),
        (&[203], false, true),
        // A running guest, a server that reads, a server that lets others write, and a tool that shares everything.
        (&[100, 101, 103, 201, 203], false, false),
        (&[100, 201, 203], false, true),
        (&[100, 101, 203], false, false),
        (&[100, 102], false, true),
        // The edges of the range in which locks are QEMU's.
        (&[99], true, true),
        (&[299], false, true),
        (&[300], true, true),
        (&[0, 1, 99, 300, 4096], true, true),
    ];
    for (bytes, exclusive, shared) in cases {
        let qemu = Qemu::with(&path, bytes);
        assert_eq!(is_given(&path, Lock::Exclusive), exclusive, "exclusive beside {bytes:?}");
        assert_eq!(is_given(&path, Lock::Shared), shared, "shared beside {bytes:?}");
        assert!(is_given(&path, Lock::None), "unlocked beside {bytes:?}");
        assert!(qemu.sees().is_empty(), "a refused or closed file holds nothing");
        drop(qemu);
        assert!(is_given(&path, Lock::Exclusive), "after {bytes:?}");
    }
}

#[test]
fn a_file_that_came_open_is_asked_about_too() {
    let (_dir, path) = image();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let _qemu = Qemu::with(&path, &[100, 101]);
    let error = FileStorage::from_file(file, &path, Lock::Exclusive).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
}

/// As a process has it that was forked while the file was open.
#[test]
fn a_second_handle_of_the_open_file_keeps_no_lock() {
    let (_dir, path) = image();
    let qemu = Qemu::with_nothing(&path);
    for lock in [Lock::Exclusive, Lock::Shared] {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let forked = file.try_clone().unwrap();
        let held = FileStorage::from_file(file, &path, lock).unwrap();
        let beside = FileStorage::open(&path, Access::Write, Lock::Exclusive).unwrap_err();
        assert_eq!(beside.kind(), ErrorKind::InUse, "{lock:?}");
        drop(held);
        assert!(is_given(&path, Lock::Exclusive), "{lock:?}");
        assert!(qemu.sees().is_empty(), "{lock:?}");
        drop(forked);
    }
}

#[test]
fn qemu_notices_what_is_held_here() {
    let (_dir, path) = image();
    let qemu = Qemu::with_nothing(&path);
    for (lock, bytes) in [
        (Lock::Exclusive, &[100, 101, 103, 200, 201, 202, 203][..]),
        (Lock::Shared, &[100, 201, 203]),
        (Lock::None, &[]),
    ] {
        let held = FileStorage::open(&path, Access::Write, lock).unwrap();
        assert_eq!(qemu.sees(), bytes, "{lock:?}");
        drop(held);
        assert!(qemu.sees().is_empty(), "after {lock:?}");
    }
    let fresh = path.with_extension("new");
    let held = FileStorage::create_new(&fresh).unwrap();
    assert_eq!(Qemu::with_nothing(&fresh).sees(), [100, 101, 103, 200, 201, 202, 203]);
    drop(held);
}

#[test]
fn readers_do_not_take_each_other_for_qemu() {
    let (_dir, path) = image();
    let readers: Vec<_> = (0..3).map(|_| FileStorage::open(&path, Access::Read, Lock::Shared).unwrap()).collect();
    assert_eq!(Qemu::with_nothing(&path).sees(), [100, 201, 203]);
    drop(readers);
    assert!(is_given(&path, Lock::Exclusive));
}

#[test]
fn a_lock_on_more_than_qemus_bytes_counts_as_what_it_is() {
    let (_dir, path) = image();
    for (kind, range, exclusive, shared) in [
        // A whole file (`l_len` of zero reaches to the end of all files).
        (libc::F_RDLCK, 0..0, false, true),
        (libc::F_RDLCK, 100..100, false, true),
        (libc::F_RDLCK, 0..200, false, true),
        (libc::F_RDLCK, 100..300, false, false),
        (libc::F_WRLCK, 0..0, false, false),
        (libc::F_WRLCK, 100..101, false, false),
        (libc::F_WRLCK, 150..151, false, true),
    ] {
        let other = Qemu::with_nothing(&path);
        other.lock(kind, range.clone());
        assert_eq!(is_given(&path, Lock::Exclusive), exclusive, "exclusive beside {kind} on {range:?}");
        assert_eq!(is_given(&path, Lock::Shared), shared, "shared beside {kind} on {range:?}");
    }
}

#[test]
fn a_file_that_cannot_be_locked_says_so_and_one_without_locks_goes_on() {
    let (_dir, path) = image();
    let blind = File::options().write(true).open(&path).unwrap();
    let error = FileStorage::from_file(blind, &path, Lock::Exclusive).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(&*path)));
    for errno in [Errno::ENOLCK, Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EINVAL] {
        assert!(is_unsupported(errno), "{errno}");
    }
    assert!(!is_unsupported(Errno::EBADF) && !is_unsupported(Errno::EIO));
}
