//! The plan of a repair.
//!
//! Owns: which damage can be mended, and the writes that do it, in an order in which a crash leaves a file that opens as
//! well as before. Must not know: how a plan is carried out.

use super::bat::UNALLOCATED;
use super::check::{Lost, Survey, survey};
use super::footer::Footer;
use super::image::{Sparse, Vhd};
use super::open::Mend;
use super::raw::{FOOTER_LEN, SECTOR_BYTES};
use super::space;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::mend::{Edit, RepairKind, Step};
use crate::problem::Fault;
use crate::storage::{Access, Storage};
use crate::units::{FileOffset, SECTOR, round_down};
use std::ops::Range;
use std::sync::Arc;

/// How many blocks that cannot be read one repair gives up or extends the file for.
const MAX_LOST_BLOCKS: usize = 100_000;

/// A plan in the making, and what the file will be like when it has been carried out.
struct Plan<'a> {
    vhd: &'a Vhd,
    footer: Footer,
    /// Where the good footer at the end lies.
    tail_at: Option<u64>,
    len: u64,
    steps: Vec<Step>,
}

impl Vhd {
    /// What a repair of the image in `storage` would write: footers, the end of the file, fields that can hold one value
    /// only; and when `allow` says so, what becomes of blocks that cannot be read.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) for reading: an image that does not open cannot be repaired. `Unsupported` when more
    /// blocks are lost than one repair deals with.
    pub(crate) fn plan_repair(storage: Arc<dyn Storage>, allow: &[RepairKind]) -> Result<Vec<Step>> {
        let (vhd, mend) = Self::read_by_best_footer(storage, Access::Read, &mut Findings::new())?;
        let mend = mend.map(|(mend, _)| mend);
        let tail_at = (!matches!(mend, Some(Mend::Tail))).then_some(vhd.tail_at);
        let mut plan =
            Plan { footer: vhd.footer.clone(), tail_at, len: vhd.store.len()?, steps: Vec::new(), vhd: &vhd };
        if let Some(sparse) = &vhd.sparse {
            let survey = survey(&vhd, sparse, &vhd.owned(sparse), &mut Findings::new())?;
            plan.end_of_file(sparse, &survey, allow)?;
        }
        match mend {
            Some(Mend::Copy) => plan.add(
                RepairKind::FooterCopy,
                "write the footer copy from the footer at the end of the file",
                vec![write(0, plan.footer.bytes()), Edit::Sync],
            ),
            Some(Mend::Cut) => plan.cut_behind_footer(),
            Some(Mend::Tail) | None => {}
        }
        plan.fields();
        Ok(plan.steps)
    }
}

