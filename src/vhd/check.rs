//! The check of a whole file.
//!
//! Owns: the rules that hold between structures, and the ones that take reading every map: what opening finds is found by
//! opening. Must not know: how anything is mended.

mod blocks;
mod parts;
mod sweep;

#[cfg(test)]
pub(super) use sweep::{Keep, survey_keeping};
pub(super) use sweep::{Lost, Survey, survey};

use super::image::{Sparse, Vhd};
use super::raw::{FOOTER_LEN, HEADER_LEN};
use super::space::{self, overlap};
use super::{locate, store};
use crate::error::Result;
use crate::finding::{Findings, Severity};
use crate::map::BlockMap;
use crate::mend::CheckSummary;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, Storage};
use crate::units::{FileOffset, KIB, SECTOR};
use std::ops::Range;
use std::sync::Arc;

/// Gaps shorter than this, or than a block, are what alignment leaves between objects and no leak.
const ALIGNMENT_GAP: u64 = 64 * KIB;

/// A part of the file that is no block.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    structure: Structure,
    range: Range<u64>,
}

impl Vhd {
    /// Whether the file has a good footer copy at its start, though nothing else of a VHD may be left.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn probe_damaged(storage: &dyn Storage) -> Result<bool> {
        let long_enough = store::len(storage)? >= FOOTER_LEN;
        Ok(long_enough && locate::read_copy(storage)?.is_ok_and(|raw| matches!(raw.kind.get(), 3 | 4)))
    }

    /// Checks the image in `storage`, which is not changed. With `deep` the data under clear bits is read too.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) for reading; the problem is then among the findings.
    pub(crate) fn check(storage: Arc<dyn Storage>, deep: bool, findings: &mut Findings) -> Result<CheckSummary> {
        let mut own = Findings::new();
        let checked = Self::open(storage, Access::Read, &mut own).and_then(|vhd| vhd.check_whole(deep, &mut own));
        findings.absorb(own);
        checked
    }

    fn check_whole(&self, deep: bool, findings: &mut Findings) -> Result<CheckSummary> {
        let file_size = self.store.len()?;
        let virtual_size = self.virtual_size();
        let Some(sparse) = &self.sparse else {
            if !self.has_whole_tail() {
                retract_fields(findings);
            }
            let trailing_bytes = self.tail_at.saturating_sub(virtual_size);
            let leaked_bytes = trailing_bytes;
            return Ok(CheckSummary { file_size, virtual_size, allocated_blocks: 0, leaked_bytes, trailing_bytes });
        };
        let owned = self.owned(sparse);
        compare(&owned, findings);
        let survey = survey(self, sparse, &owned, findings)?;
        if !survey.lost.is_empty() {
            // Where the data ends is not known while entries point to where no block can be.
            findings.retract_repair(|problem| problem.structure == Structure::VhdFooter && is_loss(problem.fault));
        }
        // A footer that is not written anew is mended only where it has all of its sector.
        let moves = survey.lost.is_empty() && (self.tail_at == file_size || self.trailing(&survey) > 0);
        if !moves && !self.has_whole_tail() {
            retract_fields(findings);
        }
        blocks::check(self, sparse, deep, findings)?;
        let trailing_bytes = self.unowned_end(sparse, &survey);
        note_leaks(&survey, trailing_bytes, findings);
        let leaked_bytes = survey.gaps.saturating_add(trailing_bytes);
        Ok(CheckSummary { file_size, virtual_size, allocated_blocks: survey.allocated, leaked_bytes, trailing_bytes })
    }

    /// Whether the footer at the end has a sector of its own, so that a repair can write it in place.
    pub(super) fn has_whole_tail(&self) -> bool {
        let end = self.tail_at.checked_add(FOOTER_LEN);
        self.tail_at.is_multiple_of(SECTOR) && self.store.len().is_ok_and(|len| end.is_some_and(|end| end <= len))
    }

    /// Bytes between the data and its footer that are worth giving back.
    pub(super) fn trailing(&self, survey: &Survey) -> u64 {
        let bytes = self.tail_at.saturating_sub(space::tail_position(survey.end));
        if self.sparse.as_ref().is_some_and(|sparse| bytes >= least_leak(sparse)) { bytes } else { 0 }
    }

    /// Bytes behind the data that not even a block that cannot be read may be part of.
    fn unowned_end(&self, sparse: &Sparse, survey: &Survey) -> u64 {
        let inside = |lost: &&Lost| lost.fault == Fault::Range && lost.start < self.tail_at;
        let all = self.trailing(survey);
        survey.lost.iter().filter(inside).map(|lost| lost.start).min().map_or(all, |start| {
            let bytes = start.saturating_sub(survey.end);
            if bytes >= least_leak(sparse) { bytes.min(all) } else { 0 }
        })
    }

    /// Every part of the file that is no block, in no order.
    pub(super) fn owned(&self, sparse: &Sparse) -> Vec<Owned> {
        let header = sparse.header_at..sparse.header_at.saturating_add(HEADER_LEN);
        let mut owned = vec![
            Owned { structure: Structure::VhdFooterCopy, range: 0..FOOTER_LEN },
            Owned { structure: Structure::VhdHeader, range: header },
            Owned { structure: Structure::VhdBat, range: sparse.bat.table.clone() },
        ];
        let locators = sparse.locators.areas.iter();
        owned.extend(locators.map(|area| Owned { structure: Structure::VhdLocator, range: area.clone() }));
        let batmap = sparse.batmap.iter().flat_map(|batmap| batmap.ranges(sparse.bat.table.end));
        owned.extend(batmap.map(|range| Owned { structure: Structure::VhdBatmap, range }));
        owned
    }
}

