//! `vhdkit resize`.
//!
//! Owns: the ways to name a size, and how the result reads. Must not know: how a disk is resized.

use crate::Session;
use crate::args::{ParentArgs, RawArgs};
use crate::commands::info::{Fields, kind, name};
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::{ArgGroup, Args};
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::guest::TableKind;
use vhdkit::ops::{self, GptState, ResizeOptions, ResizeReport};

const EXAMPLES: &str = "\
New space reads as zeros, also where a longer parent holds something. What is cut off is gone: growing again shows
zeros. Partitions past the new end, and on a disk without a partition table any data there, are a reason to refuse
(ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA). After an interruption run the same resize again; a size given as a difference
counts from what the disk has then.

Examples:
    vhdkit resize disk.vhdx 100G --fix-gpt         grow, and move the backup partition table to the new end
    vhdkit resize disk.vhdx +10G                   by 10 GiB
    vhdkit resize disk.vhd --to-minimum --dry-run  how small the partitions let it be
    vhdkit resize disk.vhdx --fix-gpt              only the table, after a growth without it
    vhdkit resize -f raw disk.img 20G";

/// The arguments of `resize`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("how").required(true).multiple(true).args(["size", "to_minimum", "fix_gpt"])))]
pub(crate) struct ResizeArgs {
    /// The image; of a chain, the leaf
    image: PathBuf,
    /// The new size, or by how much: 100G, +10G, -512M
    #[arg(value_parser = new_size, allow_hyphen_values = true, conflicts_with = "to_minimum")]
    size: Option<NewSize>,
    /// As small as its partitions let it be, with room for the backup of a GUID partition table
    #[arg(long)]
    to_minimum: bool,
    /// Cut off what lies past the new end, whatever it is
    #[arg(long)]
    allow_data_loss: bool,
    /// Make a GUID partition table fit: both copies, the protective record, the backup at the end of the disk
    #[arg(long)]
    fix_gpt: bool,
    /// Show what would be done and change nothing; ends as the resize would
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    raw: RawArgs,
    #[command(flatten)]
    parents: ParentArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewSize {
    Exactly(u64),
    More(u64),
    Less(u64),
}

fn new_size(text: &str) -> Result<NewSize, String> {
    match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(more), _) => size::parse(more).map(NewSize::More),
        (_, Some(less)) => size::parse(less).map(NewSize::Less),
        _ => size::parse(text).map(NewSize::Exactly),
    }
}

/// Does it.
///
/// # Errors
/// Those of resizing.
pub(crate) fn run(args: &ResizeArgs, session: &Session) -> Result<(), Failure> {
    let options = match args.size {
        _ if args.to_minimum => ResizeOptions::to_minimum(),
        Some(NewSize::Exactly(bytes)) => ResizeOptions::size(bytes),
        Some(NewSize::More(bytes)) => ResizeOptions::grow_by(bytes),
        Some(NewSize::Less(bytes)) => ResizeOptions::shrink_by(bytes),
        None => ResizeOptions::grow_by(0),
    };
    let options = options
        .allow_data_loss(args.allow_data_loss)
        .fix_gpt(args.fix_gpt)
        .dry_run(args.dry_run)
        .chain(args.parents.options().raw(args.raw.is_raw()));
    let options = args.parents.places.search.iter().fold(options, ResizeOptions::search);
    let reporter = Reporter::new(session.display, args.json);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let report = ops::resize(&args.image, &options, &watch);
    drop(reporter);
    let report = report?;
    output::conclude(&report, (args.json, args.dry_run), session.display, text)
}

fn text(report: &ResizeReport) -> String {
    let mut fields = Fields::default();
    fields.add("image", format_args!("{} ({}, {})", name(report.path.as_deref()), report.format, kind(report.kind)));
    let becomes = |old: u64, new: u64| {
        if old == new {
            format!("{}, as before", size::exact(old))
        } else {
            format!("{} becomes {}", size::exact(old), size::exact(new))
        }
    };
    fields.add("virtual size", becomes(report.old_size, report.new_size));
    fields.add("file", becomes(report.old_file_size, report.new_file_size));
    let table = match report.partition_table {
        TableKind::None => "none",
        TableKind::Mbr => "MBR",
        TableKind::Gpt => "GPT",
        _ => "of another kind",
    };
    fields.add("partition table", table);
    fields.add_some("its partitions need", report.minimum_size.map(size::exact));
    for lost in &report.truncated {
        fields.add("cut off", format_args!("{}, bytes {} to {}", lost.what, lost.start, lost.end));
    }
    fields.add_some(
        "GPT",
        report.gpt.map(|state| match state {
            GptState::Fits => "fits the disk",
            GptState::Fixed => "made to fit the disk",
            GptState::Stale => "does not fit the disk: its backup is not at the end; --fix-gpt moves it",
        }),
    );
    for note in &report.notes {
        fields.add("note", note);
    }
    if !report.written {
        fields.add("written", "no, this was a dry run");
    }
    fields.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_absolute_or_differences() {
        assert_eq!(new_size("10G"), Ok(NewSize::Exactly(10 << 30)));
        assert_eq!(new_size("+1.5M"), Ok(NewSize::More(3 << 19)));
        assert_eq!(new_size("-512"), Ok(NewSize::Less(512)));
        for wrong in ["", "+", "-", "+-1", "--1", "x", "-1x"] {
            assert!(new_size(wrong).is_err(), "{wrong}");
        }
    }
}
