//! `vhdkit snapshot-set`.
//!
//! Owns: which hooks there are, how new leaves are named, how the result reads. Must not know: the order of a session.

use crate::Session;
use crate::args::PlaceArgs;
use crate::output::{self, Failure};
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;
use vhdkit::Watch;
use vhdkit::ops::{self, Hooks, Moment, Recovered, SessionOptions, SessionReport, SnapshotDisk};

const EXAMPLES: &str = "\
Every disk gets a new leaf, or none does, whatever fails and whenever the machine stops. What a program that died
left behind is ended by the next set, or by `vhdkit session recover`. The new leaves are named DISK-1, DISK-2, ...:
one number for all of a set.

A hook is run by sh -c, with VHDKIT_SESSION, VHDKIT_MOMENT, VHDKIT_DISKS and VHDKIT_CHILDREN in its environment.
Freeze and thaw that fail, and a freeze that takes too long, take the set back. Abort is run whenever prepare was and
there is no set after all.

Examples:
    vhdkit snapshot-set system.vhdx data.vhdx
    vhdkit snapshot-set system.vhdx data.vhdx --suffix before-upgrade
    vhdkit snapshot-set c.vhdx d.vhd --freeze-hook 'fsfreeze -f /mnt' --thaw-hook 'fsfreeze -u /mnt'
    vhdkit snapshot-set vm.vhdx --freeze-hook 'virsh domfsfreeze vm' --thaw-hook 'virsh domfsthaw vm' --json";

/// The programs to run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Hooks")]
pub(crate) struct HookArgs {
    /// Run before anything is done
    #[arg(long, value_name = "CMD")]
    prepare_hook: Option<String>,
    /// Run to make the disks hold still
    #[arg(long, value_name = "CMD")]
    freeze_hook: Option<String>,
    /// Run to let them go on
    #[arg(long, value_name = "CMD")]
    thaw_hook: Option<String>,
    /// Run when the set is there
    #[arg(long, value_name = "CMD")]
    post_hook: Option<String>,
    /// Run when there will be no set after all
    #[arg(long, value_name = "CMD")]
    abort_hook: Option<String>,
}

impl HookArgs {
    /// The participant they make; its name is in the record, and stands for it when the session is recovered.
    pub(crate) fn hooks(&self) -> Option<Hooks> {
        let hooks = [
            (Moment::Prepare, &self.prepare_hook),
            (Moment::Freeze, &self.freeze_hook),
            (Moment::Thaw, &self.thaw_hook),
            (Moment::Post, &self.post_hook),
            (Moment::Abort, &self.abort_hook),
        ]
        .into_iter()
        .filter_map(|(moment, command)| Some((moment, command.as_ref()?)))
        .fold(Hooks::new("hooks"), |hooks, (moment, command)| hooks.on(moment, command));
        (!hooks.is_empty()).then_some(hooks)
    }
}

/// The arguments of `snapshot-set`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SnapshotSetArgs {
    /// The leaves of the disks
    #[arg(required = true)]
    disks: Vec<PathBuf>,
    /// The new leaf of DISK.EXT is DISK-SUFFIX.EXT [default: a number that is free for all]
    #[arg(long)]
    suffix: Option<String>,
    /// How long the disks may be made to hold still
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    freeze_limit: f64,
    /// Where the record of the session is kept [default: .vhdkit beside the first disk]
    #[arg(long, value_name = "DIR")]
    registry: Option<PathBuf>,
    /// Do not lock the disks: the hooks see to it that nobody writes to them
    #[arg(long)]
    no_lock: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hooks: HookArgs,
    #[command(flatten)]
    places: PlaceArgs,
}

pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 86_400.0 => Ok(value),
        _ => Err("use a number of seconds, more than 0 and at most a day".to_owned()),
    }
}

/// Does it.
///
/// # Errors
/// Those of the session.
pub(crate) fn run(args: &SnapshotSetArgs, session: &Session) -> Result<(), Failure> {
    let disks = match &args.suffix {
        Some(suffix) => args.disks.iter().map(|disk| SnapshotDisk::suffixed(disk, suffix)).collect::<Result<_, _>>()?,
        None => SnapshotDisk::numbered(&args.disks)?,
    };
    let mut options = SessionOptions::new()
        .freeze_limit(Duration::from_secs_f64(args.freeze_limit))
        .chain(args.places.options().locked(!args.no_lock));
    if let Some(directory) = &args.registry {
        options = options.registry(directory);
    }
    let mut set = ops::Session::new(&disks, &options)?;
    if let Some(hooks) = args.hooks.hooks() {
        set = set.participant(Box::new(hooks));
    }
    let report = set.run(&Watch::none().cancel(&session.cancel))?;
    if args.json { output::print_json(&report) } else { output::say(session.display, &text(&report)) }
}

fn text(report: &SessionReport) -> String {
    let mut text = String::new();
    for ended in &report.recovered {
        text.push_str(&recovered(ended));
    }
    for disk in &report.disks {
        let (child, leaf) = (disk.child.display().to_string(), disk.leaf.display().to_string());
        let _ = writeln!(text, "{} stands on {}", output::shown(&child), output::shown(&leaf));
    }
    for failure in &report.post_failures {
        let _ = writeln!(text, "after the set: {}", output::shown(failure));
    }
    text
}

/// How a dead session was ended, in a line or a few.
pub(crate) fn recovered(ended: &Recovered) -> String {
    let (mut text, failures) = match ended {
        Recovered::Finished { id, children, failures } => {
            (format!("session {id}: its set of {} was there and stays\n", children.len()), failures)
        }
        Recovered::Aborted(report) => (
            format!("session {}: taken back, {} new leaves removed\n", report.id, report.removed.len()),
            &report.failures,
        ),
    };
    for failure in failures {
        let _ = writeln!(text, "  {}", output::shown(failure));
    }
    text
}
