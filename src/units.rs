//! Byte units and the file offset newtype.
//!
//! Owns: the sizes every format shares and checked arithmetic on file positions.
//! Must not know: any format, any storage.

use std::fmt;

/// 1024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1024 MiB.
pub const GIB: u64 = 1 << 30;
/// 1024 GiB.
pub const TIB: u64 = 1 << 40;
/// The smallest unit any disk here is written in: a 512 byte sector.
pub const SECTOR: u64 = 512;

/// A position in an image *file*, in bytes from its start.
///
/// Everywhere else in this crate an `offset` is a position on the virtual disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct FileOffset(pub u64);

impl FileOffset {
    /// The position as bytes from the start of the file.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `bytes` further on, or `None` past the end of 64 bits.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// `value` rounded up to a multiple of `unit`, or `None` when that does not fit or `unit` is zero.
#[must_use]
pub const fn round_up(value: u64, unit: u64) -> Option<u64> {
    value.checked_next_multiple_of(unit)
}

/// `value` rounded down to a multiple of `unit`; `unit` zero answers `value`.
#[must_use]
pub const fn round_down(value: u64, unit: u64) -> u64 {
    match value.checked_rem(unit) {
        Some(rest) => value - rest,
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stays_inside_64_bits() {
        assert_eq!(round_up(1, 512), Some(512));
        assert_eq!(round_up(1024, 512), Some(1024));
        assert_eq!(round_up(u64::MAX, 512), None);
        assert_eq!(round_up(7, 0), None);
        assert_eq!(round_down(1023, 512), 512);
        assert_eq!(round_down(7, 0), 7);
        assert_eq!(FileOffset(u64::MAX).checked_add(1), None);
    }
}
