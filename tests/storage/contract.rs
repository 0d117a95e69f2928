//! Runs the conformance suite over every implementor (but the memory map, whose tests lie beside its unsafe code), and over broken ones to show that it sees them.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use vhdkit::storage::conformance::{Broken, Make, Part, run};
use vhdkit::storage::sim::SimDisk;
use vhdkit::storage::{Access, CheckedStorage, FileStorage, Lock, MemoryStorage, OverlayStorage, Storage};

fn conforms(part: Part, make: Make<'_>) {
    let broken = run(part, make);
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A new file with `bytes` in `dir`; every call another.
fn file(dir: &Path, bytes: &[u8]) -> FileStorage {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let path = dir.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
    std::fs::write(&path, bytes).unwrap();
    FileStorage::open(&path, Access::Write, Lock::Exclusive).unwrap()
}

fn memory(bytes: &[u8]) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::from_bytes(bytes))
}

#[test]
fn memory_storage() {
    conforms(Part::All, &|bytes| memory(bytes));
}

#[test]
fn file_storage() {
    let dir = tempfile::tempdir().unwrap();
    conforms(Part::All, &|bytes| Arc::new(file(dir.path(), bytes)));
}

#[test]
fn file_storage_on_shared_memory() {
    // Another file system: other answers to holes and to copies between files.
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    conforms(Part::All, &|bytes| Arc::new(file(dir.path(), bytes)));
}

#[test]
fn checked_storage() {
    conforms(Part::Reading, &|bytes| Arc::new(CheckedStorage::read_only(memory(bytes))));
    let dir = tempfile::tempdir().unwrap();
    conforms(Part::All, &|bytes| Arc::new(CheckedStorage::writable(Arc::new(file(dir.path(), bytes)))));
}

#[test]
fn overlay_storage() {
    conforms(Part::All, &|bytes| Arc::new(OverlayStorage::new(memory(bytes)).unwrap()));
    conforms(Part::All, &|bytes| {
        let overlay = OverlayStorage::new(memory(&[0xAA; 60_000])).unwrap();
        overlay.set_len(0).unwrap();
        overlay.write_all_at(bytes, 0).unwrap();
        Arc::new(overlay)
    });
}

#[test]
fn simulated_file() {
    conforms(Part::All, &|bytes| SimDisk::new().add_file("a", bytes));
}

#[test]
fn copies_between_files_go_through_the_kernel_or_say_no() {
    let dir = tempfile::tempdir().unwrap();
    let target = file(dir.path(), b"");
    assert!(!target.copy_range(&*memory(b"abc"), 0, 0, 3).unwrap());
    let source = file(dir.path(), b"abc");
    match target.copy_range(&source, 0, 5, 9) {
        Ok(copied) => assert!(!copied, "nine bytes were copied of three"),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
    }
}

#[test]
fn a_virtual_file_of_64_tib_costs_what_was_written() {
    let storage = MemoryStorage::new();
    storage.set_len(64 << 40).unwrap();
    storage.write_all_at(b"end", (64 << 40) - 3).unwrap();
    storage.zero_range(0..63 << 40).unwrap();
    assert_eq!(storage.allocated(), 4096);
    let copy = storage.clone();
    copy.write_all_at(b"x", 0).unwrap();
    assert_eq!(storage.next_data(0).unwrap(), Some((64 << 40) - 4096));
    assert_eq!(copy.next_data(0).unwrap(), Some(0));
}

/// How [`Wrong`] breaks the contract.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    ZerosPastTheEnd,
    TailSurvives,
    SkipsData,
    ZeroesTooMuch,
    TornWrites,
    CopiesNothing,
    SyncForgets,
    WritebackGrows,
    SharesNothing,
    CachesNothing,
}

/// A user's storage, on the trait's defaults, with one bug.
#[derive(Debug)]
struct Wrong {
    bytes: Mutex<Vec<u8>>,
    hidden: Mutex<Vec<u8>>,
    bug: Bug,
}

