//! Resizes, changed ids, items and snapshots killed at random moments.

use crate::lab::{BASE, LEAF, Lab, MIB, MIDDLE, view_of};
use crate::program::{Dice, Running, ok, run, say, vhdkit};
use std::fs;
use std::time::{Duration, Instant};
use vhdkit::Format;

/// How many runs of each kind are killed for each format.
const KILLS: usize = 12;

/// What is done to a chain, and what is to hold of its files.
struct Work {
    format: Format,
    line: String,
    /// Sizes that the leaf may have.
    sizes: [u64; 2],
    /// Whether the rerun must find nothing taken back.
    check: fn(&Lab),
}

fn nothing(_: &Lab) {}

fn works(format: Format) -> Vec<Work> {
    let size = view_of(format, LEAF).len() as u64;
    let leaf = format!("leaf.{format}");
    let resize = |new: u64| Work {
        format,
        line: format!("resize {leaf} {new} --allow-data-loss"),
        sizes: [size, new],
        check: nothing,
    };
    let what = if format == Format::Vhd { "--unique-id" } else { "--disk-id" };
    let set = |depth: &str| Work {
        format,
        line: format!("set {depth}.{format} {what} 7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4 --relink"),
        sizes: [size; 2],
        check: nothing,
    };
    let mut works = vec![resize(size + 33 * MIB + 512), resize(9 * MIB + 512), set("base"), set("middle")];
    works.push(Work {
        format,
        line: format!("snapshot {leaf} child.{format}"),
        sizes: [size; 2],
        check: |lab| lab.assert_child_shows(),
    });
    if format == Format::Vhdx {
        let item = "7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4";
        let line = format!("metadata set base.vhdx {item} --from input --virtual-disk --relink");
        works.push(Work { format, line, sizes: [size; 2], check: nothing });
    }
    works
}

impl Lab {
    fn assert_child_shows(&self) {
        let path = self.folder.path().join(format!("child.{}", self.format));
        if path.exists() {
            let (bytes, files) = crate::lab::read(&path, &vhdkit::chain::ChainOptions::new()).expect("it opens");
            assert_eq!(files, 4);
            crate::lab::assert_same(&bytes, view_of(self.format, LEAF), "the snapshot");
        }
    }
}

/// What every file must show, between the runs (`done` false) and after the last one.
fn judge(lab: &Lab, work: &Work, done: bool, when: &str) {
    for depth in [BASE, MIDDLE] {
        match lab.shows(depth) {
            Ok((bytes, _)) => crate::lab::assert_same(&bytes, view_of(work.format, depth), when),
            // Its parent got its new id and it not yet: the note beside the parent says so.
            Err(error) => assert!(!done && lab.has_note(), "{when}: {error:?}"),
        }
    }
    match lab.shows(LEAF) {
        Ok((bytes, _)) => {
            let size = bytes.len() as u64;
            assert!(work.sizes.contains(&size) && (!done || size == work.sizes[1]), "{when}: {size} bytes");
            let mut want = view_of(work.format, LEAF).to_vec();
            want.resize(bytes.len(), 0);
            crate::lab::assert_same(&bytes, &want, when);
        }
        Err(error) => assert!(!done && lab.has_note(), "{when}: {error:?}"),
    }
    (work.check)(lab);
    if done {
        assert!(!lab.has_note(), "{when}: a note was left");
        [BASE, MIDDLE, LEAF].iter().for_each(|depth| lab.assert_well_formed_after_a_kill(*depth));
    }
}

impl Lab {
    fn has_note(&self) -> bool {
        let names =
            fs::read_dir(self.folder.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        names.into_iter().any(|name| name.to_string_lossy().ends_with(".vhdkit-set"))
    }

    fn with_input(format: Format) -> Self {
        let lab = Self::new(format);
        fs::write(lab.folder.path().join("input"), vec![0xA5; 1 << 20]).expect("room");
        lab
    }
}

fn usual(work: &Work) -> Duration {
    let lab = Lab::with_input(work.format);
    let start = Instant::now();
    ok(lab.folder.path(), &work.line);
    start.elapsed()
}

fn campaign(format: Format) {
    let mut dice = Dice::new(if format == Format::Vhd { 11 } else { 12 });
    for work in works(format) {
        let usual = usual(&work);
        let (mut kills, mut between, mut too_late) = (0, 0, 0);
        while kills < KILLS {
            assert!(too_late < 20 * KILLS, "{}: it ends before it can be killed", work.line);
            let lab = Lab::with_input(format);
            let before = lab.snapshot();
            let mut running = Running::start(vhdkit(lab.folder.path(), &work.line));
            running.works_for(dice.time_below(usual));
            let end = running.kill();
            if !end.killed {
                assert_eq!(end.code, Some(0), "{}: {}", work.line, end.stderr);
                too_late += 1;
                continue;
            }
            kills += 1;
            between += usize::from(lab.snapshot() != before);
            judge(&lab, &work, false, &format!("after a kill of {}", work.line));
            let _ = fs::remove_file(lab.folder.path().join(format!("child.{format}")));
            let end = run(vhdkit(lab.folder.path(), &work.line));
            assert_eq!(end.code, Some(0), "rerun of {}: {}", work.line, end.stderr);
            judge(&lab, &work, true, &format!("after the rerun of {}", work.line));
        }
        say(format_args!("{format}: {}: {kills} killed, {between} of them had written", work.line));
    }
}

#[test]
fn killed_changes_of_a_vhd_chain_are_finished_by_a_rerun() {
    campaign(Format::Vhd);
}

#[test]
fn killed_changes_of_a_vhdx_chain_are_finished_by_a_rerun() {
    campaign(Format::Vhdx);
}
