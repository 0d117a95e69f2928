//! A chain of three real files whose contents are known.
//!
//! Owns: what the files hold, fresh copies of them, and reading what a file shows. Must not know: what is done to them.

use crate::support;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, RwLock, RwLockReadGuard};
use tempfile::TempDir;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{CreateOptions, create};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, Format};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const FORMATS: [Format; 2] = [Format::Vhd, Format::Vhdx];

/// The size of the disk.
pub(crate) const DISK: u64 = 40 * MIB;

/// Held for writing while a process is started, for reading while this process holds locks on images: between its fork
/// and its exec a new process holds every lock that this one held at that moment.
pub(crate) static FORKING: RwLock<()> = RwLock::new(());

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// While this lives no process is started, so that locks taken by this process go when it lets them go.
pub(crate) struct Quiet(Option<RwLockReadGuard<'static, ()>>);

/// See [`Quiet`]. A thread that has one gets an empty second one: waiting for a writer that waits for the first would
/// never end.
pub(crate) fn quiet() -> Quiet {
    Quiet((!QUIET.replace(true)).then(|| FORKING.read().expect("nothing panics while it forks")))
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.0.is_some() {
            QUIET.set(false);
        }
    }
}

/// The files by their depth.
pub(crate) const LEAF: usize = 1;
pub(crate) const MIDDLE: usize = 2;
pub(crate) const BASE: usize = 3;

/// A chain of three in a folder of its own.
pub(crate) struct Lab {
    pub(crate) folder: TempDir,
    pub(crate) format: Format,
}

/// A chain as it was made, and what its files show by their depth.
struct Master {
    lab: Lab,
    views: [Vec<u8>; 3],
}

/// `len` bytes that differ from place to place and from seed to seed, none of them zero.
pub(crate) fn pattern(offset: u64, len: u64, seed: u8) -> Vec<u8> {
    let one = |at: u64| ((at % 251) as u8 ^ ((at >> 9) as u8).wrapping_mul(29)).wrapping_add(seed) | 1;
    (offset..offset + len).map(one).collect()
}

/// What a file is given: offsets, lengths and seeds for [`pattern`]; the seed 0 means zeros.
pub(crate) type Edits = Vec<(u64, u64, u8)>;

/// Runs, and sectors all over the place.
fn edits(depth: usize) -> Edits {
    match depth {
        BASE => vec![(0, 26 * MIB, 1), (36 * MIB + 100, 9000, 2)],
        MIDDLE => {
            let scattered = (0..96).map(|n| (16 * MIB + n * 100 * KIB, 4096 + 512 * (n % 3), 4));
            [(4 * MIB, 7 * MIB, 3), (2 * MIB, 70_000, 0)].into_iter().chain(scattered).collect()
        }
        _ => {
            let scattered = (0..160).map(|n| (21 * MIB + n * 24 * KIB, 512 + 512 * (n % 5), 6));
            let runs = [(8 * MIB + 512, 6 * MIB, 5), (12 * MIB, MIB, 0), (28 * MIB, 5 * MIB + 700, 7)];
            runs.into_iter().chain(scattered).chain([(DISK - 1, 1, 8)]).collect()
        }
    }
}

impl Master {
    fn of(format: Format) -> &'static Self {
        static VHD: OnceLock<Master> = OnceLock::new();
        static VHDX: OnceLock<Master> = OnceLock::new();
        let cell = if format == Format::Vhd { &VHD } else { &VHDX };
        cell.get_or_init(|| {
            let (lab, views) = Lab::build(tempfile::tempdir().expect("a folder"), format, DISK, edits);
            Self { lab, views }
        })
    }
}

/// What the file of `depth` shows in a fresh lab.
pub(crate) fn view_of(format: Format, depth: usize) -> &'static [u8] {
    &Master::of(format).views[depth - 1]
}

impl Lab {
    /// Makes a chain in `folder`, each file with the edits of its depth; answers what the files show.
    pub(crate) fn build(folder: TempDir, format: Format, size: u64, edits: fn(usize) -> Edits) -> (Self, [Vec<u8>; 3]) {
        let _quiet = quiet();
        let lab = Self { folder, format };
        let mut view = vec![0; size as usize];
        let [base, middle, leaf] = [BASE, MIDDLE, LEAF].map(|depth| {
            let block = if format == Format::Vhd && depth == BASE { 512 * KIB } else { MIB };
            let options = match depth {
                BASE => CreateOptions::new(format, DiskKind::Dynamic).size(size).block_size(block as u32),
                _ => CreateOptions::new(format, DiskKind::Differencing).parent(lab.path(depth + 1)),
            };
            create(lab.path(depth), &options).expect("create");
            let mut chain = Chain::open(lab.path(depth), &ChainOptions::new().access(Access::Write)).expect("open");
            for (offset, len, seed) in edits(depth) {
                let range = offset as usize..(offset + len) as usize;
                if seed == 0 {
                    chain.zero(offset..offset + len).expect("zero");
                    view[range].fill(0);
                } else {
                    let bytes = pattern(offset, len, seed);
                    chain.write_at(&bytes, offset).expect("write");
                    view[range].copy_from_slice(&bytes);
                }
            }
            chain.close().expect("close");
            view.clone()
        });
        (lab, [leaf, middle, base])
    }

