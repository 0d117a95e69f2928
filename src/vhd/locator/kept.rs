//! A link kept outside of its file, to be put back.
//!
//! Owns: the form it is kept in. Must not know: when it is put back, in which order that is written.
//!
//! ```text
//! 0    4  "vhdl"            4   16  id of the parent      20  4  its time
//! 24  512 the parent's name as the header has it          536 1  locators
//! 537     locators: 4 platform code, 4 data space, 4 length, then the data; numbers big endian
//! ```

use super::{Composed, MAX_LOCATOR_LEN, NAME_UNITS};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SECTOR;
use crate::vhd::header::Header;
use crate::vhd::raw::{RawLocator, SECTOR_BYTES};
use crate::vhd::store::Store;
use zerocopy::IntoBytes;

const MAGIC: [u8; 4] = *b"vhdl";

/// The link in `header` and its locators' data. A locator that is broken is left out, as readers do.
///
/// # Errors
/// What the storage answers.
pub(in crate::vhd) fn keep(store: &Store, header: &Header) -> Result<Vec<u8>> {
    let (id, timestamp, name) = header.parent_fields();
    let mut bytes = Vec::from(MAGIC);
    bytes.extend(id);
    bytes.extend(timestamp.to_be_bytes());
    bytes.extend(name.as_bytes());
    let len = store.len()?;
    let readable = |locator: &&RawLocator| {
        let end = locator.data_offset.get().checked_add(locator.data_length.get().into());
        let fits = end.is_some_and(|end| end <= len) && u64::from(locator.data_length.get()) <= MAX_LOCATOR_LEN;
        locator.platform != [0; 4] && locator.data_offset.get() >= SECTOR && fits
    };
    let locators: Vec<&RawLocator> = header.locators().iter().filter(readable).collect();
    bytes.push(u8::try_from(locators.len()).unwrap_or(0));
    for locator in locators {
        let mut data = vec![0; usize::try_from(locator.data_length.get()).unwrap_or(0)];
        store.read("a parent locator", &mut data, locator.data_offset.get())?;
        bytes.extend(locator.platform);
        bytes.extend(locator.data_space.get().to_be_bytes());
        bytes.extend(locator.data_length.get().to_be_bytes());
        bytes.extend(data);
    }
    Ok(bytes)
}

/// A link that was kept.
#[derive(Debug)]
pub(in crate::vhd) struct Kept {
    pub(in crate::vhd) id: [u8; 16],
    pub(in crate::vhd) timestamp: u32,
    name: Vec<u16>,
    /// Platform code, data space and data of each locator.
    locators: Vec<([u8; 4], u32, Vec<u8>)>,
}

impl Kept {
    /// # Errors
    /// `InvalidInput` when `bytes` are no link of a VHD.
    pub(in crate::vhd) fn parse(bytes: &[u8]) -> Result<Self> {
        let other = || Error::new(ErrorKind::InvalidInput, "this is not the kept link of a VHD");
        Self::read(bytes).ok_or_else(other)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (id, rest) = rest.split_first_chunk::<16>()?;
        let (timestamp, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(NAME_UNITS.checked_mul(2)?)?;
        let (count, mut rest) = rest.split_first()?;
        if *magic != MAGIC || *count > 8 {
            return None;
        }
        let mut locators = Vec::new();
        for _ in 0..*count {
            let (platform, tail) = rest.split_first_chunk::<4>()?;
            let (space, tail) = tail.split_first_chunk::<4>()?;
            let (len, tail) = tail.split_first_chunk::<4>()?;
            let len = u32::from_be_bytes(*len);
            if u64::from(len) > MAX_LOCATOR_LEN {
                return None;
            }
            let (data, tail) = tail.split_at_checked(usize::try_from(len).ok()?)?;
            locators.push((*platform, u32::from_be_bytes(*space), data.to_vec()));
            rest = tail;
        }
        let name = name.chunks_exact(2).map(|unit| unit.iter().fold(0, |sum, &byte| sum << 8 | u16::from(byte)));
        rest.is_empty().then(|| Self {
            id: *id,
            timestamp: u32::from_be_bytes(*timestamp),
            name: name.collect(),
            locators,
        })
    }

    /// The locators with their data from `at` (a multiple of 512) on, in whole sectors.
    pub(in crate::vhd) fn compose(&self, at: u64) -> Result<Composed> {
        let mut composed =
            Composed { entries: [RawLocator::default(); 8], name: self.name.clone(), areas: Vec::new(), end: at };
        for (entry, (platform, space, data)) in composed.entries.iter_mut().zip(&self.locators) {
            let mut bytes = data.clone();
            bytes.resize(bytes.len().next_multiple_of(SECTOR_BYTES), 0);
            // The room that was kept behind the data is not kept again: nothing else would know that it is taken.
            let room = u32::try_from(bytes.len()).unwrap_or(0);
            let data_space = if u64::from(*space) < SECTOR { *space } else { room };
            *entry = RawLocator {
                platform: *platform,
                data_space: data_space.into(),
                data_length: u32::try_from(data.len()).unwrap_or(0).into(),
                reserved: 0.into(),
                data_offset: composed.end.into(),
            };
            let start = composed.end;
            composed.end = start.saturating_add(bytes.len() as u64);
            composed.areas.push((start, bytes));
        }
        Ok(composed)
    }
}
