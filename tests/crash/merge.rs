//! Bug this finds: a write of a merge that reaches the medium before one it depends on, so that for some subset of
//! surviving writes the source shows other bytes, a file does not open, or the rerun does not finish.

use crate::budget::{Quota, Seen};
use crate::case::{Case, Judge, Recorded, quick};
use crate::chains::{self, ChainSpec};
use crate::view::{Model, compare};
use crate::{files, generate};
use std::cell::Cell;
use std::sync::Arc;
use vhdkit::chain::Chain;
use vhdkit::ops::{MergeOptions, merge_chain};
use vhdkit::storage::sim::{CrashState, SimDisk};
use vhdkit::storage::{Access, Storage};
use vhdkit::{Format, Severity, Watch};

/// The file that keeps a merge's place.
pub(crate) const CHECKPOINT: &str = "checkpoint";

/// One state in so many is also looked at by the second reader and the checker of the rules.
const SECOND_OPINION: u64 = 16;

/// What is merged and how.
#[derive(Clone, Debug)]
pub(crate) struct MergeSpec {
    pub(crate) name: String,
    pub(crate) chain: ChainSpec,
    /// Depths, the leaf is 1.
    pub(crate) source: usize,
    pub(crate) target: usize,
    pub(crate) relink: bool,
    /// Keeps a checkpoint after each block.
    pub(crate) resume: bool,
    /// VHDX: every file has a log to replay when the merge begins.
    pub(crate) dirty: bool,
}

impl MergeSpec {
    /// Nothing to merge: only the chain is wanted.
    pub(crate) fn of_chain(chain: &ChainSpec) -> Self {
        let chain = chain.clone();
        Self { name: String::new(), chain, source: 1, target: 1, relink: false, resume: false, dirty: false }
    }
}

/// One merge to crash.
#[derive(Debug)]
pub(crate) struct Merge {
    pub(crate) spec: MergeSpec,
    /// The machine before the merge.
    pub(crate) base: SimDisk,
    /// What each layer shows, leaf first.
    pub(crate) views: Vec<Model>,
    judged: Cell<u64>,
    /// One state in so many is run on from and crashed again; 0: none.
    again: u64,
    deeper: Cell<Seen>,
}

impl Merge {
    pub(crate) fn new(spec: MergeSpec) -> Self {
        let (base, views) = generate::build(&spec);
        Self { spec, base, views, judged: Cell::new(0), again: 0, deeper: Cell::default() }
    }

    /// Also crashes the rerun after one crash state in `again`.
    pub(crate) fn crashed_again(mut self, again: u64) -> Self {
        self.again = again;
        self
    }

    /// States and points seen while crashing reruns, since last asked.
    pub(crate) fn take_deeper(&self) -> Seen {
        self.deeper.take()
    }

    pub(crate) fn options(&self, disk: &SimDisk) -> MergeOptions {
        let options = match self.spec.source {
            1 => MergeOptions::depth(self.spec.target - 1),
            source => MergeOptions::between(source, self.spec.target).relink(self.spec.relink),
        };
        let options = options.jobs(1);
        match self.spec.resume {
            true => options.checkpoint_every(1).store(Arc::new(files::Place(disk.file(CHECKPOINT)))),
            false => options,
        }
    }

    /// The storages of the chain on `disk`, leaf first.
    pub(crate) fn storages(&self, disk: &SimDisk) -> Vec<Arc<dyn Storage>> {
        (0..self.views.len()).rev().map(|index| disk.file(&files::name(index)) as Arc<dyn Storage>).collect()
    }

    /// The same after the file above the source was pointed at the target and the merged files are gone.
    pub(crate) fn shortened(&self, disk: &SimDisk) -> Vec<Arc<dyn Storage>> {
        let mut files = self.storages(disk);
        files.drain(self.spec.source - 1..self.spec.target - 1);
        files
    }

    /// The merge from opening to closing; the caller of the store forgets the place.
    pub(crate) fn merge(&self, disk: &SimDisk) -> vhdkit::Result<()> {
        let mut chain = chains::open(&self.storages(disk), Access::Read)?;
        merge_chain(&mut chain, &self.options(disk), &Watch::none())?;
        chain.close()
    }

