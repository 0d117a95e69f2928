//! Changes that go on after one failed, failed reads that close a file, changes through a reading handle.

use super::*;
use crate::storage::MemoryStorage;
use std::sync::atomic::AtomicUsize;

/// Fails whatever is asked of it while `broken`.
#[derive(Debug, Default)]
struct Flaky {
    inner: MemoryStorage,
    broken: AtomicBool,
    syncs: AtomicUsize,
}

impl Flaky {
    fn gate(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(io::Error::other("broken")) } else { Ok(()) }
    }
}

impl Storage for Flaky {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.gate()?;
        self.inner.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.gate()?;
        self.inner.write_all_at(buf, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.gate()?;
        self.inner.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.gate()
    }
    fn share_range(&self, _: &dyn Storage, _: u64, _: u64, _: u64) -> io::Result<bool> {
        self.gate()?;
        Ok(false)
    }
    fn start_writeback(&self, _: Range<u64>) -> io::Result<()> {
        self.gate()
    }
    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.gate()?;
        self.inner.zero_range(range)
    }
    fn copy_range(&self, _: &dyn Storage, _: u64, _: u64, _: u64) -> io::Result<bool> {
        self.gate()?;
        Ok(false)
    }
}

type Change = fn(&CheckedStorage) -> io::Result<()>;

const CHANGES: [(&str, Change); 7] = [
    ("write", |storage| storage.write_all_at(b"x", 0)),
    ("set_len", |storage| storage.set_len(9)),
    ("zero_range", |storage| storage.zero_range(0..1)),
    ("copy_range", |storage| storage.copy_range(&MemoryStorage::new(), 0, 0, 1).map(drop)),
    ("share_range", |storage| storage.share_range(&MemoryStorage::new(), 0, 0, 1).map(drop)),
    ("start_writeback", |storage| storage.start_writeback(0..1)),
    ("sync", |storage| storage.sync()),
];

#[test]
fn the_first_failure_of_any_change_closes_for_all_others_and_leaves_reads() {
    for (first, fail) in CHANGES {
        let flaky = Arc::new(Flaky::default());
        let checked = CheckedStorage::writable(flaky.clone());
        for (name, change) in CHANGES {
            change(&checked).unwrap_or_else(|error| panic!("{name} before any failure: {error}"));
        }
        // A sync without a change before it would have nothing to do.
        checked.write_all_at(b"y", 0).unwrap();
        flaky.broken.store(true, Ordering::SeqCst);
        assert!(fail(&checked).is_err());
        flaky.broken.store(false, Ordering::SeqCst);
        assert!(checked.is_latched(), "{first}");
        for (name, change) in CHANGES {
            assert!(change(&checked).is_err(), "{name} went through after {first} failed");
        }
        checked.read_exact_at(&mut [0; 9], 0).unwrap();
    }
}

#[test]
fn a_sync_is_passed_on_when_something_may_have_changed() {
    let flaky = Arc::new(Flaky::default());
    let checked = CheckedStorage::writable(flaky.clone());
    let mut expected = 0;
    let mut syncs = |passed_on: bool, when: &str| {
        checked.sync().unwrap();
        expected += usize::from(passed_on);
        assert_eq!(flaky.syncs.load(Ordering::SeqCst), expected, "{when}");
    };
    syncs(true, "the first: others may have written before");
    syncs(false, "nothing since");
    for (name, change) in &CHANGES[..5] {
        change(&checked).unwrap();
        syncs(true, name);
        syncs(false, name);
    }
    checked.start_writeback(0..1).unwrap();
    syncs(false, "only asked for what is durable already");
}

#[test]
fn a_failed_read_closes_nothing() {
    let flaky = Arc::new(Flaky::default());
    let checked = CheckedStorage::writable(flaky.clone());
    checked.write_all_at(b"abc", 0).unwrap();
    flaky.broken.store(true, Ordering::SeqCst);
    assert!(checked.read_exact_at(&mut [0; 3], 0).is_err());
    flaky.broken.store(false, Ordering::SeqCst);
    assert!(!checked.is_latched());
    checked.sync().unwrap();
}

#[test]
fn a_reading_handle_changes_nothing() {
    let memory = Arc::new(MemoryStorage::from_bytes(b"abc"));
    let checked = CheckedStorage::read_only(memory.clone());
    for (name, change) in &CHANGES[..6] {
        assert_eq!(change(&checked).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem, "{name}");
    }
    checked.sync().unwrap();
    assert!(!checked.is_writable() && !checked.is_latched());
    assert_eq!(memory.to_bytes().unwrap(), b"abc");
}
