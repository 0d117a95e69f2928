//! `vhdkit replica` and `vhdkit group`.
//!
//! Owns: the operations as subcommands, and how relations read. Must not know: what an operation does.

mod operations;
mod text;

use super::snapshot_set::HookArgs;
use crate::Session;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use clap::{Args, Subcommand, ValueEnum};
use operations::{Common, Modify, OperationArgs};
use std::fmt::Write;
use std::path::PathBuf;
use text::{changed, group_text, relation, show_capabilities};
use vhdkit::Watch;
use vhdkit::ops::{GroupView, ModifyOptions, ModifyReport, Operation, Participant, Replicas, SyncType};

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
