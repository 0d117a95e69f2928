//! Groups of relations: dealt with one by one, or all or none.
//!
//! Owns: membership, the state of a group, and the consistent split. Must not know: what an operation does to one
//! relation.
//!
//! A split of a consistent group puts the change logs of all its mirrors on their sources by one snapshot set, which is
//! there as a whole or not at all. The members' records follow; one that does not yet say so when the process dies finds
//! its log when the split is run again. Every operation on a group leaves its id in the members it was done to, so that
//! it is done to each of them once however often it is interrupted.

use super::act::numbered;
use super::relation::{KIND as RELATION, Pending, Relation};
use super::table;
use super::words::{CopyState, Operation, SyncType};
use super::{ModifyOptions, ModifyReport, RelationView, Replicas};
use crate::error::{Error, ErrorKind, Result};
use crate::guid;
use crate::ops::registry::Held;
use crate::ops::session::{Participant, Session, SessionOptions, SnapshotDisk, recover_sessions};
use crate::watch::Watch;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The kind of its records.
const KIND: &str = "group";
/// The most members of a group.
const MAX_MEMBERS: usize = 1024;

/// Relations that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub id: String,
    /// The names of its relations, in the order they came.
    pub members: Vec<String>,
    /// Whether they are separated all together or not at all.
    pub consistent: bool,
    /// An operation on all of them that was begun and has not ended.
    pub run: Option<GroupRun>,
}

/// An operation on all members of a group. A member that it was done to has its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRun {
    /// Which one.
    pub operation: Operation,
    /// Its id.
    pub id: String,
}

/// A group as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupView {
    /// What is remembered.
    #[serde(flatten)]
    pub group: Group,
    /// The state of all its members, or `Mixed`; `NotApplicable` when it has none.
    pub state: CopyState,
    /// CIM's number of that.
    pub state_number: u16,
    /// The members.
    pub relations: Vec<RelationView>,
}

/// What was done to the members of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupReport {
    /// What was done to each that it was done to.
    pub done: Vec<ModifyReport>,
    /// Members that failed, and why. Never any of a consistent group that was split.
    pub failed: Vec<(String, String)>,
    /// The group as it is now.
    pub group: GroupView,
}

/// What was done to members, and those that failed.
type Outcome = (Vec<ModifyReport>, Vec<(String, String)>);

impl Replicas {
    /// Makes an empty group.
    ///
    /// # Errors
    /// `Refused` when the name is taken; `InvalidInput` for a name that cannot be one; `InUse`.
    pub fn create_group(&self, id: &str) -> Result<GroupView> {
        let _held = self.registry.hold()?;
        if self.registry.load::<Group>(KIND, id)?.is_some() {
            let message = format_args!("there is a group {id} already").to_string();
            return Err(Error::new(ErrorKind::Refused, message).with_path(self.registry.directory()));
        }
        let group = Group { id: id.to_owned(), members: Vec::new(), consistent: false, run: None };
        self.registry.save(KIND, id, &group)?;
        self.group_view(group)
    }

    /// All groups, by name.
    ///
    /// # Errors
    /// What reading the records answers.
    pub fn groups(&self) -> Result<Vec<GroupView>> {
        let names = self.registry.names(KIND)?;
        names
            .iter()
            .filter_map(|id| self.registry.load(KIND, id).transpose())
            .map(|group| self.group_view(group?))
            .collect()
    }

    /// One group.
    ///
    /// # Errors
    /// `NotFound`; what reading the records answers.
    pub fn group(&self, id: &str) -> Result<GroupView> {
        self.group_view(self.load_group(id)?)
    }

    /// Removes a group; its members stay.
    ///
    /// # Errors
    /// `NotFound`; `InUse`.
    pub fn remove_group(&self, id: &str) -> Result<()> {
        let _held = self.registry.hold()?;
        let group = self.load_group(id)?;
        // The group first: without it nobody is its member.
        self.registry.remove(KIND, id)?;
        for member in group.members {
            if let Some(mut relation) = self.registry.load::<Relation>(RELATION, &member)? {
                relation.group = None;
                self.save(&relation)?;
            }
        }
        Ok(())
    }

