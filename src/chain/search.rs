//! Finding a parent by what it is.
//!
//! Owns: the identities of the images in the directories a caller named. Must not know: paths that children hold.

use super::Layer;
use super::open;
use super::options::ChainOptions;
use super::scan::{self, FoundFile};
use crate::error::{Error, ErrorKind, Result};
use crate::link::{ImageId, ParentLink};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The images of the searched directories by identity. Built once per chain, so that a long chain does not read every
/// file again for each of its links.
#[derive(Debug)]
pub(crate) struct Index {
    images: HashMap<ImageId, Vec<FoundFile>>,
    /// How many images there are.
    count: usize,
}

impl Index {
    /// Looks at every file below `directories`.
    ///
    /// # Errors
    /// Those of [`scan::regular_files`]. A file that is no image, or a broken one, is passed over.
    pub(crate) fn build(directories: &[PathBuf]) -> Result<Self> {
        let mut index = Self { images: HashMap::new(), count: 0 };
        let mut seen = std::collections::HashSet::new();
        for directory in directories {
            for file in scan::regular_files(directory)?.files {
                // Hard links, and directories that were named twice, show one file more than once.
                if seen.insert(file.identity)
                    && let Ok(layer) = open_found(&file)
                    && let Some(id) = layer.image().id()
                {
                    index.images.entry(id).or_default().push(file);
                    index.count = index.count.saturating_add(1);
                }
            }
        }
        Ok(index)
    }

    /// How many images were found.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The files that are one of `ids`, by path.
    pub(crate) fn all(&self, ids: &[ImageId]) -> Vec<&FoundFile> {
        let mut found: Vec<&FoundFile> = ids.iter().filter_map(|id| self.images.get(id)).flatten().collect();
        found.sort_by(|one, two| one.path.cmp(&two.path));
        found
    }

    /// The one file that `link` accepts; `None` when there is none.
    ///
    /// # Errors
    /// `Chain` when there are several: which of them is meant only the caller can say.
    pub(super) fn find(&self, link: &ParentLink) -> Result<Option<&FoundFile>> {
        match self.all(&link.ids).as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            several => Err(ambiguous(link, several)),
        }
    }
}

fn ambiguous(link: &ParentLink, files: &[&FoundFile]) -> Error {
    let ids: Vec<String> = link.ids.iter().map(ToString::to_string).collect();
    let files: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
    Error::new(
        ErrorKind::Chain,
        format_args!("several files have the identity of the parent ({}): {}", ids.join(" or "), files.join(", ")),
    )
    .with_hint("name the right one with --parent FILE, or take the others away")
}

/// Opens a file that a walk met, alone, for reading and without a lock; it must still be the same file.
///
/// # Errors
/// Those of opening an image; `InvalidInput` when the path leads to another file now.
pub(crate) fn open_found(file: &FoundFile) -> Result<Layer> {
    let layer = open::open_leaf(&file.path, &ChainOptions::new().locked(false))?;
    require_same(&layer, file)?;
    Ok(layer)
}

/// Lets `layer` through when it is `file`: between the walk and the opening a link may have taken its place, and a link
/// may lead out of the directory.
///
/// # Errors
/// `InvalidInput` when it is not; what the system answers.
pub(super) fn require_same(layer: &Layer, file: &FoundFile) -> Result<()> {
    let path: &Path = &file.path;
    let opened = layer.file().map(crate::storage::FileStorage::identity).transpose();
    let opened = opened.map_err(|error| Error::io("look at the file", error).with_path(path))?;
    if opened == Some(file.identity) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, "the file was replaced while it was looked at").with_path(path))
}
