//! `vhdkit resync`.
//!
//! Owns: how pairs are written on the command line and how the result reads. Must not know: how what differs is found.

use crate::Session;
use crate::args::PlaceArgs;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::{Args, ValueEnum};
use std::fmt::Write;
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::ops::{self, ResyncIdentity, ResyncOptions, ResyncPair, ResyncReport, WhatDiffers};

const EXAMPLES: &str = "\
Each target shows exactly what its source shows afterwards, and only what differs is moved: what was written since the
last resync where both are VHDX and nobody else wrote, else what maps and bytes say differs. A larger target is cut. An
interrupted resync leaves its target marked; run it again and it finishes. There is no way back.

Examples:
    vhdkit resync leaf.vhdx /backup/copy.vhdx
    vhdkit resync c.vhdx /dr/c.vhdx d.vhdx /dr/d.vhdx --grow
    vhdkit resync leaf.vhdx copy.vhdx --dry-run --json       what would move";

/// The arguments of `resync`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ResyncArgs {
    /// A source, its target, and so on
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "TARGET"])]
    disks: Vec<PathBuf>,
    /// Who the targets are afterwards: the virtual disk id of a VHDX, the unique id of a VHD
    #[arg(long, value_enum, default_value = "keep", value_name = "WHO")]
    identity: Identity,
    /// Let a target that is smaller than its source grow
    #[arg(long)]
    grow: bool,
    /// Move data inside the file system only; fail where that cannot be done
    #[arg(long)]
    require_offload: bool,
    /// Do not refuse a target that has a partition which its source has not
    #[arg(long)]
    no_volume_check: bool,
    /// Give up other images that stand on a target
    #[arg(long)]
    allow_children: bool,
    /// Say what would move, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// How many threads read and copy [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    jobs: usize,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Identity {
    /// Who they were
    Keep,
    /// Who their sources are
    Source,
    /// Nobody that was before
    Fresh,
}

impl From<Identity> for ResyncIdentity {
    fn from(identity: Identity) -> Self {
        match identity {
            Identity::Keep => Self::KeepTarget,
            Identity::Source => Self::TakeSource,
            Identity::Fresh => Self::Fresh,
        }
    }
}

/// Does it.
///
/// # Errors
/// A source without a target; those of the resync.
pub(crate) fn run(args: &ResyncArgs, session: &Session) -> Result<(), Failure> {
    let (pairs, rest) = args.disks.as_chunks::<2>();
    if let Some(lonely) = rest.first() {
        let error = output::usage("this source has no target").with_path(lonely);
        return Err(error.with_hint("name them in pairs: SOURCE TARGET SOURCE TARGET").into());
    }
    let pairs: Vec<ResyncPair> =
        pairs.iter().map(|[source, target]| ResyncPair { source: source.clone(), target: target.clone() }).collect();
    let options = ResyncOptions::new()
        .identity(args.identity.into())
        .grow(args.grow)
        .require_offload(args.require_offload)
        .volume_check(!args.no_volume_check)
        .allow_children(args.allow_children)
        .dry_run(args.dry_run)
        .jobs(args.jobs)
        .chain(args.places.options());
    let reporter = Reporter::new(session.display, args.json);
    let done = ops::resync(&pairs, &options, &Watch::none().observer(&reporter).cancel(&session.cancel));
    drop(reporter);
    let report = done?;
    output::conclude(&report, (args.json, args.dry_run), session.display, text)
}

fn text(report: &ResyncReport) -> String {
    let mut text = String::new();
    for pair in &report.pairs {
        let (source, target) = (pair.source.display().to_string(), pair.target.display().to_string());
        let (source, target) = (output::shown(&source), output::shown(&target));
        let how = match pair.by {
            WhatDiffers::Recorded => "known from the last resync".to_owned(),
            WhatDiffers::Compared => format!("{} compared", size::human(pair.compared)),
        };
        let differing = size::human(pair.differing);
        let line = if report.dry_run {
            format!("{target}: {differing} would be made what {source} shows ({how})")
        } else {
            let (moved, offloaded) = (size::human(pair.moved), size::human(pair.offloaded));
            format!(
                "{target} shows what {source} shows: {moved} moved, {offloaded} of it inside the file system ({how})"
            )
        };
        let _ = writeln!(text, "{line}");
        if let Some(old) = pair.resized_from {
            let _ = writeln!(text, "  its size was {}", size::human(old));
        }
    }
    text
}
