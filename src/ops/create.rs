//! Making new images.
//!
//! Owns: what a new image needs to know of its parent, and that a file appears whole or not at all.
//! Must not know: the formats' layouts.

use crate::chain::{Chain, ChainOptions, Layer, relative_windows_path};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image};
use crate::link::{DiskKind, NewParent, ParentPaths};
use crate::raw::Raw;
use crate::storage::Storage;
use crate::storage::atomic::AtomicFile;
use crate::vhd::{Vhd, VhdCreate};
use crate::vhdx::{Vhdx, VhdxCreate};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds from the Unix epoch to 2000-01-01 UTC, where VHD timestamps begin.
const VHD_EPOCH: Duration = Duration::from_secs(946_684_800);

/// What to make.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    format: Format,
    kind: DiskKind,
    size: Option<u64>,
    block_size: Option<u32>,
    logical_sector_size: Option<u32>,
    physical_sector_size: Option<u32>,
    parent: Option<PathBuf>,
    chain: ChainOptions,
    overwrite: bool,
}

impl CreateOptions {
    /// An image of `format` and `kind`. Fixed and dynamic images need a [`size`](Self::size), differencing ones a
    /// [`parent`](Self::parent).
    #[must_use]
    pub fn new(format: Format, kind: DiskKind) -> Self {
        Self {
            format,
            kind,
            size: None,
            block_size: None,
            logical_sector_size: None,
            physical_sector_size: None,
            parent: None,
            chain: ChainOptions::default(),
            overwrite: false,
        }
    }

    /// The virtual size in bytes: a multiple of the logical sector size. Default for differencing images: the parent's.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// Bytes per block. VHD: a power of two from 4 KiB to 256 MiB, default 2 MiB. VHDX: 1 to 256 MiB, default 32 MiB.
    /// Differencing images: default the parent's, where it has blocks.
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// 512 (default) or 4096 bytes; VHDX only. A differencing image has its parent's.
    #[must_use]
    pub fn logical_sector_size(mut self, bytes: u32) -> Self {
        self.logical_sector_size = Some(bytes);
        self
    }

    /// 512 or 4096 (default) bytes; VHDX only.
    #[must_use]
    pub fn physical_sector_size(mut self, bytes: u32) -> Self {
        self.physical_sector_size = Some(bytes);
        self
    }

    /// The image a differencing one is made over.
    #[must_use]
    pub fn parent(mut self, path: impl Into<PathBuf>) -> Self {
        self.parent = Some(path.into());
        self
    }

    /// How the parent and its own parents are opened.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }

    /// Whether a file that exists may be replaced (default: no).
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }
}

/// Makes the image at `path`. It is written beside it and renamed, so that the name never shows half an image.
///
/// # Errors
/// `InvalidInput` for options that do not fit together or a size the format cannot hold; those of opening the parent;
/// `Refused` when the file exists; what the file system answers.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<()> {
    let path = path.as_ref();
    let parent = open_parent(options)?;
    let file = AtomicFile::create(path)?;
    let image = make(Arc::clone(file.storage()) as Arc<dyn Storage>, path, options, parent.as_ref().map(Chain::leaf))
        .map_err(|error| error.with_path(path))?;
    image.close().map_err(|error| error.with_path(path))?;
    file.commit(options.overwrite)
}

