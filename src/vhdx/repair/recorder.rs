//! A storage that is changed in memory only and remembers every change.
//!
//! Owns: turning writes into the edits of a plan, so that what mends a file is the code that writes to files.
//! Must not know: what is mended.

use crate::mend::Edit;
use crate::storage::{OverlayStorage, PAGE, Storage};
use crate::units::FileOffset;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most bytes a plan may write. Each is held in memory, in the view and in the plan; a log can ask for more only when
/// it is far longer than any that a writer makes.
const MAX_PLANNED_BYTES: u64 = 128 << 20;

/// What was recorded since the last call of [`Recorder::take`].
#[derive(Debug, Default)]
struct Record {
    edits: Vec<Edit>,
    /// Bytes in all writes ever recorded.
    bytes: u64,
    /// Since anything but the write of a page: the edit that writes the page at this offset.
    pages: BTreeMap<u64, usize>,
}

/// The file as it will be once the plan was carried out so far.
#[derive(Debug)]
pub(super) struct Recorder {
    view: OverlayStorage,
    record: Mutex<Record>,
}

impl Recorder {
    /// Over `base`, which is never written.
    pub(super) fn new(base: Arc<dyn Storage>) -> io::Result<Self> {
        Ok(Self { view: OverlayStorage::new(base)?, record: Mutex::new(Record::default()) })
    }

    /// The edits since the last call, ended by a sync; empty when nothing was changed.
    pub(super) fn take(&self) -> Vec<Edit> {
        let mut record = self.record();
        record.pages.clear();
        let mut edits = std::mem::take(&mut record.edits);
        if edits.last().is_some_and(|last| *last != Edit::Sync) {
            edits.push(Edit::Sync);
        }
        edits
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, edit: Edit) {
        let mut record = self.record();
        record.pages.clear();
        if edit != Edit::Sync || record.edits.last().is_some_and(|last| *last != Edit::Sync) {
            record.edits.push(edit);
        }
    }
}

impl Storage for Recorder {
    fn len(&self) -> io::Result<u64> {
        self.view.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.view.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.view.write_all_at(buf, offset)?;
        let mut record = self.record();
        let is_page = buf.len() == PAGE && offset.is_multiple_of(PAGE as u64);
        let again = record.pages.get(&offset).copied().filter(|_| is_page);
        // A log may write one page many times; between two syncs only the last counts.
        if let Some(Edit::Write { bytes, .. }) = again.and_then(|at| record.edits.get_mut(at)) {
            bytes.copy_from_slice(buf);
            return Ok(());
        }
        record.bytes = record.bytes.saturating_add(buf.len() as u64);
        if record.bytes > MAX_PLANNED_BYTES {
            let message = format!("a repair that writes more than {} MiB", MAX_PLANNED_BYTES >> 20);
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
        }
        let index = record.edits.len();
        if is_page {
            record.pages.insert(offset, index);
        } else {
            record.pages.clear();
        }
        record.edits.push(Edit::Write { at: FileOffset(offset), bytes: buf.to_vec() });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.view.set_len(len)?;
        self.push(Edit::SetLen(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.push(Edit::Sync);
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.view.zero_range(range.clone())?;
        self.push(Edit::Zero(range));
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.view.next_data(offset)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn edits_make_of_the_base_what_the_view_shows() {
        let base = Arc::new(MemoryStorage::from_bytes(&[7; 3 * PAGE]));
        let recorder = Recorder::new(base.clone()).unwrap();
        recorder.sync().unwrap();
        let page = PAGE as u64;
        for (value, at) in [(1, 0), (2, page), (3, 0)] {
            recorder.write_all_at(&[value; PAGE], at).unwrap();
        }
        recorder.write_all_at(&[4; 8], 100).unwrap();
        recorder.write_all_at(&[5; PAGE], 0).unwrap();
        recorder.zero_range(page..page + 10).unwrap();
        recorder.sync().unwrap();
        recorder.sync().unwrap();
        recorder.set_len(5 * page).unwrap();
        let mut seen = vec![0; 5 * PAGE];
        recorder.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(base.to_bytes().unwrap(), [7; 3 * PAGE], "nothing is written");

        let edits = recorder.take();
        assert_eq!(edits.iter().filter(|edit| matches!(edit, Edit::Write { .. })).count(), 4, "{edits:?}");
        assert_eq!(edits.iter().filter(|edit| **edit == Edit::Sync).count(), 2);
        assert_eq!(edits.last(), Some(&Edit::Sync));
        for edit in edits {
            match edit {
                Edit::Write { at, bytes } => base.write_all_at(&bytes, at.get()).unwrap(),
                Edit::Zero(range) => base.zero_range(range).unwrap(),
                Edit::SetLen(len) => base.set_len(len).unwrap(),
                Edit::Sync => {}
            }
        }
        assert!(base.to_bytes().unwrap() == seen);
        assert_eq!(recorder.take(), []);
    }
}
