//! The images that stand on a file.
//!
//! Owns: where they are looked for and what makes one. Must not know: what is done about them.

use crate::chain::{Chain, ChainOptions, Layer, regular_files};
use crate::error::{Error, ErrorKind, Result};
use crate::link::ImageId;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The most files of one directory that are looked at.
const MAX_FILES: usize = 100_000;

/// The images beside those that are `own`, and below the directories of `search`, whose parent is one of `ids`; what is
/// `own` is left out. Sorted. A file that cannot be opened is no image to us and is passed over.
///
/// # Errors
/// What the system answers for a directory of `search`.
pub(super) fn find(ids: &[ImageId], own: &BTreeSet<PathBuf>, search: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let beside: BTreeSet<&Path> = own.iter().filter_map(|path| path.parent()).collect();
    let mut files: BTreeSet<PathBuf> = beside.into_iter().flat_map(files_in).collect();
    for directory in search {
        files.extend(regular_files(directory)?.files.into_iter().map(|file| file.path));
    }
    Ok(files.into_iter().filter(|path| !own.contains(path) && stands_on(path, ids)).collect())
}

/// As [`find`], of the one file at `path`.
///
/// # Errors
/// As [`find`]; what the system answers for the file.
pub(super) fn of_file(path: &Path, ids: &[ImageId], search: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let real = fs::canonicalize(path).map_err(|error| Error::io("find the file", error).with_path(path))?;
    find(ids, &BTreeSet::from([real]), search)
}

/// Refuses to make `children` (when there are any) lose the parent they were made over.
///
/// # Errors
/// `Refused`, naming them.
pub(super) fn refuse(children: &[PathBuf], hint: &str) -> Result<()> {
    if children.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = children.iter().map(|path| path.display().to_string()).collect();
    let message = match names.as_slice() {
        [one] => format!("the image {one} stands on this one and would lose its parent"),
        _ => format!("{} images stand on this one and would lose their parent: {}", names.len(), names.join(", ")),
    };
    Err(Error::new(ErrorKind::Refused, message).with_hint(hint))
}

/// Whether the paths that `child` holds lead to another file than `parent` first, one with the same identity: a copy of
/// the parent has children of its own.
///
/// # Errors
/// What the system answers.
pub(super) fn is_of_another(child: &Layer, parent: &Path) -> Result<bool> {
    let (Some(link), Some(path)) = (child.image().parent_link(), child.path()) else { return Ok(false) };
    let is_it = |file: &Path| {
        let layer = Chain::open_leaf(file, &ChainOptions::new().locked(false));
        layer.is_ok_and(|layer| layer.image().id().is_some_and(|id| link.accepts(id)))
    };
    let led_to = ChainOptions::new().named_by(path, &link)?;
    let first = led_to.iter().find(|file| *file == parent || is_it(file));
    Ok(first.is_some_and(|file| file != parent))
}

/// The regular files of `directory` itself; none when it cannot be read.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let regular = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    entries.take(MAX_FILES).flatten().filter(regular).map(|entry| entry.path()).collect()
}

fn stands_on(path: &Path, ids: &[ImageId]) -> bool {
    let options = ChainOptions::new().locked(false);
    let Ok(layer) = Chain::open_leaf(path, &options) else { return false };
    layer.image().parent_link().is_some_and(|link| ids.iter().any(|&id| link.accepts(id)))
}
