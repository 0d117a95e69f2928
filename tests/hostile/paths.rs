//! Parents that an image has no business to name.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::vhd::{Vhd, VhdCreate};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{DiskKind, ErrorKind, Format, ImageId, NewParent, ParentPaths};

/// Notes every opening of a file.
#[cfg(target_os = "linux")]
struct Watched(rustix::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl Watched {
    fn new(path: &Path) -> Self {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let queue = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify");
        add_watch(&queue, path, WatchFlags::OPEN).expect("a watch");
        Self(queue)
    }

    /// Whether it was opened since the last call.
    fn was_opened(&self) -> bool {
        match rustix::io::read(&self.0, &mut [0u8; 4096]) {
            Ok(read) => read > 0,
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                false
            }
        }
    }
}

/// A child at `path` whose parent is `id`, by the relative path `named`.
fn child(path: &Path, format: Format, id: ImageId, named: &str) -> bool {
    let storage = Arc::new(MemoryStorage::new());
    let paths = ParentPaths { relative: Some(named.to_owned()), absolute: None };
    let parent = NewParent { id, paths, timestamp: 0 };
    let made = match format {
        Format::Vhd => Vhd::create(storage.clone(), &VhdCreate::new(4 << 20).parent(parent)).map(Vhd::close),
        _ => {
            let create = VhdxCreate::new(4 << 20).kind(DiskKind::Differencing).parent(parent);
            Vhdx::create(storage.clone(), &create).map(Vhdx::close)
        }
    };
    let Ok(closed) = made else { return false };
    closed.unwrap();
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    fs::write(path, bytes).unwrap();
    true
}

/// Files outside, and what is no file, named in every way a path can be spelled.
#[cfg(target_os = "linux")]
#[test]
fn no_path_in_an_image_has_a_file_outside_the_policy_opened() {
    for format in [Format::Vhd, Format::Vhdx] {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir_all(root.join("in/dir")).unwrap();
        fs::create_dir(root.join("out")).unwrap();
        // The right parent, were it in the right place.
        let secret = root.join("out/secret");
        let storage = Arc::new(MemoryStorage::new());
        let id = match format {
            Format::Vhd => Vhd::create(storage.clone(), &VhdCreate::new(4 << 20)).unwrap().id(),
            _ => Vhdx::create(storage.clone(), &VhdxCreate::new(4 << 20)).unwrap().id(),
        };
        let mut bytes = vec![0; storage.len().unwrap() as usize];
        storage.read_exact_at(&mut bytes, 0).unwrap();
        fs::write(&secret, bytes).unwrap();
        symlink(&secret, root.join("in/link")).unwrap();
        symlink(root.join("out"), root.join("in/way")).unwrap();
        symlink("/dev/zero", root.join("in/zero")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("in/fifo"), rustix::fs::Mode::RUSR).unwrap();
        let block = rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("in/block"),
            rustix::fs::FileType::BlockDevice,
            rustix::fs::Mode::RUSR,
            rustix::fs::makedev(7, 0),
        );
        if block.is_err() {
            crate::support::oracle::skipped("block devices can only be made by root");
        }
        let watched = Watched::new(&secret);
        fs::read(&secret).unwrap();
        assert!(watched.was_opened(), "the watch works");
        let slashed = secret.display().to_string();
        let outside = [
            "..\\out\\secret".to_owned(),
            "../out/secret".to_owned(),
            ".\\dir\\..\\..\\out\\secret".to_owned(),
            "dir\\..\\..\\out\\.\\secret".to_owned(),
            "link".to_owned(),
            "way\\secret".to_owned(),
            slashed.clone(),
            slashed.replace('/', "\\"),
            format!("C:{}", slashed.replace('/', "\\")),
            format!("\\\\?\\{}", slashed.replace('/', "\\")),
            format!("\\\\localhost\\c${}", slashed.replace('/', "\\")),
            format!("\\\\.\\{}", slashed.trim_start_matches('/')),
            format!("file://{slashed}"),
        ];
        let strange = ["fifo", "block", "zero", "dir", ".", "..", "/dev/zero", "\\\\.\\PhysicalDrive0", "CON", "a\0b"];
        let mut tried = 0;
        for named in outside.iter().map(String::as_str).chain(strange) {
            let path = root.join("in/child");
            if !child(&path, format, id, named) {
                // A name that the format cannot hold cannot be in an image either.
                continue;
            }
            tried += 1;
            for options in [ChainOptions::new(), ChainOptions::new().search(root.join("in"))] {
                let error = Chain::open(&path, &options).expect_err(named);
                let kind = error.kind();
                let expected = matches!(
                    kind,
                    ErrorKind::ParentDenied
                        | ErrorKind::ParentNotFound
                        | ErrorKind::Refused
                        | ErrorKind::Cycle
                        | ErrorKind::InvalidInput
                        | ErrorKind::Io
                );
                assert!(expected, "{format} {named:?}: {kind:?}: {error}");
                assert!(!watched.was_opened(), "{format} {named:?} had the file outside opened");
            }
        }
        assert!(tried >= 15, "{format}: {tried} paths");
        // The same file is opened once the caller says so.
        assert!(child(&root.join("in/child"), format, id, "..\\out\\secret"));
        let open = ChainOptions::new().policy(vhdkit::chain::ParentPolicy::Under(root));
        Chain::open(folder.path().join("in/child"), &open).unwrap();
        assert!(watched.was_opened());
    }
}
