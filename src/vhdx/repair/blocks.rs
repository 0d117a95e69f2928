//! Mending entries of the block allocation table.
//!
//! Owns: what becomes of an entry with a flaw, and which bytes of the disk that loses. Must not know: how flaws are found,
//! what comes before and after in a plan.

use super::super::Vhdx;
use super::super::bat::{PayloadEntry, PayloadState, Slot};
use super::super::survey::{Flaw, PLACE_BITS, STATE_BITS};
use super::Plan;
use crate::error::{Error, Result};
use crate::link::DiskKind;
use crate::map::BlockMap;
use crate::mend::RepairKind;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{PAGE, Storage};
use crate::units::{FileOffset, MIB, round_down, round_up};
use std::collections::BTreeMap;
use std::ops::Range;

/// The most entries one plan changes, at some 50 bytes of memory each: all blocks of 1 TiB in the smallest blocks.
const MAX_CHANGES: usize = 1 << 20;
/// The state of a block that reads as zeros, whatever lies below.
const ZERO: u64 = PayloadState::Zero as u64;

/// What an entry becomes.
struct Change {
    raw: u64,
    kind: RepairKind,
    lost: Option<Range<u64>>,
}

/// What becomes of the table.
struct Changes<'a> {
    image: &'a Vhdx,
    allow: &'a [RepairKind],
    file_len: u64,
    entries: BTreeMap<u64, Change>,
    /// The length the file needs for the blocks it cuts, when that is how they are mended.
    extend_to: u64,
    /// What the disk loses by that.
    extension_loses: Vec<Range<u64>>,
}

/// Plans all repairs of entries.
pub(super) fn mend(plan: &mut Plan<'_>) -> Result<()> {
    if mend_once(plan)? {
        // Who owns what is known inside the file only: what lay past its end may have two owners.
        mend_once(plan)?;
    }
    Ok(())
}

/// Plans the repairs of what can be seen in the file as it is. True when that makes the file longer.
fn mend_once(plan: &mut Plan<'_>) -> Result<bool> {
    let image = plan.open()?;
    let mut changes = Changes::new(&image, plan.allow, image.file_len()?);
    image.survey(changes.file_len, &mut |index, raw, flaw| changes.decide(index, raw, &flaw))?;
    for kind in [
        RepairKind::BlockOffsets,
        RepairKind::UnmapLostBlocks,
        RepairKind::ZeroExtend,
        RepairKind::UnmapSharedBlocks,
        RepairKind::PartialToParent,
        RepairKind::PartialToData,
    ] {
        changes.plan(kind, plan)?;
    }
    Ok(changes.extend_to > changes.file_len)
}

/// What of the disk lies past `old_len` in the file, which was made longer since.
pub(super) fn lost_past(image: &Vhdx, old_len: u64) -> Result<Vec<Range<u64>>> {
    let maps = [image.regions.bat(), image.regions.metadata()];
    if maps.iter().any(|region| region.range().end > old_len) {
        return Ok(std::iter::once(0..image.virtual_size()).collect());
    }
    let mut changes = Changes::new(image, &[RepairKind::ZeroExtend], old_len);
    image.survey(old_len, &mut |index, raw, flaw| match flaw {
        Flaw::Cut { lost: true } => changes.decide(index, raw, &flaw),
        _ => Ok(()),
    })?;
    let lost = changes.entries.into_values().filter_map(|change| change.lost);
    Ok(merged(lost.chain(changes.extension_loses).collect()))
}

impl<'a> Changes<'a> {
    fn new(image: &'a Vhdx, allow: &'a [RepairKind], file_len: u64) -> Self {
        Self { image, allow, file_len, entries: BTreeMap::new(), extend_to: 0, extension_loses: Vec::new() }
    }

    fn allows(&self, kind: RepairKind) -> bool {
        self.allow.contains(&kind)
    }

