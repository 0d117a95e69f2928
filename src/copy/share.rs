//! Sharing blocks of the file system instead of copying the bytes in them.
//!
//! Owns: which parts of a run can be shared, and for which pairs of files it was tried in vain. Must not know: see the
//! module above.

use super::Meter;
use super::engine::Move;
use crate::error::{Error, Result};
use crate::storage::Storage;
use crate::units::{FileOffset, KIB, MIB, round_down};

/// The shortest run that is worth a call of its own and an extent of its own.
const LEAST: u64 = 64 * KIB;
/// The most that is shared between two looks at the token.
const STEP: u64 = 64 * MIB;

/// Shares what it can of `moves` and answers what is left to be copied. Whether a source and the target can share is found
/// out by the first run that fits.
pub(super) fn share<'a>(moves: Vec<Move<'a>>, target: &dyn Storage, meter: &Meter<'_>) -> Result<Vec<Move<'a>>> {
    let unit = target.share_unit().map_err(|error| Error::io("ask for the file system's block size", error))?;
    let Some(unit) = unit.filter(|unit| unit.is_power_of_two()) else { return Ok(moves) };
    let mut left = Vec::with_capacity(moves.len());
    let mut in_vain: Vec<&dyn Storage> = Vec::new();
    for one in moves {
        let fits = middle(&one, unit).filter(|_| !in_vain.iter().any(|&source| std::ptr::addr_eq(source, one.source)));
        let Some((head, len)) = fits else {
            left.push(one);
            continue;
        };
        let (mut at, end) = (head, head + len);
        while at < end {
            meter.check()?;
            let step = (end - at).min(STEP);
            let shared = target.share_range(one.source, one.from + at, one.to + at, step);
            if !shared.map_err(|error| Error::io("share data", error).with_offset(FileOffset(one.to + at)))? {
                in_vain.push(one.source);
                break;
            }
            meter.add_shared(step);
            at += step;
        }
        // What was shared is a part in the middle, or nothing.
        let rest = if at > head { [0..head, at..one.len] } else { [0..one.len, 0..0] };
        left.extend(rest.into_iter().filter(|part| !part.is_empty()).map(|part| Move {
            from: one.from + part.start,
            to: one.to + part.start,
            len: part.end - part.start,
            // What was shared lies before the second part.
            near: one.near && part.start == 0,
            ..one
        }));
    }
    Ok(left)
}

/// The part of a run, from its start on, that whole blocks of `unit` bytes on both sides hold; none when it is short or
/// lies differently in its blocks here and there.
fn middle(one: &Move<'_>, unit: u64) -> Option<(u64, u64)> {
    let head = (unit - one.from % unit) % unit;
    let len = round_down(one.len.saturating_sub(head), unit);
    (one.from % unit == one.to % unit && len >= LEAST).then_some((head, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::{Copier, Work};
    use crate::storage::MemoryStorage;
    use crate::watch::Watch;
    use std::io;
    use std::sync::Mutex;

    /// Shares blocks of 4096 bytes by copying them, and notes what it was asked for.
    #[derive(Debug, Default)]
    struct Sharing {
        bytes: MemoryStorage,
        asked: Mutex<Vec<(u64, u64, u64)>>,
        refuses: bool,
    }

    impl Storage for Sharing {
        fn len(&self) -> io::Result<u64> {
            self.bytes.len()
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.bytes.read_exact_at(buf, offset)
        }
        fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.bytes.write_all_at(buf, offset)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.bytes.set_len(len)
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn share_unit(&self) -> io::Result<Option<u64>> {
            Ok(Some(4096))
        }
        fn share_range(&self, source: &dyn Storage, from: u64, to: u64, len: u64) -> io::Result<bool> {
            self.asked.lock().unwrap().push((from, to, len));
            assert!([from, to, len].iter().all(|number| number.is_multiple_of(4096)) && len > 0);
            if self.refuses {
                return Ok(false);
            }
            let mut bytes = vec![0; len as usize];
            source.read_exact_at(&mut bytes, from)?;
            self.bytes.write_all_at(&bytes, to)?;
            Ok(true)
        }
    }

    /// Runs that fit, that lie differently, that are short, and one longer than a step.
    #[test]
    fn whole_blocks_are_shared_and_the_rest_is_copied() {
        let bytes: Vec<u8> = (0..80u64 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let source = MemoryStorage::from_bytes(&bytes);
        let runs = [
            (512, 8192 + 512, 200_000),
            (300_032, (1 << 20) + 512, 200_000),
            (512 << 10, 2 << 20, 32 << 10),
            (1 << 20, 3 << 20, 70 << 20),
        ];
        for refuses in [false, true] {
            let target = Sharing { refuses, ..Sharing::default() };
            let mut model = vec![0; 73 << 20];
            for &(from, to, len) in &runs {
                model[to..to + len].copy_from_slice(&bytes[from..from + len]);
            }
            let one = |&(from, to, len): &(usize, usize, usize)| Move {
                source: &source as &dyn Storage,
                from: from as u64,
                to: to as u64,
                len: len as u64,
                near: false,
            };
            let watch = Watch::none();
            let meter = Meter::new(&watch, 0);
            let moves = runs.iter().map(one).collect();
            let work = Work { target: &target, moves, zeros: Vec::new(), target_is_zero: false };
            Copier::new(2).unwrap().run(work, &meter).unwrap();
            assert!(target.bytes.to_bytes().unwrap() == model, "refuses: {refuses}");
            let asked = target.asked.lock().unwrap().clone();
            let first = (4096, 12_288, 196_608 - 4096);
            if refuses {
                assert_eq!((asked, meter.shared()), (vec![first], 0), "one try tells it of the pair");
            } else {
                let long = [(1 << 20, 3 << 20, STEP), ((1 << 20) + STEP, (3 << 20) + STEP, (70 << 20) - STEP)];
                assert_eq!(asked, [&[first][..], &long].concat());
                assert_eq!((meter.shared(), meter.offloaded()), (first.2 + (70 << 20), first.2 + (70 << 20)));
            }
            assert_eq!(meter.moved(), runs.iter().map(|run| run.2 as u64).sum::<u64>());
        }
    }

    #[test]
    fn a_copier_that_must_not_share_does_not_ask() {
        let source = MemoryStorage::from_bytes(&vec![7; 1 << 20]);
        let target = Sharing::default();
        let watch = Watch::none();
        let meter = Meter::new(&watch, 0);
        let moves = vec![Move { source: &source, from: 0, to: 0, len: 1 << 20, near: false }];
        let work = Work { target: &target, moves, zeros: Vec::new(), target_is_zero: true };
        Copier::new(1).unwrap().without_sharing(true).run(work, &meter).unwrap();
        assert!(target.asked.lock().unwrap().is_empty());
        assert!(target.bytes.to_bytes().unwrap() == vec![7; 1 << 20]);
    }
}
