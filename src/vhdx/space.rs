//! Free space in the file, in units of 1 MiB.
//!
//! Owns: which units are taken, where new ones come from. Must not know: what is kept in them, when a block may be freed.
//!
//! The table of units is one bit per MiB: 8 MiB of memory for a file of 64 TiB.

use super::log::MAX_FILE_LENGTH;
use crate::error::{Error, Result};
use crate::problem::{Fault, Problem, Structure};
use crate::units::{FileOffset, MIB};
use std::ops::Range;

/// File space handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Bytes of the file, multiples of 1 MiB.
    pub(crate) range: Range<u64>,
    /// Past everything the file ever held when it was handed out: reads as zeros once the file is long enough.
    pub(crate) fresh: bool,
}

/// Which MiB of the file are taken.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    /// One bit per unit, set when taken; as long as `units`.
    words: Vec<u64>,
    /// Units the file has or that were handed out past its end.
    units: u64,
    /// Where the next search starts.
    hint: u64,
    /// A run of this many free units was not found, and nothing was freed since.
    no_run_of: u64,
}

impl Space {
    /// All of a file of `len` bytes free but the header area. An unaligned tail counts as part of the file.
    ///
    /// # Errors
    /// `Corrupt` when the file is longer than the largest disk can need.
    pub(crate) fn new(len: u64) -> Result<Self> {
        within_limit(len, Structure::File)?;
        let units = len.div_ceil(MIB).max(1);
        let mut space = Self { words: Vec::new(), units: 0, hint: 0, no_run_of: u64::MAX };
        space.grow(units);
        space.set(0..1, true);
        Ok(space)
    }

    fn grow(&mut self, units: u64) {
        if units > self.units {
            self.units = units;
            self.words.resize(usize::try_from(units.div_ceil(64)).unwrap_or(usize::MAX), 0);
        }
    }

    fn is_taken(&self, unit: u64) -> bool {
        self.word(unit) & bit(unit) != 0
    }

    fn word(&self, unit: u64) -> u64 {
        usize::try_from(unit / 64).ok().and_then(|at| self.words.get(at)).copied().unwrap_or(0)
    }

    fn set(&mut self, units: Range<u64>, taken: bool) {
        for (at, mask) in words_of(units) {
            if let Some(word) = usize::try_from(at).ok().and_then(|at| self.words.get_mut(at)) {
                if taken {
                    *word |= mask;
                } else {
                    *word &= !mask;
                }
            }
        }
    }

    /// An equally long file, all of it free.
    pub(crate) fn blank_copy(&self) -> Self {
        Self { words: vec![0; self.words.len()], hint: 0, no_run_of: u64::MAX, ..*self }
    }