/// Makes an empty image as `options` say in `storage`; `path` is where it will be found, for relative links.
pub(super) fn make(
    storage: Arc<dyn Storage>,
    path: &Path,
    options: &CreateOptions,
    parent: Option<&Layer>,
) -> Result<Image> {
    let size = options.size.or_else(|| parent.map(|parent| parent.image().virtual_size())).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "a new disk needs a size").with_hint("give it with --size, e.g. --size 10G")
    })?;
    let link = parent.map(|parent| new_parent(path, parent)).transpose()?;
    let block_size = options.block_size.or_else(|| parent.and_then(|parent| parent.image().block_size()));
    match options.format {
        Format::Vhd => {
            no_sector_options(options)?;
            let mut create = VhdCreate::new(size).kind(options.kind);
            if let (Some(block_size), true) = (block_size, options.kind != DiskKind::Fixed) {
                create = create.block_size(block_size);
            }
            if let Some(link) = link {
                create = create.parent(link);
            }
            Ok(Image::Vhd(Box::new(Vhd::create(storage, &create)?)))
        }
        Format::Vhdx => {
            let mut create = VhdxCreate::new(size).kind(options.kind);
            if let Some(block_size) = block_size {
                create = create.block_size(block_size);
            }
            create = sectors(create, options, parent)?;
            if let Some(link) = link {
                create = create.parent(link);
            }
            let mut image = Vhdx::create(storage, &create)?;
            if let Some(Image::Vhdx(parent)) = parent.map(Layer::image) {
                image.copy_disk_items_of(parent)?;
            }
            Ok(Image::Vhdx(Box::new(image)))
        }
        Format::Raw => {
            no_sector_options(options)?;
            if options.kind != DiskKind::Fixed || options.block_size.is_some() {
                return Err(Error::new(ErrorKind::InvalidInput, "a raw image has no type and no blocks"));
            }
            Ok(Image::Raw(Raw::create(storage, size)?))
        }
    }
}

fn open_parent(options: &CreateOptions) -> Result<Option<Chain>> {
    match (&options.parent, options.kind) {
        (Some(path), DiskKind::Differencing) => {
            let parent = Chain::open(path, &options.chain)?;
            if parent.leaf().image().format() != options.format {
                let found = parent.leaf().image().format();
                let message = format_args!("a {} child cannot stand on a {found} parent", options.format).to_string();
                return Err(Error::new(ErrorKind::Chain, message)
                    .with_path(path)
                    .with_hint("convert the parent first, or make the child in the parent's format"));
            }
            Ok(Some(parent))
        }
        (None, DiskKind::Differencing) => {
            Err(Error::new(ErrorKind::InvalidInput, "a differencing image needs a parent")
                .with_hint("name it with --parent FILE"))
        }
        (Some(_), _) => Err(Error::new(ErrorKind::InvalidInput, "only a differencing image has a parent")
            .with_hint("add --type differencing")),
        (None, _) => Ok(None),
    }
}

fn no_sector_options(options: &CreateOptions) -> Result<()> {
    match (options.logical_sector_size, options.physical_sector_size) {
        (None | Some(512), None | Some(512)) => Ok(()),
        _ => Err(Error::new(ErrorKind::InvalidInput, "only VHDX images have sectors of other than 512 bytes")
            .with_hint("use --format vhdx")),
    }
}

fn sectors(mut create: VhdxCreate, options: &CreateOptions, parent: Option<&Layer>) -> Result<VhdxCreate> {
    let inherited = parent.map(|parent| parent.image().logical_sector_size());
    if let (Some(asked), Some(inherited)) = (options.logical_sector_size, inherited)
        && asked != inherited
    {
        let message =
            format_args!("the parent has logical sectors of {inherited} bytes, and a child must have the same");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    if let Some(bytes) = options.logical_sector_size.or(inherited) {
        create = create.logical_sector_size(bytes);
    }
    let physical = parent.and_then(|parent| match parent.image() {
        Image::Vhdx(image) => Some(image.physical_sector_size()),
        _ => None,
    });
    if let Some(bytes) = options.physical_sector_size.or(physical) {
        create = create.physical_sector_size(bytes);
    }
    // A child is the same disk as its parent, so it carries the same page 83 id ([MS-VHDX] 2.6.2.3).
    if let Some(Image::Vhdx(image)) = parent.map(Layer::image) {
        create = create.disk_id(image.disk_id());
    }
    Ok(create)
}

/// What a child at `path` has to know of `parent`.
pub(super) fn new_parent(path: &Path, parent: &Layer) -> Result<NewParent> {
    let id = parent.image().id().ok_or_else(|| {
        parent.blame(Error::new(ErrorKind::Unsupported, "a raw image has no identity a child could name"))
    })?;
    let relative = parent.path().map(|file| relative_windows_path(path, file)).transpose()?;
    Ok(NewParent { id, paths: ParentPaths { relative, absolute: None }, timestamp: parent.path().map_or(0, modified) })
}

/// When the file was changed last, as VHD tells time; 0 when that cannot be said.
pub(super) fn modified(path: &Path) -> u32 {
    let time = std::fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let since = time.duration_since(UNIX_EPOCH + VHD_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(0)
}
