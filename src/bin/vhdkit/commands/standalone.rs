//! `vhdkit break`.
//!
//! Owns: what is left out: the format is the leaf's own. Must not know: how bytes move.

use crate::Session;
use crate::args::{SourceArgs, TargetFormat};
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::chain::Chain;
use vhdkit::ops::{self, ConvertOptions};

const EXAMPLES: &str = "\
The new image holds what the chain shows, stands on no other file and has identities of its own; the chain stays.

Examples:
    vhdkit break snapshot.vhdx independent.vhdx
    vhdkit break -O vhd snapshot.vhdx independent.vhd";

/// The arguments of `break`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BreakArgs {
    /// The leaf of the chain
    leaf: PathBuf,
    /// The new image
    image: PathBuf,
    /// The format of the new image [default: the leaf's]
    #[arg(short = 'O', long, value_name = "FORMAT", value_enum)]
    output_format: Option<TargetFormat>,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(crate) from: SourceArgs,
}

/// Does it.
///
/// # Errors
/// Those of reading the chain and writing the image.
pub(crate) fn run(args: &BreakArgs, session: &Session) -> Result<(), Failure> {
    let chain = Chain::open(&args.leaf, &args.from.options())?;
    let format = args.output_format.map_or(chain.leaf().image().format(), Into::into);
    let options = ConvertOptions::new(format).overwrite(args.force);
    let reporter = Reporter::new(session.display, false);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let done = ops::convert(&chain, &args.image, &options, &watch);
    drop(reporter);
    let report = done?;
    let size = size::human(report.virtual_size);
    output::say(session.display, &format!("made {}: {format}, a disk of {size} of its own\n", args.image.display()))
}
