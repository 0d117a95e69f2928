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

    /// Leading bits of `byte`, in this order, that are all ones or all zeros as `value` asks.
    const fn leading(self, byte: u8, value: bool) -> u32 {
        let flipped = if value { byte } else { !byte };
        match self {
            Self::MsbFirst => flipped.leading_ones(),
            Self::LsbFirst => flipped.trailing_ones(),
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
    if range.is_empty() {
        return (false, 0);
    }
    let value = get(bytes, order, range.start);
    let mut at = range.start;
    while at < range.end && !at.is_multiple_of(8) {
        if get(bytes, order, at) != value {
            return (value, at - range.start);
        }
        at += 1;
    }
    let fill = if value { u64::MAX } else { 0 };
    while at < range.end {
        if let Some(word) = word_at(bytes, at / 8)
            && word == fill
        {
            at += 64;
            continue;
        }
        let same = u64::from(order.leading(byte_at(bytes, at / 8), value));
        at += same;
        if same < 8 {
            break;
        }
    }
    (value, at.min(range.end) - range.start)
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

fn word_at(bytes: &[u8], index: u64) -> Option<u64> {
    let index = usize::try_from(index).ok()?;
    bytes.get(index..)?.first_chunk::<8>().map(|word| u64::from_ne_bytes(*word))
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
