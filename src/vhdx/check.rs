//! The check of a whole file.
//!
//! Owns: the rules about the file as a whole that opening it does not need: reserved bytes, foreign parts, the link to
//! the parent, the place of an empty log, the file's length and the space that nobody owns. `blocks` owns what is said
//! about entries of the table. Must not know: how anything is mended.

mod blocks;

use super::Vhdx;
use super::bat::PayloadState;
use super::log::MAX_FILE_LENGTH;
use super::metadata::is_known;
use super::raw::{
    HEADER_AREA_LEN, HEADER_AT, ITEM_PARENT_LOCATOR, REGION_BAT, REGION_METADATA, REGION_TABLE_AT, REGION_TABLE_LEN,
    RawIdentifier, RawMetadataEntry, RawMetadataHeader,
};
use super::survey::Survey;
use crate::error::{Error, Result};
use crate::finding::{Findings, Severity};
use crate::map::BlockMap;
use crate::mend::CheckSummary;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, Storage};
use crate::units::FileOffset;
use crate::zeros::is_zero;
use std::ops::Range;
use std::sync::Arc;

/// How much is read at once when bytes are only looked at for not being zero.
const PIECE: usize = 64 << 10;
/// The fields of a header end here; the rest of its slot is reserved.
const HEADER_FIELDS: u64 = 80;

impl Vhdx {
    /// Checks the image in `storage`, with its log applied: all that opening it finds, then the rules that take reading
    /// the whole table. With `deep`, also that what the last block holds past the end of the disk is zeros.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) for reading.
    pub(crate) fn check(storage: Arc<dyn Storage>, deep: bool, findings: &mut Findings) -> Result<CheckSummary> {
        let file_size = storage.len().map_err(|error| Error::io("read the file length", error))?;
        let image = Self::open(storage, Access::Read, findings)?;
        image.check_reserved(findings)?;
        image.check_foreign(findings);
        image.check_link(findings);
        let survey = blocks::check(&image, findings)?;
        let mut summary = CheckSummary {
            file_size,
            virtual_size: image.virtual_size(),
            allocated_blocks: survey.allocated,
            ..CheckSummary::default()
        };
        image.check_space(&survey, &mut summary, findings)?;
        if deep {
            image.check_past_disk(findings)?;
        }
        Ok(summary)
    }

    /// Bytes of the first megabyte that nothing may use.
    fn check_reserved(&self, findings: &mut Findings) -> Result<()> {
        let [first, second] = HEADER_AT;
        let [regions, last_regions] = REGION_TABLE_AT;
        let behind_regions = last_regions.saturating_add(REGION_TABLE_LEN as u64);
        let reserved = [
            (Structure::VhdxIdentifier, size_of::<RawIdentifier>() as u64..first),
            (Structure::VhdxHeader, first.saturating_add(HEADER_FIELDS)..second),
            (Structure::VhdxHeader, second.saturating_add(HEADER_FIELDS)..regions),
            (Structure::File, behind_regions..HEADER_AREA_LEN),
        ];
        for (structure, range) in reserved {
            if let Some(at) = self.first_used(range)? {
                let problem = Problem::new(structure, Fault::Reserved, "reserved bytes in use", "zeros");
                findings.note(Severity::Warning, problem.at(FileOffset(at)));
            }
        }
        Ok(())
    }

    /// The first byte of `range` that is not zero, within a piece.
    fn first_used(&self, range: Range<u64>) -> Result<Option<u64>> {
        let failed = |error| Error::io("read what should be zeros", error);
        let end = range.end.min(self.file_len()?);
        let mut buffer = vec![0; PIECE];
        let mut at = range.start;
        while at < end {
            at = self.storage.next_data(at).map_err(failed)?.unwrap_or(end).max(at);
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(PIECE).min(PIECE);
            let Some(bytes) = buffer.get_mut(..len) else { break };
            self.storage.read_exact_at(bytes, at).map_err(failed)?;
            if !is_zero(bytes) {
                let skip = bytes.iter().position(|byte| *byte != 0).unwrap_or_default();
                return Ok(Some(at.saturating_add(skip as u64)));
            }
            at = at.saturating_add(len as u64);
        }
        Ok(None)
    }

