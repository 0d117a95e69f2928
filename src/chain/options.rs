//! How the files of a chain are opened.
//!
//! Owns: what a caller may say about that. Must not know: how a chain is followed (`open`).

use super::locate::{self, ParentPolicy};
use super::windows::PathMap;
use crate::error::Result;
use crate::link::ParentLink;
use crate::storage::{Access, FileStorage, Lock};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How [`Chain::open`](super::Chain::open) opens the files of a chain.
///
/// By default: for reading, parents from the child's own directory, each file locked against writers.
///
/// A parent is looked for in this order: the file the caller named ([`parent`](Self::parent)), the child's absolute
/// Windows paths where the caller said they are here ([`map`](Self::map)), its relative path, the same name in its own
/// directory, and last by identity in the directories the caller named ([`search`](Self::search)). Wherever it is found,
/// its identity must be the one the child names.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    pub(super) access: Access,
    pub(super) policy: ParentPolicy,
    pub(super) parents: Vec<PathBuf>,
    pub(super) maps: Vec<PathMap>,
    pub(super) search: Vec<PathBuf>,
    pub(super) raw: bool,
    pub(super) locked: bool,
    pub(super) held: Range<usize>,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            access: Access::Read,
            policy: ParentPolicy::default(),
            parents: Vec::new(),
            maps: Vec::new(),
            search: Vec::new(),
            raw: false,
            locked: true,
            held: 0..0,
        }
    }
}

impl ChainOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the leaf is opened for. Parents are always opened for reading.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Which files may be opened as parents.
    #[must_use]
    pub fn policy(mut self, policy: ParentPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Names the file of the next parent, nearest the leaf first, whatever the images say and the policy allows. Its
    /// identity is checked all the same.
    #[must_use]
    pub fn parent(mut self, path: impl Into<PathBuf>) -> Self {
        self.parents.push(path.into());
        self
    }

    /// Says that the Windows directory `from` is the local directory `to`: `D:\VMs`, `\\server\share` or any directory
    /// below, `\\?\Volume{...}`; with or without `\\?\`, in any case, whole names only (`D:\VM` is not the start of
    /// `D:\VMs`). May be said of several; the one that names more of a path is tried first.
    ///
    /// A parent found so is opened whatever the policy, as long as its real path lies below `to`.
    ///
    /// # Errors
    /// `InvalidInput` when `from` is not an absolute Windows path.
    pub fn map(self, from: &str, to: impl Into<PathBuf>) -> Result<Self> {
        Ok(self.path_map(PathMap::new(from, to)?))
    }

    /// As [`map`](Self::map), with a map that is made already.
    #[must_use]
    pub fn path_map(mut self, map: PathMap) -> Self {
        self.maps.push(map);
        self
    }

    /// Looks for parents by their identity in `directory` and below when their paths lead nowhere; may be said of
    /// several. Regular files only, symbolic links are not followed, at most
    /// [`MAX_SEARCH_ENTRIES`](super::MAX_SEARCH_ENTRIES) entries and [`MAX_SEARCH_DEPTH`](super::MAX_SEARCH_DEPTH)
    /// directories deep. Two files with the identity are an error that names both.
    ///
    /// A parent found so is opened whatever the policy.
    #[must_use]
    pub fn search(mut self, directory: impl Into<PathBuf>) -> Self {
        self.search.push(directory.into());
        self
    }

    /// What Windows calls the file whose real path is `real`, by the map that names most of it.
    pub(crate) fn windows_path(&self, real: &Path) -> Option<String> {
        let spelled = self.maps.iter().filter_map(|map| Some((map.depth(), map.windows_path(real)?)));
        spelled.max_by_key(|&(depth, _)| depth).map(|(_, path)| path)
    }

    /// The directories that are searched.
    pub(crate) fn searched(&self) -> &[PathBuf] {
        &self.search
    }

    /// Whether any directory is mapped.
    pub(crate) fn has_maps(&self) -> bool {
        !self.maps.is_empty()
    }

    /// The same without maps.
    pub(crate) fn without_maps(mut self) -> Self {
        self.maps.clear();
        self
    }

    /// The real paths of the files that the paths in `link`, of the child at `child`, lead to.
    pub(crate) fn named_by(&self, child: &Path, link: &ParentLink) -> Result<Vec<PathBuf>> {
        Ok(locate::candidates(child, link, &self.policy, &self.maps)?.found)
    }

    /// The leaf is a raw disk image: its bytes are not looked at to tell what it is.
    #[must_use]
    pub fn raw(mut self, raw: bool) -> Self {
        self.raw = raw;
        self
    }

    /// Whether files are locked: against other writers when reading, against everybody when writing. Reading without
    /// locks shows whatever a writer has got to.
    #[must_use]
    pub fn locked(mut self, locked: bool) -> Self {
        self.locked = locked;
        self
    }

    /// Opens the files of these layers so that they can be written later, locked against everybody, though their images
    /// are opened for reading first.
    pub(crate) fn hold(mut self, layers: Range<usize>) -> Self {
        self.held = layers;
        self
    }

    /// The same for a chain from which `layers` are gone: their files, where the caller named them, are not looked for.
    pub(crate) fn without_layers(mut self, layers: Range<usize>) -> Self {
        // The leaf has no place in the list.
        let place = |layer: usize| layer.saturating_sub(1).min(self.parents.len());
        let gone = place(layers.start)..place(layers.end);
        self.parents.drain(gone);
        self
    }

    /// Whether files are locked.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    /// Opens the file of layer `index`.
    ///
    /// # Errors
    /// As [`FileStorage::open`].
    pub(super) fn open_file(&self, path: &Path, index: usize) -> Result<FileStorage> {
        let writes = self.held.contains(&index) || (index == 0 && self.access.writes());
        let access = if writes { Access::Write } else { Access::Read };
        let lock = match (self.locked, writes) {
            (false, _) => Lock::None,
            (true, true) => Lock::Exclusive,
            (true, false) => Lock::Shared,
        };
        FileStorage::open(path, access, lock)
    }
}
