//! XFS, versions 4 and 5.
//!
//! Owns: superblock, allocation groups, the tree of free extents by block, and whether the log is clean. Must not know:
//! files.
//!
//! Facts: "XFS Algorithms & Data Structures" (xfs-documentation), chapters on allocation groups and the journaling log.

use super::part::{Bytes, Part, Runs, Stop, doubt, require};

/// Read-only features: trees of free inodes, reverse maps, shared extents, counts of inode trees.
const RO_COMPAT: u32 = 0xF;
/// Incompatible features: file types, sparse inodes, another uuid for metadata, big timestamps, large extent counts,
/// exchanged ranges, parent pointers. Among the rest: 0x10 needs repair.
const INCOMPAT: u32 = 0xEF;
/// The most levels a tree has.
const MAX_LEVELS: u32 = 9;
/// The magic number that starts a record of the log.
const RECORD: u32 = 0xFEED_BABE;
/// Bytes of a basic block, the unit of the log.
const BASIC: u64 = 512;
/// The most basic blocks a record of the log takes: 256 KiB, and a header for each 32 KiB of it.
const MAX_RECORD: u64 = (256 << 10) / BASIC + 8;
/// The block number that stands for none.
const NULL: u32 = u32::MAX;

struct Super {
    block: u64,
    sector: u64,
    blocks: u64,
    group_blocks: u64,
    groups: u64,
    group_log: u32,
    log_start: u64,
    log_blocks: u64,
    version5: bool,
}

/// Shows the free blocks.
pub(super) fn free(part: &Part<'_>, runs: &mut Runs<'_>) -> Result<(), Stop> {
    let sb = Super::read(part)?;
    sb.require_clean_log(part)?;
    for group in 0..sb.groups {
        sb.group(part, group, runs)?;
    }
    Ok(())
}

/// Whether the checksum at `at` (little-endian, counted as zero) fits the bytes.
fn sums_up(bytes: &Bytes, at: usize) -> Result<bool, Stop> {
    let mut summed = bytes.0.clone();
    summed.get_mut(at..at.saturating_add(4)).unwrap_or_default().fill(0);
    Ok(crc32c::crc32c(&summed) == bytes.le32(at)?)
}

impl Super {
    fn read(part: &Part<'_>) -> Result<Self, Stop> {
        let head = part.bytes(0, BASIC)?;
        let sector = u64::from(head.be16(102)?);
        require(
            sector.is_power_of_two() && (512..=32768).contains(&sector),
            format_args!("sectors of {sector} bytes"),
        )?;
        let raw = part.bytes(0, sector)?;
        let version = raw.be16(100)? & 0xF;
        require(matches!(version, 4 | 5), format_args!("version {version}"))?;
        let version5 = version == 5;
        if version5 {
            require(sums_up(&raw, 224)?, "a wrong checksum of the superblock")?;
            let unknown = (raw.be32(212)? & !RO_COMPAT, raw.be32(216)? & !INCOMPAT, raw.be32(220)?);
            require(unknown == (0, 0, 0), format_args!("features that are not handled here: {unknown:x?}"))?;
        }
        require(raw.u8(126)? == 0, "it was never finished being made")?;
        let sb = Self {
            block: u64::from(raw.be32(4)?),
            sector,
            blocks: raw.be64(8)?,
            group_blocks: u64::from(raw.be32(84)?),
            groups: u64::from(raw.be32(88)?),
            group_log: u32::from(raw.u8(124)?),
            log_start: raw.be64(48)?,
            log_blocks: u64::from(raw.be32(96)?),
            version5,
        };
        require(sb.log_start != 0, "its log is on another device")?;
        let sound = sb.block.is_power_of_two()
            && (512..=65536).contains(&sb.block)
            && sb.block >= sector
            && sb.group_log <= 31
            && sb.group_blocks > 8
            && sb.group_blocks <= 1 << sb.group_log
            && sb.blocks.div_ceil(sb.group_blocks) == sb.groups
            && sb.blocks.checked_mul(sb.block).is_some_and(|bytes| bytes <= part.size());
        require(sound, "a superblock whose numbers do not fit each other or the volume")?;
        Ok(sb)
    }

    fn group_len(&self, group: u64) -> u64 {
        self.blocks.saturating_sub(group.saturating_mul(self.group_blocks)).min(self.group_blocks)
    }

    fn at(&self, group: u64, block: u64) -> u64 {
        group.saturating_mul(self.group_blocks).saturating_add(block).saturating_mul(self.block)
    }

