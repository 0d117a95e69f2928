//! The command line as data.
//!
//! Owns: the verbs, the options that several of them share, and what those mean to the library. Must not know: what a
//! verb does.

use crate::Session;
use crate::commands::chain::{self, ChainArgs};
use crate::commands::check::{self, CheckArgs};
use crate::commands::convert::{self, ConvertArgs};
use crate::commands::create::{self, CreateArgs};
use crate::commands::info::{self, InfoArgs};
use crate::commands::merge::{self, MergeArgs};
use crate::commands::read::{self, ReadArgs};
use crate::commands::repair::{self, RepairArgs};
use crate::commands::reparent::{self, ReparentArgs};
use crate::commands::write::{self, WriteArgs};
use crate::interrupt::OnSignal;
use crate::output::{self, Failure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use vhdkit::chain::{ChainOptions, ParentPolicy, PathMap};
use vhdkit::storage::Access;
use vhdkit::{ErrorKind, Format, Result};

const AFTER_HELP: &str = "\
Sizes are bytes, or take a unit: 512, 64K, 10G, 1.5T (powers of 1024).
The leaf of a chain is depth 1, its parent depth 2, and so on.

Exit codes:
    0  done
    1  something was found: check and repair, an error that stays; chain, an image that does not open
    2  wrong arguments
    3  reading or writing failed: no such file, no space, read-only, I/O error
    4  the image is damaged, of no known format, or needs something unsupported
    5  the chain does not fit: parent missing, changed or not allowed, wrong depth
    6  refused, because going on could lose data: file exists, file in use, siblings
  130  stopped by a signal

Examples:
    vhdkit info --chain leaf.vhdx
    vhdkit create --size 10G disk.vhdx
    vhdkit convert leaf.vhdx flat.raw
    vhdkit merge leaf.vhdx --depth 1 --dry-run
    vhdkit info --chain leaf.vhdx --map 'D:\\VMs=/srv/vms' --search /backup
    vhdkit chain /srv/vms
    vhdkit check --chain leaf.vhdx";

/// Read, write, create and merge VHD and VHDX virtual disks and their differencing chains.
#[derive(Debug, Parser)]
#[command(name = "vhdkit", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) display: DisplayArgs,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show what an image is, and what its parents are
    Info(InfoArgs),
    /// Make a new image
    Create(CreateArgs),
    /// Write bytes of a disk to standard output
    Read(ReadArgs),
    /// Write standard input into a disk
    Write(WriteArgs),
    /// Write what a chain shows to one new image, or to standard output
    Convert(ConvertArgs),
    /// Merge files of a chain into one of their ancestors, in place
    Merge(MergeArgs),
    /// Point a child at another parent file
    Reparent(ReparentArgs),
    /// Draw every image below a directory: who stands on whom, what is missing, what would help
    Chain(ChainArgs),
    /// Look for everything that is wrong with an image, or with every file of its chain
    Check(CheckArgs),
    /// Mend what can be mended, with a way back
    Repair(RepairArgs),
}

impl Verb {
    /// Does it.
    ///
    /// # Errors
    /// Those of the verb.
    pub(crate) fn run(&self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Info(args) => info::run(args),
            Self::Create(args) => create::run(args, session),
            Self::Read(args) => read::run(args, session).map_err(|failure| args.source.explain(failure)),
            Self::Write(args) => write::run(args, session),
            Self::Convert(args) => convert::run(args, session).map_err(|failure| args.from.explain(failure)),
            Self::Merge(args) => merge::run(args, session),
            Self::Reparent(args) => reparent::run(args, session),
            Self::Chain(args) => chain::run(args),
            Self::Check(args) => check::run(args),
            Self::Repair(args) => repair::run(args, session),
        }
    }

    /// What SIGINT and SIGTERM do to it.
    pub(crate) fn on_signal(&self) -> OnSignal {
        let state = match self {
            // A link is written whole or not at all, wherever the writing stops.
            Self::Info(_) | Self::Read(_) | Self::Chain(_) | Self::Check(_) | Self::Reparent(_) => {
                return OnSignal::Exit;
            }
            Self::Convert(args) if args.to_stdout() => return OnSignal::Exit,
            Self::Create(_) | Self::Convert(_) => "the new image was not made; a hidden .partial file may be left",
            Self::Write(_) => "the disk holds part of the input",
            Self::Repair(_) => "run the same repair again to finish it, or with --undo to take it back",
            Self::Merge(_) => "the source still shows what it showed; run the same merge again to finish it",
        };
        OnSignal::Cancel { state }
    }
}

