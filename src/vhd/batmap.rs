//! The tap family's batmap: one bit per block, set when the block's bitmap need not be looked at.
//!
//! Owns: finding it and reading its bits. Must not know: BAT entries or bitmaps.
//!
//! This crate always reads the bitmaps. What matters here is that readers who trust the map are not misled by what this
//! crate writes: an allocation whose bit is already set, and any change that takes sectors away, drop the map by naming
//! another creator in the footers, which is one sector each and cannot tear.

use super::raw::{BATMAP_COOKIE, RawBatmap, Site};
use super::store::Store;
use crate::bitmap::{self, BitOrder};
use crate::error::Result;
use crate::finding::{Findings, Severity};
use crate::problem::{Fault, Problem, Structure};
use crate::units::SECTOR;
use std::mem::offset_of;
use std::ops::Range;
use zerocopy::{FromZeros, IntoBytes};

/// The newest version of the map that is known (1.2).
const MAX_VERSION: u32 = 0x0001_0002;
/// The last version that summed the map's bytes as signed numbers.
const VERSION_SUMMED_SIGNED: u32 = 0x0001_0001;

/// A batmap that is there and in its place.
#[derive(Clone, Debug)]
pub(super) struct Batmap {
    header_end: u64,
    map: Range<u64>,
    /// Of the map's bytes.
    checksum: u32,
    version: u32,
}

impl Batmap {
    /// Looks for the map's header at `at`, behind the padded BAT.
    ///
    /// # Errors
    /// What the storage answers; a header that is not there or cannot be believed is noted.
    pub(super) fn read(store: &Store, at: u64, file_len: u64, findings: &mut Findings) -> Result<Option<Self>> {
        let site = Site { structure: Structure::VhdBatmap, at };
        let mut raw = RawBatmap::new_zeroed();
        if at.checked_add(raw.as_bytes().len() as u64).is_some_and(|end| end <= file_len) {
            store.read("the batmap header", raw.as_mut_bytes(), at)?;
        }
        if raw.cookie != BATMAP_COOKIE {
            let found = format_args!("{:02x?}", raw.cookie);
            findings.note(Severity::Error, site.problem(Fault::Signature, 0, found, "the cookie `tdbatmap`"));
            return Ok(None);
        }
        if raw.version.get() > MAX_VERSION {
            let found = format_args!("version {:#010x}", raw.version);
            let field = offset_of!(RawBatmap, version);
            findings.note(Severity::Error, site.problem(Fault::Unsupported, field, found, "at most 0x00010002"));
            return Ok(None);
        }
        let start = raw.map_offset.get();
        let end = start.checked_add(u64::from(raw.map_sectors.get()).saturating_mul(SECTOR));
        let Some(end) = end.filter(|&end| end <= file_len) else {
            let found = format_args!("a map of {} sectors at file offset {start:#x}", raw.map_sectors);
            let field = offset_of!(RawBatmap, map_offset);
            findings.note(Severity::Error, site.problem(Fault::Range, field, found, "a map inside the file"));
            return Ok(None);
        };
        Ok(Some(Self {
            header_end: at.saturating_add(raw.as_bytes().len() as u64),
            map: start..end,
            checksum: raw.checksum.get(),
            version: raw.version.get(),
        }))
    }

    /// Where the last of its header and its map ends.
    pub(super) fn end(&self) -> u64 {
        self.map.end.max(self.header_end)
    }

    /// Its header, which starts at `at`, and its map.
    pub(super) fn ranges(&self, at: u64) -> [Range<u64>; 2] {
        [at..self.header_end, self.map.clone()]
    }

    /// Where in the file the byte with the bit of `block` lies.
    pub(super) fn bit_at(&self, block: u64) -> u64 {
        self.map.start.saturating_add(block / 8)
    }

    /// What is wrong with the checksum of the map, if anything is; the header lies at `at`. Version 1.1 summed its bytes
    /// as signed numbers.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn misfit(&self, store: &Store, at: u64) -> Result<Option<Problem>> {
        /// Read at a time.
        const STEP_BYTES: usize = 64 << 10;
        let mut buffer = vec![0; STEP_BYTES];
        let (mut unsigned, mut signed) = (0u32, 0u32);
        let mut next = self.map.start;
        while next < self.map.end {
            let len = self.map.end.saturating_sub(next).min(STEP_BYTES as u64);
            let Some(part) = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)) else { break };
            store.read("the batmap", part, next)?;
            for &byte in part.iter() {
                unsigned = unsigned.wrapping_add(u32::from(byte));
                signed = signed.wrapping_add(i32::from(byte.cast_signed()).cast_unsigned());
            }
            next = next.saturating_add(len);
        }
        let fits = self.checksum == !unsigned || (self.version <= VERSION_SUMMED_SIGNED && self.checksum == !signed);
        let site = Site { structure: Structure::VhdBatmap, at };
        Ok((!fits).then(|| {
            let allowed = format_args!("{:#010x}, the sum of the map's bytes", !unsigned);
            site.problem(
                Fault::Checksum,
                offset_of!(RawBatmap, checksum),
                format_args!("{:#010x}", self.checksum),
                allowed,
            )
        }))
    }

    /// Whether the map says that every sector of `block` is there. Blocks past its end are not.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn says_full(&self, store: &Store, block: u64) -> Result<bool> {
        let at = self.map.start.saturating_add(block / 8);
        if at >= self.map.end {
            return Ok(false);
        }
        let mut byte = [0];
        store.read_cached("the batmap", &mut byte, at)?;
        Ok(bitmap::get(&byte, BitOrder::MsbFirst, block % 8))
    }
}
