//! `vhdkit rescue`.
//!
//! Owns: how a rescue and its map of lost ranges read. Must not know: how anything is rescued.

use crate::Session;
use crate::args::{SourceArgs, TargetFormat, format_of_name};
use crate::commands::create::NewKind;
use crate::commands::info::Fields;
use crate::output::{self, Failure, shown};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use vhdkit::ops::{self, LostRange, RescueOptions, RescueReport};
use vhdkit::{DiskKind, Error, ErrorKind, Watch};

/// How many lost ranges a person is shown.
const SHOWN: usize = 20;

const EXAMPLES: &str = "\
Reads what can be read of a truncated or damaged image, over its parents, into a new sound image; the source is opened for
reading only and never written. Bad headers, footers, tables and logs are made up in memory from what is left, and what was
assumed for that is said. Where the medium fails it is read again in pieces as small as a sector.

A differencing image whose parents are gone is read with --alone: the map then also lists the ranges that are theirs.
A fixed VHD without any footer is nothing but its bytes: read it with -f raw.

Exit codes:
    0  everything was read
    1  something is lost: the ranges are listed, and hold zeros or the --fill pattern; or a log that may have held
       updates could not be applied
  and the ones of every verb; 4 when too little is left to tell which bytes belong where.

Examples:
    vhdkit rescue broken.vhdx new.vhdx --map-file lost.json
    vhdkit rescue cut.vhd disk.raw --fill deadbeef
    vhdkit rescue leaf.avhdx what-it-holds.vhdx --alone
    vhdkit rescue -f raw nofooter.vhd new.vhd";

/// The arguments of `rescue`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RescueArgs {
    /// The damaged image; its parents are read too
    source: PathBuf,
    /// The new image
    target: PathBuf,
    /// The format of the new image [default: what the name ends in]
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<TargetFormat>,
    /// fixed or dynamic [default: dynamic, raw is always fixed]
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    kind: Option<NewKind>,
    /// Bytes per block of the new image [default: VHD 2M, VHDX 32M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    block_size: Option<u32>,
    /// What lost ranges hold, in hexadecimal digits, over and over [default: zeros]
    #[arg(long, value_name = "HEX", value_parser = fill)]
    fill: Option<Fill>,
    /// Only what this file holds itself: parents are not opened
    #[arg(long)]
    alone: bool,
    /// Write the ranges that are lost, or a parent's, to this file as JSON
    #[arg(long, value_name = "OUT.json")]
    map_file: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) from: SourceArgs,
}

/// A pattern.
#[derive(Clone, Debug)]
struct Fill(Vec<u8>);

fn fill(text: &str) -> Result<Fill, String> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).filter_map(|digit| digit.try_into().ok()).collect();
    if digits.len() != text.chars().count() || digits.is_empty() || !digits.len().is_multiple_of(2) {
        return Err("an even number of hexadecimal digits, such as 00, ff or deadbeef".to_owned());
    }
    Ok(Fill(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
}

/// The map of what was not read.
#[derive(Serialize)]
struct LossMap<'a> {
    virtual_size: u64,
    lost: &'a [LostRange],
    absent: Vec<Absent>,
}

#[derive(Serialize)]
struct Absent {
    offset: u64,
    length: u64,
}

/// Does it.
///
/// # Errors
/// Those of the rescue; `Found` when something is lost.
pub(crate) fn run(args: &RescueArgs, session: &Session) -> Result<(), Failure> {
    let format = match args.output_format {
        Some(format) => format.into(),
        None => format_of_name(&args.target, "-O")?,
    };
    let mut options = RescueOptions::new(format).alone(args.alone).overwrite(args.force).chain(args.from.options());
    if let Some(kind) = args.kind {
        options = options.kind(DiskKind::from(kind));
    }
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    if let Some(Fill(pattern)) = &args.fill {
        options = options.fill(pattern.clone());
    }
    if let Some(map) = args.map_file.as_deref().filter(|map| !args.force && fs::symlink_metadata(map).is_ok()) {
        return Err(Error::new(ErrorKind::Refused, "the file exists already")
            .with_path(map)
            .with_hint("choose another name for the map, or have it replaced with --force")
            .into());
    }
    let reporter = Reporter::new(session.display, args.json);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let done = ops::rescue(&args.source, &args.target, &options, &watch);
    drop(reporter);
    let report = done.map_err(|error| match error.kind() {
        ErrorKind::Cancelled => error.with_path(&args.target).with_hint("no new image was made"),
        _ => error,
    })?;
    if let Some(map) = &args.map_file {
        write_map(map, &report)?;
    }
    if args.json {
        output::print_json(&report)?;
    } else {
        output::say(session.display, &text(&report))?;
    }
    if report.is_whole() { Ok(()) } else { Err(Failure::Found) }
}

fn write_map(path: &Path, report: &RescueReport) -> Result<(), Failure> {
    let absent = report.absent.iter();
    let map = LossMap {
        virtual_size: report.virtual_size,
        lost: &report.lost,
        absent: absent.map(|range| Absent { offset: range.start, length: range.end - range.start }).collect(),
    };
    let failed = |error| Error::io("write the map", error).with_path(path);
    let text = serde_json::to_vec_pretty(&map).map_err(|error| failed(error.into()))?;
    let mut file = File::create(path).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(())
}

fn text(report: &RescueReport) -> String {
    let mut fields = Fields::default();
    fields.add("made", report.target.display());
    fields.add("disk size", size::exact(report.virtual_size));
    fields.add("read", size::exact(report.read));
    for file in &report.files {
        for one in &file.assumptions {
            fields.add("assumed", format_args!("{}: {}", one.structure.name(), shown(&one.assumed)));
            fields.add("  because", shown(&one.why));
            if one.may_lose {
                fields.add("  lost", "perhaps something, in places that nobody can name");
            }
        }
        for one in &file.doubts {
            fields.add("in doubt", shown(&one.problem.to_string()));
        }
    }
    let absent: u64 = report.absent.iter().map(|range| range.end - range.start).sum();
    if absent > 0 {
        fields.add("a parent's", format_args!("{} in {} ranges", size::exact(absent), report.absent.len()));
    }
    if report.lost.is_empty() {
        fields.add("lost", "nothing");
    }
    for lost in report.lost.iter().take(SHOWN) {
        let (start, len) = (lost.offset, size::exact(lost.length));
        fields.add("lost", format_args!("disk offset {start:#x} to {:#x}, {len}", start + lost.length));
        if !lost.error.is_empty() {
            fields.add("  because", shown(&lost.error));
        }
    }
    if report.lost.len() > SHOWN {
        fields.add("lost", format_args!("... and {} more ranges", report.lost.len() - SHOWN));
    }
    if !report.lost.is_empty() {
        fields.add("lost in all", size::exact(report.lost_bytes));
    }
    fields.text()
}
