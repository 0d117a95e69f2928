//! `vhdkit create`.
//!
//! Owns: what the options leave out: the format from the name, the type from whether there is a parent. Must not know:
//! how an image is made.

use crate::Session;
use crate::args::{ParentArgs, format_of_name};
use crate::commands::info::kind;
use crate::output::{self, Failure};
use crate::size;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vhdkit::ops::{self, CreateOptions};
use vhdkit::{DiskKind, Format};

const EXAMPLES: &str = "\
The first --parent is the parent of the new image, further ones are that image's own parents.

Examples:
    vhdkit create --size 10G disk.vhdx
    vhdkit create --size 1.5T --block-size 1M disk.vhdx
    vhdkit create --size 20G --type fixed --format vhd disk.vhd
    vhdkit create --type differencing --parent disk.vhdx child.vhdx
    vhdkit create --type differencing --parent child.vhdx --parent old/disk.vhdx grandchild.vhdx";

/// The arguments of `create`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CreateArgs {
    /// The new image
    image: PathBuf,
    /// Its virtual size; a differencing image has its parent's unless told otherwise
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// Its format [default: what the name ends in]
    #[arg(long, value_enum)]
    format: Option<NewFormat>,
    /// Its type [default: differencing with --parent, else dynamic]
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    kind: Option<NewKind>,
    /// Bytes per block [default: VHD 2M, VHDX 32M, differencing images as their parent]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    block_size: Option<u32>,
    /// 512 or 4096; VHDX only [default: 512, differencing images as their parent]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    logical_sector_size: Option<u32>,
    /// 512 or 4096; VHDX only [default: 4096, differencing images as their parent]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    physical_sector_size: Option<u32>,
    /// Replace a file that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    parents: ParentArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NewFormat {
    /// VHD, up to 2040 GiB
    Vhd,
    /// VHDX, up to 64 TiB
    Vhdx,
}

/// A type of image.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum NewKind {
    /// All space from the start
    Fixed,
    /// Space as it is written
    Dynamic,
    /// What differs from a parent
    Differencing,
}

impl From<NewKind> for DiskKind {
    fn from(kind: NewKind) -> Self {
        match kind {
            NewKind::Fixed => Self::Fixed,
            NewKind::Dynamic => Self::Dynamic,
            NewKind::Differencing => Self::Differencing,
        }
    }
}

/// Does it.
///
/// # Errors
/// Options that do not fit together; those of opening the parent and of writing the file.
pub(crate) fn run(args: &CreateArgs, session: &Session) -> Result<(), Failure> {
    let format = match args.format {
        Some(NewFormat::Vhd) => Format::Vhd,
        Some(NewFormat::Vhdx) => Format::Vhdx,
        None => match format_of_name(&args.image, "--format")? {
            Format::Raw => {
                let error = output::usage("this makes VHD and VHDX images only").with_path(&args.image);
                return Err(error.with_hint("an empty raw disk is an empty file: truncate --size 10G FILE").into());
            }
            format => format,
        },
    };
    let default = if args.parents.files.is_empty() { DiskKind::Dynamic } else { DiskKind::Differencing };
    let new_kind = args.kind.map_or(default, DiskKind::from);
    let mut options = CreateOptions::new(format, new_kind).chain(args.parents.options_after(1)).overwrite(args.force);
    if let Some(parent) = args.parents.files.first() {
        options = options.parent(parent);
    }
    if let Some(bytes) = args.size {
        options = options.size(bytes);
    }
    if let Some(bytes) = args.block_size {
        options = options.block_size(bytes);
    }
    if let Some(bytes) = args.logical_sector_size {
        options = options.logical_sector_size(bytes);
    }
    if let Some(bytes) = args.physical_sector_size {
        options = options.physical_sector_size(bytes);
    }
    ops::create(&args.image, &options)?;
    let parent = args.parents.files.first().map(|parent| format!(" over {}", parent.display())).unwrap_or_default();
    let what = format!("created {}: {format}, {}{parent}\n", args.image.display(), kind(new_kind));
    output::say(session.display, &what)
}
