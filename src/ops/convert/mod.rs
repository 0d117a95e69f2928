//! A chain's contents, or those of a part of it, into one new image.
//!
//! Owns: how the new image appears, and what it stands on. Must not know: the formats' layouts, how bytes move.

mod input;
mod options;
#[cfg(test)]
mod tests;
mod verify;

pub use input::convert_stream;
pub use options::ConvertOptions;

use super::create::{self, CreateOptions};
use super::stream;
use super::transfer::{Milestones, Transfer};
use crate::chain::{Chain, ChainOptions, Layer};
use crate::copy::{Copier, Meter};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image};
use crate::link::DiskKind;
use crate::storage::atomic::AtomicFile;
use crate::storage::{Access, OverlayStorage, Storage};
use crate::units::{SECTOR, round_up};
use crate::watch::Watch;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use verify::Pass;

/// What a conversion did; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ConvertReport {
    /// The new disk's size.
    pub virtual_size: u64,
    /// Data read from the source.
    pub moved: u64,
    /// Of that, data that never passed through this process.
    pub offloaded: u64,
    /// Of that, data that was not copied at all: the new file and the source's hold the same blocks of the file system (a
    /// reflink) until either is written.
    pub shared: u64,
    /// The length of the new file.
    pub file_size: u64,
    /// Zeros added after the end of the source.
    pub padded: u64,
    /// Whether the new image was read back and compared.
    pub verified: bool,
    /// The parent of the new image, when it is differencing.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub parent: Option<PathBuf>,
}

/// Writes what `source` shows, or what the [part](ConvertOptions::depths) of it holds, to a new image at `path`, beside
/// it first and then renamed; durable on return.
///
/// # Errors
/// `Refused` when the file exists; `InvalidInput` when the format cannot hold the disk, or the options do not go
/// together; `Chain` for depths the chain does not have; those of reading and writing; `Cancelled`. No file is left
/// behind then.
pub fn convert(
    source: &Chain,
    path: impl AsRef<Path>,
    options: &ConvertOptions,
    watch: &Watch<'_>,
) -> Result<ConvertReport> {
    let path = path.as_ref();
    let plan = Plan::of(source, options)?;
    let even = if options.format == Format::Raw { None } else { plan.evened()? };
    let layers = even.as_ref().map_or(plan.layers, std::slice::from_ref);
    let stand_in = options.stand_in_path().map(|path| StandIn::make(path, &plan, options)).transpose()?;
    let parent = stand_in.as_ref().map(|stand_in| &stand_in.layer).or(plan.below);
    let parent = parent.filter(|_| plan.kind == DiskKind::Differencing);
    if let Some(parent) = parent {
        require_format(parent, options.format)?;
    }

    let file = AtomicFile::create(path)?;
    let create = create_options(options, &plan)?;
    let mut target = create::make(Arc::clone(file.storage()) as Arc<dyn Storage>, path, &create, parent)?;
    preallocate(&file, options).map_err(|error| error.with_path(path))?;
    let passes = if options.verify { 2 } else { 1 };
    let pass = Pass::new(watch, (0, passes), plan.size, 0);
    let watched = pass.watch();
    let meter = Meter::new(&watched, plan.size);
    let flat = parent.is_none();
    let transfer = Transfer {
        layers,
        root: flat,
        fresh: flat,
        scan_zeros: options.scan_zeros,
        skip: 0,
        compare: 0,
        inside: false,
    };
    // A conversion that is stopped leaves nothing behind to go on from.
    let milestones = Milestones { every: u64::MAX, reached: &|_| Ok(()) };
    transfer
        .run(target.sink(), &Copier::new(options.jobs)?.without_sharing(options.preallocate), &meter, &milestones)
        .map_err(|error| error.with_path(path))?;
    target.close().map_err(|error| error.with_path(path))?;
    if options.verify {
        let pass = Pass::new(watch, (1, passes), plan.size, meter.moved());
        let same = verify::against(layers, file.storage(), options.format, &pass.watch());
        same.map_err(|error| error.with_path(path))?;
    }
    let file_size = len_of(&file).map_err(|error| error.with_path(path))?;
    file.commit(options.overwrite)?;
    let parent = parent.and_then(|layer| layer.path().map(Path::to_path_buf));
    if let Some(stand_in) = stand_in {
        stand_in.keep();
    }
    Ok(ConvertReport {
        virtual_size: plan.size,
        moved: meter.moved(),
        offloaded: meter.offloaded(),
        shared: meter.shared(),
        file_size,
        padded: plan.size - plan.shown,
        verified: options.verify,
        parent,
    })
}

