//! Faults a test arms: operations that fail, syncs that lie.
//!
//! Owns: which operation a fault meets. Must not know: what a failed operation does to the disk.

use std::io;
use std::sync::Arc;

/// A kind of operation on the simulated disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimOperation {
    /// A read.
    Read,
    /// A write of bytes.
    Write,
    /// A range made zero.
    Zero,
    /// A change of the length.
    SetLen,
    /// A sync.
    Sync,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimFailure {
    /// `EIO`. A write may have changed any of its sectors; a sync loses any of the operations since the last one for good,
    /// whatever later syncs say, and the file reads without them from then on.
    Io,
    /// `EIO` too, but a sync loses every operation since the last one.
    LostWrites,
    /// `ENOSPC`. A write may have changed its first sectors; otherwise as `Io`.
    NoSpace,
    /// `UnexpectedEof`, as a file that another program cut short meanwhile. Without effect; meant for reads.
    Eof,
}

impl SimFailure {
    pub(super) fn error(self) -> io::Error {
        match self {
            Self::Io | Self::LostWrites => io::Error::other("simulated I/O error"),
            Self::NoSpace => io::Error::new(io::ErrorKind::StorageFull, "simulated full disk"),
            Self::Eof => io::Error::new(io::ErrorKind::UnexpectedEof, "simulated short read"),
        }
    }
}

/// An armed fault: the operation it meets and how that fails.
///
/// ```
/// use vhdkit::storage::sim::{SimDisk, SimFailure, SimFault, SimOperation};
/// # use vhdkit::storage::Storage;
/// let disk = SimDisk::new();
/// let file = disk.file("a.vhdx");
/// disk.inject(SimFault::nth(1, SimFailure::Io).of(SimOperation::Sync));
/// file.sync().unwrap();
/// file.sync().unwrap_err();
/// file.sync().unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct SimFault {
    failure: SimFailure,
    skip: u64,
    operation: Option<SimOperation>,
    file: Option<String>,
    from_then_on: bool,
    /// Of the matching operations after the first that failed, those that still work before each that fails.
    between: u64,
    pub(super) seed: u64,
}

impl SimFault {
    /// The operation after `skip` others that match fails (0: the next one). Without [`of`](Self::of) every operation
    /// but a read matches.
    #[must_use]
    pub fn nth(skip: u64, failure: SimFailure) -> Self {
        Self { failure, skip, operation: None, file: None, from_then_on: false, between: 0, seed: skip }
    }

    /// Only operations of this kind match.
    #[must_use]
    pub fn of(mut self, operation: SimOperation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Only operations on the file of this name match.
    #[must_use]
    pub fn on(mut self, file: &str) -> Self {
        self.file = Some(file.to_owned());
        self
    }

    /// Every matching operation after the first that failed fails too: the disk is dead, or stays full.
    #[must_use]
    pub fn from_then_on(mut self) -> Self {
        self.from_then_on = true;
        self
    }

    /// After the first that failed every `nth` matching operation fails too: a medium that answers when asked again.
    #[must_use]
    pub fn every(mut self, nth: u64) -> Self {
        self.from_then_on = true;
        self.between = nth.saturating_sub(1);
        self
    }

    /// Chooses which parts a failing operation changes or loses.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn matches(&self, operation: SimOperation, file: &str) -> bool {
        self.operation.map_or(operation != SimOperation::Read, |wanted| wanted == operation)
            && self.file.as_deref().is_none_or(|wanted| wanted == file)
    }
}

/// Whether a sync of the file of that name only pretends.
pub(super) type SyncRule = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// All armed faults.
#[derive(Default)]
pub(super) struct Faults {
    armed: Vec<SimFault>,
    dropped: Vec<DropSync>,
    rule: Option<SyncRule>,
    /// How many operations failed.
    met: u64,
}

#[derive(Debug)]
struct DropSync {
    file: String,
    /// Syncs that still work before the one that is dropped; `None`: all are dropped.
    skip: Option<u64>,
}

impl Faults {
    pub(super) fn arm(&mut self, fault: SimFault) {
        self.armed.push(fault);
    }

    pub(super) fn drop_syncs(&mut self, file: &str, skip: Option<u64>) {
        self.dropped.push(DropSync { file: file.to_owned(), skip });
    }

    pub(super) fn drop_syncs_when(&mut self, rule: SyncRule) {
        self.rule = Some(rule);
    }

    pub(super) fn sync_rule(&self) -> Option<SyncRule> {
        self.rule.clone()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The failure that meets this operation, if one does, and the seed of its choices.
    pub(super) fn meet(&mut self, operation: SimOperation, file: &str) -> Option<(SimFailure, u64)> {
        let mut met = None;
        self.armed.retain_mut(|fault| {
            if met.is_some() || !fault.matches(operation, file) {
                return true;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                return true;
            }
            met = Some((fault.failure, fault.seed));
            fault.seed = fault.seed.wrapping_add(1);
            fault.skip = fault.between;
            fault.from_then_on
        });
        self.met += u64::from(met.is_some());
        met
    }

    pub(super) fn count(&self) -> u64 {
        self.met
    }

    /// Whether this sync is one that only pretends.
    pub(super) fn drops_sync(&mut self, file: &str) -> bool {
        let mut dropped = false;
        self.dropped.retain_mut(|rule| {
            if rule.file != file {
                return true;
            }
            match &mut rule.skip {
                None => dropped = true,
                Some(0) => {
                    dropped = true;
                    return false;
                }
                Some(skip) => *skip -= 1,
            }
            true
        });
        dropped
    }
}