/// The shortest gap that is called a leak.
fn least_leak(sparse: &Sparse) -> u64 {
    ALIGNMENT_GAP.min(sparse.bat.layout.stride())
}

/// Whether a footer with such a fault has to be written anew.
fn is_loss(fault: Fault) -> bool {
    matches!(fault, Fault::Missing | Fault::Checksum | Fault::Dirty | Fault::Mismatch)
}

/// Takes back that a repair exists for odd fields of the footers.
fn retract_fields(findings: &mut Findings) {
    findings.retract_repair(|problem| {
        matches!(problem.structure, Structure::VhdFooter | Structure::VhdFooterCopy) && !is_loss(problem.fault)
    });
}

/// Notes parts of the file that share bytes. What opening has compared is not compared again.
fn compare(owned: &[Owned], findings: &mut Findings) {
    let fixed = |structure| matches!(structure, Structure::VhdFooterCopy | Structure::VhdHeader | Structure::VhdBat);
    for (index, one) in owned.iter().enumerate() {
        for other in owned.iter().take(index).filter(|other| !fixed(one.structure) || !fixed(other.structure)) {
            if overlap(&one.range, &other.range) {
                let words = |owned: &Owned| {
                    format!("{} at {:#x} to {:#x}", owned.structure.name(), owned.range.start, owned.range.end)
                };
                let allowed = format_args!("one clear of the {}", words(other));
                let problem = Problem::new(one.structure, Fault::Overlap, words(one), allowed);
                findings.note(Severity::Error, problem.at(FileOffset(one.range.start)));
            }
        }
    }
}

fn note_leaks(survey: &Survey, trailing: u64, findings: &mut Findings) {
    if survey.gaps > 0 {
        let found = format_args!("{} bytes between the blocks that nothing owns", survey.gaps);
        findings.note(Severity::Warning, Problem::new(Structure::VhdBlock, Fault::Leaked, found, "none"));
    }
    if trailing > 0 {
        let found = format_args!("{trailing} bytes behind the data that nothing owns");
        let problem = Problem::new(Structure::File, Fault::Leaked, found, "a footer right behind the data");
        let problem = problem.at(FileOffset(survey.end));
        if survey.lost.is_empty() {
            findings.note_repairable(Severity::Warning, problem);
        } else {
            findings.note(Severity::Warning, problem);
        }
    }
}
