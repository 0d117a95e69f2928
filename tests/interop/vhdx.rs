//! VHDX files that we create and write, read by other programs to the bytes we meant.
//!
//! qemu-img reads roots with 512 byte sectors and checks the file; 7-Zip and libvhdi read differencing files too.

use crate::support::oracle::{Libvhdi, QemuImg, SevenZip};
use crate::support::{Contents, SpecDisk, assert_well_formed_vhdx};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use vhdkit::storage::{Access, FileStorage, Lock};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{BlockMap, BlockSink, Content, DiskKind, Findings, NewParent, ParentPaths, Want};

const MIB: usize = 1 << 20;

/// A disk in a file, and what it should hold.
struct Made {
    path: PathBuf,
    bytes: Vec<u8>,
    image: Option<Vhdx>,
}

impl Made {
    fn new(folder: &TempDir, name: &str, options: &VhdxCreate) -> Self {
        let path = folder.path().join(name);
        let image = Vhdx::create(Arc::new(FileStorage::create_new(&path).unwrap()), options).unwrap();
        let bytes = vec![0; image.virtual_size() as usize];
        Self { path, bytes, image: Some(image) }
    }

    /// A child of `self` that is written to from here on.
    fn child(&self, folder: &TempDir, name: &str, options: VhdxCreate) -> Self {
        let parent = open(&self.path);
        let relative = format!(".\\{}", self.path.file_name().unwrap().to_str().unwrap());
        let paths = ParentPaths { relative: Some(relative), absolute: None };
        let parent = NewParent { id: parent.id(), paths, timestamp: 0 };
        let mut child = Self::new(folder, name, &options.kind(DiskKind::Differencing).parent(parent));
        let shared = child.bytes.len().min(self.bytes.len());
        child.bytes[..shared].copy_from_slice(&self.bytes[..shared]);
        child
    }

    /// Writes `len` bytes of a pattern that differs everywhere and with `seed`.
    fn write(&mut self, offset: usize, len: usize, seed: u8) {
        let pattern = (offset..offset + len).map(|at| (at / 512) as u8 ^ (at % 251) as u8 ^ seed);
        self.bytes.splice(offset..offset + len, pattern);
        self.put(offset, len, Content::Data);
    }

    fn zero(&mut self, offset: usize, len: usize) {
        self.bytes[offset..offset + len].fill(0);
        self.put(offset, len, Content::Zero);
    }

    fn put(&mut self, offset: usize, len: usize, content: Content) {
        let image = self.image.as_mut().unwrap();
        let range = offset as u64..(offset + len) as u64;
        let reservation = image.reserve(vec![Want { range, content }]).unwrap();
        for place in reservation.places() {
            let from = place.offset as usize;
            image.storage().write_all_at(&self.bytes[from..from + place.len as usize], place.at.get()).unwrap();
        }
        image.storage().sync().unwrap();
        image.publish(reservation).unwrap();
    }

    /// Closes the file, and holds it against the rules and against the reader written from the format pages.
    fn finish(&mut self, chain: &[&Path]) -> Contents {
        if let Some(image) = self.image.take() {
            image.close().unwrap();
        }
        assert_well_formed_vhdx(&self.path);
        let mut findings = Findings::new();
        Vhdx::open(
            Arc::new(FileStorage::open(&self.path, Access::Read, Lock::Shared).unwrap()),
            Access::Read,
            &mut findings,
        )
        .unwrap();
        assert!(findings.list().is_empty(), "{findings:?}");
        let expected = Contents::of(&self.bytes);
        assert_eq!(SpecDisk::open(chain).unwrap().contents().unwrap(), expected, "{}", self.path.display());
        expected
    }
}

fn open(path: &Path) -> Vhdx {
    let storage = FileStorage::open(path, Access::Read, Lock::Shared).unwrap();
    Vhdx::open(Arc::new(storage), Access::Read, &mut Findings::new()).unwrap()
}

/// Writes that begin and end inside blocks, cross block borders, cover whole blocks, and touch the disk's last bytes.
fn scatter(disk: &mut Made, block: usize, seed: u8) {
    let size = disk.bytes.len();
    disk.write(0, 4096, seed);
    disk.write(block - 8192, 16384, seed);
    disk.write(3 * block, block, seed);
    disk.write(5 * block + 4096 * 3, 4096 * 20, seed);
    disk.zero(5 * block + 4096 * 7, 4096);
    disk.zero(6 * block, block);
    disk.write(size - 4096, 4096, seed);
}