    /// Takes the relation `member` into the group `id`, or out of it.
    ///
    /// # Errors
    /// `NotFound`; `Refused` when it is in a group already, or in none; `InUse`.
    pub fn set_member(&self, id: &str, member: &str, is_member: bool) -> Result<GroupView> {
        let _held = self.registry.hold()?;
        let mut group = self.load_group(id)?;
        let mut relation = self.load(member)?;
        let fits = if is_member { relation.group.is_none() } else { relation.group.as_deref() == Some(id) };
        if !fits || group.members.len() >= MAX_MEMBERS {
            let is = relation.group.as_deref().unwrap_or("none");
            let message = format_args!("the group of {member} is {is}, and {id} has {} members", group.members.len());
            return Err(Error::new(ErrorKind::Refused, message.to_string()));
        }
        group.members.retain(|other| other != member);
        if is_member {
            group.members.push(member.to_owned());
        }
        // Whoever is in the list knows of it: the relation is told before it comes in and after it went out.
        relation.group = is_member.then(|| id.to_owned());
        if is_member {
            self.save(&relation)?;
            self.registry.save(KIND, id, &group)?;
        } else {
            self.registry.save(KIND, id, &group)?;
            self.save(&relation)?;
        }
        self.group_view(group)
    }

    /// Whether the members of the group `id` are separated all together or one by one.
    ///
    /// # Errors
    /// `NotFound`; `InUse`.
    pub fn set_consistent(&self, id: &str, consistent: bool) -> Result<GroupView> {
        let _held = self.registry.hold()?;
        let mut group = self.load_group(id)?;
        group.consistent = consistent;
        self.registry.save(KIND, id, &group)?;
        self.group_view(group)
    }

