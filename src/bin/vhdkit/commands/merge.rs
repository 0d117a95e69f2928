//! `vhdkit merge`.
//!
//! Owns: the ways to name what is merged, and how the plan and the result read. Must not know: how files are merged.

use crate::Session;
use crate::args::ParentArgs;
use crate::commands::info::{Fields, kind, name};
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::{ArgGroup, Args, ValueEnum};
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::ops::{self, MergeOptions, MergePlan, MergeReport, PlannedFile, Siblings};

const EXAMPLES: &str = "\
Depth counts from the leaf, which is 1. What the source shows stays the same at every
instant. After an interruption run the same merge again: it goes on from the note
.TARGET.vhdkit-merge beside the target if the files are still what they were then,
and from the beginning otherwise. If it was relinking or deleting already, it finishes
that, by .LEAF.vhdkit-merge-end beside the leaf.

Examples, for a chain leaf.vhdx - middle.vhdx - base.vhdx:
    vhdkit merge leaf.vhdx --depth 1                  leaf into middle
    vhdkit merge leaf.vhdx --depth 2 --delete         leaf and middle into base, then delete both
    vhdkit merge leaf.vhdx --into base.vhdx           the same merge, the target by name
    vhdkit merge leaf.vhdx --from 2 --to 3 --relink   middle into base, leaf then stands on base
    vhdkit merge leaf.vhdx --depth 2 --dry-run        show what it would do";

