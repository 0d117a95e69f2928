//! Merges that died when everything was merged: at each step of relinking and deleting, and with files that somebody
//! changed in between.

use crate::lab::{BASE, FORMATS, LEAF, Lab, MIB, MIDDLE, pattern, view_of};
use crate::program::{End, ok, run, vhdkit};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use vhdkit::ops::{CheckpointStore, MergeOptions, merge};
use vhdkit::{Error, ErrorKind, Format, Result, Watch};

/// Everything into the base, the merged files deleted.
const DELETE: &str = "--depth 2 --delete";
/// The middle into the base, the leaf pointed there, the middle deleted.
const RELINK: &str = "--from 2 --to 3 --relink --delete";

/// Keeps the note of the end and nothing else. When it is to stop a merge, that merge dies right after its note.
#[derive(Debug, Default)]
struct Keeper {
    note: Mutex<Option<Vec<u8>>>,
    stops: bool,
}

impl CheckpointStore for Keeper {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn save(&self, bytes: &[u8]) -> Result<()> {
        if !String::from_utf8_lossy(bytes).contains("\nfile ") {
            return Ok(());
        }
        *self.note.lock().unwrap() = Some(bytes.to_vec());
        if self.stops { Err(Error::new(ErrorKind::Cancelled, "dead")) } else { Ok(()) }
    }

    fn clear(&self) -> Result<()> {
        Ok(())
    }
}

/// Runs the merge of `options` in this process and puts its note where the program looks for it; whether it was to stop
/// there.
fn noted(leaf: &Path, options: MergeOptions, stops: bool) {
    let keeper = Arc::new(Keeper { stops, ..Keeper::default() });
    let store: Arc<dyn CheckpointStore> = Arc::<Keeper>::clone(&keeper);
    let _quiet = crate::lab::quiet();
    let ended = merge(leaf, &options.store(store), &Watch::none());
    assert_eq!(ended.is_err(), stops, "{ended:?}");
    let note = keeper.note.lock().unwrap().take().expect("the end was noted");
    fs::write(note_beside(leaf), note).unwrap();
}

fn note_beside(leaf: &Path) -> PathBuf {
    leaf.with_file_name(format!(".{}.vhdkit-merge-end", leaf.file_name().unwrap().display()))
}

/// A chain whose merge with [`DELETE`] died after its note, before it deleted anything.
fn before_deleting(format: Format) -> Lab {
    let lab = Lab::new(format);
    noted(&lab.path(LEAF), MergeOptions::depth(2).delete(true), true);
    lab
}

/// A chain whose merge with [`RELINK`] died before it deleted anything; `linked`: after it relinked.
fn before_unlinking(format: Format, linked: bool) -> Lab {
    let lab = Lab::new(format);
    noted(&lab.path(LEAF), MergeOptions::between(2, 3).relink(true), !linked);
    lab
}

fn rerun(lab: &Lab, options: &str) -> End {
    run(vhdkit(lab.folder.path(), &format!("merge {} {options} --json", lab.name(LEAF))))
}

/// The rerun finishes; answers whether it had nothing to merge, and how many files it deleted.
#[track_caller]
fn finishes(lab: &Lab, options: &str) -> (bool, usize) {
    let end = rerun(lab, options);
    assert_eq!(end.code, Some(0), "{}: {}", lab.format, end.stderr);
    let report: serde_json::Value = serde_json::from_slice(&end.stdout).unwrap();
    assert!(report["target"].as_str().unwrap().ends_with(&lab.name(BASE)), "{report}");
    (report["ended"] == true, report["deleted"].as_array().unwrap().len())
}

/// The files of the folder are those of `depths`, and no note.
#[track_caller]
fn assert_only(lab: &Lab, depths: &[usize]) {
    let mut names: Vec<PathBuf> = lab.snapshot().into_keys().collect();
    let mut wanted: Vec<PathBuf> = depths.iter().map(|&depth| lab.path(depth)).collect();
    names.sort();
    wanted.sort();
    assert_eq!(names, wanted);
}

