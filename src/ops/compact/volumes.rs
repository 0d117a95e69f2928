//! From the free space of a guest's file systems to blocks of an image.
//!
//! Owns: which blocks hold free space only and may give it up. Must not know: how a file system is read.

use super::{CompactReport, CompactVolume};
use crate::chain::{Chain, Owner};
use crate::error::{Error, Result};
use crate::guest::{self, FreeSpace, PartitionTable};
use crate::image::Image;
use crate::link::DiskKind;
use crate::pack::Marks;
use std::ops::Range;

/// The blocks that lie wholly in free space and read as zeros once given up; the volumes go into `report`.
///
/// # Errors
/// Of reading the disk.
pub(super) fn free_blocks(chain: &Chain, report: &mut CompactReport) -> Result<Marks> {
    let table = PartitionTable::read(chain)?;
    report.notes.extend(table.notes().iter().cloned());
    let mut all = Marks::default();
    let image = chain.leaf().image();
    let block = u64::from(image.block_size().unwrap_or(u32::MAX)).max(1);
    // A block of a differencing VHD that is given up shows what lies below.
    let hides = !matches!(image, Image::Vhd(_)) || image.kind() != DiskKind::Differencing;
    for volume in guest::volumes(chain, &table)? {
        let mut blocks = Marks::default();
        let mut failed: Option<Error> = None;
        let mut visit = |range: Range<u64>| {
            let first = range.start.div_ceil(block);
            // The last block of a disk may be cut by its end.
            let end = if range.end == chain.virtual_size() { range.end.div_ceil(block) } else { range.end / block };
            for number in first..end.max(first) {
                match if hides { Ok(true) } else { nothing_below(chain, number * block, block) } {
                    Ok(true) => blocks.set(number),
                    Ok(false) => {}
                    Err(error) => failed = Some(error),
                }
            }
        };
        let found = guest::free_space(chain, &volume, &mut visit)?;
        if let Some(error) = failed {
            return Err(error);
        }
        let (free, skipped) = match found {
            FreeSpace::Bytes(bytes) => {
                all.add(&blocks);
                (bytes, None)
            }
            FreeSpace::Doubtful(why) => (0, Some(why)),
        };
        report.volumes.push(CompactVolume {
            partition: volume.partition,
            offset: volume.range.start,
            length: volume.range.end - volume.range.start,
            file_system: volume.content.ok().map(guest::FileSystem::name),
            free,
            blocks: 0,
            skipped,
        });
    }
    Ok(all)
}

/// Whether no layer below the leaf holds anything in the block at `start`.
fn nothing_below(chain: &Chain, start: u64, len: u64) -> Result<bool> {
    for piece in chain.pieces_of(1..chain.layers().len(), start..start.saturating_add(len)) {
        if matches!(piece?.owner, Owner::Layer { .. }) {
            return Ok(false);
        }
    }
    Ok(true)
}