/// The arguments of `merge`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("which").required(true).args(["depth", "to", "into"])))]
pub(crate) struct MergeArgs {
    /// The leaf of the chain
    leaf: PathBuf,
    /// Merge the N files nearest the leaf into the next one
    #[arg(long, value_name = "N", value_parser = depth)]
    depth: Option<usize>,
    /// Merge the files of depth S to T - 1 into the file of depth T
    #[arg(long, value_name = "S", value_parser = depth, requires = "to")]
    from: Option<usize>,
    /// See --from
    #[arg(long, value_name = "T", value_parser = depth, requires = "from")]
    to: Option<usize>,
    /// Merge everything from the leaf down into this file of the chain
    #[arg(long, value_name = "ANCESTOR")]
    into: Option<PathBuf>,
    /// Point the file above the merged ones at the target; for merges that do not start at the leaf
    #[arg(long)]
    relink: bool,
    /// Delete the merged files once everything is durable
    #[arg(long)]
    delete: bool,
    /// What to do about other images that stand on a file that changes. They are looked for beside the files of the chain
    /// and in --search DIR
    #[arg(long, value_name = "HOW", value_enum, default_value = "refuse")]
    siblings: OnSiblings,
    /// Show what would be done and change nothing; ends as the merge would if that would not start
    #[arg(long)]
    dry_run: bool,
    /// How many threads copy [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    jobs: usize,
    /// Copy blocks of zeros instead of leaving them out
    #[arg(long)]
    no_zero_scan: bool,
    /// Copy everything again instead of going on where an interrupted merge got to
    #[arg(long)]
    restart: bool,
    /// How much is moved between two notes of how far the merge is; an interruption costs at most this much. Less than
    /// 256M costs speed [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    checkpoint_every: Option<u64>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// With --dry-run: do not lock the files
    #[arg(long, requires = "dry_run")]
    no_lock: bool,
    #[command(flatten)]
    parents: ParentArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnSiblings {
    /// Refuse the merge, naming them
    Refuse,
    /// Go on; they no longer show what they showed
    Invalidate,
}

fn depth(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("depth counts from the leaf, which is 1".to_owned()),
        Ok(depth) => Ok(depth),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

impl MergeArgs {
    fn siblings(&self) -> Siblings {
        match self.siblings {
            OnSiblings::Refuse => Siblings::Refuse,
            OnSiblings::Invalidate => Siblings::Invalidate,
        }
    }

    fn options(&self) -> vhdkit::Result<MergeOptions> {
        let options = match (self.depth, self.from, self.to, &self.into) {
            (Some(depth), ..) => MergeOptions::depth(depth),
            (None, Some(from), Some(to), _) if from < to => MergeOptions::between(from, to),
            (None, None, None, Some(file)) => MergeOptions::into_file(file),
            _ => return Err(output::usage("--from must be nearer the leaf than --to: the smaller number")),
        };
        let options = options
            .relink(self.relink)
            .delete(self.delete)
            .siblings(self.siblings())
            .jobs(self.jobs)
            .scan_zeros(!self.no_zero_scan)
            .restart(self.restart)
            .chain(self.parents.options().locked(!self.no_lock));
        let options = self.checkpoint_every.into_iter().fold(options, MergeOptions::checkpoint_every);
        Ok(self.parents.places.search.iter().fold(options, MergeOptions::search))
    }
}

/// Does it.
///
/// # Errors
/// Those of planning and of merging.
pub(crate) fn run(args: &MergeArgs, session: &Session) -> Result<(), Failure> {
    let options = args.options()?;
    if args.dry_run {
        let plan = ops::plan_merge(&args.leaf, &options)?;
        let shown = if args.json { output::print_json(&plan) } else { output::print(&plan_text(&plan)) };
        return shown.and_then(|()| Ok(plan.require_startable(args.siblings())?));
    }
    let reporter = Reporter::new(session.display, args.json);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let report = ops::merge(&args.leaf, &options, &watch);
    drop(reporter);
    let report = report?;
    if args.json { output::print_json(&report) } else { output::say(session.display, &report_text(&report, args)) }
}

fn plan_text(plan: &MergePlan) -> String {
    let file = |file: &PlannedFile| format!("depth {}: {}", file.depth, name(file.path.as_deref()));
    let mut fields = Fields::default();
    for merged in &plan.merged {
        fields.add("merge", file(merged));
    }
    fields.add("into", format_args!("{} ({}, {})", file(&plan.target), plan.format, kind(plan.target_kind)));
    fields.add("data to copy", size::exact(plan.data_bytes));
    if plan.shifted_bytes > 0 {
        let bytes = size::exact(plan.shifted_bytes);
        fields.add(
            "not for reflinks",
            format_args!("{bytes}: not aligned in both files as the file system's blocks are"),
        );
    }
    fields.add("zeros to make", size::exact(plan.zero_bytes));
    let before = plan.target.virtual_size;
    if plan.new_virtual_size == before {
        fields.add("virtual size", format_args!("{}, as before", size::exact(before)));
    } else {
        let (before, after) = (size::exact(before), size::exact(plan.new_virtual_size));
        fields.add("virtual size", format_args!("{before} becomes {after}"));
    }
    fields.add("space needed", format_args!("at most {}", size::exact(plan.space_needed)));
    fields.add_some("space free", plan.space_available.map(size::exact));
    fields.add_some("relink", plan.relinked.as_ref().map(file));
    fields.add("then delete", if plan.delete { "the merged files" } else { "nothing" });
    for sibling in &plan.siblings {
        fields.add("loses its parent", sibling.display());
    }
    fields.text()
}

fn report_text(report: &MergeReport, args: &MergeArgs) -> String {
    let mut fields = Fields::default();
    fields.add("merged into", name(report.target.as_deref()));
    let at_the_end = || "the end: everything was merged before".to_owned();
    let went_on = report.resumed_at.map(|at| if report.ended { at_the_end() } else { size::exact(at) });
    fields.add_some("went on at", went_on);
    fields.add("data moved", size::exact(report.moved));
    let mut part = |label, bytes| {
        if bytes > 0 {
            fields.add(label, size::exact(bytes));
        }
    };
    part("reflinked", report.shared);
    part("copied by the server", report.offloaded - report.shared);
    part("copied", report.moved - report.offloaded);
    fields.add("zeros made", size::exact(report.zeroed));
    fields.add_some("relinked", report.relinked.as_ref().map(|path| path.display()));
    for deleted in &report.deleted {
        fields.add("deleted", deleted.display());
    }
    for sibling in &report.siblings {
        fields.add("invalid now", sibling.display());
    }
    let mut text = fields.text();
    if !args.delete {
        text.push_str("The merged files are still there; the target holds everything they held.\n");
    }
    text
}