impl Wrong {
    fn with(bug: Bug) -> impl Fn(&[u8]) -> Arc<dyn Storage> {
        move |bytes| Arc::new(Self { bytes: Mutex::new(bytes.to_vec()), hidden: Mutex::default(), bug })
    }
}

impl Storage for Wrong {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes.lock().unwrap();
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(buf.len())?));
        match range.and_then(|range| bytes.get(range)) {
            Some(found) => buf.copy_from_slice(found),
            None if self.bug == Bug::ZerosPastTheEnd => buf.fill(0),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end =
            offset.checked_add(buf.len() as u64).filter(|&end| end < 1 << 30).ok_or(io::ErrorKind::InvalidInput)?;
        let mut bytes = self.bytes.lock().unwrap();
        if bytes.len() < end as usize {
            bytes.resize(end as usize, 0);
        }
        let kept = if self.bug == Bug::TornWrites { buf.len().min(4096) } else { buf.len() };
        bytes[offset as usize..offset as usize + kept].copy_from_slice(&buf[..kept]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let mut hidden = self.hidden.lock().unwrap();
        if self.bug == Bug::TailSurvives && (len as usize) < bytes.len() {
            *hidden = bytes.clone();
        }
        let old = bytes.len();
        bytes.resize(len as usize, 0);
        for at in old..bytes.len().min(hidden.len()) {
            bytes[at] = hidden[at];
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.bug == Bug::SyncForgets {
            self.bytes.lock().unwrap().clear();
        }
        Ok(())
    }

    fn read_cached_at(&self, _: &mut [u8], _: u64) -> io::Result<bool> {
        Ok(self.bug == Bug::CachesNothing)
    }

    fn start_writeback(&self, range: Range<u64>) -> io::Result<()> {
        let grows = self.bug == Bug::WritebackGrows && range.end > self.len()? && range.end < 1 << 30;
        if grows { self.set_len(range.end) } else { Ok(()) }
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        let extra = u64::from(self.bug == Bug::ZeroesTooMuch && !range.is_empty() && range.end < self.len()?);
        self.write_all_at(&vec![0; (range.end - range.start + extra) as usize], range.start)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let skip = if self.bug == Bug::SkipsData { 4096 - offset % 4096 } else { 0 };
        Ok(offset.checked_add(skip).filter(|&at| at < self.bytes.lock().unwrap().len() as u64))
    }

    fn share_unit(&self) -> io::Result<Option<u64>> {
        Ok(Some(512))
    }

    fn share_range(&self, _: &dyn Storage, _: u64, _: u64, _: u64) -> io::Result<bool> {
        Ok(self.bug == Bug::SharesNothing)
    }

    fn copy_range(&self, _: &dyn Storage, _: u64, _: u64, _: u64) -> io::Result<bool> {
        Ok(self.bug == Bug::CopiesNothing)
    }
}

#[test]
fn the_suite_sees_each_kind_of_bug() {
    conforms(Part::All, &Wrong::with(Bug::None));
    for (bug, word) in [
        (Bug::ZerosPastTheEnd, "UnexpectedEof"),
        (Bug::TailSurvives, "set_len"),
        (Bug::SkipsData, "next_data"),
        (Bug::ZeroesTooMuch, "no others"),
        (Bug::TornWrites, "a read sees"),
        (Bug::CopiesNothing, "copy_range"),
        (Bug::SyncForgets, "a sync keeps"),
        (Bug::WritebackGrows, "start_writeback"),
        (Bug::SharesNothing, "share_range"),
        (Bug::CachesNothing, "read_cached_at"),
    ] {
        let broken = run(Part::All, &Wrong::with(bug));
        assert!(broken.iter().any(|Broken { clause, .. }| clause.contains(word)), "{bug:?} shows as {broken:#?}");
    }
}
