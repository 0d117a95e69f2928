//! A file system that runs out of space in the middle.
//!
//! It is a small one of its own: ext4 in a loop device where that may be mounted, otherwise a tmpfs; where nothing may be
//! mounted, files that may not grow past a limit (`RLIMIT_FSIZE`) stand in for it. Which it was is printed.

use crate::lab::{BASE, Edits, FORMATS, KIB, LEAF, Lab, MIB, MIDDLE};
use crate::program::{End, Running, run, say, succeeds, vhdkit};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use vhdkit::Format;

/// The size of the file system.
const FILE_SYSTEM: u64 = 32 * MIB;
const DISK: u64 = 16 * MIB;

/// What the three files are given: little in the base, so that the merge has to allocate.
fn edits(depth: usize) -> Edits {
    match depth {
        BASE => vec![(0, 300 * KIB, 1)],
        MIDDLE => vec![(2 * MIB, 3 * MIB, 2), (9 * MIB + 512, 512, 3)],
        _ => vec![(5 * MIB, 3 * MIB, 4), (3 * MIB, 4096, 5), (12 * MIB, MIB, 6)],
    }
}

/// A mounted file system of [`FILE_SYSTEM`] bytes; it goes when this does.
struct Small {
    mount: PathBuf,
    kind: &'static str,
    _folder: TempDir,
}

impl Small {
    /// `None`: this process may not mount anything.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (mount, image) = (folder.path().join("mount"), folder.path().join("image"));
        fs::create_dir(&mount).unwrap();
        File::create(&image).unwrap().set_len(FILE_SYSTEM).unwrap();
        let with = |name: &str, options: &[&str], paths: &[&Path]| {
            let mut command = Command::new(name);
            command.args(options).args(paths).stdout(Stdio::null()).stderr(Stdio::null());
            succeeds(command)
        };
        let kind = if with("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal"], &[&image])
            && with("mount", &["-o", "loop"], &[&image, &mount])
        {
            "ext4 in a loop device"
        } else if with("mount", &["-t", "tmpfs", "-o", &format!("size={FILE_SYSTEM}"), "tmpfs"], &[&mount]) {
            "tmpfs"
        } else {
            return None;
        };
        Some(Self { mount, kind, _folder: folder })
    }

    /// A chain on it.
    fn lab(&self, format: Format) -> (Lab, [Vec<u8>; 3]) {
        let folder = tempfile::tempdir_in(&self.mount).unwrap();
        Lab::build(folder, format, DISK, edits)
    }

    /// Writes a file until at most `left` bytes are free; removing it frees them.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.mount.join("filler");
        let mut filler = File::create(&path).unwrap();
        let free = || {
            let space = rustix::fs::statvfs(&self.mount).unwrap();
            space.f_bavail * space.f_frsize
        };
        while free() > left {
            // The file system may keep the last blocks for itself.
            if filler.write_all(&[0xAA; 4096]).is_err() || filler.sync_data().is_err() {
                break;
            }
        }
        assert!(free() <= left.max(64 * KIB), "{} bytes are still free", free());
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        command.arg(&self.mount);
        succeeds(command);
    }
}

fn line(lab: &Lab, extra: &str) -> String {
    format!("merge {} --depth 2 --json --checkpoint-every 1M {extra}", lab.name(LEAF))
}

#[track_caller]
fn assert_out_of_space(end: &End, lab: &Lab, leaf: &[u8]) {
    assert_eq!(end.code, Some(3), "{}", end.stderr);
    assert!(end.stderr.contains("No space left") || end.stderr.contains("File too large"), "{}", end.stderr);
    assert!(end.stderr.contains("run the same merge again to finish it"), "{}", end.stderr);
    lab.assert_shows(LEAF, leaf, "after the space ran out");
}

#[track_caller]
fn finishes(lab: &Lab, leaf: &[u8]) -> Option<u64> {
    let end = run(vhdkit(lab.folder.path(), &line(lab, "")));
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    lab.assert_shows(LEAF, leaf, "after the rerun");
    lab.assert_shows(BASE, leaf, "after the rerun");
    lab.assert_well_formed(BASE);
    let report: serde_json::Value = serde_json::from_slice(&end.stdout).unwrap();
    report["resumed_at"].as_u64()
}

