//! Cylinders, heads and sectors.
//!
//! Owns: the CHS algorithm (VHD 1.0, appendix "CHS Calculation"). Must not know: where the result is stored.

use crate::units::SECTOR;

/// A CHS geometry. Its product is at most the disk's size and usually a little less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
}

/// The largest geometry, which also stands for "look at the size instead".
const LARGEST: u64 = 65_535 * 16 * 255;
/// From here on a track has 255 sectors.
const LONG_TRACKS: u64 = 65_535 * 16 * 63;

impl Geometry {
    /// The geometry of a disk of `size` bytes.
    #[must_use]
    pub(super) fn of(size: u64) -> Self {
        let total = (size / SECTOR).min(LARGEST);
        let full = |heads: u64| heads.saturating_mul(1024);
        let (sectors, heads, tracks) = if total >= LONG_TRACKS {
            (255, 16, total / 255)
        } else {
            let (mut sectors, mut tracks) = (17, total / 17);
            let mut heads = tracks.div_ceil(1024).max(4);
            if tracks >= full(heads) || heads > 16 {
                (sectors, heads, tracks) = (31, 16, total / 31);
            }
            if tracks >= full(heads) {
                (sectors, heads, tracks) = (63, 16, total / 63);
            }
            (sectors, heads, tracks)
        };
        let cylinders = tracks.checked_div(heads).unwrap_or(0);
        Self {
            cylinders: u16::try_from(cylinders).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors,
        }
    }

    /// The bytes it addresses.
    #[must_use]
    pub(super) fn bytes(self) -> u64 {
        let sectors = u64::from(self.cylinders).saturating_mul(self.heads.into()).saturating_mul(self.sectors.into());
        sectors.saturating_mul(SECTOR)
    }

    /// Whether it is the largest geometry there is, which tells CHS-minded readers to use the size field.
    #[must_use]
    pub(super) fn is_largest(self) -> bool {
        self.bytes() == LARGEST.saturating_mul(SECTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hyper-V 2012 R2 and qemu samples among them: a geometry off by one makes CHS-minded readers cut the disk.
    #[test]
    fn known_sizes_have_known_geometries() {
        for (size, cylinders, heads, sectors, bytes) in [
            (3_145_728, 90, 4, 17, 3_133_440),
            (4_194_304, 120, 4, 17, 4_177_920),
            (20_971_520, 602, 4, 17, 20_959_232),
            (67_108_864, 963, 8, 17, 67_055_616),
            (104_857_600, 1003, 12, 17, 104_761_344),
            (528_482_304, 1024, 16, 63, 528_482_304),
            (1_073_741_824, 2080, 16, 63, 1_073_479_680),
            (33_822_350_848, 65534, 16, 63, 33_821_835_264),
            (33_822_351_360, 16191, 16, 255, 33_822_351_360),
            (136_365_211_648, 65278, 16, 255, 136_363_130_880),
            (136_899_993_600, 65535, 16, 255, 136_899_993_600),
            (u64::MAX, 65535, 16, 255, 136_899_993_600),
        ] {
            let geometry = Geometry::of(size);
            assert_eq!(geometry, Geometry { cylinders, heads, sectors }, "size {size}");
            assert_eq!(geometry.bytes(), bytes, "size {size}");
        }
        assert!(Geometry::of(u64::MAX).is_largest());
        assert_eq!(Geometry::of(0).bytes(), 0);
        assert_eq!(Geometry::of(512), Geometry { cylinders: 0, heads: 4, sectors: 17 });
    }
}
