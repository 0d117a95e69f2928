//! The log against vectors, against the naive search, and against hostile rings.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::entry::{self, Check, Descriptor, Draft, EntryHeader, encoded_len};
use super::replay::find_active;
use super::ring::{self, Placed, RingReader};
use super::{LogArea, PAGE, Page};
use crate::error::ErrorKind;
use crate::finding::Findings;
use crate::guid::Guid;
use crate::storage::Storage;
use crate::units::MIB;
use proptest::prelude::*;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A file of bytes that counts what is read.
#[derive(Debug, Default)]
struct Bytes {
    bytes: Mutex<Vec<u8>>,
    read: AtomicU64,
}

impl Bytes {
    fn new(len: u64) -> Self {
        Self { bytes: Mutex::new(vec![0; len as usize]), read: AtomicU64::new(0) }
    }

    fn snapshot(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Storage for Bytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let bytes = self.bytes.lock().unwrap();
        let from = bytes.get(offset as usize..offset as usize + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let end = offset as usize + buf.len();
        let len = bytes.len().max(end);
        bytes.resize(len, 0);
        bytes[offset as usize..end].copy_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let bytes = self.bytes.lock().unwrap();
        let data = bytes.get(offset as usize..).unwrap_or_default().iter().position(|byte| *byte != 0);
        Ok(data.map(|skip| offset + skip as u64))
    }
}

fn guid(last: u128) -> Guid {
    Guid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_ee00 + last)
}

fn area(sectors: u64) -> LogArea {
    LogArea { offset: MIB, length: sectors * PAGE, guid: guid(0xFF) }
}

fn draft<'a>(area: &LogArea, sequence: u64, tail: u64) -> Draft<'a> {
    Draft { guid: area.guid, sequence, tail, flushed_file_offset: 0, last_file_offset: 0, zeros: &[], pages: &[] }
}

/// Writes `entry` into the ring at `at`, wrapping.
fn place(file: &Bytes, area: &LogArea, at: u64, entry: &[u8]) {
    for (index, sector) in entry.as_chunks::<4096>().0.iter().enumerate() {
        file.write_all_at(sector, area.file_offset(area.advance(at, index as u64 * PAGE))).unwrap();
    }
}

/// Decides one entry held in memory.
fn check(bytes: &[u8], area: &LogArea) -> Option<EntryHeader> {
    let sectors = bytes.as_chunks::<4096>().0;
    let mut check = Check::begin(&sectors[0], area)?;
    for sector in &sectors[1..] {
        check.feed(sector, area)?;
    }
    check.finish()
}

#[test]
fn the_empty_entry_is_the_vector() {
    let area = area(256);
    let entry =
        Draft { flushed_file_offset: 0x40_0000, last_file_offset: 0x40_0000, ..draft(&area, 1, 0) }.encode().unwrap();
    assert_eq!(entry.len(), 4096);
    assert_eq!(entry[4..8], 0x6384_8303u32.to_le_bytes());
    assert_eq!(check(&entry, &area).unwrap().sequence, 1);
}

/// Bug this finds: a log of a gigabyte read from end to end on every open, though it is one hole.
#[test]
fn holes_of_a_long_log_are_not_read() {
    let area = area(16_384);
    let file = Bytes::new(area.range().end + MIB);
    for at in [5 * PAGE, area.length - PAGE] {
        place(&file, &area, at, &draft(&area, at, at).encode().unwrap());
    }
    let found = ring::index(&mut RingReader::new(&file, area)).unwrap();
    assert_eq!(found.iter().map(|one| one.at).collect::<Vec<_>>(), [5 * PAGE, area.length - PAGE]);
    let read = file.read.load(Ordering::Relaxed);
    assert!(read <= MIB, "{read} bytes of 64 MiB");
}