    /// Takes what is taken in `other`, of the same file. False when something was taken in both.
    pub(crate) fn join(&mut self, other: &Self) -> bool {
        let mut shared = 0;
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            shared |= *word & other;
            *word |= other;
        }
        shared == 0
    }

    /// Notes that `what` owns `range`, which starts inside the file or is a region's.
    ///
    /// # Errors
    /// `Corrupt` when a part of it is already taken (writing to either owner would change the other), or when it ends
    /// further out than any file.
    pub(crate) fn claim(&mut self, range: &Range<u64>, what: Structure) -> Result<()> {
        within_limit(range.end, what)?;
        let units = units_of(range);
        self.grow(units.end);
        if let Some(unit) = units.clone().find(|unit| self.is_taken(*unit)) {
            let at = FileOffset(unit.saturating_mul(MIB));
            let problem = Problem::new(what, Fault::Overlap, "space that something else in the file owns", "its own");
            return Err(Error::corrupt(problem.at(at)).with_hint("the image must be repaired before it is written to"));
        }
        self.set(units, true);
        Ok(())
    }

    /// Takes `len` bytes (a multiple of 1 MiB): the first free run from where the last search ended, or new space at the
    /// end, which the caller makes by growing the file to the end of the range.
    pub(crate) fn take(&mut self, len: u64) -> Taken {
        let count = len.div_ceil(MIB);
        let found = if count < self.no_run_of {
            self.find(self.hint..self.units, count)
                .or_else(|| self.find(0..self.hint.saturating_add(count).min(self.units), count))
        } else {
            None
        };
        if found.is_none() {
            self.no_run_of = self.no_run_of.min(count);
        }
        let start = found.unwrap_or(self.units);
        let end = start.saturating_add(count);
        self.grow(end);
        self.set(start..end, true);
        if found.is_some() {
            self.hint = end;
        }
        Taken { range: start.saturating_mul(MIB)..end.saturating_mul(MIB), fresh: found.is_none() }
    }

    /// Takes `len` bytes (a multiple of 1 MiB) inside `range`: the first free run; `None` when there is none.
    pub(crate) fn take_within(&mut self, len: u64, range: Range<u64>) -> Option<Range<u64>> {
        let count = len.div_ceil(MIB);
        let start = self.find(range.start.div_ceil(MIB)..(range.end / MIB).min(self.units), count)?;
        let end = start.saturating_add(count);
        self.set(start..end, true);
        Some(start.saturating_mul(MIB)..end.saturating_mul(MIB))
    }

    /// Shows the free runs before `limit`, all in units of 1 MiB, in order.
    pub(crate) fn each_gap(&self, limit: u64, visit: &mut dyn FnMut(Range<u64>)) {
        let limit = limit.min(self.units);
        let (mut start, mut at) = (0, 0u64);
        while at < limit {
            if at.is_multiple_of(64) && self.word(at) == u64::MAX {
                if start < at {
                    visit(start..at);
                }
                at = at.saturating_add(64);
                start = at;
                continue;
            }
            let taken = self.is_taken(at);
            if taken && start < at {
                visit(start..at);
            }
            at = at.saturating_add(1);
            if taken {
                start = at;
            }
        }
        if start < limit {
            visit(start..limit);
        }
    }

    fn find(&self, among: Range<u64>, count: u64) -> Option<u64> {
        let (mut start, mut at) = (among.start, among.start);
        while at < among.end {
            if at.is_multiple_of(64) && self.word(at) == u64::MAX {
                at = at.saturating_add(64);
                start = at;
                continue;
            }
            let taken = self.is_taken(at);
            at = at.saturating_add(1);
            if taken {
                start = at;
            } else if at.saturating_sub(start) == count {
                return Some(start);
            }
        }
        None
    }

    /// Gives `range` back. The caller knows that no map on the medium shows it any more.
    pub(crate) fn release(&mut self, range: &Range<u64>) {
        let units = units_of(range);
        self.hint = self.hint.min(units.start);
        self.set(units, false);
        self.no_run_of = u64::MAX;
    }

    /// The end of everything the file has or will have, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.units.saturating_mul(MIB)
    }

    /// Notes that something owns `range`, as far as the file reaches. False when a part of it was taken before; the rest
    /// is taken all the same.
    pub(crate) fn mark(&mut self, range: &Range<u64>) -> bool {
        let Range { start, end } = units_of(range);
        let units = start..end.min(self.units);
        let free = words_of(units.clone()).all(|(at, mask)| self.word(at.saturating_mul(64)) & mask == 0);
        self.set(units, true);
        free
    }

    /// As [`mark`](Self::mark), with no look at what was taken before: a page of memory that is looked at before it is
    /// written to is made twice, and other threads stopped for it. [`taken`](Self::taken) tells afterwards.
    pub(crate) fn mark_unseen(&mut self, range: &Range<u64>) {
        let Range { start, end } = units_of(range);
        self.set(start..end.min(self.units), true);
    }

    /// How many MiB are taken.
    pub(crate) fn taken(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many bytes nobody owns, and where those at the end of the file begin; an unaligned tail counts whole.
    pub(crate) fn unowned(&self) -> (u64, u64) {
        let last = self.words.iter().rposition(|word| *word != 0).unwrap_or_default();
        let top = u64::from(self.words.get(last).copied().unwrap_or_default().leading_zeros());
        let used = (last as u64).saturating_add(1).saturating_mul(64).saturating_sub(top);
        (self.units.saturating_sub(self.taken()).saturating_mul(MIB), used.saturating_mul(MIB))
    }
}

/// The table of units grows with what is claimed; numbers from a file must not make it grow without end.
fn within_limit(end: u64, what: Structure) -> Result<()> {
    if end <= MAX_FILE_LENGTH {
        return Ok(());
    }
    let found = format!("an end at {end:#x}");
    Err(Error::corrupt(Problem::new(what, Fault::Limit, found, format!("up to {MAX_FILE_LENGTH:#x}"))))
}

const fn bit(unit: u64) -> u64 {
    1 << (unit % 64)
}

