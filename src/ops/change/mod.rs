//! Changing what an image says of itself: ids, sector size, items of metadata.
//!
//! Owns: the request, its refusals, the report, and who stands on the image. Must not know: the order of the writes
//! (`run`), how a format stores any of it.

mod journal;
mod run;

pub use run::set_image;

use super::children;
use super::merge::{BesideTarget, CheckpointStore};
use crate::chain::{Chain, ChainOptions, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::guid::{self, Guid};
use crate::image::Image;
use crate::link::ImageId;
use crate::storage::Access;
use crate::vhdx::MetadataEntry;
use journal::Journal;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One user's item of metadata as it is to be.
#[derive(Clone, Debug)]
pub(super) struct ItemEdit {
    pub(super) id: Guid,
    /// None: it goes.
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) virtual_disk: bool,
}

/// What to change of an image. What is not named stays, the creator always does.
#[derive(Clone, Debug, Default)]
pub struct SetOptions {
    disk_id: Option<Guid>,
    physical_sector_size: Option<u32>,
    unique_id: Option<[u8; 16]>,
    items: Vec<ItemEdit>,
    relink: bool,
    search: Vec<PathBuf>,
    dry_run: bool,
    store: Option<Arc<dyn CheckpointStore>>,
}

impl SetOptions {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// VHDX: the virtual disk's id ("page 83 data"); not nil.
    #[must_use]
    pub fn disk_id(mut self, id: Guid) -> Self {
        self.disk_id = Some(id);
        self
    }

    /// VHDX: a new random virtual disk id.
    #[must_use]
    pub fn fresh_disk_id(self) -> Self {
        self.disk_id(guid::fresh())
    }

    /// VHDX: 512 or 4096 bytes, at least a logical sector.
    #[must_use]
    pub fn physical_sector_size(mut self, bytes: u32) -> Self {
        self.physical_sector_size = Some(bytes);
        self
    }

    /// VHD: the unique id by which children know it, as its bytes lie in the file; not all zeros.
    #[must_use]
    pub fn unique_id(mut self, id: [u8; 16]) -> Self {
        self.unique_id = Some(id);
        self
    }

    /// VHD: a new random unique id.
    #[must_use]
    pub fn fresh_unique_id(self) -> Self {
        self.unique_id(guid::fresh().into_bytes())
    }

    /// VHDX: gives a user's item of metadata these bytes (up to 1 MiB), or makes it. `virtual_disk` says whether it
    /// belongs to the disk's contents: then it is copied to children and merged with them.
    #[must_use]
    pub fn item(mut self, id: Guid, bytes: impl Into<Vec<u8>>, virtual_disk: bool) -> Self {
        self.items.push(ItemEdit { id, bytes: Some(bytes.into()), virtual_disk });
        self
    }

    /// VHDX: removes a user's item of metadata.
    #[must_use]
    pub fn delete_item(mut self, id: Guid) -> Self {
        self.items.push(ItemEdit { id, bytes: None, virtual_disk: false });
        self
    }

    /// Whether children that the change would make lose their parent are pointed at it again (default: the change is
    /// refused). Also finishes a change that was interrupted meanwhile.
    #[must_use]
    pub fn relink(mut self, relink: bool) -> Self {
        self.relink = relink;
        self
    }

    /// A further directory to look for children in, and below it; the image's own always is.
    #[must_use]
    pub fn search(mut self, directory: impl Into<PathBuf>) -> Self {
        self.search.push(directory.into());
        self
    }

