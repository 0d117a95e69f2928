//! What can be read of a damaged image, in a new sound one.
//!
//! Owns: the options, the order in which a rescue goes, and its report. Must not know: how a damaged image is opened, how
//! a range is read in spite of errors ([`read`]) or written ([`write`]).

mod read;
mod write;

use super::create::{self, CreateOptions};
use crate::chain::{Chain, ChainOptions, Layer, check_link};
use crate::copy::Meter;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Finding, Findings};
use crate::image::{Format, Image};
use crate::link::DiskKind;
use crate::mend::Assumption;
use crate::problem::Fault;
use crate::storage::Storage;
use crate::storage::atomic::AtomicFile;
use crate::watch::Watch;
use read::Salvager;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use write::Writer;

/// The most lost ranges a report lists: beyond it the rescue is refused, because the map could not be whole.
pub const MAX_LOST_RANGES: usize = 1 << 20;
/// The longest fill pattern, in bytes.
pub const MAX_FILL: usize = 4096;

/// How [`rescue`] goes about it.
#[derive(Clone, Debug)]
pub struct RescueOptions {
    format: Format,
    kind: Option<DiskKind>,
    block_size: Option<u32>,
    fill: Vec<u8>,
    alone: bool,
    overwrite: bool,
    chain: ChainOptions,
}

impl RescueOptions {
    /// Into an image of `format`: dynamic unless said otherwise, raw always fixed. Lost ranges become zeros.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            kind: None,
            block_size: None,
            fill: Vec::new(),
            alone: false,
            overwrite: false,
            chain: ChainOptions::new(),
        }
    }

    /// Fixed or dynamic.
    #[must_use]
    pub fn kind(mut self, kind: DiskKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Bytes per block of the new image, as [`CreateOptions::block_size`].
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// What lost ranges hold: `pattern` over and over, its first byte at every multiple of its length. Up to
    /// [`MAX_FILL`] bytes; none (the default) is zeros.
    #[must_use]
    pub fn fill(mut self, pattern: impl Into<Vec<u8>>) -> Self {
        self.fill = pattern.into();
        self
    }

    /// Of a differencing image, what it holds itself: its parents are not opened, and what they would show becomes zeros
    /// and is listed as absent.
    #[must_use]
    pub fn alone(mut self, alone: bool) -> Self {
        self.alone = alone;
        self
    }

    /// Whether a file that exists may be replaced (default: no).
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// How the files are found and locked. They are only ever opened for reading.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }
}

/// Why a range is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum LossCause {
    /// Nothing says where its bytes are any more, or what does cannot be true.
    Map,
    /// Its bytes cannot be read, or the file ends before them.
    Medium,
}

/// A range of the disk that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LostRange {
    /// Where it starts, in bytes of the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Why.
    pub cause: LossCause,
    /// The first error met in it; empty for most ranges when there are very many.
    pub error: String,
}

/// Something about a file that puts its contents in doubt, though all of them were read.
pub type Doubt = Finding;

/// One of the files that were read.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RescuedFile {
    /// Its name, where it has one.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub path: Option<PathBuf>,
    /// Its format.
    pub format: Format,
    /// What had to be assumed to read it.
    pub assumptions: Vec<Assumption>,
    /// Space that two owners claim: both show its bytes, and only one of them can be right.
    pub doubts: Vec<Doubt>,
}

/// What [`rescue`] read and what it did not; sizes in bytes.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RescueReport {
    /// The new file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub target: PathBuf,
    /// The disk's size.
    pub virtual_size: u64,
    /// Data that was read.
    pub read: u64,
    /// The sum of the lost ranges.
    pub lost_bytes: u64,
    /// The length of the new file.
    pub file_size: u64,
    /// The files that were read, leaf first.
    pub files: Vec<RescuedFile>,
    /// The ranges that could not be read, in order.
    pub lost: Vec<LostRange>,
    /// The ranges whose bytes are a parent's, in order, when the leaf was read alone.
    pub absent: Vec<Range<u64>>,
}

impl RescueReport {
    /// Whether nothing is lost: no range of the disk, nor anything that only an [assumption](Assumption::may_lose) stands
    /// for.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let assumed = self.files.iter().flat_map(|file| &file.assumptions);
        self.lost.is_empty() && !assumed.into_iter().any(|assumption| assumption.may_lose)
    }
}

/// Reads what can be read of the image at `source`, over its parents, into a new image at `target`, which appears only when
/// it is complete. No file but the new one is ever written.
///
/// # Errors
/// `Refused` when the target exists or is one of the sources; `InvalidInput` for options that do not fit; `Corrupt`,
/// `UnknownFormat` when too little of the source is left; those of finding parents; those of writing; `Cancelled`. No file
/// is left behind then.
pub fn rescue(
    source: impl AsRef<Path>,
    target: impl AsRef<Path>,
    options: &RescueOptions,
    watch: &Watch<'_>,
) -> Result<RescueReport> {
    let layers = Chain::open_damaged(source.as_ref(), &options.chain, options.alone)?;
    rescue_layers(&layers, target, options, watch)
}

