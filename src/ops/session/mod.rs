//! Snapshot sets: a new leaf on each of several disks, all of them or none.
//!
//! Owns: the states of a session and the order in which disks and participants are dealt with. Must not know: how a
//! record is kept, how an image is made.
//!
//! The order, each step durable before the next:
//!
//! 1. The record, then `prepare` of every participant, then `freeze` of every participant.
//! 2. Every new leaf is made whole under a temporary name; the record says so.
//! 3. The new leaves get their names; the record says that the set is there.
//! 4. `thaw`, then `post`; the record goes.
//!
//! A process that dies before the end of step 3 leaves a record by which everything is taken back; one that dies later
//! leaves a record by which everybody is released and the set stays.
//!
//! A session can be aborted until everybody is thawed. Merges and resyncs cannot: they are stopped and run again.

mod journal;
mod leaf;
mod mark;
mod names;
mod participant;
mod plan;
mod state;

pub use journal::{AbortReport, Phase, Recovered, SessionInfo, abort_session, recover_sessions, sessions};
pub use leaf::new_leaf;
pub use participant::{Hooks, Moment, Participant, SetInfo};
pub use plan::{SessionOptions, SnapshotDisk};
pub use state::{SessionReport, SessionState};

use super::registry::{Held, Registry};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::guid;
use crate::storage::atomic::sync_directory_of;
use crate::storage::{FileStorage, Storage};
use crate::watch::Watch;
use journal::{Journal, JournalDisk, KIND};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The most disks of a set.
const MAX_DISKS: usize = 1024;

