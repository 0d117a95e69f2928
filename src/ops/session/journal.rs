//! What a session of snapshots remembers, and how one whose process died is ended.
//!
//! Owns: the record, what is undone and in which order, who has to be released. Must not know: how a set is made.
//!
//! A record that says `Committed` means that the set is there; before that a dead session counts as aborted. Everything
//! here can be interrupted and done again.

use super::mark::mark;
use super::participant::{Hooks, Moment, Participant, SetInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::registry::{Held, Registry};
use crate::storage::atomic::{remove_if_there, rename_new, sync_directory_of};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The kind of its records.
pub(super) const KIND: &str = "session";

/// How far a session got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Participants are told, nothing is frozen.
    Preparing,
    /// Some participants may be frozen.
    Freezing,
    /// All new leaves exist under temporary names and are getting their own.
    Committing,
    /// All new leaves have their names: the set is there.
    Committed,
    /// Nobody is frozen any more.
    Thawed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JournalDisk {
    pub(super) leaf: PathBuf,
    pub(super) child: PathBuf,
    pub(super) temporary: PathBuf,
    /// The checksum of the new leaf's file as it was made: it is ours for as long as that holds.
    pub(super) mark: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct JournalParticipant {
    pub(super) name: String,
    pub(super) prepared: bool,
    pub(super) frozen: bool,
    pub(super) posted: bool,
    pub(super) hooks: Option<Hooks>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) started: u64,
    pub(super) phase: Phase,
    pub(super) disks: Vec<JournalDisk>,
    pub(super) participants: Vec<JournalParticipant>,
}

impl Journal {
    pub(super) fn set(&self) -> SetInfo {
        SetInfo {
            id: self.id.clone(),
            disks: self.disks.iter().map(|disk| disk.leaf.clone()).collect(),
            children: self.disks.iter().map(|disk| disk.child.clone()).collect(),
        }
    }
}

/// What an abort did. Aborting again answers the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AbortReport {
    /// The session.
    pub id: String,
    /// The new leaves that were removed, under whichever name they had.
    #[serde(serialize_with = "crate::ops::paths::list")]
    pub removed: Vec<PathBuf>,
    /// The participants that were told, in the order they were.
    pub released: Vec<String>,
    /// What did not work: a participant that failed, or that nobody can reach any more.
    pub failures: Vec<String>,
}

/// How a session whose process died was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Recovered {
    /// The set had been made: it stays, and everybody was released.
    Finished {
        /// The session.
        id: String,
        /// The new leaves.
        #[serde(serialize_with = "crate::ops::paths::list")]
        children: Vec<PathBuf>,
        /// What did not work when participants were told.
        failures: Vec<String>,
    },
    /// There is no set.
    Aborted(AbortReport),
}

/// A session whose process died, or is at work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionInfo {
    /// Its id.
    pub id: String,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// How far it got.
    pub phase: Phase,
    /// Whether its process is at work; the others are to be recovered.
    pub live: bool,
    /// Its disks.
    #[serde(serialize_with = "crate::ops::paths::list")]
    pub disks: Vec<PathBuf>,
    /// The new leaves it makes.
    #[serde(serialize_with = "crate::ops::paths::list")]
    pub children: Vec<PathBuf>,
    /// Its participants.
    pub participants: Vec<String>,
}

/// The sessions recorded in the registry at `directory`.
///
/// # Errors
/// What reading the records answers.
pub fn sessions(directory: impl AsRef<Path>) -> Result<Vec<SessionInfo>> {
    let registry = Registry::at(directory.as_ref());
    let names = registry.names(KIND)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let live = registry.is_held()?;
    let mut all = Vec::new();
    for name in names {
        // One that has ended since it was listed is no session.
        if let Some(journal) = registry.load::<Journal>(KIND, &name)? {
            let SetInfo { id, disks, children } = journal.set();
            let participants = journal.participants.into_iter().map(|one| one.name).collect();
            all.push(SessionInfo {
                id,
                started: journal.started,
                phase: journal.phase,
                live,
                disks,
                children,
                participants,
            });
        }
    }
    Ok(all)
}