/// The merge is held still in the middle while somebody else takes the space that its plan counted on.
fn runs_out_on(small: &Small, format: Format) {
    for _ in 0..50 {
        let (lab, [leaf, ..]) = small.lab(format);
        let mut merge = Running::start(vhdkit(lab.folder.path(), &line(&lab, "--jobs 1 --progress json")));
        merge.reaches_copying();
        merge.signal(Signal::STOP);
        let filler = small.fill(0);
        lab.assert_shows_unlocked(LEAF, &leaf, "while the file system is full");
        merge.signal(Signal::CONT);
        let end = merge.end();
        if end.code == Some(0) {
            // It had all it needed already.
            fs::remove_file(filler).unwrap();
            continue;
        }
        assert_out_of_space(&end, &lab, &leaf);
        let before = lab.snapshot();
        let again = run(vhdkit(lab.folder.path(), &line(&lab, "")));
        assert_eq!(again.code, Some(3), "{}", again.stderr);
        assert!(again.stderr.contains("not enough space"), "{}", again.stderr);
        assert!(lab.snapshot() == before, "a refused merge wrote");
        fs::remove_file(filler).unwrap();
        let at = finishes(&lab, &leaf);
        say(format_args!("{format} on {}: ran out of space, the rerun went on at {at:?}", small.kind));
        return;
    }
    panic!("the merge always ends before the space does");
}

/// Without a file system of its own: the target may not grow past a limit.
fn runs_out_at_a_limit(format: Format) {
    let (lab, [leaf, ..]) = Lab::build(tempfile::tempdir().unwrap(), format, DISK, edits);
    let blocks = fs::metadata(lab.path(BASE)).unwrap().len() / 512 + 4096;
    let mut command = Command::new("sh");
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    command.args(["-c", &limited, "sh", env!("CARGO_BIN_EXE_vhdkit")]);
    command.args(line(&lab, "").split_whitespace()).current_dir(lab.folder.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    assert_out_of_space(&run(command), &lab, &leaf);
    finishes(&lab, &leaf);
}

#[test]
fn a_merge_that_runs_out_of_space_loses_nothing_and_finishes_when_there_is_some() {
    let small = Small::new();
    for format in FORMATS {
        match &small {
            Some(small) => runs_out_on(small, format),
            None => {
                say(format_args!("NO FILE SYSTEM COULD BE MOUNTED: {format} ran out at RLIMIT_FSIZE instead"));
                runs_out_at_a_limit(format);
            }
        }
    }
}

#[test]
fn a_file_size_limit_is_space_too() {
    FORMATS.into_iter().for_each(runs_out_at_a_limit);
}

#[test]
fn a_merge_that_does_not_fit_is_refused_before_the_first_write() {
    let Some(small) = Small::new() else {
        say(format_args!(
            "SKIPPED: no file system of a few MiB can be mounted here, and a limit cannot stand in for one"
        ));
        return;
    };
    for format in FORMATS {
        let (lab, [leaf, ..]) = small.lab(format);
        let filler = small.fill(5 * MIB);
        let before = lab.snapshot();
        for extra in ["", "--dry-run"] {
            let end = run(vhdkit(lab.folder.path(), &line(&lab, extra)));
            assert_eq!(end.code, Some(3), "{}", end.stderr);
            let wanted = format!("{}: not enough space", lab.name(BASE));
            assert!(end.stderr.contains(&wanted), "{}", end.stderr);
        }
        assert!(lab.snapshot() == before, "a refused merge wrote");
        fs::remove_file(filler).unwrap();
        assert_eq!(finishes(&lab, &leaf), None);
        say(format_args!("{format} on {}: refused up front", small.kind));
    }
}

#[test]
fn a_conversion_that_runs_out_of_space_leaves_no_file() {
    let Some(small) = Small::new() else {
        say(format_args!("SKIPPED: no file system of a few MiB can be mounted here"));
        return;
    };
    for format in FORMATS {
        let (lab, [leaf, ..]) = small.lab(format);
        let filler = small.fill(4 * MIB);
        let before = lab.snapshot();
        let end = run(vhdkit(lab.folder.path(), &format!("convert {} new.{format}", lab.name(LEAF))));
        assert_eq!(end.code, Some(3), "{}", end.stderr);
        assert!(end.stderr.contains("No space left"), "{}", end.stderr);
        assert!(lab.snapshot() == before, "it left something behind");
        lab.assert_shows(LEAF, &leaf, "after the conversion failed");
        fs::remove_file(filler).unwrap();
    }
}
