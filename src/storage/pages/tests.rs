//! A cache that reads a page twice, holds too many, or serves what was there before a change.

use super::*;
use crate::storage::MemoryStorage;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

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

const PAGE_BYTES: u64 = PAGE as u64;
const WORDS: usize = PAGE / 8;

/// How many pages are in the cache.
fn kept(pages: &Pages) -> usize {
    let numbers = pages.sets.iter().filter_map(OnceLock::get).flat_map(|set| &set.numbers);
    numbers.filter(|number| number.load(Ordering::SeqCst) != NONE).count()
}

#[test]
fn a_page_is_read_once_while_it_fits() {
    let storage = counting(&[5; 64 * PAGE]);
    let pages = Pages::new(storage.clone(), 64);
    for _ in 0..3 {
        for number in 0..32 {
            assert_eq!(*pages.read(number * PAGE_BYTES).unwrap(), [5; PAGE]);
        }
    }
    assert_eq!(storage.reads.load(Ordering::SeqCst), 32);
    assert_eq!(kept(&pages), 32);
}

/// The bitmaps of blocks of 2 MiB, as VHD files have them 4104 or 4097 sectors apart, and those that lie one behind the
/// other: half of what fits is never too much for the set it falls to.
#[test]
fn pages_a_fixed_step_apart_are_spread_evenly() {
    let pages = Pages::of_unit(counting(&[]), 512, 4096);
    for step in [1, 8, 513, 4096, 4097, 4104, 65_536 + 8] {
        let mut held = vec![0; pages.sets.len()];
        (0..2048).for_each(|page| held[pages.set_of(page * step + 3)] += 1);
        assert!(held.iter().all(|&held| held <= WAYS), "{step}: {:?}", held.iter().max());
    }
}

#[test]
fn never_holds_more_than_its_capacity() {
    let pages = Pages::new(counting(&[5; 400 * PAGE]), 32);
    for number in (0..400).chain(100..300) {
        pages.read(number * PAGE_BYTES).unwrap();
    }
    assert_eq!(kept(&pages), 32);
    assert!(pages.sets.len() * WAYS == 32, "there is no room for more");
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

/// A page of one number: whoever sees two saw a page that never was.
fn page_of(number: u64) -> Page {
    let mut page = [0; PAGE];
    page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = number.to_le_bytes());
    page
}

#[test]
fn readers_beside_writers_and_evictions_see_whole_pages() {
    let pages = Pages::new(counting(&[0; 64 * PAGE]), WAYS);
    let put = |number: u64, value: u64| {
        pages.storage().write_all_at(&page_of(value), number * PAGE_BYTES).unwrap();
        pages.put(number * PAGE_BYTES, &page_of(value)).unwrap();
    };
    thread::scope(|scope| {
        for seed in 0..3 {
            let pages = &pages;
            scope.spawn(move || {
                for step in 0..20_000u64 {
                    // Two pages that are written all the time, and others that take their places.
                    let number = if step % 4 == 0 { 2 + (step * 7 + seed) % 62 } else { step % 2 };
                    let seen = pages.look_whole(number * PAGE_BYTES, |words| {
                        let first = words.word(0);
                        (first, (1..WORDS).all(|index| words.word(index) == first))
                    });
                    let (first, whole) = seen.unwrap();
                    assert!(whole, "a page of {first:#x} and something else");
                    assert!(number < 2 || first == 0);
                }
            });
        }
        for value in 1..2_000u64 {
            put(value % 2, value);
            let seen = pages.read((value % 2) * PAGE_BYTES).unwrap();
            assert!(*seen == page_of(value), "an owner sees what it wrote");
            if value % 5 == 0 {
                pages.forget(&(0..u64::MAX));
            }
        }
    });
}

#[test]
fn the_length_is_asked_for_when_it_may_have_changed() {
    let storage = counting(&[5; 10 * PAGE]);
    let pages = Pages::new(storage.clone(), 16);
    let end = 10 * PAGE_BYTES;
    assert!(pages.reaches(end).unwrap() && !pages.reaches(end + 1).unwrap());
    storage.set_len(end + 1).unwrap();
    assert!(pages.reaches(end + 1).unwrap(), "others made it longer");
    storage.set_len(PAGE_BYTES).unwrap();
    pages.forget(&(PAGE_BYTES..u64::MAX));
    assert!(pages.reaches(PAGE_BYTES).unwrap() && !pages.reaches(PAGE_BYTES + 1).unwrap());
}

/// Changes the page below, and says so, in the middle of a read of it.
#[derive(Debug, Default)]
struct ChangedWhileRead {
    inner: MemoryStorage,
    pages: OnceLock<std::sync::Weak<Pages>>,
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

#[test]
fn small_pages_are_read_alone() {
    let bytes: Vec<u8> = (0..3 * 512u32 + 100).map(|byte| (byte / 7) as u8).collect();
    let storage = counting(&bytes);
    let pages = Pages::of_unit(storage.clone(), 512, 64);
    let mut got = vec![0; 700];
    for _ in 0..2 {
        pages.read_exact_at(&mut got, 400).unwrap();
        assert!(got == bytes[400..1100]);
    }
    assert_eq!(storage.reads.load(Ordering::SeqCst), 3);
    let words = pages.look(3 * 512, |words| [words.word(11), words.word(12), words.word(63), words.word(64)]).unwrap();
    assert_eq!(words[0].to_le_bytes(), bytes[3 * 512 + 88..3 * 512 + 96]);
    assert_eq!(words[1].to_le_bytes()[..4], bytes[3 * 512 + 96..]);
    assert!(words[1] >> 32 == 0 && words[2..] == [0, 0], "zeros past the end of the file");
    assert_eq!(pages.look(100, |_| ()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
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
