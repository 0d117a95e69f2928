//! Groups of relations: dealt with one by one, or all or none.
//!
//! Owns: membership, the state of a group, and the consistent split. Must not know: what an operation does to one
//! relation.
//!
//! A split of a consistent group puts the change logs of all its mirrors on their sources by one snapshot set, which is
//! there as a whole or not at all. The members' records follow; one that does not yet say so when the process dies finds
//! its log when the split is run again.

use super::act::numbered;
use super::relation::{KIND as RELATION, Pending, Relation};
use super::table;
use super::words::{CopyState, Operation, SyncType};
use super::{ModifyOptions, ModifyReport, RelationView, Replicas};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::session::{Participant, Session, SessionOptions, SnapshotDisk, recover_sessions};
use crate::watch::Watch;
use serde::{Deserialize, Serialize};

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
        let group = Group { id: id.to_owned(), members: Vec::new(), consistent: false };
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
        for member in self.load_group(id)?.members {
            if let Some(mut relation) = self.registry.load::<Relation>(RELATION, &member)? {
                relation.group = None;
                self.save(&relation)?;
            }
        }
        self.registry.remove(KIND, id)
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
        // The group first: a member that does not know of its group yet is told when it is looked for.
        self.registry.save(KIND, id, &group)?;
        relation.group = is_member.then(|| id.to_owned());
        self.save(&relation)?;
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
    /// them or to none; `participants` hold still meanwhile.
    ///
    /// # Errors
    /// `NotFound`; `InUse`; `InvalidInput` for an empty group. For a consistent group what keeps any member from being
    /// separated; otherwise what fails is in the report.
    pub fn modify_group(
        &self,
        id: &str,
        (operation, options): (Operation, &ModifyOptions),
        participants: Vec<Box<dyn Participant>>,
        watch: &Watch<'_>,
    ) -> Result<GroupReport> {
        let held = self.registry.hold()?;
        let group = self.load_group(id)?;
        if group.members.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, format_args!("the group {id} has no members")));
        }
        let separates = matches!(operation, Operation::Fracture | Operation::Split);
        let mut members = group.members.clone();
        if group.consistent && separates {
            members = self.separate(&group, (operation, options), participants, watch)?;
        }
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for member in &members {
            match self.modify_held(&held, member, (operation, options), watch) {
                Ok(report) => done.push(report),
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => failed.push((member.clone(), error.to_string())),
            }
        }
        // A relation that is gone took itself out.
        let group = self.group(id)?;
        Ok(GroupReport { done, failed, group })
    }

    /// Puts the change logs of all mirrors of `group` on their sources, or none, and notes in every member that the
    /// operation was begun, so that it is finished whatever happens. Answers those that have yet to note that they are
    /// separated: an earlier run that was interrupted may have got further with some.
    fn separate(
        &self,
        group: &Group,
        (operation, options): (Operation, &ModifyOptions),
        participants: Vec<Box<dyn Participant>>,
        watch: &Watch<'_>,
    ) -> Result<Vec<String>> {
        let sessions = self.registry.directory().join("sessions");
        recover_sessions(&sessions, None, &mut [])?;
        let mut relations = group.members.iter().map(|member| self.load(member)).collect::<Result<Vec<_>>>()?;
        for relation in &mut relations {
            self.drop_unless_made(relation, operation)?;
        }
        let resumes = relations.iter().any(|relation| relation.pending.is_some());
        let goal = if operation == Operation::Split { CopyState::Split } else { CopyState::Fractured };
        relations.retain(|relation| !(resumes && relation.state == goal && relation.pending.is_none()));
        let members: Vec<String> = relations.iter().map(|relation| relation.id.clone()).collect();
        let mut disks = Vec::new();
        let mut begun = Vec::new();
        for relation in relations {
            if relation.pending.is_none() {
                table::check(relation.sync_type, operation, relation.observed(&self.chain), options.force)
                    .map_err(|error| Error::new(error.kind(), format_args!("{}: {error}", relation.id)))?;
                let child = match relation.sync_type {
                    SyncType::Mirror => Some(numbered(&relation.source)?),
                    _ => None,
                };
                if let Some(child) = &child {
                    disks.push(SnapshotDisk { leaf: relation.source.clone(), child: child.clone() });
                }
                begun.push((relation, child));
            }
        }
        for (relation, child) in &mut begun {
            relation.pending = Some(Pending { operation, child: child.clone() });
            self.save(relation)?;
        }
        if disks.is_empty() {
            return Ok(members);
        }
        let set = SessionOptions::new().registry(&sessions).chain(self.chain.clone());
        let session = Session::new(&disks, &set)?;
        let session = participants.into_iter().fold(session, Session::participant);
        session.run(watch).map(|_| members).inspect_err(|_| {
            for (relation, _) in &mut begun {
                relation.pending = None;
                // A record that cannot be written now is put right when the split is run again.
                let _ = self.save(relation);
            }
        })
    }

    /// A member whose log was never made was not separated after all.
    fn drop_unless_made(&self, relation: &mut Relation, operation: Operation) -> Result<()> {
        let Some(pending) = relation.pending.as_ref().filter(|pending| pending.operation == operation) else {
            return Ok(());
        };
        let is_made = pending.child.as_ref().is_none_or(|child| child.exists());
        if !is_made || relation.sync_type != SyncType::Mirror {
            relation.pending = None;
            self.save(relation)?;
        }
        Ok(())
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