    /// Every file from the leaf to the source shows what it showed, opened for `access`.
    pub(crate) fn check_views(&self, disk: &SimDisk, views: &[Model]) -> Result<(), String> {
        for (depth, view) in views.iter().enumerate().take(self.spec.source) {
            let at = |error: String| format!("depth {}: {error}", depth + 1);
            let chain = match open(&self.storages(disk)[depth..]) {
                Ok(chain) => chain,
                Err(_) if self.spec.relink && depth < self.spec.source - 1 => {
                    open(&self.shortened(disk)[depth..]).map_err(at)?
                }
                Err(error) => return Err(at(error)),
            };
            compare(&chain, &[view]).map_err(at)?;
        }
        Ok(())
    }

    /// The target shows what the source showed, and the files above the source show what they showed over it.
    pub(crate) fn check_done(&self, disk: &SimDisk, views: &[Model]) -> Result<(), String> {
        let files = self.storages(disk);
        let target = open(&files[self.spec.target - 1..]).map_err(|error| format!("target: {error}"))?;
        compare(&target, &[&views[self.spec.source - 1]]).map_err(|error| format!("target: {error}"))?;
        if !self.spec.relink {
            return Ok(());
        }
        let files = self.shortened(disk);
        for (depth, view) in views.iter().enumerate().take(self.spec.source - 1) {
            let at = |error: String| format!("depth {} over the target: {error}", depth + 1);
            compare(&open(&files[depth..]).map_err(at)?, &[view]).map_err(at)?;
        }
        Ok(())
    }

    /// Runs the merge again; false when only its end was left because the link is changed already, which is its last
    /// write. A merge that keeps its place then says so, unless it has forgotten it.
    pub(crate) fn rerun(&self, disk: &SimDisk) -> Result<bool, String> {
        if !self.is_short(disk) {
            return self.merge(disk).map_err(|error| format!("rerun: {error}")).map(|()| true);
        }
        if self.keeps_place(disk) {
            let note = vhdkit::ops::CheckpointStore::load(&files::Place(disk.file(CHECKPOINT)));
            let note = note.map(|note| note.map(|note| String::from_utf8_lossy(&note).into_owned()));
            let at = |error: vhdkit::Error| format!("rerun of the end, noted as {note:?}: {error}");
            let mut chain = chains::open(&self.shortened(disk), Access::Read).map_err(at)?;
            let report = merge_chain(&mut chain, &self.options(disk), &Watch::none()).map_err(at)?;
            chain.close().map_err(at)?;
            if !report.ended {
                return Err("the rerun merged again what was merged".to_owned());
            }
        }
        Ok(false)
    }

    /// The survivor stands on the target.
    fn is_short(&self, disk: &SimDisk) -> bool {
        self.spec.relink
            && chains::open(&self.storages(disk), Access::Read).is_err()
            && chains::open(&self.shortened(disk), Access::Read).is_ok()
    }

    fn keeps_place(&self, disk: &SimDisk) -> bool {
        self.spec.resume && disk.file(CHECKPOINT).len().is_ok_and(|len| len > 0)
    }

    /// Whatever a crash left: the views stand, a rerun finishes, and then the target shows the source.
    pub(crate) fn judge(&self, disk: &SimDisk, views: &[Model]) -> Result<(), String> {
        self.check_views(&disk.fork(), views).map_err(|error| format!("before the rerun: {error}"))?;
        self.check_recovered(&disk.fork(), views).map_err(|error| format!("recovered: {error}"))?;
        let ran = self.rerun(disk)?;
        self.check_views(disk, views).map_err(|error| format!("after the rerun: {error}"))?;
        self.check_done(disk, views).map_err(|error| format!("after the rerun: {error}"))?;
        let judged = self.judged.get();
        self.judged.set(judged + 1);
        if ran && judged.is_multiple_of(SECOND_OPINION) {
            self.second_opinion(disk, views)?;
        }
        Ok(())
    }

    /// A VHD that was mended, as a rerun does it or by a repair, shows the same as one that was only read. (A VHDX needs no
    /// mending; the rerun replays it.)
    fn check_recovered(&self, disk: &SimDisk, views: &[Model]) -> Result<(), String> {
        if self.spec.chain.format != Format::Vhd {
            return Ok(());
        }
        for file in self.storages(disk) {
            if self.judged.get().is_multiple_of(2) {
                files::mend(file)?;
            } else {
                files::repair(file)?;
            }
        }
        self.check_views(disk, views)
    }

