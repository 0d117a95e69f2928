//! A cache that reads a page twice, holds too many, or serves what was there before a change.

use super::*;
use crate::storage::MemoryStorage;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the reads that get through to the storage.
#[derive(Debug)]
struct Counting {
    inner: MemoryStorage,
    reads: AtomicU64,
}

impl Storage for Counting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(buf, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn counting(bytes: &[u8]) -> Arc<Counting> {
    Arc::new(Counting { inner: MemoryStorage::from_bytes(bytes), reads: AtomicU64::new(0) })
}

#[test]
fn a_page_is_read_once_while_it_fits() {
    let storage = counting(&[5; 64 * PAGE]);
    let pages = Pages::new(storage.clone(), 64);
    for _ in 0..3 {
        for number in 0..64 {
            assert_eq!(*pages.read(number * PAGE_BYTES).unwrap(), [5; PAGE]);
        }
    }
    assert_eq!(storage.reads.load(Ordering::SeqCst), 64);
    let kept: usize = (0..16).map(|shard| pages.shard(shard).slots.len()).sum();
    assert_eq!(kept, 64);
}

#[test]
fn never_holds_more_than_its_capacity() {
    let pages = Pages::new(counting(&[5; 400 * PAGE]), 32);
    for number in (0..400).chain(100..300) {
        pages.read(number * PAGE_BYTES).unwrap();
    }
    for shard in 0..16 {
        let shard = pages.shard(shard);
        assert!(shard.slots.len() == 2 && shard.index.len() == 2);
    }
}

#[test]
fn the_page_at_the_end_is_zero_filled_and_read_anew() {
    let storage = counting(&[5; PAGE + 10]);
    let pages = Pages::new(storage.clone(), 16);
    let page = pages.read(PAGE_BYTES).unwrap();
    assert!(page[..10] == [5; 10] && page[10..].iter().all(|&byte| byte == 0));
    storage.write_all_at(&[6; 10], PAGE_BYTES + 10).unwrap();
    assert_eq!(pages.read(PAGE_BYTES).unwrap()[10..20], [6; 10]);
    assert_eq!(pages.read(2 * PAGE_BYTES).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(pages.read(1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(pages.put(1, &[0; PAGE]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(pages.storage().len().unwrap(), PAGE_BYTES + 20);
}

/// Changes the page below, and says so, in the middle of a read of it.
#[derive(Debug, Default)]
struct ChangedWhileRead {
    inner: MemoryStorage,
    pages: std::sync::OnceLock<std::sync::Weak<Pages>>,
}

impl Storage for ChangedWhileRead {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, offset)?;
        if buf[0] == 1 {
            self.inner.write_all_at(&[2; PAGE], offset)?;
            self.pages.get().unwrap().upgrade().unwrap().forget(&(offset..offset + 1));
        }
        Ok(())
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(buf, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_read_that_raced_a_change_is_not_kept() {
    let storage = Arc::new(ChangedWhileRead { inner: MemoryStorage::from_bytes(&[1; PAGE]), ..Default::default() });
    let pages = Arc::new(Pages::new(storage.clone(), 16));
    storage.pages.set(Arc::downgrade(&pages)).unwrap();
    pages.read(0).unwrap();
    assert_eq!(pages.read(0).unwrap()[0], 2);
}

proptest! {
    #[test]
    fn reads_as_the_storage_below(
        steps in proptest::collection::vec((0u8..4, 0u64..80, 1u64..5000, any::<u8>()), 1..80),
    ) {
        let storage = counting(&[9; 80 * PAGE]);
        let pages = Pages::new(storage.clone(), 32);
        for (kind, number, len, fill) in steps {
            let offset = number * PAGE_BYTES;
            match kind {
                0 => {
                    storage.write_all_at(&[fill; PAGE], offset).unwrap();
                    pages.put(offset, &[fill; PAGE]).unwrap();
                }
                1 => {
                    let range = offset + fill as u64..(offset + fill as u64 + len).min(80 * PAGE_BYTES);
                    storage.write_all_at(&vec![fill; (range.end - range.start) as usize], range.start).unwrap();
                    pages.forget(&range);
                }
                2 if fill == 0 => pages.forget(&(0..u64::MAX)),
                _ => {
                    let mut want = vec![0; (len.min(80 * PAGE_BYTES - offset)) as usize];
                    let mut got = want.clone();
                    storage.read_exact_at(&mut want, offset).unwrap();
                    pages.read_exact_at(&mut got, offset).unwrap();
                    prop_assert!(got == want);
                }
            }
        }
        for number in 0..80 {
            let mut want = [0; PAGE];
            storage.read_exact_at(&mut want, number * PAGE_BYTES).unwrap();
            prop_assert!(*pages.read(number * PAGE_BYTES).unwrap() == want);
        }
    }
}
