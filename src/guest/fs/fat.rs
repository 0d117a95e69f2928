//! FAT12, FAT16 and FAT32.
//!
//! Owns: the boot sector and the file allocation tables, as far as free space goes. Must not know: files.
//!
//! Facts: Microsoft "FAT: General Overview of On-Disk Format" 1.03; the dirty flag in the boot sector is the one Windows
//! and Linux keep.

use super::part::{Bytes, Part, Runs, Stop, require};

/// Bytes of a table that are read at a time: whole entries of all three kinds.
const STEP: u64 = 3 * 4096 * 16;
/// The numbers of clusters from which on a volume is FAT16 and FAT32.
const FAT16_FROM: u64 = 4085;
const FAT32_FROM: u64 = 65525;

struct Layout {
    /// Bits per entry.
    bits: u64,
    clusters: u64,
    cluster: u64,
    data: u64,
    /// Where the tables are.
    tables: Vec<u64>,
    table: u64,
}

/// Shows the free clusters.
pub(super) fn free(part: &Part<'_>, runs: &mut Runs<'_>) -> Result<(), Stop> {
    let layout = Layout::read(part)?;
    let entries = layout.clusters.saturating_add(2);
    require(entries.saturating_mul(layout.bits).div_ceil(8) <= layout.table, "tables too small for the clusters")?;
    let mut number = 0u64;
    let mut at = 0u64;
    while number < entries {
        let len = layout.table.saturating_sub(at).min(STEP);
        let step = layout.read_tables(part, at, len)?;
        let here = (len.saturating_mul(8).checked_div(layout.bits).unwrap_or(0)).min(entries.saturating_sub(number));
        require(here > 0, "tables too small for the clusters")?;
        for index in 0..here {
            let entry = layout.entry(&step, index)?;
            let cluster = number.saturating_add(index);
            if cluster == 1 {
                layout.require_clean(entry)?;
            } else if cluster > 1 && entry == 0 {
                let start = cluster.saturating_sub(2).saturating_mul(layout.cluster).saturating_add(layout.data);
                runs.push(start..start.saturating_add(layout.cluster))?;
            }
        }
        number = number.saturating_add(here);
        at = at.saturating_add(len);
    }
    Ok(())
}

impl Layout {
    fn read(part: &Part<'_>) -> Result<Self, Stop> {
        let raw = part.bytes(0, 512)?;
        let sector = u64::from(raw.le16(11)?);
        let per_cluster = u64::from(raw.u8(13)?);
        let (reserved, copies) = (u64::from(raw.le16(14)?), u64::from(raw.u8(16)?));
        let roots = u64::from(raw.le16(17)?);
        let (short, long) = (u64::from(raw.le16(19)?), u64::from(raw.le32(32)?));
        let sectors = if short != 0 { short } else { long };
        let (small, large) = (u64::from(raw.le16(22)?), u64::from(raw.le32(36)?));
        let is32 = small == 0;
        let table = if is32 { large } else { small };
        let root = roots.saturating_mul(32).div_ceil(sector.max(1));
        let data = reserved.saturating_add(copies.saturating_mul(table)).saturating_add(root);
        let sound = raw.le16(510)? == 0xAA55
            && sector.is_power_of_two()
            && (512..=4096).contains(&sector)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=4).contains(&copies)
            && table > 0
            && data < sectors
            && sectors.saturating_mul(sector) <= part.size();
        require(sound, "a boot sector whose numbers do not fit each other or the volume")?;
        let clusters = sectors.saturating_sub(data).checked_div(per_cluster).unwrap_or(0);
        let bits = match clusters {
            _ if clusters < FAT16_FROM => 12,
            _ if clusters < FAT32_FROM => 16,
            _ => 32,
        };
        require(
            is32 == (bits == 32),
            format_args!("{clusters} clusters, which is another kind of FAT than its boot sector describes"),
        )?;
        let dirty = raw.u8(if is32 { 65 } else { 37 })?;
        require(dirty & 3 == 0, "it was not unmounted, or has errors")?;
        let flags = if is32 { raw.le16(40)? } else { 0 };
        let first = reserved.saturating_mul(sector);
        let table = table.saturating_mul(sector);
        let place = |copy: u64| first.saturating_add(copy.saturating_mul(table));
        let tables = if flags & 0x80 != 0 {
            let active = u64::from(flags & 0xF);
            require(active < copies, "an active table that is not there")?;
            vec![place(active)]
        } else {
            (0..copies).map(place).collect()
        };
        let (cluster, data) = (per_cluster.saturating_mul(sector), data.saturating_mul(sector));
        Ok(Self { bits, clusters, cluster, data, tables, table })
    }

    /// `len` bytes at `at` of the tables, which must all say the same.
    fn read_tables(&self, part: &Part<'_>, at: u64, len: u64) -> Result<Bytes, Stop> {
        let mut first: Option<Bytes> = None;
        for table in &self.tables {
            let bytes = part.bytes(table.saturating_add(at), len)?;
            match &first {
                Some(first) => require(first.0 == bytes.0, "its copies of the allocation table differ")?,
                None => first = Some(bytes),
            }
        }
        first.ok_or_else(|| Stop::Doubt("no allocation table".to_owned()))
    }

    fn entry(&self, bytes: &Bytes, index: u64) -> Result<u32, Stop> {
        let at = usize::try_from(index.saturating_mul(self.bits) / 8).unwrap_or(usize::MAX);
        Ok(match self.bits {
            12 => {
                let pair = bytes.le16(at)?;
                u32::from(if index.is_multiple_of(2) { pair & 0xFFF } else { pair >> 4 })
            }
            16 => u32::from(bytes.le16(at)?),
            _ => bytes.le32(at)? & 0x0FFF_FFFF,
        })
    }

    /// The second entry says whether it was unmounted and whether the disk failed; FAT12 has no room for that.
    fn require_clean(&self, entry: u32) -> Result<(), Stop> {
        let (clean, sound) = match self.bits {
            12 => return Ok(()),
            16 => (0x8000, 0x4000),
            _ => (0x0800_0000, 0x0400_0000),
        };
        require(entry & clean != 0, "it was not unmounted")?;
        require(entry & sound != 0, "the disk under it failed before")
    }
}
