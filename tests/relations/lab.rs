//! A directory with disks and what they hold.
//!
//! Owns: how the tests of this binary make images and look at them.

use std::fs;
use std::path::{Path, PathBuf};
use vhdkit::chain::{Chain, ChainOptions, ParentPolicy};
use vhdkit::ops::{CreateOptions, create};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, Format};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// A directory that goes away with it.
pub(crate) struct Lab {
    _dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        Self { _dir: dir, root }
    }

    /// The path of `name`; its directory exists then.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// An empty dynamic disk with blocks of 1 MiB; its name says the format.
    pub(crate) fn disk(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        let options = CreateOptions::new(format_of(&path), DiskKind::Dynamic).size(size).block_size(1 << 20);
        create(&path, &options).unwrap();
        path
    }

    /// An empty child of `parent`.
    pub(crate) fn child(&self, name: &str, parent: &Path) -> PathBuf {
        let path = self.path(name);
        let options = CreateOptions::new(format_of(&path), DiskKind::Differencing).parent(parent).chain(any());
        create(&path, &options).unwrap();
        path
    }

    /// Every file below the root, by its path from there, hidden ones too.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut open = vec![self.root.clone()];
        let mut found = Vec::new();
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.push(path.strip_prefix(&self.root).unwrap().to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }
}

/// Parents may be anywhere.
pub(crate) fn any() -> ChainOptions {
    ChainOptions::new().policy(ParentPolicy::Anywhere)
}

fn format_of(path: &Path) -> Format {
    if path.extension().is_some_and(|extension| extension == "vhd") { Format::Vhd } else { Format::Vhdx }
}

/// Bytes that differ from place to place and from seed to seed, none of them zero.
pub(crate) fn pattern(len: u64, seed: u64) -> Vec<u8> {
    (0..len).map(|at| ((at % 251) ^ (at >> 9) ^ seed.wrapping_mul(73)) as u8 | 1).collect()
}

/// Writes into the disk whose leaf is `path`.
pub(crate) fn write(path: &Path, offset: u64, bytes: &[u8]) {
    let mut chain = Chain::open(path, &any().access(Access::Write)).unwrap();
    chain.write_at(bytes, offset).unwrap();
    chain.close().unwrap();
}

/// Everything the disk shows.
pub(crate) fn shows(path: &Path) -> Vec<u8> {
    let chain = Chain::open(path, &any()).unwrap();
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0).unwrap();
    bytes
}
