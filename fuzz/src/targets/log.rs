//! Replaying a VHDX log made by the input: sequences that wrap, lap, tear, end, overlap in the ring and in the file.
//!
//! Owns: encoding log entries, by the format page and without the crate.

use super::open::judge;
use crate::damage::keep;
use crate::guarded::Guarded;
use crate::input::Input;
use crate::second::replayed;
use crate::subjects::VHDX;
use crate::support::bytes::{le64, vhdx_checksum};
use crate::views::{self, first_difference};
use std::ops::Range;
use vhdkit::storage::{Access, MemoryStorage, Storage};

const PAGE: u64 = 4096;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const LOG: Range<u64> = MIB..2 * MIB;
/// The most entries one input writes.
const MAX_ENTRIES: usize = 8;
/// The most updates of one entry.
const MAX_UPDATES: usize = 6;
const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
/// Files up to this size are compared byte for byte after replay.
const COMPARED: u64 = 24 * MIB;

/// A log over one of the VHDX images.
pub(super) fn replay(data: &[u8]) {
    let mut input = Input::new(data);
    let subject = &VHDX[[0, 2, 3][input.below(3)]];
    let file = subject.fresh();
    let guid = [0x99; 16];
    let mut at = u64::from(input.byte()) * PAGE % MIB;
    let mut sequence = [1, 5, u64::from(u32::MAX) - 1, u64::MAX - 3, 1 << 40][input.below(5)];
    let first = at;
    for number in 0..MAX_ENTRIES {
        if input.is_empty() && number > 0 {
            break;
        }
        let entry = entry(&mut input, &file, (guid, sequence), (first, at));
        let len = entry.len() as u64;
        put_ring(&file, at, &entry);
        match input.byte() % 12 {
            // A gap in the ring or in the numbers ends a sequence; so does a torn sector.
            0 => at += PAGE * (1 + u64::from(input.byte() % 8)),
            1 => sequence = sequence.wrapping_add(u64::from(input.byte())),
            2 => put_ring(&file, at + u64::from(input.short()) % len, &[input.byte()]),
            3 => sequence = sequence.wrapping_sub(1),
            _ => {}
        }
        at = (at + len) % MIB;
        sequence = sequence.wrapping_add(1);
    }
    name_log(&file, guid, &mut input);
    keep(&file);
    judge(&file, &[]);
    replay_in_place(&file);
}

/// Both headers name the log; sometimes one alone does, and the other is older.
fn name_log(file: &MemoryStorage, guid: [u8; 16], input: &mut Input<'_>) {
    let only = input.byte() % 8;
    for (number, at) in (0u8..).zip(HEADERS) {
        let mut header = vec![0; PAGE as usize];
        file.read_exact_at(&mut header, at).expect("a header");
        if only >= 2 || only == number {
            header[48..64].copy_from_slice(&guid);
        }
        let sequence = le64(&header, 8);
        header[8..16].copy_from_slice(&(sequence + u64::from(only == number)).to_le_bytes());
        let sum = vhdx_checksum(&header, 4);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&header, at).expect("memory takes writes");
    }
}

/// Writes `bytes` into the ring from position `at` on.
fn put_ring(file: &MemoryStorage, at: u64, bytes: &[u8]) {
    for (number, part) in (0..).zip(bytes.chunks(PAGE as usize)) {
        let place = LOG.start + (at + number * PAGE) % MIB;
        let room = (LOG.end - place).min(part.len() as u64);
        file.write_all_at(&part[..room as usize], place).expect("memory takes writes");
    }
}

