//! What the check says about entries of the block allocation table.
//!
//! Owns: severity and words for every flaw, and finding the first owner of space that has two.
//! Must not know: how the table is walked.
//!
//! Broken entries are findings of their own; oddities that a file can have by the million are counted, with the place of
//! the first.

use super::super::Vhdx;
use super::super::bat::{PayloadEntry, Slot, decode_bitmap};
use super::super::survey::{Flaw, PLACE_BITS, Survey};
use super::note;
use crate::error::Result;
use crate::finding::{Findings, MAX_FINDINGS, Severity};
use crate::link::DiskKind;
use crate::problem::{Fault, Problem, Structure};
use crate::units::FileOffset;
use std::ops::Range;

/// Oddities of one kind: how many, and the first one's index.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    count: u64,
    first: u64,
}

impl Tally {
    fn add(&mut self, index: u64) {
        if self.count == 0 {
            self.first = index;
        }
        self.count = self.count.saturating_add(1);
    }
}

/// An entry whose space has an earlier owner.
struct Shared {
    index: u64,
    range: Range<u64>,
    /// The earlier owner's index and where its space starts.
    owner: Option<(u64, u64)>,
}

#[derive(Default)]
struct Notes {
    anchors: Tally,
    loose: Tally,
    strays: Tally,
    past_disk: Tally,
    needless: Tally,
    shared: Vec<Shared>,
    /// The one block that the file may cut without loss, and the end it should have.
    cut: Option<(u64, u64)>,
    errors: usize,
}

/// Walks over the table of `image`.
pub(super) fn check(image: &Vhdx, findings: &mut Findings) -> Result<Survey> {
    let file_len = image.file_len()?;
    let mut notes = Notes::default();
    let survey = image.survey(file_len, &mut |index, raw, flaw| {
        notes.take(image, (index, raw, flaw), findings);
        Ok(())
    })?;
    name_owners(image, &mut notes.shared)?;
    notes.shared.sort_by_key(|shared| shared.index);
    for shared in &notes.shared {
        findings.note(Severity::Error, shared_problem(image, shared));
    }
    let repairable = survey.sound_len(image, file_len).is_some();
    if let Some((index, end)) = notes.cut {
        let found = format!("{} up to {end:#x}", image.entry_name(index));
        let allowed = format!("an end up to {file_len:#x}");
        note(findings, Severity::Warning, image.entry_problem(index, Fault::Truncated, &found, &allowed), repairable);
    }
    if survey.cut_entries > 0 {
        let found = format!("end of file before {} entries", survey.cut_entries);
        let allowed = format!("{} entries", image.geometry.entries());
        let problem = Problem::new(Structure::VhdxBat, Fault::Truncated, found, allowed);
        findings.note(Severity::Error, problem.at(FileOffset(file_len)));
    }
    notes.tallies(image, findings);
    unstated(image, &survey, findings);
    Ok(survey)
}

impl Vhdx {
    fn entry_name(&self, index: u64) -> String {
        match self.geometry.slot(index) {
            Slot::Payload(block) => format!("block {block}"),
            Slot::Bitmap(chunk) => format!("the sector bitmap of chunk {chunk}"),
        }
    }

    fn entry_problem(&self, index: u64, fault: Fault, found: &str, allowed: &str) -> Problem {
        Problem::new(Structure::VhdxBat, fault, found, allowed).at(FileOffset(self.bat_offset(index)))
    }
}

impl Notes {
    fn take(&mut self, image: &Vhdx, (index, raw, flaw): (u64, u64, Flaw), findings: &mut Findings) {
        let at = raw & PLACE_BITS;
        let end = at.saturating_add(image.space_of(index));
        match flaw {
            Flaw::PastDisk => self.past_disk.add(index),
            Flaw::Stray => self.strays.add(index),
            Flaw::NeedlessBitmap => self.needless.add(index),
            Flaw::Anchor => self.anchors.add(index),
            Flaw::LooseAnchor => self.loose.add(index),
            Flaw::Cut { lost: false } => self.cut = Some((index, end)),
            Flaw::Shared if self.shared.len() < MAX_FINDINGS => {
                self.shared.push(Shared { index, range: at..end, owner: None });
            }
            _ if self.errors >= MAX_FINDINGS => findings.count_dropped(1),
            Flaw::Broken((fault, found, allowed)) => {
                let found = format!("{found} for {}", image.entry_name(index));
                self.error(image.entry_problem(index, fault, &found, allowed), findings);
            }
            Flaw::Cut { lost: true } => {
                let found = format!("{} at {at:#x} to {end:#x}, past the end of the file", image.entry_name(index));
                self.error(image.entry_problem(index, Fault::Range, &found, "space inside the file"), findings);
            }
            Flaw::OverStructure => {
                let found = format!("{} over {}", image.entry_name(index), structure_name(image, &(at..end)));
                self.error(image.entry_problem(index, Fault::Overlap, &found, "space of its own"), findings);
            }
            Flaw::NoBitmap { blocks } => {
                let chunk = image.geometry.chunk_of(match image.geometry.slot(index) {
                    Slot::Payload(block) => block,
                    Slot::Bitmap(_) => 0,
                });
                let found = format!("{blocks} partially present blocks but no sector bitmap for chunk {chunk}");
                self.error(image.entry_problem(index, Fault::State, &found, "a sector bitmap block"), findings);
            }
            Flaw::Shared => findings.count_dropped(1),
        }
    }

