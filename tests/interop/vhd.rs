//! VHD files that we create and write, read by other programs to the bytes we meant; and theirs, written on by us.
//!
//! qemu-img reads roots; 7-Zip reads differencing files too, and finds the parents itself.

use crate::support::oracle::{QemuImg, SevenZip};
use crate::support::{Contents, SpecDisk, assert_well_formed_vhd, azure_problems};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use vhdkit::storage::{Access, FileStorage, Lock};
use vhdkit::vhd::{Vhd, VhdCreate};
use vhdkit::{BlockMap, BlockSink, Content, DiskKind, Findings, GrowAs, NewParent, ParentPaths, Want};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A disk in a file, and what it should hold.
struct Made {
    path: PathBuf,
    bytes: Vec<u8>,
    image: Option<Vhd>,
}

fn open(path: &Path, access: Access) -> Vhd {
    let lock = if access.writes() { Lock::Exclusive } else { Lock::Shared };
    let storage = FileStorage::open(path, access, lock).unwrap();
    Vhd::open(Arc::new(storage), access, &mut Findings::new()).unwrap()
}

impl Made {
    fn new(folder: &TempDir, name: &str, options: &VhdCreate) -> Self {
        let path = folder.path().join(name);
        let image = Vhd::create(Arc::new(FileStorage::create_new(&path).unwrap()), options).unwrap();
        let bytes = vec![0; image.virtual_size() as usize];
        Self { path, bytes, image: Some(image) }
    }

    /// A file by another program that holds `bytes`.
    fn existing(path: PathBuf, bytes: Vec<u8>) -> Self {
        let image = open(&path, Access::Write);
        assert_eq!(image.virtual_size(), bytes.len() as u64);
        Self { path, bytes, image: Some(image) }
    }

    /// A child of `self`, which is closed, that is written to from here on.
    fn child(&self, folder: &TempDir, name: &str, options: VhdCreate) -> Self {
        let mut child = Self::new(folder, name, &options.parent(self.as_parent()));
        let shared = child.bytes.len().min(self.bytes.len());
        child.bytes[..shared].copy_from_slice(&self.bytes[..shared]);
        child
    }

    fn as_parent(&self) -> NewParent {
        let relative = format!(".\\{}", self.path.file_name().unwrap().to_str().unwrap());
        let paths = ParentPaths { relative: Some(relative), absolute: None };
        NewParent { id: open(&self.path, Access::Read).id(), paths, timestamp: 0 }
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

    fn resize(&mut self, size: usize) {
        self.image.as_mut().unwrap().set_virtual_size(size as u64, GrowAs::Zero).unwrap();
        self.bytes.resize(size, 0);
    }

    /// Closes the file, and holds it against the reader written from the format pages.
    fn finish(&mut self, chain: &[&Path]) -> Contents {
        if let Some(image) = self.image.take() {
            image.close().unwrap();
        }
        let expected = Contents::of(&self.bytes);
        assert_eq!(SpecDisk::open(chain).unwrap().contents().unwrap(), expected, "{}", self.path.display());
        expected
    }

    /// What everybody says of a file that is all ours and has no parent.
    fn agree(&mut self, qemu: Option<&QemuImg>, seven: Option<&SevenZip>) {
        let path = self.path.clone();
        let expected = self.finish(&[&path]);
        assert_well_formed_vhd(&path);
        if let Some(qemu) = qemu {
            assert_eq!(qemu.contents(&path, "vpc"), expected, "qemu-img {}", path.display());
        }
        if let Some(seven) = seven {
            assert_eq!(seven.contents(&path, "VHD"), expected, "7zz {}", path.display());
        }
    }
}

#[test]
fn roots_are_read_to_the_same_bytes() {
    let (qemu, seven) = (QemuImg::find(), SevenZip::find());
    let folder = tempfile::tempdir().unwrap();
    let sizes = [20 * MIB, 5 * MIB + 512];
    for (index, size) in sizes.into_iter().enumerate() {
        for (name, options) in [
            ("fixed", VhdCreate::new(size as u64).kind(DiskKind::Fixed)),
            ("dynamic", VhdCreate::new(size as u64)),
            ("small-blocks", VhdCreate::new(size as u64).block_size(512 << 10)),
        ] {
            let mut made = Made::new(&folder, &format!("{name}-{index}.vhd"), &options);
            made.write(0, 1536, 1);
            made.write(2 * MIB - 512, MIB + 1024, 2);
            made.write(size - 512, 512, 3);
            made.zero(2 * MIB, 64 * KIB);
            made.agree(qemu.as_ref(), seven.as_ref());
            let problems = azure_problems(&made.path);
            let uploadable = name == "fixed" && size.is_multiple_of(MIB);
            assert_eq!(problems.is_empty(), uploadable, "{name} {size}: {problems:?}");
        }
    }
}

#[test]
fn resized_roots_are_read_to_the_same_bytes() {
    let (qemu, seven) = (QemuImg::find(), SevenZip::find());
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("fixed", VhdCreate::new(4 * MIB as u64).kind(DiskKind::Fixed)),
        ("dynamic", VhdCreate::new(4 * MIB as u64)),
        ("moving-table", VhdCreate::new(4 * MIB as u64).block_size(16 << 10)),
    ] {
        let mut made = Made::new(&folder, &format!("{name}.vhd"), &options);
        made.write(0, 4 * MIB, 1);
        made.resize(9 * MIB);
        made.write(8 * MIB, 4096, 2);
        made.resize(3 * MIB + 512);
        made.resize(6 * MIB);
        made.agree(qemu.as_ref(), seven.as_ref());
    }
}