    fn decide(&mut self, index: u64, raw: u64, flaw: &Flaw) -> Result<()> {
        match flaw {
            Flaw::Stray | Flaw::LooseAnchor => self.set(index, raw & STATE_BITS, RepairKind::BlockOffsets, None),
            Flaw::PastDisk | Flaw::NeedlessBitmap => self.set(index, 0, RepairKind::BlockOffsets, None),
            Flaw::Cut { lost: true } => self.lost(index, raw),
            Flaw::OverStructure | Flaw::Shared if self.allows(RepairKind::UnmapSharedBlocks) => {
                self.give_up(index, RepairKind::UnmapSharedBlocks)
            }
            Flaw::NoBitmap { .. } if self.allows(RepairKind::PartialToParent) => {
                self.partial(index, RepairKind::PartialToParent)
            }
            Flaw::NoBitmap { .. } if self.allows(RepairKind::PartialToData) => {
                self.partial(index, RepairKind::PartialToData)
            }
            Flaw::Broken(_)
            | Flaw::Anchor
            | Flaw::Cut { lost: false }
            | Flaw::OverStructure
            | Flaw::Shared
            | Flaw::NoBitmap { .. } => Ok(()),
        }
    }

    /// The first decision about an entry stands.
    fn set(&mut self, index: u64, raw: u64, kind: RepairKind, lost: Option<Range<u64>>) -> Result<()> {
        if self.entries.len() >= MAX_CHANGES {
            let found = format!("more than {MAX_CHANGES} entries to mend");
            let problem = Problem::new(Structure::VhdxBat, Fault::Limit, found, format!("up to {MAX_CHANGES}"));
            return Err(Error::corrupt(problem.at(FileOffset(self.image.bat_offset(index))))
                .with_hint("convert the image to a new file instead"));
        }
        self.entries.entry(index).or_insert(Change { raw, kind, lost });
        Ok(())
    }

    /// An entry whose space the file ends in or before. What is left of it stays when the file may be made longer; a
    /// block with nothing left becomes zeros then without any space, except in a fixed disk, whose blocks all have some.
    fn lost(&mut self, index: u64, raw: u64) -> Result<()> {
        let at = raw & PLACE_BITS;
        let end = at.saturating_add(self.image.space_of(index));
        let geometry = &self.image.geometry;
        let disk_len = geometry.blocks().saturating_mul(geometry.block_size);
        let fixed = self.image.kind() == DiskKind::Fixed;
        let within_reach = at < self.file_len || fixed && end <= self.file_len.saturating_add(disk_len);
        if self.allows(RepairKind::ZeroExtend) && within_reach {
            self.extend_to = self.extend_to.max(end);
            let left = round_down(self.file_len.saturating_sub(at), geometry.logical_sector);
            match geometry.slot(index) {
                Slot::Payload(block) => {
                    let disk = self.image.disk_range(block);
                    self.extension_loses.push(disk.start.saturating_add(left)..disk.end);
                }
                // Bits that become zero show the parent where the child had data.
                Slot::Bitmap(chunk) => {
                    let blocks = self.partial_blocks(chunk)?;
                    self.extension_loses.extend(blocks.iter().map(|(block, _)| self.image.disk_range(*block)));
                }
            }
            return Ok(());
        }
        if self.allows(RepairKind::UnmapLostBlocks) {
            return self.give_up(index, RepairKind::UnmapLostBlocks);
        }
        match geometry.slot(index) {
            _ if !self.allows(RepairKind::ZeroExtend) => Ok(()),
            Slot::Payload(block) => self.set(index, ZERO, RepairKind::ZeroExtend, Some(self.image.disk_range(block))),
            Slot::Bitmap(_) => self.give_up(index, RepairKind::ZeroExtend),
        }
    }

    /// The block shows what lies below, or zeros. Blocks that cannot be read without a sector bitmap go with it.
    fn give_up(&mut self, index: u64, kind: RepairKind) -> Result<()> {
        match self.image.geometry.slot(index) {
            Slot::Payload(block) => {
                let raw = if self.image.kind() == DiskKind::Fixed { ZERO } else { 0 };
                self.set(index, raw, kind, Some(self.image.disk_range(block)))
            }
            Slot::Bitmap(chunk) => {
                for (block, _) in self.partial_blocks(chunk)? {
                    let payload = self.image.geometry.payload_index(block);
                    self.set(payload, 0, kind, Some(self.image.disk_range(block)))?;
                }
                self.set(index, 0, kind, None)
            }
        }
    }

