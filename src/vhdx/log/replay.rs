//! Replay: bringing a file up to date from its log.
//!
//! Owns: the check that a log can be replayed ([MS-VHDX] 2.3.2, 2.3.3) and applying it to a file or to a memory overlay.
//! Must not know: headers; whoever calls decides when the log counts as empty.

use super::entry::{self, Descriptor};
use super::ring::{self, Placed, RingReader};
use super::{LogArea, PAGE};
use crate::error::{Error, Result};
use crate::finding::{Findings, Severity};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::units::{FileOffset, GIB};
use std::ops::Range;

/// How many times the file's length zero descriptors may add up to, on top of [`ZERO_BYTES`]: each range is new metadata,
/// and zeroing all of a file over and over is no work a real log asks for.
const ZERO_PASSES: u64 = 16;
/// See [`ZERO_PASSES`]: what even a short file's log may zero.
const ZERO_BYTES: u64 = 64 * GIB;

/// An active sequence that passed every rule, ready to be applied.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    area: LogArea,
    entries: Vec<Placed>,
}

/// The length the file had when the newest entry of the log at `area` was written; `None` when the log has no complete
/// sequence.
///
/// # Errors
/// What the storage answers.
pub(crate) fn flushed_length(storage: &dyn Storage, area: &LogArea) -> Result<Option<u64>> {
    if !area.is_sound() || file_length(storage)? < area.range().end {
        return Ok(None);
    }
    let entries = ring::active(&ring::index(&mut RingReader::new(storage, *area))?, area);
    Ok(entries.last().map(|last| last.header.flushed_file_offset))
}

/// Finds the active sequence of the log at `area`, whose guid is the header's non-nil LogGuid.
///
/// # Errors
/// `Corrupt` when there is none or the file is shorter than the sequence says it was; what the storage answers.
pub(crate) fn find_active(storage: &dyn Storage, area: &LogArea, findings: &mut Findings) -> Result<Replay> {
    let place = FileOffset(area.offset);
    findings.require(area.is_sound(), || {
        let found = format_args!("{} bytes long", area.length).to_string();
        Problem::new(Structure::VhdxLog, Fault::Value, found, "1 MiB to 1 GiB, on a boundary of 1 MiB").at(place)
    })?;
    let length = storage.len().map_err(|error| Error::io("read the file's length", error))?;
    let end = area.range().end;
    findings.require(length >= end, || {
        Problem::new(
            Structure::VhdxLog,
            Fault::Truncated,
            format!("a file of {length} bytes"),
            format!("{end} or more"),
        )
        .at(place)
    })?;
    let entries = ring::active(&ring::index(&mut RingReader::new(storage, *area))?, area);
    let Some(last) = entries.last() else {
        let found = format!("no complete sequence of entries for log {}", area.guid);
        let allowed = "one, while the header names the log";
        return Err(findings.fatal(Problem::new(Structure::VhdxLog, Fault::Missing, found, allowed).at(place)));
    };
    let flushed = last.header.flushed_file_offset;
    findings.require(length >= flushed, || {
        let allowed = format!("at least {flushed}, the length the log relies on");
        Problem::new(Structure::File, Fault::Truncated, format!("{length} bytes"), allowed)
    })?;
    let found = format!("{} entries not yet applied", entries.len());
    findings.note_repairable(
        Severity::Warning,
        Problem::new(Structure::VhdxLog, Fault::Dirty, found, "an empty log").at(place),
    );
    Ok(Replay { area: *area, entries })
}

impl Replay {
    /// How many entries there are to apply.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Applies the sequence to `target`, the file it was found in or an overlay of it: entry by entry, oldest first.
    ///
    /// Doing it twice, or again after a crash, does no harm. The caller syncs.
    ///
    /// # Errors
    /// `Corrupt` when the log asks for more zeroing than a log can mean; what the storage answers.
    pub(crate) fn apply(&self, target: &dyn Storage) -> Result<()> {
        let length = file_length(target)?;
        let mut budget = length.saturating_mul(ZERO_PASSES).saturating_add(ZERO_BYTES);
        let mut descriptors = RingReader::new(target, self.area);
        let mut data = RingReader::new(target, self.area);
        for placed in &self.entries {
            let mut at = self.area.advance(placed.at, placed.header.descriptor_sectors().saturating_mul(PAGE));
            for index in 0..placed.header.descriptor_sectors() {
                let sector = descriptors.sector(placed.at.saturating_add(index.saturating_mul(PAGE)))?;
                let list = entry::descriptors(sector, index, &placed.header, &self.area);
                for descriptor in list.ok_or_else(|| self.changed(placed))? {
                    match descriptor {
                        Descriptor::Zero(range) => zero(target, range, &mut budget)?,
                        Descriptor::Data { offset, leading, trailing } => {
                            let page = entry::page(data.sector(at)?, placed.header.sequence, leading, trailing)
                                .ok_or_else(|| self.changed(placed))?;
                            target.write_all_at(&page, offset).map_err(|error| replay_error(error, offset))?;
                            at = self.area.advance(at, PAGE);
                        }
                    }
                }
            }
        }
        let last = self.entries.last().map_or(0, |placed| placed.header.last_file_offset);
        grow_to(target, last)
    }

    /// The entry was valid when the log was searched.
    fn changed(&self, placed: &Placed) -> Error {
        let place = FileOffset(self.area.file_offset(placed.at));
        let found = "an entry that changed while it was read";
        Error::corrupt(Problem::new(Structure::VhdxLog, Fault::Mismatch, found, "a file nobody else writes").at(place))
    }
}

fn file_length(target: &dyn Storage) -> Result<u64> {
    target.len().map_err(|error| Error::io("read the file's length", error))
}

fn replay_error(error: std::io::Error, offset: u64) -> Error {
    Error::io("replay the log", error).with_offset(FileOffset(offset))
}

fn grow_to(target: &dyn Storage, length: u64) -> Result<()> {
    if file_length(target)? < length {
        target.set_len(length).map_err(|error| replay_error(error, length))?;
    }
    Ok(())
}

/// Zeroes `range`; the part past the end of the file is made by growing it.
fn zero(target: &dyn Storage, range: Range<u64>, budget: &mut u64) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let inside = range.start..range.end.min(file_length(target)?);
    if !inside.is_empty() {
        let len = inside.end.saturating_sub(inside.start);
        *budget = budget.checked_sub(len).ok_or_else(|| {
            let problem =
                Problem::new(Structure::VhdxLog, Fault::Limit, "a log that zeroes the file many times", "less");
            Error::corrupt(problem.at(FileOffset(range.start)))
        })?;
        target.zero_range(inside).map_err(|error| replay_error(error, range.start))?;
    }
    grow_to(target, range.end)
}
