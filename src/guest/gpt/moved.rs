//! A GUID partition table on a disk of another size.
//!
//! Owns: the bytes of both copies and of the protective record there, and the order in which they go to the disk
//! (UEFI 2.10, sections 5.2.3 and 5.3.2). Must not know: how a disk is written to.

use super::{Gpt, GptCopy, RawHeader};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::mbr::{self, Protective};
use crate::guest::{PartitionTable, ReadAt};
use std::ops::Range;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the disk, whole sectors, and where they start.
type Patch = (u64, Vec<u8>);

/// What to write so that the table fits a disk of another size. Each step is durable before the next: at any moment one
/// copy is whole, and the partitions are the same in both. It says where the other one is, unless the backup moves by less
/// than its own length: then its new place takes the old one's before the first copy can say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GptMove {
    /// First: the backup, entries before header. Nothing refers to it yet.
    pub backup: Vec<Patch>,
    /// Then, when the first copy is damaged: its entries.
    pub entries: Option<Patch>,
    /// Then its header, one sector: the moment at which the other backup counts.
    pub header: Option<Patch>,
    /// Then the protective record, one sector, when it stands alone.
    pub protective: Option<Patch>,
    /// At last the place of the former backup may be zeroed; empty when there is none, or when it is not free.
    pub former: Range<u64>,
}

impl GptMove {
    /// Whether the table fits already.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.backup.is_empty() && self.entries.is_none() && self.header.is_none() && self.protective.is_none()
    }

    /// What makes the table of `disk` fit a disk of `size` bytes. What is right already is left out. `disk` is read only.
    ///
    /// # Errors
    /// `Refused` when `disk` has no such table, the table cannot be believed, or a partition lies where its backup would;
    /// what reading answers.
    pub fn plan(disk: &dyn ReadAt, table: &PartitionTable, size: u64) -> Result<Self> {
        let refused = |why: &str| Error::new(ErrorKind::Refused, why);
        let gpt = table.gpt().ok_or_else(|| refused("the disk has no GUID partition table that could be moved"))?;
        let copy = gpt.in_force().filter(|_| table.is_readable()).ok_or_else(|| {
            refused("the GUID partition table cannot be believed").with_hint("mend it with a partitioning tool first")
        })?;
        let target =
            Target::new(gpt, copy, size).ok_or_else(|| refused("the disk is too small for its partition table"))?;
        let blocked = table.partitions().iter().find(|one| one.range.end > target.at(target.backup_entries));
        if let Some(partition) = blocked {
            let message = format_args!("partition {} lies where the backup table would", partition.number);
            return Err(refused(&message.to_string()));
        }
        Ok(Self {
            backup: target.backup(gpt),
            entries: target.entries(gpt),
            header: target.header(gpt),
            protective: target.protective(disk)?,
            former: target.former(gpt, table, disk.size()),
        })
    }
}

/// Where everything goes, in sectors.
struct Target<'a> {
    copy: &'a GptCopy,
    sector: u64,
    /// The disk's last sector: the backup's header.
    last: u64,
    backup_entries: u64,
    /// Where the first copy's entries are.
    first_entries: u64,
}

impl<'a> Target<'a> {
    fn new(gpt: &Gpt, copy: &'a GptCopy, size: u64) -> Option<Self> {
        let sector = u64::from(gpt.sector_size).max(1);
        let array = (copy.entries.len() as u64).div_ceil(sector);
        let last = size.checked_div(sector)?.checked_sub(1)?;
        let backup_entries = last.checked_sub(array)?;
        // In sector 2 by every tool; the copy that counts knows better when it is the first one.
        let first_entries = gpt.primary.as_ref().map_or(2, |primary| primary.entries_at);
        let first_end = first_entries.checked_add(array)?;
        (first_end <= copy.first_usable && copy.first_usable <= backup_entries).then_some(Self {
            copy,
            sector,
            last,
            backup_entries,
            first_entries,
        })
    }

    fn at(&self, sector: u64) -> u64 {
        sector.saturating_mul(self.sector)
    }

    /// A header that says where it and the other one are.
    fn header_bytes(&self, own: u64, other: u64, entries: u64) -> Vec<u8> {
        let mut bytes = self.copy.header.clone();
        if let Ok((mut raw, _)) = RawHeader::read_from_prefix(&bytes) {
            (raw.own, raw.other, raw.entries) = (own.into(), other.into(), entries.into());
            raw.last_usable = self.backup_entries.saturating_sub(1).into();
            for round in 0..2 {
                // The sum is over the header with its own field zero.
                raw.checksum = if round == 0 { 0.into() } else { crc32fast::hash(&bytes).into() };
                if let Some(start) = bytes.get_mut(..raw.as_bytes().len()) {
                    start.copy_from_slice(raw.as_bytes());
                }
            }
        }
        bytes
    }

    fn padded(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let len = (bytes.len() as u64).div_ceil(self.sector).saturating_mul(self.sector);
        bytes.resize(usize::try_from(len).unwrap_or(bytes.len()), 0);
        bytes
    }

    fn backup(&self, gpt: &Gpt) -> Vec<Patch> {
        let header = self.header_bytes(self.last, 1, self.backup_entries);
        let is_there =
            |copy: &GptCopy| copy.own == self.last && copy.header == header && copy.entries == self.copy.entries;
        if gpt.backup.as_ref().is_ok_and(is_there) {
            return Vec::new();
        }
        vec![
            (self.at(self.backup_entries), self.padded(self.copy.entries.clone())),
            (self.at(self.last), self.padded(header)),
        ]
    }

    fn entries(&self, gpt: &Gpt) -> Option<Patch> {
        gpt.primary.is_err().then(|| (self.at(self.first_entries), self.padded(self.copy.entries.clone())))
    }

    fn header(&self, gpt: &Gpt) -> Option<Patch> {
        let header = self.header_bytes(1, self.last, self.first_entries);
        let is_there = gpt.primary.as_ref().is_ok_and(|primary| primary.header == header);
        (!is_there).then(|| (self.at(1), self.padded(header)))
    }

    fn protective(&self, disk: &dyn ReadAt) -> Result<Option<Patch>> {
        let mut bytes = vec![0; usize::try_from(self.sector).unwrap_or(0)];
        disk.read_at(&mut bytes, 0)?;
        Ok(match mbr::protect(&mut bytes, self.last) {
            Protective::Changed => Some((0, bytes)),
            Protective::AsItWas | Protective::NotAlone => None,
        })
    }

    /// The former backup, when it lies outside the new one and outside every partition of a disk that holds both.
    fn former(&self, gpt: &Gpt, table: &PartitionTable, size: u64) -> Range<u64> {
        let Ok(old) = &gpt.backup else { return 0..0 };
        let start = self.at(old.entries_at);
        let range = start..self.at(old.own.saturating_add(1));
        let overlaps = |other: &Range<u64>| range.start < other.end && other.start < range.end;
        let behind_itself = old.entries_at > old.own || range.end > size;
        let new = self.at(self.backup_entries)..self.at(self.last.saturating_add(1));
        let first = 0..self.at(self.copy.first_usable);
        let used = table.partitions().iter().any(|partition| overlaps(&partition.range));
        if behind_itself || overlaps(&new) || overlaps(&first) || used { 0..0 } else { range }
    }
}

#[cfg(test)]
mod tests;
