//! `vhdkit read`.
//!
//! Owns: a byte range of a disk on its way to standard output. Must not know: where the bytes are.

use crate::Session;
use crate::args::SourceArgs;
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use std::io::IsTerminal;
use std::path::PathBuf;
use vhdkit::chain::Chain;
use vhdkit::{Watch, ops};

const EXAMPLES: &str = "\
Examples:
    vhdkit read leaf.vhdx --length 512 | xxd          the first sector
    vhdkit read leaf.vhdx --offset 1M --length 64K > part
    vhdkit read leaf.vhdx | sha256sum                 the whole disk";

/// The arguments of `read`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReadArgs {
    /// The image; its parents are read too
    image: PathBuf,
    /// Where to start, in bytes of the virtual disk
    #[arg(long, default_value = "0", value_parser = size::parse)]
    offset: u64,
    /// How many bytes [default: up to the end of the disk]
    #[arg(long, value_parser = size::parse)]
    length: Option<u64>,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// Does it.
///
/// # Errors
/// A range outside the disk, before anything is written; those of opening and reading the chain.
pub(crate) fn run(args: &ReadArgs, session: &Session) -> Result<(), Failure> {
    let chain = Chain::open(&args.image, &args.source.options())?;
    let disk = chain.virtual_size();
    let length = args.length.unwrap_or_else(|| disk.saturating_sub(args.offset));
    let end = args.offset.checked_add(length).filter(|&end| end <= disk && args.offset <= disk).ok_or_else(|| {
        let offset = args.offset;
        output::usage(format_args!("{length} bytes at offset {offset} reach past the end of the disk ({disk} bytes)"))
            .with_path(&args.image)
    })?;
    let mut out = output::raw_stdout()?;
    let reporter = Reporter::new(session.display, out.is_terminal());
    ops::write_range(&chain, args.offset..end, &mut out, &Watch::none().observer(&reporter))?;
    Ok(())
}