impl Plan<'_> {
    fn add(&mut self, kind: RepairKind, what: impl Into<String>, edits: Vec<Edit>) {
        self.steps.push(Step { kind, what: what.into(), edits, loses: Vec::new() });
    }

    /// Lost blocks as far as `allow` goes, then the footer behind the last block.
    fn end_of_file(&mut self, sparse: &Sparse, survey: &Survey, allow: &[RepairKind]) -> Result<()> {
        let allowed = |kind| allow.contains(&kind);
        let extends = |lost: &Lost| {
            let partly_there = lost.start < sparse.bat.limit || !allowed(RepairKind::UnmapLostBlocks);
            allowed(RepairKind::ZeroExtend) && lost.fault == Fault::Range && partly_there
        };
        let (extended, rest): (Vec<Lost>, Vec<Lost>) = survey.lost.iter().copied().partition(extends);
        let unmaps = allowed(RepairKind::UnmapLostBlocks) && sparse.bat.table.start.is_multiple_of(4);
        let unmapped = if unmaps { rest.as_slice() } else { &[] };
        if extended.len().saturating_add(unmapped.len()) > MAX_LOST_BLOCKS {
            let message = format_args!("a repair of more than {MAX_LOST_BLOCKS} lost blocks");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if !unmapped.is_empty() {
            self.unmap(sparse, unmapped);
        }
        if !extended.is_empty() {
            self.extend(sparse, survey, &extended);
        }
        let solved = rest.is_empty() || unmaps;
        if !solved || !extended.is_empty() {
            // What lies behind the blocks that can be read may be part of one that could not be.
            return Ok(());
        }
        let position = space::tail_position(survey.end);
        let (kind, what) = match self.tail_at {
            None => (RepairKind::TailFooter, "write the footer behind the last block, from its copy"),
            Some(_) if self.vhd.trailing(survey) > 0 => (RepairKind::LeakedSpace, "end the file behind the last block"),
            Some(_) => return Ok(()),
        };
        self.move_tail(kind, what, position);
        Ok(())
    }

    /// The footer at `position`, where it is durable before the file ends behind it.
    fn move_tail(&mut self, kind: RepairKind, what: &str, position: u64) {
        let mut edits = vec![write(position, self.footer.bytes()), Edit::Sync];
        let len = position.saturating_add(FOOTER_LEN);
        if self.len > len {
            edits.extend([Edit::SetLen(len), Edit::Sync]);
        }
        self.len = len;
        self.tail_at = Some(position);
        self.add(kind, format!("{what} (at {position:#x})"), edits);
    }

    fn unmap(&mut self, sparse: &Sparse, lost: &[Lost]) {
        let mut edits: Vec<Edit> =
            lost.iter().map(|lost| write(sparse.bat.entry_at(lost.block), &UNALLOCATED.to_be_bytes())).collect();
        edits.push(Edit::Sync);
        let what = format!("give up {} blocks that cannot be read", lost.len());
        let loses = joined(lost.iter().map(|lost| self.block(sparse, lost.block)));
        self.steps.push(Step { kind: RepairKind::UnmapLostBlocks, what, edits, loses });
    }

    /// Makes the file long enough for `lost`. The footer at the end goes first, so that the old one may be overwritten.
    fn extend(&mut self, sparse: &Sparse, survey: &Survey, lost: &[Lost]) {
        let (bat, limit) = (&sparse.bat, sparse.bat.limit);
        let end = |lost: &Lost| lost.start.saturating_add(bat.layout.stride());
        let position = space::tail_position(lost.iter().map(end).fold(survey.end, u64::max));
        let mut edits = vec![write(position, self.footer.bytes()), Edit::Sync];
        let missing = joined(lost.iter().map(|lost| lost.start.max(limit)..end(lost)));
        edits.extend(missing.into_iter().map(Edit::Zero));
        edits.push(Edit::Sync);
        let len = position.saturating_add(FOOTER_LEN);
        if self.len > len {
            edits.extend([Edit::SetLen(len), Edit::Sync]);
        }
        let loses = joined(lost.iter().map(|lost| {
            let block = self.block(sparse, lost.block);
            let data = lost.start.saturating_add(bat.layout.bitmap_len);
            let there = round_down(limit.saturating_sub(data), SECTOR);
            // Without a whole bitmap nothing says which of the data counts.
            if limit > data { block.start.saturating_add(there).min(block.end)..block.end } else { block }
        }));
        let what = format!("make the file long enough for {} blocks, with zeros", lost.len());
        self.steps.push(Step { kind: RepairKind::ZeroExtend, what, edits, loses });
        self.len = len;
        self.tail_at = Some(position);
    }

    /// The virtual range of a block.
    fn block(&self, sparse: &Sparse, block: u64) -> Range<u64> {
        let layout = sparse.bat.layout;
        layout.start(block)..layout.start(block.saturating_add(1)).min(self.footer.size())
    }

    /// A fixed disk's file was being grown: it ends behind its footer again.
    fn cut_behind_footer(&mut self) {
        let len = self.vhd.tail_at.saturating_add(FOOTER_LEN);
        self.add(
            RepairKind::TailFooter,
            format!("end the file behind the footer (at {:#x})", self.vhd.tail_at),
            vec![Edit::SetLen(len), Edit::Sync],
        );
        self.len = len;
    }

    /// Fields that can be put right without asking. Each is one sector per copy, one after the other.
    fn fields(&mut self) {
        if let Some(sparse) = &self.vhd.sparse
            && let Some(header) = sparse.header.with_reserved_fields()
            && let Some(first) = header.bytes().get(..SECTOR_BYTES)
            && sparse.header_at.is_multiple_of(SECTOR)
            && !self.footer.saved_state()
        {
            let edits = vec![write(sparse.header_at, first), Edit::Sync];
            self.add(RepairKind::ReservedFields, "set the data offset of the dynamic header to nowhere", edits);
        }
        let whole = |tail_at: &u64| {
            tail_at.is_multiple_of(SECTOR) && tail_at.checked_add(FOOTER_LEN).is_some_and(|end| end <= self.len)
        };
        let Some(tail_at) = self.tail_at.filter(whole) else { return };
        type Change = (RepairKind, &'static str, fn(&Footer) -> Option<Footer>);
        let changes: [Change; 2] = [
            (RepairKind::ReservedFields, "set the reserved fields of the footer", Footer::with_reserved_fields),
            (RepairKind::Geometry, "set the geometry to that of the disk's size", Footer::with_right_geometry),
        ];
        for (kind, what, change) in changes {
            let Some(footer) = change(&self.footer) else { continue };
            let mut edits = Vec::new();
            if self.vhd.sparse.is_some() {
                edits.extend([write(0, footer.bytes()), Edit::Sync]);
            }
            edits.extend([write(tail_at, footer.bytes()), Edit::Sync]);
            self.footer = footer;
            self.add(kind, what, edits);
        }
    }
}

fn write(at: u64, bytes: &[u8]) -> Edit {
    Edit::Write { at: FileOffset(at), bytes: bytes.to_vec() }
}

/// The ranges in order, those that touch made one.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> = ranges.filter(|range| !range.is_empty()).collect();
    sorted.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
