//! Replica relations: disks and their copies, and what is done to them over time.
//!
//! Owns: the registry of relations and the one way to change one. Must not know: what an operation does to files
//! (`act`), which is possible when (`table`).
//!
//! A relation is remembered in a record beside the images, and every time it is looked at its state is checked against
//! the files: a record says what was, files say what is. An operation that was interrupted stays in the record until it
//! is run again.

mod act;
mod group;
mod relation;
mod table;
mod words;

pub use group::{Group, GroupReport, GroupRun, GroupView};
pub use relation::{Pending, Relation};
pub use table::{Capability, Leads, capabilities};
pub use words::{CopyState, Operation, ReturnCode, SyncType};

use super::registry::{Held, Registry};
use crate::chain::{Chain, ChainOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::watch::Watch;
use act::Act;
use relation::KIND;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use table::Leads as Way;

/// The relations recorded in one directory.
#[derive(Clone, Debug)]
pub struct Replicas {
    registry: Registry,
    chain: ChainOptions,
}

/// How an operation is carried out.
#[derive(Clone, Debug, Default)]
pub struct ModifyOptions {
    force: bool,
    jobs: usize,
    told: Option<Sender<CopyState>>,
    /// The operation on its group that this is part of.
    run: Option<String>,
}

impl ModifyOptions {
    /// Without force, one thread per processor.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether states that speak against it are overlooked. Never what is wrong with a file.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// How many threads copy; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Tells each state that is reached on the way, as it is reached: whoever waits for one of them
    /// (`WaitForCopyState`) need not wait for the end.
    #[must_use]
    pub fn tell(mut self, states: Sender<CopyState>) -> Self {
        self.told = Some(states);
        self
    }

    fn reached(&self, state: CopyState) {
        if let Some(states) = &self.told {
            // Nobody waits any more: the operation goes on all the same.
            let _ = states.send(state);
        }
    }
}

/// A relation as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelationView {
    /// What is remembered.
    #[serde(flatten)]
    pub relation: Relation,
    /// How it stands, by the files.
    pub observed: CopyState,
    /// CIM's number of that.
    pub observed_number: u16,
    /// Whether that rests on times of change, which somebody can set back, because a VHD has no id of its data.
    pub weak: bool,
}

/// What an operation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModifyReport {
    /// The operation.
    pub operation: Operation,
    /// Whether the relation is gone.
    pub gone: bool,
    /// Bytes moved or made zero.
    pub moved: u64,
    /// What to know.
    pub notes: Vec<String>,
    /// The relation as it is now, or was last.
    pub relation: RelationView,
}