    /// All partially present blocks of the chunk that the entry at `index` belongs to show the parent, or all they have.
    fn partial(&mut self, index: u64, kind: RepairKind) -> Result<()> {
        let Slot::Payload(first) = self.image.geometry.slot(index) else { return Ok(()) };
        for (block, raw) in self.partial_blocks(self.image.geometry.chunk_of(first))? {
            let full = raw & PLACE_BITS | PayloadState::FullyPresent as u64;
            let raw = if kind == RepairKind::PartialToData { full } else { 0 };
            let payload = self.image.geometry.payload_index(block);
            self.set(payload, raw, kind, Some(self.image.disk_range(block)))?;
        }
        Ok(())
    }

    /// The partially present blocks of `chunk` with their entries.
    fn partial_blocks(&self, chunk: u64) -> Result<Vec<(u64, u64)>> {
        let geometry = &self.image.geometry;
        let start = chunk.saturating_mul(geometry.chunk_ratio);
        let mut found = Vec::new();
        for block in start..start.saturating_add(geometry.chunk_ratio).min(geometry.blocks()) {
            let raw = match self.image.bat_entry(geometry.payload_index(block)) {
                Ok(raw) => raw,
                // The file ends in the table.
                Err(error) if error.problem().is_some() => break,
                Err(error) => return Err(error),
            };
            let state = PayloadEntry::decode(raw, geometry.differencing).map(|entry| entry.state);
            if state == Ok(PayloadState::PartiallyPresent) {
                found.push((block, raw));
            }
        }
        Ok(found)
    }

    /// Makes the step of `kind`, if there is anything to do.
    fn plan(&self, kind: RepairKind, plan: &mut Plan<'_>) -> Result<()> {
        let of_kind = || self.entries.iter().filter(|(_, change)| change.kind == kind);
        let extends = kind == RepairKind::ZeroExtend && self.extend_to > self.file_len;
        let count = of_kind().count();
        if count == 0 && !extends {
            return Ok(());
        }
        plan.begin(kind)?;
        for bitmaps in [false, true] {
            let entries = of_kind().filter(|(index, _)| self.image.geometry.is_bitmap(**index) == bitmaps);
            self.write(plan, entries)?;
            plan.sync()?;
        }
        let mut loses: Vec<_> = of_kind().filter_map(|(_, change)| change.lost.clone()).collect();
        if extends {
            plan.set_len(round_up(self.extend_to, MIB).unwrap_or(self.extend_to))?;
            loses.extend(self.extension_loses.iter().cloned());
        }
        let what = match kind {
            RepairKind::BlockOffsets => format!("clear the places in {count} entries of the table that must have none"),
            RepairKind::UnmapLostBlocks => format!("give up {count} entries whose space is not all in the file"),
            RepairKind::ZeroExtend => format!("fill what the file has lost with zeros, {count} blocks without space"),
            RepairKind::UnmapSharedBlocks => format!("give up {count} entries whose space something else owns too"),
            RepairKind::PartialToParent => format!("let {count} blocks without a sector bitmap show the parent"),
            _ => format!("let {count} blocks without a sector bitmap show all of their own data"),
        };
        plan.finish(kind, what, merged(loses));
        Ok(())
    }

    /// Writes changed entries, page by page of the table.
    fn write<'b>(&self, plan: &Plan<'_>, entries: impl Iterator<Item = (&'b u64, &'b Change)>) -> Result<()> {
        let failed = |error| Error::io("change the VHDX block allocation table", error);
        let file_len = plan.target.len().map_err(failed)?;
        let mut entries = entries.peekable();
        while let Some((index, _)) = entries.peek() {
            let start = round_down(self.image.bat_offset(**index), PAGE as u64);
            let len = usize::try_from(file_len.saturating_sub(start)).unwrap_or(PAGE).min(PAGE);
            let mut page = vec![0; len];
            plan.target.read_exact_at(&mut page, start).map_err(failed)?;
            let inside = |index: u64| self.image.bat_offset(index).checked_sub(start).filter(|at| *at < PAGE as u64);
            while let Some((at, change)) =
                entries.peek().and_then(|(index, change)| inside(**index).map(|at| (at, *change)))
            {
                let word = usize::try_from(at).ok().and_then(|at| page.get_mut(at..)?.first_chunk_mut::<8>());
                if let Some(word) = word {
                    *word = change.raw.to_le_bytes();
                }
                entries.next();
            }
            plan.target.write_all_at(&page, start).map_err(failed)?;
        }
        Ok(())
    }
}

/// Sorted, neighbours joined.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}
