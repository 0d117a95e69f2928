//! Files that appear half written, stay behind when dropped, or replace what somebody holds.

use super::model::{Left, explore};
use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn filled(target: &Path, bytes: &[u8]) -> AtomicFile {
    let file = AtomicFile::create(target).unwrap();
    file.storage().write_all_at(bytes, 0).unwrap();
    file
}

#[test]
fn appears_under_its_name_only_when_committed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("disk.vhdx");
    let file = filled(&target, b"new");
    let temporary = names(dir.path());
    assert!(temporary.len() == 1 && temporary[0].starts_with(".disk.vhdx."), "{temporary:?}");
    file.commit(false).unwrap();
    assert_eq!(names(dir.path()), ["disk.vhdx"]);
    assert_eq!(fs::read(&target).unwrap(), b"new");
}

#[test]
fn dropped_it_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(&dir.path().join("disk.vhdx"), b"new"));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn leftovers_of_killed_processes_are_removed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("disk.vhdx");
    for _ in 0..3 {
        let file = filled(&target, b"half");
        // A killed process does not drop.
        fs::copy(&file.temporary, file.temporary.with_file_name(".disk.vhdx.0123456789ab.partial")).unwrap();
    }
    let others = [
        ".disk.vhd.0123456789ab.partial",
        ".disk.vhdx.0123456789a.partial",
        ".disk.vhdx.0123456789ag.partial",
        ".disk.vhdx.partial",
        ".disk.vhdx.x.0123456789ab.partial",
        "disk.vhdx",
    ];
    for name in others {
        fs::write(dir.path().join(name), b"").unwrap();
    }
    remove_leftovers(&target);
    assert_eq!(names(dir.path()), others);
}

#[test]
fn replaces_only_when_told_and_only_what_nobody_holds() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("disk.vhdx");
    fs::write(&target, b"old").unwrap();
    assert_eq!(filled(&target, b"new").commit(false).unwrap_err().kind(), ErrorKind::Refused);
    let held = FileStorage::open(&target, Access::Read, Lock::Shared).unwrap();
    assert_eq!(filled(&target, b"new").commit(true).unwrap_err().kind(), ErrorKind::InUse);
    drop(held);
    assert_eq!(fs::read(&target).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["disk.vhdx"]);
    filled(&target, b"new").commit(true).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert_eq!(names(dir.path()), ["disk.vhdx"]);
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    assert_eq!(filled(&folder, b"new").commit(true).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn keeps_the_permissions_of_what_it_replaces() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("disk.vhdx");
    fs::write(&target, b"old").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    filled(&target, b"new").commit(true).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn long_names_fit_and_no_name_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("ä".repeat(127));
    filled(&target, b"new").commit(false).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert_eq!(AtomicFile::create(Path::new("/")).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_dead_processes_left_in_a_directory_goes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let dead = [".a.json.0123456789ab.partial", ".a.0123456789ab.partial", ".x.y.z.abcdefabcdef.partial"];
    let others =
        ["a.json", ".a.json.partial", ".a.0123456789.partial", "a.0123456789ab.partial", ".a.0123456789ag.partial"];
    for name in dead.iter().chain(&others) {
        fs::write(dir.path().join(name), "").unwrap();
    }
    remove_leftovers(&dir.path().join("a"));
    assert_eq!(names(dir.path()).len(), dead.len() + others.len() - 1, "a.json is another file");
    remove_leftovers_in(dir.path());
    let mut others = others;
    others.sort_unstable();
    assert_eq!(names(dir.path()), others);
}

#[test]
fn a_file_that_is_gone_already_is_removed_without_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, "").unwrap();
    assert!(remove_if_there(&path, "remove it").unwrap());
    assert!(!remove_if_there(&path, "remove it").unwrap());
    let error = remove_if_there(dir.path(), "remove it").unwrap_err();
    assert!(error.to_string().contains("remove it"), "{error}");
}

// ---- crashes ----

fn is_file_sync(step: &Step) -> bool {
    matches!(step, Step::SyncFile(_))
}

fn is_rename(step: &Step) -> bool {
    matches!(step, Step::Rename(..))
}

fn is_directory_sync(step: &Step) -> bool {
    matches!(step, Step::SyncDirectory(_))
}

/// Commits a file, over an old one or not, without a step when one is given, and looks at every crash state: how many there
/// were, or what is wrong.
fn crash(overwrite: bool, without: Option<fn(&Step) -> bool>) -> std::result::Result<usize, String> {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("disk.vhdx");
    if overwrite {
        fs::write(&target, b"old").unwrap();
    }
    let before: Vec<&Path> = if overwrite { vec![&target] } else { Vec::new() };
    let run = || filled(&target, b"new").commit(overwrite).unwrap();
    let steps = steps::record(without.map(|kind| (kind, 0)), run).expect("a commit takes each kind of step");
    explore(&before, &steps, &mut |names, done| match names.get(&target) {
        Some(Left::New { whole: true, .. }) => Ok(()),
        Some(Left::New { whole: false, .. }) => Err("the name shows half a file".to_owned()),
        _ if done => Err("the commit was taken back".to_owned()),
        Some(Left::Old) => Ok(()),
        None if overwrite => Err("neither the old file nor the new one".to_owned()),
        None => Ok(()),
    })
}

/// Bug this finds: a name that shows part of a file after a crash, or a commit that a crash takes back.
#[test]
fn a_commit_survives_every_crash() {
    for overwrite in [false, true] {
        let states = crash(overwrite, None).unwrap();
        assert!(states > 10, "{states}");
    }
}

/// Bug this finds: a model that would not notice that one of the three is missing.
#[test]
fn a_commit_needs_the_sync_of_the_file_the_rename_and_the_sync_of_the_directory() {
    for overwrite in [false, true] {
        for (kind, wrong) in [
            (is_file_sync as fn(&Step) -> bool, "half a file"),
            (is_rename, "taken back"),
            (is_directory_sync, "taken back"),
        ] {
            let found = crash(overwrite, Some(kind)).unwrap_err();
            assert!(found.contains(wrong), "{overwrite}: {found}");
        }
    }
}

#[test]
fn what_was_removed_stays_removed_when_its_directory_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    for (without, right) in [(None, true), (Some((is_directory_sync as fn(&Step) -> bool, 0)), false)] {
        fs::write(&path, "").unwrap();
        let steps = steps::record(without, || assert!(remove_if_there(&path, "remove it").unwrap())).unwrap();
        let found = explore(&[&path], &steps, &mut |names, done| {
            if done && names.contains_key(&path) { Err("it is back".to_owned()) } else { Ok(()) }
        });
        assert_eq!(found.is_ok(), right, "{found:?}");
    }
}
