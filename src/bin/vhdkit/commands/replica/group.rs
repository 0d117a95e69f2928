//! `vhdkit group`.
//!
//! Owns: what can be done to a group, and the answers. Must not know: what an operation does.

use super::job::{self, Outcome};
use super::operations::{Common, Modify, OperationArgs, Waiting};
use super::text::{changed, goes_on, group_text};
use super::{Answer, Shown};
use crate::Session;
use crate::commands::snapshot_set::HookArgs;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use clap::{Args, Subcommand};
use std::fmt::Write;
use vhdkit::Watch;
use vhdkit::ops::{GroupView, Operation, Participant, Replicas, ReturnCode};

const GROUP_EXAMPLES: &str = "\
Relations that are dealt with together. A consistent group is split all together or not at all: the change logs of its
mirrors are one snapshot set, with hooks to make their users hold still.

Examples:
    vhdkit group create vm
    vhdkit group add-sync-pair vm system
    vhdkit group activate-consistency vm
    vhdkit group modify activate vm --no-wait
    vhdkit group wait vm --for synchronized
    vhdkit group split vm --freeze-hook 'virsh domfsfreeze vm' --thaw-hook 'virsh domfsthaw vm'";

/// The arguments of `group`.
#[derive(Debug, Args)]
#[command(after_help = GROUP_EXAMPLES)]
pub(crate) struct GroupArgs {
    #[command(subcommand)]
    action: GroupAction,
}

#[derive(Debug, Subcommand)]
enum GroupAction {
    /// Make an empty group
    Create(Named),
    /// Show all groups
    List(Common),
    /// Show one group
    Show(Named),
    /// Wait until all members are in a state, or no operation is at work any more
    Wait(Waiting),
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

/// Does `group`.
///
/// # Errors
/// Those of the registry and of the operation; that it failed for some members; that a state was not reached.
pub(crate) fn run(args: &GroupArgs, session: &Session) -> Result<(), Failure> {
    match &args.action {
        GroupAction::Create(named) => show(&named.common, &named.common.replicas().create_group(&named.id)?),
        GroupAction::Show(named) => {
            let replicas = named.common.replicas();
            let shown = look(&replicas, &named.id)?;
            if named.common.json { output::print_json(&shown) } else { output::print(&text_of(&shown)) }
        }
        GroupAction::Wait(waiting) => wait(waiting, session),
        GroupAction::Delete(named) => Ok(named.common.replicas().remove_group(&named.id)?),
        GroupAction::List(common) => {
            let all = common.replicas().groups()?;
            if common.json {
                return output::print_json(&all);
            }
            let text: String = all.iter().map(|view| group_text(view, false)).collect();
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
            modify(operation, args, None, session)
        }
        GroupAction::Split { args, hooks } => modify(Operation::Split, args, Some(hooks), session),
        GroupAction::Fracture { args, hooks } => modify(Operation::Fracture, args, Some(hooks), session),
    }
}

fn modify(
    operation: Operation,
    args: &OperationArgs,
    hooks: Option<&HookArgs>,
    session: &Session,
) -> Result<(), Failure> {
    if job::is_wanted(&args.wait, session) {
        return in_background(operation, args, session);
    }
    let hooks = hooks.and_then(HookArgs::hooks).map(|hooks| Box::new(hooks) as Box<dyn Participant>);
    let options = job::options(args, session);
    let reporter = Reporter::new(session.display, args.common.json);
    let watch = Watch::none().cancel(&session.cancel);
    let watch = if session.job { watch } else { watch.observer(&reporter) };
    if session.job {
        job::detach();
    }
    let people = hooks.into_iter().collect();
    let done = args.common.replicas().modify_group(&args.id, (operation, &options), people, &watch);
    drop(reporter);
    let report = done?;
    let code = if report.failed.is_empty() { ReturnCode::Completed } else { ReturnCode::Failed };
    if args.common.json && !session.job {
        output::print_json(&Answer::new(code, &report))?;
    } else {
        let mut text: String = report.done.iter().map(changed).collect();
        for (member, error) in &report.failed {
            let _ = writeln!(text, "{member}: {}", output::shown(error));
        }
        if session.job {
            // Standard output is for the states; whoever started this may still listen to the rest.
            let failed = report.failed.iter().map(|(member, error)| format!("{member}: {}\n", output::shown(error)));
            let _ = std::io::Write::write_all(&mut std::io::stderr(), failed.collect::<String>().as_bytes());
        } else {
            output::say(session.display, &text)?;
        }
    }
    if report.failed.is_empty() { Ok(()) } else { Err(Failure::Found) }
}

/// Lets the operation go on in the background, and says how far it is.
fn in_background(operation: Operation, args: &OperationArgs, session: &Session) -> Result<(), Failure> {
    let replicas = args.common.replicas();
    // What is told is one member's state each; the group's is that of all of them.
    let outcome =
        job::start(operation, &args.wait, &mut |_| Ok(Some(replicas.group(&args.id)?.state) == args.wait.wait))?;
    let (code, started) = match outcome {
        Outcome::GoesOn(started) => (ReturnCode::JobStarted, Some(started)),
        Outcome::TimeUp(started) => (ReturnCode::Timeout, Some(started)),
        Outcome::Ended => (ReturnCode::Completed, None),
    };
    let shown = look(&replicas, &args.id)?;
    if args.common.json {
        let report = serde_json::json!({ "job": started, "group": shown });
        output::print_json(&Answer::new(code, report))?;
    } else {
        output::say(session.display, &(goes_on(started.as_ref(), code) + &text_of(&shown)))?;
    }
    if code == ReturnCode::Timeout { Err(Failure::Found) } else { Ok(()) }
}

fn wait(waiting: &Waiting, session: &Session) -> Result<(), Failure> {
    let replicas = waiting.common.replicas();
    let code = job::wait_for(waiting.state, waiting, session, &mut || Ok(replicas.group(&waiting.id)?.state))?;
    let shown = look(&replicas, &waiting.id)?;
    if waiting.common.json {
        output::print_json(&Answer::new(code, serde_json::json!({ "group": shown })))?;
    } else {
        output::say(session.display, &text_of(&shown))?;
    }
    if code == ReturnCode::Completed { Ok(()) } else { Err(Failure::Found) }
}

/// The group, and whether an operation on it is at work.
fn look(replicas: &Replicas, id: &str) -> Result<Shown<GroupView>, Failure> {
    // In this order: what has ended in between is in the record.
    let held = replicas.is_at_work()?;
    let view = replicas.group(id)?;
    Ok(Shown { at_work: held && view.group.run.is_some(), view })
}

fn text_of(shown: &Shown<GroupView>) -> String {
    group_text(&shown.view, shown.at_work)
}

fn show(common: &Common, group: &GroupView) -> Result<(), Failure> {
    if common.json { output::print_json(group) } else { output::print(&group_text(group, false)) }
}