    /// A fresh copy of the chain.
    pub(crate) fn new(format: Format) -> Self {
        let lab = Self { folder: tempfile::tempdir().expect("a folder"), format };
        for depth in [BASE, MIDDLE, LEAF] {
            fs::copy(Master::of(format).lab.path(depth), lab.path(depth)).expect("room for a copy");
        }
        lab
    }

    pub(crate) fn name(&self, depth: usize) -> String {
        format!("{}.{}", ["leaf", "middle", "base"][depth - 1], self.format)
    }

    pub(crate) fn path(&self, depth: usize) -> PathBuf {
        self.folder.path().join(self.name(depth))
    }

    pub(crate) fn checkpoint(&self, target: usize) -> PathBuf {
        self.folder.path().join(format!(".{}.vhdkit-merge", self.name(target)))
    }

    /// The note of the end of a merge that was asked for by the file of `depth`.
    pub(crate) fn note(&self, depth: usize) -> PathBuf {
        self.folder.path().join(format!(".{}.vhdkit-merge-end", self.name(depth)))
    }

    /// What the file of `depth` shows, its chain opened anew under locks, and how many files the chain has.
    pub(crate) fn shows(&self, depth: usize) -> Result<(Vec<u8>, usize), vhdkit::Error> {
        let _quiet = quiet();
        read(&self.path(depth), &ChainOptions::new())
    }

    /// Fails unless the file of `depth` opens and shows `view`.
    #[track_caller]
    pub(crate) fn assert_shows(&self, depth: usize, view: &[u8], when: &str) {
        let name = self.name(depth);
        let (bytes, _) = self.shows(depth).unwrap_or_else(|error| panic!("{name} does not open {when}: {error}"));
        assert_same(&bytes, view, &format!("{name} {when}"));
    }

    /// As [`assert_shows`](Self::assert_shows), beside a merge that runs.
    #[track_caller]
    pub(crate) fn assert_shows_unlocked(&self, depth: usize, view: &[u8], when: &str) {
        let (bytes, _) = read(&self.path(depth), &ChainOptions::new().locked(false)).expect("it opens");
        assert_same(&bytes, view, when);
    }

    /// Every file of the folder and its bytes.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = fs::read_dir(self.folder.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
        paths.map(|path| (path.clone(), fs::read(&path).expect("a file"))).collect()
    }

    /// Holds the file of `depth` to the rules of its format, but for what a kill leaves in a VHDX that the rerun had no
    /// reason to write to: updates in the log, which every reader replays, or an older header that still names a log.
    pub(crate) fn assert_well_formed_after_a_kill(&self, depth: usize) {
        if self.format == Format::Vhd {
            return self.assert_well_formed(depth);
        }
        let file = fs::File::open(self.path(depth)).unwrap();
        let report = support::check::Report::vhdx(&file);
        if !report.rules().iter().all(|rule| ["clean-log", "headers-agree"].contains(rule)) {
            report.assert_clean(self.path(depth).display());
        }
    }

    /// Holds the file of `depth` to the rules of its format.
    pub(crate) fn assert_well_formed(&self, depth: usize) {
        match self.format {
            Format::Vhd => support::assert_well_formed_vhd(self.path(depth)),
            _ => support::assert_well_formed_vhdx(self.path(depth)),
        }
    }
}

/// What the chain whose leaf is at `path` shows, and how many files it has.
pub(crate) fn read(path: &Path, options: &ChainOptions) -> Result<(Vec<u8>, usize), vhdkit::Error> {
    let chain = Chain::open(path, options)?;
    let mut bytes = vec![0xEE; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0)?;
    let files = chain.layers().len();
    chain.close()?;
    Ok((bytes, files))
}

#[track_caller]
pub(crate) fn assert_same(found: &[u8], wanted: &[u8], what: &str) {
    if found == wanted {
        return;
    }
    let at = found.iter().zip(wanted).position(|(a, b)| a != b);
    panic!("{what}: {} bytes, {} wanted, first difference at {at:#x?}", found.len(), wanted.len());
}
