//! A damaged file, mended in memory: longer in its own words than it is on the medium, with sectors made up.
//!
//! Owns: telling bytes that are lost from bytes that are there. Must not know: any format, why the bytes are lost.

use super::{Storage, end_of, past_end};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The unit of change: the smallest a medium loses, so that what is made up hides nothing that could not be read.
const SECTOR_BYTES: usize = 512;
const SECTOR: u64 = SECTOR_BYTES as u64;
/// The most sectors changed: 64 MiB. Structures other than tables, and the log, take less.
const MAX_CHANGED: usize = 1 << 17;

/// The first bytes of a storage under a greater length, with changes on top that live in memory.
///
/// What lies past the first bytes can be asked for, unlike what lies past the end of a file, but every read of it fails:
/// nothing is made up but what is written here. The storage below is never written. Changes of more than 64 MiB fail with
/// `OutOfMemory`.
#[derive(Debug)]
pub(crate) struct SalvageStorage {
    base: Arc<dyn Storage>,
    /// Bytes below here are the base's; all behind are lost.
    readable: u64,
    shown: AtomicU64,
    changed: RwLock<BTreeMap<u64, [u8; SECTOR_BYTES]>>,
}

/// Fills `bytes` from `at`, if the medium lets it.
pub(crate) fn try_read(storage: &dyn Storage, bytes: &mut [u8], at: u64) -> bool {
    storage.read_exact_at(bytes, at).is_ok()
}

impl SalvageStorage {
    /// The first `readable` bytes of `base`, in a file of `shown` bytes.
    pub(crate) fn new(base: Arc<dyn Storage>, readable: u64, shown: u64) -> Self {
        let shown = shown.max(readable);
        Self { base, readable, shown: AtomicU64::new(shown), changed: RwLock::default() }
    }

    fn shown(&self) -> u64 {
        self.shown.load(Ordering::Acquire)
    }

    /// Fills `buf` from `offset` as if nothing were changed.
    fn read_below(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end <= self.readable {
            return self.base.read_exact_at(buf, offset);
        }
        // Not `UnexpectedEof`, which says that the map is wrong: here the bytes are gone.
        Err(io::Error::other(format!("the file ends at {:#x}", self.readable)))
    }

    /// Changes the part `inside` of one sector. What else is in it and cannot be read becomes zeros.
    fn change(&self, number: u64, inside: Range<usize>, bytes: Option<&[u8]>) -> io::Result<()> {
        let mut changed = self.changed.write().unwrap_or_else(PoisonError::into_inner);
        let mut sector = [0; SECTOR_BYTES];
        match changed.get(&number) {
            Some(made) => sector = *made,
            None if changed.len() >= MAX_CHANGED => {
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, "more than 64 MiB to make up"));
            }
            None if inside.len() < SECTOR_BYTES => {
                let at = number * SECTOR;
                let there = self.readable.saturating_sub(at).min(SECTOR) as usize;
                if there > 0 && self.base.read_exact_at(&mut sector[..there], at).is_err() {
                    sector = [0; SECTOR_BYTES];
                }
            }
            None => {}
        }
        match bytes {
            Some(bytes) => sector[inside].copy_from_slice(bytes),
            None => sector[inside].fill(0),
        }
        changed.insert(number, sector);
        Ok(())
    }

    fn change_all(&self, range: Range<u64>, bytes: Option<&[u8]>) -> io::Result<()> {
        end_of(range.start, range.end - range.start)?;
        let mut at = range.start;
        while at < range.end {
            let number = at / SECTOR;
            let end = ((number + 1) * SECTOR).min(range.end);
            let inside = (at % SECTOR) as usize..(end - number * SECTOR) as usize;
            let part = bytes.map(|bytes| &bytes[(at - range.start) as usize..(end - range.start) as usize]);
            self.change(number, inside, part)?;
            at = end;
        }
        self.shown.fetch_max(range.end, Ordering::AcqRel);
        Ok(())
    }
}

impl Storage for SalvageStorage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.shown())
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.shown());
        let Some(end) = end else { return Err(past_end(offset, buf.len(), self.shown())) };
        let changed = self.changed.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        for (number, sector) in changed.range(offset / SECTOR..end.div_ceil(SECTOR)) {
            let start = (number * SECTOR).max(offset);
            let stop = ((number + 1) * SECTOR).min(end);
            if at < start {
                self.read_below(&mut buf[(at - offset) as usize..(start - offset) as usize], at)?;
            }
            let inside = (start - number * SECTOR) as usize..(stop - number * SECTOR) as usize;
            buf[(start - offset) as usize..(stop - offset) as usize].copy_from_slice(&sector[inside]);
            at = stop;
        }
        if at < end { self.read_below(&mut buf[(at - offset) as usize..], at) } else { Ok(()) }
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change_all(offset..offset.saturating_add(buf.len() as u64), Some(buf))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len < self.shown() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a damaged file is not made shorter"));
        }
        self.shown.fetch_max(len, Ordering::AcqRel);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.change_all(range, None)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let below = if offset < self.readable {
            self.base.next_data(offset)?.filter(|&next| next < self.readable)
        } else {
            None
        };
        let lost = Some(offset.max(self.readable));
        let changed = self.changed.read().unwrap_or_else(PoisonError::into_inner);
        let made = changed.range(offset / SECTOR..).next().map(|(number, _)| (number * SECTOR).max(offset));
        let first = [below, lost, made].into_iter().flatten().min();
        Ok(first.filter(|at| *at < self.shown()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn lost_bytes_are_neither_zeros_nor_past_the_end() {
        let base = Arc::new(MemoryStorage::from_bytes(&[7; 2000]));
        let file = SalvageStorage::new(base.clone(), 1500, 4000);
        let kind = |at, len| file.read_exact_at(&mut vec![0; len], at).err().map(|error| error.kind());
        assert_eq!(file.len().unwrap(), 4000);
        assert_eq!(kind(0, 1500), None);
        assert_eq!(kind(0, 1501), Some(io::ErrorKind::Other));
        assert_eq!(kind(1600, 50), Some(io::ErrorKind::Other));
        assert_eq!(kind(3950, 51), Some(io::ErrorKind::UnexpectedEof));
        assert_eq!((file.next_data(3).unwrap(), file.next_data(1600).unwrap()), (Some(3), Some(1600)));
        assert_eq!(file.next_data(4000).unwrap(), None);
        assert!(file.set_len(10).is_err());

        // A sector made up hides that sector and no other.
        file.write_all_at(&[1, 2], 2050).unwrap();
        assert_eq!((kind(2048, 512), kind(2047, 2), kind(2560, 1)), (None, Some(io::ErrorKind::Other), kind(2600, 1)));
        let mut bytes = [9; 4];
        file.read_exact_at(&mut bytes, 2049).unwrap();
        assert_eq!(bytes, [0, 1, 2, 0]);
        file.zero_range(1000..1030).unwrap();
        let mut bytes = vec![0; 100];
        file.read_exact_at(&mut bytes, 970).unwrap();
        assert_eq!((&bytes[..30], &bytes[30..60], &bytes[60..]), (&[7; 30][..], &[0; 30][..], &[7; 40][..]));
        // What it is made longer by was never seen either: whoever asks for a longer file had one.
        file.set_len(5000).unwrap();
        assert_eq!((file.len().unwrap(), kind(4000, 1000)), (5000, Some(io::ErrorKind::Other)));
        assert_eq!(base.to_bytes().unwrap(), [7; 2000]);
    }
}