impl Replicas {
    /// The relations recorded in `directory`, their files opened as `chain` says.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>, chain: ChainOptions) -> Self {
        Self { registry: Registry::at(directory), chain }
    }

    /// Records that `target` is to be a replica of the disk whose leaf is `source`; nothing is copied. The target of a
    /// snapshot is the source itself, which becomes the frozen parent.
    ///
    /// # Errors
    /// `Refused` when the name is taken; `InvalidInput` for a name that cannot be one, and when target and source are one
    /// file; those of opening the source; `InUse`.
    pub fn create(&self, id: &str, sync_type: SyncType, source: &Path, target: Option<&Path>) -> Result<RelationView> {
        let _held = self.registry.hold()?;
        if self.registry.load::<Relation>(KIND, id)?.is_some() {
            let message = format_args!("there is a relation {id} already").to_string();
            return Err(Error::new(ErrorKind::Refused, message)
                .with_path(self.registry.directory())
                .with_hint("if its replica has not been made, `vhdkit replica activate` makes it"));
        }
        let real = fs::canonicalize(source).map_err(|error| Error::io("find the disk", error).with_path(source))?;
        Chain::open(&real, &self.chain)?;
        relation::data_id(&real, &self.chain)?;
        let target = match (sync_type, target) {
            (SyncType::Snapshot, None) => real.clone(),
            (SyncType::Snapshot, Some(target)) => {
                let message = "a snapshot has no target of its own: the source becomes the frozen parent";
                return Err(Error::new(ErrorKind::InvalidInput, message).with_path(target));
            }
            (_, None) => return Err(Error::new(ErrorKind::InvalidInput, "a copy needs a target")),
            (_, Some(target)) => absolute(target)?,
        };
        if sync_type != SyncType::Snapshot && target == real {
            return Err(Error::new(ErrorKind::InvalidInput, "source and target are one file").with_path(&target));
        }
        let relation = Relation::new(id, sync_type, real, target);
        self.save(&relation)?;
        Ok(self.view(relation))
    }

    /// All relations, by name.
    ///
    /// # Errors
    /// What reading the records answers.
    pub fn list(&self) -> Result<Vec<RelationView>> {
        let mut all = Vec::new();
        for id in self.registry.names(KIND)? {
            // One that ended since it was listed is none.
            match self.load(&id) {
                Ok(relation) => all.push(self.view(relation)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Whether an operation is at work with these records: what a record says was begun goes on, or else was interrupted.
    ///
    /// # Errors
    /// What the system answers.
    pub fn is_at_work(&self) -> Result<bool> {
        self.registry.is_held()
    }

    /// Returns when no operation is at work with these records.
    ///
    /// # Errors
    /// What the system answers.
    pub fn wait_until_idle(&self) -> Result<()> {
        self.registry.wait_until_free()
    }

    /// One relation, its state checked against the files.
    ///
    /// # Errors
    /// `NotFound`; what reading the record answers.
    pub fn show(&self, id: &str) -> Result<RelationView> {
        self.load(id).map(|relation| self.view(relation))
    }

    /// Does `operation` to the relation `id`.
    ///
    /// # Errors
    /// `Unsupported` when relations of its type have no such operation; `Refused` in this state, or when another
    /// operation was interrupted and is to be finished first; `NotFound`; `InUse`; those of what it does. When it was
    /// begun, the record says so, and running it again finishes it.
    pub fn modify(
        &self,
        id: &str,
        operation: Operation,
        options: &ModifyOptions,
        watch: &Watch<'_>,
    ) -> Result<ModifyReport> {
        let held = self.registry.hold()?;
        self.modify_held(&held, id, (operation, options), watch)
    }

    fn modify_held(
        &self,
        _held: &Held,
        id: &str,
        (operation, options): (Operation, &ModifyOptions),
        watch: &Watch<'_>,
    ) -> Result<ModifyReport> {
        let mut relation = self.load(id)?;
        let way = self.require(&relation, operation, options.force)?;
        let before = relation.state;
        let mut act = Act { replicas: self, relation: &mut relation, options, watch, moved: 0, notes: Vec::new() };
        let done = act.run(operation);
        let (moved, notes) = (act.moved, act.notes);
        done.inspect_err(|error| self.note_failure(id, error))?;
        relation.run.clone_from(&options.run);
        self.end(&mut relation, operation, way, before)?;
        options.reached(relation.state);
        let relation = self.view(relation);
        Ok(ModifyReport { operation, gone: way == Way::Gone, moved, notes, relation })
    }

    /// Whether `operation` may be done to `relation`, and where it leads.
    fn require(&self, relation: &Relation, operation: Operation, force: bool) -> Result<Way> {
        let (kind, observed) = (relation.sync_type, relation.observed(&self.chain));
        let Some(pending) = &relation.pending else { return table::check(kind, operation, observed, force) };
        // What was begun in a state that allowed it is finished whatever the state is now.
        let finishes = pending.operation == operation
            || (operation == Operation::ResyncReplica
                && matches!(pending.operation, Operation::Activate | Operation::Resume));
        let gives_up = matches!(operation, Operation::Abort | Operation::Suspend)
            && matches!(pending.operation, Operation::Activate | Operation::Resume | Operation::ResyncReplica);
        let forgets = force && matches!(operation, Operation::Detach | Operation::Dissolve);
        if finishes || gives_up || forgets {
            let state = if finishes { leads_from(kind, operation) } else { observed };
            return table::check(kind, operation, state, true);
        }
        self.require_no_other(relation)?;
        table::check(kind, operation, observed, force)
    }

    /// Refuses a relation that has an operation to finish.
    fn require_no_other(&self, relation: &Relation) -> Result<()> {
        let Some(Pending { operation, .. }) = &relation.pending else { return Ok(()) };
        let message = format_args!("{operation} was begun and has not ended").to_string();
        let hint = format_args!("run {operation} again to finish it, or forget the relation with --force");
        Err(Error::new(ErrorKind::Refused, message).with_hint(hint))
    }

    /// Notes in the record of an operation that was begun what made it stop.
    fn note_failure(&self, id: &str, error: &Error) {
        if error.kind() == ErrorKind::Cancelled {
            return;
        }
        // The record as it was written: what is in memory may be ahead of it.
        if let Ok(mut relation) = self.load(id)
            && relation.pending.is_some()
        {
            relation.failed = Some(error.to_string());
            // What made it fail is what counts.
            let _ = self.save(&relation);
        }
    }

    /// Records that `operation` is done.
    fn end(&self, relation: &mut Relation, operation: Operation, way: Way, before: CopyState) -> Result<()> {
        (relation.pending, relation.failed) = (None, None);
        match way {
            Way::To(state) => relation.state = state,
            Way::Same => relation.state = before,
            Way::Gone => {
                if operation == Operation::Dissolve {
                    self.registry.save("dissolved", &relation.id, relation)?;
                }
                if let Some(group) = &relation.group {
                    self.leave(group, &relation.id)?;
                }
                return self.registry.remove(KIND, &relation.id);
            }
        }
        self.save(relation)
    }

    fn load(&self, id: &str) -> Result<Relation> {
        let mut relation: Relation = self.registry.load(KIND, id)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format_args!("there is no relation {id} here"))
                .with_path(self.registry.directory())
                .with_hint("`vhdkit replica list` shows those there are")
        })?;
        // The group's list decides: a process that died may have changed one of the two records only.
        if let Some(group) = &relation.group
            && !self.is_member(group, id)?
        {
            relation.group = None;
        }
        Ok(relation)
    }

    fn save(&self, relation: &Relation) -> Result<()> {
        self.registry.save(KIND, &relation.id, relation)
    }

    fn view(&self, relation: Relation) -> RelationView {
        let observed = relation.observed(&self.chain);
        let weak = [&relation.source_id, &relation.target_id].into_iter().flatten().any(|id| id.starts_with("vhd "));
        RelationView { relation, observed, observed_number: observed.number(), weak }
    }
}

/// A state that `operation` starts from.
fn leads_from(kind: SyncType, operation: Operation) -> CopyState {
    let row = capabilities(kind).into_iter().find(|row| row.operation == operation);
    row.and_then(|row| row.from.first().copied()).unwrap_or(CopyState::NotApplicable)
}

/// `path` from the root, whether or not the file exists; its directory must.
fn absolute(path: &Path) -> Result<PathBuf> {
    let failed = |error| Error::io("find the directory of the target", error).with_path(path);
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name =
        path.file_name().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(path));
    Ok(fs::canonicalize(directory).map_err(failed)?.join(name?))
}