    /// Check everything and write nothing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Keeps the note of a VHD whose unique id changes there instead of in a file beside it.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn CheckpointStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// What of the request `image` is not like yet.
    ///
    /// # Errors
    /// `Unsupported` when its format has no such thing; `InvalidInput` for values that cannot be.
    fn changes(&self, image: &Image) -> Result<Vec<SetChange>> {
        let no = |what: &str, format: &str, hint: &str| {
            let message = format_args!("a {format} image has no {what}");
            Err(Error::new(ErrorKind::Unsupported, message).with_hint(hint))
        };
        let for_vhdx = self.disk_id.is_some() || self.physical_sector_size.is_some();
        match image {
            Image::Vhdx(_) if self.unique_id.is_some() => no(
                "unique id of its own",
                "VHDX",
                "its disk has an id: --disk-id; children know the file by another one",
            ),
            Image::Vhd(_) if for_vhdx => {
                no("disk id or physical sector size", "VHD", "children know it by its unique id: --unique-id")
            }
            Image::Vhd(_) if !self.items.is_empty() => {
                no("metadata items", "VHD", "convert it to VHDX: `vhdkit convert`")
            }
            Image::Raw(_) => no("ids and no metadata", "raw", "convert it to VHD or VHDX: `vhdkit convert`"),
            Image::Vhd(image) => {
                let ImageId::Vhd(old) = image.id() else { return Ok(Vec::new()) };
                let new = self.unique_id.filter(|new| *new != old);
                if new == Some([0; 16]) {
                    return Err(Error::new(ErrorKind::InvalidInput, "a unique id must not be all zeros"));
                }
                let text = |id| Guid::from_bytes(id).to_string();
                Ok(new.map(|new| SetChange::new("unique id", text(old), text(new))).into_iter().collect())
            }
            Image::Vhdx(image) => {
                let mut changes = Vec::new();
                if image.would_change_identity(self.disk_id, None)? {
                    let new = self.disk_id.unwrap_or_default();
                    changes.push(SetChange::new("disk id", image.disk_id().to_string(), new.to_string()));
                }
                if image.would_change_identity(None, self.physical_sector_size)? {
                    let (old, new) = (image.physical_sector_size(), self.physical_sector_size.unwrap_or_default());
                    changes.push(SetChange::new("physical sector size", old.to_string(), new.to_string()));
                }
                for edit in &self.items {
                    if image.would_change_item(edit.id, edit.bytes.as_deref(), edit.virtual_disk)? {
                        let size = |bytes: &[u8]| format!("{} bytes", bytes.len());
                        let old = image.metadata_item(edit.id, true)?;
                        changes.push(SetChange {
                            what: format!("item {}", edit.id),
                            old: old.as_deref().map(size),
                            new: edit.bytes.as_deref().map(size),
                        });
                    }
                }
                Ok(changes)
            }
        }
    }

    /// Whether children of `image` would no longer accept it.
    ///
    /// # Errors
    /// What the storage answers.
    fn is_seen_by_children(&self, image: &Image) -> Result<bool> {
        match image {
            Image::Vhd(image) => Ok(self.unique_id.is_some_and(|id| image.id() != ImageId::Vhd(id))),
            Image::Vhdx(image) => {
                let mut seen = image.would_change_identity(self.disk_id, self.physical_sector_size)?;
                for edit in &self.items {
                    seen |= image.is_seen_by_children(edit.id, edit.bytes.as_deref(), edit.virtual_disk)?;
                }
                Ok(seen)
            }
            Image::Raw(_) => Ok(false),
        }
    }
}

/// One thing that changes, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SetChange {
    /// What it is.
    pub what: String,
    /// Before; none when there was nothing.
    pub old: Option<String>,
    /// Afterwards; none when there is nothing.
    pub new: Option<String>,
}

impl SetChange {
    fn new(what: &str, old: String, new: String) -> Self {
        Self { what: what.to_owned(), old: Some(old), new: Some(new) }
    }
}

/// What [`set`] did, or with [`dry_run`](SetOptions::dry_run) would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SetReport {
    /// The image.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub path: Option<PathBuf>,
    /// What changed. Empty when it was like that already.
    pub changes: Vec<SetChange>,
    /// The children that were pointed at it again.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub relinked: Vec<PathBuf>,
    /// Images with the same parent identity that stand on a copy of the image, and so were left alone.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub of_copies: Vec<PathBuf>,
    /// Whether it was written.
    pub written: bool,
}

