//! The plan of a repair.
//!
//! Owns: which damage can be mended, in what order, and the writes that do it. `blocks` owns the entries of the table.
//! Must not know: how a plan is carried out.
//!
//! The plan is made by mending a view of the file that lives in memory ([`Recorder`]): every part of it sees what the
//! parts before it did. Wherever carrying it out is interrupted the file opens as well as before, because
//!
//! * headers change by the update procedure alone, and the first change gives the file its new id;
//! * the log is marked empty after what it holds is in its place;
//! * a copy of the region table changes while the other is good;
//! * entries of the table change one by one, each of them harmless alone; a sector bitmap goes after the blocks that need
//!   it.

mod blocks;
mod recorder;

use super::Vhdx;
use super::header::HeaderPair;
use super::log::replay::{self, Replay};
use super::log::{LogArea, MAX_FILE_LENGTH};
use super::raw::{REGION_TABLE_AT, REGION_TABLE_LEN};
use super::region::choose_copy;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::guid::{self, Guid};
use crate::map::BlockMap;
use crate::mend::{RepairKind, Step};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, Storage};
use crate::units::FileOffset;
use recorder::Recorder;
use std::io;
use std::ops::Range;
use std::sync::Arc;

impl Vhdx {
    /// What a repair of the image in `storage` would write: safe repairs always, others when `allow` lists their kind.
    ///
    /// # Errors
    /// The problem, when the image cannot be opened and nothing allowed changes that; what the storage answers.
    pub(crate) fn plan_repair(storage: Arc<dyn Storage>, allow: &[RepairKind]) -> Result<Vec<Step>> {
        let mut plan = Plan::new(storage, allow)?;
        plan.empty_log()?;
        plan.mend_region_table()?;
        blocks::mend(&mut plan)?;
        plan.mend_length()?;
        Ok(plan.steps)
    }
}

/// A plan being made.
struct Plan<'a> {
    target: Arc<Recorder>,
    headers: HeaderPair,
    allow: &'a [RepairKind],
    steps: Vec<Step>,
    file_id_is_fresh: bool,
    data_id_is_fresh: bool,
}

impl<'a> Plan<'a> {
    /// Starts with the headers, by which all else is found.
    fn new(storage: Arc<dyn Storage>, allow: &'a [RepairKind]) -> Result<Self> {
        let recorder = Recorder::new(storage).map_err(|error| Error::io("read the file length", error))?;
        let target = Arc::new(recorder);
        let mut findings = Findings::new();
        let headers = HeaderPair::read(&*target, &mut findings)?;
        let about_headers = |problem: &Problem| problem.structure == Structure::VhdxHeader;
        let found = findings.list().iter().find(|finding| finding.repairable && about_headers(&finding.problem));
        if headers.is_ambiguous()
            && let Some(bad) = findings.list().iter().find(|finding| finding.problem.fault == Fault::Mismatch)
        {
            return Err(Error::from_problem(ErrorKind::Refused, bad.problem.clone()).with_hint(
                "which of the two headers is the right one cannot be told; convert the image to a new file",
            ));
        }
        let mut plan =
            Self { target, headers, allow, steps: Vec::new(), file_id_is_fresh: false, data_id_is_fresh: false };
        // Emptying the log writes both headers; that they differ while it is in use is how its use begins.
        let in_use = !plan.headers.current().log_guid.is_nil();
        if let Some(finding) = found.filter(|finding| !in_use || finding.problem.fault != Fault::Mismatch) {
            let what = match finding.problem.fault {
                Fault::Mismatch => "give both headers the ids of the current one",
                _ => "rewrite the damaged header from the good one",
            };
            plan.begin(RepairKind::Header)?;
            plan.finish(RepairKind::Header, what, Vec::new());
        }
        Ok(plan)
    }

    fn allows(&self, kind: RepairKind) -> bool {
        kind.is_safe() || self.allow.contains(&kind)
    }

    /// Opens the file as the plan leaves it so far.
    fn open(&self) -> Result<Vhdx> {
        let target: Arc<dyn Storage> = Arc::clone(&self.target) as Arc<dyn Storage>;
        Vhdx::open(target, Access::Read, &mut Findings::new())
    }

    /// The new ids that a repair of `kind` must give the file before it changes anything ([MS-VHDX] 2.2.2): once per
    /// plan, and the DataWriteGuid only when the disk shows other bytes afterwards, because children are bound to it.
    fn begin(&mut self, kind: RepairKind) -> Result<()> {
        let new_file = !self.file_id_is_fresh;
        let new_data = !kind.is_safe() && !self.data_id_is_fresh;
        if new_file || new_data {
            self.headers.update(&*self.target, |header| {
                if new_file {
                    header.file_write_guid = guid::fresh();
                }
                if new_data {
                    header.data_write_guid = guid::fresh();
                }
            })?;
        }
        self.file_id_is_fresh = true;
        self.data_id_is_fresh |= new_data;
        Ok(())
    }