    /// Regions and items that this crate keeps but does not understand.
    fn check_foreign(&self, findings: &mut Findings) {
        for region in self.regions.all().iter().filter(|region| ![REGION_BAT, REGION_METADATA].contains(&region.id)) {
            let found = format!("unknown region {}", region.id);
            let problem = Problem::new(Structure::VhdxRegionTable, Fault::Unsupported, found, "BAT and metadata");
            findings.note(Severity::Warning, problem.at(FileOffset(region.offset)));
        }
        let rows = (size_of::<RawMetadataHeader>() as u64..).step_by(size_of::<RawMetadataEntry>());
        for (item, row) in self.metadata.items.iter().zip(rows) {
            if !item.is_user() && !is_known(item) {
                let found = format!("unknown item {}", item.id);
                let problem = Problem::new(Structure::VhdxMetadata, Fault::Unsupported, found, "items of version 1");
                let at = self.metadata.at.get().saturating_add(row);
                findings.note(Severity::Warning, problem.at(FileOffset(at)));
            }
        }
    }

    /// What the parent locator needs for the parent to be found.
    fn check_link(&self, findings: &mut Findings) {
        let Some(locator) = &self.metadata.locator else { return };
        let item = self.metadata.item(ITEM_PARENT_LOCATOR, false);
        let at = item.map_or(self.metadata.at, |item| self.metadata.place_of(item));
        let mut note = |severity, fault, found: &str, allowed: &str| {
            findings.note(severity, Problem::new(Structure::VhdxLocator, fault, found, allowed).at(at));
        };
        if locator.link().hints.is_empty() {
            note(Severity::Error, Fault::Missing, "no path to the parent", "a relative, volume or absolute path");
        }
        if locator.linkage().is_some_and(|id| id.is_nil()) {
            note(Severity::Error, Fault::Value, "a parent_linkage of zeros", "the parent's DataWriteGuid");
        }
        if locator.linkage2().is_some() {
            note(Severity::Warning, Fault::Dirty, "a parent_linkage2", "none, once a merge is finished");
        }
    }

    /// The length of the file, the log's place in it, and what nobody owns.
    fn check_space(&self, survey: &Survey, summary: &mut CheckSummary, findings: &mut Findings) -> Result<()> {
        let file_len = self.file_len()?;
        let sound_len = survey.sound_len(self, file_len);
        let log = self.log_range();
        if log.end > file_len {
            let found = format!("a log from {:#x} to {:#x}", log.start, log.end);
            let problem = Problem::new(Structure::VhdxLog, Fault::Range, found, format!("an end up to {file_len:#x}"));
            note(findings, Severity::Error, problem.at(FileOffset(log.start)), sound_len.is_some());
        }
        if file_len > MAX_FILE_LENGTH {
            let found = format!("a length of {file_len} bytes");
            let allowed = format!("up to {MAX_FILE_LENGTH} bytes");
            findings.note(Severity::Error, Problem::new(Structure::File, Fault::Limit, found, allowed));
        }
        if sound_len.is_none() {
            findings
                .retract_repair(|problem| problem.structure == Structure::File && problem.fault == Fault::Alignment);
        }
        let (free, used) = survey.space.unowned();
        let behind = survey.space.end().saturating_sub(used);
        let inside = free.saturating_sub(behind);
        let trailing = file_len.saturating_sub(used);
        summary.leaked_bytes = inside.saturating_add(trailing);
        summary.trailing_bytes = trailing;
        for (bytes, at, repairable) in [(inside, None, false), (trailing, Some(used), sound_len.is_some())] {
            if bytes > 0 {
                let where_ = if at.is_some() { " at the end of the file" } else { "" };
                let found = format!("{bytes} bytes{where_} that nothing owns");
                let mut problem = Problem::new(Structure::File, Fault::Leaked, found, "only space in use");
                problem.offset = at.map(FileOffset);
                note(findings, Severity::Warning, problem, repairable);
            }
        }
        Ok(())
    }

    /// What lies in the last block past the end of the disk would show when the disk grows.
    fn check_past_disk(&self, findings: &mut Findings) -> Result<()> {
        let last = self.geometry.blocks().saturating_sub(1);
        let disk = self.disk_range(last);
        let inside = disk.end.saturating_sub(disk.start);
        let Ok(entry) = self.payload_entry(last) else { return Ok(()) };
        if entry.state != PayloadState::FullyPresent || inside == self.geometry.block_size {
            return Ok(());
        }
        let start = entry.offset.get().saturating_add(inside);
        let end = entry.offset.get().saturating_add(self.geometry.block_size);
        if let Some(at) = self.first_used(start..end)? {
            let found = format!("bytes of block {last} past the end of the disk");
            let problem = Problem::new(Structure::VhdxBlock, Fault::Reserved, found, "zeros");
            findings.note(Severity::Warning, problem.at(FileOffset(at)));
        }
        Ok(())
    }
}

fn note(findings: &mut Findings, severity: Severity, problem: Problem, repairable: bool) {
    if repairable { findings.note_repairable(severity, problem) } else { findings.note(severity, problem) }
}

#[cfg(test)]
pub(in crate::vhdx) mod tests;
