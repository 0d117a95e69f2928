//! Folders that live as long as one input.
//!
//! Owns: where they are: in memory where the system has such a place.

use std::path::Path;
use tempfile::TempDir;
use vhdkit::storage::{Access, Lock, MemoryStorage, Storage};

/// A fresh folder.
pub(crate) fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::with_prefix_in("vhdkit-fuzz-", memory) } else { TempDir::new() };
    made.expect("a folder for temporary files")
}

/// Writes `contents` to a new file at `path`, its zeros as holes.
pub(crate) fn write(path: &Path, contents: &MemoryStorage) {
    use std::os::unix::fs::FileExt;
    const PAGE: u64 = 4096;
    let file = std::fs::File::create_new(path).expect("a new file");
    let len = contents.len().expect("memory has a length");
    file.set_len(len).expect("the folder takes the file");
    let mut at = 0;
    while let Some(found) = contents.next_data(at).expect("memory answers") {
        let start = found / PAGE * PAGE;
        let mut page = vec![0; (len - start).min(PAGE) as usize];
        contents.read_exact_at(&mut page, start).expect("inside the file");
        file.write_all_at(&page, start).expect("the folder takes the file");
        at = start + PAGE;
    }
}

/// What the file at `path` holds.
pub(crate) fn read(path: &Path) -> MemoryStorage {
    let file = vhdkit::storage::FileStorage::open(path, Access::Read, Lock::None).expect("a file of this folder");
    crate::workload::copy(&file)
}