/// Refused with code 6 and these words, and no file is changed or gone.
#[track_caller]
fn refused(lab: &Lab, options: &str, words: &[&str]) {
    let before = lab.snapshot();
    let end = rerun(lab, options);
    assert_eq!(end.code, Some(6), "{}: {}", lab.format, end.stderr);
    for word in words {
        assert!(end.stderr.contains(word), "{word}: {}", end.stderr);
    }
    assert!(lab.snapshot() == before, "{}: a refused rerun changed something", lab.format);
}

#[test]
fn a_merge_killed_while_it_deletes_is_finished_by_a_rerun() {
    for format in FORMATS {
        for gone in 0..=2 {
            let lab = before_deleting(format);
            for depth in [LEAF, MIDDLE].into_iter().take(gone) {
                fs::remove_file(lab.path(depth)).unwrap();
            }
            // With the leaf still there the merge is run again, which finds that it has little to do.
            assert_eq!(finishes(&lab, DELETE), (gone > 0, 2 - gone), "{format}, {gone} gone");
            assert_only(&lab, &[BASE]);
            lab.assert_shows(BASE, view_of(format, LEAF), "at the end");
            lab.assert_well_formed(BASE);
        }
    }
}

#[test]
fn a_merge_killed_while_it_relinks_is_finished_by_a_rerun() {
    for format in FORMATS {
        for (linked, gone) in [(false, false), (true, false), (true, true)] {
            let lab = before_unlinking(format, linked);
            if gone {
                fs::remove_file(lab.path(MIDDLE)).unwrap();
            }
            assert_eq!(finishes(&lab, RELINK), (linked, usize::from(!gone)), "{format}: {linked}, {gone}");
            assert_only(&lab, &[LEAF, BASE]);
            lab.assert_shows(LEAF, view_of(format, LEAF), "at the end");
            lab.assert_shows(BASE, view_of(format, MIDDLE), "at the end");
            lab.assert_well_formed(BASE);
            lab.assert_well_formed(LEAF);
        }
    }
}

#[test]
fn a_rerun_of_the_end_says_so_in_words_and_a_dry_run_refuses() {
    for format in FORMATS {
        let lab = before_deleting(format);
        fs::remove_file(lab.path(LEAF)).unwrap();
        refused(&lab, &format!("{DELETE} --dry-run"), &["merged already", "run the same merge again"]);
        let line = format!("merge {} --into {} --delete", lab.name(LEAF), lab.name(BASE));
        let text = String::from_utf8(ok(lab.folder.path(), &line)).unwrap();
        assert!(text.contains("everything was merged before") && text.contains(&lab.name(MIDDLE)), "{text}");
        assert_only(&lab, &[BASE]);
    }
}

/// Relinked, the chain has a file of depth 3 again: another one.
#[test]
fn a_rerun_of_the_end_is_no_merge_of_what_the_depths_mean_now() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let top = lab.folder.path().join(format!("top.{format}"));
        ok(lab.folder.path(), &format!("snapshot {} top.{format}", lab.name(LEAF)));
        noted(&top, MergeOptions::between(2, 3).relink(true), false);
        let base = fs::read(lab.path(BASE)).unwrap();
        let middle = fs::read(lab.path(MIDDLE)).unwrap();
        let end = run(vhdkit(lab.folder.path(), &format!("merge top.{format} {RELINK}")));
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        assert!(!lab.path(LEAF).exists() && !note_beside(&top).exists());
        assert!(fs::read(lab.path(BASE)).unwrap() == base && fs::read(lab.path(MIDDLE)).unwrap() == middle);
        lab.assert_shows(MIDDLE, view_of(format, LEAF), "at the end");
    }
}

#[test]
fn a_leaf_written_after_its_merge_was_noted_is_merged_again() {
    for format in FORMATS {
        let lab = before_deleting(format);
        let mut view = view_of(format, LEAF).to_vec();
        write(&lab, LEAF, 5 * MIB);
        let bytes = pattern(5 * MIB, 3000, 77);
        view[5 * MIB as usize..][..bytes.len()].copy_from_slice(&bytes);
        assert_eq!(finishes(&lab, DELETE), (false, 2), "{format}");
        lab.assert_shows(BASE, &view, "at the end");
    }
}

