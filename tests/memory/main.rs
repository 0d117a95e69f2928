//! How much memory the program takes, alone in this binary: the peak of a child counts what its parent held when it was
//! started, so nothing else may run here.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use wait4::Wait4;

const MIB: u64 = 1 << 20;
/// One test at a time.
static ALONE: Mutex<()> = Mutex::new(());
/// What the largest disk with the smallest blocks may take: its table alone is 513 MiB.
const LIMIT: u64 = 64 * MIB;

fn peak(folder: &Path, line: &str) -> u64 {
    peak_of(folder, line, 0)
}

#[test]
fn the_largest_vhdx_is_made_and_shown_in_little_memory() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    for line in [
        "create --size 64T --block-size 1M huge.vhdx",
        "info huge.vhdx",
        "create --parent huge.vhdx child.vhdx",
        "info --chain child.vhdx",
        "read child.vhdx --offset 63T --length 64M",
        "merge child.vhdx --depth 1 --dry-run",
    ] {
        let peak = peak(folder.path(), line);
        assert!(peak < LIMIT, "vhdkit {line} took {} MiB", peak / MIB);
    }
}

/// Runs it, whatever it answers, and expects the exit code `code`.
fn peak_of(folder: &Path, line: &str, code: i32) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vhdkit"))
        .args(line.split(' '))
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let used = child.wait4().expect("the program ends");
    assert_eq!(used.status.code(), Some(code), "vhdkit {line}");
    eprintln!("vhdkit {line}: {} MiB at most", used.rusage.maxrss / MIB);
    used.rusage.maxrss
}

/// Where a new file's table lies, and how many payload entries there are between two of sector bitmaps.
const TABLE_AT: u64 = 3 * MIB;
const CHUNK_RATIO: u64 = 4096;

/// Fills the table of the disk with one entry for every block.
fn fill_table(path: &Path, entry: impl Fn(u64) -> u64) {
    let blocks = (64 << 40) / MIB;
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(TABLE_AT)).unwrap();
    let mut piece = Vec::with_capacity(8 * CHUNK_RATIO as usize + 8);
    for block in 0..blocks {
        piece.extend_from_slice(&entry(block).to_le_bytes());
        if (block + 1) % CHUNK_RATIO == 0 {
            // The entry of the sector bitmap, which a disk without a parent has none of.
            piece.extend_from_slice(&[0; 8]);
            file.write_all(&piece).unwrap();
            piece.clear();
        }
    }
}

/// Every entry of the largest table in use: each block at a place of its own, or all at one.
#[test]
fn hostile_images_are_refused_or_checked_in_little_memory() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.vhdx");
    peak_of(folder.path(), "create --size 64T --block-size 1M huge.vhdx", 0);
    let first = fs::metadata(&path).unwrap().len().div_ceil(MIB);
    for (name, alias) in [("a full table", false), ("a table of aliases", true)] {
        fill_table(&path, |block| if alias { (first << 20) | 6 } else { ((first + block) << 20) | 6 });
        for (line, code) in [("check huge.vhdx", 1), ("check --json huge.vhdx", 1), ("info huge.vhdx", 0)] {
            let peak = peak_of(folder.path(), line, code);
            assert!(peak < LIMIT, "vhdkit {line} with {name} took {} MiB", peak / MIB);
        }
    }
    fs::remove_file(&path).unwrap();

    // A log said to be 1 GiB long, and of which nothing is.
    peak_of(folder.path(), "create --size 8M log.vhdx", 0);
    let log = folder.path().join("log.vhdx");
    let mut bytes = fs::read(&log).unwrap();
    let end = bytes.len() as u64;
    for at in [64 << 10, 128 << 10] {
        let header = &mut bytes[at..at + 4096];
        header[48..64].fill(7);
        header[68..72].copy_from_slice(&(1u32 << 30).to_le_bytes());
        header[72..80].copy_from_slice(&end.to_le_bytes());
        let sum = support::bytes::vhdx_checksum(header, 4);
        header[4..8].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(&log, bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(end + (1 << 30)).unwrap();
    // The longest VHD table: as many entries as 32 bits count, in a file that is one hole.
    peak_of(folder.path(), "create --size 2040G --format vhd --block-size 4K table.vhd", 0);
    for (line, code) in [("info log.vhdx", 4), ("check log.vhdx", 1), ("check table.vhd", 0)] {
        let peak = peak_of(folder.path(), line, code);
        assert!(peak < LIMIT, "vhdkit {line} took {} MiB", peak / MIB);
    }
}

/// What the program may hold for a merge besides its workers' chunks: cached pages of the tables of three images, one
/// batch's list of moves, and the workers' stacks.
const PAGES_AND_PLANS: u64 = 16 * MIB;
/// What one worker holds.
const CHUNK: u64 = MIB;

/// Writes `len` bytes of data that is nowhere zero.
fn fill(folder: &Path, file: &str, len: u64) {
    let piece: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8 + 1).collect();
    let line = format!("write {file} --offset 0");
    let mut child = Command::new(env!("CARGO_BIN_EXE_vhdkit"))
        .args(line.split(' '))
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut to = child.stdin.take().expect("a pipe");
    for _ in 0..len / MIB {
        to.write_all(&piece).expect("it reads");
    }
    drop(to);
    assert!(child.wait().expect("it ends").success(), "vhdkit {line}");
}

/// More than two batches: what is held is chunks and pages, however much is moved.
#[test]
fn a_large_merge_takes_its_chunks_and_some_pages() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for format in ["vhd", "vhdx"] {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| format!("{name}.{format}");
        let (base, child) = (file("base"), file("child"));
        let mut peaks = Vec::new();
        for (jobs, data) in [(1, 16 * MIB), (1, 600 * MIB), (8, 600 * MIB)] {
            peak_of(folder.path(), &format!("create --size 4G {base}"), 0);
            peak_of(folder.path(), &format!("create --parent {base} {child}"), 0);
            fill(folder.path(), &child, data);
            let idle = peak_of(folder.path(), &format!("info --chain {child}"), 0);
            let peak = peak_of(folder.path(), &format!("merge {child} --depth 1 --jobs {jobs}"), 0);
            let limit = idle + jobs * CHUNK + PAGES_AND_PLANS;
            assert!(peak <= limit, "{format}, {} MiB, {jobs} jobs: {} of {} MiB", data / MIB, peak / MIB, limit / MIB);
            peaks.push(peak);
            fs::remove_file(folder.path().join(&child)).unwrap();
            fs::remove_file(folder.path().join(&base)).unwrap();
        }
        let growth = peaks[1].saturating_sub(peaks[0]);
        assert!(growth <= 2 * MIB, "{format}: 37 times the data took {} MiB more", growth / MIB);
    }
}
