//! `write` and `convert` killed at random moments.

use crate::lab::{DISK, FORMATS, LEAF, Lab, pattern, read, view_of};
use crate::program::{Dice, End, Running, ok, run, say, vhdkit};
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use vhdkit::Format;
use vhdkit::chain::ChainOptions;

/// How many running programs are killed in each test.
const KILLS: usize = 10;

/// Kills runs of `command` at random moments until `KILLS` were hit; `check` looks at what each left.
fn killed(format: Format, salt: u64, command: impl Fn(&Lab) -> Command, mut check: impl FnMut(&Lab, &End)) {
    let mut dice = Dice::new(salt);
    let start = Instant::now();
    let lab = Lab::new(format);
    let begun = start.elapsed();
    assert_eq!(run(command(&lab)).code, Some(0));
    let usual = start.elapsed() - begun;
    let mut kills = 0;
    for round in 0.. {
        if kills >= KILLS {
            break;
        }
        assert!(round < 20 * KILLS, "it always ends before it can be killed");
        let lab = Lab::new(format);
        let mut program = Running::start(command(&lab));
        program.works_for(dice.time_below(usual));
        let end = program.kill();
        assert!(end.killed || end.code == Some(0), "{}", end.stderr);
        kills += usize::from(end.killed);
        check(&lab, &end);
    }
}

/// Fails unless every sector of `found` is that of `old` or that of `new`; answers how many are new.
fn assert_mixed(found: &[u8], old: &[u8], new: &[u8]) -> usize {
    assert_eq!(found.len(), old.len());
    let sectors = found.chunks(512).zip(old.chunks(512).zip(new.chunks(512)));
    let news = sectors.enumerate().map(|(sector, (found, (old, new)))| {
        assert!(found == old || found == new, "sector {sector} holds neither the old nor the new bytes");
        usize::from(found == new && old != new)
    });
    news.sum()
}

#[test]
fn a_killed_write_leaves_each_sector_old_or_new() {
    for format in FORMATS {
        let new = pattern(0, DISK, 50);
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("input");
        fs::write(&input, &new).unwrap();
        let write = |lab: &Lab| {
            let mut command = vhdkit(lab.folder.path(), &format!("write {} --progress json", lab.name(LEAF)));
            command.stdin(File::open(&input).unwrap());
            command
        };
        let (mut halves, mut mended) = (0, 0);
        killed(format, 3, write, |lab, _| {
            let (found, _) = lab.shows(LEAF).expect("it opens");
            let news = assert_mixed(&found, view_of(format, LEAF), &new);
            halves += usize::from((1..DISK as usize / 512).contains(&news));
            let again = run(write(lab));
            if again.code == Some(0) {
                return lab.assert_shows(LEAF, &new, "after it was written again");
            }
            // A VHD that was growing: its footer is the copy at its start until somebody who may mend writes.
            assert_eq!((format, again.code), (Format::Vhd, Some(6)), "{}", again.stderr);
            mended += 1;
            ok(lab.folder.path(), &format!("merge {} --depth 1", lab.name(LEAF)));
            lab.assert_shows(LEAF, &found, "after the merge that mends it");
            assert_eq!(run(write(lab)).code, Some(0), "it takes writes again");
            lab.assert_shows(LEAF, &new, "after it was mended and written");
        });
        say(format_args!("{format}: {KILLS} writes killed, {halves} of them in the middle, {mended} needed mending"));
        assert!(halves > 0, "no kill came in the middle");
    }
}

#[test]
fn a_vhd_that_lost_its_footer_takes_writes_after_a_merge() {
    let lab = Lab::new(Format::Vhd);
    let leaf = File::options().write(true).open(lab.path(LEAF)).unwrap();
    leaf.set_len(leaf.metadata().unwrap().len() - 512).unwrap();
    lab.assert_shows(LEAF, view_of(Format::Vhd, LEAF), "by the copy of its footer");
    let write = || {
        let mut command = vhdkit(lab.folder.path(), &format!("write {} --quiet", lab.name(LEAF)));
        command.stdin(File::open("/dev/null").unwrap());
        run(command)
    };
    assert_eq!(write().code, Some(6));
    ok(lab.folder.path(), &format!("merge {} --depth 1", lab.name(LEAF)));
    assert_eq!(write().code, Some(0));
    lab.assert_shows(LEAF, view_of(Format::Vhd, LEAF), "after it was mended");
    lab.assert_well_formed(LEAF);
}

fn partial_files(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".new.") && name.ends_with(".partial")).count()
}

#[test]
fn a_killed_convert_leaves_no_half_image_under_the_new_name() {
    for format in FORMATS {
        let convert = |lab: &Lab| {
            vhdkit(lab.folder.path(), &format!("convert {} new.{format} --jobs 1 --progress json", lab.name(LEAF)))
        };
        let mut left = 0;
        killed(format, 4, convert, |lab, end| {
            let new = lab.folder.path().join(format!("new.{format}"));
            if new.exists() {
                let (bytes, _) = read(&new, &ChainOptions::new().locked(false)).expect("a whole image");
                assert!(bytes == view_of(format, LEAF), "what has the name is not the whole image");
            } else {
                assert!(end.killed);
                left += partial_files(lab.folder.path());
                assert_eq!(run(convert(lab)).code, Some(0), "what a killed run left is in nobody's way");
            }
            lab.assert_shows(LEAF, view_of(format, LEAF), "after a kill of convert");
        });
        say(format_args!("{format}: {KILLS} conversions killed, {left} left a hidden partial file"));
        assert!(left > 0, "no kill came in the middle");
    }
}

#[test]
fn a_killed_convert_over_a_file_leaves_the_old_one_or_the_new_one() {
    for format in FORMATS {
        let convert = |lab: &Lab| {
            let new = lab.folder.path().join("new.raw");
            if !new.exists() {
                fs::write(new, b"precious").unwrap();
            }
            vhdkit(lab.folder.path(), &format!("convert {} new.raw --force --progress json", lab.name(LEAF)))
        };
        let mut old = 0;
        killed(format, 5, convert, |lab, end| {
            let bytes = fs::read(lab.folder.path().join("new.raw")).unwrap();
            if bytes == b"precious" {
                old += usize::from(end.killed);
            } else {
                assert!(bytes == view_of(format, LEAF), "neither the old file nor the new one");
            }
        });
        assert!(old > 0, "no kill came before the end");
    }
}
