//! Two programs at one chain.

use crate::lab::{BASE, FORMATS, LEAF, Lab, MIDDLE, assert_same, read, view_of};
use crate::program::{Dice, End, Running, ok, run, say, vhdkit};
use rustix::process::Signal;
use std::fs::File;
use std::time::Duration;
use vhdkit::Format;
use vhdkit::chain::{Chain, ChainOptions};

fn merge_line(lab: &Lab, span: &str) -> String {
    format!("merge {} {span} --checkpoint-every 1M --quiet", lab.name(LEAF))
}

/// A merge into the base that stands still in the middle of copying.
fn frozen(format: Format) -> (Lab, Running) {
    for _ in 0..50 {
        let lab = Lab::new(format);
        let line = format!("{} --jobs 1 --progress json", merge_line(&lab, "--depth 2"));
        let mut merge = Running::start(vhdkit(lab.folder.path(), &line));
        merge.reaches_copying();
        merge.signal(Signal::STOP);
        if File::open(lab.path(BASE)).unwrap().try_lock_shared().is_err() {
            return (lab, merge);
        }
    }
    panic!("the merge always ends before it can be stopped");
}

#[track_caller]
fn goes_on_to_its_end(lab: &Lab, mut merge: Running) {
    merge.signal(Signal::CONT);
    let end = merge.end();
    assert_eq!(end.code, Some(0), "{}", end.stderr);
    lab.assert_shows(LEAF, view_of(lab.format, LEAF), "after the merge");
    lab.assert_shows(BASE, view_of(lab.format, LEAF), "after the merge");
    lab.assert_well_formed(BASE);
}

#[test]
fn a_second_merge_is_refused_and_names_the_file() {
    for format in FORMATS {
        let (lab, first) = frozen(format);
        let before = lab.snapshot();
        for (span, named) in [("--depth 2", LEAF), ("--depth 1", LEAF), ("--from 2 --to 3", LEAF)] {
            let second = run(vhdkit(lab.folder.path(), &merge_line(&lab, span)));
            assert_eq!(second.code, Some(6), "{}", second.stderr);
            let wanted = format!("vhdkit: {}: the file is in use", lab.name(named));
            assert!(second.stderr.starts_with(&wanted), "{}", second.stderr);
        }
        for depth in [LEAF, MIDDLE, BASE] {
            let name = lab.name(depth);
            for line in
                [format!("read {name} --length 512"), format!("write {name} --offset 512"), format!("info {name}")]
            {
                let other = run(vhdkit(lab.folder.path(), &line));
                let wanted = format!("vhdkit: {name}: the file is in use");
                assert_eq!(other.code, Some(6), "{line}: {}", other.stderr);
                assert!(other.stderr.starts_with(&wanted), "{line}: {}", other.stderr);
            }
        }
        assert!(lab.snapshot() == before, "a refused program wrote");
        goes_on_to_its_end(&lab, first);
    }
}

#[test]
fn of_two_merges_started_at_once_one_wins() {
    const ROUNDS: usize = 20;
    for format in FORMATS {
        let mut contested = 0;
        for round in 0..ROUNDS {
            let lab = Lab::new(format);
            let spans = [("--depth 2", "--depth 2"), ("--depth 2", "--depth 1"), ("--from 2 --to 3", "--depth 2")];
            let (one, two) = spans[round % spans.len()];
            let start = |span: &str| Running::start(vhdkit(lab.folder.path(), &merge_line(&lab, span)));
            let (one, two) = (start(one), start(two));
            let ends: [End; 2] = [one.end(), two.end()];
            let mut codes = ends.each_ref().map(|end| end.code);
            codes.sort();
            match codes {
                [Some(0), Some(6)] => contested += 1,
                // One had ended before the other began.
                [Some(0), Some(0)] => {}
                _ => panic!("{format}: {ends:?}"),
            }
            for end in ends.iter().filter(|end| end.code == Some(6)) {
                assert!(end.stderr.contains(&format!(".{format}: the file is in use")), "{}", end.stderr);
            }
            lab.assert_shows(LEAF, view_of(format, LEAF), "after two merges at once");
        }
        say(format_args!("{format}: {contested} of {ROUNDS} pairs of merges met"));
        assert!(contested > ROUNDS / 4, "{contested}");
    }
}