/// The words that hold the bits of `units`, and which of each.
#[allow(clippy::arithmetic_side_effects)] // `len` is from 1 to 64.
fn words_of(units: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let mut at = units.start;
    std::iter::from_fn(move || {
        let len = units.end.checked_sub(at).filter(|&left| left > 0)?.min(64 - at % 64);
        let (word, from) = (at / 64, at % 64);
        at = at.saturating_add(len);
        Some((word, (u64::MAX >> (64 - len)) << from))
    })
}

fn units_of(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / MIB..range.end.div_ceil(MIB) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation, clippy::unwrap_used)]
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    #[test]
    fn an_object_that_overlaps_another_is_refused() {
        let mut space = Space::new(8 * MIB).unwrap();
        space.claim(&(2 * MIB..4 * MIB), Structure::VhdxBlock).unwrap();
        let error = space.claim(&(3 * MIB..5 * MIB), Structure::VhdxBlock).unwrap_err();
        assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(FileOffset(3 * MIB))));
        assert!(space.claim(&(0..MIB), Structure::VhdxBlock).is_err(), "the header area");
    }

    #[test]
    fn marks_count_what_nobody_owns() {
        let mut space = Space::new(100 * MIB).unwrap();
        assert_eq!(space.unowned(), (99 * MIB, MIB));
        assert!(space.mark(&(2 * MIB..4 * MIB)) && space.mark(&(70 * MIB..71 * MIB)));
        assert!(!space.mark(&(3 * MIB..5 * MIB)), "a part was taken");
        assert!(!space.mark(&(4 * MIB..5 * MIB)), "the rest was taken all the same");
        assert_eq!(space.unowned(), (95 * MIB, 71 * MIB));
        let mut unseen = space.clone();
        unseen.mark_unseen(&(4 * MIB..6 * MIB));
        assert_eq!(unseen.taken(), space.taken() + 1, "one of the two was taken");
        assert!(space.mark(&(99 * MIB..1 << 60)), "only the file counts");
        assert_eq!((space.unowned(), space.end()), ((94 * MIB, 100 * MIB), 100 * MIB));
    }

    #[test]
    fn numbers_from_a_file_do_not_eat_memory() {
        assert_eq!(Space::new(1 << 60).unwrap_err().kind(), ErrorKind::Corrupt);
        let mut space = Space::new(8 * MIB).unwrap();
        for end in [u64::MAX, 1 << 59] {
            assert_eq!(space.claim(&(MIB..end), Structure::VhdxLog).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        assert_eq!(space.end(), 8 * MIB);
    }

    #[test]
    fn an_unaligned_end_of_file_is_never_handed_out_as_fresh() {
        let mut space = Space::new(3 * MIB + 512).unwrap();
        space.claim(&(MIB..4 * MIB), Structure::VhdxBlock).unwrap();
        assert_eq!(space.take(MIB), Taken { range: 4 * MIB..5 * MIB, fresh: true });
    }

    proptest! {
        #[test]
        fn what_is_handed_out_is_nobodys_and_holes_are_used_again(
            units in 1u64..300, steps in prop::collection::vec((any::<bool>(), 1u64..70, any::<prop::sample::Index>()), 1..60),
        ) {
            let mut space = Space::new(units * MIB).unwrap();
            let mut held: Vec<Range<u64>> = std::iter::once(0..MIB).collect();
            let mut end = units * MIB;
            for (take, count, which) in steps {
                if take {
                    let taken = space.take(count * MIB);
                    prop_assert_eq!(taken.range.end - taken.range.start, count * MIB);
                    prop_assert!(held.iter().all(|one| one.end <= taken.range.start || taken.range.end <= one.start));
                    prop_assert_eq!(taken.fresh, taken.range.start >= end);
                    if taken.fresh {
                        let unit_free = |unit: &u64| !held.iter().any(|one| one.contains(&(unit * MIB)));
                        let free: Vec<bool> = (0..end / MIB).map(|unit| unit_free(&unit)).collect();
                        prop_assert!(!free.windows(count as usize).any(|run| run.iter().all(|free| *free)));
                    }
                    end = end.max(taken.range.end);
                    held.push(taken.range);
                } else if held.len() > 1 {
                    let gone = held.swap_remove(1 + which.index(held.len() - 1));
                    space.release(&gone);
                }
                prop_assert_eq!(space.end(), end);
            }
        }
    }
}
