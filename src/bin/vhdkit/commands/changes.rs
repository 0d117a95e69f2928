//! `vhdkit changes`.
//!
//! Owns: how a person reads in which sectors two points of a chain can differ. Must not know: how it is found out.

use crate::args::PairArgs;
use crate::output::{self, Failure, JsonList};
use crate::size;
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use vhdkit::ops;

const EXAMPLES: &str = "\
Both are points of one chain, in either order, or of two chains that share a file. The answer is what the files between
them hold, by their maps: everything else is the same byte by byte. A sector that was written with what it held before
is listed too; `vhdkit compare --report` reads the bytes and tells.

Examples:
    vhdkit changes monday.vhdx friday.vhdx
    vhdkit changes --json base.vhd leaf.vhd | jq '.ranges[]'";

/// The arguments of `changes`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChangesArgs {
    /// The image of one point
    from: PathBuf,
    /// The image of the other point
    to: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pair: PairArgs,
}

#[derive(Serialize)]
struct Head {
    from_virtual_size: u64,
    to_virtual_size: u64,
}

/// Does it.
///
/// # Errors
/// Those of opening either, two chains that share no file, maps that cannot be read.
pub(crate) fn run(args: &ChangesArgs) -> Result<(), Failure> {
    let [from, to] = args.pair.open(&args.from, &args.to)?;
    let ranges = ops::changes(&from, &to)?;
    let mut out = output::answer();
    if args.json {
        let head = Head { from_virtual_size: from.virtual_size(), to_virtual_size: to.virtual_size() };
        let mut list = JsonList::start(&mut out, &head, "ranges")?;
        for range in ranges {
            list.add(&range?)?;
        }
        return list.end();
    }
    let (mut bytes, mut count) = (0u64, 0u64);
    for range in ranges {
        let range = range?;
        if count == 0 {
            writeln!(out, "{:>20} {:>20}", "offset", "length")?;
        }
        writeln!(out, "{:>20} {:>20}", range.offset, range.length)?;
        bytes += range.length;
        count += 1;
    }
    let of = size::human(from.virtual_size().max(to.virtual_size()));
    match count {
        0 => writeln!(out, "nothing can differ: {of}")?,
        1 => writeln!(out, "1 range can differ: {} of {of}", size::exact(bytes))?,
        _ => writeln!(out, "{count} ranges can differ: {} of {of}", size::exact(bytes))?,
    }
    Ok(out.flush()?)
}