    /// What people who know nothing of this crate would say.
    fn second_opinion(&self, disk: &SimDisk, views: &[Model]) -> Result<(), String> {
        let MergeSpec { source, target, .. } = self.spec;
        // A rerun that finds the child bound already does not write to it, so one of its headers may be torn.
        let headers: &[&str] = &["headers-agree", "header-checksum", "header-sequence", "clean-log"];
        for (depth, except) in [(target, &[][..]), (target - 1, headers)] {
            let name = files::name(self.views.len() - depth);
            files::check_rules(self.spec.chain.format, disk, (&name, except))?;
        }
        let names = |depth: usize| (0..=self.views.len() - depth).rev().map(files::name).collect::<Vec<_>>();
        files::check_reader(disk, &names(target), &views[source - 1])?;
        if self.spec.relink { Ok(()) } else { files::check_reader(disk, &names(1), &views[0]) }
    }

    /// Once more from the state a crash left, crashing that in turn.
    fn crash_again(&self, disk: &SimDisk, seed: u64) -> Result<(), String> {
        self.rerun(disk)?;
        let report = disk.explore(&quick(seed), |state| self.judge(&state.disk(), &self.views));
        let mut deeper = self.deeper.get();
        deeper.add(&report);
        self.deeper.set(deeper);
        report.first_failure.map_or(Ok(()), |failure| Err(format!("the rerun crashed: {failure}\nafter")))
    }

    fn judge_state(&self, state: &CrashState<'_>, done: usize) -> Result<(), String> {
        if state.point() >= done {
            self.check_done(&state.disk(), &self.views).map_err(|error| format!("merged and closed, but {error}"))?;
        } else if self.spec.resume && self.is_short(&state.disk()) && !self.keeps_place(&state.disk()) {
            return Err("the link is changed, and nothing says that the merge is at its end".to_owned());
        }
        self.judge(&state.disk(), &self.views)?;
        match self.again {
            0 => Ok(()),
            again if self.judged.get().is_multiple_of(again) => self.crash_again(&state.disk(), self.judged.get()),
            _ => Ok(()),
        }
    }
}

impl Case for Merge {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn record(&self, spoil: &dyn Fn(&SimDisk)) -> Recorded<'_> {
        let disk = self.base.fork();
        spoil(&disk);
        self.merge(&disk).unwrap_or_else(|error| panic!("{}: {error}", self.spec.name));
        let done = disk.promise();
        if self.spec.resume {
            vhdkit::ops::CheckpointStore::clear(&files::Place(disk.file(CHECKPOINT))).expect("clear");
        }
        let judge: Judge<'_> = Box::new(move |state| self.judge_state(state, done));
        Recorded { disk, judge }
    }
}

/// Opens the chain for reading. A VHDX that opens must not need a repair.
pub(crate) fn open(files: &[Arc<dyn Storage>]) -> Result<Chain, String> {
    let chain = chains::open(files, Access::Read).map_err(|error| error.to_string())?;
    for (depth, layer) in chain.layers().iter().enumerate() {
        let mut findings = layer.findings().list().iter();
        let bad = findings.find(|finding| finding.severity > Severity::Warning);
        if let (Format::Vhdx, Some(bad)) = (layer.image().format(), bad) {
            return Err(format!("file {} of the chain needs repair: {}", depth + 1, bad.problem));
        }
    }
    Ok(chain)
}

fn explore_all(name: &'static str, format: Format) {
    let mut quota = Quota::new(name);
    let fixed = generate::known(format);
    let mut round = 0;
    while round < fixed.len() || quota.wants_more() {
        let spec = fixed.get(round).cloned().unwrap_or_else(|| generate::random(format, round as u64));
        let merge = Merge::new(spec).crashed_again(if format == Format::Vhd { 8 } else { 512 });
        merge.explore(&mut quota);
        quota.add(&merge.take_deeper());
        round += 1;
    }
    quota.finish();
}

#[test]
fn vhd_merges_survive_every_crash() {
    explore_all("VHD merges", Format::Vhd);
}

#[test]
fn vhdx_merges_survive_every_crash() {
    explore_all("VHDX merges", Format::Vhdx);
}