/// Changes what the image at `path` says of itself, as `options` ask. Each value is the old or the new one whatever
/// interrupts the change, and running it again finishes it.
///
/// Children know a VHD by its unique id, and a VHDX by an id that changes with anything that belongs to the virtual disk.
/// The change is refused when there are any, beside the image or in [`search`](SetOptions::search), or with
/// [`relink`](SetOptions::relink) they are pointed at the image again. A child of a VHDX opens at every moment; those of a
/// VHD may not, between an interruption and the next run.
///
/// # Errors
/// `Refused` for children, for a saved state, and when an interrupted change waits to be finished with `relink`;
/// `Unsupported`, `InvalidInput`; `InUse` when the image or a child is; those of opening it. Nothing was written then.
/// What the storages answer while it is written.
pub fn set(path: impl AsRef<Path>, options: &SetOptions) -> Result<SetReport> {
    let path = path.as_ref();
    let held = ChainOptions::new().hold(0..1);
    let mut layer = Chain::open_leaf(path, &held)?;
    let real = fs::canonicalize(path).map_err(|error| Error::io("find the file", error).with_path(path))?;
    let beside = BesideTarget::new(&real, "set");
    let store = options.store.as_deref().or(beside.as_ref().map(|beside| beside as &dyn CheckpointStore));
    let begun = begun(&layer, store)?;
    let changes = options.changes(layer.image()).map_err(|error| layer.blame(error))?;
    let ids: Vec<ImageId> =
        layer.image().id().into_iter().chain(begun.map(|journal| ImageId::Vhd(journal.old))).collect();
    let seen = options.is_seen_by_children(layer.image()).map_err(|error| layer.blame(error))? || begun.is_some();
    let mut report = SetReport { path: Some(path.to_path_buf()), changes, ..SetReport::default() };
    let mut children = Vec::new();
    if seen || options.relink {
        let found = children::find(&ids, &[real.clone()].into(), &options.search)?;
        if seen && !options.relink {
            children::refuse(&found, "--relink points them at the image as it then is").map_err(|e| layer.blame(e))?;
        }
        for file in found {
            let child = Chain::open_leaf(&file, &if options.dry_run { ChainOptions::new() } else { held.clone() })?;
            if children::is_of_another(&child, &real)? {
                report.of_copies.push(file);
            } else {
                children.push(child);
            }
        }
    }
    if begun.is_some() && !options.relink {
        let message = "a change of its unique id was interrupted; its children may name the old one";
        return Err(layer.blame(Error::new(ErrorKind::Refused, message).with_hint("finish it with --relink")));
    }
    if options.dry_run {
        report.relinked = if seen {
            children.iter().filter_map(|child| child.path().map(PathBuf::from)).collect()
        } else {
            Vec::new()
        };
        return Ok(report);
    }
    let done = run::run(&mut layer, &mut children, options, store)
        .map_err(|error| error.with_hint("no data is lost; run the same change again to finish it"))?;
    layer.close()?;
    children.into_iter().try_for_each(Layer::close)?;
    Ok(SetReport { changes: done.changes, relinked: done.relinked, written: done.written, ..report })
}

/// The change of a unique id that was begun and not finished.
fn begun(layer: &Layer, store: Option<&dyn CheckpointStore>) -> Result<Option<Journal>> {
    let (Some(ImageId::Vhd(id)), Some(store)) = (layer.image().id(), store) else { return Ok(None) };
    let saved = store.load()?;
    let journal = saved.map(|bytes| Journal::decode(&bytes)).transpose().map_err(|error| layer.blame(error))?.flatten();
    Ok(journal.filter(|journal| id == journal.old || id == journal.new))
}

/// The items of metadata of the VHDX at `path`: the format's own and users'.
///
/// # Errors
/// `Unsupported` for an image that is no VHDX; those of opening it.
pub fn metadata_items(path: impl AsRef<Path>, chain: &ChainOptions) -> Result<Vec<MetadataEntry>> {
    with_vhdx(path.as_ref(), chain, |image| Ok(image.metadata_items()))
}

/// The bytes of an item of the VHDX at `path`, a user's or the format's; `None` when it has no such item.
///
/// # Errors
/// As [`metadata_items`].
pub fn metadata_item(
    path: impl AsRef<Path>,
    (id, user): (Guid, bool),
    chain: &ChainOptions,
) -> Result<Option<Vec<u8>>> {
    with_vhdx(path.as_ref(), chain, |image| image.metadata_item(id, user))
}

fn with_vhdx<T>(path: &Path, chain: &ChainOptions, ask: impl FnOnce(&crate::vhdx::Vhdx) -> Result<T>) -> Result<T> {
    let layer = Chain::open_leaf(path, &chain.clone().access(Access::Read))?;
    match layer.image() {
        Image::Vhdx(image) => ask(image).map_err(|error| layer.blame(error)),
        other => {
            let message = format_args!("a {} image has no metadata items", other.format());
            Err(layer.blame(Error::new(ErrorKind::Unsupported, message).with_hint("only VHDX images have them")))
        }
    }
}
