//! What was done to the simulated disk, and what a crash leaves of one such operation.
//!
//! Owns: operations, their fates, and how a fate changes contents. Must not know: which fates are tried.

use super::fault::SimOperation;
use super::random::Random;
use crate::storage::sparse::Sparse;
use crate::units::SECTOR;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The most parts a scattered tear cuts an operation into. A zeroed range of terabytes then tears in larger parts than
/// sectors; every write up to 2 MiB tears at each sector.
const MAX_PARTS: u64 = 4096;

/// One operation on one file.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) file: usize,
    pub(super) action: Action,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Write {
        offset: u64,
        bytes: Arc<[u8]>,
    },
    Zero(Range<u64>),
    SetLen(u64),
    Sync,
    /// A sync that answered `Ok` and did nothing, as the test asked.
    SyncDropped,
    /// A sync that failed; these operations (places in the journal) will never be durable.
    SyncFailed {
        lost: Vec<usize>,
    },
}

/// One entry of a disk's journal, to find out what a sync stands between.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimStep {
    /// The name of the file.
    pub file: Arc<str>,
    /// What was done; a sync also when it was dropped or failed.
    pub operation: SimOperation,
    /// The bytes of the file it changed; for a change of length the new one, twice. Empty for a sync.
    pub range: Range<u64>,
    /// What a write wrote.
    pub bytes: Option<Arc<[u8]>>,
}

impl SimStep {
    pub(super) fn of(file: Arc<str>, action: &Action) -> Self {
        let (operation, range, bytes) = match action {
            Action::Write { bytes, .. } => (SimOperation::Write, action.range(), Some(Arc::clone(bytes))),
            Action::Zero(_) => (SimOperation::Zero, action.range(), None),
            Action::SetLen(len) => (SimOperation::SetLen, Some(*len..*len), None),
            Action::Sync | Action::SyncDropped | Action::SyncFailed { .. } => (SimOperation::Sync, None, None),
        };
        Self { file, operation, range: range.unwrap_or_default(), bytes }
    }
}

/// What becomes of an operation that no sync covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    Lost,
    Whole,
    /// Only the first so many sectors.
    First(u64),
    /// Only the last so many sectors.
    Last(u64),
    /// Sectors here and there, chosen by this seed.
    Scattered(u64),
    /// The file grew, the bytes never came.
    LengthOnly,
    /// The bytes came, the file did not grow.
    WithinLength,
}

impl Action {
    /// The bytes it changes, for those that tear.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        match self {
            Self::Write { offset, bytes } => Some(*offset..*offset + bytes.len() as u64),
            Self::Zero(range) => Some(range.clone()),
            Self::SetLen(_) | Self::Sync | Self::SyncDropped | Self::SyncFailed { .. } => None,
        }
    }

    /// How many sectors it touches.
    pub(super) fn sectors(&self) -> u64 {
        self.range().map_or(0, |range| range.end.div_ceil(SECTOR) - range.start / SECTOR)
    }

    /// The parts of it that reach a file of length `len`, as actions of their own.
    pub(super) fn survivors(&self, fate: Fate, len: u64) -> Vec<Self> {
        if fate == Fate::Lost {
            return Vec::new();
        }
        let Some(range) = self.range() else { return vec![self.clone()] };
        let mut parts = match fate {
            Fate::Whole => vec![self.clone()],
            Fate::LengthOnly if range.end > len => vec![Self::SetLen(range.end)],
            Fate::Lost | Fate::LengthOnly => Vec::new(),
            Fate::WithinLength => vec![self.part(range.start..range.end.min(len))],
            Fate::First(sectors) => {
                vec![self.part(range.start..range.end.min((range.start / SECTOR + sectors) * SECTOR))]
            }
            Fate::Last(sectors) => {
                let start = range.end.div_ceil(SECTOR).saturating_sub(sectors) * SECTOR;
                vec![self.part(range.start.max(start)..range.end)]
            }
            Fate::Scattered(seed) => self.scattered(&range, seed),
        };
        parts.retain(|part| part.range().is_none_or(|range| !range.is_empty()));
        parts
    }

    fn scattered(&self, range: &Range<u64>, seed: u64) -> Vec<Self> {
        let mut random = Random::new(seed);
        let step = self.sectors().div_ceil(MAX_PARTS) * SECTOR;
        let mut parts = Vec::new();
        let mut at = range.start / SECTOR * SECTOR;
        while at < range.end {
            if random.hit(1, 2) {
                parts.push(self.part(range.start.max(at)..range.end.min(at + step)));
            }
            at += step;
        }
        parts
    }

    /// The same change of only `range`, which lies inside [`range`](Self::range) or is empty.
    fn part(&self, range: Range<u64>) -> Self {
        let range = range.start..range.end.max(range.start);
        match self {
            Self::Write { offset, bytes } => Self::Write {
                offset: range.start,
                bytes: bytes[(range.start - offset) as usize..(range.end - offset) as usize].into(),
            },
            _ => Self::Zero(range),
        }
    }

    /// Does it to `contents`, which accepted it before or are as they were then in length.
    pub(super) fn apply(&self, contents: &mut Sparse) {
        let done = match self {
            Self::Write { offset, bytes } => contents.write(bytes, *offset),
            Self::Zero(range) => contents.zero(range.clone()),
            Self::SetLen(len) => contents.set_len(*len),
            Self::Sync | Self::SyncDropped | Self::SyncFailed { .. } => Ok(()),
        };
        debug_assert!(done.is_ok(), "only positions that were checked are recorded");
    }

    /// Does what `fate` leaves of it to `contents`.
    pub(super) fn apply_fate(&self, fate: Fate, contents: &mut Sparse) {
        if fate == Fate::Whole {
            // The common case, without a copy.
            return self.apply(contents);
        }
        for part in self.survivors(fate, contents.len()) {
            part.apply(contents);
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, bytes } => write!(f, "write of {} bytes at {offset:#x}", bytes.len()),
            Self::Zero(range) => write!(f, "zeros at {:#x}..{:#x}", range.start, range.end),
            Self::SetLen(len) => write!(f, "set length {len:#x}"),
            Self::Sync => f.write_str("sync"),
            Self::SyncDropped => f.write_str("sync (dropped)"),
            Self::SyncFailed { lost } => write!(f, "sync (failed, {} operations lost)", lost.len()),
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("lost"),
            Self::Whole => f.write_str("whole"),
            Self::First(sectors) => write!(f, "first {sectors} sectors"),
            Self::Last(sectors) => write!(f, "last {sectors} sectors"),
            Self::Scattered(seed) => write!(f, "scattered sectors (seed {seed:#x})"),
            Self::LengthOnly => f.write_str("length without bytes"),
            Self::WithinLength => f.write_str("bytes without growth"),
        }
    }
}
