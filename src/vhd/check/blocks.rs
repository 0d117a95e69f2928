//! What bitmaps and data say against each other.
//!
//! Owns: the honesty of the batmap, and data under clear bits. Must not know: where blocks may lie.

use crate::bitmap::{self, BitOrder};
use crate::error::Result;
use crate::finding::{Findings, MAX_FINDINGS, Severity};
use crate::link::DiskKind;
use crate::problem::{Fault, Problem, Structure};
use crate::units::{FileOffset, SECTOR};
use crate::vhd::bat::UNALLOCATED;
use crate::vhd::image::{Sparse, Vhd};
use crate::zeros;
use std::ops::Range;

/// Data read at a time.
const STEP_BYTES: usize = 64 << 10;

/// Looks into the blocks of the disk as far as a rule asks for it.
///
/// # Errors
/// What the storage answers.
pub(super) fn check(vhd: &Vhd, sparse: &Sparse, deep: bool, findings: &mut Findings) -> Result<()> {
    // The parent shows through clear bits of a differencing disk: what lies under them means nothing.
    let deep = deep && vhd.kind() == DiskKind::Dynamic;
    if sparse.batmap.is_none() && !deep {
        return Ok(());
    }
    let bat = &sparse.bat;
    if let Some(batmap) = &sparse.batmap
        && let Some(problem) = batmap.misfit(&vhd.store, bat.table.end)?
    {
        findings.note(Severity::Error, problem);
    }
    let mut buffer = vec![0; STEP_BYTES];
    bat.for_each(&vhd.store, 0..bat.blocks(), |block, entry| {
        if findings.list().len() >= MAX_FINDINGS {
            return Ok(());
        }
        let place = (entry != UNALLOCATED).then(|| u64::from(entry).saturating_mul(SECTOR));
        let place = place.filter(|_| bat.fault(block, entry).is_none());
        if let Some(batmap) = &sparse.batmap
            && batmap.says_full(&vhd.store, block)?
            && !is_full(vhd, sparse, block, place)?
        {
            let found = format_args!("block {block} said to be full");
            let allowed = "a bit that is set only when all of the block's sectors are";
            let problem = Problem::new(Structure::VhdBatmap, Fault::Mismatch, found, allowed);
            findings.note(Severity::Error, problem.at(FileOffset(batmap.bit_at(block))));
        }
        if deep
            && let Some(place) = place
            && let Some(at) = hidden_data(vhd, sparse, (block, place), &mut buffer)?
        {
            let found = format_args!("data at {at:#x} in sectors that block {block} marks as not there");
            let problem = Problem::new(Structure::VhdBitmap, Fault::Mismatch, found, "zeros under clear bits");
            findings.note(Severity::Warning, problem.at(FileOffset(place)));
        }
        Ok(())
    })
}

/// The sectors of `block` that belong to the disk.
fn sectors(vhd: &Vhd, sparse: &Sparse, block: u64) -> u64 {
    let layout = sparse.bat.layout;
    vhd.footer.size().saturating_sub(layout.start(block)).min(layout.block_size) / SECTOR
}

fn is_full(vhd: &Vhd, sparse: &Sparse, block: u64, place: Option<u64>) -> Result<bool> {
    let Some(place) = place else { return Ok(false) };
    let sectors = sectors(vhd, sparse, block);
    Ok(sparse.bat.bitmap_run(&vhd.store, place, 0..sectors)? == (true, sectors))
}

/// Where the first data under a clear bit of the block at `place` lies.
fn hidden_data(vhd: &Vhd, sparse: &Sparse, (block, place): (u64, u64), buffer: &mut [u8]) -> Result<Option<u64>> {
    let layout = sparse.bat.layout;
    let mut bits = vec![0; usize::try_from(layout.bitmap_len).unwrap_or(0)];
    vhd.store.read("a sector bitmap", &mut bits, place)?;
    let data = place.saturating_add(layout.bitmap_len);
    let (mut at, end) = (0, sectors(vhd, sparse, block));
    while at < end {
        let (set, run) = bitmap::run(&bits, BitOrder::MsbFirst, at..end);
        let offset = |sector: u64| data.saturating_add(sector.saturating_mul(SECTOR));
        let next = at.saturating_add(run.max(1));
        if !set && let Some(found) = first_data(vhd, offset(at)..offset(next), buffer)? {
            return Ok(Some(found));
        }
        at = next;
    }
    Ok(None)
}

/// The first sector in `range` of the file that holds anything but zeros. Holes are stepped over without being read.
fn first_data(vhd: &Vhd, range: Range<u64>, buffer: &mut [u8]) -> Result<Option<u64>> {
    let mut at = range.start;
    while at < range.end {
        let data = vhd.store.next_data(at)?.unwrap_or(range.end);
        at = at.max(crate::units::round_down(data, SECTOR));
        let len = range.end.saturating_sub(at).min(buffer.len() as u64);
        let Some(part) = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)) else { break };
        if part.is_empty() {
            break;
        }
        vhd.store.read("the data of a block", part, at)?;
        if let Some(sector) = part.chunks(crate::vhd::raw::SECTOR_BYTES).position(|sector| !zeros::is_zero(sector)) {
            return Ok(Some(at.saturating_add((sector as u64).saturating_mul(SECTOR))));
        }
        at = at.saturating_add(len);
    }
    Ok(None)
}