/// As [`rescue`], of images that are open already, leaf first; see [`Layer::open_damaged`].
///
/// # Errors
/// As [`rescue`].
pub fn rescue_layers(
    layers: &[Layer],
    target: impl AsRef<Path>,
    options: &RescueOptions,
    watch: &Watch<'_>,
) -> Result<RescueReport> {
    let path = target.as_ref();
    let layers = if options.alone { layers.get(..1).unwrap_or(layers) } else { layers };
    let create = plan(layers, path, options)?;
    let file = AtomicFile::create(path)?;
    let mut image = create::make(Arc::clone(file.storage()) as Arc<dyn Storage>, path, &create, None)?;
    let size = create_size(layers);
    let meter = Meter::new(watch, size);
    let mut salvager = Salvager::new(layers, &options.fill, &meter);
    let mut writer = Writer::new(image.sink());
    salvager.run(&mut writer).and_then(|()| writer.finish()).map_err(|error| error.with_path(path))?;
    image.close().map_err(|error| error.with_path(path))?;
    let file_size = file.storage().len().map_err(|error| Error::io("read the file length", error).with_path(path))?;
    let found = salvager.into_found();
    let files = layers.iter().map(rescued).collect();
    file.commit(options.overwrite)?;
    Ok(RescueReport {
        target: path.to_path_buf(),
        virtual_size: size,
        read: meter.moved(),
        lost_bytes: found.lost.iter().map(|lost| lost.length).sum(),
        file_size,
        files,
        lost: found.lost,
        absent: found.absent,
    })
}

fn create_size(layers: &[Layer]) -> u64 {
    layers.first().map_or(0, |leaf| leaf.image().virtual_size())
}

/// What the new image is like, once it is clear that it can be made.
fn plan(layers: &[Layer], path: &Path, options: &RescueOptions) -> Result<CreateOptions> {
    let invalid = |message: &str| Error::new(ErrorKind::InvalidInput, message);
    let (Some(leaf), Some(last)) = (layers.first(), layers.last()) else {
        return Err(invalid("a rescue needs at least one image"));
    };
    if last.image().parent_link().is_some() && !options.alone {
        return Err(last.blame(Error::new(ErrorKind::ParentNotFound, "the last image of the chain needs a parent")));
    }
    for (child, parent) in layers.iter().zip(layers.iter().skip(1)) {
        check_link(child, parent)?;
    }
    if options.fill.len() > MAX_FILL {
        return Err(invalid("the fill pattern is too long").with_hint(format_args!("at most {MAX_FILL} bytes")));
    }
    let real = fs::canonicalize(path);
    let is_target = |layer: &&Layer| {
        let source = layer.path().and_then(|path| fs::canonicalize(path).ok());
        real.as_ref().is_ok_and(|real| source.as_ref() == Some(real))
    };
    if let Some(layer) = layers.iter().find(is_target) {
        let error = Error::new(ErrorKind::Refused, "this file is what is to be rescued");
        return Err(layer.blame(error.with_hint("give the new image a name of its own")));
    }
    if real.is_ok() && !options.overwrite {
        return Err(Error::new(ErrorKind::Refused, "the file exists already")
            .with_path(path)
            .with_hint("choose another name, or have it replaced with --force"));
    }
    let kind = match (options.format, options.kind) {
        (_, Some(DiskKind::Differencing)) => {
            return Err(invalid("a rescued image stands alone: it is fixed or dynamic"));
        }
        (Format::Raw, Some(DiskKind::Dynamic)) => return Err(invalid("a raw image is fixed")),
        (Format::Raw, None) => DiskKind::Fixed,
        (_, kind) => kind.unwrap_or(DiskKind::Dynamic),
    };
    let mut create = CreateOptions::new(options.format, kind).size(create_size(layers)).overwrite(options.overwrite);
    if let Some(bytes) = options.block_size {
        create = create.block_size(bytes);
    }
    match (options.format, leaf.image().logical_sector_size()) {
        (_, 512) | (Format::Raw, _) => Ok(create),
        (Format::Vhdx, bytes) => Ok(create.logical_sector_size(bytes)),
        (Format::Vhd, bytes) => {
            let message = format!("a VHD has sectors of 512 bytes and the source has {bytes}");
            Err(invalid(&message).with_hint("use -O vhdx or -O raw"))
        }
    }
}

/// What is to be said of one file.
fn rescued(layer: &Layer) -> RescuedFile {
    let mut findings = Findings::new();
    if !matches!(layer.image(), Image::Raw(_)) {
        // What else is wrong shows in what is lost, and in a check of the file.
        let _ = Image::check(Arc::clone(layer.storage()), false, &mut findings);
    }
    let contested = |finding: &&Finding| matches!(finding.problem.fault, Fault::Overlap | Fault::Duplicate);
    RescuedFile {
        path: layer.path().map(Path::to_path_buf),
        format: layer.image().format(),
        assumptions: layer.assumptions().to_vec(),
        doubts: findings.list().iter().filter(contested).cloned().collect(),
    }
}