/// What the person wants to see besides the answer.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Display")]
pub(crate) struct DisplayArgs {
    /// Progress on standard error: a bar on a terminal, nothing, or one JSON object per line
    #[arg(long, global = true, value_enum, value_name = "HOW", default_value = "auto")]
    pub(crate) progress: ProgressMode,
    /// Say nothing but errors and what was asked for
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar when standard error is a terminal and the answer is for a person
    Auto,
    /// Nothing
    None,
    /// JSON lines
    Json,
}

/// Where parents may come from.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Parents")]
pub(crate) struct ParentArgs {
    /// The file of the next parent, whatever the images say; repeat it for further ones, nearest the leaf first. Its
    /// identity is checked all the same
    #[arg(long = "parent", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) places: PlaceArgs,
}

/// Where parents may come from when they are not named.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Parents")]
pub(crate) struct PlaceArgs {
    /// Which files an image may name as its parent: those in its own directory (same-dir), those below a directory
    /// (under=DIR), any file (any), or only those given with --parent (none)
    #[arg(long = "parents", value_name = "POLICY", default_value = "same-dir", value_parser = policy)]
    policy: ParentPolicy,
    /// The Windows directory FROM, as images spell it, is DIR here; repeatable. FROM is a drive, a share, or a directory
    /// of one ('D:\VMs', '\\srv\share'), with or without \\?\, in any case. Files below DIR may then be opened
    #[arg(long = "map", value_name = "FROM=DIR", value_parser = map)]
    maps: Vec<PathMap>,
    /// Search DIR and everything below it, by identity, for parents that no path leads to; repeatable. Files below DIR
    /// may then be opened
    #[arg(long = "search", value_name = "DIR", value_parser = directory)]
    pub(crate) search: Vec<PathBuf>,
}

impl PlaceArgs {
    /// How a chain is opened.
    pub(crate) fn options(&self) -> ChainOptions {
        let options = ChainOptions::new().policy(self.policy.clone());
        let options = self.maps.iter().cloned().fold(options, ChainOptions::path_map);
        self.search.iter().fold(options, ChainOptions::search)
    }
}

impl ParentArgs {
    /// How a chain is opened, all `--parent` files counting as parents of its leaf.
    pub(crate) fn options(&self) -> ChainOptions {
        self.options_after(0)
    }

    /// As [`options`](Self::options), the first `used` files being spoken for.
    pub(crate) fn options_after(&self, used: usize) -> ChainOptions {
        self.files.iter().skip(used).fold(self.places.options(), ChainOptions::parent)
    }
}

/// `FROM=DIR`, cut at the first `=`: a directory here may have one in its name.
fn map(text: &str) -> Result<PathMap, String> {
    let (from, to) = text.split_once('=').ok_or("use FROM=DIR, such as 'D:\\VMs=/srv/vms'")?;
    PathMap::new(from, directory(to)?).map_err(|error| error.to_string())
}

fn directory(text: &str) -> Result<PathBuf, String> {
    if Path::new(text).is_dir() { Ok(text.into()) } else { Err(format!("{text:?} is not a directory")) }
}

fn policy(text: &str) -> Result<ParentPolicy, String> {
    match text.split_once('=') {
        None if text == "same-dir" => Ok(ParentPolicy::SameDirectory),
        None if text == "any" => Ok(ParentPolicy::Anywhere),
        None if text == "none" => Ok(ParentPolicy::Explicit),
        Some(("under", name)) => directory(name).map(ParentPolicy::Under),
        _ => Err("use same-dir, under=DIR, any or none".to_owned()),
    }
}