/// Ends the sessions in the registry at `directory` whose process died: those that had made their set are finished, the
/// others are aborted. With `id` only that one. `participants` stand in for those of the dead process that have the same
/// name; the programs in the record are run where no other are given.
///
/// # Errors
/// `InUse` while a session is at work; `NotFound` when there is no session `id`; `Refused` when a new leaf was written to
/// and its set cannot be finished; what the system answers. What was done stays done, and it can be tried again.
pub fn recover_sessions(
    directory: impl AsRef<Path>,
    id: Option<&str>,
    participants: &mut [Box<dyn Participant>],
) -> Result<Vec<Recovered>> {
    let registry = Registry::at(directory.as_ref());
    let held = registry.hold()?;
    recover_all(&registry, &held, id, participants)
}

/// The same, under the lock.
pub(super) fn recover_all(
    registry: &Registry,
    _held: &Held,
    id: Option<&str>,
    participants: &mut [Box<dyn Participant>],
) -> Result<Vec<Recovered>> {
    let names = chosen(registry, id)?;
    let mut ended = Vec::new();
    for name in names {
        let Some(mut journal) = load(registry, &name)? else { continue };
        if journal.phase == Phase::Committing && journal.disks.iter().any(is_used) {
            // Somebody trusts the set already: make it whole.
            finish_names(&journal)?;
            journal.phase = Phase::Committed;
            registry.save(KIND, &name, &journal)?;
        }
        ended.push(if journal.phase >= Phase::Committed {
            let mut failures = Vec::new();
            tell(&mut journal, participants, Moment::Thaw, &mut failures);
            tell(&mut journal, participants, Moment::Post, &mut failures);
            registry.remove(KIND, &name)?;
            Recovered::Finished { id: journal.id.clone(), children: journal.set().children, failures }
        } else {
            Recovered::Aborted(undo(registry, &mut journal, participants)?)
        });
    }
    Ok(ended)
}

/// Ends the dead session `id` of the registry at `directory` without a set, also one that had made its set and only did
/// not come to thaw everybody.
///
/// # Errors
/// As [`recover_sessions`]; `Refused` also when the session is past that.
pub fn abort_session(
    directory: impl AsRef<Path>,
    id: &str,
    participants: &mut [Box<dyn Participant>],
) -> Result<AbortReport> {
    let registry = Registry::at(directory.as_ref());
    let _held = registry.hold()?;
    chosen(&registry, Some(id))?;
    let mut journal = load(&registry, id)?.ok_or_else(|| no_session(&registry, id))?;
    require_abortable(journal.phase)?;
    undo(&registry, &mut journal, participants)
}

/// The record, without hooks when somebody else may have written it.
fn load(registry: &Registry, id: &str) -> Result<Option<Journal>> {
    let mut journal: Option<Journal> = registry.load(KIND, id)?;
    if let Some(journal) = journal.as_mut().filter(|_| !registry.is_private(KIND, id)) {
        journal.participants.iter_mut().for_each(|one| one.hooks = None);
    }
    Ok(journal)
}

pub(super) fn require_abortable(phase: Phase) -> Result<()> {
    if phase < Phase::Thawed {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, "this session is past the point where it could be aborted: its set is there")
        .with_hint("delete the new leaves, or merge them, if they are not wanted"))
}

fn chosen(registry: &Registry, id: Option<&str>) -> Result<Vec<String>> {
    let mut names = registry.names(KIND)?;
    if let Some(id) = id {
        names.retain(|name| name == id);
        if names.is_empty() {
            return Err(no_session(registry, id));
        }
    }
    Ok(names)
}

fn no_session(registry: &Registry, id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format_args!("there is no session {id} here"))
        .with_path(registry.directory())
        .with_hint("`vhdkit session list` shows those there are")
}

/// Takes everything back, the last first, and releases everybody, the last first. The record goes last.
pub(super) fn undo(
    registry: &Registry,
    journal: &mut Journal,
    participants: &mut [Box<dyn Participant>],
) -> Result<AbortReport> {
    let mut report = AbortReport { id: journal.id.clone(), ..AbortReport::default() };
    let done = remove_children(journal, &mut report);
    // Nobody stays frozen because a file could not be removed.
    report.released.extend(tell(journal, participants, Moment::Thaw, &mut report.failures));
    let told = tell(journal, participants, Moment::Abort, &mut report.failures);
    report.released.retain(|name| !told.contains(name));
    report.released.extend(told);
    let saved = registry.save(KIND, &journal.id, journal);
    done.and(saved)?;
    registry.remove(KIND, &journal.id)?;
    Ok(report)
}

