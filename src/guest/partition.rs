//! How a disk is divided.
//!
//! Owns: which kind of partition table counts, the list of partitions it gives, and what is doubtful about it.
//! Must not know: the layout of either kind (`mbr`, `gpt`), what is in a partition.

use super::gpt::{self, Gpt};
use super::{ReadAt, mbr};
use crate::error::Result;
use crate::guid::Guid;
use std::ops::Range;

/// What divides the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum TableKind {
    /// Nothing: the disk is blank, or one file system from its first byte on.
    None,
    /// A master boot record, with logical partitions in extended ones.
    Mbr,
    /// A GUID partition table (UEFI 2.10, chapter 5).
    Gpt,
}

/// What a table says a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PartitionKind {
    /// The type byte of a master boot record's entry.
    Mbr(u8),
    /// The partition type GUID.
    Gpt(Guid),
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as operating systems count: entries of the table from 1, logical partitions from 5.
    pub number: u32,
    /// Its bytes. A damaged table can name a range that ends past the disk.
    pub range: Range<u64>,
    /// What it is for.
    pub kind: PartitionKind,
    /// Why the entry is not to be believed: it shares bytes with another one, or reaches past the end of the disk.
    pub doubt: Option<String>,
}

/// How a disk is divided, as its own tables say.
#[derive(Clone, Debug)]
pub struct PartitionTable {
    pub(super) kind: TableKind,
    pub(super) partitions: Vec<Partition>,
    /// Ends of extended partitions: they hold others and are none themselves.
    pub(super) containers: Vec<Range<u64>>,
    pub(super) notes: Vec<String>,
    pub(super) readable: bool,
    pub(super) gpt: Option<Box<Gpt>>,
}

impl PartitionTable {
    /// Reads the tables of `disk`. A table that cannot be believed is no error but a table that is not
    /// [`is_readable`](Self::is_readable), with the reason among the [`notes`](Self::notes).
    ///
    /// # Errors
    /// What reading answers.
    pub fn read(disk: &dyn ReadAt) -> Result<Self> {
        let mut table = match mbr::read(disk)? {
            mbr::Found::Nothing => Self::new(TableKind::None),
            mbr::Found::Protective => gpt::read(disk)?,
            mbr::Found::Table(table) => table,
        };
        table.judge(disk.size());
        Ok(table)
    }

    pub(super) fn new(kind: TableKind) -> Self {
        Self { kind, partitions: Vec::new(), containers: Vec::new(), notes: Vec::new(), readable: true, gpt: None }
    }

    /// Notes `why` the list of partitions is not all there.
    pub(super) fn unreadable(&mut self, why: impl Into<String>) {
        self.readable = false;
        self.notes.push(why.into());
    }

    /// Which kind of table it is.
    #[must_use]
    pub fn kind(&self) -> TableKind {
        self.kind
    }

    /// The partitions, in the order of the table; extended partitions are not among them, what they hold is.
    #[must_use]
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// Whether the list of partitions is complete: a table with a bad checksum or a broken chain of logical partitions is
    /// not.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// What is odd about the table, in words.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The GUID partition table's own fields.
    #[must_use]
    pub fn gpt(&self) -> Option<&Gpt> {
        self.gpt.as_deref()
    }

    /// How many bytes the disk must have for all partitions and tables: the end of the last partition, and behind it room
    /// for a GUID partition table's backup. `None` without a table, or when it cannot be believed.
    #[must_use]
    pub fn minimum_size(&self) -> Option<u64> {
        if self.kind == TableKind::None || !self.readable {
            return None;
        }
        let ends = self.partitions.iter().map(|partition| partition.range.end);
        let end = ends.chain(self.containers.iter().map(|range| range.end)).max().unwrap_or(0);
        match &self.gpt {
            Some(gpt) => gpt.size_with_backup(end),
            None => Some(end),
        }
    }

    /// Looks at every partition beside the others and the end of the disk.
    fn judge(&mut self, size: u64) {
        let mut order: Vec<usize> = (0..self.partitions.len()).collect();
        let start = |at: &usize| self.partitions.get(*at).map_or(0, |partition| partition.range.start);
        order.sort_by_key(start);
        let mut doubts: Vec<(usize, String)> = Vec::new();
        let mut furthest: Option<(usize, u32, u64)> = None;
        for at in order {
            let Some(Partition { number, range, .. }) = self.partitions.get(at) else { continue };
            if range.end > size {
                doubts.push((at, format!("it ends at byte {} and the disk at {size}", range.end)));
            }
            if let Some((other, other_number, end)) = furthest
                && range.start < end
            {
                doubts.push((at, format!("it shares bytes with partition {other_number}")));
                doubts.push((other, format!("it shares bytes with partition {number}")));
            }
            if furthest.is_none_or(|(_, _, end)| end < range.end) {
                furthest = Some((at, *number, range.end));
            }
        }
        for (at, doubt) in doubts {
            if let Some(partition) = self.partitions.get_mut(at) {
                partition.doubt.get_or_insert(doubt);
            }
        }
    }
}

#[cfg(test)]
mod tests;