    /// Makes a step of all that was changed since the last one.
    fn finish(&mut self, kind: RepairKind, what: impl Into<String>, loses: Vec<Range<u64>>) {
        let edits = self.target.take();
        if !edits.is_empty() {
            self.steps.push(Step { kind, what: what.into(), edits, loses });
        }
    }

    fn sync(&self) -> Result<()> {
        self.target.sync().map_err(|error| Error::io("sync the image", error))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.target.set_len(len).map_err(|error| Error::io("set the length of the file", error))
    }

    /// Applies what the log holds, or gives it up when it cannot be read and that is allowed.
    fn empty_log(&mut self) -> Result<()> {
        let header = *self.headers.current();
        if header.log_guid.is_nil() {
            return Ok(());
        }
        let area = LogArea { offset: header.log_offset, length: u64::from(header.log_length), guid: header.log_guid };
        let error = match replay::find_active(&*self.target, &area, &mut Findings::new()) {
            Ok(replay) => return self.replay(&replay),
            Err(error) => error,
        };
        let structure = error.problem().map(|problem| problem.structure);
        let (kind, hint) = match structure {
            Some(Structure::VhdxLog) => (RepairKind::DropLog, "the updates in the log can be given up"),
            Some(Structure::File) => (RepairKind::ZeroExtend, "the lost end of the file can be made zeros"),
            _ => return Err(error),
        };
        if !self.allows(kind) {
            return Err(error.with_hint(format_args!("{hint}, by allowing {kind}")));
        }
        if kind == RepairKind::DropLog { self.drop_log() } else { self.extend_for_log(&area, error) }
    }

    fn replay(&mut self, replay: &Replay) -> Result<()> {
        self.begin(RepairKind::LogReplay)?;
        replay.apply(&*self.target)?;
        self.sync()?;
        self.headers.update(&*self.target, |header| header.log_guid = Guid::nil())?;
        let what = format!("apply the {} entries of the log", replay.len());
        self.finish(RepairKind::LogReplay, what, Vec::new());
        Ok(())
    }

    fn drop_log(&mut self) -> Result<()> {
        self.begin(RepairKind::DropLog)?;
        self.headers.update(&*self.target, |header| header.log_guid = Guid::nil())?;
        // Whatever the log would have changed may be anywhere.
        let all = 0..self.open()?.virtual_size();
        self.finish(RepairKind::DropLog, "give up the log, which has no complete sequence of entries", vec![all]);
        Ok(())
    }

    /// The log relies on a longer file: gives it that length, with zeros for what was cut off.
    fn extend_for_log(&mut self, area: &LogArea, error: Error) -> Result<()> {
        let old_len = self.target.len().map_err(|error| Error::io("read the file length", error))?;
        let wanted = replay::flushed_length(&*self.target, area)?;
        let Some(len) = wanted.filter(|len| (old_len..=MAX_FILE_LENGTH).contains(len)) else { return Err(error) };
        self.begin(RepairKind::ZeroExtend)?;
        self.set_len(len)?;
        let at = self.steps.len();
        self.finish(RepairKind::ZeroExtend, format!("make the file {len} bytes long again"), Vec::new());
        self.replay(&replay::find_active(&*self.target, area, &mut Findings::new())?)?;
        let loses = blocks::lost_past(&self.open()?, old_len)?;
        if let Some(step) = self.steps.get_mut(at) {
            step.loses = loses;
        }
        Ok(())
    }

    /// Makes the two copies of the region table equal again.
    fn mend_region_table(&mut self) -> Result<()> {
        let (good_at, good) = choose_copy(&*self.target, &mut Findings::new())?;
        let Some(bad_at) = REGION_TABLE_AT.into_iter().find(|at| *at != good_at.get()) else { return Ok(()) };
        let mut bad = vec![0; REGION_TABLE_LEN];
        let failed = |error| Error::io("read the VHDX region table", error).with_offset(FileOffset(bad_at));
        match self.target.read_exact_at(&mut bad, bad_at) {
            // The file ends inside it.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => bad.clear(),
            read => read.map_err(failed)?,
        }
        if bad != good {
            self.begin(RepairKind::RegionTable)?;
            self.target.write_all_at(&good, bad_at).map_err(failed)?;
            let number = if bad_at < good_at.get() { 1 } else { 2 };
            let what = format!("rewrite copy {number} of the region table from the other");
            self.finish(RepairKind::RegionTable, what, Vec::new());
        }
        Ok(())
    }

    /// Gives the file the length that its parts need and no more.
    fn mend_length(&mut self) -> Result<()> {
        let image = self.open()?;
        let file_len = image.file_len()?;
        let survey = image.survey(file_len, &mut |_, _, _| Ok(()))?;
        let Some(len) = survey.sound_len(&image, file_len).filter(|len| *len != file_len) else { return Ok(()) };
        let (kind, what) = match file_len.checked_sub(len) {
            Some(bytes) => (RepairKind::LeakedSpace, format!("cut {bytes} bytes that nothing owns off the end")),
            None => (RepairKind::FileLength, format!("make the file {len} bytes long, the end of what lies in it")),
        };
        self.begin(kind)?;
        self.set_len(len)?;
        self.finish(kind, what, Vec::new());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
