//! Locks that hold off too many or too few, special files opened, identity by path, space not given back.

use super::*;

fn open(path: &Path, access: Access, lock: Lock) -> Result<FileStorage> {
    FileStorage::open(path, access, lock)
}

#[test]
fn locks_hold_off_whom_they_should() {
    use Lock::{Exclusive, None, Shared};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    fs::write(&path, b"x").unwrap();
    for (first, second, both) in [
        (Exclusive, Exclusive, false),
        (Exclusive, Shared, false),
        (Shared, Exclusive, false),
        (Shared, Shared, true),
        (Exclusive, None, true),
        (None, Exclusive, true),
    ] {
        let held = open(&path, Access::Write, first).unwrap();
        match open(&path, Access::Write, second) {
            Ok(_) => assert!(both, "{second:?} was given beside {first:?}"),
            Err(error) => {
                assert!(!both, "{second:?} was refused beside {first:?}");
                assert_eq!((error.kind(), error.path()), (ErrorKind::InUse, Some(&*path)));
                assert!(error.hint().is_some());
            }
        }
        drop(held);
        open(&path, Access::Write, Exclusive).unwrap();
    }
}

#[test]
fn a_new_file_is_held_and_never_replaces_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.vhd");
    let held = FileStorage::create_new(&path).unwrap();
    assert_eq!(open(&path, Access::Read, Lock::Shared).unwrap_err().kind(), ErrorKind::InUse);
    held.write_all_at(b"kept", 0).unwrap();
    drop(held);
    let error = FileStorage::create_new(&path).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Refused, Some(&*path)));
    assert_eq!(fs::read(&path).unwrap(), b"kept");
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    // Not by a program: while one is started it has a copy of every open file, and with it of the locks of other tests.
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&fifo, &link).unwrap();
    for (path, name) in [
        (dir.path(), "directory"),
        (&*fifo, "pipe"),
        (&*link, "pipe"),
        (&*socket, "socket"),
        (Path::new("/dev/null"), "character device"),
    ] {
        for access in [Access::Read, Access::Write] {
            let error = open(path, access, Lock::Shared).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path:?}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
    assert_eq!(open(&dir.path().join("none"), Access::Read, Lock::None).unwrap_err().kind(), ErrorKind::NotFound);
    let null = File::open("/dev/null").unwrap();
    let error = FileStorage::from_file(null, Path::new("/dev/null"), Lock::None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn identity_follows_the_file_not_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link, other) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    fs::write(&path, b"x").unwrap();
    fs::write(&other, b"x").unwrap();
    fs::hard_link(&path, &link).unwrap();
    let identity = |path: &Path| open(path, Access::Read, Lock::Shared).unwrap().identity().unwrap();
    assert_eq!(identity(&path), identity(&link));
    assert_ne!(identity(&path), identity(&other));
    assert!(open(&path, Access::Read, Lock::None).unwrap().available_space().unwrap() > 0);
}

#[test]
fn zeroing_gives_space_back_and_is_skipped_by_next_data() {
    let dir = tempfile::tempdir().unwrap();
    let storage = FileStorage::create_new(&dir.path().join("sparse")).unwrap();
    storage.write_all_at(&vec![1; 4 << 20], 0).unwrap();
    storage.zero_range(1 << 20..64 << 20).unwrap();
    storage.sync().unwrap();
    assert_eq!(storage.len().unwrap(), 64 << 20);
    let allocated = storage.as_file().unwrap().metadata().unwrap().blocks() * 512;
    assert!(allocated < 3 << 20, "{allocated} bytes are still allocated");
    assert_eq!(storage.next_data(2 << 20).unwrap(), None);
    assert_eq!(storage.next_data(64 << 20).unwrap(), None);
}

#[test]
fn writing_a_reading_handle_fails() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, b"abc").unwrap();
    let storage = open(&path, Access::Read, Lock::Shared).unwrap();
    assert!(storage.write_all_at(b"x", 0).is_err());
    assert!(storage.set_len(0).is_err());
    assert!(storage.zero_range(0..2).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"abc");
}
