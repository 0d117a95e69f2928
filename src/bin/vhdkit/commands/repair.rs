//! `vhdkit repair`.
//!
//! Owns: how a plan and its result read. Must not know: what is repaired, or how.

use crate::Session;
use crate::commands::check;
use crate::commands::info::Fields;
use crate::output::{self, Failure};
use crate::size;
use clap::Args;
use std::path::PathBuf;
use vhdkit::ops::{self, RepairOptions, RepairReport};
use vhdkit::{RepairKind, Severity};

const EXAMPLES: &str = "\
Safe repairs change nothing that a reader of the disk sees: footers, headers and copies, the log, the end of the file,
geometry, reserved fields. What loses or makes up data has to be allowed by name:
    unmap-lost-blocks   blocks outside of the file are given up; they show the parent, or zeros
    zero-extend         the file is made long enough for them; what was cut off becomes zeros
    drop-log            VHDX: a log that cannot be read is given up, with the updates in it
    unmap-shared-blocks VHDX: blocks whose space something else owns too are given up; the first owner keeps it
    partial-to-parent   VHDX: blocks whose sector bitmap is missing show the parent ...
    partial-to-data     ... or all bytes they have
The ranges of the disk that this affects are listed.

What is overwritten is first kept in the file .NAME.vhdkit-undo beside the image. A repair that was interrupted can be
run again or undone.

Exit codes:
    0  done, and no error is left
    1  done as far as is allowed, and errors are left: they are listed
  and the ones of every verb; 4 when the image cannot be repaired.

Examples:
    vhdkit repair --dry-run disk.vhd                  show what it would do and change nothing
    vhdkit repair disk.vhd
    vhdkit repair --undo disk.vhd                     bring back every byte
    vhdkit repair --allow unmap-lost-blocks cut.vhd";

/// The arguments of `repair`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RepairArgs {
    /// The image
    image: PathBuf,
    /// Show what would be done and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Make repairs of this kind, which loses or makes up data; repeatable
    #[arg(long, value_name = "KIND")]
    allow: Vec<RepairKind>,
    /// Take back the last repair, byte for byte
    #[arg(long, conflicts_with_all = ["dry_run", "allow", "discard_undo"])]
    undo: bool,
    /// Give up the way back from an earlier repair
    #[arg(long)]
    discard_undo: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
///
/// # Errors
/// Those of the repair; `Found` when errors are left that it did not mend.
pub(crate) fn run(args: &RepairArgs, session: &Session) -> Result<(), Failure> {
    if args.undo {
        let report = ops::undo_repair(&args.image)?;
        if args.json {
            return output::print_json(&report);
        }
        let mut fields = Fields::default();
        fields.add("brought back", report.path.display());
        fields.add("bytes put back", size::exact(report.restored));
        return output::say(session.display, &fields.text());
    }
    let options = RepairOptions::new().dry_run(args.dry_run).discard_undo(args.discard_undo);
    let options = args.allow.iter().fold(options, |options, &kind| options.allow(kind));
    let report = ops::repair(&args.image, &options)?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::say(session.display, &text(&report))?;
    }
    let serious = report.findings.iter().any(|found| found.finding.severity >= Severity::Error);
    if serious && !args.dry_run { Err(Failure::Found) } else { Ok(()) }
}

fn text(report: &RepairReport) -> String {
    let mut fields = Fields::default();
    fields.add("file", report.path.display());
    if report.resumed {
        fields.add("taken back", "an earlier repair, which had been interrupted");
    }
    if report.repairs.is_empty() {
        fields.add("repairs", "none");
    }
    for repaired in &report.repairs {
        let name = if report.dry_run { "would repair" } else { "repaired" };
        fields.add(name, format_args!("{}: {}", repaired.kind, repaired.what));
        for range in &repaired.loses {
            let len = size::exact(range.end.saturating_sub(range.start));
            fields.add("  lost", format_args!("disk offset {:#x} to {:#x}, {len}", range.start, range.end));
        }
    }
    fields.add_some("undo file", report.undo.as_ref().map(|path| path.display()));
    let when = if report.dry_run { "Now" } else { "Left" };
    let mut text = fields.text();
    if !report.findings.is_empty() {
        text.push_str(&format!("{when}:\n{}", check::findings(&report.findings, 0)));
    }
    text
}