    /// Does `operation` to every member of the group `id`. Fracture and split of a consistent group are done to all of
    /// them or to none; `participants` hold still meanwhile. When it was interrupted, running it again does it to those
    /// that it was not yet done to.
    ///
    /// # Errors
    /// `NotFound`; `InUse`; `InvalidInput` for an empty group; `Cancelled`. For a consistent group what keeps any member
    /// from being separated; otherwise what fails is in the report.
    pub fn modify_group(
        &self,
        id: &str,
        (operation, options): (Operation, &ModifyOptions),
        participants: Vec<Box<dyn Participant>>,
        watch: &Watch<'_>,
    ) -> Result<GroupReport> {
        let held = self.registry.hold()?;
        let mut group = self.load_group(id)?;
        if group.members.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, format_args!("the group {id} has no members")));
        }
        let resumed = group.run.take().filter(|run| run.operation == operation);
        let is_resumed = resumed.is_some();
        let run = resumed.unwrap_or_else(|| GroupRun { operation, id: guid::fresh().simple().to_string() });
        group.run = Some(run.clone());
        self.registry.save(KIND, id, &group)?;
        let options = ModifyOptions { run: Some(run.id), ..options.clone() };
        let separates = matches!(operation, Operation::Fracture | Operation::Split);
        let ready = if group.consistent && separates {
            self.separate(&group, is_resumed, (&options, participants), watch)
        } else {
            Ok(())
        };
        let done = ready.and_then(|()| self.modify_members(&held, &group, (operation, &options), watch));
        let goes_on = match &done {
            Ok(_) => false,
            Err(error) => error.kind() == ErrorKind::Cancelled || self.has_begun(&group, &options),
        };
        if !goes_on {
            // Relations that are gone took themselves out.
            let mut group = self.load_group(id)?;
            group.run = None;
            self.registry.save(KIND, id, &group)?;
        }
        let (done, failed) = done?;
        Ok(GroupReport { done, failed, group: self.group(id)? })
    }

    /// Does `operation` to those members that this run has not done it to.
    fn modify_members(
        &self,
        held: &Held,
        group: &Group,
        (operation, options): (Operation, &ModifyOptions),
        watch: &Watch<'_>,
    ) -> Result<Outcome> {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for member in &group.members {
            if self.load(member)?.run == options.run {
                continue;
            }
            match self.modify_held(held, member, (operation, options), watch) {
                Ok(report) => done.push(report),
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => failed.push((member.clone(), error.to_string())),
            }
        }
        Ok((done, failed))
    }

    /// Whether any member says that this run was begun.
    fn has_begun(&self, group: &Group, options: &ModifyOptions) -> bool {
        let begun = |relation: Relation| relation.pending.is_some_and(|pending| pending.run == options.run);
        group.members.iter().any(|member| self.load(member).is_ok_and(begun))
    }

    /// Puts the change logs of all mirrors of `group` on their sources, or none, and notes in every member that the
    /// operation was begun, so that it is finished whatever happens. An earlier run that was interrupted may have got
    /// that far.
    fn separate(
        &self,
        group: &Group,
        is_resumed: bool,
        (options, participants): (&ModifyOptions, Vec<Box<dyn Participant>>),
        watch: &Watch<'_>,
    ) -> Result<()> {
        let Some(GroupRun { operation, .. }) = group.run else { return Ok(()) };
        let sessions = self.registry.directory().join("sessions");
        recover_sessions(&sessions, None, &mut [])?;
        let mut relations = group.members.iter().map(|member| self.load(member)).collect::<Result<Vec<_>>>()?;
        let is_made = |relation: &Relation| {
            let pending = relation.pending.as_ref().filter(|pending| pending.run == options.run);
            let child = pending.and_then(|pending| pending.child.as_ref());
            relation.run == options.run || child.is_some_and(|child| child.exists())
        };
        if is_resumed && relations.iter().any(is_made) {
            return Ok(());
        }
        let mut disks = Vec::new();
        for relation in &mut relations {
            if relation.pending.take_if(|pending| pending.run == options.run).is_some() {
                self.save(relation)?;
            }
            if let Some(child) = self.separable(relation, (operation, options))? {
                disks.push(SnapshotDisk { leaf: relation.source.clone(), child });
            }
        }
        let mut children = disks.iter();
        for relation in &mut relations {
            let is_mirror = relation.sync_type == SyncType::Mirror;
            let child = if is_mirror { children.next().map(|disk| disk.child.clone()) } else { None };
            relation.pending = Some(Pending::new(operation, child, options.run.clone()));
            self.save(relation)?;
        }
        options.reached(CopyState::Unsynchronized);
        if disks.is_empty() {
            return Ok(());
        }
        let set = SessionOptions::new().registry(&sessions).chain(self.chain.clone());
        let session = Session::new(&disks, &set)?;
        let session = participants.into_iter().fold(session, Session::participant);
        session.run(watch).map(drop).inspect_err(|_| {
            // What could not be taken back is finished when this is run again.
            if disks.iter().any(|disk| disk.child.exists()) {
                return;
            }
            for relation in &mut relations {
                relation.pending = None;
                // A record that cannot be written now is put right when the split is run again.
                let _ = self.save(relation);
            }
        })
    }

    /// The new leaf that `relation` gets when it is separated, if it is a mirror.
    fn separable(
        &self,
        relation: &Relation,
        (operation, options): (Operation, &ModifyOptions),
    ) -> Result<Option<PathBuf>> {
        let named = |error: Error| {
            let told = Error::new(error.kind(), format_args!("{}: {error}", relation.id));
            error.hint().map(str::to_owned).into_iter().fold(told, Error::with_hint)
        };
        self.require_no_other(relation).map_err(named)?;
        table::check(relation.sync_type, operation, relation.observed(&self.chain), options.force).map_err(named)?;
        (relation.sync_type == SyncType::Mirror).then(|| numbered(&relation.source)).transpose()
    }

    /// Whether the group `id` lists `member`.
    pub(super) fn is_member(&self, id: &str, member: &str) -> Result<bool> {
        let group = self.registry.load::<Group>(KIND, id)?;
        Ok(group.is_some_and(|group| group.members.iter().any(|other| other == member)))
    }

    /// Takes the relation `member`, which is gone, out of the group `id`.
    pub(super) fn leave(&self, id: &str, member: &str) -> Result<()> {
        if let Some(mut group) = self.registry.load::<Group>(KIND, id)? {
            group.members.retain(|other| other != member);
            self.registry.save(KIND, id, &group)?;
        }
        Ok(())
    }

    fn load_group(&self, id: &str) -> Result<Group> {
        self.registry.load(KIND, id)?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format_args!("there is no group {id} here"))
                .with_path(self.registry.directory())
                .with_hint("`vhdkit group list` shows those there are")
        })
    }

    fn group_view(&self, group: Group) -> Result<GroupView> {
        let relations = group.members.iter().map(|member| self.show(member)).collect::<Result<Vec<_>>>()?;
        let mut states = relations.iter().map(|relation| relation.observed);
        let state = match states.next() {
            None => CopyState::NotApplicable,
            Some(first) if states.all(|state| state == first) => first,
            Some(_) => CopyState::Mixed,
        };
        Ok(GroupView { group, state, state_number: state.number(), relations })
    }
}