/// A chain that is only read.
#[derive(Clone, Debug, Args)]
pub(crate) struct SourceArgs {
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
    #[command(flatten)]
    pub(crate) raw: RawArgs,
    /// Do not lock the files: they can be read while a writer has them open, and what is shown is whatever it has got to
    #[arg(long)]
    pub(crate) no_lock: bool,
    /// Open every file for reading only. This verb never does otherwise; a dirty log is replayed in memory
    #[arg(long)]
    pub(crate) read_only: bool,
}

impl SourceArgs {
    /// How the chain is opened.
    pub(crate) fn options(&self) -> ChainOptions {
        self.parents.options().raw(self.raw.is_raw()).locked(!self.no_lock).access(Access::Read)
    }

    /// `failure`, with the likely reason when files were read that somebody may be writing.
    fn explain(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Error(error) if self.no_lock && error.kind() != ErrorKind::InvalidInput => Failure::Error(
                error.with_hint("read without a lock: if a program is writing the chain just now, try once more"),
            ),
            other => other,
        }
    }
}

/// What the caller knows of the image.
#[derive(Clone, Debug, Args)]
pub(crate) struct RawArgs {
    /// The image is a raw disk. VHD and VHDX are recognised; a raw disk never is
    #[arg(short = 'f', long = "source-format", value_name = "FORMAT")]
    format: Option<SourceFormat>,
}

impl RawArgs {
    /// Whether the image is a raw disk.
    pub(crate) fn is_raw(&self) -> bool {
        self.format.is_some()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SourceFormat {
    /// A flat file
    Raw,
}

/// A format of `convert`'s target.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TargetFormat {
    /// A flat file
    Raw,
    /// VHD, up to 2040 GiB
    Vhd,
    /// VHDX, up to 64 TiB
    Vhdx,
}

impl From<TargetFormat> for Format {
    fn from(format: TargetFormat) -> Self {
        match format {
            TargetFormat::Raw => Self::Raw,
            TargetFormat::Vhd => Self::Vhd,
            TargetFormat::Vhdx => Self::Vhdx,
        }
    }
}

/// The format that the name of a new file means.
///
/// # Errors
/// `InvalidInput`: the name ends in none of .vhd, .vhdx, .raw, .img.
pub(crate) fn format_of_name(path: &Path, option: &str) -> Result<Format> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("vhd") => Ok(Format::Vhd),
        Some("vhdx") => Ok(Format::Vhdx),
        Some("raw" | "img") => Ok(Format::Raw),
        _ => {
            let error = output::usage("the name does not say which format the new image is to have").with_path(path);
            Err(error.with_hint(format_args!("say it with {option}, or let the name end in .vhd or .vhdx")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn policies_are_read() {
        assert_eq!(policy("same-dir"), Ok(ParentPolicy::SameDirectory));
        assert_eq!(policy("any"), Ok(ParentPolicy::Anywhere));
        assert_eq!(policy("none"), Ok(ParentPolicy::Explicit));
        assert_eq!(policy("under=/"), Ok(ParentPolicy::Under("/".into())));
        assert!(policy("under=/no/such/directory").is_err());
        assert!(policy("under").is_err());
        assert!(policy("same-dir=x").is_err());
    }

    #[test]
    fn maps_are_read() {
        assert_eq!(map("D:\\VMs=/"), PathMap::new("D:\\VMs", "/").map_err(|error| error.to_string()));
        assert!(map("\\\\srv\\share=/").is_ok());
        for wrong in ["", "D:\\VMs", "D:\\VMs=", "D:\\VMs=/no/such/directory", "VMs=/", "=/"] {
            assert!(map(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_say_the_format() {
        let format = |name: &str| format_of_name(Path::new(name), "-O").ok();
        assert_eq!(format("a.vhd"), Some(Format::Vhd));
        assert_eq!(format("dir.d/A.VHDX"), Some(Format::Vhdx));
        assert_eq!(format("a.raw"), Some(Format::Raw));
        assert_eq!(format("a.img"), Some(Format::Raw));
        assert_eq!(format("a.vhdx.bak"), None);
        assert_eq!(format("vhd"), None);
    }
}
