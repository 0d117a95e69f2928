//! File systems made by their own tools.
//!
//! Owns: how each is made, reached and checked. Must not know: images.

use crate::files;
use crate::program::{missing, run, try_run};
use crate::support::oracle;
use crate::xfs_db;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;
/// The size of most of them.
pub(crate) const SIZE: u64 = 128 * MIB;

/// How files get into a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Mounted by the kernel or a helper, from a loop device.
    Mount(&'static str),
    /// mtools, without a mount.
    Mtools,
    /// xfs_db and the prototype files of mkfs.xfs, without a mount: kernels are built without version 4.
    XfsDb,
}

/// One file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    make: &'static str,
    reach: Reach,
    check: &'static str,
    pub(crate) size: u64,
    /// The Debian package of its tools.
    package: &'static str,
}

const fn ext(name: &'static str, make: &'static str) -> System {
    let check = "e2fsck -fn FILE";
    System { name, make, reach: Reach::Mount("auto"), check, size: SIZE, package: "e2fsprogs" }
}

const fn fat(name: &'static str, make: &'static str) -> System {
    System { name, make, reach: Reach::Mtools, check: "fsck.fat -n FILE", size: SIZE, package: "dosfstools mtools" }
}

const fn xfs(name: &'static str, make: &'static str) -> System {
    let check = "xfs_repair -n FILE";
    System { name, make, reach: Reach::Mount("xfs"), check, size: 320 * MIB, package: "xfsprogs" }
}

const fn ntfs(name: &'static str, make: &'static str) -> System {
    let check = "ntfsresize --no-action --no-progress-bar --info --force FILE";
    System { name, make, reach: Reach::Mount("ntfs"), check, size: SIZE, package: "ntfs-3g" }
}

/// All that are read, with the features that matter.
pub(crate) const SYSTEMS: [System; 15] = [
    ext("ext4", "mkfs.ext4 -q -F -b 4096 FILE"),
    ext("ext4 of 1 KiB blocks", "mkfs.ext4 -q -F -b 1024 FILE"),
    ext("ext4 without 64bit and checksums", "mkfs.ext4 -q -F -b 4096 -O ^64bit,^metadata_csum,uninit_bg FILE"),
    ext("ext4 with meta_bg", "mkfs.ext4 -q -F -b 1024 -O meta_bg,^resize_inode FILE"),
    ext("ext4 without flex_bg", "mkfs.ext4 -q -F -g 8192 -O ^flex_bg,sparse_super2 FILE"),
    ext("ext3", "mkfs.ext3 -q -F -b 4096 FILE"),
    ext("ext2", "mkfs.ext2 -q -F FILE"),
    xfs("XFS", "mkfs.xfs -q -f FILE"),
    System { reach: Reach::XfsDb, ..xfs("XFS version 4", "mkfs.xfs -q -f -m crc=0 FILE") },
    ntfs("NTFS", "mkfs.ntfs -F -Q -q FILE"),
    ntfs("NTFS of 64 KiB clusters", "mkfs.ntfs -F -Q -q -c 65536 FILE"),
    fat("FAT32", "mkfs.vfat -F 32 -s 1 FILE"),
    fat("FAT16", "mkfs.vfat -F 16 -s 8 FILE"),
    fat("FAT12", "mkfs.vfat -F 12 -s 128 FILE"),
    System {
        name: "exFAT",
        make: "mkfs.exfat FILE",
        reach: Reach::Mount("exfat-fuse"),
        check: "fsck.exfat -n FILE",
        size: SIZE,
        package: "exfatprogs exfat-fuse",
    },
];

/// One mount at a time: loop devices are given out by asking which one is next.
static MOUNTING: Mutex<()> = Mutex::new(());

/// A mounted file; unmounted when dropped.
pub(crate) struct Mounted {
    device: String,
    at: PathBuf,
}

impl Mounted {
    pub(crate) fn new(file: &Path, kind: &str, options: &str) -> Result<Self, String> {
        let _one = MOUNTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let folder = file.parent().expect("a folder");
        let at = folder.join(format!("mount-{kind}"));
        fs::create_dir_all(&at).map_err(|error| error.to_string())?;
        let read_only = if options == "ro" { "--read-only " } else { "" };
        let device =
            try_run(folder, &format!("losetup {read_only}--find --show {}", file.display()))?.trim().to_owned();
        let line = if kind == "exfat-fuse" {
            format!("mount.exfat-fuse -o {options} {device} {}", at.display())
        } else {
            format!("mount -t {kind} -o {options} {device} {}", at.display())
        };
        match try_run(folder, &line) {
            Ok(_) => Ok(Self { device, at }),
            Err(error) => {
                let _ = try_run(folder, &format!("losetup --detach {device}"));
                Err(error)
            }
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let parent = self.at.parent().expect("a folder");
        // What cannot be unmounted shows in the test that goes on with the file.
        let unmounted = try_run(parent, &format!("umount {}", self.at.display()));
        let detached = try_run(parent, &format!("losetup --detach {}", self.device));
        if let (Err(error), false) = (unmounted.and(detached), std::thread::panicking()) {
            panic!("{error}");
        }
    }
}

impl System {
    pub(crate) fn find(name: &str) -> Self {
        *SYSTEMS.iter().find(|system| system.name == name).expect("a system of the list")
    }

