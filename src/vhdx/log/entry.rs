//! One log entry, as bytes.
//!
//! Owns: encoding, and the rules that make an entry valid ([MS-VHDX] 2.3.1). Pure: it sees sectors, never a file.
//! Must not know: where in the ring an entry lies, or which entries are active.
//!
//! Validity is decided sector by sector ([`Check`]), so an entry of any length needs no memory. Every sector of a valid
//! entry after the first starts with a descriptor or a data signature, never with the entry signature; so two valid
//! entries never share a sector, and trying every sector of a ring as a start reads each sector at most twice.

use super::{LogArea, PAGE, Page};
use crate::guid::{Guid, RawGuid};
use crate::units::MIB;
use crate::vhdx::raw::{
    LOG_DATA_SIGNATURE, LOG_ENTRY_SIGNATURE, LOG_SECTOR_SIGNATURE, LOG_ZERO_SIGNATURE, RawDataDescriptor,
    RawDataSector, RawLogEntryHeader, RawZeroDescriptor, checksum,
};
use std::ops::Range;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Length of an entry header, in bytes.
const HEADER_LEN: u64 = size_of::<RawLogEntryHeader>() as u64;
/// Length of a descriptor, in bytes.
const DESCRIPTOR_LEN: u64 = size_of::<RawDataDescriptor>() as u64;

/// The fields of an entry header that passed its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryHeader {
    /// Length in bytes, a multiple of 4096.
    pub(crate) length: u64,
    /// Ring position of the oldest entry that was not yet known to be applied.
    pub(crate) tail: u64,
    /// Its number, greater than zero.
    pub(crate) sequence: u64,
    /// How many descriptors it has.
    pub(crate) descriptors: u64,
    /// The file was at least this long when the entry was written.
    pub(crate) flushed_file_offset: u64,
    /// The file must be at least this long once the entry is applied.
    pub(crate) last_file_offset: u64,
}

impl EntryHeader {
    /// Reads the header at the start of `sector`; `None` unless every rule that one sector can show holds.
    pub(crate) fn decode(sector: &Page, area: &LogArea) -> Option<Self> {
        let (raw, _) = RawLogEntryHeader::read_from_prefix(sector).ok()?;
        let header = Self {
            length: u64::from(raw.entry_length.get()),
            tail: u64::from(raw.tail.get()),
            sequence: raw.sequence.get(),
            descriptors: u64::from(raw.descriptor_count.get()),
            flushed_file_offset: raw.flushed_file_offset.get(),
            last_file_offset: raw.last_file_offset.get(),
        };
        let valid = raw.signature == LOG_ENTRY_SIGNATURE
            && raw.log_guid == RawGuid::from(area.guid)
            && raw.reserved.get() == 0
            && header.length > 0
            && header.length.is_multiple_of(PAGE)
            && header.length <= area.length
            && header.tail.is_multiple_of(PAGE)
            && header.tail < area.length
            && header.sequence > 0
            && header.descriptor_sectors().saturating_mul(PAGE) <= header.length
            && header.flushed_file_offset.is_multiple_of(MIB)
            && header.last_file_offset.is_multiple_of(MIB)
            && header.last_file_offset <= super::MAX_FILE_LENGTH;
        valid.then_some(header)
    }

    /// How many sectors the header and the descriptors take.
    pub(crate) const fn descriptor_sectors(&self) -> u64 {
        descriptor_sectors(self.descriptors)
    }
}

const fn descriptor_sectors(descriptors: u64) -> u64 {
    HEADER_LEN.saturating_add(descriptors.saturating_mul(DESCRIPTOR_LEN)).div_ceil(PAGE)
}

/// What one descriptor asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// Zero this range of the file.
    Zero(Range<u64>),
    /// Write the next data sector's page here, with its first eight and last four bytes put back.
    Data { offset: u64, leading: [u8; 8], trailing: [u8; 4] },
}