/// The naive search: the specification's steps, one by one, over an index of valid entries.
fn naive(entries: &[Placed], area: &LogArea) -> Vec<Placed> {
    let at = |position: u64| entries.iter().find(|one| one.at == position).copied();
    let (mut tail, mut old_tail) = (0, 0);
    let mut best: Vec<Placed> = Vec::new();
    loop {
        let mut run: Vec<Placed> = Vec::new();
        let (mut head, mut length) = (tail, 0);
        while let Some(entry) = at(head) {
            let follows = run.last().is_none_or(|last| entry.header.sequence == last.header.sequence + 1);
            if !follows || length + entry.header.length > area.length {
                break;
            }
            run.push(entry);
            length += entry.header.length;
            head = area.advance(head, entry.header.length);
        }
        let first = run.last().and_then(|last| run.iter().position(|one| one.at == last.header.tail));
        let next = if let Some(first) = first {
            if best.last().is_none_or(|best| run.last().unwrap().header.sequence > best.header.sequence) {
                best = run[first..].to_vec();
            }
            tail + length
        } else {
            tail + PAGE
        };
        let wrapped = next >= area.length;
        tail = next % area.length;
        if wrapped || tail < old_tail {
            return best;
        }
        old_tail = tail;
    }
}

/// Every valid entry at every sector, each decided on its own.
fn naive_index(file: &Bytes, area: &LogArea) -> Vec<Placed> {
    let bytes = file.snapshot();
    let ring = &bytes[area.offset as usize..][..area.length as usize];
    let twice = [ring, ring].concat();
    let mut found = Vec::new();
    for at in (0..area.length).step_by(PAGE as usize) {
        let first: &Page = twice[at as usize..].first_chunk().unwrap();
        let Some(header) = EntryHeader::decode(first, area) else { continue };
        if check(&twice[at as usize..][..header.length as usize], area).is_some() {
            found.push(Placed { at, header });
        }
    }
    found
}

/// A page that may look like anything the log looks for.
fn pages() -> impl Strategy<Value = Page> {
    let head = prop_oneof![Just(*b"loge"), Just(*b"data"), Just(*b"desc"), Just(*b"zero"), any::<[u8; 4]>()];
    (head, any::<u8>(), any::<[u8; 4]>()).prop_map(|(head, fill, end)| {
        let mut page = [fill; 4096];
        page[..4].copy_from_slice(&head);
        page[4092..].copy_from_slice(&end);
        page
    })
}

#[derive(Clone, Debug)]
struct Step {
    pages: usize,
    zeros: usize,
    advance_tail: bool,
    stale: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0usize..5, 0usize..3, any::<bool>(), prop::bool::weighted(0.05))
        .prop_map(|(pages, zeros, advance_tail, stale)| Step { pages, zeros, advance_tail, stale });
    prop::collection::vec(step, 1..40)
}

/// Writes the steps' entries one behind the other around the ring, as a writer would, with now and then one of another
/// session between them.
fn fill(file: &Bytes, area: &LogArea, steps: &[Step], sequence: u64) {
    let (mut head, mut tail) = (0, 0);
    for (number, step) in (sequence..).zip(steps) {
        let held: Vec<Page> = (0..step.pages).map(|page| [page as u8; 4096]).collect();
        let pages: Vec<(u64, &Page)> =
            held.iter().enumerate().map(|(index, page)| (8 * MIB + index as u64 * PAGE, page)).collect();
        let zeros: Vec<Range<u64>> =
            (0..step.zeros as u64).map(|index| (9 + index) * MIB..(10 + index) * MIB).collect();
        if step.advance_tail {
            tail = head;
        }
        let mut next = draft(area, number, tail);
        (next.pages, next.zeros) = (&pages, &zeros);
        if step.stale {
            next.guid = guid(1);
        }
        let entry = next.encode().unwrap();
        place(file, area, head, &entry);
        head = area.advance(head, entry.len() as u64);
    }
}

