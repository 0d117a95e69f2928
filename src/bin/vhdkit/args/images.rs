//! The options about the image a verb reads or makes: locks, raw disks, formats.
//!
//! Owns: how they are written and what they mean to the library. Must not know: the verbs.

use super::parents::ParentArgs;
use crate::output::{self, Failure};
use clap::{Args, ValueEnum};
use std::path::Path;
use vhdkit::chain::ChainOptions;
use vhdkit::storage::Access;
use vhdkit::{ErrorKind, Format, Result};

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
    pub(super) fn explain(&self, failure: Failure) -> Failure {
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
