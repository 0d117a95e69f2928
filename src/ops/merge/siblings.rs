//! Other images that stand on the files a merge changes.
//!
//! Owns: where they are looked for and what makes one. Must not know: what is done about them.

use super::{MergeOptions, Span};
use crate::chain::{Chain, ChainOptions, regular_files};
use crate::error::Result;
use crate::link::ImageId;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The most files of one directory that are looked at.
const MAX_FILES: usize = 100_000;

/// The images near `chain` whose parent is a file that the merge of `span` changes or deletes, and that are not of the
/// chain themselves. Sorted. A file that cannot be opened is no image to us and is passed over.
pub(super) fn find(chain: &Chain, span: Span, options: &MergeOptions) -> Result<Vec<PathBuf>> {
    let layers = chain.layers();
    let real = |path: &Path| fs::canonicalize(path).ok();
    let own: BTreeSet<PathBuf> = layers.iter().filter_map(|layer| layer.path().and_then(real)).collect();
    // The source itself goes on showing what it showed, so its children are safe unless it is deleted.
    let first = if options.delete { span.source } else { span.source + 1 };
    let ids: Vec<ImageId> = layers[first..=span.target].iter().filter_map(|layer| layer.image().id()).collect();
    let beside: BTreeSet<&Path> = own.iter().filter_map(|path| path.parent()).collect();
    let mut files: BTreeSet<PathBuf> = beside.into_iter().flat_map(files_in).collect();
    for directory in &options.search {
        files.extend(regular_files(directory)?.files.into_iter().map(|file| file.path));
    }
    Ok(standing_on(&ids, &own, files))
}

/// The images beside those that are `own` whose parent is one of `ids`.
pub(in crate::ops) fn beside(ids: &[ImageId], own: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let directories: BTreeSet<&Path> = own.iter().filter_map(|path| path.parent()).collect();
    let files: BTreeSet<PathBuf> = directories.into_iter().flat_map(files_in).collect();
    standing_on(ids, own, files)
}

/// Those of `files` whose parent is one of `ids`, what is `own` left out.
fn standing_on(ids: &[ImageId], own: &BTreeSet<PathBuf>, files: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    files.into_iter().filter(|path| !own.contains(path) && stands_on(path, ids)).collect()
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