/// What of a chain becomes what.
struct Plan<'a> {
    layers: &'a [Layer],
    /// The layer that what is converted stands on.
    below: Option<&'a Layer>,
    kind: DiskKind,
    sector: u32,
    /// The size of the disk that the layers show.
    shown: u64,
    /// The size of the new disk.
    size: u64,
}

impl<'a> Plan<'a> {
    fn of(source: &'a Chain, options: &ConvertOptions) -> Result<Self> {
        let layers = stream::part(source, options.part())?;
        let below = options.part().1.and_then(|to| source.layers().get(to));
        let kind = options.target_kind(below.is_some())?;
        let shown = layers.first().map_or(0, |layer| layer.image().virtual_size());
        let sector = source.logical_sector_size();
        if options.format == Format::Vhd && sector != 512 {
            let message = format_args!("a VHD has sectors of 512 bytes and the source has {sector}").to_string();
            return Err(Error::new(ErrorKind::InvalidInput, message).with_hint("use -O vhdx or -O raw"));
        }
        Ok(Self { layers, below, kind, sector, shown, size: options.target_size(shown, sector)? })
    }

    /// A raw disk may end inside a sector, and images are written in whole ones: the same disk with zeros up to the end
    /// of its last.
    fn evened(&self) -> Result<Option<Layer>> {
        let whole = round_up(self.shown, SECTOR).filter(|&whole| whole != self.shown);
        let (Some(whole), [layer]) = (whole, self.layers) else { return Ok(None) };
        let storage = OverlayStorage::new(Arc::clone(layer.storage()));
        let grown = storage.and_then(|storage| storage.set_len(whole).map(|()| storage));
        let storage = grown.map_err(|error| layer.blame(Error::io("read the file length", error)))?;
        let even = Layer::open_raw(Arc::new(storage), Access::Read)?;
        Ok(Some(match layer.path() {
            Some(path) => even.named(path),
            None => even,
        }))
    }
}

fn create_options(options: &ConvertOptions, plan: &Plan<'_>) -> Result<CreateOptions> {
    let mut create = CreateOptions::new(options.format, plan.kind).size(plan.size);
    if let Some(bytes) = options.block_size {
        create = create.block_size(bytes);
    }
    if plan.sector != 512 && options.format == Format::Vhdx {
        create = create.logical_sector_size(plan.sector);
    }
    Ok(create)
}

/// A new image without a parent in `file`, which is to be called `path`.
fn make_flat(file: &AtomicFile, path: &Path, options: &ConvertOptions, (kind, size): (DiskKind, u64)) -> Result<Image> {
    let mut create = CreateOptions::new(options.format, kind).size(size);
    if let Some(bytes) = options.block_size {
        create = create.block_size(bytes);
    }
    create::make(Arc::clone(file.storage()) as Arc<dyn Storage>, path, &create, None)
}

/// Has the file system reserve all of the file, when that is wanted.
fn preallocate(file: &AtomicFile, options: &ConvertOptions) -> Result<()> {
    if options.preallocate { file.storage().allocate(len_of(file)?) } else { Ok(()) }
}

fn len_of(file: &AtomicFile) -> Result<u64> {
    file.storage().len().map_err(|error| Error::io("read the file length", error))
}

fn require_format(parent: &Layer, format: Format) -> Result<()> {
    let found = parent.image().format();
    if found == format {
        return Ok(());
    }
    let message = format_args!("a {format} child cannot stand on a {found} parent").to_string();
    Err(parent.blame(
        Error::new(ErrorKind::InvalidInput, message)
            .with_hint("give it a --stand-in for a parent, or make a flat image with --type dynamic or fixed"),
    ))
}

/// An empty image in the place of a parent; removed unless it is kept.
struct StandIn {
    path: PathBuf,
    layer: Layer,
    kept: bool,
}

impl StandIn {
    fn make(path: &Path, plan: &Plan<'_>, options: &ConvertOptions) -> Result<Self> {
        let size = plan.below.map_or(plan.size, |below| below.image().virtual_size());
        let mut create = CreateOptions::new(options.format, DiskKind::Dynamic).size(size);
        if plan.sector != 512 {
            create = create.logical_sector_size(plan.sector);
        }
        create::create(path, &create)?;
        let layer = Chain::open_leaf(path, &ChainOptions::new()).inspect_err(|_| {
            // Ours, empty, and of no use.
            let _ = fs::remove_file(path);
        })?;
        Ok(Self { path: path.to_path_buf(), layer, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody stands on it; a failure to remove it leaves an empty image and hides nothing worse.
            let _ = fs::remove_file(&self.path);
        }
    }
}
