//! `vhdkit snapshot`.
//!
//! Owns: its arguments, and how the result reads. Must not know: how a child is made.

use crate::Session;
use crate::args::ParentArgs;
use crate::commands::info::Fields;
use crate::output::{self, Failure};
use crate::size;
use clap::Args;
use std::path::PathBuf;
use vhdkit::ops::{self, SnapshotOptions, SnapshotReport};

const EXAMPLES: &str = "\
The child has the leaf's size, block size and sector sizes, and holds nothing yet. Attach it in place of the leaf from
now on: writing to the leaf makes the child invalid. `vhdkit merge CHILD --depth 1` takes the snapshot back into the
leaf; deleting the child goes back to the moment it was made.

Examples:
    vhdkit snapshot disk.vhdx                      makes disk-1.vhdx, the next one disk-2.vhdx
    vhdkit snapshot disk.vhdx before-update.avhdx
    vhdkit snapshot disk.vhdx --json | jq -r .child";

/// The arguments of `snapshot`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SnapshotArgs {
    /// The leaf of the chain
    leaf: PathBuf,
    /// The new child; no file is replaced [default: the next free NAME-N beside the leaf]
    child: Option<PathBuf>,
    /// Show what would be made and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    parents: ParentArgs,
}

/// Does it.
///
/// # Errors
/// Those of making the child.
pub(crate) fn run(args: &SnapshotArgs, session: &Session) -> Result<(), Failure> {
    let options = SnapshotOptions::new().dry_run(args.dry_run).chain(args.parents.options());
    let options = args.child.iter().fold(options, SnapshotOptions::child);
    let report = ops::snapshot(&args.leaf, &options)?;
    output::conclude(&report, (args.json, args.dry_run), session.display, text)
}

fn text(report: &SnapshotReport) -> String {
    let mut fields = Fields::default();
    fields.add("child", report.child.display());
    fields.add("over", report.parent.display());
    fields.add("virtual size", size::exact(report.virtual_size));
    for sibling in &report.siblings {
        fields.add("beside it", sibling.display());
    }
    if !report.written {
        fields.add("written", "no, this was a dry run");
        return fields.text();
    }
    let (child, parent) = (report.child.display().to_string(), report.parent.display().to_string());
    let advice = format!("Attach {child} from now on; writing to {parent} would make it invalid.");
    format!("{}{}\n", fields.text(), output::shown(&advice))
}
