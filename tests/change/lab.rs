//! A directory with images.
//!
//! Owns: how the tests of this binary make images, fill them and look at them; other programs' opinions of them.

use crate::support::oracle::{Libvhdi, QemuImg, SevenZip};
use crate::support::{self, Contents};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{CreateOptions, create};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, Format};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const FORMATS: [Format; 2] = [Format::Vhd, Format::Vhdx];

/// Between its fork and its exec a new process holds the locks that another test holds at that moment, so tests that
/// start other programs run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    static HELD: RefCell<Weak<MutexGuard<'static, ()>>> = const { RefCell::new(Weak::new()) };
}

fn alone() -> Rc<MutexGuard<'static, ()>> {
    HELD.with_borrow_mut(|held| {
        held.upgrade().unwrap_or_else(|| {
            let guard = Rc::new(ALONE.lock().unwrap_or_else(PoisonError::into_inner));
            *held = Rc::downgrade(&guard);
            guard
        })
    })
}

/// A directory that goes away with it.
pub(crate) struct Lab {
    dir: tempfile::TempDir,
    _alone: Rc<MutexGuard<'static, ()>>,
    pub(crate) format: Format,
}

impl Lab {
    pub(crate) fn new(format: Format) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), _alone: alone(), format }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join(format!("{name}.{}", self.format))
    }

    /// A disk that shows `bytes`.
    pub(crate) fn disk(&self, name: &str, kind: DiskKind, bytes: &[u8]) -> PathBuf {
        let options = CreateOptions::new(self.format, kind).size(bytes.len() as u64);
        let has_blocks = kind != DiskKind::Fixed || self.format == Format::Vhdx;
        let options = if has_blocks { options.block_size(MIB as u32) } else { options };
        self.make(name, &options, bytes)
    }

    /// A child of `parent` that shows `bytes`, of their size.
    pub(crate) fn child(&self, name: &str, parent: &Path, bytes: &[u8]) -> PathBuf {
        let options = CreateOptions::new(self.format, DiskKind::Differencing).parent(parent).size(bytes.len() as u64);
        self.make(name, &options, bytes)
    }

    fn make(&self, name: &str, options: &CreateOptions, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        create(&path, options).unwrap();
        let old = show(&path);
        let mut chain = Chain::open(&path, &ChainOptions::new().access(Access::Write)).unwrap();
        for ((at, new), old) in (0..).step_by(4096).zip(bytes.chunks(4096)).zip(old.chunks(4096)) {
            if new != old {
                chain.write_at(new, at).unwrap();
            }
        }
        chain.close().unwrap();
        path
    }

    /// Holds the file to the rules of its format.
    #[track_caller]
    pub(crate) fn assert_well_formed(&self, path: &Path) {
        match self.format {
            Format::Vhd => support::assert_well_formed_vhd(path),
            _ => support::assert_well_formed_vhdx(path),
        }
    }

    /// What other programs read from the root image at `path` is `bytes`.
    #[track_caller]
    pub(crate) fn assert_others_read(&self, path: &Path, bytes: &[u8]) {
        let (driver, name) = if self.format == Format::Vhd { ("vpc", "VHD") } else { ("vhdx", "VHDX") };
        let wanted = Contents::of(bytes);
        if let Some(qemu) = QemuImg::find() {
            assert_eq!(qemu.contents(path, driver), wanted, "qemu-img");
            if self.format == Format::Vhdx {
                qemu.assert_checks(path);
            }
        }
        if let Some(seven) = SevenZip::find() {
            assert_eq!(seven.contents(path, name), wanted, "7-Zip");
        }
        // libvhdi takes a VHD to have the size that it was made with, so it cannot be asked about one that was resized.
        let file = fs::read(path).unwrap();
        let made_with = u64::from_be_bytes(file[file.len() - 512 + 40..][..8].try_into().unwrap());
        if (self.format == Format::Vhdx || made_with == bytes.len() as u64)
            && let Some(vhdi) = Libvhdi::find()
        {
            assert_eq!(vhdi.contents(&[path]), wanted, "libvhdi");
        }
    }
}

/// What the chain whose leaf is at `path` shows.
pub(crate) fn show(path: &Path) -> Vec<u8> {
    try_show(path).unwrap_or_else(|error| panic!("{error:?}"))
}

pub(crate) fn try_show(path: &Path) -> vhdkit::Result<Vec<u8>> {
    let chain = Chain::open(path, &ChainOptions::new())?;
    let mut bytes = vec![0xEE; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// `len` bytes that differ from place to place and from seed to seed, none of them zero.
pub(crate) fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at % 251) as u8 ^ ((at >> 9) as u8).wrapping_mul(29)).wrapping_add(seed) | 1).collect()
}
