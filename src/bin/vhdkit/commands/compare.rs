//! `vhdkit compare`.
//!
//! Owns: how a person reads whether two disks are the same. Must not know: how it is found out.

use crate::Session;
use crate::args::PairArgs;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::ops::{self, CompareOptions, CompareReport, DifferingRange};

const EXAMPLES: &str = "\
Compares what the two show, whatever formats and chains it is stored in. What both maps prove to be the same is not
read: zeros on both sides, and files the two chains share.

Disks of different sizes differ. With --pad the shorter one counts as followed by zeros.

Exit codes:
    0  the same
    1  different
  and the ones of every verb when one of them cannot be read.

Examples:
    vhdkit compare leaf.vhdx flat.vhd
    vhdkit compare --report before.vhdx after.vhdx    every range that differs, in sectors of 512 bytes
    vhdkit compare -F raw disk.vhdx disk.img
    vhdkit compare --json a.vhd b.vhd | jq '.ranges[]'";

/// The arguments of `compare`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompareArgs {
    /// The first image; its parents are read too
    image: PathBuf,
    /// The second image; its parents are read too
    other: PathBuf,
    /// List every range that differs, instead of ending at the first
    #[arg(long)]
    report: bool,
    /// Take the shorter disk as followed by zeros
    #[arg(long)]
    pad: bool,
    /// Answer in JSON, with every range that differs
    #[arg(long)]
    json: bool,
    /// How many threads read [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    jobs: usize,
    #[command(flatten)]
    pair: PairArgs,
}

/// Does it.
///
/// # Errors
/// Those of reading either; `Found` when they differ.
pub(crate) fn run(args: &CompareArgs, session: &Session) -> Result<(), Failure> {
    let [one, other] = args.pair.open(&args.image, &args.other)?;
    let options = CompareOptions::new().jobs(args.jobs).all(args.report || args.json).pad_with_zeros(args.pad);
    let reporter = Reporter::new(session.display, args.json);
    let done = ops::compare(&one, &other, &options, &Watch::none().observer(&reporter).cancel(&session.cancel));
    drop(reporter);
    let report = done?;
    if args.json {
        output::print_json(&report)?;
    } else if args.report {
        output::print(&(ranges(&report) + &verdict(&report)))?;
    } else {
        output::say(session.display, &verdict(&report))?;
    }
    if report.equal { Ok(()) } else { Err(Failure::Found) }
}

fn ranges(report: &CompareReport) -> String {
    let mut text = String::new();
    if !report.ranges.is_empty() {
        let _ = writeln!(text, "{:>20} {:>20}", "offset", "length");
    }
    for DifferingRange { offset, length } in &report.ranges {
        let _ = writeln!(text, "{offset:>20} {length:>20}");
    }
    if report.ranges_left_out > 0 {
        let _ = writeln!(text, "and {} more", report.ranges_left_out);
    }
    text
}

fn verdict(report: &CompareReport) -> String {
    let CompareReport { virtual_size, other_virtual_size, differing, .. } = *report;
    let sizes = (virtual_size != other_virtual_size).then(|| {
        format!("the first disk has {}, the second {}", size::exact(virtual_size), size::exact(other_virtual_size))
    });
    let whole = report.examined == virtual_size.max(other_virtual_size);
    match (report.equal, report.ranges.first(), sizes) {
        (true, _, None) => format!("the same: {}\n", size::exact(virtual_size)),
        (true, _, Some(sizes)) => format!("the same but for zeros at the end: {sizes}\n"),
        (false, None, sizes) => {
            format!("different sizes: {}; the longer one only adds zeros\n", sizes.unwrap_or_default())
        }
        (false, Some(first), sizes) => {
            let more = if whole { format!(", {} in all", size::exact(differing)) } else { String::new() };
            let sizes = sizes.map(|sizes| format!("; {sizes}")).unwrap_or_default();
            format!("different from byte {} on, in sectors of 512 bytes{more}{sizes}\n", first.offset)
        }
    }
}
