//! Which blocks give up their space.
//!
//! Owns: that decision, made for some thousand blocks at a time, and reading for zeros. Must not know: formats, file
//! systems.

use super::{CompactOptions, CompactReport, pack_of};
use crate::copy::{Copier, Meter};
use crate::error::Result;
use crate::image::Image;
use crate::map::{BlockMap, Source};
use crate::pack::{Block, Held, Marks};

/// Blocks decided about at a time.
const BATCH: usize = 4096;

/// What is wanted, and what came of it.
pub(super) struct Job<'a> {
    pub(super) options: &'a CompactOptions,
    /// Blocks that file systems say are free.
    pub(super) free: Marks,
    pub(super) report: &'a mut CompactReport,
}

/// Goes through all blocks with space. In a dry run the blocks that would give it up are answered; else they have.
///
/// # Errors
/// Of reading and writing; `Cancelled`.
pub(super) fn give_up(image: &mut Image, copier: &Copier, meter: &Meter<'_>, job: &mut Job<'_>) -> Result<Marks> {
    let mut without = Marks::default();
    let mut next = Some(0);
    while let Some(from) = next {
        meter.check()?;
        let blocks = pack_of(image)?.blocks(from, BATCH)?;
        next = blocks.next;
        job.report.before.blocks += blocks.list.len() as u64;
        let zero = zero_blocks(image.map(), &blocks.list, copier, (meter, job.options.scan_zeros))?;
        let (mut quietly, mut showing) = (Vec::new(), Vec::new());
        for (block, zero) in blocks.list.iter().zip(zero) {
            let freed = &mut job.report.freed;
            match block.held {
                Held::Nothing => freed.unmapped += 1,
                Held::All if zero => freed.zero += 1,
                _ if job.free.get(block.number) => {
                    freed.file_system += 1;
                    note_volume(job.report, block);
                    showing.push(block.number);
                    continue;
                }
                Held::All | Held::Part => continue,
            }
            quietly.push(block.number);
        }
        if job.options.dry_run {
            quietly.iter().chain(&showing).for_each(|block| without.set(*block));
        } else {
            for (blocks, shows) in [(quietly, false), (showing, true)] {
                if !blocks.is_empty() {
                    pack_of(image)?.give_up(&blocks, shows)?;
                }
            }
        }
        if let Some(last) = blocks.list.last() {
            meter.reached(last.range.end / 2);
        }
    }
    Ok(without)
}

/// Whether any block with space is among `marks`.
///
/// # Errors
/// Of reading the map.
#[cfg(feature = "fs")]
pub(super) fn meets(image: &mut Image, marks: &Marks) -> Result<bool> {
    let mut next = Some(0);
    while let Some(from) = next {
        let blocks = pack_of(image)?.blocks(from, BATCH)?;
        if blocks.list.iter().any(|block| marks.get(block.number)) {
            return Ok(true);
        }
        next = blocks.next;
    }
    Ok(false)
}

fn note_volume(report: &mut CompactReport, block: &Block) {
    let holds = |offset: u64, length: u64| (offset..offset.saturating_add(length)).contains(&block.range.start);
    if let Some(volume) = report.volumes.iter_mut().find(|volume| holds(volume.offset, volume.length)) {
        volume.blocks += 1;
    }
}

/// Which of `blocks` hold all they show, and that is zeros. Holes of the file are not read.
fn zero_blocks(
    map: &dyn BlockMap,
    blocks: &[Block],
    copier: &Copier,
    (meter, scan): (&Meter<'_>, bool),
) -> Result<Vec<bool>> {
    let mut zero: Vec<bool> = blocks.iter().map(|block| scan && block.held == Held::All).collect();
    let (mut runs, mut owners) = (Vec::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| scan && block.held == Held::All) {
        let mut at = block.range.start;
        while at < block.range.end {
            let extent = map.extent_at(at, block.range.end - at)?;
            if let Source::Data(place) = extent.source {
                runs.push((map.storage(), place.get(), extent.len));
                owners.push(index);
            }
            at += extent.len;
        }
    }
    for (index, is_zero) in owners.into_iter().zip(copier.zero_runs(&runs, meter)?) {
        if let Some(all) = zero.get_mut(index) {
            *all &= is_zero;
        }
    }
    Ok(zero)
}