    fn error(&mut self, problem: Problem, findings: &mut Findings) {
        self.errors = self.errors.saturating_add(1);
        findings.note(Severity::Error, problem);
    }

    fn tallies(&self, image: &Vhdx, findings: &mut Findings) {
        use Severity::{Error, Warning};
        let rows = [
            (self.needless, Error, true, Fault::State, "sector bitmaps without a parent", "none"),
            (self.loose, Error, true, Fault::Overlap, "blocks without data that keep space of others", "their own"),
            (self.strays, Warning, true, Fault::Value, "entries with a place in a state that has none", "place 0"),
            (self.past_disk, Warning, true, Fault::Range, "entries past the end of the disk", "zeros there"),
            (self.anchors, Warning, false, Fault::Leaked, "blocks without data that keep their space", "no space"),
        ];
        for (tally, severity, repairable, fault, what, allowed) in rows {
            if tally.count > 0 {
                let found = format!("{} {what}, the first {}", tally.count, image.entry_name(tally.first));
                note(findings, severity, image.entry_problem(tally.first, fault, &found, allowed), repairable);
            }
        }
    }
}

/// A fixed disk has all of its blocks.
fn unstated(image: &Vhdx, survey: &Survey, findings: &mut Findings) {
    if let (DiskKind::Fixed, Some(block), 0) = (image.kind(), survey.first_unstated, survey.cut_entries) {
        let missing = image.geometry.blocks().saturating_sub(survey.stated);
        let found = format!("{missing} blocks that are not present, the first block {block}");
        let index = image.geometry.payload_index(block);
        let problem = image.entry_problem(index, Fault::State, &found, "all blocks of a fixed disk");
        findings.note(Severity::Warning, problem);
    }
}

fn shared_problem(image: &Vhdx, shared: &Shared) -> Problem {
    let name = image.entry_name(shared.index);
    let Range { start, end } = shared.range;
    let (fault, found) = match shared.owner {
        Some((owner, at)) => {
            let fault = if at == start { Fault::Duplicate } else { Fault::Overlap };
            let entry = image.bat_offset(owner);
            let owner = image.entry_name(owner);
            (fault, format!("{name} at {start:#x} to {end:#x}, over {owner} at {at:#x} (its entry at {entry:#x})"))
        }
        None => (Fault::Overlap, format!("{name} at {start:#x} to {end:#x}, over another block")),
    };
    image.entry_problem(shared.index, fault, &found, "space of its own")
}

/// Finds the first owner of what each of `all` shares: one more walk, and only when there is something to find.
fn name_owners(image: &Vhdx, all: &mut [Shared]) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    all.sort_by_key(|shared| shared.range.start);
    let mut unnamed = all.len();
    image.survey_owners(&mut |index, range| {
        if unnamed == 0 {
            return;
        }
        let span = image.geometry.block_size;
        let first = all.partition_point(|shared| shared.range.start.saturating_add(span) <= range.start);
        for shared in all.iter_mut().skip(first).take_while(|shared| shared.range.start < range.end) {
            if shared.owner.is_none() && index < shared.index && shared.range.end > range.start {
                shared.owner = Some((index, range.start));
                unnamed = unnamed.saturating_sub(1);
            }
        }
    })
}

/// What of headers, log and regions lies in `range` first.
fn structure_name(image: &Vhdx, range: &Range<u64>) -> String {
    let header_area = 0..super::HEADER_AREA_LEN;
    let mut all = vec![(header_area, "the headers".to_owned()), (image.log_range(), "the log".to_owned())];
    all.extend(image.regions.all().iter().map(|region| (region.range(), format!("region {}", region.id))));
    let inside = |other: &Range<u64>| other.start < range.end && range.start < other.end;
    let first = all.into_iter().filter(|(other, _)| inside(other)).min_by_key(|(other, _)| other.start);
    first.map_or_else(|| "a structure".to_owned(), |(other, name)| format!("{name} at {:#x}", other.start))
}

impl Vhdx {
    /// Shows the space of every entry that reads its own, in the order of the table.
    fn survey_owners(&self, visit: &mut dyn FnMut(u64, Range<u64>)) -> Result<()> {
        let differencing = self.geometry.differencing;
        self.scan_bat(&mut |index, raw| {
            let at = match self.geometry.slot(index) {
                Slot::Payload(block) if block < self.geometry.blocks() => PayloadEntry::decode(raw, differencing)
                    .ok()
                    .filter(|entry| entry.is_present())
                    .map(|entry| entry.offset),
                Slot::Bitmap(_) => decode_bitmap(raw, differencing).ok().flatten(),
                Slot::Payload(_) => None,
            };
            if let Some(at) = at {
                let range = at.get()..at.get().saturating_add(self.space_of(index));
                if self.structure_under(&range).is_none() {
                    visit(index, range);
                }
            }
            Ok(())
        })
    }
}