/// Reads of the leaf during merges.
#[derive(Debug, Default)]
struct Reads {
    /// While the merge stood still somewhere.
    still: usize,
    /// Begun and ended while it ran.
    free: usize,
    /// Without an answer, because tables changed between two looks at them.
    refused: usize,
}

impl Reads {
    /// Reads the whole disk again and again, both while a merge of `span` is made to stand still at random moments and
    /// while it runs.
    fn during(&mut self, format: Format, span: &str, dice: &mut Dice) {
        let open = ChainOptions::new().locked(false);
        let wanted = view_of(format, LEAF);
        let lab = Lab::new(format);
        let opened_before = Chain::open(lab.path(LEAF), &open).unwrap();
        let mut held = vec![0; wanted.len()];
        opened_before.read_at(&mut held, 0).unwrap();
        let line = format!("{} --jobs 1 --progress json", merge_line(&lab, span));
        let mut merge = Running::start(vhdkit(lab.folder.path(), &line));
        while merge.works_for(dice.time_below(Duration::from_millis(25))) {
            merge.signal(Signal::STOP);
            lab.assert_shows_unlocked(LEAF, wanted, "read while the merge stood still");
            let shown = ok(lab.folder.path(), &format!("read {} --no-lock", lab.name(LEAF)));
            assert_same(&shown, wanted, "read by the program while the merge stood still");
            self.still += usize::from(merge.is_running());
            merge.signal(Signal::CONT);

            let once = opened_before.read_at(&mut held, 0).map(|()| held.clone());
            let anew = read(&lab.path(LEAF), &open).map(|(bytes, _)| bytes);
            for outcome in [once, anew] {
                match outcome {
                    Ok(bytes) => {
                        assert_same(&bytes, wanted, "read while the merge ran");
                        self.free += usize::from(merge.is_running());
                    }
                    Err(error) => {
                        say(format_args!("{format}: a read without locks was refused: {error}"));
                        self.refused += 1;
                    }
                }
            }
        }
        let end = merge.end();
        assert_eq!(end.code, Some(0), "{}", end.stderr);
    }
}

#[test]
fn readers_of_the_leaf_see_the_old_bytes_while_it_is_merged() {
    const ENOUGH: usize = 10;
    for format in FORMATS {
        let mut reads = Reads::default();
        let mut dice = Dice::new(format as u64 + 10);
        for round in 0..60 {
            if round >= 3 && reads.still > ENOUGH && reads.free > ENOUGH {
                break;
            }
            reads.during(format, ["--depth 2", "--depth 1", "--from 2 --to 3"][round % 3], &mut dice);
        }
        say(format_args!("{format}: reads of the leaf during merges: {reads:?}"));
        assert!(reads.still > ENOUGH && reads.free > ENOUGH, "{format}: {reads:?}");
        assert!(reads.refused < reads.free, "{format}: {reads:?}");
    }
}

#[test]
fn an_image_that_looks_damaged_without_locks_may_be_one_that_is_being_written() {
    let lab = Lab::new(Format::Vhdx);
    File::options().write(true).open(lab.path(MIDDLE)).unwrap().set_len(1 << 20).unwrap();
    let name = lab.name(LEAF);
    for line in [format!("read {name} --length 512"), format!("convert {name} new.raw")] {
        let locked = run(vhdkit(lab.folder.path(), &line));
        let unlocked = run(vhdkit(lab.folder.path(), &format!("{line} --no-lock")));
        assert_eq!((locked.code, unlocked.code), (Some(4), Some(4)), "{}", unlocked.stderr);
        assert!(!locked.stderr.contains("try once more"), "{}", locked.stderr);
        assert!(unlocked.stderr.contains("try once more"), "{}", unlocked.stderr);
    }
}