fn ends(run: &[Placed]) -> Option<(Placed, Placed)> {
    Some((*run.first()?, *run.last()?))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_encoded_is_decoded(
        contents in prop::collection::vec((192u64..900, pages()), 0..140),
        zeros in prop::collection::vec((600u64..900, 0u64..50), 0..140),
        sequence in 1u64.., flip in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let area = LogArea { offset: 100 * MIB, ..area(1024) };
        let pages: Vec<(u64, &Page)> = contents.iter().map(|(at, page)| (at * PAGE, page)).collect();
        let zeros: Vec<Range<u64>> = zeros.iter().map(|(at, len)| at * PAGE..(at + len) * PAGE).collect();
        let draft = Draft { pages: &pages, zeros: &zeros, ..draft(&area, sequence, 3 * PAGE) };
        let mut bytes = draft.encode().unwrap();
        prop_assert_eq!(bytes.len() as u64, encoded_len(zeros.len() as u64, pages.len() as u64));
        let header = check(&bytes, &area).unwrap();
        prop_assert_eq!((header.sequence, header.tail, header.length), (sequence, 3 * PAGE, bytes.len() as u64));

        let sectors = bytes.as_chunks::<4096>().0;
        let mut data = sectors[header.descriptor_sectors() as usize..].iter();
        let (mut got_zeros, mut got_pages) = (Vec::new(), Vec::new());
        for index in 0..header.descriptor_sectors() {
            for one in entry::descriptors(&sectors[index as usize], index, &header, &area).unwrap() {
                match one {
                    Descriptor::Zero(range) => got_zeros.push(range),
                    Descriptor::Data { offset, leading, trailing } => {
                        got_pages.push((offset, entry::page(data.next().unwrap(), sequence, leading, trailing).unwrap()));
                    }
                }
            }
        }
        prop_assert_eq!(got_zeros, zeros);
        prop_assert_eq!(got_pages, pages.iter().map(|(at, page)| (*at, **page)).collect::<Vec<_>>());

        let at = flip.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(check(&bytes, &area).is_none(), "a flipped bit in byte {} goes unseen", at);
    }

    #[test]
    fn the_search_is_the_specified_one(
        steps in steps(), sequence in 1u64..1000, old in steps(), flips in prop::collection::vec((0u64..48, 0usize..4096), 0..3),
    ) {
        let area = area(48);
        let file = Bytes::new(2 * MIB);
        fill(&file, &area, &old, 100_000);
        fill(&file, &area, &steps, sequence);
        for (sector, byte) in flips {
            let at = area.file_offset(sector * PAGE) + byte as u64;
            let mut one = [0];
            file.read_exact_at(&mut one, at).unwrap();
            file.write_all_at(&[one[0] ^ 0x10], at).unwrap();
        }
        let entries = ring::index(&mut RingReader::new(&file, area)).unwrap();
        prop_assert_eq!(&entries, &naive_index(&file, &area));
        prop_assert_eq!(ends(&ring::active(&entries, &area)), ends(&naive(&entries, &area)));
    }
}

/// Bug this finds: of two sequences that end in the same number the one chosen that the specified search does not keep,
/// so that two readers see two disks. Every order of two runs around the end of the ring, tails on both sides of it.
#[test]
fn of_sequences_that_end_in_one_number_the_one_met_first_counts() {
    let area = area(8);
    for (first, second) in (0..8u64).flat_map(|first| (0..8).map(move |second| (first, second))) {
        for (lens, tails) in [((3, 1), (0, 0)), ((3, 2), (1, 0)), ((2, 3), (1, 2)), ((3, 3), (2, 1)), ((1, 1), (0, 0))]
        {
            let file = Bytes::new(2 * MIB);
            for (start, len, tail) in [(first, lens.0, tails.0), (second, lens.1, tails.1)] {
                for number in 0..len {
                    let tail = area.advance((start + tail) % 8 * PAGE, 0);
                    let entry = draft(&area, 100 - len + number, tail).encode().unwrap();
                    place(&file, &area, (start + number) % 8 * PAGE, &entry);
                }
            }
            let entries = ring::index(&mut RingReader::new(&file, area)).unwrap();
            let (found, wanted) = (ring::active(&entries, &area), naive(&entries, &area));
            assert_eq!(ends(&found), ends(&wanted), "runs at {first} and {second}, {lens:?} {tails:?}");
        }
    }
}

/// Every sector of the ring a header that claims all of it: no sector may be read more than a few times.
#[test]
fn a_hostile_ring_is_searched_in_linear_time() {
    let area = LogArea { offset: MIB, length: 4 * MIB, guid: guid(0xFF) };
    let file = Bytes::new(6 * MIB);
    for at in (0..area.length).step_by(PAGE as usize) {
        let mut entry = draft(&area, 1 + at / PAGE, 0).encode().unwrap();
        entry[8..12].copy_from_slice(&(area.length as u32).to_le_bytes());
        entry[24..28].copy_from_slice(&130_000u32.to_le_bytes());
        let descriptor = &Draft { zeros: &[0; 126].map(|_| 6 * MIB..7 * MIB), ..draft(&area, 1 + at / PAGE, 0) };
        entry[64..].copy_from_slice(&descriptor.encode().unwrap()[64..4096]);
        file.write_all_at(&entry, area.file_offset(at)).unwrap();
    }
    let mut findings = Findings::new();
    assert_eq!(find_active(&file, &area, &mut findings).unwrap_err().kind(), ErrorKind::Corrupt);
    let read = file.read.load(Ordering::Relaxed);
    assert!(read <= 3 * area.length, "{read} bytes read");
}

