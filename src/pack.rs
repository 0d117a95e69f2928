//! Making a file no longer than its blocks: what a compaction asks of a format.
//!
//! Owns: [`Pack`] and its words: which blocks have space, which of them may lose it, where the others move to.
//! Must not know: any format; why a block is given up; how bytes are copied.
//!
//! The blocks that lie behind the end the file will have move into gaps before it, in the order of the disk. Where that
//! end is follows from counting alone, so no list of blocks is kept, and none that stays has to move.

use crate::error::Result;
use crate::units::FileOffset;
use std::ops::Range;

/// What a block with space of its own holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// Nothing that anybody reads: without its space it reads as it does now.
    Nothing,
    /// Everything the disk shows there, so if that is all zeros it needs no space.
    All,
    /// A part of what the disk shows there; below lies the rest.
    Part,
}

/// A block with space of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) number: u64,
    /// Its bytes of the disk.
    pub(crate) range: Range<u64>,
    pub(crate) held: Held,
}

/// Some blocks with space.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    pub(crate) list: Vec<Block>,
    /// The block to go on with; `None` at the end of the disk.
    pub(crate) next: Option<u64>,
}

/// Something that moves: a block, or a part of the map that lies among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relocation {
    /// The format's own word for what it is.
    pub(crate) slot: u64,
    pub(crate) from: FileOffset,
    pub(crate) to: FileOffset,
    pub(crate) len: u64,
}

/// Room for `count` blocks, the first at `start`, each `step` bytes after the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) start: u64,
    pub(crate) step: u64,
    pub(crate) count: u64,
}

/// The end a file can have, and how far the moves that lead there have got.
#[derive(Debug, Default)]
pub(crate) struct Packing {
    /// The length the file will have at most.
    pub(crate) file_size: u64,
    /// What ends behind this moves, to before it.
    pub(crate) limit: u64,
    /// How often all things were looked at.
    pub(crate) pass: u8,
    /// The next thing to look at; the format's own word.
    pub(crate) next: u64,
    /// No room is left before this.
    pub(crate) room: u64,
    /// Where room is, as far as the format keeps that here; the next one last.
    pub(crate) gaps: Vec<Gap>,
}

/// One bit per thing of a large number of things.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    words: Vec<u64>,
}

impl Marks {
    /// Sets bit `at`; the table grows as far as that takes.
    pub(crate) fn set(&mut self, at: u64) {
        let Ok(word) = usize::try_from(at / 64) else { return };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= 1 << (at % 64);
        }
    }

    /// Whether bit `at` is set.
    pub(crate) fn get(&self, at: u64) -> bool {
        let word = usize::try_from(at / 64).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (at % 64) & 1 != 0)
    }

    /// How many bits from `at` on are set.
    pub(crate) fn count_from(&self, at: u64) -> u64 {
        let first = usize::try_from(at / 64).unwrap_or(usize::MAX);
        let ones = |words: &[u64]| words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        let Some((word, rest)) = self.words.get(first..).and_then(<[u64]>::split_first) else { return 0 };
        u64::from((word >> (at % 64)).count_ones()) + ones(rest)
    }

    /// Sets every bit that is set in `other`.
    #[cfg(any(test, feature = "fs"))]
    pub(crate) fn add(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }
}

/// The smallest of `range` for which `fits` holds; it holds for the end of the range and for everything after the first
/// for which it does.
pub(crate) fn smallest(range: Range<u64>, mut fits: impl FnMut(u64) -> bool) -> u64 {
    let (mut low, mut high) = (range.start, range.end.max(range.start));
    while low < high {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// An image whose file can be made shorter. The order is: give up blocks, plan, move in batches, cut the file.
///
/// After a crash at any point every block is where it was or where it was moved to, has its space or has given it up,
/// and shows the same bytes either way; starting again finishes the work.
pub(crate) trait Pack {
    /// The next blocks with space from block `from` on, at most `limit` of them.
    ///
    /// # Errors
    /// `Corrupt` when an entry of the map is broken; what the storage answers.
    fn blocks(&self, from: u64, limit: usize) -> Result<Blocks>;

    /// Takes their space from `blocks`, which ascend; durable on return. `shows` says that the disk reads differently
    /// afterwards: those blocks read as zeros then (in a differencing VHD as what lies
    /// below). The
    /// others must read the same without their space.
    ///
    /// # Errors
    /// `ReadOnly`, `Refused`, `Corrupt`; what the storage answers.
    fn give_up(&mut self, blocks: &[u64], shows: bool) -> Result<()>;

    /// Where the file can end once the blocks `without` have given up their space, and what moves for that. Changes
    /// nothing.
    ///
    /// # Errors
    /// `Corrupt` when two things share space: then nothing can be moved; what the storage answers.
    fn packing(&mut self, without: &Marks) -> Result<Packing>;

    /// The next moves of `packing`, of about `max` bytes together; none when all is in its place. The caller copies the
    /// bytes and syncs the storage, then [`moved`](Self::moved).
    ///
    /// # Errors
    /// As [`give_up`](Self::give_up).
    fn next_moves(&mut self, packing: &mut Packing, max: u64) -> Result<Vec<Relocation>>;

    /// Shows what was moved in its new places. The old ones are free on return.
    ///
    /// # Errors
    /// As [`give_up`](Self::give_up).
    fn moved(&mut self, moves: &[Relocation]) -> Result<()>;

    /// Ends the file behind the last thing in it.
    ///
    /// # Errors
    /// As [`give_up`](Self::give_up).
    fn cut(&mut self) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_from_anywhere() {
        let mut marks = Marks::default();
        for at in [0, 63, 64, 200] {
            marks.set(at);
        }
        assert_eq!([0, 1, 63, 64, 65, 200, 201, 9999].map(|at| marks.count_from(at)), [4, 3, 3, 2, 1, 1, 0, 0]);
        assert!(marks.get(200) && !marks.get(199) && !marks.get(u64::MAX));
        let mut more = Marks::default();
        more.set(1000);
        marks.add(&more);
        assert_eq!(marks.count_from(0), 5);
    }

    #[test]
    fn the_smallest_is_found() {
        for wanted in 3..=9 {
            assert_eq!(smallest(3..9, |at| at >= wanted), wanted);
        }
        assert_eq!(smallest(9..9, |_| true), 9);
    }
}
