//! Names for new leaves.
//!
//! Owns: how a leaf's name becomes that of the leaf above it. Must not know: sessions.

use super::SnapshotDisk;
use crate::error::{Error, ErrorKind, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The most numbers that are tried.
const MAX_NUMBER: u32 = 1_000_000;

impl SnapshotDisk {
    /// `leaf` with a new leaf beside it: `disk.vhdx` and the suffix `nightly` give `disk-nightly.vhdx`.
    ///
    /// # Errors
    /// `InvalidInput` when `leaf` names no file or `suffix` leads to another directory.
    pub fn suffixed(leaf: impl Into<PathBuf>, suffix: &str) -> Result<Self> {
        let leaf = leaf.into();
        if suffix.is_empty() || suffix.contains('/') {
            let message = format_args!("{suffix:?} cannot be the end of a file's name").to_string();
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let child = with_stem(&leaf, |stem| format!("{stem}-{suffix}"))?;
        Ok(Self { leaf, child })
    }

    /// Each of `leaves` with a new leaf beside it, all of one number: the first, from 1 on, that none of them has.
    /// `disk.vhdx` gets `disk-1.vhdx`, and `disk-1.vhdx` gets `disk-2.vhdx`.
    ///
    /// # Errors
    /// `InvalidInput` when one names no file, or no number is left.
    pub fn numbered(leaves: &[PathBuf]) -> Result<Vec<Self>> {
        let bare: Vec<(PathBuf, PathBuf)> = leaves
            .iter()
            .map(|leaf| Ok((leaf.clone(), with_stem(leaf, |stem| without_number(stem).to_owned())?)))
            .collect::<Result<_>>()?;
        for number in 1..=MAX_NUMBER {
            let named = bare.iter().map(|(leaf, bare)| {
                let child = with_stem(bare, |stem| format!("{stem}-{number}"))?;
                Ok(Self { leaf: leaf.clone(), child })
            });
            let named: Vec<Self> = named.collect::<Result<_>>()?;
            if named.iter().all(|disk| fs::symlink_metadata(&disk.child).is_err()) {
                return Ok(named);
            }
        }
        Err(Error::new(ErrorKind::InvalidInput, "no number is left for the new leaves"))
    }
}

fn with_stem(path: &Path, stem: impl Fn(&str) -> String) -> Result<PathBuf> {
    let name = path.file_stem().and_then(|stem| stem.to_str());
    let old = name.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(path))?;
    let mut name = stem(old);
    if let Some(extension) = path.extension().and_then(|extension| extension.to_str()) {
        name.push('.');
        name.push_str(extension);
    }
    Ok(path.with_file_name(name))
}

fn without_number(stem: &str) -> &str {
    match stem.rsplit_once('-') {
        Some((bare, number))
            if !bare.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            bare
        }
        _ => stem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_that_is_free_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let children = |names: &[&str]| -> Vec<PathBuf> {
            let leaves: Vec<PathBuf> = names.iter().map(|name| path(name)).collect();
            SnapshotDisk::numbered(&leaves).unwrap().into_iter().map(|disk| disk.child).collect()
        };
        assert_eq!(children(&["c.vhdx", "d.vhd"]), [path("c-1.vhdx"), path("d-1.vhd")]);
        for name in ["c-1.vhdx", "d-2.vhd"] {
            fs::write(path(name), "").unwrap();
        }
        assert_eq!(children(&["c-1.vhdx", "d.vhd"]), [path("c-3.vhdx"), path("d-3.vhd")]);
        assert_eq!(children(&["-7.vhdx", "x-", "a-b.vhd"]), [path("-7-1.vhdx"), path("x--1"), path("a-b-1.vhd")]);
        let named = SnapshotDisk::suffixed(path("c.v2.vhdx"), "nightly").unwrap();
        assert_eq!(named.child, path("c.v2-nightly.vhdx"));
        assert!(SnapshotDisk::suffixed(path("c.vhdx"), "../x").is_err());
        assert!(SnapshotDisk::suffixed("/", "x").is_err());
    }
}