/// A ring full of short entries of one run whose tail is nowhere: the naive search starts again at each of them.
#[test]
fn a_long_run_without_a_tail_is_refused_in_linear_time() {
    let area = LogArea { offset: MIB, length: 64 * MIB, guid: guid(0xFF) };
    let count = area.length / PAGE;
    let entries: Vec<Placed> = (0..count)
        .map(|index| {
            let entry = draft(&area, 1 + index, PAGE).encode().unwrap();
            let mut header = EntryHeader::decode(entry.first_chunk().unwrap(), &area).unwrap();
            header.tail = if index + 1 == count { area.length } else { 0 };
            Placed { at: index * PAGE, header }
        })
        .collect();
    assert!(ring::active(&entries, &area).is_empty());
}

#[test]
fn replay_applies_from_the_tail_on_and_again_without_harm() {
    let area = area(256);
    let file = Bytes::new(4 * MIB);
    let at = |page: u64| 3 * MIB + page * PAGE;
    let (one, two, three) = ([1; 4096], [2; 4096], [3; 4096]);
    let old = Draft { pages: &[(at(0), &one)], ..draft(&area, 7, 0) }.encode().unwrap();
    let first = Draft { pages: &[(at(1), &one), (at(2), &one)], ..draft(&area, 8, 2 * PAGE) }.encode().unwrap();
    let second = Draft {
        pages: &[(at(2), &two), (at(2000), &three)],
        zeros: &[at(1)..at(2), 5 * MIB..7 * MIB],
        last_file_offset: 16 * MIB,
        ..draft(&area, 9, 2 * PAGE)
    };
    place(&file, &area, 0, &old);
    place(&file, &area, 2 * PAGE, &first);
    place(&file, &area, 5 * PAGE, &second.encode().unwrap());
    let mut findings = Findings::new();
    let replay = find_active(&file, &area, &mut findings).unwrap();
    replay.apply(&file).unwrap();
    let bytes = file.snapshot();
    assert_eq!(bytes.len() as u64, 16 * MIB);
    let byte = |offset: u64| bytes[offset as usize];
    assert_eq!((byte(at(0)), byte(at(1)), byte(at(2)), byte(at(2000))), (0, 0, 2, 3));
    replay.apply(&file).unwrap();
    assert_eq!(file.snapshot(), bytes);
}

#[test]
fn a_file_shorter_than_the_log_relies_on_is_truncated() {
    let area = area(256);
    let file = Bytes::new(4 * MIB);
    place(&file, &area, 0, &Draft { flushed_file_offset: 5 * MIB, ..draft(&area, 1, 0) }.encode().unwrap());
    let error = find_active(&file, &area, &mut Findings::new()).unwrap_err();
    assert_eq!(error.problem().unwrap().fault, crate::problem::Fault::Truncated);
}

#[test]
fn entries_that_reach_for_the_headers_or_the_log_are_not_valid() {
    let area = area(256);
    let page = [9; 4096];
    for offset in [0, 64 << 10, MIB, MIB + 255 * PAGE, super::MAX_FILE_LENGTH] {
        let entry = Draft { pages: &[(offset, &page)], ..draft(&area, 1, 0) }.encode().unwrap();
        assert!(check(&entry, &area).is_none(), "page at {offset:#x}");
        let zeros = offset..offset + 2 * PAGE;
        let entry = Draft { zeros: std::slice::from_ref(&zeros), ..draft(&area, 1, 0) }.encode().unwrap();
        assert!(check(&entry, &area).is_none(), "zeros at {offset:#x}");
    }
    let entry = Draft { pages: &[(192 << 10, &page)], ..draft(&area, 1, 0) }.encode().unwrap();
    assert!(check(&entry, &area).is_some(), "region tables are logged");
}
