//! Runs of equal bits in a sector bitmap.
//!
//! Owns: bit order (VHD counts from the most significant bit, VHDX from the least), run search and range edits.
//! Must not know: what a bit stands for.

use std::ops::Range;

/// Which bit of a byte is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOrder {
    /// Bit `i` is `0x80 >> (i % 8)`: VHD.
    MsbFirst,
    /// Bit `i` is `1 << (i % 8)`: VHDX.
    LsbFirst,
}

impl BitOrder {
    const fn mask(self, bit: u64) -> u8 {
        match self {
            Self::MsbFirst => 0x80 >> (bit % 8),
            Self::LsbFirst => 1 << (bit % 8),
        }
    }

    /// The first bit of a word of eight bytes whose first bytes are the highest (`MsbFirst`) or the lowest.
    const fn first(self) -> u64 {
        match self {
            Self::MsbFirst => 1 << 63,
            Self::LsbFirst => 1,
        }
    }

    /// How many bits of such a word, from the first one on, are all ones or all zeros as `value` asks.
    const fn leading(self, word: u64, value: bool) -> u32 {
        let ones = if value { word } else { !word };
        match self {
            Self::MsbFirst => ones.leading_ones(),
            Self::LsbFirst => ones.trailing_ones(),
        }
    }
}

/// The value of bit `bit`; bits past the end of `bytes` read as clear.
#[must_use]
pub(crate) fn get(bytes: &[u8], order: BitOrder, bit: u64) -> bool {
    byte_at(bytes, bit / 8) & order.mask(bit) != 0
}

/// The value of the first bit of `range` and how many bits from there share it (at most the range's length).
///
/// An empty range answers `(false, 0)`. Bits past the end of `bytes` read as clear.
#[must_use]
pub(crate) fn run(bytes: &[u8], order: BitOrder, range: Range<u64>) -> (bool, u64) {
    run_of_words(|index| word_at(bytes, index), order, range)
}

/// As [`run`], of bytes that `word` gives eight at a time, the first of them lowest.
#[must_use]
pub(crate) fn run_of_words(word: impl Fn(u64) -> u64, order: BitOrder, range: Range<u64>) -> (bool, u64) {
    let (mut at, mut value) = (range.start, false);
    while at < range.end {
        let inside = at % 64;
        // The bits from `at` on, and clear ones behind them.
        let bits = match order {
            BitOrder::MsbFirst => word(at / 64).swap_bytes() << inside,
            BitOrder::LsbFirst => word(at / 64) >> inside,
        };
        if at == range.start {
            value = bits & order.first() != 0;
        }
        let same = u64::from(order.leading(bits, value)).min(64 - inside);
        at += same;
        if same < 64 - inside {
            break;
        }
    }
    (value, at.min(range.end).saturating_sub(range.start))
}

/// Sets (`value` true) or clears every bit of `range`; the part past the end of `bytes` is ignored.
pub(crate) fn fill(bytes: &mut [u8], order: BitOrder, range: Range<u64>, value: bool) {
    let mut at = range.start;
    while at < range.end {
        let Some(byte) = usize::try_from(at / 8).ok().and_then(|index| bytes.get_mut(index)) else { return };
        let end_of_byte = (at / 8 + 1) * 8;
        let mut mask = 0u8;
        while at < range.end && at < end_of_byte {
            mask |= order.mask(at);
            at += 1;
        }
        if value {
            *byte |= mask;
        } else {
            *byte &= !mask;
        }
    }
}

/// Whether every bit of `range` is set; true for an empty range.
#[must_use]
pub(crate) fn all_set(bytes: &[u8], order: BitOrder, range: Range<u64>) -> bool {
    let len = range.end.saturating_sub(range.start);
    len == 0 || run(bytes, order, range) == (true, len)
}

fn byte_at(bytes: &[u8], index: u64) -> u8 {
    usize::try_from(index).ok().and_then(|index| bytes.get(index)).copied().unwrap_or(0)
}

/// Eight bytes from `8 * index` on as a little-endian number; bytes past the end are zero.
fn word_at(bytes: &[u8], index: u64) -> u64 {
    let Some(rest) = usize::try_from(index).ok().and_then(|index| bytes.get(index.checked_mul(8)?..)) else { return 0 };
    match rest.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_bit_of_each_order() {
        assert!(get(&[0x80], BitOrder::MsbFirst, 0));
        assert!(get(&[0x01], BitOrder::LsbFirst, 0));
        assert!(!get(&[0x01], BitOrder::LsbFirst, 8));
        assert_eq!(run(&[0x07], BitOrder::LsbFirst, 0..8), (true, 3));
        assert_eq!(run(&[0xE0], BitOrder::MsbFirst, 0..8), (true, 3));
        assert_eq!(run(&[0xFF; 4], BitOrder::MsbFirst, 3..3), (false, 0));
        assert_eq!(run(&[0xFF], BitOrder::MsbFirst, 4..20), (true, 4));
    }

    proptest! {
        #[test]
        fn run_and_fill_agree_with_single_bits(
            mut bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xFF), any::<u8>()], 1..64),
            msb in any::<bool>(), a in 0u64..600, b in 0u64..600, value in any::<bool>(),
        ) {
            let order = if msb { BitOrder::MsbFirst } else { BitOrder::LsbFirst };
            let range = a.min(b)..a.max(b);
            let (first, len) = run(&bytes, order, range.clone());
            if !range.is_empty() {
                prop_assert_eq!(first, get(&bytes, order, range.start));
                prop_assert!((range.start..range.start + len).all(|bit| get(&bytes, order, bit) == first));
                prop_assert!(range.start + len == range.end || get(&bytes, order, range.start + len) != first);
            }
            let before = bytes.clone();
            fill(&mut bytes, order, range.clone(), value);
            let total = bytes.len() as u64 * 8;
            for bit in 0..total {
                let want = if range.contains(&bit) { value } else { get(&before, order, bit) };
                prop_assert_eq!(get(&bytes, order, bit), want);
            }
        }
    }
}
