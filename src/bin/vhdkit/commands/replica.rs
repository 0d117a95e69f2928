//! `vhdkit replica`.
//!
//! Owns: what can be done to one relation, and the answers. Must not know: what an operation does, groups.

mod group;
mod job;
mod operations;
mod text;

pub(crate) use group::{GroupArgs, run as group};

use crate::Session;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use clap::{Args, Subcommand, ValueEnum};
use job::Outcome;
use operations::{Common, Modify, OperationArgs, Waiting};
use serde::Serialize;
use std::path::PathBuf;
use text::{changed, goes_on, relation, show_capabilities};
use vhdkit::Watch;
use vhdkit::ops::{ModifyOptions, ModifyReport, Operation, RelationView, Replicas, ReturnCode, SyncType};

const EXAMPLES: &str = "\
A relation is a disk and its replica, remembered in a record. Its state is checked against the files whenever it is
looked at. An operation that was interrupted is run again. Names and numbers are those of CIM_ReplicationService.

An operation runs until it is done, unless --no-wait or --wait STATE sends it to the background, where one is at work
with a directory of records at a time. `show` tells whether it is at work, was interrupted, or failed and why; `wait`
waits for a state. To stop one, end its process; then `suspend` or `abort` it, or run it again.

Exit codes besides those of `vhdkit --help`: 1 when the state that was waited for was not reached.

Examples:
    vhdkit replica create nightly --type mirror leaf.vhdx /dr/copy.vhdx
    vhdkit replica fracture nightly                  from here on a change log tells what the copy lacks
    vhdkit replica resync-replica nightly            exactly the changed sectors are copied
    vhdkit replica resync-replica nightly --no-wait  the same, in the background
    vhdkit replica wait nightly --for synchronized --timeout 3600
    vhdkit replica failover nightly                  go on with the copy, in a new leaf above it
    vhdkit replica failover nightly --force          although the source is lost
    vhdkit replica capabilities --json               which operation leads from which state to which";

/// The arguments of `replica`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplicaArgs {
    #[command(subcommand)]
    action: Action,
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
    /// Wait until a relation is in a state, or no operation is at work any more
    Wait(Waiting),
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

/// What is remembered, and whether somebody works with it.
#[derive(Debug, Serialize)]
struct Shown<T> {
    #[serde(flatten)]
    view: T,
    /// An operation that was begun goes on; without that, it was interrupted.
    at_work: bool,
}

/// An answer with CIM's number of how it went.
#[derive(Debug, Serialize)]
struct Answer<T> {
    return_code: u16,
    #[serde(flatten)]
    report: T,
}

impl<T> Answer<T> {
    fn new(code: ReturnCode, report: T) -> Self {
        Self { return_code: code.number(), report }
    }
}

/// Does `replica`.
///
/// # Errors
/// Those of the registry and of the operation; that a state was not reached.
pub(crate) fn run(args: &ReplicaArgs, session: &Session) -> Result<(), Failure> {
    match &args.action {
        Action::Create { id, kind, no_activate, source, target, common } => {
            let replicas = common.replicas();
            let mut view = replicas.create(id, (*kind).into(), source, target.as_deref())?;
            if !no_activate {
                view = modify(&replicas, id, (Operation::Activate, &ModifyOptions::new()), session)?.relation;
            }
            if common.json { output::print_json(&view) } else { output::say(session.display, &relation(&view, false)) }
        }
        Action::List(common) => list(common),
        Action::Show { id, common } => {
            let Shown { view, at_work } = look(&common.replicas(), id)?;
            if common.json {
                output::print_json(&Shown { view, at_work })
            } else {
                output::print(&relation(&view, at_work))
            }
        }
        Action::Wait(waiting) => wait(waiting, session),
        Action::Capabilities { kind, json } => show_capabilities(kind.map(SyncType::from), *json),
        Action::Modify(operation) => {
            let (operation, args) = operation.parts();
            if job::is_wanted(&args.wait, session) {
                return in_background(operation, args, session);
            }
            let report = modify(&args.common.replicas(), &args.id, (operation, &job::options(args, session)), session)?;
            match (session.job, args.common.json) {
                (true, _) => Ok(()),
                (_, true) => output::print_json(&Answer::new(ReturnCode::Completed, &report)),
                _ => output::say(session.display, &changed(&report)),
            }
        }
    }
}

fn list(common: &Common) -> Result<(), Failure> {
    let replicas = common.replicas();
    let held = replicas.is_at_work()?;
    let shown = |view: RelationView| Shown { at_work: held && view.relation.pending.is_some(), view };
    let all: Vec<Shown<RelationView>> = replicas.list()?.into_iter().map(shown).collect();
    if common.json {
        return output::print_json(&all);
    }
    let text: String = all.iter().map(|shown| relation(&shown.view, shown.at_work)).collect();
    output::print(if text.is_empty() { "no relations\n" } else { &text })
}

/// The relation, and whether its operation is at work.
fn look(replicas: &Replicas, id: &str) -> Result<Shown<RelationView>, Failure> {
    // In this order: what has ended in between is in the record.
    let held = replicas.is_at_work()?;
    let view = replicas.show(id)?;
    Ok(Shown { at_work: held && view.relation.pending.is_some(), view })
}

fn modify(
    replicas: &Replicas,
    id: &str,
    (operation, options): (Operation, &ModifyOptions),
    session: &Session,
) -> Result<ModifyReport, Failure> {
    let reporter = Reporter::new(session.display, false);
    let watch = Watch::none().cancel(&session.cancel);
    let watch = if session.job { watch } else { watch.observer(&reporter) };
    if session.job {
        job::detach();
    }
    let done = replicas.modify(id, operation, options, &watch);
    drop(reporter);
    Ok(done?)
}

/// Lets the operation go on in the background, and says how far it is.
fn in_background(operation: Operation, args: &OperationArgs, session: &Session) -> Result<(), Failure> {
    let outcome = job::start(operation, &args.wait, &mut |state| Ok(args.wait.wait == Some(state)))?;
    let (code, started) = match outcome {
        Outcome::GoesOn(started) => (ReturnCode::JobStarted, Some(started)),
        Outcome::TimeUp(started) => (ReturnCode::Timeout, Some(started)),
        Outcome::Ended => (ReturnCode::Completed, None),
    };
    let replicas = args.common.replicas();
    // A relation that is gone has nothing to show.
    let shown = if replicas.list()?.iter().any(|view| view.relation.id == args.id) {
        Some(look(&replicas, &args.id)?)
    } else {
        None
    };
    if args.common.json {
        let report = serde_json::json!({ "job": started, "relation": shown });
        output::print_json(&Answer::new(code, report))?;
    } else {
        let text = match &shown {
            Some(shown) => relation(&shown.view, shown.at_work),
            None => format!("{}: gone\n", args.id),
        };
        output::say(session.display, &(goes_on(started.as_ref(), code) + &text))?;
    }
    if code == ReturnCode::Timeout { Err(Failure::Found) } else { Ok(()) }
}

fn wait(waiting: &Waiting, session: &Session) -> Result<(), Failure> {
    let replicas = waiting.common.replicas();
    let code = job::wait_for(waiting.state, waiting, session, &mut || Ok(replicas.show(&waiting.id)?.observed))?;
    let Shown { view, at_work } = look(&replicas, &waiting.id)?;
    if waiting.common.json {
        let report = serde_json::json!({ "relation": Shown { view, at_work } });
        output::print_json(&Answer::new(code, report))?;
    } else {
        output::say(session.display, &relation(&view, at_work))?;
    }
    if code == ReturnCode::Completed { Ok(()) } else { Err(Failure::Found) }
}
