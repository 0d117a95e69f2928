//! `vhdkit write`.
//!
//! Owns: standard input on its way into a disk. Must not know: where the bytes go.

use crate::Session;
use crate::args::{ParentArgs, RawArgs};
use crate::input::{self, Stream};
use crate::output::{self, Failure};
use crate::progress::Reporter;
use crate::size;
use clap::Args;
use std::fs::File;
use std::io::Seek;
use std::path::PathBuf;
use vhdkit::chain::Chain;
use vhdkit::storage::Access;
use vhdkit::{Observer, Progress};

const EXAMPLES: &str = "\
Writing to an image that has children makes them invalid.

Examples:
    vhdkit write disk.vhdx < flat.raw
    vhdkit write disk.vhdx --offset 1M < part
    head -c 512 /dev/zero | vhdkit write disk.vhdx    clear the first sector";

/// The arguments of `write`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct WriteArgs {
    /// The image; only this file is changed, never its parents
    image: PathBuf,
    /// Where to start, in bytes of the virtual disk
    #[arg(long, default_value = "0", value_parser = size::parse)]
    offset: u64,
    #[command(flatten)]
    raw: RawArgs,
    #[command(flatten)]
    parents: ParentArgs,
}

/// Does it.
///
/// # Errors
/// Input that does not fit the disk; those of opening the chain, reading the input and writing the image.
pub(crate) fn run(args: &WriteArgs, session: &Session) -> Result<(), Failure> {
    let options = args.parents.options().raw(args.raw.is_raw()).access(Access::Write);
    let chain = Chain::open(&args.image, &options)?;
    let input = input::stdin()?;
    let expected = remaining(&input);
    let mut pour = Pour { chain, offset: args.offset, expected, written: 0 };
    pour.require_room(expected.unwrap_or(0)).map_err(|error| error.with_path(&args.image))?;
    let poured = pour.run(&mut Stream::new(input, args.offset, &session.cancel), session);
    // What was written so far is made durable even when the rest cannot be.
    let Pour { mut chain, written, .. } = pour;
    let closed = chain.flush().and_then(|()| chain.close());
    poured.and(closed).map_err(|error| {
        error.with_path(&args.image).with_hint(format_args!("{written} bytes of the input were written"))
    })?;
    output::say(session.display, &format!("wrote {} at offset {}\n", size::exact(written), args.offset))
}

/// Input on its way into a disk.
struct Pour {
    chain: Chain,
    offset: u64,
    /// How much will come, where that is known.
    expected: Option<u64>,
    /// How much is in the disk.
    written: u64,
}

impl Pour {
    fn run(&mut self, input: &mut Stream<'_>, session: &Session) -> vhdkit::Result<()> {
        let reporter = Reporter::new(session.display, false);
        while let Some(bytes) = input.next()? {
            self.require_room(bytes.len() as u64)?;
            self.chain.write_at(&bytes, self.offset + self.written)?;
            self.written += bytes.len() as u64;
            let total = self.expected.unwrap_or(0).max(self.written);
            reporter.progress(Progress { done: self.written, total, moved: self.written });
        }
        Ok(())
    }

    fn require_room(&self, len: u64) -> vhdkit::Result<()> {
        let (at, disk) = (self.offset.saturating_add(self.written), self.chain.virtual_size());
        match at.checked_add(len) {
            Some(end) if end <= disk => Ok(()),
            _ => Err(output::usage(format_args!(
                "the input reaches past the end of the disk: {len} bytes at offset {at} of {disk}"
            ))),
        }
    }
}

/// How much input there is, when it is a file.
fn remaining(mut input: &File) -> Option<u64> {
    let metadata = input.metadata().ok().filter(std::fs::Metadata::is_file)?;
    Some(metadata.len().saturating_sub(input.stream_position().ok()?))
}