fn remove_children(journal: &Journal, report: &mut AbortReport) -> Result<()> {
    if let Some(disk) = journal.disks.iter().find(|disk| journal.phase >= Phase::Committing && is_used(disk)) {
        let message = "the new leaf has been written to, so the set cannot be taken back";
        return Err(Error::new(ErrorKind::Refused, message)
            .with_path(&disk.child)
            .with_hint("finish the set with `vhdkit session recover`, or delete that file first"));
    }
    for disk in journal.disks.iter().rev() {
        let ours = journal.phase >= Phase::Committing && disk.mark.is_some() && mark(&disk.child)? == disk.mark;
        for path in [Some(&disk.temporary), ours.then_some(&disk.child)].into_iter().flatten() {
            if remove_if_there(path, "remove the new leaf")? {
                report.removed.push(path.clone());
            }
        }
    }
    Ok(())
}

/// Whether the new leaf has its name and is no longer as it was made.
fn is_used(disk: &JournalDisk) -> bool {
    // The temporary name gone means that the file by the child's name is the one that was made.
    !disk.temporary.exists() && mark(&disk.child).is_ok_and(|mark| mark.is_some() && mark != disk.mark)
}

/// Gives the new leaves that do not have it their name.
pub(super) fn finish_names(journal: &Journal) -> Result<()> {
    for disk in &journal.disks {
        if disk.temporary.exists() {
            give_name(disk)?;
        }
    }
    Ok(())
}

/// Gives one new leaf its name; durable on return.
///
/// # Errors
/// `Refused` when the name is taken; what the system answers.
pub(super) fn give_name(disk: &JournalDisk) -> Result<()> {
    rename_new(&disk.temporary, &disk.child)?;
    sync_directory_of(&disk.child)
}

/// Tells those that have to know, the last first, and notes it. Answers their names.
fn tell(
    journal: &mut Journal,
    participants: &mut [Box<dyn Participant>],
    moment: Moment,
    failures: &mut Vec<String>,
) -> Vec<String> {
    let set = journal.set();
    let mut told = Vec::new();
    for one in journal.participants.iter_mut().rev() {
        let due = match moment {
            Moment::Thaw => one.frozen,
            Moment::Post => one.prepared && !one.posted,
            _ => one.prepared,
        };
        if !due {
            continue;
        }
        let given = participants.iter_mut().find(|other| other.name() == one.name);
        // Programs given now go before those in the record, each at its moment.
        let mut programs = match (given.as_ref().and_then(|given| given.hooks()), &one.hooks) {
            (Some(given), Some(recorded)) => Some(given.or(recorded)),
            (None, Some(recorded)) if given.is_none() => Some(recorded.clone()),
            _ => None,
        };
        let programs = programs.as_mut().map(|programs| programs as &mut dyn Participant);
        let participant = programs.or(given.map(|given| &mut **given as &mut dyn Participant));
        let Some(participant) = participant else {
            failures.push(format!("{}: nobody is left to {moment} it", one.name));
            continue;
        };
        let done = match moment {
            Moment::Thaw => participant.thaw(&set),
            Moment::Post => participant.post(&set),
            _ => participant.abort(&set),
        };
        match done {
            Ok(()) => told.push(one.name.clone()),
            Err(error) => failures.push(format!("{}: {error}", one.name)),
        }
        match moment {
            Moment::Thaw => one.frozen = false,
            Moment::Post => one.posted = true,
            _ => one.prepared = false,
        }
    }
    told
}

/// The records of `participants`, none of whom has heard anything yet.
///
/// # Errors
/// `InvalidInput` when two have one name.
pub(super) fn told(participants: &[Box<dyn Participant>]) -> Result<Vec<JournalParticipant>> {
    let mut names = BTreeSet::new();
    let mut told = Vec::new();
    for participant in participants {
        let (name, hooks) = (participant.name().to_owned(), participant.hooks().cloned());
        if !names.insert(name.clone()) {
            let message = format_args!("two participants are called {name:?}").to_string();
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        told.push(JournalParticipant { name, prepared: false, frozen: false, posted: false, hooks });
    }
    Ok(told)
}
