//! VHD records exactly as they lie in a file: big endian, unaligned, nothing believed.
//!
//! Owns: field order and sizes (VHD 1.0), cookies, the checksum. Must not know: which values are allowed.

use crate::problem::{Fault, Problem, Structure};
use crate::units::FileOffset;
use std::fmt::Display;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Cookie of a footer and of its copy.
pub(super) const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// Cookie of a dynamic header.
pub(super) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// Cookie of the block map of the tap family.
pub(super) const BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";
/// What the tap family writes over a cookie while a journaled operation runs.
pub(super) const POISON_COOKIE: [u8; 8] = *b"v_poison";
/// Version 1.0 of the footer and of the header: the only one there is.
pub(super) const VERSION_1: u32 = 0x0001_0000;
/// An offset field that points nowhere.
pub(super) const NOWHERE: u64 = u64::MAX;
/// [`SECTOR`](crate::units::SECTOR) as the length of a buffer.
pub(super) const SECTOR_BYTES: usize = 512;
/// Length of a footer.
pub(super) const FOOTER_BYTES: usize = size_of::<RawFooter>();
/// [`FOOTER_BYTES`] in file arithmetic.
pub(super) const FOOTER_LEN: u64 = FOOTER_BYTES as u64;
/// Length of the footer of products before Virtual PC 2004: the last byte is missing (VHD 1.0).
pub(super) const SHORT_FOOTER_LEN: u64 = FOOTER_LEN - 1;
/// Length of a dynamic header.
pub(super) const HEADER_BYTES: usize = size_of::<RawHeader>();
/// [`HEADER_BYTES`] in file arithmetic.
pub(super) const HEADER_LEN: u64 = HEADER_BYTES as u64;

/// Hard disk footer (VHD 1.0, "Hard Disk Footer Format").
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawFooter {
    pub(super) cookie: [u8; 8],
    pub(super) features: U32,
    pub(super) version: U32,
    pub(super) data_offset: U64,
    pub(super) timestamp: U32,
    pub(super) creator: [u8; 4],
    pub(super) creator_version: U32,
    pub(super) creator_os: [u8; 4],
    pub(super) original_size: U64,
    pub(super) current_size: U64,
    pub(super) cylinders: U16,
    pub(super) heads: u8,
    pub(super) sectors_per_track: u8,
    pub(super) kind: U32,
    pub(super) checksum: U32,
    pub(super) unique_id: [u8; 16],
    pub(super) saved_state: u8,
    /// Reserved in VHD 1.0; the tap family marks hidden nodes of a chain here.
    pub(super) hidden: u8,
    pub(super) reserved: [u8; 426],
}

/// One of a header's eight parent locators (VHD 1.0, "Parent Locator Entries").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLocator {
    pub(super) platform: [u8; 4],
    pub(super) data_space: U32,
    pub(super) data_length: U32,
    pub(super) reserved: U32,
    pub(super) data_offset: U64,
}

/// Dynamic disk header (VHD 1.0, "Dynamic Disk Header Format").
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) cookie: [u8; 8],
    pub(super) data_offset: U64,
    pub(super) table_offset: U64,
    pub(super) version: U32,
    pub(super) max_table_entries: U32,
    pub(super) block_size: U32,
    pub(super) checksum: U32,
    pub(super) parent_unique_id: [u8; 16],
    pub(super) parent_timestamp: U32,
    pub(super) reserved1: U32,
    pub(super) parent_name: [U16; 256],
    pub(super) locators: [RawLocator; 8],
    pub(super) reserved2: [u8; 256],
}

/// Header of the tap family's block map, behind the BAT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawBatmap {
    pub(super) cookie: [u8; 8],
    pub(super) map_offset: U64,
    pub(super) map_sectors: U32,
    pub(super) version: U32,
    pub(super) checksum: U32,
    pub(super) rest: [u8; 484],
}

const _: () = assert!(SECTOR_BYTES as u64 == crate::units::SECTOR);
const _: () = assert!(size_of::<RawFooter>() == 512);
const _: () = assert!(size_of::<RawLocator>() == 24);
const _: () = assert!(size_of::<RawHeader>() == 1024);
const _: () = assert!(size_of::<RawBatmap>() == 512);
const _: () = assert!(std::mem::offset_of!(RawFooter, checksum) == 64);
const _: () = assert!(std::mem::offset_of!(RawHeader, locators) == 576);

/// The checksum of a record that holds `stored` in its own checksum field: one's complement of the sum of all other
/// bytes (VHD 1.0).
#[must_use]
pub(super) fn checksum(record: &[u8], stored: u32) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, &byte| sum.wrapping_add(u32::from(byte)));
    !sum(record).wrapping_sub(sum(&stored.to_be_bytes()))
}

impl RawFooter {
    /// The checksum these bytes should carry.
    #[must_use]
    pub(super) fn sum(&self) -> u32 {
        checksum(self.as_bytes(), self.checksum.get())
    }

    /// Writes the checksum that fits the other bytes.
    pub(super) fn seal(&mut self) {
        self.checksum = self.sum().into();
    }
}

impl RawHeader {
    /// The checksum these bytes should carry.
    #[must_use]
    pub(super) fn sum(&self) -> u32 {
        checksum(self.as_bytes(), self.checksum.get())
    }

    /// Writes the checksum that fits the other bytes.
    pub(super) fn seal(&mut self) {
        self.checksum = self.sum().into();
    }
}

/// Which record a problem is about, and where that record lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) structure: Structure,
    pub(super) at: u64,
}

impl Site {
    /// A problem with the field `field` bytes into the record.
    #[must_use]
    pub(super) fn problem(self, fault: Fault, field: usize, found: impl Display, allowed: impl Display) -> Problem {
        Problem::new(self.structure, fault, found, allowed).at(FileOffset(self.at.saturating_add(field as u64)))
    }
}
