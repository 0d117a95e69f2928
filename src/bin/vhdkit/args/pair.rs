//! The options of verbs that read two images.
//!
//! Owns: how they are written and what they mean to the library. Must not know: the verbs.

use super::parents::PlaceArgs;
use crate::output::Failure;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vhdkit::chain::{Chain, ChainOptions};

/// Two chains that are only read.
#[derive(Clone, Debug, Args)]
pub(crate) struct PairArgs {
    /// The first image is a raw disk. VHD and VHDX are recognised; a raw disk never is
    #[arg(short = 'f', long = "source-format", value_name = "FORMAT")]
    first_format: Option<RawFormat>,
    /// The second image is a raw disk
    #[arg(short = 'F', long = "other-format", value_name = "FORMAT")]
    other_format: Option<RawFormat>,
    /// The file of the next parent of the first image, whatever the images say; repeatable. Its identity is checked
    #[arg(long = "parent", value_name = "FILE", help_heading = "Parents")]
    first_parents: Vec<PathBuf>,
    /// The file of the next parent of the second image; repeatable
    #[arg(long = "other-parent", value_name = "FILE", help_heading = "Parents")]
    other_parents: Vec<PathBuf>,
    #[command(flatten)]
    places: PlaceArgs,
    /// Do not lock the files: they can be read while a writer has them open, and what is shown is whatever it has got to
    #[arg(long)]
    no_lock: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RawFormat {
    /// A flat file
    Raw,
}

impl PairArgs {
    /// Opens both for reading.
    ///
    /// # Errors
    /// Those of [`Chain::open`].
    pub(crate) fn open(&self, first: &PathBuf, other: &PathBuf) -> Result<[Chain; 2], Failure> {
        let options = |raw: Option<RawFormat>, parents: &[PathBuf]| -> ChainOptions {
            let options = self.places.options().raw(raw.is_some()).locked(!self.no_lock);
            parents.iter().fold(options, ChainOptions::parent)
        };
        let one = Chain::open(first, &options(self.first_format, &self.first_parents))?;
        let two = Chain::open(other, &options(self.other_format, &self.other_parents))?;
        Ok([one, two])
    }
}
