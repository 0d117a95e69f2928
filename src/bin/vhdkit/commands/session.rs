//! `vhdkit session`.
//!
//! Owns: how sessions are listed and how their end reads. Must not know: what ends one.

use super::snapshot_set::{HookArgs, recovered};
use crate::Session;
use crate::output::{self, Failure};
use clap::{Args, Subcommand};
use std::fmt::Write;
use std::path::PathBuf;
use vhdkit::ops::{self, Participant, Recovered};

const EXAMPLES: &str = "\
A snapshot set whose program died leaves a record. `recover` finishes the set when all of it was there and takes it
back otherwise; `abort` takes it back. Both release whom the session had told of it: by the hooks in the record, or by
those given here.

Examples:
    vhdkit session list --registry /srv/vms/.vhdkit
    vhdkit session recover --registry /srv/vms/.vhdkit
    vhdkit session abort 1f6c9a4be2d44a0c8a5b --registry /srv/vms/.vhdkit --thaw-hook 'fsfreeze -u /mnt'";

/// The arguments of `session`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the sessions that have not ended
    List(Common),
    /// End the sessions whose program died
    Recover {
        /// Only this one
        id: Option<String>,
        #[command(flatten)]
        hooks: HookArgs,
        #[command(flatten)]
        common: Common,
    },
    /// End one without a set
    Abort {
        /// Which one
        id: String,
        #[command(flatten)]
        hooks: HookArgs,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Where the records are
    #[arg(long, value_name = "DIR", default_value = ".vhdkit")]
    registry: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// Those of reading records and of ending sessions.
pub(crate) fn run(args: &SessionArgs, session: &Session) -> Result<(), Failure> {
    match &args.action {
        Action::List(common) => list(common),
        Action::Recover { id, hooks, common } => {
            let ended = ops::recover_sessions(&common.registry, id.as_deref(), &mut people(hooks))?;
            if common.json {
                return output::print_json(&ended);
            }
            let text: String = ended.iter().map(recovered).collect();
            output::say(session.display, if text.is_empty() { "no session is left to recover\n" } else { &text })
        }
        Action::Abort { id, hooks, common } => {
            let report = ops::abort_session(&common.registry, id, &mut people(hooks))?;
            if common.json {
                return output::print_json(&report);
            }
            output::say(session.display, &recovered(&Recovered::Aborted(report)))
        }
    }
}

fn people(hooks: &HookArgs) -> Vec<Box<dyn Participant>> {
    hooks.hooks().into_iter().map(|hooks| Box::new(hooks) as Box<dyn Participant>).collect()
}

fn list(common: &Common) -> Result<(), Failure> {
    let sessions = ops::sessions(&common.registry)?;
    if common.json {
        return output::print_json(&sessions);
    }
    let mut text = String::new();
    for session in &sessions {
        let state = if session.live { "at work" } else { "its program died" };
        let phase = format!("{:?}", session.phase).to_lowercase();
        let _ = writeln!(text, "{}  {state}, {phase}", session.id);
        for (disk, child) in session.disks.iter().zip(&session.children) {
            let (disk, child) = (disk.display().to_string(), child.display().to_string());
            let _ = writeln!(text, "  {} -> {}", output::shown(&disk), output::shown(&child));
        }
    }
    output::print(if text.is_empty() { "no sessions\n" } else { &text })
}
