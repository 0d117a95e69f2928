//! `vhdkit convert`.
//!
//! Owns: where a converted disk goes: to a new file, or raw to standard output. Must not know: how bytes move.

use crate::Session;
use crate::args::{SourceArgs, TargetFormat, format_of_name};
use crate::commands::create::NewKind;
use crate::input::{self, Stream};
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use std::fs::{self, File};
use std::io::{IsTerminal, Seek};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::ops::{self, ConvertOptions, ConvertReport};
use vhdkit::storage::{Access, FileStorage, Lock};
use vhdkit::{DiskKind, Error, ErrorKind, Format, Watch};

const EXAMPLES: &str = "\
The new file appears under its name only when it is complete.

--from-depth and --to-depth convert only what the files between two points of the chain hold. A part that does not reach
the base becomes a differencing image over the file below it, or over an empty --stand-in to be carried elsewhere;
--type dynamic, --type fixed and -O raw make it flat, with zeros for what those files do not hold.

Examples:
    vhdkit convert leaf.vhdx flat.raw                 a whole chain into one raw file
    vhdkit convert -f raw flat.img disk.vhdx
    vhdkit convert disk.vhd disk.vhdx --block-size 1M
    vhdkit convert -O vhd --type fixed leaf.vhdx disk.vhd --preallocate --verify
    vhdkit convert --azure leaf.vhdx upload.vhd       a fixed VHD of whole MiB, as Azure takes it
    vhdkit convert leaf.vhdx - | sha256sum
    zcat disk.img.gz | vhdkit convert -f raw - disk.vhdx
    vhdkit convert leaf.vhdx week.vhdx --to-depth 3 --stand-in empty.vhdx";

/// The arguments of `convert`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConvertArgs {
    /// The image; its parents are read too. With -f raw also a pipe, or - for standard input
    source: PathBuf,
    /// The new image, or - for raw bytes on standard output
    target: PathBuf,
    /// The format of the new image [default: what the name ends in; raw for -]
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<TargetFormat>,
    /// fixed, dynamic or differencing [default: dynamic, raw is always fixed, a part above the base differencing]
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    kind: Option<NewKind>,
    /// Bytes per block of the new image [default: VHD 2M, VHDX 32M, differencing images as their parent]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    block_size: Option<u32>,
    /// The size of the new disk, not less than the source's: the rest is zeros [default: the source's]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<u64>,
    /// A fixed VHD as Azure takes it: whole MiB, from 20 MiB to 32767 GiB; zeros make up for what is missing
    #[arg(long, conflicts_with_all = ["output_format", "kind", "block_size"])]
    azure: bool,
    /// Convert only what the files from this depth on hold; the leaf is 1
    #[arg(long, value_name = "N", default_value = "1", hide_default_value = true)]
    from_depth: usize,
    /// Convert only what the files down to this depth hold [default: the base]
    #[arg(long, value_name = "N")]
    to_depth: Option<usize>,
    /// Make FILE, an empty image, the parent of the new differencing one
    #[arg(long, value_name = "FILE")]
    stand_in: Option<PathBuf>,
    /// Reserve the space of the whole file before copying; raw and fixed images
    #[arg(long)]
    preallocate: bool,
    /// Read the new image back and compare it before it gets its name
    #[arg(long)]
    verify: bool,
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
    if args.to_stdout() {
        return to_stdout(args, session);
    }
    let options = args.options()?;
    let reporter;
    let done = match args.source()? {
        Source::Chain(chain) => {
            refuse_own_file(&chain, &args.target)?;
            reporter = Reporter::new(session.display, false);
            let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
            ops::convert(&chain, &args.target, &options, &watch)
        }
        Source::Stream(file) => {
            reporter = Reporter::new(session.display, false);
            let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
            let mut input = Stream::new(file, 0, &session.cancel);
            ops::convert_stream(&mut input, &args.target, &options, &watch)
        }
    };
    drop(reporter);
    let report = done.map_err(|error| match error.kind() {
        ErrorKind::Cancelled => error.with_path(&args.target).with_hint("no new image was made"),
        _ => error,
    })?;
    output::say(session.display, &args.text(&report)?)
}

/// Where the bytes come from.
enum Source {
    Chain(Chain),
    /// A pipe, or what is left of a file.
    Stream(File),
}

