//! `vhdkit replica` and `vhdkit group`.
//!
//! Owns: the operations as subcommands, and how relations read. Must not know: what an operation does.

use super::snapshot_set::HookArgs;
use crate::Session;
use crate::args::PlaceArgs;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::{Args, Subcommand, ValueEnum};
use std::fmt::Write;
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::ops::{
    CopyState, GroupView, Leads, ModifyOptions, ModifyReport, Operation, Participant, RelationView, Replicas, SyncType,
    capabilities,
};

const EXAMPLES: &str = "\
A relation is a disk and its replica, remembered in a record. Its state is checked against the files whenever it is
looked at. An operation that was interrupted is run again. Names and numbers are those of CIM_ReplicationService.

Examples:
    vhdkit replica create nightly --type mirror leaf.vhdx /dr/copy.vhdx
    vhdkit replica fracture nightly                  from here on a change log tells what the copy lacks
    vhdkit replica resync-replica nightly            exactly the changed sectors are copied
    vhdkit replica failover nightly                  go on with the copy, in a new leaf above it
    vhdkit replica capabilities --json               which operation leads from which state to which";

const GROUP_EXAMPLES: &str = "\
Relations that are dealt with together. A consistent group is split all together or not at all: the change logs of its
mirrors are one snapshot set, with hooks to make their users hold still.

Examples:
    vhdkit group create vm
    vhdkit group add-sync-pair vm system
    vhdkit group activate-consistency vm
    vhdkit group split vm --freeze-hook 'virsh domfsfreeze vm' --thaw-hook 'virsh domfsthaw vm'";

/// The arguments of `replica`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplicaArgs {
    #[command(subcommand)]
    action: Action,
}

/// The arguments of `group`.
#[derive(Debug, Args)]
#[command(after_help = GROUP_EXAMPLES)]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    action: GroupAction,
}

