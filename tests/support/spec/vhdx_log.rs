//! The VHDX log, replayed the plain way: index every valid entry, find the active sequence step by step, apply it in
//! order.
//!
//! Owns: log entries and the file as it reads after replay. All positions in the log are multiples of 4096.

use crate::support::bytes::{Bytes, Outcome, id16, le32, le64, length, take, vhdx_checksum};
use std::collections::BTreeMap;
use std::io;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Identifier and headers: no descriptor may touch them.
const UNLOGGED: u64 = 192 << 10;

/// Longer than the largest disk with all of its tables: an entry that reaches further is none.
const LONGEST: u64 = 65 << 40;

/// The answer to a log that zeroes more than this reader keeps as pages.
pub const TOO_MANY_ZEROS: &str = "more zeros than this reader keeps";
const MAX_ZEROS: u64 = 64 * MIB;

/// Where the log lies and which entries belong to it.
#[derive(Clone, Copy, Debug)]
pub struct LogPlace {
    pub offset: u64,
    pub len: u64,
    pub guid: [u8; 16],
}

/// A file with pages laid over it.
pub struct Replayed<'a> {
    base: Box<dyn Bytes + 'a>,
    base_len: u64,
    len: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl<'a> Replayed<'a> {
    /// `base` as it is.
    pub fn nothing_over(base: Box<dyn Bytes + 'a>) -> Outcome<Self> {
        let len = length(&*base)?;
        Ok(Self { base, base_len: len, len, pages: BTreeMap::new() })
    }

    fn put(&mut self, at: u64, page: Vec<u8>) {
        self.len = self.len.max(at + PAGE);
        self.pages.insert(at, page);
    }

    /// Whether replay changed anything.
    pub fn is_changed(&self) -> bool {
        !self.pages.is_empty() || self.len != self.base_len
    }
}

impl Bytes for Replayed<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from_base = self.base_len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (base, grown) = buf.split_at_mut(from_base);
        self.base.fill(offset, base)?;
        grown.fill(0);
        for (&at, page) in self.pages.range(offset.saturating_sub(PAGE - 1)..end) {
            let first = at.max(offset);
            let last = (at + PAGE).min(end);
            buf[(first - offset) as usize..(last - offset) as usize]
                .copy_from_slice(&page[(first - at) as usize..(last - at) as usize]);
        }
        Ok(())
    }
}

struct Entry {
    len: u64,
    tail: u64,
    sequence: u64,
    flushed: u64,
    last: u64,
    /// What it writes: offset and the page, or offset and a length of zeros.
    updates: Vec<Update>,
}

enum Update {
    Page(u64, Vec<u8>),
    Zeros(u64, u64),
}

/// The bytes `[at, at + len)` of the ring, wrapped.
fn around(ring: &[u8], at: u64, len: u64) -> Vec<u8> {
    (0..len / PAGE)
        .flat_map(|page| {
            let from = (at + page * PAGE) as usize % ring.len();
            &ring[from..from + PAGE as usize]
        })
        .copied()
        .collect()
}

fn read_entry(ring: &[u8], at: u64, log: &LogPlace) -> Option<Entry> {
    let header = &ring[at as usize..at as usize + 64];
    let len = u64::from(le32(header, 8));
    let tail = u64::from(le32(header, 12));
    let sequence = le64(header, 16);
    let count = u64::from(le32(header, 24));
    let paged = |value: u64| value.is_multiple_of(PAGE);
    let sound = header.starts_with(b"loge")
        && (len > 0 && paged(len) && len <= log.len)
        && (paged(tail) && tail < log.len)
        && sequence > 0
        && le32(header, 28) == 0
        && id16(header, 32) == log.guid
        && [48, 56].iter().all(|&field| le64(header, field).is_multiple_of(MIB))
        && le64(header, 56) <= LONGEST;
    if !sound {
        return None;
    }
    let described = (64 + 32 * count).div_ceil(PAGE) * PAGE;
    let bytes = around(ring, at, len);
    if described > len || le32(&bytes, 4) != vhdx_checksum(&bytes, 4) {
        return None;
    }
    let mut data = bytes[described as usize..].chunks_exact(PAGE as usize);
    let mut updates = Vec::new();
    for number in 0..count {
        let descriptor = &bytes[64 + 32 * number as usize..][..32];
        updates.push(read_descriptor(descriptor, &mut data, sequence, log)?);
    }
    let (flushed, last) = (le64(header, 48), le64(header, 56));
    data.next().is_none().then_some(Entry { len, tail, sequence, flushed, last, updates })
}

