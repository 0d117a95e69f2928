//! `vhdkit reparent`.
//!
//! Owns: the ways to name the new parent, and how the result reads. Must not know: how a link is checked or written.

use crate::Session;
use crate::args::ParentArgs;
use crate::commands::info::Fields;
use crate::output::{self, Failure};
use clap::Args;
use std::path::PathBuf;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{self, AbsolutePath, ReparentOptions, ReparentReport};

const EXAMPLES: &str = "\
Only the link in the child changes: its paths, the identity it names, its parent's name. A crash leaves the old
link or the new one. The first --parent is the new parent, further ones are that image's own parents; without
any it is looked for as for reading.

Examples:
    vhdkit reparent child.avhdx --parent ../base.vhdx
    vhdkit reparent child.avhdx --search /srv/vms                     whichever file there has the identity
    vhdkit reparent child.avhdx --map 'D:\\VMs=/srv/vms'               where the child's Windows path leads to
    vhdkit reparent child.avhdx --parent base.vhdx --absolute 'E:\\VMs\\base.vhdx'
    vhdkit reparent child.vhd --parent base.vhd --ignore-id-mismatch --dry-run";

/// The arguments of `reparent`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReparentArgs {
    /// The child
    child: PathBuf,
    /// Take a parent of another identity: you know that it holds what the child was made over
    #[arg(long, requires = "files")]
    ignore_id_mismatch: bool,
    /// The absolute Windows path in the child: keep it, leave it out (blank), make it from --map (map), or this PATH
    #[arg(long, value_name = "keep|blank|map|PATH", value_parser = absolute, default_value = "keep")]
    absolute: AbsolutePath,
    /// Show what would be written and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    parents: ParentArgs,
}

fn absolute(text: &str) -> Result<AbsolutePath, std::convert::Infallible> {
    Ok(match text {
        "keep" => AbsolutePath::Keep,
        "blank" => AbsolutePath::Blank,
        "map" => AbsolutePath::Mapped,
        path => AbsolutePath::Set(path.to_owned()),
    })
}

/// Does it.
///
/// # Errors
/// Those of finding the parent and of re-parenting.
pub(crate) fn run(args: &ReparentArgs, session: &Session) -> Result<(), Failure> {
    let parent = match args.parents.files.first() {
        Some(file) => file.clone(),
        None => found(args)?,
    };
    let options = ReparentOptions::new()
        .ignore_id_mismatch(args.ignore_id_mismatch)
        .absolute(args.absolute.clone())
        .dry_run(args.dry_run)
        .chain(args.parents.options_after(1));
    let report = ops::reparent(&args.child, parent, &options)?;
    output::conclude(&report, (args.json, args.dry_run), session.display, text)
}

/// The parent that the child names, found as for reading.
fn found(args: &ReparentArgs) -> vhdkit::Result<PathBuf> {
    let child = Chain::open_leaf(&args.child, &ChainOptions::new())?;
    let parent = Chain::find_parent(&child, &args.parents.options())?;
    parent
        .and_then(|parent| parent.path().map(PathBuf::from))
        .ok_or_else(|| output::usage("only a differencing image has a parent").with_path(&args.child))
}

fn text(report: &ReparentReport) -> String {
    let mut fields = Fields::default();
    fields.add("child", report.child.display());
    fields.add("parent", report.parent.display());
    fields.add("identity", report.id);
    fields.add("relative path", report.relative.as_deref().unwrap_or("none"));
    fields.add("absolute path", report.absolute.as_deref().unwrap_or("none"));
    for finding in &report.warnings {
        fields.add("warning", &finding.problem);
    }
    if let Some(error) = &report.parent_error {
        fields.add("warning", format_args!("the chain below the parent does not open yet: {error}"));
    }
    if !report.written {
        fields.add("written", "no, this was a dry run");
    }
    fields.text()
}