#[derive(Clone, Debug, Args)]
struct Common {
    /// Where the records are
    #[arg(long, value_name = "DIR", default_value = ".vhdkit")]
    registry: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

impl Common {
    fn replicas(&self) -> Replicas {
        Replicas::at(&self.registry, self.places.options())
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    /// A copy that is refreshed by a change log
    Mirror,
    /// A frozen point in time below the live leaf
    Snapshot,
    /// A copy
    Clone,
}

impl From<Type> for SyncType {
    fn from(kind: Type) -> Self {
        match kind {
            Type::Mirror => Self::Mirror,
            Type::Snapshot => Self::Snapshot,
            Type::Clone => Self::Clone,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Record a relation, and make the replica
    Create {
        /// Its name
        id: String,
        /// What it is
        #[arg(long = "type", value_enum)]
        kind: Type,
        /// Only record it; `activate` makes the replica
        #[arg(long)]
        no_activate: bool,
        /// The leaf of the disk
        source: PathBuf,
        /// The replica; a snapshot has none of its own
        target: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Show all relations
    List(Common),
    /// Show one relation
    Show {
        /// Which one
        id: String,
        #[command(flatten)]
        common: Common,
    },
    /// Show which operation leads from which state to which
    Capabilities {
        /// Of relations of this type only
        #[arg(value_enum)]
        kind: Option<Type>,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Modify(Modify),
}

#[derive(Clone, Debug, Args)]
struct OperationArgs {
    /// Which relation, or which group
    id: String,
    /// Overlook states that speak against it; never what is wrong with a file
    #[arg(long)]
    force: bool,
    /// How many threads copy [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    jobs: usize,
    #[command(flatten)]
    common: Common,
}

/// The operations that relations and groups have.
#[derive(Clone, Debug, Subcommand)]
enum Modify {
    /// Give up a copy that was interrupted; the target is unusable until it is resynced
    Abort(OperationArgs),
    /// Make the replica
    Activate(OperationArgs),
    /// Stop, and forget how far it got
    Deactivate(OperationArgs),
    /// Forget the relation; both disks stay
    Detach(OperationArgs),
    /// As detach, but keep a record of the point in time
    Dissolve(OperationArgs),
    /// Go on with the replica, in a new leaf above it
    Failover(OperationArgs),
    /// Bring what was written since the failover back to the source
    Failback(OperationArgs),
    /// Separate the two, remembering what they are
    Fracture(OperationArgs),
    /// Make the target what the source is; for a snapshot, a new point in time
    ResyncReplica(OperationArgs),
    /// Make the source what the target is
    RestoreFromReplica(OperationArgs),
    /// Go on with a copy that was suspended
    Resume(OperationArgs),
    /// Not supported: synchronous copies need the live path of writes
    ResetToSync(OperationArgs),
    /// Copy on demand, as mirrors always do
    ResetToAsync(OperationArgs),
    /// Merge a snapshot away
    ReturnToResourcePool(OperationArgs),
    /// Swap source and target
    ReverseRoles(OperationArgs),
    /// As fracture; in a consistent group, all members or none
    Split(OperationArgs),
    /// Do not go on with an interrupted copy for now
    Suspend(OperationArgs),
    /// Back to before the replica was made
    Unprepare(OperationArgs),
}

impl Modify {
    fn parts(&self) -> (Operation, &OperationArgs) {
        match self {
            Self::Abort(args) => (Operation::Abort, args),
            Self::Activate(args) => (Operation::Activate, args),
            Self::Deactivate(args) => (Operation::Deactivate, args),
            Self::Detach(args) => (Operation::Detach, args),
            Self::Dissolve(args) => (Operation::Dissolve, args),
            Self::Failover(args) => (Operation::Failover, args),
            Self::Failback(args) => (Operation::Failback, args),
            Self::Fracture(args) => (Operation::Fracture, args),
            Self::ResyncReplica(args) => (Operation::ResyncReplica, args),
            Self::RestoreFromReplica(args) => (Operation::RestoreFromReplica, args),
            Self::Resume(args) => (Operation::Resume, args),
            Self::ResetToSync(args) => (Operation::ResetToSync, args),
            Self::ResetToAsync(args) => (Operation::ResetToAsync, args),
            Self::ReturnToResourcePool(args) => (Operation::ReturnToResourcePool, args),
            Self::ReverseRoles(args) => (Operation::ReverseRoles, args),
            Self::Split(args) => (Operation::Split, args),
            Self::Suspend(args) => (Operation::Suspend, args),
            Self::Unprepare(args) => (Operation::Unprepare, args),
        }
    }
}

#[derive(Debug, Subcommand)]
enum GroupAction {
    /// Make an empty group
    Create(Named),
    /// Show all groups
    List(Common),
    /// Show one group
    Show(Named),
    /// Remove a group; its members stay
    Delete(Named),
    /// Take a relation into a group
    AddSyncPair(Member),
    /// Take a relation out of a group
    RemoveSyncPair(Member),
    /// Separate the members all together or not at all from now on
    ActivateConsistency(Named),
    /// Deal with the members one by one from now on
    DeactivateConsistency(Named),
    /// Do this to every member
    #[command(name = "modify")]
    Modify {
        #[command(subcommand)]
        operation: Modify,
    },
    /// Split every member; in a consistent group, all or none
    Split {
        #[command(flatten)]
        args: OperationArgs,
        #[command(flatten)]
        hooks: HookArgs,
    },
    /// Fracture every member; in a consistent group, all or none
    Fracture {
        #[command(flatten)]
        args: OperationArgs,
        #[command(flatten)]
        hooks: HookArgs,
    },
}

#[derive(Debug, Args)]
struct Named {
    /// Which group
    id: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Member {
    /// Which group
    id: String,
    /// Which relation
    relation: String,
    #[command(flatten)]
    common: Common,
}

/// Does `replica`.
///
/// # Errors
/// Those of the registry and of the operation.
pub(crate) fn run(args: &ReplicaArgs, session: &Session) -> Result<(), Failure> {
    match &args.action {
        Action::Create { id, kind, no_activate, source, target, common } => {
            let replicas = common.replicas();
            let mut view = replicas.create(id, (*kind).into(), source, target.as_deref())?;
            if !no_activate {
                view = modify(&replicas, id, (Operation::Activate, &ModifyOptions::new()), session)?.relation;
            }
            if common.json { output::print_json(&view) } else { output::say(session.display, &relation(&view)) }
        }
        Action::List(common) => {
            let all = common.replicas().list()?;
            if common.json {
                return output::print_json(&all);
            }
            let text: String = all.iter().map(relation).collect();
            output::print(if text.is_empty() { "no relations\n" } else { &text })
        }
        Action::Show { id, common } => {
            let view = common.replicas().show(id)?;
            if common.json { output::print_json(&view) } else { output::print(&relation(&view)) }
        }
        Action::Capabilities { kind, json } => show_capabilities(kind.map(SyncType::from), *json),
        Action::Modify(operation) => {
            let (operation, args) = operation.parts();
            let options = ModifyOptions::new().force(args.force).jobs(args.jobs);
            let report = modify(&args.common.replicas(), &args.id, (operation, &options), session)?;
            if args.common.json { output::print_json(&report) } else { output::say(session.display, &changed(&report)) }
        }
    }
}

fn modify(
    replicas: &Replicas,
    id: &str,
    (operation, options): (Operation, &ModifyOptions),
    session: &Session,
) -> Result<ModifyReport, Failure> {
    let reporter = Reporter::new(session.display, false);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let done = replicas.modify(id, operation, options, &watch);
    drop(reporter);
    Ok(done?)
}

/// Does `group`.
///
/// # Errors
/// Those of the registry and of the operation; that it failed for some members.
pub(crate) fn group(args: &GroupArgs, session: &Session) -> Result<(), Failure> {
    match &args.action {
        GroupAction::Create(named) => show(&named.common, &named.common.replicas().create_group(&named.id)?),
        GroupAction::Show(named) => show(&named.common, &named.common.replicas().group(&named.id)?),
        GroupAction::Delete(named) => Ok(named.common.replicas().remove_group(&named.id)?),
        GroupAction::List(common) => {
            let all = common.replicas().groups()?;
            if common.json {
                return output::print_json(&all);
            }
            let text: String = all.iter().map(group_text).collect();
            output::print(if text.is_empty() { "no groups\n" } else { &text })
        }
        GroupAction::AddSyncPair(member) => {
            show(&member.common, &member.common.replicas().set_member(&member.id, &member.relation, true)?)
        }
        GroupAction::RemoveSyncPair(member) => {
            show(&member.common, &member.common.replicas().set_member(&member.id, &member.relation, false)?)
        }
        GroupAction::ActivateConsistency(named) => {
            show(&named.common, &named.common.replicas().set_consistent(&named.id, true)?)
        }
        GroupAction::DeactivateConsistency(named) => {
            show(&named.common, &named.common.replicas().set_consistent(&named.id, false)?)
        }
        GroupAction::Modify { operation } => {
            let (operation, args) = operation.parts();
            modify_group(operation, args, None, session)
        }
        GroupAction::Split { args, hooks } => modify_group(Operation::Split, args, Some(hooks), session),
        GroupAction::Fracture { args, hooks } => modify_group(Operation::Fracture, args, Some(hooks), session),
    }
}

fn modify_group(
    operation: Operation,
    args: &OperationArgs,
    hooks: Option<&HookArgs>,
    session: &Session,
) -> Result<(), Failure> {
    let hooks = hooks.and_then(HookArgs::hooks).map(|hooks| Box::new(hooks) as Box<dyn Participant>);
    let options = ModifyOptions::new().force(args.force).jobs(args.jobs);
    let reporter = Reporter::new(session.display, args.common.json);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let people = hooks.into_iter().collect();
    let done = args.common.replicas().modify_group(&args.id, (operation, &options), people, &watch);
    drop(reporter);
    let report = done?;
    if args.common.json {
        output::print_json(&report)?;
    } else {
        let mut text: String = report.done.iter().map(changed).collect();
        for (member, error) in &report.failed {
            let _ = writeln!(text, "{member}: {}", output::shown(error));
        }
        output::say(session.display, &text)?;
    }
    if report.failed.is_empty() { Ok(()) } else { Err(Failure::Found) }
}

fn show(common: &Common, group: &GroupView) -> Result<(), Failure> {
    if common.json { output::print_json(group) } else { output::print(&group_text(group)) }
}

fn group_text(group: &GroupView) -> String {
    let consistent = if group.group.consistent { ", consistent" } else { "" };
    let mut text = format!("{}: {}{consistent}\n", group.group.id, group.state);
    for view in &group.relations {
        let _ = write!(text, "  {}", relation(view));
    }
    text
}

fn relation(view: &RelationView) -> String {
    let one = &view.relation;
    let (source, target) = (one.source.display().to_string(), one.target.display().to_string());
    let (source, target) = (output::shown(&source), output::shown(&target));
    let weak = if view.weak { " (by times of change)" } else { "" };
    let pending = match &one.pending {
        Some(pending) => format!(", {} was begun and has not ended", pending.operation),
        None => String::new(),
    };
    let live = match &one.live {
        Some(live) => format!(", live in {}", output::shown(&live.display().to_string())),
        None => String::new(),
    };
    format!("{}: {} {}{weak}, {source} -> {target}{live}{pending}\n", one.id, one.sync_type, view.observed)
}

fn changed(report: &ModifyReport) -> String {
    let mut text =
        if report.gone { format!("{}: gone\n", report.relation.relation.id) } else { relation(&report.relation) };
    if report.moved > 0 {
        let _ = writeln!(text, "  {} moved", size::human(report.moved));
    }
    for note in &report.notes {
        let _ = writeln!(text, "  {}", output::shown(note));
    }
    text
}

fn show_capabilities(kind: Option<SyncType>, json: bool) -> Result<(), Failure> {
    let kinds = kind.map_or(SyncType::ALL.to_vec(), |kind| vec![kind]);
    if json {
        let all: Vec<_> = kinds
            .into_iter()
            .map(|kind| serde_json::json!({ "type": kind, "number": kind.number(), "operations": capabilities(kind) }))
            .collect();
        return output::print_json(&all);
    }
    let mut text = String::new();
    let list = |states: &[CopyState]| states.iter().map(CopyState::to_string).collect::<Vec<_>>().join(" ");
    for kind in kinds {
        let _ = writeln!(text, "{kind} ({})", kind.number());
        for row in capabilities(kind) {
            let what = match (row.leads, row.groups_only) {
                (_, true) => "groups".to_owned(),
                (None, _) => "not supported".to_owned(),
                (Some(leads), _) => {
                    let to = match leads {
                        Leads::To(state) => state.to_string(),
                        Leads::Same => "the same".to_owned(),
                        Leads::Gone => "gone".to_owned(),
                    };
                    let force = list(&row.from_with_force);
                    let force = if force.is_empty() { force } else { format!(" [with force: {force}]") };
                    format!("{}{force} -> {to}", list(&row.from))
                }
            };
            let _ = writeln!(text, "  {:2} {}: {what}", row.number, row.operation);
        }
    }
    output::print(&text)
}