impl Descriptor {
    fn decode(bytes: &[u8; 32], sequence: u64, area: &LogArea) -> Option<Self> {
        let (range, number, decoded) = match *bytes.first_chunk::<4>()? {
            LOG_ZERO_SIGNATURE => {
                let raw = RawZeroDescriptor::ref_from_bytes(bytes).ok()?;
                let offset = raw.file_offset.get();
                let range = offset..offset.checked_add(raw.zero_length.get())?;
                (range.clone(), raw.sequence.get(), Self::Zero(range))
            }
            LOG_DATA_SIGNATURE => {
                let raw = RawDataDescriptor::ref_from_bytes(bytes).ok()?;
                let offset = raw.file_offset.get();
                let data = Self::Data { offset, leading: raw.leading_bytes, trailing: raw.trailing_bytes };
                (offset..offset.checked_add(PAGE)?, raw.sequence.get(), data)
            }
            _ => return None,
        };
        let aligned = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
        (aligned && number == sequence && area.may_write(&range)).then_some(decoded)
    }
}

/// The descriptors in descriptor sector `index` of an entry; `None` when one of them is not valid.
pub(crate) fn descriptors(sector: &Page, index: u64, header: &EntryHeader, area: &LogArea) -> Option<Vec<Descriptor>> {
    let before = descriptors_before(index);
    let here = descriptors_before(index.checked_add(1)?).min(header.descriptors).checked_sub(before)?;
    let skip = if index == 0 { HEADER_LEN } else { 0 };
    sector
        .get(usize::try_from(skip).ok()?..)?
        .as_chunks::<32>()
        .0
        .iter()
        .take(usize::try_from(here).ok()?)
        .map(|bytes| Descriptor::decode(bytes, header.sequence, area))
        .collect()
}

/// How many descriptors fit in the first `sectors` sectors of an entry.
const fn descriptors_before(sectors: u64) -> u64 {
    match sectors.saturating_mul(PAGE).checked_sub(HEADER_LEN) {
        Some(room) => room / DESCRIPTOR_LEN,
        None => 0,
    }
}

/// Whether `sector` is a data sector of entry `sequence`.
fn is_data_sector(sector: &Page, sequence: u64) -> bool {
    let Ok(raw) = RawDataSector::ref_from_bytes(sector) else { return false };
    let found = u64::from(raw.sequence_high.get()) << 32 | u64::from(raw.sequence_low.get());
    raw.signature == LOG_SECTOR_SIGNATURE && found == sequence
}

/// The page a data sector holds; `None` when the sector does not belong to entry `sequence`.
pub(crate) fn page(sector: &Page, sequence: u64, leading: [u8; 8], trailing: [u8; 4]) -> Option<Page> {
    if !is_data_sector(sector, sequence) {
        return None;
    }
    let mut page = *sector;
    *page.first_chunk_mut::<8>()? = leading;
    *page.last_chunk_mut::<4>()? = trailing;
    Some(page)
}

/// The validity check of one entry, fed sector by sector.
#[derive(Debug)]
pub(crate) struct Check {
    header: EntryHeader,
    expected: u32,
    crc: u32,
    seen: u64,
    data: u64,
}

impl Check {
    /// Starts with the entry's first sector; `None` when no valid entry starts there.
    pub(crate) fn begin(sector: &Page, area: &LogArea) -> Option<Self> {
        let header = EntryHeader::decode(sector, area)?;
        let (raw, rest) = RawLogEntryHeader::read_from_prefix(sector).ok()?;
        let blank = RawLogEntryHeader { checksum: U32::ZERO, ..raw };
        let crc = crc32c::crc32c_append(crc32c::crc32c(blank.as_bytes()), rest);
        let mut check = Self { header, expected: raw.checksum.get(), crc, seen: 1, data: 0 };
        check.count(&descriptors(sector, 0, &header, area)?);
        Some(check)
    }

    fn count(&mut self, descriptors: &[Descriptor]) {
        let data = descriptors.iter().filter(|one| matches!(one, Descriptor::Data { .. })).count();
        self.data = self.data.saturating_add(data as u64);
    }

    /// How many sectors are still to come.
    pub(crate) const fn remaining(&self) -> u64 {
        (self.header.length / PAGE).saturating_sub(self.seen)
    }

