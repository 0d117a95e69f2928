//! A directory with images.
//!
//! Owns: how the tests of this binary make images, move them, and look at what a chain shows.

use std::fs;
use std::path::{Path, PathBuf};
use vhdkit::chain::{Chain, ChainOptions, ParentPolicy};
use vhdkit::ops::{AbsolutePath, CreateOptions, ReparentOptions, create, reparent};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, Error, Format};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const FORMATS: [Format; 2] = [Format::Vhd, Format::Vhdx];

/// A directory that goes away with it.
pub(crate) struct Lab {
    _dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) format: Format,
}

impl Lab {
    pub(crate) fn new(format: Format) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        Self { _dir: dir, root, format }
    }

    /// The path of `name`; its directory exists then.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// A disk of 4 MiB whose first 64 KiB are `fill`.
    pub(crate) fn base(&self, name: &str, fill: u8) -> PathBuf {
        self.disk(name, 4 * MIB, fill)
    }

    pub(crate) fn disk(&self, name: &str, size: u64, fill: u8) -> PathBuf {
        let path = self.path(name);
        create(&path, &CreateOptions::new(self.format, DiskKind::Dynamic).size(size).block_size(1 << 20)).unwrap();
        self.write(&path, 0, fill);
        path
    }

    /// A child of `parent` with 64 KiB of `fill` from `offset` on.
    pub(crate) fn child(&self, name: &str, parent: &Path, offset: u64, fill: u8) -> PathBuf {
        let path = self.path(name);
        let chain = ChainOptions::new().policy(ParentPolicy::Anywhere);
        create(&path, &CreateOptions::new(self.format, DiskKind::Differencing).parent(parent).chain(chain)).unwrap();
        self.write(&path, offset, fill);
        path
    }

    fn write(&self, path: &Path, offset: u64, fill: u8) {
        let options = ChainOptions::new().access(Access::Write).policy(ParentPolicy::Anywhere);
        let mut chain = Chain::open(path, &options).unwrap();
        chain.write_at(&[fill; 65536], offset).unwrap();
        chain.close().unwrap();
    }

    /// Moves `from` to `name`.
    pub(crate) fn moved(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        fs::rename(from, &to).unwrap();
        to
    }

    /// Gives `child` the absolute path `windows` for its parent.
    pub(crate) fn name_on_windows(&self, child: &Path, parent: &Path, windows: &str) {
        let options = ReparentOptions::new().absolute(AbsolutePath::Set(windows.to_owned()));
        reparent(child, parent, &options).unwrap();
    }
}

/// The byte of the disk at each 64 KiB of its first 256 KiB; what the tests write is never less.
pub(crate) fn shows(path: &Path, options: &ChainOptions) -> Result<[u8; 4], Error> {
    let chain = Chain::open(path, options)?;
    let mut bytes = vec![0; 4 * 65536];
    chain.read_at(&mut bytes, 0)?;
    Ok([bytes[0], bytes[65536], bytes[2 * 65536], bytes[3 * 65536]])
}
