//! Files in a file system, half of them deleted again.
//!
//! Owns: what each file holds, and finding the sectors of deleted ones on a disk. Must not know: file systems.

use std::fs;
use std::path::Path;

pub(crate) const SECTOR: usize = 512;
/// How many files there are, and how much larger each is than the one before.
pub(crate) const FILES: usize = 30;
const STEP: usize = 110_000;
/// What every sector of a file starts with.
const KEPT: &[u8; 8] = b"kept:fil";
const DELETED: &[u8; 8] = b"gone:fil";

/// Every third file stays; the others are in the way between them, and are deleted.
pub(crate) fn stays(number: usize) -> bool {
    number.is_multiple_of(3)
}

pub(crate) fn name(number: usize) -> String {
    format!("file-{number}")
}

/// The bytes of file `number`: every sector says whose it is and which.
pub(crate) fn contents(number: usize) -> Vec<u8> {
    let len = 400_000 + number * STEP + number * 13 % 512;
    let mut bytes = Vec::with_capacity(len + SECTOR);
    for sector in 0..len.div_ceil(SECTOR) {
        bytes.extend_from_slice(if stays(number) { KEPT } else { DELETED });
        bytes.extend_from_slice(&(number as u32).to_le_bytes());
        bytes.extend_from_slice(&(sector as u32).to_le_bytes());
        bytes.extend((16..SECTOR).map(|at| (at * 7 + sector * 31 + number) as u8 | 1));
    }
    bytes.truncate(len);
    bytes
}

/// Writes all files into `folder`.
pub(crate) fn write_all(folder: &Path) {
    for number in 0..FILES {
        fs::write(folder.join(name(number)), contents(number)).expect("room for a file");
    }
}

/// The bytes of deleted files, in `len` bytes of free space.
pub(crate) fn left_behind(len: usize) -> Vec<u8> {
    let one = (0..FILES).find(|number| !stays(*number)).map(contents).expect("a deleted file");
    let whole = &one[..one.len() / SECTOR * SECTOR];
    whole.iter().copied().cycle().take(len).collect()
}

/// Deletes those that do not stay.
pub(crate) fn delete_some(folder: &Path) {
    for number in (0..FILES).filter(|number| !stays(*number)) {
        fs::remove_file(folder.join(name(number))).expect("a file");
    }
}

/// # Panics
/// When a file that stays is not what it was, or another one is there.
#[track_caller]
pub(crate) fn assert_all(folder: &Path, when: &str) {
    for number in 0..FILES {
        let path = folder.join(name(number));
        if stays(number) {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{when}: {}: {error}", path.display()));
            assert!(bytes == contents(number), "{when}: {} differs", path.display());
        } else {
            assert!(!path.exists(), "{when}: {} is back", path.display());
        }
    }
}

/// The blocks of `size` bytes of `disk` whose sectors all belonged to deleted files.
pub(crate) fn blocks_of_deleted(disk: &[u8], size: usize) -> Vec<usize> {
    let deleted = |block: &[u8]| block.chunks(SECTOR).all(|sector| sector.starts_with(DELETED));
    let blocks = disk.chunks_exact(size).enumerate();
    blocks.filter(|(_, block)| deleted(block)).map(|(number, _)| number).collect()
}
