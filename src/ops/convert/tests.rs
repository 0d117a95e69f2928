//! Bug this finds: a new image that is not what it was made from, and nobody noticed.

use super::*;
use crate::chain::ChainOptions;
use crate::storage::Access;
use crate::units::MIB;
use crate::watch::{Observer, Progress};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u64 = 4 * MIB;
const WRITTEN: &[u8; 16] = b"bytes of a test.";

/// A medium that keeps another byte than it was given: one is changed as soon as all are written.
struct Failing {
    folder: PathBuf,
    armed: AtomicBool,
}

impl Observer for Failing {
    fn progress(&self, progress: Progress) {
        // Two passes over the disk: the first writes.
        if progress.done < SIZE || !self.armed.swap(false, Ordering::Relaxed) {
            return;
        }
        let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let mut files = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path()).filter(hidden);
        let new = files.next().expect("the new image, not yet under its name");
        let bytes = fs::read(&new).unwrap();
        let at = bytes.windows(WRITTEN.len()).rposition(|window| window == WRITTEN).expect("written by now");
        let file = fs::File::options().write(true).open(&new).unwrap();
        file.write_all_at(b"B", at as u64).unwrap();
    }
}

fn source(folder: &Path) -> PathBuf {
    let path = folder.join("source.raw");
    let mut disk = vec![0; SIZE as usize];
    disk[MIB as usize..2 * MIB as usize].copy_from_slice(&WRITTEN.repeat(MIB as usize / WRITTEN.len()));
    fs::write(&path, disk).unwrap();
    path
}

#[test]
fn a_byte_that_is_another_on_the_medium_leaves_no_image() {
    for format in [Format::Raw, Format::Vhd, Format::Vhdx] {
        let folder = tempfile::tempdir().unwrap();
        let source = source(folder.path());
        let target = folder.path().join("target");
        let chain = Chain::open(&source, &ChainOptions::new().raw(true).access(Access::Read)).unwrap();
        let options = ConvertOptions::new(format).verify(true);
        for piped in [false, true] {
            let failing = Failing { folder: folder.path().to_path_buf(), armed: AtomicBool::new(true) };
            let watch = Watch::none().observer(&failing);
            let done = if piped {
                let options = options.clone().size(SIZE);
                convert_stream(&mut fs::File::open(&source).unwrap(), &target, &options, &watch)
            } else {
                convert(&chain, &target, &options, &watch)
            };
            let error = done.expect_err("another byte than the source's");
            assert!(!failing.armed.load(Ordering::Relaxed), "nothing was changed");
            assert_eq!(error.kind(), ErrorKind::Io, "{error}");
            assert!(error.to_string().contains("does not read back as its source"), "{format} {piped}: {error}");
            let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["source.raw"], "{format} {piped}");
            let sound = Failing { folder: folder.path().to_path_buf(), armed: AtomicBool::new(false) };
            convert(&chain, &target, &options, &Watch::none().observer(&sound)).unwrap();
            fs::remove_file(&target).unwrap();
        }
    }
}
