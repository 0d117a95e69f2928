//! ext2, ext3 and ext4.
//!
//! Owns: the superblock, group descriptors and block bitmaps, as far as free space goes, and which features are known.
//! Must not know: files.
//!
//! Facts: the kernel's "ext4 Data Structures and Algorithms" (super block, block group descriptors, bitmaps, checksums).

use super::part::{Bytes, Part, Runs, Stop, doubt, require};
use std::ops::Range;

const SUPER_AT: u64 = 1024;
/// Features that change nothing about where free space is written down.
const COMPAT: u32 = 0x1F | COMPAT_DIR_INDEX | COMPAT_SPARSE_SUPER2 | 0x400 | 0x800 | 0x1000;
const COMPAT_DIR_INDEX: u32 = 0x20;
const COMPAT_SPARSE_SUPER2: u32 = 0x200;
/// Among the rest: 0x1 compression, 0x8 a journal's own device, 0x100 a volume that other hosts may have mounted.
const INCOMPAT: u32 = 0x2 | META_BG | 0x40 | BIT64 | 0x200 | 0x400 | CSUM_SEED | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const BIT64: u32 = 0x80;
const CSUM_SEED: u32 = 0x2000;
/// Among the rest: 0x80 snapshots, 0x200 clusters of several blocks, 0x4000 shared blocks.
const RO_COMPAT: u32 =
    SPARSE_SUPER | 0x2 | 0x4 | 0x8 | GDT_CSUM | 0x20 | 0x40 | 0x100 | METADATA_CSUM | 0x1000 | 0x2000 | 0x8000;
const SPARSE_SUPER: u32 = 0x1;
const GDT_CSUM: u32 = 0x10;
const METADATA_CSUM: u32 = 0x400;
const ORPHAN_PRESENT: u32 = 0x1_0000;
/// Flags of a group whose bitmap was never written.
const BLOCK_UNINIT: u16 = 0x2;
/// The most groups that are read: 128 TiB in blocks of 4 KiB, 8 TiB in blocks of 1 KiB.
const MAX_GROUPS: u64 = 1 << 20;
/// The largest descriptor there is.
const MAX_DESCRIPTOR: u64 = 1024;

/// What the superblock says.
struct Super {
    raw: Bytes,
    block: u64,
    blocks: u64,
    first: u64,
    per_group: u64,
    groups: u64,
    inodes_per_group: u64,
    inode_size: u64,
    descriptor: u64,
    compat: u32,
    incompat: u32,
    ro_compat: u32,
    /// What checksums of metadata start from.
    seed: u32,
}

/// What one group's descriptor says.
struct Group {
    bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    uninit: bool,
    bitmap_checksum: u32,
}

