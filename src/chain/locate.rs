//! Finding a parent's file from the paths a child holds.
//!
//! Owns: the order of the places, and which files an image may make us open. Must not know: image formats, how Windows
//! spells a root (`windows`).

use super::windows::{PathMap, WindowsPath};
use crate::error::{Error, ErrorKind, Result};
use crate::link::{HintKind, ParentLink, PathHint};
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The most entries of one directory that are looked at to find a name in another case.
pub const MAX_DIRECTORY_ENTRIES: usize = 100_000;

/// The most components of one path that are looked for in another case: each costs a listing, and `a\..\A\..` would ask
/// for as many as it likes.
const MAX_CASE_SEARCHES: u32 = 64;

/// The most components of a path taken from an image; Windows allows 32 767 characters in all.
pub(super) const MAX_PATH_COMPONENTS: usize = 1024;

/// Which files an image may make this crate open as its parent. Checked on the real path, symbolic links resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParentPolicy {
    /// None: a differencing image does not open as a chain.
    Deny,
    /// Files in the child's own directory.
    #[default]
    SameDirectory,
    /// Files in this directory or below it.
    Under(PathBuf),
    /// Only the files the caller listed ([`ChainOptions::parent`](super::ChainOptions::parent)).
    Explicit,
    /// Any file. For images whose origin is trusted.
    Anywhere,
}

/// What looking for one parent led to.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// Files that exist and that the policy lets be opened, best first, real paths.
    pub(super) found: Vec<PathBuf>,
    /// Files that exist but that the policy keeps shut.
    pub(super) denied: Vec<PathBuf>,
    /// Where nothing was.
    pub(super) missing: Vec<PathBuf>,
}

/// The files that `link` of the child at `child` may mean: where `maps` lead first, then what `policy` allows.
pub(super) fn candidates(
    child: &Path,
    link: &ParentLink,
    policy: &ParentPolicy,
    maps: &[PathMap],
) -> Result<Candidates> {
    let mut result = Candidates::default();
    mapped(link, maps, &mut result);
    if *policy == ParentPolicy::Deny || *policy == ParentPolicy::Explicit {
        return Ok(result);
    }
    let directory = directory_of(child)?;
    for hint in &link.hints {
        for path in paths_for(&directory, hint, policy) {
            match fs::canonicalize(&path) {
                Ok(real) if allowed(&real, &directory, policy) => push_new(&mut result.found, real),
                Ok(real) => push_new(&mut result.denied, real),
                Err(_) => push_new(&mut result.missing, path),
            }
        }
    }
    Ok(result)
}

/// Adds the files that `maps` make of the absolute paths in `link`. Whoever gave a map wants files of its directory to be
/// opened, whatever the policy; a link that leads out of it was not meant.
fn mapped(link: &ParentLink, maps: &[PathMap], result: &mut Candidates) {
    let mut maps: Vec<&PathMap> = maps.iter().collect();
    maps.sort_by_key(|map| std::cmp::Reverse(map.depth()));
    for path in link.hints.iter().filter_map(|hint| WindowsPath::parse(&hint.path)) {
        for map in &maps {
            let Some(parts) = map.apply(&path) else { continue };
            let Ok(root) = fs::canonicalize(map.to()) else {
                push_new(&mut result.missing, map.to().to_path_buf());
                continue;
            };
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let path = walk(&root, &parts);
            match fs::canonicalize(&path) {
                Ok(real) if real.starts_with(&root) => push_new(&mut result.found, real),
                Ok(real) => push_new(&mut result.denied, real),
                Err(_) => push_new(&mut result.missing, path),
            }
        }
    }
}

/// The real directory a file lies in.
pub(super) fn directory_of(file: &Path) -> Result<PathBuf> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::canonicalize(directory).map_err(|error| Error::io("find the directory of the image", error).with_path(file))
}

fn push_new(list: &mut Vec<PathBuf>, path: PathBuf) {
    if !list.contains(&path) {
        list.push(path);
    }
}

fn allowed(real: &Path, directory: &Path, policy: &ParentPolicy) -> bool {
    match policy {
        ParentPolicy::Deny | ParentPolicy::Explicit => false,
        ParentPolicy::SameDirectory => real.parent() == Some(directory),
        ParentPolicy::Under(root) => fs::canonicalize(root).is_ok_and(|root| real.starts_with(root)),
        ParentPolicy::Anywhere => true,
    }
}

