//! A chain's contents into one new image.
//!
//! Owns: what the new image looks like and how it appears. Must not know: the formats' layouts, how bytes move.

use super::create::{self, CreateOptions};
use super::transfer::{Milestones, Transfer};
use crate::chain::Chain;
use crate::copy::{Copier, Meter};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Format;
use crate::link::DiskKind;
use crate::storage::Storage;
use crate::storage::atomic::AtomicFile;
use crate::watch::Watch;
use std::path::Path;
use std::sync::Arc;

/// What to make of the source.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    format: Format,
    kind: Option<DiskKind>,
    block_size: Option<u32>,
    jobs: usize,
    scan_zeros: bool,
    overwrite: bool,
}

impl ConvertOptions {
    /// An image of `format`; dynamic unless said otherwise (raw is always fixed).
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, kind: None, block_size: None, jobs: 0, scan_zeros: true, overwrite: false }
    }

    /// Fixed or dynamic.
    #[must_use]
    pub fn kind(mut self, kind: DiskKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Bytes per block, as [`CreateOptions::block_size`].
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// How many threads copy; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Whether zeros in the source are left out of the target (default true).
    #[must_use]
    pub fn scan_zeros(mut self, scan: bool) -> Self {
        self.scan_zeros = scan;
        self
    }

    /// Whether a file that exists may be replaced (default: no).
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }
}

/// What a conversion did; sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ConvertReport {
    /// The disk's size.
    pub virtual_size: u64,
    /// Data read from the source.
    pub moved: u64,
    /// The length of the new file.
    pub file_size: u64,
}

/// Writes what `source` shows to a new image at `path`, beside it first and then renamed; durable on return.
///
/// # Errors
/// `Refused` when the file exists; `InvalidInput` when the format cannot hold the disk; those of reading and writing;
/// `Cancelled`. No file is left behind then.
pub fn convert(
    source: &Chain,
    path: impl AsRef<Path>,
    options: &ConvertOptions,
    watch: &Watch<'_>,
) -> Result<ConvertReport> {
    let path = path.as_ref();
    let kind = match (options.format, options.kind) {
        (_, Some(DiskKind::Differencing)) => {
            return Err(Error::new(ErrorKind::InvalidInput, "a converted image stands alone: it is fixed or dynamic"));
        }
        (Format::Raw, Some(DiskKind::Dynamic)) => {
            return Err(Error::new(ErrorKind::InvalidInput, "a raw image is fixed: it has no blocks to leave out"));
        }
        (Format::Raw, None) => DiskKind::Fixed,
        (_, kind) => kind.unwrap_or(DiskKind::Dynamic),
    };
    let mut create = CreateOptions::new(options.format, kind).size(source.virtual_size());
    if let Some(bytes) = options.block_size {
        create = create.block_size(bytes);
    }
    match (options.format, source.logical_sector_size()) {
        (_, 512) | (Format::Raw, _) => {}
        (Format::Vhdx, bytes) => create = create.logical_sector_size(bytes),
        (Format::Vhd, bytes) => {
            let message = format_args!("a VHD has sectors of 512 bytes and the source has {bytes}").to_string();
            return Err(Error::new(ErrorKind::InvalidInput, message).with_hint("use -O vhdx or -O raw"));
        }
    }
    let file = AtomicFile::create(path)?;
    let mut target = create::make(Arc::clone(file.storage()) as Arc<dyn Storage>, path, &create, None)?;
    let meter = Meter::new(watch, source.virtual_size());
    let transfer = Transfer {
        layers: source.layers(),
        root: true,
        fresh: true,
        scan_zeros: options.scan_zeros,
        skip: 0,
        compare: 0,
    };
    // A conversion that is stopped leaves nothing behind to go on from.
    let milestones = Milestones { every: u64::MAX, reached: &|_| Ok(()) };
    transfer
        .run(target.sink(), &Copier::new(options.jobs)?, &meter, &milestones)
        .map_err(|error| error.with_path(path))?;
    target.close().map_err(|error| error.with_path(path))?;
    let file_size = file.storage().len().map_err(|error| Error::io("read the file length", error).with_path(path))?;
    file.commit(options.overwrite)?;
    Ok(ConvertReport { virtual_size: source.virtual_size(), moved: meter.moved(), file_size })
}