/// Writes 3000 bytes to the file of `depth`, as a user of that disk.
fn write(lab: &Lab, depth: usize, offset: u64) {
    let input = lab.folder.path().join("input");
    fs::write(&input, pattern(offset, 3000, 77)).unwrap();
    let mut write = vhdkit(lab.folder.path(), &format!("write {} --offset {offset} --quiet", lab.name(depth)));
    write.stdin(fs::File::open(&input).unwrap());
    let end = run(write);
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    fs::remove_file(input).unwrap();
}

#[test]
fn a_merged_file_that_was_written_to_is_not_deleted() {
    for format in FORMATS {
        for depth in [MIDDLE, BASE] {
            let lab = before_deleting(format);
            fs::remove_file(lab.path(LEAF)).unwrap();
            // In a block that the file has, so that its length stays.
            write(&lab, depth, 5 * MIB);
            refused(&lab, DELETE, &[&lab.name(depth), "nothing was deleted", "vhdkit-merge-end"]);
        }
        let lab = before_unlinking(format, true);
        write(&lab, MIDDLE, 5 * MIB);
        refused(&lab, RELINK, &[&lab.name(MIDDLE), "nothing was deleted"]);
    }
}

#[test]
fn a_file_in_the_place_of_a_merged_one_is_not_deleted() {
    for format in FORMATS {
        let lab = before_deleting(format);
        fs::remove_file(lab.path(LEAF)).unwrap();
        fs::remove_file(lab.path(MIDDLE)).unwrap();
        ok(lab.folder.path(), &format!("create --parent {} {}", lab.name(BASE), lab.name(MIDDLE)));
        refused(&lab, DELETE, &[&lab.name(MIDDLE), "nothing was deleted"]);
        fs::write(lab.path(MIDDLE), b"my notes").unwrap();
        let before = lab.snapshot();
        assert_eq!(rerun(&lab, DELETE).code, Some(4), "{format}");
        assert!(lab.snapshot() == before);
    }
}

#[test]
fn a_merged_file_with_other_children_is_not_deleted() {
    for format in FORMATS {
        let lab = before_deleting(format);
        fs::rename(lab.path(LEAF), lab.folder.path().join(format!("moved.{format}"))).unwrap();
        refused(&lab, DELETE, &["moved.", "stand on files"]);
    }
}

#[test]
fn a_merged_file_in_use_is_not_deleted() {
    for format in FORMATS {
        let lab = before_deleting(format);
        fs::remove_file(lab.path(LEAF)).unwrap();
        let _quiet = crate::lab::quiet();
        let held = vhdkit::storage::FileStorage::open(
            &lab.path(MIDDLE),
            vhdkit::storage::Access::Read,
            vhdkit::storage::Lock::Shared,
        );
        let error = merge(lab.path(LEAF), &MergeOptions::depth(2).delete(true), &Watch::none()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        drop(held.unwrap());
        assert!(lab.path(MIDDLE).exists());
    }
}

#[test]
fn a_note_that_is_damaged_or_of_another_merge_deletes_nothing() {
    for format in FORMATS {
        let lab = before_deleting(format);
        fs::remove_file(lab.path(LEAF)).unwrap();
        let note = fs::read(lab.note(LEAF)).unwrap();
        let absent = |options: &str| {
            let before = lab.snapshot();
            let end = rerun(&lab, options);
            assert_eq!(end.code, Some(3), "{}: no such file: {}", lab.format, end.stderr);
            assert!(lab.snapshot() == before);
        };
        absent("--depth 2");
        absent("--depth 1 --delete");
        for at in (0..note.len()).step_by(7) {
            let mut bytes = note.clone();
            bytes[at] ^= 0x10;
            fs::write(lab.note(LEAF), bytes).unwrap();
            absent(DELETE);
        }
        fs::write(lab.note(LEAF), &note[..note.len() / 2]).unwrap();
        absent(DELETE);
        fs::write(lab.note(LEAF), note).unwrap();
        assert_eq!(finishes(&lab, DELETE), (true, 1), "{format}");
    }
}