#[test]
fn roots_are_read_by_everybody() {
    let (qemu, seven, libvhdi) = (QemuImg::find(), SevenZip::find(), Libvhdi::find());
    for (kind, block, sector) in [
        (DiskKind::Dynamic, 1, 512),
        (DiskKind::Dynamic, 8, 512),
        (DiskKind::Fixed, 1, 512),
        (DiskKind::Fixed, 2, 512),
        (DiskKind::Dynamic, 1, 4096),
        (DiskKind::Fixed, 2, 4096),
    ] {
        let folder = TempDir::new().unwrap();
        let size = 8 * block * MIB + MIB / 2;
        let options =
            VhdxCreate::new(size as u64).kind(kind).block_size((block * MIB) as u32).logical_sector_size(sector);
        let mut disk = Made::new(&folder, "root.vhdx", &options);
        scatter(&mut disk, block * MIB, 1);
        let path = disk.path.clone();
        let expected = disk.finish(&[&path]);
        // qemu knows no sectors but those of 512 bytes.
        if let Some(qemu) = qemu.as_ref().filter(|_| sector == 512) {
            assert_eq!(qemu.contents(&path, "vhdx"), expected, "qemu-img, {kind:?}, {block} MiB");
            qemu.assert_checks(&path);
        }
        if let Some(seven) = &seven {
            assert_eq!(seven.contents(&path, "VHDX"), expected, "7zz, {kind:?}, {block} MiB, {sector}");
        }
        if let Some(libvhdi) = &libvhdi {
            assert_eq!(libvhdi.contents(&[&path]), expected, "libvhdi, {kind:?}, {block} MiB, {sector}");
        }
    }
}

#[test]
fn untouched_disks_are_zeros_to_everybody() {
    let (qemu, seven) = (QemuImg::find(), SevenZip::find());
    for options in [
        VhdxCreate::new(512),
        VhdxCreate::new(40 << 20),
        VhdxCreate::new(40 << 20).kind(DiskKind::Fixed),
        VhdxCreate::new(300 << 20).block_size(256 << 20),
        VhdxCreate::new(3 << 20).kind(DiskKind::Fixed).block_size(256 << 20),
    ] {
        let folder = TempDir::new().unwrap();
        let mut disk = Made::new(&folder, "empty.vhdx", &options);
        let path = disk.path.clone();
        let expected = disk.finish(&[&path]);
        if let Some(qemu) = &qemu {
            assert_eq!(qemu.contents(&path, "vhdx"), expected, "qemu-img, {options:?}");
            qemu.assert_checks(&path);
        }
        // 7-Zip does not open a disk of one sector.
        if let Some(seven) = seven.as_ref().filter(|_| expected.len > 512) {
            assert_eq!(seven.contents(&path, "VHDX"), expected, "7zz, {options:?}");
        }
    }
}

#[test]
fn chains_are_read_by_those_who_read_chains() {
    let (seven, libvhdi) = (SevenZip::find(), Libvhdi::find());
    for (sector, zero_block) in [(512, false), (4096, false), (512, true), (4096, true)] {
        let folder = TempDir::new().unwrap();
        let size = 20 * MIB;
        let options =
            |block: usize| VhdxCreate::new(size as u64).block_size((block * MIB) as u32).logical_sector_size(sector);
        let mut base = Made::new(&folder, "base.vhdx", &options(2));
        scatter(&mut base, 2 * MIB, 1);
        base.write(8 * MIB, 4 * MIB, 2);
        let base_path = base.path.clone();
        base.finish(&[&base_path]);
        let mut middle = base.child(&folder, "middle.vhdx", options(1));
        middle.write(MIB + 4096, 8192, 3);
        middle.write(8 * MIB + 12288, MIB, 4);
        if zero_block {
            middle.zero(10 * MIB, MIB);
        }
        let middle_path = middle.path.clone();
        middle.finish(&[&middle_path, &base_path]);
        let mut leaf = middle.child(&folder, "leaf.vhdx", options(1));
        leaf.write(0, MIB, 5);
        leaf.write(8 * MIB + 16384, 4096, 6);
        leaf.write(10 * MIB + 4096, 4096, 7);
        leaf.zero(11 * MIB + 4096, 4096);
        let chain = [&*leaf.path.clone(), &*middle_path, &*base_path];
        let expected = leaf.finish(&chain);
        // libvhdi looks for blocks of state ZERO in the parent.
        if let Some(libvhdi) = libvhdi.as_ref().filter(|_| !zero_block) {
            assert_eq!(libvhdi.contents(&chain), expected, "libvhdi, sectors of {sector}");
        }
        if let Some(seven) = &seven {
            assert_eq!(seven.contents(chain[0], "VHDX"), expected, "7zz, sectors of {sector}");
        }
    }
}