fn read_descriptor(
    descriptor: &[u8],
    data: &mut dyn Iterator<Item = &[u8]>,
    sequence: u64,
    log: &LogPlace,
) -> Option<Update> {
    let at = le64(descriptor, 16);
    let is_zero = descriptor.starts_with(b"zero");
    let len = if is_zero { le64(descriptor, 8) } else { PAGE };
    let end = at.checked_add(len)?;
    let in_log = end > at && at < log.offset + log.len && end > log.offset;
    let out_of_place = at < UNLOGGED || end > LONGEST || in_log;
    if le64(descriptor, 24) != sequence || !at.is_multiple_of(PAGE) || out_of_place {
        return None;
    }
    if is_zero {
        return len.is_multiple_of(PAGE).then_some(Update::Zeros(at, len));
    }
    let sector = data.next()?;
    let written = u64::from(le32(sector, 4)) << 32 | u64::from(le32(sector, 4092));
    if !descriptor.starts_with(b"desc") || !sector.starts_with(b"data") || written != sequence {
        return None;
    }
    let mut page = sector.to_vec();
    page[..8].copy_from_slice(&descriptor[8..16]);
    page[4092..].copy_from_slice(&descriptor[4..8]);
    Some(Update::Page(at, page))
}

/// The entries from the tail of the active sequence to its head, found step by step as the page says: from each place in
/// turn follow the entries for as long as their numbers go up by one; what was followed counts when its last entry's tail
/// is in it; the greatest last number wins.
fn active(mut entries: BTreeMap<u64, Entry>, ring: u64) -> Option<Vec<Entry>> {
    let mut best: Option<Vec<u64>> = None;
    let (mut start, mut steps) = (0, 0);
    loop {
        let mut run: Vec<u64> = Vec::new();
        let (mut at, mut total) = (start, 0);
        while let Some(entry) = entries.get(&at) {
            let follows = run.last().is_none_or(|last| entries[last].sequence.checked_add(1) == Some(entry.sequence));
            total += entry.len;
            if !follows || total > ring {
                break;
            }
            run.push(at);
            at = (at + entry.len) % ring;
        }
        let tail = run.last().and_then(|last| run.iter().position(|&place| place == entries[last].tail));
        let next = if tail.is_some() { at } else { (start + PAGE) % ring };
        if let Some(tail) = tail {
            let number = |run: &[u64]| run.last().map(|last| entries[last].sequence);
            if best.as_ref().is_none_or(|best| number(best) < number(&run)) {
                best = Some(run.split_off(tail));
            }
        }
        steps += 1;
        if next <= start || steps > ring / PAGE {
            break;
        }
        start = next;
    }
    Some(best?.iter().map(|at| entries.remove(at).expect("each place once")).collect())
}

/// `base` as it reads once the log at `log` has been replayed.
pub fn replay<'a>(base: Box<dyn Bytes + 'a>, log: LogPlace) -> Outcome<Replayed<'a>> {
    let ring = take(&*base, log.offset, log.len)?;
    let entries = (0..log.len / PAGE)
        .filter_map(|page| Some((page * PAGE, read_entry(&ring, page * PAGE, &log)?)))
        .collect::<BTreeMap<_, _>>();
    let sequence = active(entries, log.len).ok_or("the log is named in the header but holds no valid sequence")?;
    let mut file = Replayed::nothing_over(base)?;
    let head = sequence.last().expect("a sequence has a head");
    if file.base_len < head.flushed {
        return Err(format!("the file was cut: {:#x} bytes of {:#x}", file.base_len, head.flushed));
    }
    let last = head.last;
    for entry in sequence {
        for update in entry.updates {
            match update {
                Update::Page(at, page) => file.put(at, page),
                Update::Zeros(_, len) if len > MAX_ZEROS => return Err(TOO_MANY_ZEROS.to_owned()),
                Update::Zeros(at, len) => {
                    for at in (at..at + len).step_by(PAGE as usize) {
                        file.put(at, vec![0; PAGE as usize]);
                    }
                }
            }
        }
    }
    file.len = file.len.max(last);
    Ok(file)
}
