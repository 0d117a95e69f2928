//! Compactions killed at random moments.

use crate::lab::{FORMATS, KIB, MIB, assert_same, pattern, quiet};
use crate::program::{Dice, Running, ok, run, say, vhdkit};
use crate::support;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{CreateOptions, create};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, Format};

/// How many running compactions are killed for each format.
const KILLS: usize = 30;
const DISK: u64 = 48 * MIB;

/// An image whose blocks lie in another order than on the disk, with blocks of zeros between them, and what it shows.
struct Master {
    folder: TempDir,
    view: Vec<u8>,
    /// The length of the file once compacted.
    compacted: u64,
    /// How long that takes.
    usual: Duration,
}

impl Master {
    fn new(format: Format) -> Self {
        let _quiet = quiet();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let block = if format == Format::Vhd { 512 * KIB } else { MIB };
        let options = CreateOptions::new(format, DiskKind::Dynamic).size(DISK).block_size(block as u32);
        create(&path, &options).expect("create");
        let mut chain = Chain::open(&path, &ChainOptions::new().access(Access::Write)).expect("open");
        let mut view = vec![0; DISK as usize];
        for block in (0..DISK / MIB).rev() {
            let (at, zeros) = (block * MIB, block % 3 == 1);
            let bytes = if zeros { vec![0; MIB as usize] } else { pattern(at, MIB, block as u8) };
            chain.write_at(&bytes, at).expect("write");
            view[at as usize..][..MIB as usize].copy_from_slice(&bytes);
        }
        chain.close().expect("close");
        drop(_quiet);
        let mut master = Self { folder, view, compacted: 0, usual: Duration::ZERO };
        let lab = master.copy();
        let start = Instant::now();
        ok(lab.path(), "compact disk --no-fs");
        master.usual = start.elapsed();
        master.compacted = fs::metadata(lab.path().join("disk")).expect("the image").len();
        let blocks = DISK / MIB;
        assert!(master.compacted < DISK * 80 / 100, "{} of {blocks} MiB", master.compacted);
        master
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn copy(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::copy(self.path(), folder.path().join("disk")).expect("room");
        folder
    }

    #[track_caller]
    fn assert_shows(&self, folder: &Path, when: &str) {
        let shown = ok(folder, "read disk");
        assert_same(&shown, &self.view, when);
    }
}

fn campaign(format: Format) {
    let master = Master::new(format);
    let whole = fs::metadata(master.path()).expect("the image").len();
    let mut dice = Dice::new(if format == Format::Vhd { 11 } else { 12 });
    let (mut kills, mut shorter, mut too_late) = (0, 0, 0);
    while kills < KILLS {
        assert!(too_late < 20 * KILLS, "the compactions end before they can be killed");
        let lab = master.copy();
        for _ in 0..=dice.below(3) {
            let mut compaction = Running::start(vhdkit(lab.path(), "compact disk --no-fs --progress json"));
            if dice.below(3) > 0 {
                compaction.reaches_copying();
            }
            compaction.works_for(dice.time_below(master.usual));
            let end = compaction.kill();
            if !end.killed {
                assert_eq!(end.code, Some(0), "{}", end.stderr);
                too_late += 1;
                break;
            }
            kills += 1;
            master.assert_shows(lab.path(), "after a kill");
            let len = fs::metadata(lab.path().join("disk")).expect("the image").len();
            assert!(len <= whole, "the file grew: {len} bytes");
            shorter += usize::from(len < whole);
        }
        let end = run(vhdkit(lab.path(), "compact disk --no-fs"));
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        master.assert_shows(lab.path(), "after the rerun");
        let path = lab.path().join("disk");
        assert_eq!(fs::metadata(&path).expect("the image").len(), master.compacted, "after the rerun");
        match format {
            Format::Vhd => support::assert_well_formed_vhd(&path),
            _ => support::assert_well_formed_vhdx(&path),
        }
    }
    say(format_args!(
        "{format}: a compaction takes {:?}; {kills} killed, {shorter} of them after the file was cut, {too_late} too late",
        master.usual
    ));
}

#[test]
fn killed_compactions_lose_nothing_and_a_rerun_finishes() {
    FORMATS.into_iter().for_each(campaign);
}