/// Where `hint` may lead, best first. A Windows absolute or volume path means nothing here, but its last part, looked
/// for beside the child, often does: files are moved together.
fn paths_for(directory: &Path, hint: &PathHint, policy: &ParentPolicy) -> Vec<PathBuf> {
    let parts: Vec<&str> = hint.path.split(['\\', '/']).filter(|part| !part.is_empty()).collect();
    if parts.len() > MAX_PATH_COMPONENTS {
        return Vec::new();
    }
    let mut paths = Vec::new();
    let unix_absolute = hint.path.starts_with('/') && !hint.path.starts_with("//");
    match hint.kind {
        HintKind::Relative => paths.push(walk(directory, &parts)),
        HintKind::Absolute if unix_absolute && *policy != ParentPolicy::SameDirectory => {
            paths.push(walk(Path::new("/"), &parts));
        }
        HintKind::Volume | HintKind::Absolute | HintKind::Name => {}
    }
    // A drive-relative oddity such as `C:name` is cut at the colon like a separator.
    let last = parts.last().map(|part| part.rsplit(':').next().unwrap_or(part));
    if let Some(name) = last.filter(|name| *name != "." && *name != "..") {
        paths.push(walk(directory, &[name]));
    }
    paths
}

/// `start` followed by `parts`, each spelled as the directory spells it.
fn walk(start: &Path, parts: &[&str]) -> PathBuf {
    let mut path = start.to_path_buf();
    let mut searches = MAX_CASE_SEARCHES;
    for part in parts {
        match *part {
            "." => {}
            ".." => path.push(".."),
            name if fs::symlink_metadata(path.join(name)).is_ok() || searches == 0 => path.push(name),
            name => {
                searches = searches.saturating_sub(1);
                path = child_named(&path, name);
            }
        }
    }
    path
}

/// The entry of `directory` that differs from `name` by case alone, if it is the only one; else `name` as spelled.
fn child_named(directory: &Path, name: &str) -> PathBuf {
    let exact = directory.join(name);
    let Ok(entries) = fs::read_dir(directory) else { return exact };
    let wanted = name.to_lowercase();
    let mut same = entries
        .take(MAX_DIRECTORY_ENTRIES)
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name()))
        .filter(|entry| entry.to_str().is_some_and(|entry| entry.to_lowercase() == wanted));
    match (same.next(), same.next()) {
        (Some(only), None) => directory.join(only),
        _ => exact,
    }
}