/// One snapshot set in the making. Serves one set; dropped before its end, it aborts.
pub struct Session {
    registry: Registry,
    held: Option<Held>,
    options: SessionOptions,
    journal: Journal,
    participants: Vec<Box<dyn Participant>>,
    state: SessionState,
    frozen_at: Option<Instant>,
    frozen_ms: u64,
    /// Held from freeze to thaw, so that nobody writes to a leaf that has become a parent.
    chains: Vec<Chain>,
    recovered: Vec<Recovered>,
    aborted: Option<AbortReport>,
    steps: usize,
    dead: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("journal", &self.journal).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Session {
    /// A session for `disks`. Nothing is done yet.
    ///
    /// # Errors
    /// `InvalidInput` for no disks, too many, a disk or a new leaf named twice, a new leaf that names no file.
    pub fn new(disks: &[SnapshotDisk], options: &SessionOptions) -> Result<Self> {
        let id = guid::fresh().simple().to_string();
        if disks.len() > MAX_DISKS {
            let message = format_args!("{} disks; a set has at most {MAX_DISKS}", disks.len()).to_string();
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let Some(first) = disks.first() else {
            return Err(Error::new(ErrorKind::InvalidInput, "a snapshot set needs at least one disk"));
        };
        let registry = match &options.registry {
            Some(directory) => Registry::at(directory),
            None => Registry::beside(&first.leaf),
        };
        let disks = disks.iter().map(|disk| plan::planned(disk, &id)).collect::<Result<Vec<_>>>()?;
        let children: BTreeSet<&Path> = disks.iter().map(|disk| disk.child.as_path()).collect();
        if children.len() < disks.len() {
            return Err(Error::new(ErrorKind::InvalidInput, "two disks would get the same new leaf"));
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let journal = Journal { id, started, phase: Phase::Preparing, disks, participants: Vec::new() };
        Ok(Self {
            registry,
            held: None,
            options: options.clone(),
            journal,
            participants: Vec::new(),
            state: SessionState::New,
            frozen_at: None,
            frozen_ms: 0,
            chains: Vec::new(),
            recovered: Vec::new(),
            aborted: None,
            steps: 0,
            dead: false,
        })
    }

    /// Adds a participant; they are told in this order, and released in the reverse one.
    #[must_use]
    pub fn participant(mut self, participant: Box<dyn Participant>) -> Self {
        self.participants.push(participant);
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.journal.id
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.state
    }

    /// Checks the disks, ends what dead sessions left in the registry, and tells the participants.
    ///
    /// # Errors
    /// `InUse` when another session is at work; `Refused` when a new leaf exists; `InvalidInput` when two disks are one
    /// file or two participants have one name; those of opening a disk; a participant's own. After a failure the
    /// session can only be aborted: those who were told have to hear of it.
    pub fn prepare(&mut self) -> Result<()> {
        self.require(SessionState::New, "prepared")?;
        let done = self.prepare_all();
        if self.state == SessionState::New {
            self.held = None;
        }
        done
    }

    fn prepare_all(&mut self) -> Result<()> {
        let held = self.registry.hold()?;
        self.recovered = journal::recover_all(&self.registry, &held, None, &mut self.participants)?;
        self.held = Some(held);
        plan::look(&self.journal.disks, &self.options.chain)?;
        self.journal.participants = journal::told(&self.participants)?;
        self.step()?;
        self.save()?;
        // From here on there is something to take back.
        self.state = SessionState::Prepared;
        for at in 0..self.participants.len() {
            self.journal.participants[at].prepared = true;
            self.step()?;
            self.save()?;
            self.participants[at].prepare(&self.journal.set())?;
        }
        Ok(())
    }

    /// Freezes the participants.
    ///
    /// # Errors
    /// A participant's own, or that the time is up; the session is aborted then.
    pub fn freeze(&mut self) -> Result<()> {
        self.require(SessionState::Prepared, "frozen")?;
        let done = self.freeze_all();
        self.or_abort(done)?;
        self.state = SessionState::Frozen;
        Ok(())
    }

    fn freeze_all(&mut self) -> Result<()> {
        self.journal.phase = Phase::Freezing;
        self.frozen_at = Some(Instant::now());
        for at in 0..self.participants.len() {
            self.journal.participants[at].frozen = true;
            self.step()?;
            self.save()?;
            let left = self.time_left()?;
            self.participants[at].freeze(&self.journal.set(), left)?;
        }
        self.time_left().map(drop)
    }

    /// Makes the new leaves, all of them or none.
    ///
    /// # Errors
    /// Those of opening the disks and of writing; `Refused` when a name was taken meanwhile or the time is up. The
    /// session is aborted then.
    pub fn commit(&mut self) -> Result<()> {
        self.require(SessionState::Frozen, "committed")?;
        let done = self.commit_all();
        self.or_abort(done)?;
        self.state = SessionState::Committed;
        Ok(())
    }

    fn commit_all(&mut self) -> Result<()> {
        for at in 0..self.journal.disks.len() {
            self.step()?;
            self.make_child(at)?;
        }
        self.journal.phase = Phase::Committing;
        self.step()?;
        self.save()?;
        for at in 0..self.journal.disks.len() {
            self.step()?;
            journal::give_name(&self.journal.disks[at])?;
        }
        self.time_left()?;
        self.step()?;
        self.journal.phase = Phase::Committed;
        self.save()
    }

    /// The new leaf of disk `at`, whole and durable under its temporary name.
    fn make_child(&mut self, at: usize) -> Result<()> {
        let disk = &self.journal.disks[at];
        let parent = Chain::open(&disk.leaf, &self.options.chain)?;
        let file = FileStorage::create_new(&disk.temporary)?;
        new_leaf(&(Arc::new(file) as Arc<dyn Storage>), &disk.child, parent.leaf())
            .map_err(|error| error.with_path(&disk.temporary))?;
        sync_directory_of(&disk.temporary)?;
        let mark = mark::mark(&disk.temporary)?;
        self.journal.disks[at].mark = mark;
        self.chains.push(parent);
        Ok(())
    }

    /// Lets the participants go on. From then on the set stays.
    ///
    /// # Errors
    /// A participant's own; the session is aborted then.
    pub fn thaw(&mut self) -> Result<()> {
        self.require(SessionState::Committed, "thawed")?;
        let done = self.thaw_all();
        self.or_abort(done)?;
        self.state = SessionState::Post;
        self.chains.clear();
        Ok(())
    }

    fn thaw_all(&mut self) -> Result<()> {
        for at in (0..self.participants.len()).rev() {
            self.step()?;
            self.participants[at].thaw(&self.journal.set())?;
            self.journal.participants[at].frozen = false;
        }
        if let Some(since) = self.frozen_at {
            self.frozen_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        self.step()?;
        self.journal.phase = Phase::Thawed;
        self.save()
    }

    /// Tells the participants that the set is there, and ends the session. Those that fail are in the report.
    ///
    /// # Errors
    /// What removing the record answers.
    pub fn complete(&mut self) -> Result<SessionReport> {
        self.require(SessionState::Post, "completed")?;
        let mut post_failures = Vec::new();
        for at in 0..self.participants.len() {
            self.step()?;
            if let Err(error) = self.participants[at].post(&self.journal.set()) {
                post_failures.push(format!("{}: {error}", self.journal.participants[at].name));
            }
            self.journal.participants[at].posted = true;
        }
        self.step()?;
        self.registry.remove(KIND, &self.journal.id)?;
        self.held = None;
        self.state = SessionState::Completed;
        let disk = |disk: &JournalDisk| SnapshotDisk { leaf: disk.leaf.clone(), child: disk.child.clone() };
        Ok(SessionReport {
            id: self.journal.id.clone(),
            disks: self.journal.disks.iter().map(disk).collect(),
            frozen_ms: self.frozen_ms,
            post_failures,
            recovered: std::mem::take(&mut self.recovered),
        })
    }

    /// Takes everything back and releases every participant that was told of the set. Before [`prepare`](Self::prepare)
    /// there is nothing to do; again, it answers the same.
    ///
    /// # Errors
    /// `Refused` once everybody is thawed, as the set is there, and when a new leaf was written to already; what the
    /// system answers. It can be tried again.
    pub fn abort(&mut self) -> Result<AbortReport> {
        if let Some(report) = &self.aborted {
            return Ok(report.clone());
        }
        if matches!(self.state, SessionState::Post | SessionState::Completed) {
            journal::require_abortable(Phase::Thawed)?;
        }
        let report = if self.state == SessionState::New {
            AbortReport { id: self.journal.id.clone(), ..AbortReport::default() }
        } else {
            self.chains.clear();
            journal::undo(&self.registry, &mut self.journal, &mut self.participants)?
        };
        self.held = None;
        self.state = SessionState::Aborted;
        self.aborted = Some(report.clone());
        Ok(report)
    }

    /// All of it: prepare, freeze, commit, thaw, complete. `watch` is asked between them whether to go on.
    ///
    /// # Errors
    /// The first failure, or `Cancelled`; the session is aborted then, and what went wrong in that is in the hint.
    pub fn run(mut self, watch: &Watch<'_>) -> Result<SessionReport> {
        let mut go = || {
            watch.check()?;
            self.prepare()?;
            watch.check()?;
            self.freeze()?;
            watch.check()?;
            self.commit()?;
            self.thaw()?;
            self.complete()
        };
        let done = go();
        self.or_abort(done)
    }

    fn or_abort<T>(&mut self, done: Result<T>) -> Result<T> {
        let Err(error) = done else { return done };
        if self.dead || matches!(self.state, SessionState::Post | SessionState::Completed) {
            return Err(error);
        }
        Err(match self.abort() {
            Ok(report) if report.failures.is_empty() => error.with_hint("the set was taken back; nothing has changed"),
            Ok(report) => error.with_hint(format_args!("the set was taken back, but: {}", report.failures.join("; "))),
            Err(undo) => error
                .with_hint(format_args!("taking the set back failed ({undo}); `vhdkit session recover` does it again")),
        })
    }

    fn require(&self, state: SessionState, done: &str) -> Result<()> {
        if self.state == state {
            return Ok(());
        }
        let message = format_args!("a session that is {} cannot be {done}", self.state).to_string();
        Err(Error::new(ErrorKind::Refused, message).with_hint("a session serves one set: begin another"))
    }

    fn save(&self) -> Result<()> {
        self.registry.save(KIND, &self.journal.id, &self.journal)
    }

    fn step(&mut self) -> Result<()> {
        if self.options.stop_before == Some(self.steps) {
            self.dead = true;
            return Err(Error::new(ErrorKind::Cancelled, "the simulated process died here"));
        }
        self.steps += 1;
        Ok(())
    }

    /// What is left of the time to be frozen.
    fn time_left(&self) -> Result<Duration> {
        let limit = self.options.freeze_limit;
        let spent = self.frozen_at.map_or(Duration::ZERO, |since| since.elapsed());
        limit.checked_sub(spent).filter(|left| !left.is_zero()).ok_or_else(|| {
            let message =
                format_args!("participants were frozen for longer than {} s", limit.as_secs_f32()).to_string();
            Error::new(ErrorKind::Refused, message).with_hint("allow more with --freeze-limit, or find out who is slow")
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let unfinished = matches!(self.state, SessionState::Prepared | SessionState::Frozen | SessionState::Committed);
        if unfinished && !self.dead {
            // What fails here is in the record, and ended by the next session or by hand.
            let _ = self.abort();
        }
    }
}