    /// Takes the next sector; `None` when it makes the entry invalid.
    pub(crate) fn feed(&mut self, sector: &Page, area: &LogArea) -> Option<()> {
        if self.seen < self.header.descriptor_sectors() {
            self.count(&descriptors(sector, self.seen, &self.header, area)?);
        } else if !is_data_sector(sector, self.header.sequence) {
            return None;
        }
        self.crc = crc32c::crc32c_append(self.crc, sector);
        self.seen = self.seen.saturating_add(1);
        Some(())
    }

    /// The header, if all sectors were seen, their number is what the descriptors ask for, and the checksum is right.
    pub(crate) fn finish(self) -> Option<EntryHeader> {
        let sectors = self.header.descriptor_sectors().saturating_add(self.data);
        let whole = self.remaining() == 0 && sectors.saturating_mul(PAGE) == self.header.length;
        (whole && self.crc == self.expected).then_some(self.header)
    }
}

/// An entry to be written. Zero ranges are applied before pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) guid: Guid,
    pub(crate) sequence: u64,
    pub(crate) tail: u64,
    pub(crate) flushed_file_offset: u64,
    pub(crate) last_file_offset: u64,
    /// Ranges to zero, multiples of 4096 at both ends.
    pub(crate) zeros: &'a [Range<u64>],
    /// File offsets, multiples of 4096, and what goes there.
    pub(crate) pages: &'a [(u64, &'a Page)],
}

/// The length in bytes of an entry with that many zero ranges and pages.
pub(crate) const fn encoded_len(zeros: u64, pages: u64) -> u64 {
    descriptor_sectors(zeros.saturating_add(pages)).saturating_add(pages).saturating_mul(PAGE)
}

impl Draft<'_> {
    /// The entry's bytes, or `None` when it is longer than the format's 32-bit length can say.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let count = self.zeros.len().checked_add(self.pages.len())?;
        let length = encoded_len(self.zeros.len() as u64, self.pages.len() as u64);
        let mut header = RawLogEntryHeader {
            signature: LOG_ENTRY_SIGNATURE,
            checksum: U32::ZERO,
            entry_length: U32::new(u32::try_from(length).ok()?),
            tail: U32::new(u32::try_from(self.tail).ok()?),
            sequence: U64::new(self.sequence),
            descriptor_count: U32::new(u32::try_from(count).ok()?),
            reserved: U32::ZERO,
            log_guid: RawGuid::from(self.guid),
            flushed_file_offset: U64::new(self.flushed_file_offset),
            last_file_offset: U64::new(self.last_file_offset),
        };
        let mut bytes = Vec::with_capacity(usize::try_from(length).ok()?);
        bytes.extend_from_slice(header.as_bytes());
        for range in self.zeros {
            let raw = RawZeroDescriptor {
                signature: LOG_ZERO_SIGNATURE,
                reserved: U32::ZERO,
                zero_length: U64::new(range.end.checked_sub(range.start)?),
                file_offset: U64::new(range.start),
                sequence: U64::new(self.sequence),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        for (offset, page) in self.pages {
            let raw = RawDataDescriptor {
                signature: LOG_DATA_SIGNATURE,
                trailing_bytes: *page.last_chunk()?,
                leading_bytes: *page.first_chunk()?,
                file_offset: U64::new(*offset),
                sequence: U64::new(self.sequence),
            };
            bytes.extend_from_slice(raw.as_bytes());
        }
        bytes.resize(bytes.len().checked_next_multiple_of(4096)?, 0);
        let sequence = self.sequence.to_le_bytes();
        let (low, high) = (sequence.first_chunk::<4>()?, sequence.last_chunk::<4>()?);
        for (_, page) in self.pages {
            bytes.extend_from_slice(&LOG_SECTOR_SIGNATURE);
            bytes.extend_from_slice(high);
            bytes.extend_from_slice(page.get(8..4092)?);
            bytes.extend_from_slice(low);
        }
        header.checksum = U32::new(checksum(&bytes));
        bytes.get_mut(..header.as_bytes().len())?.copy_from_slice(header.as_bytes());
        Some(bytes)
    }
}
