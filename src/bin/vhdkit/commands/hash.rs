//! `vhdkit hash`.
//!
//! Owns: how a digest is printed. Must not know: how it is computed.

use crate::Session;
use crate::args::SourceArgs;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use clap::Args;
use std::path::PathBuf;
use vhdkit::Watch;
use vhdkit::chain::Chain;
use vhdkit::ops::{self, HashKind, HashOptions};

const EXAMPLES: &str = "\
The digest is of the disk, whatever formats and files it is stored in: the same before and after a merge or a conversion.
SHA-256 is what `vhdkit convert IMAGE - | sha256sum` prints. --tree is the Merkle tree hash of RFC 6962 over chunks of
1 MiB: computed by all processors, with zeros for free, so that a sparse disk of many TiB takes seconds.

Examples:
    vhdkit hash leaf.vhdx
    vhdkit hash --tree huge.vhdx
    vhdkit hash --json disk.vhd | jq -r .digest";

/// The arguments of `hash`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HashArgs {
    /// The image; its parents are read too
    image: PathBuf,
    /// The tree hash of RFC 6962 over chunks of 1 MiB, instead of SHA-256
    #[arg(long)]
    tree: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// How many threads work [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    jobs: usize,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// Does it.
///
/// # Errors
/// Those of opening and reading the chain.
pub(crate) fn run(args: &HashArgs, session: &Session) -> Result<(), Failure> {
    let chain = Chain::open(&args.image, &args.source.options())?;
    let kind = if args.tree { HashKind::Tree } else { HashKind::Sha256 };
    let reporter = Reporter::new(session.display, args.json);
    let watch = Watch::none().observer(&reporter).cancel(&session.cancel);
    let done = ops::hash(&chain, &HashOptions::new().kind(kind).jobs(args.jobs), &watch);
    drop(reporter);
    let report = done?;
    if args.json {
        return output::print_json(&report);
    }
    // As `sha256sum` prints it, so that its `--check` reads it; the other digest is named, so that it does not.
    let name = if args.tree { "sha256-tree:" } else { "" };
    output::print(&format!("{name}{}  {}\n", report.digest, output::shown(&args.image.display().to_string())))
}
