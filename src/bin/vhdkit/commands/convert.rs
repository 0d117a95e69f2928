//! `vhdkit convert`.
//!
//! Owns: where a converted disk goes: to a new file, or raw to standard output. Must not know: how bytes move.

use crate::Session;
use crate::args::{SourceArgs, TargetFormat, format_of_name};
use crate::commands::create::NewKind;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use vhdkit::chain::Chain;
use vhdkit::ops::{self, ConvertOptions};
use vhdkit::{DiskKind, Error, ErrorKind, Format, Watch};

const EXAMPLES: &str = "\
The new file appears under its name only when it is complete.

Examples:
    vhdkit convert leaf.vhdx flat.raw                 a whole chain into one raw file
    vhdkit convert -f raw flat.img disk.vhdx
    vhdkit convert disk.vhd disk.vhdx --block-size 1M
    vhdkit convert -O vhd --type fixed leaf.vhdx disk.vhd
    vhdkit convert leaf.vhdx - | sha256sum";

/// The arguments of `convert`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConvertArgs {
    /// The image; its parents are read too
    source: PathBuf,
    /// The new image, or - for raw bytes on standard output
    target: PathBuf,
    /// The format of the new image [default: what the name ends in; raw for -]
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<TargetFormat>,
    /// fixed or dynamic [default: dynamic, raw is always fixed]
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    kind: Option<NewKind>,
    /// Bytes per block of the new image [default: VHD 2M, VHDX 32M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    block_size: Option<u32>,
    /// How many threads copy [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    jobs: usize,
    /// Copy blocks of zeros instead of leaving them out
    #[arg(long)]
    no_zero_scan: bool,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(crate) from: SourceArgs,
}

impl ConvertArgs {
    /// Whether the bytes go to standard output.
    pub(crate) fn to_stdout(&self) -> bool {
        self.target == Path::new("-")
    }

    fn format(&self) -> vhdkit::Result<Format> {
        match self.output_format {
            Some(format) => Ok(format.into()),
            None if self.to_stdout() => Ok(Format::Raw),
            None => format_of_name(&self.target, "-O"),
        }
    }
}

/// Does it.
///
/// # Errors
/// Options that do not fit together; those of reading the chain and writing the target.
pub(crate) fn run(args: &ConvertArgs, session: &Session) -> Result<(), Failure> {
    let format = args.format()?;
    if args.to_stdout() {
        return to_stdout(args, format, session);
    }
    let mut options = ConvertOptions::new(format).jobs(args.jobs).scan_zeros(!args.no_zero_scan).overwrite(args.force);
    if let Some(kind) = args.kind {
        options = options.kind(DiskKind::from(kind));
    }
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    let chain = Chain::open(&args.source, &args.from.options())?;
    refuse_own_file(&chain, &args.target)?;
    let reporter = Reporter::new(session.display, false);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let done = ops::convert(&chain, &args.target, &options, &watch);
    drop(reporter);
    let report = done.map_err(|error| match error.kind() {
        ErrorKind::Cancelled => error.with_path(&args.target).with_hint("no new image was made"),
        _ => error,
    })?;
    let (size, file) = (size::human(report.virtual_size), size::human(report.file_size));
    output::say(session.display, &format!("made {}: {format}, a disk of {size} in {file}\n", args.target.display()))
}

fn to_stdout(args: &ConvertArgs, format: Format, session: &Session) -> Result<(), Failure> {
    if format != Format::Raw {
        let error = output::usage(format_args!("a {format} image cannot be written to standard output"));
        return Err(error.with_hint("its tables are written last; name a file, or use -O raw").into());
    }
    if args.kind.is_some_and(|kind| DiskKind::from(kind) != DiskKind::Fixed) || args.block_size.is_some() {
        return Err(output::usage("a raw disk has no type and no blocks").into());
    }
    let chain = Chain::open(&args.source, &args.from.options())?;
    let mut out = output::raw_stdout()?;
    let reporter = Reporter::new(session.display, out.is_terminal());
    ops::write_raw(&chain, &mut out, &Watch::none().observer(&reporter).cancel(&session.cancel))?;
    Ok(())
}

/// The locks would refuse this too, but only once everything is copied.
fn refuse_own_file(chain: &Chain, target: &Path) -> vhdkit::Result<()> {
    let Ok(real) = fs::canonicalize(target) else { return Ok(()) };
    let same = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path == real);
    if chain.layers().iter().filter_map(|layer| layer.path()).any(same) {
        return Err(Error::new(ErrorKind::Refused, "this file is part of what is being converted").with_path(target));
    }
    Ok(())
}
