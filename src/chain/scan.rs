//! The files below a directory.
//!
//! Owns: the walk: how many entries, how deep, and that no symbolic link is followed. Must not know: what the files hold.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileIdentity;
use std::fs;
use std::path::{Path, PathBuf};

/// The most entries below one directory that are looked at. A search that stopped silently could miss the second of two
/// files that are alike, so more of them are an error.
pub const MAX_SEARCH_ENTRIES: usize = 100_000;

/// How many directories deep a search goes; deeper ones are passed over.
pub const MAX_SEARCH_DEPTH: usize = 16;

/// A regular file that was met.
#[derive(Clone, Debug)]
pub(crate) struct FoundFile {
    /// Its path, below the real path of the directory, so a real path itself.
    pub(crate) path: PathBuf,
    /// Which file it was: what is opened by that path later must be the same.
    pub(crate) identity: FileIdentity,
}

/// What a walk met.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Regular files, sorted by path. One that has two names (hard links) is listed twice.
    pub(crate) files: Vec<FoundFile>,
    /// Directories that could not be read, or lie too deep.
    pub(crate) skipped: Vec<PathBuf>,
}

/// Walks the tree below `directory`.
///
/// # Errors
/// `InvalidInput` when there are more than [`MAX_SEARCH_ENTRIES`] entries; what the system answers for `directory`
/// itself.
pub(crate) fn regular_files(directory: &Path) -> Result<Scan> {
    let failed = |error| Error::io("search the directory", error).with_path(directory);
    let root = fs::canonicalize(directory).map_err(failed)?;
    drop(fs::read_dir(&root).map_err(failed)?);
    let mut scan = Scan::default();
    let mut left = MAX_SEARCH_ENTRIES;
    let mut open = vec![(root, 0usize)];
    while let Some((folder, depth)) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            scan.skipped.push(folder);
            continue;
        };
        for entry in entries {
            left = left.checked_sub(1).ok_or_else(|| too_many(directory))?;
            // An entry that went away meanwhile is none; its kind is its own, not that of what a link points to.
            let Ok(entry) = entry else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_file() {
                scan.files.push(FoundFile { path: entry.path(), identity: FileIdentity::of(&metadata) });
            } else if metadata.is_dir() && depth < MAX_SEARCH_DEPTH {
                open.push((entry.path(), depth.saturating_add(1)));
            } else if metadata.is_dir() {
                scan.skipped.push(entry.path());
            }
        }
    }
    scan.files.sort_by(|one, two| one.path.cmp(&two.path));
    scan.skipped.sort();
    Ok(scan)
}

fn too_many(directory: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format_args!("more than {MAX_SEARCH_ENTRIES} files and directories lie below this one"),
    )
    .with_path(directory)
    .with_hint("name a directory further down")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn regular_files_are_found_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::write(elsewhere.path().join("out"), b"").unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/two"), b"").unwrap();
        fs::write(root.join("one"), b"").unwrap();
        fs::hard_link(root.join("one"), root.join("uno")).unwrap();
        symlink(root.join("one"), root.join("link")).unwrap();
        symlink(elsewhere.path(), root.join("way-out")).unwrap();
        symlink(&root, root.join("a/loop")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let scan = regular_files(dir.path()).unwrap();
        let paths: Vec<_> = scan.files.iter().map(|file| file.path.clone()).collect();
        assert_eq!(paths, [root.join("a/b/two"), root.join("one"), root.join("uno")]);
        assert_eq!(scan.files[1].identity, scan.files[2].identity);
        assert_ne!(scan.files[0].identity, scan.files[1].identity);
        assert!(scan.skipped.is_empty());
    }

    #[test]
    fn a_tree_that_is_too_deep_is_cut_and_a_missing_directory_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let deepest: PathBuf = (0..=MAX_SEARCH_DEPTH).fold(root.clone(), |path, _| path.join("d"));
        fs::create_dir_all(&deepest).unwrap();
        fs::write(deepest.join("hidden"), b"").unwrap();
        fs::write(deepest.parent().unwrap().join("seen"), b"").unwrap();
        let scan = regular_files(&root).unwrap();
        assert_eq!(scan.files.len(), 1);
        assert_eq!(scan.skipped, [deepest]);
        let missing = regular_files(&root.join("no")).unwrap_err();
        assert_eq!((missing.kind(), missing.path()), (ErrorKind::NotFound, Some(root.join("no").as_path())));
        fs::write(root.join("file"), b"").unwrap();
        assert!(regular_files(&root.join("file")).is_err());
    }
}
