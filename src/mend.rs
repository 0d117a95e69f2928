//! Checking and repairing, as data: what a whole-file check counted, and what a repair is going to write.
//!
//! Owns: the closed list of repairs with their names, and the steps of a plan. Must not know: any format, how a plan is
//! made, or how it is carried out.

use crate::problem::Structure;
use crate::storage::Storage;
use crate::units::FileOffset;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// What a repair mends. The first ones change nothing that a reader of the disk sees and are always part of a plan; those
/// for which [`is_safe`](Self::is_safe) is false only when they were asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum RepairKind {
    /// VHD: the footer at the end of the file, from its copy or behind the last block.
    TailFooter,
    /// VHD: the footer copy at the start of the file, from the footer.
    FooterCopy,
    /// VHD: the C/H/S geometry in the footers, where no reader takes the size from it.
    Geometry,
    /// VHD: fields of the footers or of the header that can hold one value only.
    ReservedFields,
    /// VHDX: updates that wait in the log.
    LogReplay,
    /// VHDX: a bad header, from the good one.
    Header,
    /// VHDX: a bad copy of the region table, from the good one.
    RegionTable,
    /// VHDX: offsets in block states that must have none.
    BlockOffsets,
    /// VHDX: a file length that is not whole MiB.
    FileLength,
    /// Space at the end of the file that nothing owns.
    LeakedSpace,
    /// Blocks that lie outside of the file, in whole or in part, are given up: they show what lies below, or zeros.
    UnmapLostBlocks,
    /// The file is made long enough for the blocks it should hold; what was cut off becomes zeros.
    ZeroExtend,
    /// VHDX: updates in a log that cannot be read are given up.
    DropLog,
    /// VHDX: blocks whose space something else owns too are given up; the first owner keeps it.
    UnmapSharedBlocks,
    /// VHDX: blocks of which nobody knows any more which sectors they hold show the parent.
    PartialToParent,
    /// VHDX: blocks of which nobody knows any more which sectors they hold show all of their own bytes, unless
    /// they are to show the parent.
    PartialToData,
}

impl RepairKind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::TailFooter,
        Self::FooterCopy,
        Self::Geometry,
        Self::ReservedFields,
        Self::LogReplay,
        Self::Header,
        Self::RegionTable,
        Self::BlockOffsets,
        Self::FileLength,
        Self::LeakedSpace,
        Self::UnmapLostBlocks,
        Self::ZeroExtend,
        Self::DropLog,
        Self::UnmapSharedBlocks,
        Self::PartialToParent,
        Self::PartialToData,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TailFooter => "tail-footer",
            Self::FooterCopy => "footer-copy",
            Self::Geometry => "geometry",
            Self::ReservedFields => "reserved-fields",
            Self::LogReplay => "log-replay",
            Self::Header => "header",
            Self::RegionTable => "region-table",
            Self::BlockOffsets => "block-offsets",
            Self::FileLength => "file-length",
            Self::LeakedSpace => "leaked-space",
            Self::UnmapLostBlocks => "unmap-lost-blocks",
            Self::ZeroExtend => "zero-extend",
            Self::DropLog => "drop-log",
            Self::UnmapSharedBlocks => "unmap-shared-blocks",
            Self::PartialToParent => "partial-to-parent",
            Self::PartialToData => "partial-to-data",
        }
    }

    /// Whether it changes nothing a reader of the disk sees.
    #[must_use]
    pub const fn is_safe(self) -> bool {
        !matches!(
            self,
            Self::UnmapLostBlocks
                | Self::ZeroExtend
                | Self::DropLog
                | Self::UnmapSharedBlocks
                | Self::PartialToParent
                | Self::PartialToData
        )
    }
}

impl fmt::Display for RepairKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RepairKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let unsafe_kinds: Vec<_> =
                Self::ALL.iter().filter(|kind| !kind.is_safe()).map(|kind| kind.name()).collect();
            format!("no such repair; those that must be allowed are {}", unsafe_kinds.join(", "))
        })
    }
}

/// One change of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// These bytes go here; the file grows when they reach past its end.
    Write { at: FileOffset, bytes: Vec<u8> },
    /// This range of the file becomes zeros; the file grows when it reaches past its end.
    Zero(Range<u64>),
    /// The file gets this length; what it gains is zeros.
    SetLen(u64),
    /// Everything so far is durable before anything that follows.
    Sync,
}

/// One repair: what it is, in words, and the changes that make it, in their order. Every step leaves a file that opens as
/// well as it did before, wherever it is interrupted, and ends in a [`Edit::Sync`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) kind: RepairKind,
    /// One clause, lower case, no full stop: "write the footer copy from the footer at the end".
    pub(crate) what: String,
    pub(crate) edits: Vec<Edit>,
    /// The virtual ranges, in bytes, that show other bytes afterwards. Empty for a safe repair.
    pub(crate) loses: Vec<Range<u64>>,
}

/// Something that a damaged file does not say any more, and that was taken to be so for it to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Assumption {
    /// The structure that should have said it.
    pub structure: Structure,
    /// What was assumed, in one clause.
    pub assumed: String,
    /// Why it had to be, and what speaks for it.
    pub why: String,
    /// Whether contents may be lost by it in places that nobody can name.
    pub may_lose: bool,
}

impl Assumption {
    pub(crate) fn new(structure: Structure, assumed: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self { structure, assumed: assumed.to_string(), why: why.to_string(), may_lose: false }
    }

    /// The same, one by which contents may be lost.
    pub(crate) fn that_may_lose(mut self) -> Self {
        self.may_lose = true;
        self
    }
}

/// A damaged image with what it lacks made up in memory, so that it opens.
#[derive(Clone, Debug)]
pub(crate) struct Salvaged {
    /// The file with the made up structures on top. What is lost of its data cannot be read.
    pub(crate) view: Arc<dyn Storage>,
    pub(crate) assumptions: Vec<Assumption>,
}

/// What the check of a whole file counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CheckSummary {
    /// The file's length in bytes.
    pub file_size: u64,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// Blocks that have a place in the file; 0 where the image has no blocks.
    pub allocated_blocks: u64,
    /// Bytes of the file that nothing owns.
    pub leaked_bytes: u64,
    /// How many of those lie at the end of the file, where a repair can give them back.
    pub trailing_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_repair_is_found_by_its_name() {
        for kind in RepairKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let message = "everything".parse::<RepairKind>().unwrap_err();
        assert!(message.contains("unmap-lost-blocks") && !message.contains("geometry"), "{message}");
    }
}
