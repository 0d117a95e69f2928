//! `vhdkit map`.
//!
//! Owns: how a person reads where the bytes of a disk come from. Must not know: how it is found out.

use crate::args::SourceArgs;
use crate::output::{self, Failure, JsonList};
use crate::size;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use vhdkit::chain::Chain;
use vhdkit::ops::{self, ExtentState};

const EXAMPLES: &str = "\
Says of each run of the disk which file of the chain decides it and why it reads as it does:
    data         the file at that depth holds its bytes, from the file offset on
    zero         the file at that depth says that it is zero
    past-end     the file at that depth ends before it, so it is zero
    unallocated  no file holds it, so it is zero

Examples:
    vhdkit map leaf.vhdx
    vhdkit map leaf.vhdx --offset 1M --length 64K
    vhdkit map --json leaf.vhdx | jq '.extents[] | select(.depth == 1)'";

/// The arguments of `map`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MapArgs {
    /// The image; its parents are mapped too
    image: PathBuf,
    /// Where to start, in bytes of the virtual disk
    #[arg(long, default_value = "0", value_parser = size::parse)]
    offset: u64,
    /// How many bytes [default: up to the end of the disk]
    #[arg(long, value_parser = size::parse)]
    length: Option<u64>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// Does it.
///
/// # Errors
/// Those of opening the chain; maps that cannot be read.
pub(crate) fn run(args: &MapArgs) -> Result<(), Failure> {
    let chain = Chain::open(&args.image, &args.source.options())?;
    let end = args.length.map_or(u64::MAX, |length| args.offset.saturating_add(length));
    if args.json { json(&chain, args.offset..end) } else { text(&chain, args.offset..end) }
}

fn text(chain: &Chain, range: Range<u64>) -> Result<(), Failure> {
    let mut out = output::answer();
    for (layer, depth) in chain.layers().iter().zip(1..) {
        let name = layer.path().map(|path| path.display().to_string()).unwrap_or_default();
        writeln!(out, "depth {depth}  {}", output::shown(&name))?;
    }
    writeln!(out, "{:>18} {:>18}  {:<11} {:>5} {:>18}", "offset", "length", "state", "depth", "file offset")?;
    for extent in ops::map(chain, range) {
        let extent = extent?;
        let state = state(extent.state);
        let depth = extent.depth.map(|depth| depth.to_string()).unwrap_or_default();
        let at = extent.file_offset.map(|at| at.get().to_string()).unwrap_or_default();
        let line = format!("{:>18} {:>18}  {state:<11} {depth:>5} {at:>18}", extent.offset, extent.length);
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(out.flush()?)
}

fn state(state: ExtentState) -> &'static str {
    match state {
        ExtentState::Data => "data",
        ExtentState::Zero => "zero",
        ExtentState::PastEnd => "past-end",
        ExtentState::Unallocated => "unallocated",
        _ => "other",
    }
}

#[derive(Serialize)]
struct Head {
    virtual_size: u64,
    files: Vec<MappedFile>,
}

#[derive(Serialize)]
struct MappedFile {
    depth: usize,
    path: Option<String>,
    virtual_size: u64,
}

fn json(chain: &Chain, range: Range<u64>) -> Result<(), Failure> {
    let file = |(layer, depth): (&vhdkit::chain::Layer, usize)| MappedFile {
        depth,
        path: layer.path().map(|path| path.display().to_string()),
        virtual_size: layer.image().virtual_size(),
    };
    let files = chain.layers().iter().zip(1..).map(file).collect();
    let mut out = output::answer();
    let head = Head { virtual_size: chain.virtual_size(), files };
    let mut list = JsonList::start(&mut out, &head, "extents")?;
    for extent in ops::map(chain, range) {
        list.add(&extent?)?;
    }
    list.end()
}