fn entry(
    input: &mut Input<'_>,
    file: &MemoryStorage,
    (guid, sequence): ([u8; 16], u64),
    (first, at): (u64, u64),
) -> Vec<u8> {
    let (mut descriptors, mut data) = (Vec::new(), Vec::new());
    let count = input.below(MAX_UPDATES + 1);
    for _ in 0..count {
        let place = place(input, file);
        let number = sequence.to_le_bytes();
        if input.one_in(4) {
            let pages = [1, 1, 2, 16, 256, 300, 1 << 12, 1 << 30][input.below(8)];
            descriptors.extend_from_slice(b"zero\0\0\0\0");
            descriptors.extend((pages * PAGE).to_le_bytes());
        } else {
            let page = page(input, file, place);
            descriptors.extend_from_slice(b"desc");
            descriptors.extend_from_slice(&page[4092..]);
            descriptors.extend_from_slice(&page[..8]);
            data.extend_from_slice(b"data");
            data.extend_from_slice(&number[4..]);
            data.extend_from_slice(&page[8..4092]);
            data.extend_from_slice(&number[..4]);
        }
        descriptors.extend(place.to_le_bytes());
        descriptors.extend(number);
    }
    let described = (64 + descriptors.len()).next_multiple_of(PAGE as usize);
    let tail = [first, first, first, at, at, u64::from(input.byte()) * PAGE][input.below(6)];
    let len = file.len().expect("memory has a length") / MIB * MIB;
    let (less, more) = (input.byte(), input.byte());
    let flushed = if less < 200 { len } else { u64::from(less - 200) * MIB };
    let last = if more < 200 { len } else { u64::from(more - 200) * MIB };
    let mut bytes = Vec::with_capacity(described + data.len());
    bytes.extend_from_slice(b"loge\0\0\0\0");
    bytes.extend(((described + data.len()) as u32).to_le_bytes());
    bytes.extend((tail as u32).to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend((count as u64).to_le_bytes());
    bytes.extend(guid);
    bytes.extend(flushed.to_le_bytes());
    bytes.extend(last.to_le_bytes());
    bytes.extend(descriptors);
    bytes.resize(described, 0);
    bytes.extend(data);
    let sum = vhdx_checksum(&bytes, 4);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Where an update goes: any structure, a block, the end of the file, and where none may go.
fn place(input: &mut Input<'_>, file: &MemoryStorage) -> u64 {
    let len = file.len().expect("memory has a length");
    let few = u64::from(input.byte() % 4);
    let places = [
        2 * MIB,
        2 * MIB,
        3 * MIB,
        3 * MIB,
        4 * MIB,
        192 * KIB,
        256 * KIB,
        5 * MIB,
        len,
        len + MIB,
        LOG.start,
        64 * KIB,
        0,
    ];
    let start = if input.one_in(8) { u64::from(input.word()) } else { places[input.below(places.len())] };
    start / PAGE * PAGE + few * PAGE
}

/// What goes there: what is there already with some words changed, so that a table stays a table.
fn page(input: &mut Input<'_>, file: &MemoryStorage, place: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    if file.read_exact_at(&mut page, place).is_err() {
        page.fill(input.byte());
    }
    for _ in 0..input.below(4) {
        let at = if input.flag() { usize::from(input.byte() % 8) * 8 } else { usize::from(input.short() % 512) * 8 };
        let old = le64(&page, at);
        let new = match input.byte() % 4 {
            0 => old & !7 | u64::from(input.byte() % 8),
            1 => u64::from(input.byte() % 16) << 20 | u64::from(input.byte() % 8),
            2 => old.wrapping_add(u64::from(input.byte())),
            _ => input.long(),
        };
        page[at..at + 8].copy_from_slice(&new.to_le_bytes());
    }
    let is_table = [192 * KIB, 256 * KIB].contains(&place);
    if is_table {
        let mut table = vec![0; (64 * KIB) as usize];
        file.read_exact_at(&mut table, place).expect("a region table");
        table[..PAGE as usize].copy_from_slice(&page);
        let sum = vhdx_checksum(&table, 4);
        page[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    page
}

/// A writing open applies the log; what it leaves in the file is what the second reader replays in memory.
fn replay_in_place(file: &MemoryStorage) {
    let guarded = Guarded::for_writing(file);
    let Ok(chain) = views::open(guarded.clone(), &[], Access::Write) else { return };
    drop(chain);
    let Ok(wanted) = replayed(file) else { return };
    let ours = guarded.contents();
    let len = ours.len().expect("memory has a length");
    assert_eq!(len, wanted.length(), "the length of the replayed file");
    let owned = |at: u64| LOG.contains(&at) || (64 * KIB..192 * KIB).contains(&at);
    for at in (0..len.min(COMPARED)).step_by((64 * KIB) as usize).filter(|&at| !owned(at)) {
        let mut found = vec![0; (len - at).min(64 * KIB) as usize];
        ours.read_exact_at(&mut found, at).expect("inside the file");
        let wanted = wanted.read(at, found.len()).expect("the second reader's own file");
        assert!(found == wanted, "replayed at {at:#x}: {}", first_difference(&found, &wanted));
    }
}