impl ConvertArgs {
    fn options(&self) -> vhdkit::Result<ConvertOptions> {
        let mut options = if self.azure { ConvertOptions::azure() } else { ConvertOptions::new(self.format()?) };
        options = options.jobs(self.jobs).scan_zeros(!self.no_zero_scan).overwrite(self.force);
        options = options.preallocate(self.preallocate).verify(self.verify).depths(self.from_depth, self.to_depth);
        if let Some(kind) = self.kind {
            options = options.kind(DiskKind::from(kind));
        }
        if let Some(bytes) = self.block_size {
            options = options.block_size(bytes);
        }
        if let Some(bytes) = self.size {
            options = options.size(bytes);
        }
        if let Some(path) = &self.stand_in {
            options = options.stand_in(path);
        }
        Ok(options)
    }

    fn source(&self) -> Result<Source, Failure> {
        let raw = self.from.raw.is_raw();
        let stdin = self.source == Path::new("-");
        if !stdin && !fs::metadata(&self.source).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            return Ok(Source::Chain(Chain::open(&self.source, &self.from.options())?));
        }
        if !raw {
            let error = output::usage("only a raw disk can be read from a stream");
            let hint = "say that it is one with -f raw, or save the image to a file first: its tables are all over it";
            return Err(error.with_hint(hint).into());
        }
        if !stdin {
            let file =
                File::open(&self.source).map_err(|error| Error::io("open the pipe", error).with_path(&self.source))?;
            return Ok(Source::Stream(file));
        }
        let mut file = input::stdin()?;
        // A file that nobody has read from yet can be read anywhere: its holes are passed over, by many threads.
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_file || file.stream_position().is_ok_and(|at| at > 0) {
            return Ok(Source::Stream(file));
        }
        let lock = if self.from.no_lock { Lock::None } else { Lock::Shared };
        let storage = FileStorage::from_file(file, Path::new("standard input"), lock)?;
        let layer = Layer::open_raw(Arc::new(storage), Access::Read)?.named("standard input");
        Ok(Source::Chain(Chain::from_layers(vec![layer])?))
    }

    /// What was done, in words.
    fn text(&self, report: &ConvertReport) -> vhdkit::Result<String> {
        let format = if self.azure { Format::Vhd } else { self.format()? };
        let (size, file) = (size::human(report.virtual_size), size::human(report.file_size));
        let name = |path: &Path| output::shown(&path.display().to_string());
        let mut text = format!("made {}: {format}, a disk of {size} in {file}", name(&self.target));
        if let Some(parent) = &report.parent {
            text += &format!(", over {}", name(parent));
        }
        text += if report.verified { "; read back and the same\n" } else { "\n" };
        if report.shared > 0 {
            let (shared, moved) = (size::human(report.shared), size::human(report.moved));
            text += &format!("{shared} of {moved} of data were reflinked, not copied\n");
        }
        if report.padded > 0 {
            let padded = size::exact(report.padded);
            text += &format!(
                "{padded} of zeros were added after the end of the disk, which moves it: mind a GUID partition table's copy there\n"
            );
        }
        Ok(text)
    }
}

fn to_stdout(args: &ConvertArgs, session: &Session) -> Result<(), Failure> {
    let format = if args.azure { Format::Vhd } else { args.format()? };
    if format != Format::Raw {
        let error = output::usage(format_args!("a {format} image cannot be written to standard output"));
        return Err(error.with_hint("its tables are written last; name a file, or use -O raw").into());
    }
    if args.kind.is_some_and(|kind| DiskKind::from(kind) != DiskKind::Fixed) || args.block_size.is_some() {
        return Err(output::usage("a raw disk has no type and no blocks").into());
    }
    if args.size.is_some() || args.stand_in.is_some() || args.preallocate || args.verify {
        return Err(output::usage("--size, --stand-in, --preallocate and --verify are for files").into());
    }
    let Source::Chain(chain) = args.source()? else {
        return Err(output::usage("a raw stream needs no conversion to a raw stream").into());
    };
    let mut out = output::raw_stdout()?;
    let reporter = Reporter::new(session.display, out.is_terminal());
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    ops::write_raw_part(&chain, (args.from_depth, args.to_depth), &mut out, &watch)?;
    Ok(())
}

/// The locks would refuse this too, but only once everything is copied.
fn refuse_own_file(chain: &Chain, target: &Path) -> vhdkit::Result<()> {
    let Ok(real) = fs::canonicalize(target) else { return Ok(()) };
    let same = |path: &Path| fs::canonicalize(path).is_ok_and(|path| path == real);
    if chain.layers().iter().filter_map(|layer| layer.path()).any(same) {
        return Err(Error::new(ErrorKind::Refused, "this file is part of what is being converted")
            .with_path(target)
            .with_hint("give the new image a name of its own"));
    }
    Ok(())
}