/// Shows the free blocks.
pub(super) fn free(part: &Part<'_>, runs: &mut Runs<'_>) -> Result<(), Stop> {
    let sb = Super::read(part)?;
    let groups = sb.groups(part)?;
    let tables = sb.tables(&groups);
    let mut total = 0u64;
    for (number, group) in (0u64..).zip(&groups) {
        let range = sb.blocks_of(number);
        let count = range.end.saturating_sub(range.start);
        let free = if group.uninit {
            sb.free_of_uninit(number, &tables, runs)?
        } else {
            let bitmap = part.bytes(group.bitmap.saturating_mul(sb.block), sb.block)?;
            if sb.ro_compat & METADATA_CSUM != 0 {
                let summed = bitmap.part(0..usize::try_from(sb.per_group / 8).unwrap_or(usize::MAX))?;
                let sum = checksum(sb.seed, summed);
                let mask = if sb.descriptor >= 64 { u32::MAX } else { 0xFFFF };
                require(
                    sum & mask == group.bitmap_checksum & mask,
                    format_args!("group {number}: a wrong checksum of its bitmap"),
                )?;
            }
            let in_bytes = range.start.saturating_mul(sb.block);
            runs.push_clear(&bitmap.0, count, in_bytes, sb.block)?
        };
        require(
            free == group.free,
            format_args!("group {number}: {free} blocks free, and its descriptor says {}", group.free),
        )?;
        total = total.saturating_add(free);
    }
    let said = join(sb.raw.le32(12)?, if sb.incompat & BIT64 != 0 { sb.raw.le32(344)? } else { 0 });
    require(total == said, format_args!("{total} blocks free in all, and the superblock says {said}"))
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// CRC-32C as ext4 has it: no inversion at either end.
fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The CRC-16 of descriptors without metadata checksums (polynomial 0x8005, reflected).
fn crc16(start: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(start, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 != 0 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}

impl Super {
    fn read(part: &Part<'_>) -> Result<Self, Stop> {
        let raw = part.bytes(SUPER_AT, 1024)?;
        let shift = raw.le32(24)?;
        require(shift <= 6, format_args!("blocks of 2^{} bytes", u64::from(shift).saturating_add(10)))?;
        let (compat, incompat, ro_compat) = match raw.le32(76)? {
            0 => (0, 0, 0),
            _ => (raw.le32(92)?, raw.le32(96)?, raw.le32(100)?),
        };
        clean(&raw, incompat, ro_compat)?;
        for (kind, unknown) in [
            ("compatible", compat & !COMPAT),
            ("incompatible", incompat & !INCOMPAT),
            ("read-only", ro_compat & !RO_COMPAT),
        ] {
            require(unknown == 0, format_args!("{kind} features {unknown:#x}, which are not handled here"))?;
        }
        let block = 1024u64 << shift;
        let blocks = join(raw.le32(4)?, if incompat & BIT64 != 0 { raw.le32(336)? } else { 0 });
        let (first, per_group) = (u64::from(raw.le32(20)?), u64::from(raw.le32(32)?));
        let descriptor = if incompat & BIT64 != 0 { u64::from(raw.le16(254)?) } else { 32 };
        let inode_size = if raw.le32(76)? == 0 { 128 } else { u64::from(raw.le16(88)?) };
        let sound = per_group >= 256
            && per_group.is_multiple_of(8)
            && per_group <= block.saturating_mul(8)
            && first == u64::from(block == 1024)
            && blocks > first
            && blocks.checked_mul(block).is_some_and(|bytes| bytes <= part.size())
            && (32..=MAX_DESCRIPTOR.min(block)).contains(&descriptor)
            && descriptor.is_power_of_two();
        require(sound, "a superblock whose numbers do not fit each other or the volume")?;
        let groups = blocks.saturating_sub(first).div_ceil(per_group);
        require(groups <= MAX_GROUPS, format_args!("{groups} groups; up to {MAX_GROUPS} are read"))?;
        let seed = if incompat & CSUM_SEED != 0 { raw.le32(624)? } else { checksum(u32::MAX, raw.part(104..120)?) };
        let inodes_per_group = u64::from(raw.le32(40)?);
        let sb = Self {
            raw,
            block,
            blocks,
            first,
            per_group,
            groups,
            inodes_per_group,
            inode_size,
            descriptor,
            compat,
            incompat,
            ro_compat,
            seed,
        };
        if ro_compat & METADATA_CSUM != 0 {
            let sum = checksum(u32::MAX, sb.raw.part(0..1020)?);
            require(sum == sb.raw.le32(1020)?, "a wrong checksum of the superblock")?;
        }
        Ok(sb)
    }

    /// The blocks of group `number`.
    fn blocks_of(&self, number: u64) -> Range<u64> {
        let start = self.first.saturating_add(number.saturating_mul(self.per_group));
        start..start.saturating_add(self.per_group).min(self.blocks)
    }

    fn descriptors_per_block(&self) -> u64 {
        self.block.checked_div(self.descriptor).unwrap_or(1)
    }

    /// How many blocks of descriptors follow a superblock.
    fn leading_descriptor_blocks(&self) -> Result<u64, Stop> {
        let all = self.groups.div_ceil(self.descriptors_per_block());
        Ok(if self.incompat & META_BG != 0 { all.min(u64::from(self.raw.le32(260)?)) } else { all })
    }

    /// Whether group `number` starts with a copy of the superblock.
    fn has_super(&self, number: u64) -> Result<bool, Stop> {
        let power_of = |base: u64| {
            std::iter::successors(Some(base), |power| power.checked_mul(base)).take(40).any(|power| power == number)
        };
        Ok(if self.compat & COMPAT_SPARSE_SUPER2 != 0 {
            number == 0
                || [588, 592]
                    .into_iter()
                    .map(|at| self.raw.le32(at))
                    .collect::<Result<Vec<_>, _>>()?
                    .into_iter()
                    .any(|group| u64::from(group) == number)
        } else if self.ro_compat & SPARSE_SUPER != 0 {
            number <= 1 || [3, 5, 7].into_iter().any(power_of)
        } else {
            true
        })
    }

    /// Reads all descriptors.
    fn groups(&self, part: &Part<'_>) -> Result<Vec<Group>, Stop> {
        let (per_block, leading) = (self.descriptors_per_block(), self.leading_descriptor_blocks()?);
        let mut groups = Vec::new();
        for index in 0..self.groups.div_ceil(per_block) {
            let first = index.saturating_mul(per_block);
            let at = if index < leading {
                self.first.saturating_add(1).saturating_add(index)
            } else {
                self.blocks_of(first).start.saturating_add(u64::from(self.has_super(first)?))
            };
            let bytes = part.bytes(at.saturating_mul(self.block), self.block)?;
            for number in first..first.saturating_add(per_block).min(self.groups) {
                let start = number.saturating_sub(first).saturating_mul(self.descriptor);
                let start = usize::try_from(start).unwrap_or(usize::MAX);
                let len = usize::try_from(self.descriptor).unwrap_or(usize::MAX);
                let raw = Bytes(bytes.part(start..start.saturating_add(len))?.to_vec());
                groups.push(self.group(number, &raw)?);
            }
        }
        Ok(groups)
    }

    fn group(&self, number: u64, raw: &Bytes) -> Result<Group, Stop> {
        let summed = self.ro_compat & (GDT_CSUM | METADATA_CSUM) != 0;
        if summed {
            let sum = self.descriptor_checksum(number, raw)?;
            require(sum == raw.le16(30)?, format_args!("group {number}: a wrong checksum of its descriptor"))?;
        }
        let wide = self.descriptor >= 64;
        let high = |at| if wide { raw.le32(at) } else { Ok(0) };
        let high16 = |at| if wide { raw.le16(at) } else { Ok(0) };
        let two = |low: u16, high: u16| u64::from(low) | u64::from(high) << 16;
        Ok(Group {
            bitmap: join(raw.le32(0)?, high(32)?),
            inode_bitmap: join(raw.le32(4)?, high(36)?),
            inode_table: join(raw.le32(8)?, high(40)?),
            free: two(raw.le16(12)?, high16(44)?),
            uninit: summed && raw.le16(18)? & BLOCK_UNINIT != 0,
            bitmap_checksum: u32::from(raw.le16(24)?) | u32::from(high16(56)?) << 16,
        })
    }

    fn descriptor_checksum(&self, number: u64, raw: &Bytes) -> Result<u16, Stop> {
        let number = u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let (before, behind) = (raw.part(0..30)?, raw.part(32..raw.0.len())?);
        if self.ro_compat & METADATA_CSUM != 0 {
            let sum = [&number[..], before, &[0, 0], behind].into_iter().fold(self.seed, checksum);
            return Ok(u16::try_from(sum & 0xFFFF).unwrap_or(0));
        }
        Ok([self.raw.part(104..120)?, &number, before, behind].into_iter().fold(u16::MAX, crc16))
    }

    /// The blocks of all bitmaps and inode tables, sorted and joined.
    fn tables(&self, groups: &[Group]) -> Vec<Range<u64>> {
        let inodes = self.inodes_per_group.saturating_mul(self.inode_size).div_ceil(self.block);
        let mut tables: Vec<Range<u64>> = Vec::new();
        let mut add = |start: u64, count: u64| match tables.last_mut() {
            Some(last) if last.end == start => last.end = start.saturating_add(count),
            _ => tables.push(start..start.saturating_add(count)),
        };
        groups.iter().for_each(|group| add(group.bitmap, 1));
        groups.iter().for_each(|group| add(group.inode_bitmap, 1));
        groups.iter().for_each(|group| add(group.inode_table, inodes));
        tables.sort_by_key(|range| range.start);
        tables
    }

    /// The free blocks of a group whose bitmap was never written: all but the superblock, descriptors, and what tables of
    /// any group lie in it.
    fn free_of_uninit(&self, number: u64, tables: &[Range<u64>], runs: &mut Runs<'_>) -> Result<u64, Stop> {
        let group = self.blocks_of(number);
        let mut at = group.start;
        if self.has_super(number)? {
            let reserved = if self.incompat & META_BG != 0 { 0 } else { u64::from(self.raw.le16(206)?) };
            at = at.saturating_add(1).saturating_add(self.leading_descriptor_blocks()?).saturating_add(reserved);
        }
        if self.incompat & META_BG != 0 {
            // Its first, second and last group hold a copy of a metagroup's descriptors.
            let per_block = self.descriptors_per_block();
            let inside = number.checked_rem(per_block).unwrap_or(0);
            let beyond = number.checked_div(per_block).unwrap_or(0) >= u64::from(self.raw.le32(260)?);
            let holds = beyond && (inside <= 1 || inside.saturating_add(1) == per_block);
            if beyond && self.has_super(number)? {
                at = group.start.saturating_add(1);
            }
            at = at.saturating_add(u64::from(holds));
        }
        let mut free = 0u64;
        let first = tables.partition_point(|table| table.end <= group.start);
        for table in tables.get(first..).unwrap_or_default() {
            if table.start >= group.end {
                break;
            }
            free = free.saturating_add(self.push_blocks(at..table.start.min(group.end), runs)?);
            at = at.max(table.end);
        }
        Ok(free.saturating_add(self.push_blocks(at..group.end, runs)?))
    }

    fn push_blocks(&self, blocks: Range<u64>, runs: &mut Runs<'_>) -> Result<u64, Stop> {
        if blocks.is_empty() {
            return Ok(0);
        }
        runs.push(blocks.start.saturating_mul(self.block)..blocks.end.saturating_mul(self.block))?;
        Ok(blocks.end.saturating_sub(blocks.start))
    }
}

/// Whether it was unmounted in good order.
fn clean(raw: &Bytes, incompat: u32, ro_compat: u32) -> Result<(), Stop> {
    let state = raw.le16(58)?;
    if incompat & RECOVER != 0 {
        return doubt("its journal has to be replayed: it was not unmounted");
    }
    require(state & 1 != 0, "it was not unmounted")?;
    require(state & !1 == 0, "it has errors that a file system check has to mend")?;
    require(ro_compat & ORPHAN_PRESENT == 0 && raw.le32(232)? == 0, "deleted files wait to be cleaned up")
}