/// The path of `file` relative to the directory of `from`, spelled for Windows: `.\name` or `..\dir\name`.
///
/// # Errors
/// `InvalidInput` when a part of the path is not valid Unicode (the formats hold UTF-16); `NotFound` and its like when a
/// directory is not there.
pub(crate) fn relative_windows_path(from: &Path, file: &Path) -> Result<String> {
    let base = directory_of(from)?;
    let directory = directory_of(file)?;
    let name = file.file_name().ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "the parent's path does not end in a file name").with_path(file)
    })?;
    let mut up = base.components().peekable();
    let mut down = directory.components().peekable();
    while up.peek().is_some() && up.peek() == down.peek() {
        up.next();
        down.next();
    }
    let mut parts: Vec<&OsStr> = up.map(|_| OsStr::new("..")).collect();
    if parts.is_empty() {
        parts.push(OsStr::new("."));
    }
    parts.extend(down.map(Component::as_os_str));
    parts.push(name);
    let text: Option<Vec<&str>> = parts.into_iter().map(OsStr::to_str).collect();
    text.map(|parts| parts.join("\\")).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, "the parent's path is not valid Unicode and cannot be written into a child")
            .with_path(file)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn hint(kind: HintKind, path: &str) -> ParentLink {
        ParentLink { ids: Vec::new(), hints: vec![PathHint { kind, path: path.to_owned() }] }
    }

    #[test]
    fn windows_paths_find_files_in_any_case_and_only_inside_the_policy() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        fs::create_dir_all(root.join("vm/Snap")).unwrap();
        fs::write(root.join("vm/Base.VHDX"), b"").unwrap();
        fs::write(root.join("other.vhdx"), b"").unwrap();
        let child = root.join("vm/Snap/child.avhdx");
        fs::write(&child, b"").unwrap();
        let up = hint(HintKind::Relative, "..\\base.vhdx");
        let found = |link: &ParentLink, policy: ParentPolicy| candidates(&child, link, &policy, &[]).unwrap();
        assert_eq!(found(&up, ParentPolicy::Anywhere).found, [root.join("vm/Base.VHDX")]);
        assert_eq!(found(&up, ParentPolicy::Under(root.join("vm"))).found, [root.join("vm/Base.VHDX")]);
        let same = found(&up, ParentPolicy::SameDirectory);
        assert!(same.found.is_empty());
        assert_eq!(same.denied, [root.join("vm/Base.VHDX")]);
        let far = hint(HintKind::Relative, "..\\..\\other.vhdx");
        assert_eq!(found(&far, ParentPolicy::Under(root.join("vm"))).denied, [root.join("other.vhdx")]);
        assert!(found(&up, ParentPolicy::Deny).found.is_empty());
        assert!(found(&up, ParentPolicy::Explicit).found.is_empty());
    }

    #[test]
    fn a_moved_absolute_path_is_found_by_its_name_and_a_link_out_is_denied() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        fs::create_dir(root.join("in")).unwrap();
        fs::write(root.join("in/p.vhd"), b"").unwrap();
        fs::write(root.join("secret"), b"").unwrap();
        std::os::unix::fs::symlink(root.join("secret"), root.join("in/q.vhd")).unwrap();
        let child = root.join("in/c.vhd");
        let absolute = hint(HintKind::Absolute, "C:\\Old\\place\\P.vhd");
        let found = candidates(&child, &absolute, &ParentPolicy::SameDirectory, &[]).unwrap();
        assert_eq!(found.found, [root.join("in/p.vhd")]);
        let link = hint(HintKind::Name, "q.vhd");
        let found = candidates(&child, &link, &ParentPolicy::SameDirectory, &[]).unwrap();
        assert!(found.found.is_empty());
        assert_eq!(found.denied, [root.join("secret")]);
        let unix = hint(HintKind::Absolute, root.join("secret").to_str().unwrap());
        let found = candidates(&child, &unix, &ParentPolicy::SameDirectory, &[]).unwrap();
        assert!(found.found.is_empty() && found.denied.is_empty(), "an absolute path is not even looked at");
    }

    #[test]
    fn a_path_that_asks_for_many_listings_is_given_up() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dir")).unwrap();
        fs::write(root.path().join("p.vhd"), b"").unwrap();
        let child = root.path().join("c.vhd");
        let found = |times: usize| {
            let path = "DIR\\..\\".repeat(times) + "p.vhd";
            let parts: Vec<&str> = path.split('\\').collect();
            walk(child.parent().unwrap(), &parts).exists()
        };
        assert!(found(MAX_CASE_SEARCHES as usize));
        assert!(!found(MAX_CASE_SEARCHES as usize + 1), "DIR is not there as spelled");
    }

    #[test]
    fn two_names_that_differ_by_case_are_not_chosen_between() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("A.vhd"), b"").unwrap();
        fs::write(root.path().join("a.VHD"), b"").unwrap();
        let child = root.path().join("c.vhd");
        let found = candidates(&child, &hint(HintKind::Name, "a.vhd"), &ParentPolicy::SameDirectory, &[]).unwrap();
        assert!(found.found.is_empty());
        assert_eq!(found.missing.len(), 1);
    }

    #[test]
    fn relative_paths_are_written_for_windows() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::create_dir_all(root.path().join("a/c")).unwrap();
        let relative = |from: &str, to: &str| relative_windows_path(&root.path().join(from), &root.path().join(to));
        assert_eq!(relative("a/x", "a/y").unwrap(), ".\\y");
        assert_eq!(relative("a/b/x", "a/y").unwrap(), "..\\y");
        assert_eq!(relative("a/b/x", "a/c/y").unwrap(), "..\\c\\y");
        assert_eq!(relative("a/x", "a/c/y").unwrap(), ".\\c\\y");
    }
}
