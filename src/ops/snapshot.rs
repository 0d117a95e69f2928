//! A new leaf on a chain.
//!
//! Owns: what a snapshot's file is called. Must not know: what a child has to know of its parent (`create`).

use super::children;
use super::create::{CreateOptions, create};
use crate::chain::{Chain, ChainOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Format;
use crate::link::DiskKind;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The highest number tried in a name that is made up.
const MAX_NUMBER: u64 = 1_000_000;

/// How to make a snapshot.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    child: Option<PathBuf>,
    chain: ChainOptions,
    dry_run: bool,
}

impl SnapshotOptions {
    /// The child gets the next free name of the form `NAME-N.vhdx` beside the leaf.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The child's file. It must not exist.
    #[must_use]
    pub fn child(mut self, path: impl Into<PathBuf>) -> Self {
        self.child = Some(path.into());
        self
    }

    /// How the chain is opened.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }

    /// Check everything and make nothing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// What [`snapshot`] made, or with [`dry_run`](SnapshotOptions::dry_run) would make; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SnapshotReport {
    /// The new leaf: what is to be attached from now on.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub child: PathBuf,
    /// The former leaf. Whoever writes to it makes the child invalid.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub parent: PathBuf,
    /// The format of both.
    pub format: Format,
    /// The disk's size.
    pub virtual_size: u64,
    /// Other images that stand on the former leaf, beside it.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub siblings: Vec<PathBuf>,
    /// Whether the file was made.
    pub written: bool,
}

/// Puts a new, empty differencing image on the chain whose leaf is at `leaf`: the same size, block size and sector sizes,
/// and the metadata that belongs to the disk ([MS-VHDX] 2.6.1.2). The chain's own files are only read. The name shows the
/// whole child or is not there, and no file is ever replaced.
///
/// # Errors
/// `InvalidInput` for a raw leaf and for a name of another format; `Refused` when the named child exists; those of opening
/// the chain; what the file system answers.
pub fn snapshot(leaf: impl AsRef<Path>, options: &SnapshotOptions) -> Result<SnapshotReport> {
    let leaf = leaf.as_ref();
    let chain = Chain::open(leaf, &options.chain)?;
    let format = chain.leaf().image().format();
    let Some(id) = chain.leaf().image().id() else {
        let error = Error::new(ErrorKind::InvalidInput, "a raw image has no identity that a child could name");
        return Err(error.with_path(leaf).with_hint("convert it to VHD or VHDX: `vhdkit convert`"));
    };
    let mut report = SnapshotReport {
        child: PathBuf::new(),
        parent: leaf.to_path_buf(),
        format,
        virtual_size: chain.virtual_size(),
        siblings: children::of_file(leaf, &[id], &[])?,
        written: false,
    };
    // Read anew below, under locks of its own.
    chain.close()?;
    let make = CreateOptions::new(format, DiskKind::Differencing).parent(leaf).chain(options.chain.clone());
    if let Some(child) = &options.child {
        report.child.clone_from(child);
        if options.dry_run {
            return if exists(child) { Err(taken(child)) } else { Ok(report) };
        }
        create(child, &make)?;
        return Ok(SnapshotReport { written: true, ..report });
    }
    for child in names(leaf)? {
        if exists(&child) {
            continue;
        }
        report.child.clone_from(&child);
        if options.dry_run {
            return Ok(report);
        }
        match create(&child, &make) {
            Ok(()) => return Ok(SnapshotReport { written: true, ..report }),
            // Somebody else took the name in the meantime.
            Err(error) if error.kind() == ErrorKind::Refused && exists(&child) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(ErrorKind::Refused, "every name for a child is taken").with_path(leaf).with_hint("name the child"))
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn taken(path: &Path) -> Error {
    Error::new(ErrorKind::Refused, "the file exists").with_path(path).with_hint("give the child another name")
}

/// `NAME-1.EXT`, `NAME-2.EXT`, ... for a leaf `NAME.EXT`; the numbers after 7 for a leaf `NAME-7.EXT`.
fn names(leaf: &Path) -> Result<impl Iterator<Item = PathBuf> + use<>> {
    let nameless = || Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(leaf);
    let stem = leaf.file_stem().ok_or_else(nameless)?.to_os_string();
    let (stem, last) = numbered(&stem).unwrap_or((stem, 0));
    let leaf = leaf.to_path_buf();
    let extension = leaf.extension().map(std::ffi::OsStr::to_os_string);
    Ok((last.saturating_add(1)..=MAX_NUMBER.saturating_add(last)).map(move |number| {
        let mut name = stem.clone();
        name.push(format!("-{number}"));
        if let Some(extension) = &extension {
            name.push(".");
            name.push(extension);
        }
        leaf.with_file_name(name)
    }))
}

/// The name in front of a number that a snapshot was given, and the number.
fn numbered(stem: &std::ffi::OsStr) -> Option<(OsString, u64)> {
    let (name, number) = stem.to_str()?.rsplit_once('-')?;
    let plain = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()) && !number.starts_with('0');
    Some((
        OsString::from(name).into_string().ok()?.into(),
        number.parse().ok().filter(|number| plain && !name.is_empty() && *number < MAX_NUMBER)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_on() {
        let first = |leaf: &str| names(Path::new(leaf)).unwrap().next().unwrap();
        for (leaf, child) in [
            ("disk.vhdx", "disk-1.vhdx"),
            ("/vms/disk-1.vhdx", "/vms/disk-2.vhdx"),
            ("disk-9.avhd", "disk-10.avhd"),
            ("disk-007.vhd", "disk-007-1.vhd"),
            ("a-b.vhd", "a-b-1.vhd"),
            ("-3.vhd", "-3-1.vhd"),
            ("disk", "disk-1"),
            ("a.b.vhdx", "a.b-1.vhdx"),
            ("disk-18446744073709551615.vhd", "disk-18446744073709551615-1.vhd"),
        ] {
            assert_eq!(first(leaf), Path::new(child), "{leaf}");
        }
        assert!(names(Path::new("/")).is_err());
    }
}
