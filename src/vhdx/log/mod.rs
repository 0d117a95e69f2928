//! The VHDX log: the ring that makes metadata updates atomic.
//!
//! Owns: where the log lies, what an entry is ([`entry`]), which entries are active ([`ring`]), and applying them
//! ([`replay`]). Must not know: what the logged pages mean (BAT, bitmaps, metadata).

pub(crate) mod entry;
pub(crate) mod replay;
pub(crate) mod ring;

use super::raw::MAX_LOG_LEN;
use crate::guid::Guid;
use crate::units::MIB;
use std::ops::Range;

/// The unit of the log and of logged pages, in bytes ([MS-VHDX] 2.3).
pub(crate) const PAGE: u64 = crate::vhdx::raw::LOG_PAGE;

/// One log sector, or one page of metadata.
pub(crate) type Page = [u8; 4096];

/// The longest file a log entry may ask for: the largest disk (64 TiB) with room for all the metadata it can need.
pub(crate) const MAX_FILE_LENGTH: u64 = 65 << 40;

/// The first bytes of the file a log entry must leave alone: the identifier and both headers.
pub(crate) const HEADER_AREA: u64 = 192 << 10;

/// Where the log lies and whose entries count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogArea {
    /// File offset, a multiple of 1 MiB.
    pub(crate) offset: u64,
    /// Length in bytes, a multiple of 1 MiB.
    pub(crate) length: u64,
    /// The header's LogGuid; entries of other sessions are not read.
    pub(crate) guid: Guid,
}

impl LogArea {
    /// The bytes of the file it takes.
    pub(crate) const fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length)
    }

    /// The ring position `bytes` after `at`.
    pub(crate) fn advance(&self, at: u64, bytes: u64) -> u64 {
        at.saturating_add(bytes).checked_rem(self.length).unwrap_or(0)
    }

    /// The ring position `bytes` (at most the ring's length) before `at`.
    pub(crate) fn before(&self, at: u64, bytes: u64) -> u64 {
        self.advance(at.saturating_add(self.length).saturating_sub(bytes), 0)
    }

    /// The file offset of ring position `at`.
    pub(crate) const fn file_offset(&self, at: u64) -> u64 {
        self.offset.saturating_add(at)
    }

    /// Whether an entry may write `range` of the file: behind the headers, outside the log, inside the limit.
    pub(crate) fn may_write(&self, range: &Range<u64>) -> bool {
        let log = self.range();
        range.start >= HEADER_AREA
            && range.end <= MAX_FILE_LENGTH
            && (range.is_empty() || range.end <= log.start || range.start >= log.end)
    }

    /// Whether position and length are as the format asks, and short enough to search.
    pub(crate) fn is_sound(&self) -> bool {
        self.offset >= MIB
            && self.offset.is_multiple_of(MIB)
            && self.length >= MIB
            && self.length.is_multiple_of(MIB)
            && self.length <= MAX_LOG_LEN as u64
            && self.offset <= MAX_FILE_LENGTH
    }
}

#[cfg(test)]
mod tests;
