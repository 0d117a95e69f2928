//! `vhdkit compact`.
//!
//! Owns: how the result of a compaction reads. Must not know: how a file becomes shorter.

use crate::Session;
use crate::args::ParentArgs;
use crate::commands::info::{Fields, kind};
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::ops::{self, CompactOptions, CompactReport, CompactVolume};

const EXAMPLES: &str = "\
Blocks give up their space when nobody reads them, when they hold zeros, and when a file
system on the disk (ext2/3/4, XFS, NTFS, FAT, exFAT; alone or in partitions) says that
they hold nothing. Those read as zeros afterwards, so deleted files cannot be brought
back; --no-fs leaves every byte of the disk as it is. A volume that was not unmounted
cleanly, is encrypted, has shadow copies or uses anything unknown is left alone, and the
answer says why.

The blocks that stay move together, and the file is cut behind them. It grows at no time.
After an interruption run the same again.

A block of zeros in a differencing VHD stays, and so does free space there over a layer
that holds something: such a block would show its parent.

Examples:
    vhdkit compact ext4.vhdx --dry-run                what it would give back, by volume
    vhdkit compact ext4.vhdx
    vhdkit compact --no-fs disk.vhd                   only what is zero anyway
    vhdkit compact --json disk.vhdx | jq .after.file_size";

/// The arguments of `compact`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompactArgs {
    /// The image: dynamic or differencing, not in use
    image: PathBuf,
    /// Show what would be given back and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not read blocks to see whether they hold zeros
    #[arg(long)]
    no_zero_scan: bool,
    /// Leave file systems alone: what the disk shows stays as it is, byte by byte
    #[arg(long)]
    no_fs: bool,
    /// How many threads read and copy [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    jobs: usize,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// With --dry-run: do not lock the files
    #[arg(long, requires = "dry_run")]
    no_lock: bool,
    #[command(flatten)]
    parents: ParentArgs,
}

/// Does it.
///
/// # Errors
/// Those of the compaction.
pub(crate) fn run(args: &CompactArgs, session: &Session) -> Result<(), Failure> {
    let options = CompactOptions::new()
        .scan_zeros(!args.no_zero_scan)
        .file_systems(!args.no_fs)
        .dry_run(args.dry_run)
        .jobs(args.jobs)
        .open(args.parents.options().locked(!args.no_lock));
    let reporter = Reporter::new(session.display, args.json);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let report = ops::compact(&args.image, &options, &watch);
    drop(reporter);
    let report = report?;
    if args.json { output::print_json(&report) } else { output::say(session.display, &text(&report)) }
}

fn text(report: &CompactReport) -> String {
    let mut fields = Fields::default();
    fields.add("image", format_args!("{} {}", kind(report.kind), report.format));
    fields.add("file size", size::exact(report.before.file_size));
    let becomes = if report.dry_run { "would be at most" } else { "is now" };
    fields.add(becomes, size::exact(report.after.file_size));
    fields.add("blocks", format_args!("{} of {}", report.before.blocks, size::human(report.block_size.into())));
    for (name, count) in [
        ("of zeros", report.freed.zero),
        ("not read by anybody", report.freed.unmapped),
        ("free in a file system", report.freed.file_system),
    ] {
        let bytes = count.saturating_mul(report.block_size.into());
        fields.add(name, format_args!("{count}, {}", size::human(bytes)));
    }
    if !report.dry_run {
        fields.add("moved", size::exact(report.moved));
    }
    let mut text = fields.text();
    for note in &report.notes {
        let _ = writeln!(text, "note: {}", output::shown(note));
    }
    for one in &report.volumes {
        let _ = writeln!(text, "{}", output::shown(&volume(one, report.block_size)));
    }
    text
}

fn volume(volume: &CompactVolume, block_size: u32) -> String {
    let place = volume.partition.map_or_else(|| "the whole disk".to_owned(), |number| format!("partition {number}"));
    let system = volume.file_system.map(|name| format!(", {name}")).unwrap_or_default();
    let length = size::human(volume.length);
    match &volume.skipped {
        Some(why) => format!("{place} ({length}{system}): left alone: {why}"),
        None => {
            let given = size::human(volume.blocks.saturating_mul(block_size.into()));
            format!("{place} ({length}{system}): {} free, {given} of it in blocks with data", size::human(volume.free))
        }
    }
}
