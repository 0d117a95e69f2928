//! Every state a crash can leave a directory in.
//!
//! Owns: what of the steps that were taken survives: each change of a name until its directory is synced may have reached
//! the medium or not, in any order, and the bytes of a file until it is synced are there, or gone, or there in part. Must
//! not know: what the steps are for.

use super::steps::Step;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The most changes that may wait for a sync at once: all subsets are looked at.
const MAX_PENDING: usize = 10;

/// What a name leads to after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The file that was there before the run.
    Old,
    /// A file of the run: the number of its creation, and whether all of its bytes are there.
    New { number: usize, whole: bool },
}

pub(crate) type Names = BTreeMap<PathBuf, Left>;

#[derive(Default)]
struct Directory {
    /// By name: the number of the file's creation, `None` for one from before.
    durable: BTreeMap<PathBuf, Option<usize>>,
    /// What may be on the medium or not: names and what they lead to, `None` for nothing.
    pending: Vec<Vec<(PathBuf, Option<Option<usize>>)>>,
    /// As this machine sees it.
    now: BTreeMap<PathBuf, Option<usize>>,
    unsynced: BTreeSet<usize>,
    created: usize,
}

impl Directory {
    fn take(&mut self, step: &Step) {
        let change = match step {
            Step::Create(name) => {
                self.unsynced.insert(self.created);
                self.created += 1;
                vec![(name.clone(), Some(Some(self.created - 1)))]
            }
            Step::SyncFile(name) => {
                if let Some(Some(number)) = self.now.get(name) {
                    self.unsynced.remove(number);
                }
                return;
            }
            Step::Rename(from, to) => {
                let file = *self.now.get(from).expect("what is renamed is there");
                vec![(from.clone(), None), (to.clone(), Some(file))]
            }
            Step::Remove(name) => vec![(name.clone(), None)],
            Step::SyncDirectory(directory) => {
                let (synced, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|change| change.iter().all(|(name, _)| name.parent() == Some(directory)));
                synced.iter().for_each(|change| apply(&mut self.durable, change));
                self.pending = rest;
                return;
            }
        };
        apply(&mut self.now, &change);
        self.pending.push(change);
    }

    /// Shows every state that a crash at this moment leaves to `judge`.
    fn crash(&self, judge: &mut dyn FnMut(&Names) -> Result<(), String>) -> Result<usize, String> {
        assert!(self.pending.len() <= MAX_PENDING, "{} changes wait for a sync", self.pending.len());
        let lost: Vec<usize> = self.unsynced.iter().copied().collect();
        let mut states = 0;
        for survives in 0_u32..1 << self.pending.len() {
            for whole in 0_u32..1 << lost.len() {
                let mut names = self.durable.clone();
                for (at, change) in self.pending.iter().enumerate() {
                    if survives >> at & 1 == 1 {
                        apply(&mut names, change);
                    }
                }
                let left = |file: Option<usize>| match file {
                    None => Left::Old,
                    Some(number) => {
                        let place = lost.iter().position(|&lost| lost == number);
                        Left::New { number, whole: place.is_none_or(|place| whole >> place & 1 == 1) }
                    }
                };
                let names: Names = names.into_iter().map(|(name, file)| (name, left(file))).collect();
                states += 1;
                judge(&names).map_err(|error| format!("{error}: {names:?}"))?;
            }
        }
        Ok(states)
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Option<usize>>, change: &[(PathBuf, Option<Option<usize>>)]) {
    for (name, file) in change {
        match file {
            Some(file) => names.insert(name.clone(), *file),
            None => names.remove(name),
        };
    }
}

/// Shows every state that a crash can leave of a directory that had the names `before` to `judge`, with whether all `steps`
/// had been taken; answers how many there were.
pub(crate) fn explore(
    before: &[&Path],
    steps: &[Step],
    judge: &mut dyn FnMut(&Names, bool) -> Result<(), String>,
) -> Result<usize, String> {
    let names: BTreeMap<PathBuf, Option<usize>> = before.iter().map(|name| (name.to_path_buf(), None)).collect();
    let mut directory = Directory { durable: names.clone(), now: names, ..Directory::default() };
    let mut states = directory.crash(&mut |names| judge(names, steps.is_empty()))?;
    for (at, step) in steps.iter().enumerate() {
        directory.take(step);
        let all = at + 1 == steps.len();
        let seen = directory.crash(&mut |names| judge(names, all));
        states += seen.map_err(|error| format!("after {at}: {step:?}: {error}"))?;
    }
    Ok(states)
}
