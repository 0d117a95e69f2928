//! A file of the simulated machine.
//!
//! Owns: the way from the storage contract to the machine's operations. Must not know: what comes of them.

use super::journal::Action;
use super::{Machine, SimOperation};
use crate::storage::{MemoryStorage, Storage, end_of};
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One file of a [`SimDisk`](super::SimDisk).
pub struct SimFile {
    pub(super) machine: Arc<Mutex<Machine>>,
    pub(super) index: usize,
    pub(super) name: Arc<str>,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimFile").field(&self.name).finish()
    }
}

impl SimFile {
    /// The name it has on its disk.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A copy of what the file reads as now, in constant time.
    #[must_use]
    pub fn contents(&self) -> MemoryStorage {
        MemoryStorage::from_sparse(self.lock().files[self.index].view.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().files[self.index].view.len())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut machine = self.lock();
        machine.counts.reads += 1;
        machine.counts.bytes_read += buf.len() as u64;
        match machine.faults.meet(SimOperation::Read, &self.name) {
            Some((failure, _)) => Err(failure.error()),
            None => machine.files[self.index].view.read(buf, offset),
        }
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_exact_at(buf, offset).map(|()| true)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        end_of(offset, buf.len() as u64)?;
        self.lock().change(self.index, Action::Write { offset, bytes: buf.into() })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        end_of(len, 0)?;
        self.lock().change(self.index, Action::SetLen(len))
    }

    fn sync(&self) -> io::Result<()> {
        // Asked without the lock: it may look at the machine.
        let rule = self.lock().faults.sync_rule();
        let dropped = rule.is_some_and(|drops| drops(&self.name));
        self.lock().change(self.index, if dropped { Action::SyncDropped } else { Action::Sync })
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        end_of(range.end, 0)?;
        self.lock().change(self.index, Action::Zero(range))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.lock().files[self.index].view.next_data(offset))
    }
}