    /// Why this cannot be made here, if it cannot.
    fn missing(&self) -> Option<String> {
        let make = self.make.split_whitespace().next().expect("a program");
        let check = self.check.split_whitespace().next().expect("a program");
        if let Some(name) = missing(&[make, check, "losetup"]) {
            return Some(format!("{}: {name} is not installed (packages {})", self.name, self.package));
        }
        if self.reach == Reach::Mtools {
            return missing(&["mcopy", "mdel"]).map(|name| format!("{}: {name} is not installed (mtools)", self.name));
        }
        if self.reach == Reach::XfsDb {
            return missing(&["xfs_db"]).map(|name| format!("{}: {name} is not installed (xfsprogs)", self.name));
        }
        (!is_root()).then(|| format!("{}: only root can mount a file", self.name))
    }

    fn make_in(&self, folder: &Path, file: &Path) {
        File::create(file).expect("a file").set_len(self.size).expect("room");
        run(folder, &self.make.replace("FILE", &file.display().to_string()));
    }

    /// A file with the file system as its tool makes it. `None`, said loudly, where that cannot be.
    pub(crate) fn fresh(&self, folder: &TempDir) -> Option<PathBuf> {
        let make = self.make.split_whitespace().next().expect("a program");
        if let Some(name) = missing(&[make]) {
            oracle::skipped(&format!("{}: {name} is not installed (packages {})", self.name, self.package));
            return None;
        }
        let file = folder.path().join("fs.raw");
        self.make_in(folder.path(), &file);
        Some(file)
    }

    /// A file with the file system: files written, some deleted, unmounted. `None`, said loudly, where that cannot be.
    pub(crate) fn used(&self, folder: &TempDir) -> Option<PathBuf> {
        if let Some(why) = self.missing() {
            oracle::skipped(&why);
            return None;
        }
        let file = folder.path().join("fs.raw");
        if self.reach != Reach::XfsDb {
            self.make_in(folder.path(), &file);
        }
        match self.reach {
            Reach::Mount(kind) => {
                let mounted = match Mounted::new(&file, kind, "rw") {
                    Ok(mounted) => mounted,
                    Err(why) => {
                        oracle::skipped(&format!("{}: {why}", self.name));
                        return None;
                    }
                };
                files::write_all(mounted.folder());
                run(folder.path(), "sync");
                files::delete_some(mounted.folder());
            }
            Reach::Mtools => {
                let source = folder.path().join("source");
                fs::create_dir(&source).expect("a folder");
                files::write_all(&source);
                for number in 0..files::FILES {
                    let name = files::name(number);
                    run(folder.path(), &format!("mcopy -i fs.raw source/{name} ::{name}"));
                }
                for number in (0..files::FILES).filter(|number| !files::stays(*number)) {
                    run(folder.path(), &format!("mdel -i fs.raw ::{}", files::name(number)));
                }
                fs::remove_dir_all(&source).expect("a folder");
            }
            Reach::XfsDb => {
                File::create(&file).expect("a file").set_len(self.size).expect("room");
                xfs_db::fill(&file, &self.make.replace("FILE", &file.display().to_string()));
            }
        }
        Some(file)
    }

    /// # Panics
    /// When the file system in `file` has lost a file or its own checker finds anything wrong.
    #[track_caller]
    pub(crate) fn assert_sound(&self, file: &Path, when: &str) {
        let folder = file.parent().expect("a folder");
        let when = format!("{} {when}", self.name);
        let line = self.check.replace("FILE", &file.display().to_string());
        if let Err(text) = try_run(folder, &line) {
            panic!("{when}: {text}");
        }
        match self.reach {
            Reach::Mount(kind) => {
                let mounted = Mounted::new(file, kind, "ro").unwrap_or_else(|text| panic!("{when}: {text}"));
                files::assert_all(mounted.folder(), &when);
            }
            Reach::Mtools => {
                let target = folder.join("target");
                fs::create_dir(&target).expect("a folder");
                run(folder, &format!("mcopy -i {} ::* target", file.display()));
                files::assert_all(&target, &when);
                fs::remove_dir_all(&target).expect("a folder");
            }
            Reach::XfsDb => xfs_db::assert_all(file, &when),
        }
    }

    /// A copy of the file system as it is while somebody has it mounted and writes.
    pub(crate) fn in_use(&self, folder: &TempDir) -> Option<PathBuf> {
        let file = self.used(folder)?;
        let Reach::Mount(kind) = self.reach else { return None };
        let copy = folder.path().join("in-use.raw");
        let mounted = Mounted::new(&file, kind, "rw").expect("it was mounted before");
        fs::write(mounted.folder().join("another"), b"written and not yet in its place").expect("room");
        run(folder.path(), "sync");
        run(folder.path(), &format!("cp --sparse=always fs.raw {}", copy.display()));
        drop(mounted);
        Some(copy)
    }
}

fn is_root() -> bool {
    // The owner of a new file is who we are.
    use std::os::unix::fs::MetadataExt;
    tempfile::tempfile().and_then(|file| file.metadata()).is_ok_and(|metadata| metadata.uid() == 0)
}