/// 7-Zip reads differencing files by their bitmaps and looks for parents by their stored paths.
#[test]
fn chains_are_read_to_the_same_bytes() {
    let Some(seven) = SevenZip::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut base = Made::new(&folder, "base.vhd", &VhdCreate::new(8 * MIB as u64));
    base.write(0, 5 * MIB, 1);
    base.finish(&[&folder.path().join("base.vhd")]);
    let mut middle = base.child(&folder, "middle.vhd", VhdCreate::new(8 * MIB as u64).block_size(512 << 10));
    middle.write(4096, 512, 2);
    middle.write(3 * MIB + 1024, 700 * KIB, 3);
    middle.zero(MIB, 3072);
    let paths = [middle.path.clone(), base.path.clone()];
    let expected = middle.finish(&paths.each_ref().map(PathBuf::as_path));
    assert_eq!(seven.contents(&middle.path, "VHD"), expected);
    let mut leaf = middle.child(&folder, "leaf.vhd", VhdCreate::new(8 * MIB as u64));
    leaf.write(4 * MIB, 512, 4);
    leaf.zero(5 * MIB - 512, 512);
    let paths = [leaf.path.clone(), middle.path.clone(), base.path.clone()];
    let chain = paths.each_ref().map(PathBuf::as_path);
    let expected = leaf.finish(&chain);
    assert_well_formed_vhd(&leaf.path);
    assert_eq!(seven.contents(&leaf.path, "VHD"), expected);

    // The parent moves to another name and is linked again.
    let moved = folder.path().join("renamed.vhd");
    std::fs::rename(&middle.path, &moved).unwrap();
    assert!(seven.try_contents(&leaf.path, "VHD").is_err(), "7-Zip needs the link");
    middle.path = moved.clone();
    let mut image = open(&leaf.path, Access::Write);
    image.set_parent(&middle.as_parent()).unwrap();
    image.close().unwrap();
    assert_well_formed_vhd(&leaf.path);
    assert_eq!(seven.contents(&leaf.path, "VHD"), expected);
    assert_eq!(leaf.finish(&[&leaf.path.clone(), &moved, &base.path]), expected);
}

/// Files of another producer, with its layout and without alignment, are written on.
#[test]
fn files_by_qemu_are_written_on() {
    let Some(qemu) = QemuImg::find() else { return };
    let seven = SevenZip::find();
    let folder = tempfile::tempdir().unwrap();
    for subformat in ["dynamic", "fixed"] {
        let path = folder.path().join(format!("{subformat}.vhd"));
        let raw = folder.path().join("raw");
        let mut bytes = vec![0; 9 * MIB];
        bytes[3 * MIB..4 * MIB].fill(0x5A);
        std::fs::write(&raw, &bytes).unwrap();
        let options = format!("subformat={subformat},force_size=on");
        let (from, to) = (raw.display().to_string(), path.display().to_string());
        qemu.run(["convert", "-f", "raw", "-O", "vpc", "-o", &options, &from, &to]).unwrap();
        let mut made = Made::existing(path.clone(), bytes);
        made.write(3 * MIB + 512, 1024, 1);
        made.write(6 * MIB - 512, 1024, 2);
        made.write(0, 512, 3);
        made.resize(12 * MIB);
        made.write(12 * MIB - 512, 512, 4);
        let expected = made.finish(&[&path]);
        assert_eq!(qemu.contents(&path, "vpc"), expected, "{subformat}");
        if let Some(seven) = &seven {
            assert_eq!(seven.contents(&path, "VHD"), expected, "{subformat}");
        }
    }
}