    /// The free extents of one group, which must add up to what its header says.
    fn group(&self, part: &Part<'_>, group: u64, runs: &mut Runs<'_>) -> Result<(), Stop> {
        let raw = part.bytes(self.at(group, 0).saturating_add(self.sector), self.sector)?;
        let length = self.group_len(group);
        let bad = |what: &str| format!("group {group}: {what} of its free space header");
        require(raw.part(0..4)? == b"XAGF" && raw.be32(4)? == 1, bad("a wrong signature"))?;
        require(
            u64::from(raw.be32(8)?) == group && u64::from(raw.be32(12)?) == length,
            bad("another number or length"),
        )?;
        if self.version5 {
            require(sums_up(&raw, 216)?, bad("a wrong checksum"))?;
        }
        let (root, levels, said) = (raw.be32(16)?, raw.be32(28)?, u64::from(raw.be32(52)?));
        require((1..=MAX_LEVELS).contains(&levels), bad("a wrong number of levels"))?;
        let mut at = root;
        for level in (1..levels).rev() {
            let node = self.tree_block(part, group, at)?;
            require(u32::from(node.be16(4)?) == level && node.be16(6)? > 0, bad("a wrong level in the tree"))?;
            let header = self.header_len();
            let most = self.block.saturating_sub(header).checked_div(12).unwrap_or(0);
            at = node.be32(usize::try_from(header.saturating_add(most.saturating_mul(8))).unwrap_or(usize::MAX))?;
        }
        let (mut free, mut seen) = (0u64, 0u64);
        while at != NULL {
            seen = seen.saturating_add(1);
            require(seen <= length, bad("a circle in the tree"))?;
            let leaf = self.tree_block(part, group, at)?;
            require(leaf.be16(4)? == 0, bad("a wrong level in the tree"))?;
            let mut record = usize::try_from(self.header_len()).unwrap_or(usize::MAX);
            for _ in 0..leaf.be16(6)? {
                let start = u64::from(leaf.be32(record)?);
                let count = u64::from(leaf.be32(record.saturating_add(4))?);
                require(
                    start > 0 && count > 0 && start.saturating_add(count) <= length,
                    bad("an extent outside the group"),
                )?;
                runs.push(self.at(group, start)..self.at(group, start.saturating_add(count)))?;
                free = free.saturating_add(count);
                record = record.saturating_add(8);
            }
            at = leaf.be32(12)?;
        }
        require(free == said, format_args!("group {group}: {free} blocks free, and its header says {said}"))
    }

    fn header_len(&self) -> u64 {
        if self.version5 { 56 } else { 16 }
    }

    fn tree_block(&self, part: &Part<'_>, group: u64, block: u32) -> Result<Bytes, Stop> {
        let bad = |what: &str| format!("group {group}: {what} of the free extents' tree");
        require(u64::from(block) < self.group_len(group), bad("a block outside the group"))?;
        let bytes = part.bytes(self.at(group, u64::from(block)), self.block)?;
        let signature: &[u8] = if self.version5 { b"AB3B" } else { b"ABTB" };
        require(bytes.part(0..4)? == signature, bad("a wrong signature"))?;
        if self.version5 {
            require(sums_up(&bytes, 52)?, bad("a wrong checksum"))?;
        }
        Ok(bytes)
    }

    /// The log is clean when the last record in it says that the file system was unmounted.
    fn require_clean_log(&self, part: &Part<'_>) -> Result<(), Stop> {
        let group = self.log_start >> self.group_log;
        let block = self.log_start & (1u64 << self.group_log).saturating_sub(1);
        let start = self.at(group, block);
        let count = self.log_blocks.saturating_mul(self.block) / BASIC;
        let log = Log { part, start, count };
        require(count > 0 && group < self.groups, "a log outside the volume")?;
        let head = log.head()?;
        // Behind the record's header its data up to the head, and nothing else.
        for back in 1..=MAX_RECORD.min(head) {
            let at = head.saturating_sub(back);
            let header = log.block(at)?;
            if header.be32(0)? != RECORD {
                continue;
            }
            let size = header.be32(320)?;
            let headers = if header.be32(8)? & 2 != 0 { u64::from(size.div_ceil(32 << 10).max(1)) } else { 1 };
            let data = at.saturating_add(headers);
            let end = data.saturating_add(u64::from(header.be32(12)?).div_ceil(BASIC));
            require(end == head && header.be32(40)? == 1 && data < head, "its log is not empty: it was not unmounted")?;
            let unmount = log.block(data)?.u8(9)? & 0x20 != 0;
            return require(unmount, "its log is not empty: it was not unmounted");
        }
        doubt("its log ends in no record")
    }
}

/// The journaling log, in basic blocks.
struct Log<'a> {
    part: &'a Part<'a>,
    start: u64,
    count: u64,
}

impl Log<'_> {
    fn block(&self, at: u64) -> Result<Bytes, Stop> {
        self.part.bytes(self.start.saturating_add(at.saturating_mul(BASIC)), BASIC)
    }

    /// Every block says in which round through the log it was written, in its first word or behind a record's magic.
    fn round(&self, at: u64) -> Result<u32, Stop> {
        let block = self.block(at)?;
        let first = block.be32(0)?;
        if first == RECORD { block.be32(4) } else { Ok(first) }
    }

    /// Where the next record goes: the first block of the round before, or the end.
    fn head(&self) -> Result<u64, Stop> {
        let last = self.count.saturating_sub(1);
        let (newest, oldest) = (self.round(0)?, self.round(last)?);
        if newest == oldest {
            return Ok(self.count);
        }
        require(
            newest > 0 && (oldest == 0 || oldest.checked_add(1) == Some(newest)),
            "a log whose rounds are out of order",
        )?;
        let (mut low, mut high) = (0, last);
        while high.saturating_sub(low) > 1 {
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            if self.round(middle)? == newest {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(high)
    }
}
