//! Chains: a list of images, leaf first, read as one disk.
//!
//! Owns: [`Chain`] and how layers compose. Must not know: what a caller wants the bytes for.
//!
//! Layers compose nearest first: a layer that holds or zeroes a range decides it, an absent range is asked of the next
//! one, and a range past a layer's end reads as zeros whatever lies deeper. `Chain::layers()[0]` is the leaf, which is
//! *depth 1* in the words of the merge functions.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod holders;
mod io;
mod kin;
mod link;
mod locate;
mod marks;
mod open;
mod options;
mod pieces;
mod scan;
mod search;
mod windows;

pub use io::ChainReader;
pub(crate) use link::{check as check_link, stackable as check_stackable};
pub(crate) use locate::relative_windows_path;
pub use locate::{MAX_DIRECTORY_ENTRIES, ParentPolicy};
pub(crate) use marks::note as note_marks;
#[cfg(feature = "registry")]
pub(crate) use marks::resync_mark;
pub use options::ChainOptions;
pub(crate) use pieces::piece_at;
pub use pieces::{Owner, Piece, Pieces};
pub(crate) use scan::{FoundFile, regular_files};
pub use scan::{MAX_SEARCH_DEPTH, MAX_SEARCH_ENTRIES};
pub(crate) use search::{Index, open_found};
pub use windows::PathMap;
pub(crate) use windows::is_windows_path;

use crate::copy::Origin;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::guest::ReadAt;
use crate::image::Image;
use crate::mend::Assumption;
use crate::storage::{Access, FileStorage, Storage};
use holders::Known;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most layers one chain may have; what a hostile directory can make us open is bounded by it.
pub const MAX_LAYERS: usize = 4096;

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    image: Image,
    path: Option<PathBuf>,
    storage: Arc<dyn Storage>,
    file: Option<Arc<FileStorage>>,
    findings: Findings,
    /// What had to be assumed for it to open.
    assumptions: Vec<Assumption>,
}

impl Layer {
    /// A layer without a file name, over `storage`.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn open(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        let mut findings = Findings::new();
        let image = Image::open(Arc::clone(&storage), access, &mut findings)?;
        Ok(Self { image, path: None, storage, file: None, findings, assumptions: Vec::new() })
    }

    /// A layer over `storage`, whose image may be damaged: what it lacks to be opened is made up in memory, and
    /// [`assumptions`](Self::assumptions) says what. `storage` is never written, and what cannot be read of the disk
    /// stays an error.
    ///
    /// # Errors
    /// `UnknownFormat` when no trace of either format is left; `Corrupt` when too little is left to say which bytes belong
    /// where; `Unsupported`.
    pub fn open_damaged(storage: &Arc<dyn Storage>) -> Result<Self> {
        let salvaged = Image::salvage(storage)?;
        let layer = Self::open(salvaged.view, Access::Read)?;
        Ok(Self { assumptions: salvaged.assumptions, ..layer })
    }

    /// As [`open`](Self::open), of a flat disk: because the caller says so, its bytes are not looked at.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn open_raw(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        let image = Image::open_raw(Arc::clone(&storage), access)?;
        Ok(Self { image, path: None, storage, file: None, findings: Findings::new(), assumptions: Vec::new() })
    }

    /// The same layer with a name for messages and relative links.
    #[must_use]
    pub fn named(mut self, path: impl Into<PathBuf>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    pub(crate) fn image_mut(&mut self) -> &mut Image {
        &mut self.image
    }

    /// The bytes of its file.
    pub(crate) fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// The open file, when it was opened by name.
    pub(crate) fn file(&self) -> Option<&FileStorage> {
        self.file.as_deref()
    }

    /// The same, for who wants to hold its lock longer than the chain does.
    pub(crate) fn held_file(&self) -> Option<Arc<FileStorage>> {
        self.file.clone()
    }

    /// Opens the image anew for `access`, over the storage it has.
    pub(crate) fn reopen(&mut self, access: Access) -> Result<()> {
        // Two writers of one file do not know of each other, and the old one lives until the new one is there.
        self.image.finish().map_err(|error| self.blame(error))?;
        let mut findings = Findings::new();
        let storage = Arc::clone(&self.storage);
        let image = match &self.image {
            Image::Raw(_) => Image::open_raw(storage, access),
            _ => Image::open(storage, access, &mut findings),
        };
        self.image = image.map_err(|error| self.blame(error))?;
        Ok(())
    }

    /// Ends a writing session cleanly.
    pub(crate) fn close(self) -> Result<()> {
        let closed = self.image.close();
        closed.map_err(|error| match &self.path {
            Some(path) => error.with_path(path),
            None => error,
        })
    }

    /// The length of its file in bytes.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn file_size(&self) -> Result<u64> {
        self.storage.len().map_err(|error| self.blame(Error::io("read the file length", error)))
    }

    /// Its file, when it was opened by name.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What was odd about it when it was opened.
    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// What had to be assumed for it to open; empty unless it was [opened damaged](Self::open_damaged).
    #[must_use]
    pub fn assumptions(&self) -> &[Assumption] {
        &self.assumptions
    }

    /// `error`, said of this layer's file.
    pub(crate) fn blame(&self, error: Error) -> Error {
        match &self.path {
            Some(path) => error.with_path(path),
            None => error,
        }
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> String {
        self.path.as_ref().map_or_else(|| "an unnamed image".to_owned(), |path| path.display().to_string())
    }
}

