//! Moves that lie close together, made in one write.
//!
//! Owns: which moves those are, and the target's bytes between them. Must not know: see the module above.
//!
//! A file system and its medium have a price for each piece they are given, so short gaps are written again with what they
//! hold, which changes nothing wherever such a write is cut. Measured: 13 % off a merge of a child that fills 3 of 8 pages,
//! nothing either way for 1 of 8; gaps up to 4 KiB gave less, up to 16 KiB no more. It pays only for bytes that are in
//! memory: reading them from the medium costs more than it saves.

use super::CHUNK;
use super::engine::{Move, read_data, write_data};
use crate::error::Result;
use crate::storage::Storage;
use crate::storage::aligned::Buffer;
use crate::units::KIB;
use crate::zeros;

/// The longest gap that is written again.
const GAP: u64 = 8 * KIB;

/// The fewest moves that are worth the looking.
const FEWEST: usize = 4;

/// How many of `moves`, from the first on, lie close together; 1 when those are too few.
pub(super) fn close(moves: &[Move<'_>]) -> usize {
    let Some(first) = moves.first() else { return 0 };
    let fits = |pair: &[Move<'_>]| match pair {
        [one, next] => {
            let gap = next.to.checked_sub(one.to + one.len);
            let near = gap.is_some_and(|gap| gap == 0 || next.near && gap <= GAP);
            near && next.to + next.len - first.to <= CHUNK
        }
        _ => false,
    };
    let count = 1 + moves.windows(2).take_while(|pair| fits(pair)).count();
    if count < FEWEST { 1 } else { count }
}

/// Makes `moves`, which lie close together, in one write. `false`: what lies between them is not in memory, or zeros: a
/// write could fill a hole. Nothing was written then.
///
/// # Errors
/// Of reading the sources and of writing.
pub(super) fn gather(moves: &[Move<'_>], target: &dyn Storage, buffer: &mut Buffer) -> Result<bool> {
    let (Some(first), Some(last)) = (moves.first(), moves.last()) else { return Ok(true) };
    // At most a chunk, which fits any usize.
    let at = |offset: u64| (offset - first.to) as usize;
    let bytes = buffer.bound_for(first.to, at(last.to + last.len));
    let mut end = first.to;
    for one in moves {
        let gap = &mut bytes[at(end)..at(one.to)];
        // Bytes that cannot be read are no business of these moves, which do not need them.
        if !gap.is_empty() && (!matches!(target.read_cached_at(gap, end), Ok(true)) || zeros::is_zero(gap)) {
            return Ok(false);
        }
        end = one.to + one.len;
        read_data(&mut bytes[at(one.to)..at(end)], (one.source, one.from))?;
    }
    write_data(bytes, (target, first.to))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;
    use std::io;
    use std::sync::Mutex;

    /// Notes where it is written, and has nothing in memory from `cold` on.
    #[derive(Debug)]
    struct Noting {
        bytes: MemoryStorage,
        cold: u64,
        written: Mutex<Vec<(u64, usize)>>,
    }

    impl Storage for Noting {
        fn len(&self) -> io::Result<u64> {
            self.bytes.len()
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.bytes.read_exact_at(buf, offset)
        }
        fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
            if offset + buf.len() as u64 > self.cold {
                buf.fill(0xEE);
                return Ok(false);
            }
            self.bytes.read_cached_at(buf, offset)
        }
        fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.written.lock().unwrap().push((offset, buf.len()));
            self.bytes.write_all_at(buf, offset)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.bytes.set_len(len)
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn moves<'a>(source: &'a MemoryStorage, runs: &[(u64, u64, bool)]) -> Vec<Move<'a>> {
        runs.iter().map(|&(to, len, near)| Move { source, from: to / 2, to, len, near }).collect()
    }

    #[test]
    fn close_are_moves_of_one_block_with_short_gaps() {
        let source = MemoryStorage::new();
        let near = |n: u64| (n * 1024, 512, true);
        for (runs, count) in [
            (&[][..], 0),
            (&[near(5)], 1),
            (&[near(0), near(1), near(2)], 1),
            (&[near(0), near(1), near(2), near(3)], 4),
            (&[near(0), near(1), near(2), near(3), (3584 + GAP, 1, true), near(20)], 5),
            (&[near(0), near(1), near(2), near(3), (3585 + GAP, 1, true), near(20)], 4),
            (&[near(0), near(1), near(2), near(3), (4096, 512, false), near(5)], 4),
            (&[near(0), near(1), near(2), near(3), (3584, 512, false), near(4)], 6),
            (&[near(3), near(2), near(1), near(0)], 1),
            (&[near(0), near(1), near(2), (3072, CHUNK - 3072, true), (CHUNK, 1, true)], 4),
        ] {
            assert_eq!(close(&moves(&source, runs)), count, "{runs:?}");
        }
    }

    #[test]
    fn what_lies_between_is_kept_and_neither_waited_for_nor_put_into_holes() {
        let source = MemoryStorage::from_bytes(&vec![7; 100_000]);
        let model = vec![9; 100_000];
        let runs = [(512, 512, false), (4096, 4096, true), (12_288, 512, true), (20_480, 512, true)];
        let moves = moves(&source, &runs);
        assert_eq!(close(&moves), 4);
        for (cold, hole, gathered) in [(90_000, 0..0, true), (20_479, 0..0, false), (90_000, 8192..12_288, false)] {
            let target = Noting { bytes: MemoryStorage::from_bytes(&model), cold, written: Mutex::default() };
            target.bytes.zero_range(hole).unwrap();
            let mut expected = target.bytes.to_bytes().unwrap();
            assert_eq!(gather(&moves, &target, &mut Buffer::default()).unwrap(), gathered, "{cold}");
            if gathered {
                runs.iter().for_each(|&(to, len, _)| expected[to as usize..(to + len) as usize].fill(7));
            }
            assert_eq!(*target.written.lock().unwrap(), &[(512, 20_480)][..usize::from(gathered)], "{cold}");
            assert!(target.bytes.to_bytes().unwrap() == expected, "{cold}");
        }
    }
}
