//! A volume as its readers see it, and the runs they find.
//!
//! Owns: reading inside a volume's bounds, fields of either byte order, joining free ranges. Must not know: any file
//! system.

use super::ReadAt;
use crate::bitmap::{self, BitOrder};
use crate::error::Error;
use std::fmt;
use std::ops::Range;

/// The most bytes one structure is read in.
const MAX_READ: u64 = 1 << 20;

/// Why a volume's free space was not read to the end.
#[derive(Debug)]
pub(super) enum Stop {
    /// It cannot be believed.
    Doubt(String),
    /// The disk could not be read.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// `Err` of a volume that cannot be believed for the reason given.
pub(super) fn doubt<T>(why: impl fmt::Display) -> Result<T, Stop> {
    Err(Stop::Doubt(why.to_string()))
}

/// `Ok` when `holds`; else the doubt.
pub(super) fn require(holds: bool, why: impl fmt::Display) -> Result<(), Stop> {
    if holds { Ok(()) } else { doubt(why) }
}

/// A part of a disk.
pub(super) struct Part<'a> {
    disk: &'a dyn ReadAt,
    range: Range<u64>,
}

impl<'a> Part<'a> {
    /// `range` of `disk`, cut at its end.
    pub(super) fn new(disk: &'a dyn ReadAt, range: Range<u64>) -> Self {
        let end = range.end.min(disk.size());
        Self { disk, range: range.start.min(end)..end }
    }

    /// Its length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Whether `bytes` lie at `at`.
    pub(super) fn has(&self, at: u64, bytes: &[u8]) -> crate::error::Result<bool> {
        if at.checked_add(bytes.len() as u64).is_none_or(|end| end > self.size()) {
            return Ok(false);
        }
        let mut here = vec![0; bytes.len()];
        self.disk.read_at(&mut here, self.range.start.saturating_add(at))?;
        Ok(here == bytes)
    }

    /// Fills `buf` from `at`.
    pub(super) fn fill(&self, buf: &mut [u8], at: u64) -> Result<(), Stop> {
        if at.checked_add(buf.len() as u64).is_none_or(|end| end > self.size()) {
            return doubt(format_args!("{} bytes at {at} lie outside the volume of {} bytes", buf.len(), self.size()));
        }
        Ok(self.disk.read_at(buf, self.range.start.saturating_add(at))?)
    }

    /// `len` bytes at `at`, up to 1 MiB.
    pub(super) fn bytes(&self, at: u64, len: u64) -> Result<Bytes, Stop> {
        require(len <= MAX_READ, format_args!("a structure of {len} bytes"))?;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.fill(&mut bytes, at)?;
        Ok(Bytes(bytes))
    }
}

/// A structure's bytes. Fields outside of them are a doubt.
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], Stop> {
        let field = self.0.get(at..).and_then(|rest| rest.first_chunk::<N>());
        field
            .copied()
            .ok_or_else(|| Stop::Doubt(format!("a structure of {} bytes without a field at {at}", self.0.len())))
    }

    pub(super) fn part(&self, range: Range<usize>) -> Result<&[u8], Stop> {
        let all = self.0.len();
        self.0.get(range).ok_or_else(|| Stop::Doubt(format!("a structure of {all} bytes that should be longer")))
    }

    pub(super) fn u8(&self, at: usize) -> Result<u8, Stop> {
        Ok(self.field::<1>(at)?[0])
    }

    pub(super) fn le16(&self, at: usize) -> Result<u16, Stop> {
        self.field(at).map(u16::from_le_bytes)
    }

    pub(super) fn le32(&self, at: usize) -> Result<u32, Stop> {
        self.field(at).map(u32::from_le_bytes)
    }

    pub(super) fn le64(&self, at: usize) -> Result<u64, Stop> {
        self.field(at).map(u64::from_le_bytes)
    }

    pub(super) fn be16(&self, at: usize) -> Result<u16, Stop> {
        self.field(at).map(u16::from_be_bytes)
    }

    pub(super) fn be32(&self, at: usize) -> Result<u32, Stop> {
        self.field(at).map(u32::from_be_bytes)
    }

    pub(super) fn be64(&self, at: usize) -> Result<u64, Stop> {
        self.field(at).map(u64::from_be_bytes)
    }
}

/// Free ranges on their way out, neighbours joined.
pub(super) struct Runs<'a> {
    start: u64,
    size: u64,
    pending: Range<u64>,
    total: u64,
    visit: &'a mut dyn FnMut(Range<u64>),
}

impl<'a> Runs<'a> {
    pub(super) fn new(part: &Part<'_>, visit: &'a mut dyn FnMut(Range<u64>)) -> Self {
        Self { start: part.range.start, size: part.size(), pending: 0..0, total: 0, visit }
    }

    /// Adds a free range, in bytes of the volume, that lies behind those before.
    pub(super) fn push(&mut self, range: Range<u64>) -> Result<(), Stop> {
        if range.start < self.pending.end || range.end < range.start || range.end > self.size {
            return doubt(format_args!(
                "free space at bytes {} to {} is out of order or outside",
                range.start, range.end
            ));
        }
        self.total = self.total.saturating_add(range.end.saturating_sub(range.start));
        if range.start == self.pending.end {
            self.pending.end = range.end;
        } else {
            self.send();
            self.pending = range;
        }
        Ok(())
    }

    /// Adds what `bits` say is free by a bit that is not set: bit 0 stands for the `unit` bytes at `at`, and `count` bits
    /// count. Answers how many are not set.
    pub(super) fn push_clear(&mut self, bits: &[u8], count: u64, at: u64, unit: u64) -> Result<u64, Stop> {
        let (mut bit, mut free) = (0u64, 0u64);
        while bit < count {
            let (set, run) = bitmap::run(bits, BitOrder::LsbFirst, bit..count);
            require(run > 0, "a bitmap that ends too early")?;
            if !set {
                let start = at.saturating_add(bit.saturating_mul(unit));
                self.push(start..start.saturating_add(run.saturating_mul(unit)))?;
                free = free.saturating_add(run);
            }
            bit = bit.saturating_add(run);
        }
        Ok(free)
    }

    fn send(&mut self) {
        if !self.pending.is_empty() {
            let in_disk = |at: u64| self.start.saturating_add(at);
            let range = in_disk(self.pending.start)..in_disk(self.pending.end);
            (self.visit)(range);
        }
    }

    /// The last range goes out; answers the bytes of all.
    pub(super) fn finish(mut self) -> u64 {
        self.send();
        self.total
    }
}