impl Origin for Layer {
    fn storage(&self) -> &dyn Storage {
        self.image.map().storage()
    }

    fn blame(&self, error: Error) -> Error {
        Self::blame(self, error)
    }
}

/// A virtual disk made of one or more images. Reading is `&self` and may be done from many threads.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    /// Of a long chain, the layers that matter to parts of the disk. Whoever gets at a layer to change it clears this.
    known: Box<Known>,
}

impl Chain {
    /// Opens the image at `path` and the parents it names, under `options`.
    ///
    /// # Errors
    /// Those of [`Image::open`] for each file; `ParentNotFound`, `ParentMismatch`, `ParentDenied`, `Cycle`, `Chain` for
    /// the links between them; `InUse` when another process holds a file.
    pub fn open(path: impl AsRef<Path>, options: &ChainOptions) -> Result<Self> {
        let layers = open::open_layers(path.as_ref(), options)?;
        Ok(Self::of(layers))
    }

    fn of(layers: Vec<Layer>) -> Self {
        Self { layers, known: Box::default() }
    }

    /// Opens the image at `path` alone: its parents are not looked for, so it answers for itself only.
    ///
    /// # Errors
    /// As [`Image::open`]; `InUse`.
    pub fn open_leaf(path: impl AsRef<Path>, options: &ChainOptions) -> Result<Layer> {
        open::open_leaf(path.as_ref(), options)
    }

    /// Opens the parent that `child` names, for reading; `None` when it names none.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn find_parent(child: &Layer, options: &ChainOptions) -> Result<Option<Layer>> {
        open::find_parent(child, options)
    }

    /// The layers of the chain whose leaf is at `path`, each [opened damaged](Layer::open_damaged); the leaf alone when
    /// `alone`.
    pub(crate) fn open_damaged(path: &Path, options: &ChainOptions, alone: bool) -> Result<Vec<Layer>> {
        open::open_damaged(path, options, alone)
    }

    /// The layers from the leaf at `path` down to where the chain breaks, and what it breaks on.
    pub(crate) fn open_as_far(path: &Path, options: &ChainOptions) -> Result<(Vec<Layer>, Option<Error>)> {
        open::open_as_far(path, options)
    }

    /// Makes a chain of images that are open already, leaf first. Every link is checked; the last must not need a
    /// parent.
    ///
    /// # Errors
    /// `ParentMismatch`, `ParentNotFound`, `Chain`; `InvalidInput` for no layers at all.
    pub fn from_layers(layers: Vec<Layer>) -> Result<Self> {
        let Some(last) = layers.last() else {
            return Err(Error::new(ErrorKind::InvalidInput, "a chain needs at least one image"));
        };
        if last.image.parent_link().is_some() {
            return Err(last.blame(Error::new(ErrorKind::ParentNotFound, "the last image of the chain needs a parent")));
        }
        for (child, parent) in layers.iter().zip(layers.iter().skip(1)) {
            link::check(child, parent)?;
        }
        Ok(Self::of(layers))
    }

    /// The chain of `leaf` alone: whether it stands on others is not looked at, and what it does not say reads as zeros.
    pub(crate) fn of_leaf(leaf: Layer) -> Self {
        Self { layers: vec![leaf], known: Box::default() }
    }

    /// The images, leaf first; never empty.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The leaf.
    #[must_use]
    pub fn leaf(&self) -> &Layer {
        // A chain is never empty: every constructor checks.
        #[expect(clippy::indexing_slicing, reason = "never empty")]
        &self.layers[0]
    }

    /// The virtual size in bytes: the leaf's.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.leaf().image.virtual_size()
    }

    /// The logical sector size in bytes, the same in every layer.
    #[must_use]
    pub fn logical_sector_size(&self) -> u32 {
        self.leaf().image.logical_sector_size()
    }

    /// Opens layer `index` anew for `access`, over the storage it has.
    pub(crate) fn reopen(&mut self, index: usize, access: Access) -> Result<()> {
        self.layer_mut(index)?.reopen(access)
    }

    /// Layer `index`, leaf = 0.
    pub(crate) fn layer(&self, index: usize) -> Result<&Layer> {
        self.layers.get(index).ok_or_else(|| no_layer(index))
    }

    pub(crate) fn layer_mut(&mut self, index: usize) -> Result<&mut Layer> {
        self.known.clear();
        self.layers.get_mut(index).ok_or_else(|| no_layer(index))
    }

    /// The layers above `index`, and that layer's image to write through.
    pub(crate) fn split_at_target(&mut self, index: usize) -> Result<(&mut [Layer], &mut Image)> {
        self.known.clear();
        let (above, rest) = self.layers.split_at_mut_checked(index).ok_or_else(|| no_layer(index))?;
        let target = rest.first_mut().ok_or_else(|| no_layer(index))?;
        Ok((above, &mut target.image))
    }

    /// Ends every writable layer cleanly, leaf first.
    ///
    /// # Errors
    /// The first failure, with the file it happened to; the other layers are closed all the same.
    pub fn close(self) -> Result<()> {
        let mut first = Ok(());
        for layer in self.layers {
            first = first.and(layer.close());
        }
        first
    }
}

fn no_layer(index: usize) -> Error {
    Error::new(ErrorKind::Chain, format_args!("the chain has no layer {index}"))
}

impl ReadAt for Chain {
    fn size(&self) -> u64 {
        self.virtual_size()
    }

    fn sector_size(&self) -> u32 {
        self.logical_sector_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Self::read_at(self, buf, offset)
    }
}
