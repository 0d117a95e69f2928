//! exFAT.
//!
//! Owns: the boot region, the root directory as far as the allocation bitmap, and the bitmap. Must not know: files.
//!
//! Facts: Microsoft "exFAT file system specification" (sections 3, 4.1, 7.1).

use super::part::{Bytes, Part, Runs, Stop, doubt, require};

/// The most clusters of the root directory that are looked through; the bitmap's entry is among the first ones.
const MAX_ROOT_CLUSTERS: u32 = 1024;
/// The most bytes of a cluster that are read at a time.
const STEP: u64 = 64 << 10;
/// What an entry of the root directory that names an allocation bitmap starts with.
const BITMAP_ENTRY: u8 = 0x81;
const ENTRY_LEN: usize = 32;

struct Layout {
    fat: u64,
    fat_len: u64,
    heap: u64,
    clusters: u32,
    cluster: u64,
    root: u32,
}

/// Shows the free clusters.
pub(super) fn free(part: &Part<'_>, runs: &mut Runs<'_>) -> Result<(), Stop> {
    let layout = Layout::read(part)?;
    let (first, len) = layout.find_bitmap(part)?;
    let count = u64::from(layout.clusters);
    require(len >= count.div_ceil(8), "an allocation bitmap too short for the clusters")?;
    let (mut at, mut bit) = (first, 0u64);
    let mut seen = 0u64;
    while bit < count {
        seen = seen.saturating_add(1);
        require(seen <= count, "an allocation bitmap that runs in a circle")?;
        let start = layout.place(at)?;
        let mut inside = 0;
        while inside < layout.cluster && bit < count {
            let bytes = part.bytes(start.saturating_add(inside), STEP.min(layout.cluster))?;
            let here = (bytes.0.len() as u64).saturating_mul(8).min(count.saturating_sub(bit));
            for own in [first, layout.root] {
                let own = u64::from(own).saturating_sub(2);
                let used = own.checked_sub(bit).filter(|own| *own < here).is_none_or(|own| {
                    let byte = usize::try_from(own / 8).ok().and_then(|at| bytes.0.get(at)).copied();
                    byte.unwrap_or(0) >> (own % 8) & 1 != 0
                });
                require(used, "an allocation bitmap that says its own clusters are free")?;
            }
            let offset = layout.heap.saturating_add(bit.saturating_mul(layout.cluster));
            runs.push_clear(&bytes.0, here, offset, layout.cluster)?;
            bit = bit.saturating_add(here);
            inside = inside.saturating_add(bytes.0.len() as u64);
        }
        if bit < count {
            at = layout.next(part, at)?;
        }
    }
    Ok(())
}

impl Layout {
    fn read(part: &Part<'_>) -> Result<Self, Stop> {
        let raw = part.bytes(0, 512)?;
        let (sector_log, cluster_log) = (raw.u8(108)?, raw.u8(109)?);
        require((9..=12).contains(&sector_log) && cluster_log <= 25, "sectors or clusters of a size there is not")?;
        let sector = 1u64 << sector_log;
        require(boot_checksum(part, sector)?, "a wrong checksum of the boot region")?;
        let flags = raw.le16(106)?;
        require(flags & 2 == 0, "it was not unmounted")?;
        require(flags & 4 == 0, "the disk under it failed before")?;
        require(raw.u8(110)? == 1 && flags & 1 == 0, "it has two allocation tables (TexFAT)")?;
        let in_bytes = |at| Ok::<u64, Stop>(u64::from(raw.le32(at)?).saturating_mul(sector));
        let layout = Self {
            fat: in_bytes(80)?,
            fat_len: in_bytes(84)?,
            heap: in_bytes(88)?,
            clusters: raw.le32(92)?,
            cluster: sector << cluster_log,
            root: raw.le32(96)?,
        };
        let volume = raw.le64(72)?.saturating_mul(sector);
        let heap_end = layout.heap.saturating_add(u64::from(layout.clusters).saturating_mul(layout.cluster));
        let sound = layout.cluster <= 32 << 20
            && volume <= part.size()
            && heap_end <= volume
            && layout.fat.saturating_add(layout.fat_len) <= layout.heap
            && u64::from(layout.clusters).saturating_add(2).saturating_mul(4) <= layout.fat_len;
        require(sound, "a boot sector whose numbers do not fit each other or the volume")?;
        Ok(layout)
    }

    /// Where cluster `number` is.
    fn place(&self, number: u32) -> Result<u64, Stop> {
        let index = number.checked_sub(2).filter(|index| *index < self.clusters);
        let index = index.ok_or_else(|| Stop::Doubt(format!("cluster {number}, which is not there")))?;
        Ok(self.heap.saturating_add(u64::from(index).saturating_mul(self.cluster)))
    }

    /// The cluster after `number`.
    fn next(&self, part: &Part<'_>, number: u32) -> Result<u32, Stop> {
        part.bytes(self.fat.saturating_add(u64::from(number).saturating_mul(4)), 4)?.le32(0)
    }

    /// The first cluster of the allocation bitmap and its length in bytes.
    fn find_bitmap(&self, part: &Part<'_>) -> Result<(u32, u64), Stop> {
        let mut at = self.root;
        for _ in 0..MAX_ROOT_CLUSTERS {
            let start = self.place(at)?;
            let mut inside = 0;
            while inside < self.cluster {
                let bytes = part.bytes(start.saturating_add(inside), STEP.min(self.cluster))?;
                for entry in bytes.0.chunks_exact(ENTRY_LEN) {
                    match entry.first() {
                        Some(&BITMAP_ENTRY) => {
                            let entry = Bytes(entry.to_vec());
                            return Ok((entry.le32(20)?, entry.le64(24)?));
                        }
                        Some(0) => return doubt("no allocation bitmap"),
                        _ => {}
                    }
                }
                inside = inside.saturating_add(bytes.0.len() as u64);
            }
            at = self.next(part, at)?;
        }
        doubt("no allocation bitmap")
    }
}

/// Whether the twelfth sector repeats the checksum of the eleven before it. Two fields that change without it are left out.
fn boot_checksum(part: &Part<'_>, sector: u64) -> Result<bool, Stop> {
    let region = part.bytes(0, sector.saturating_mul(11))?;
    let sum = region
        .0
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 106 | 107 | 112))
        .fold(0u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u32::from(*byte)));
    let repeated = part.bytes(sector.saturating_mul(11), sector)?;
    Ok(repeated.0.as_chunks::<4>().0.iter().all(|word| u32::from_le_bytes(*word) == sum))
}
