//! Telling two runs of bytes apart.
//!
//! Owns: reading both sides of many pairs at once and saying where they differ. Must not know: see the module above.

use super::engine::Copier;
use super::{CHUNK, Meter};
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::storage::aligned::Buffer;
use crate::units::FileOffset;
use crate::zeros;
use rayon::prelude::*;
use std::ops::Range;

/// A storage with bytes in it, and whose they are.
pub(crate) trait Origin: Sync {
    /// Where the bytes are.
    fn storage(&self) -> &dyn Storage;

    /// `error`, said of whoever owns them.
    fn blame(&self, error: Error) -> Error;

    /// Fills `bytes` from `at` on.
    fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        let read = self.storage().read_exact_at(bytes, at);
        read.map_err(|error| self.blame(Error::io("read data", error).with_offset(FileOffset(at))))
    }
}

/// Bytes of some origin from an offset on, or zeros.
pub(crate) type Side<'a> = Option<(&'a dyn Origin, u64)>;

/// Two runs of one length, at most [`CHUNK`], that may be the same.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    /// What its differences are told relative to.
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) one: Side<'a>,
    pub(crate) other: Side<'a>,
}

impl Copier {
    /// Where `pairs`, which ascend and do not overlap, differ, in multiples of `unit` bytes; differences that touch are
    /// joined.
    ///
    /// # Errors
    /// Of reading; `Cancelled`.
    pub(crate) fn differences(&self, pairs: &[Pair<'_>], unit: u64, meter: &Meter<'_>) -> Result<Vec<Range<u64>>> {
        let found: Result<Vec<Vec<Range<u64>>>> = self.pool().install(|| {
            pairs
                .par_iter()
                .map_init(<(Buffer, Buffer)>::default, |(ours, theirs), pair| {
                    meter.check()?;
                    let found = pair.differences(unit, ours, theirs)?;
                    meter.add_moved(pair.len);
                    Ok(found)
                })
                .collect()
        });
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in found?.into_iter().flatten() {
            match joined.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => joined.push(range),
            }
        }
        Ok(joined)
    }
}

impl Pair<'_> {
    fn differences(&self, unit: u64, ours: &mut Buffer, theirs: &mut Buffer) -> Result<Vec<Range<u64>>> {
        let (ours, theirs) = match (self.one, self.other) {
            (None, None) => return Ok(Vec::new()),
            (Some(side), None) | (None, Some(side)) => {
                if ends_in_hole(side, self.len)? {
                    return Ok(Vec::new());
                }
                let bytes = fill(side, self.len, ours)?;
                if zeros::is_zero(bytes) {
                    return Ok(Vec::new());
                }
                let none = theirs.of_len(self.len);
                none.fill(0);
                (bytes, &*none)
            }
            (Some(one), Some(other)) => (fill(one, self.len, ours)?, fill(other, self.len, theirs)?),
        };
        if ours == theirs {
            return Ok(Vec::new());
        }
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = self.offset;
        let (mut ours, mut theirs) = (ours, theirs);
        while !ours.is_empty() {
            // The first cut brings the walk to a multiple of the unit.
            let step = (unit - at % unit) as usize;
            let (now, later) = ours.split_at(step.min(ours.len()));
            let (other, others) = theirs.split_at(now.len());
            let end = at + now.len() as u64;
            if now != other {
                match found.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ => found.push(at..end),
                }
            }
            (ours, theirs, at) = (later, others, end);
        }
        Ok(found)
    }
}

fn ends_in_hole((origin, at): (&dyn Origin, u64), len: u64) -> Result<bool> {
    let look = || {
        let data = origin.storage().next_data(at)?;
        // Past the end of the file there is no hole: reading says what is wrong there.
        Ok(origin.storage().len()? >= at + len && data.is_none_or(|data| data >= at + len))
    };
    look().map_err(|error| origin.blame(Error::io("look for data", error)))
}

fn fill<'a>((origin, at): (&dyn Origin, u64), len: u64, buffer: &'a mut Buffer) -> Result<&'a [u8]> {
    debug_assert!(len <= CHUNK, "buffers are chunks");
    let bytes = buffer.of_len(len);
    origin.read(bytes, at)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    impl Origin for MemoryStorage {
        fn storage(&self) -> &dyn Storage {
            self
        }

        fn blame(&self, error: Error) -> Error {
            error
        }
    }
    use crate::watch::Watch;

    #[test]
    fn differences_are_found_in_sectors_and_joined() {
        let mut one = vec![7u8; 8192];
        let two = one.clone();
        one[511] = 1;
        one[512] = 1;
        one[4095] = 1;
        one[4096] = 1;
        one[8191] = 1;
        let (one, two) = (MemoryStorage::from_bytes(&one), MemoryStorage::from_bytes(&two));
        let pair = |offset, len, from: u64| Pair { offset, len, one: Some((&one, from)), other: Some((&two, from)) };
        let watch = Watch::none();
        let meter = Meter::new(&watch, 0);
        let copier = Copier::new(2).unwrap();
        let pairs = [pair(1 << 20, 4096, 0), pair((1 << 20) + 4096, 4096, 4096)];
        let base = 1u64 << 20;
        let expected = [base..base + 1024, base + 3584..base + 4608, base + 7680..base + 8192];
        assert_eq!(copier.differences(&pairs, 512, &meter).unwrap(), expected);
        assert_eq!(meter.moved(), 8192);
        // A pair that starts and ends inside a sector is told apart no finer and no coarser.
        assert_eq!(
            copier.differences(&[pair(100, 600, 0)], 512, &meter).unwrap(),
            Vec::from([Range { start: 512, end: 700 }])
        );
    }

    #[test]
    fn zeros_need_no_second_side() {
        let mut bytes = vec![0u8; 3 << 20];
        bytes[(1 << 20) + 5] = 9;
        let data = MemoryStorage::from_bytes(&bytes);
        let watch = Watch::none();
        let meter = Meter::new(&watch, 0);
        let copier = Copier::new(1).unwrap();
        let side = |at| Some((&data as &dyn Origin, at));
        let pairs = [
            Pair { offset: 0, len: 1 << 20, one: side(0), other: None },
            Pair { offset: 1 << 20, len: 1 << 20, one: None, other: side(1 << 20) },
            Pair { offset: 2 << 20, len: 1 << 20, one: None, other: None },
        ];
        let base = 1u64 << 20;
        assert_eq!(
            copier.differences(&pairs, 512, &meter).unwrap(),
            Vec::from([Range { start: base, end: base + 512 }])
        );
        let beyond = [Pair { offset: 0, len: 512, one: side(3 << 20), other: None }];
        assert!(copier.differences(&beyond, 512, &meter).is_err(), "past the end is an error, never zeros");
    }
}
