//! What an image is.
//!
//! Owns: the report of `info`. Must not know: how a format stores what it answers.

use crate::chain::{Chain, ChainOptions, Layer};
use crate::error::Result;
use crate::finding::Finding;
use crate::guid::Guid;
use crate::image::{Format, Image};
use crate::link::{DiskKind, ImageId, PathHint};
use std::path::{Path, PathBuf};

/// Whether a VHDX log waits to be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
pub enum LogState {
    /// Nothing is waiting.
    Clean,
    /// Updates are waiting; what is shown is the image with them applied.
    Dirty,
}

/// Whom an image names as its parent.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ParentInfo {
    /// The first path it holds for it.
    pub path: Option<String>,
    /// All paths it holds for it.
    pub hints: Vec<PathHint>,
    /// The identity it wants.
    pub linkage: Option<String>,
    /// The file that was found and is the right one.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub found: Option<PathBuf>,
    /// Why none was found.
    pub error: Option<String>,
}

/// One file of a chain.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ChainLink {
    /// Its depth; the leaf is 1.
    pub depth: usize,
    /// What it is.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: Info,
}

/// What an image is; sizes in bytes.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Info {
    /// Its file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub path: Option<PathBuf>,
    /// Its format.
    pub format: Format,
    /// Fixed, dynamic or differencing.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub kind: DiskKind,
    /// The disk's size.
    pub virtual_size: u64,
    /// The file's length.
    pub file_size: u64,
    /// Bytes per block, where it has blocks.
    pub block_size: Option<u32>,
    /// The logical sector size.
    pub logical_sector_size: u32,
    /// The physical sector size.
    pub physical_sector_size: u32,
    /// Blocks that have space in the file, where it has blocks.
    pub allocated_blocks: Option<u64>,
    /// What made it, in its own words.
    pub creator: Option<String>,
    /// VHD: the Unique ID. VHDX: the virtual disk id (page 83).
    pub id: Option<String>,
    /// VHDX: the id that children are bound to.
    pub data_write_guid: Option<Guid>,
    /// VHDX: whether a log waits to be replayed.
    pub log: Option<LogState>,
    /// Its parent, for differencing images.
    pub parent: Option<ParentInfo>,
    /// What is odd about it.
    pub findings: Vec<Finding>,
    /// The whole chain, leaf first, when asked for.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub chain: Vec<ChainLink>,
}

/// What the image at `path` is; with `with_chain`, what each file under it is too. Reads maps, no data.
///
/// Without `with_chain` a parent that cannot be found is part of the answer, not an error.
///
/// # Errors
/// Those of [`Chain::open_leaf`], with `with_chain` those of [`Chain::open`].
pub fn info(path: impl AsRef<Path>, options: &ChainOptions, with_chain: bool) -> Result<Info> {
    if !with_chain {
        let leaf = Chain::open_leaf(path, options)?;
        let found = Chain::find_parent(&leaf, options);
        return describe(&leaf, found.as_ref().map(Option::as_ref));
    }
    let chain = Chain::open(path, options)?;
    let layers = chain.layers();
    let mut links = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        let info = describe(layer, Ok(layers.get(index + 1)))?;
        links.push(ChainLink { depth: index + 1, info });
    }
    let mut info = links.first().map_or_else(|| describe(chain.leaf(), Ok(None)), |link| Ok(link.info.clone()))?;
    info.chain = links;
    Ok(info)
}

fn describe(layer: &Layer, parent: Result<Option<&Layer>, &crate::error::Error>) -> Result<Info> {
    let image = layer.image();
    let (creator, allocated, physical) = match image {
        Image::Vhd(vhd) => (Some(vhd.creator()), blocks(image, || vhd.allocated_blocks())?, 512),
        Image::Vhdx(vhdx) => {
            let allocated = blocks(image, || vhdx.allocated_blocks())?;
            (Some(vhdx.creator().to_owned()), allocated, vhdx.physical_sector_size())
        }
        Image::Raw(_) => (None, None, 512),
    };
    let (id, data_write_guid, log) = match image {
        Image::Vhd(vhd) => (Some(vhd.id().to_string()), None, None),
        Image::Vhdx(vhdx) => {
            let log = if vhdx.log_was_dirty() { LogState::Dirty } else { LogState::Clean };
            (Some(vhdx.disk_id().to_string()), Some(vhdx.data_write_guid()), Some(log))
        }
        Image::Raw(_) => (None, None, None),
    };
    Ok(Info {
        path: layer.path().map(Path::to_path_buf),
        format: image.format(),
        kind: image.kind(),
        virtual_size: image.virtual_size(),
        file_size: layer.file_size()?,
        block_size: image.block_size(),
        logical_sector_size: image.logical_sector_size(),
        physical_sector_size: physical,
        allocated_blocks: allocated,
        creator,
        id,
        data_write_guid,
        log,
        parent: parent_info(image, parent),
        findings: layer.findings().list().to_vec(),
        chain: Vec::new(),
    })
}

fn blocks(image: &Image, count: impl FnOnce() -> Result<u64>) -> Result<Option<u64>> {
    image.block_size().map(|_| count()).transpose()
}

fn parent_info(image: &Image, parent: Result<Option<&Layer>, &crate::error::Error>) -> Option<ParentInfo> {
    let link = image.parent_link()?;
    Some(ParentInfo {
        path: link.hints.first().map(|hint| hint.path.clone()),
        linkage: link.ids.first().map(ImageId::to_string),
        found: parent.ok().flatten().and_then(|layer| layer.path().map(Path::to_path_buf)),
        error: parent.err().map(ToString::to_string),
        hints: link.hints,
    })
}
