//! The command line as data.
//!
//! Owns: the verbs, and what a signal does to each. Must not know: what a verb does; what the options that several of
//! them share mean ([`parents`], [`images`], [`pair`]).

mod images;
mod pair;
mod parents;

pub(crate) use images::{RawArgs, SourceArgs, TargetFormat, format_of_name};
pub(crate) use pair::PairArgs;
pub(crate) use parents::{ParentArgs, PlaceArgs};

use crate::Session;
use crate::commands::chain::{self, ChainArgs};
use crate::commands::changes::{self, ChangesArgs};
use crate::commands::check::{self, CheckArgs};
use crate::commands::compact::{self, CompactArgs};
use crate::commands::compare::{self, CompareArgs};
use crate::commands::convert::{self, ConvertArgs};
use crate::commands::create::{self, CreateArgs};
use crate::commands::hash::{self, HashArgs};
use crate::commands::import::{self, AdoptArgs, ExportArgs, ImportArgs, ImportsArgs};
use crate::commands::info::{self, InfoArgs};
use crate::commands::map::{self, MapArgs};
use crate::commands::merge::{self, MergeArgs};
use crate::commands::metadata::{self, MetadataArgs};
use crate::commands::read::{self, ReadArgs};
use crate::commands::repair::{self, RepairArgs};
use crate::commands::reparent::{self, ReparentArgs};
use crate::commands::replica::{self, GroupArgs, ReplicaArgs};
use crate::commands::rescue::{self, RescueArgs};
use crate::commands::resize::{self, ResizeArgs};
use crate::commands::resync::{self, ResyncArgs};
use crate::commands::session::SessionArgs;
use crate::commands::set::{self, SetArgs};
use crate::commands::snapshot::{self, SnapshotArgs};
use crate::commands::snapshot_set::{self, SnapshotSetArgs};
use crate::commands::standalone::{self, BreakArgs};
use crate::commands::write::{self, WriteArgs};
use crate::interrupt::OnSignal;
use crate::output::Failure;
use clap::{Args, Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
Sizes are bytes, or take a unit: 512, 64K, 10G, 1.5T (powers of 1024).
The leaf of a chain is depth 1, its parent depth 2, and so on.

Exit codes:
    0  done
    1  something was found: check and repair, an error that stays; chain, an image that does not open;
       compare, a difference; rescue, a loss
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
    vhdkit snapshot disk.vhdx
    vhdkit resize disk.vhdx +10G --fix-gpt
    vhdkit chain /srv/vms
    vhdkit check --chain leaf.vhdx";

/// Read, write, create and merge VHD and VHDX virtual disks and their differencing chains.
#[derive(Debug, Parser)]
#[command(name = "vhdkit", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) display: DisplayArgs,
    /// This run is the background of another one, and says to it which states are reached
    #[arg(long, hide = true)]
    pub(crate) job: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
// Only the verb that is called has its arguments made: building all of them was half the time of a short run.
#[command(defer = true)]
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
    /// Tell whether two disks hold the same bytes
    Compare(CompareArgs),
    /// Print the digest of a disk
    Hash(HashArgs),
    /// Show where each byte of a disk comes from
    Map(MapArgs),
    /// List the sectors in which two points of a chain can differ
    Changes(ChangesArgs),
    /// Merge files of a chain into one of their ancestors, in place
    Merge(MergeArgs),
    /// Put a new, empty child on a chain: what is written from now on goes there
    Snapshot(SnapshotArgs),
    /// Give a disk another size, in place
    Resize(ResizeArgs),
    /// Change the ids and the physical sector size of an image
    Set(SetArgs),
    /// List, read, write and delete the items of metadata in a VHDX
    Metadata(MetadataArgs),
    /// Make an image's file as short as what it holds, in place
    Compact(CompactArgs),
    /// Point a child at another parent file
    Reparent(ReparentArgs),
    /// Draw every image below a directory: who stands on whom, what is missing, what would help
    Chain(ChainArgs),
    /// Look for everything that is wrong with an image, or with every file of its chain
    Check(CheckArgs),
    /// Mend what can be mended, with a way back
    Repair(RepairArgs),
    /// Make disks show what other disks show, moving only what differs
    Resync(ResyncArgs),
    /// Keep copies of disks: mirrors, clones and snapshots with their states
    Replica(ReplicaArgs),
    /// Keep relations together
    Group(GroupArgs),
    /// Describe chains in a manifest that goes with their files to another machine
    Export(ExportArgs),
    /// Find the files of a manifest and make their chains open here
    Import(ImportArgs),
    /// Make the chains open whose files lie in a directory, wherever they came from
    Adopt(AdoptArgs),
    /// Show what imports wrote, or take it back
    Imports(ImportsArgs),
    /// Flatten a chain into one image that is independent of it
    Break(BreakArgs),
    /// Give each of several disks a new leaf: all of them or none
    SnapshotSet(SnapshotSetArgs),
    /// Show or end snapshot sets whose program died
    Session(SessionArgs),
    /// Read what can be read of a damaged image into a new one
    Rescue(RescueArgs),
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
            Self::Compare(args) => compare::run(args, session),
            Self::Hash(args) => hash::run(args, session).map_err(|failure| args.source.explain(failure)),
            Self::Map(args) => map::run(args, session).map_err(|failure| args.source.explain(failure)),
            Self::Changes(args) => changes::run(args),
            Self::Merge(args) => merge::run(args, session),
            Self::Snapshot(args) => snapshot::run(args, session),
            Self::Resize(args) => resize::run(args, session),
            Self::Set(args) => set::run(args, session),
            Self::Metadata(args) => metadata::run(args, session),
            Self::Compact(args) => compact::run(args, session),
            Self::Reparent(args) => reparent::run(args, session),
            Self::Chain(args) => chain::run(args),
            Self::Check(args) => check::run(args),
            Self::Repair(args) => repair::run(args, session),
            Self::Resync(args) => resync::run(args, session),
            Self::Replica(args) => replica::run(args, session),
            Self::Group(args) => replica::group(args, session),
            Self::Export(args) => import::export(args, session),
            Self::Import(args) => import::import(args, session),
            Self::Adopt(args) => import::adopt(args, session),
            Self::Imports(args) => import::imports(args, session),
            Self::Break(args) => standalone::run(args, session).map_err(|failure| args.from.explain(failure)),
            Self::SnapshotSet(args) => snapshot_set::run(args, session),
            Self::Session(args) => crate::commands::session::run(args, session),
            Self::Rescue(args) => rescue::run(args, session).map_err(|failure| args.from.explain(failure)),
        }
    }

    /// What SIGINT and SIGTERM do to it.
    pub(crate) fn on_signal(&self) -> OnSignal {
        let state = match self {
            // A link is written whole or not at all, wherever the writing stops.
            Self::Info(_) | Self::Read(_) | Self::Chain(_) | Self::Check(_) | Self::Reparent(_) => {
                return OnSignal::Exit;
            }
            Self::Compare(_) | Self::Hash(_) | Self::Map(_) | Self::Changes(_) => return OnSignal::Exit,
            Self::Convert(args) if args.to_stdout() => return OnSignal::Exit,
            Self::Export(_) | Self::Imports(_) => return OnSignal::Exit,
            Self::Metadata(args) if args.only_reads() => return OnSignal::Exit,
            Self::Set(_) | Self::Metadata(_) => "run the same change again, with --relink if it had that",
            Self::Resize(_) => "the disk has the old size or the new one; run the same resize again to finish it",
            Self::Create(_) | Self::Convert(_) | Self::Rescue(_) | Self::Snapshot(_) | Self::Break(_) => {
                "the new image was not made; a hidden .partial file may be left"
            }
            Self::Write(_) => "the disk holds part of the input",
            Self::Import(_) | Self::Adopt(_) => "links that were written are right; run the same import again",
            Self::Replica(_) | Self::Group(_) => "run the same operation again to finish it",
            Self::Resync(_) => "the target holds parts of two disks; run the same resync again to finish it",
            Self::Compact(_) => "the disk shows what it showed; run the same again to finish it",
            Self::Repair(_) => "run the same repair again to finish it, or with --undo to take it back",
            Self::SnapshotSet(_) | Self::Session(_) => {
                "`vhdkit session recover` ends what the set had begun, and releases whom it had told"
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
