//! Merges killed at random moments.

use crate::lab::{BASE, FORMATS, LEAF, Lab, MIB, pattern, view_of};
use crate::program::{Dice, End, Running, ok, run, say, vhdkit};
use std::fs;
use std::time::{Duration, Instant};
use vhdkit::Format;

/// How many running merges are killed for each format.
const KILLS: usize = 110;

/// One way to merge.
struct Form {
    options: &'static str,
    source: usize,
    target: usize,
    delete: bool,
}

const FORMS: [Form; 6] = [
    Form { options: "--depth 2", source: 1, target: 3, delete: false },
    Form { options: "--depth 1", source: 1, target: 2, delete: false },
    Form { options: "--from 2 --to 3", source: 2, target: 3, delete: false },
    Form { options: "--depth 2 --delete", source: 1, target: 3, delete: true },
    Form { options: "--from 2 --to 3 --relink", source: 2, target: 3, delete: false },
    Form { options: "--from 2 --to 3 --relink --delete", source: 2, target: 3, delete: true },
];

fn line(lab: &Lab, form: &Form, extra: &str) -> String {
    format!("merge {} {} --json --checkpoint-every 1M {extra}", lab.name(LEAF), form.options)
}

fn report(end: &End) -> serde_json::Value {
    serde_json::from_slice(&end.stdout).expect("a report")
}

/// The `resumed_at` of a merge that succeeded.
fn resumed_at(end: &End) -> Option<u64> {
    report(end)["resumed_at"].as_u64()
}

/// Whether a merge that succeeded had nothing to merge, only files to relink or delete.
fn ended(end: &End) -> bool {
    report(end)["ended"] == true
}

#[derive(Debug, Default)]
struct Tally {
    /// Merges that were running when the signal came.
    kills: usize,
    /// Of those, merges that had moved bytes.
    copying: usize,
    /// Of those, merges that had kept their place.
    with_checkpoint: usize,
    /// Merges that ended before the signal came.
    too_late: usize,
    /// Runs that went on where a killed one had got to.
    resumed: usize,
    /// Of those, merges that had noted that their end began.
    with_note: usize,
    /// Kills of merges that had everything merged and were relinking or deleting.
    at_the_end: usize,
    /// Of those, merges that the next run finished.
    ended: usize,
}

/// What a run left to do for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Something,
    /// Everything is merged, and the chain is short already: only files to relink or delete are left.
    End,
    Nothing,
}

struct Campaign {
    format: Format,
    dice: Dice,
    /// How long a merge takes that nobody kills.
    usual: Duration,
    tally: Tally,
}

impl Campaign {
    fn new(format: Format) -> Self {
        let lab = Lab::new(format);
        let start = Instant::now();
        ok(lab.folder.path(), &line(&lab, &FORMS[0], ""));
        let usual = start.elapsed();
        let salt = if format == Format::Vhd { 1 } else { 2 };
        Self { format, dice: Dice::new(salt), usual, tally: Tally::default() }
    }

    /// One chain: a merge killed up to four times in a row and then run to its end.
    fn round(&mut self, form: &Form) {
        let lab = Lab::new(self.format);
        for _ in 0..=self.dice.below(4) {
            match self.kill_one(&lab, form) {
                Left::Something => {}
                Left::End => {
                    self.tally.ended += 1;
                    let end = run(vhdkit(lab.folder.path(), &line(&lab, form, "")));
                    assert_eq!(
                        end.code,
                        Some(0),
                        "{} rerun of the end of {}: {}",
                        self.format,
                        form.options,
                        end.stderr
                    );
                    assert!(ended(&end), "{}: it merged again", form.options);
                    return self.finished(&lab, form);
                }
                Left::Nothing => return self.finished(&lab, form),
            }
        }
        let end = run(vhdkit(lab.folder.path(), &line(&lab, form, "")));
        assert_eq!(end.code, Some(0), "{} rerun of {}: {}", self.format, form.options, end.stderr);
        self.tally.resumed += usize::from(resumed_at(&end).is_some());
        self.finished(&lab, form);
    }

    /// Starts the merge and kills it.
    fn kill_one(&mut self, lab: &Lab, form: &Form) -> Left {
        let jobs = format!("--jobs {} --progress json", 1 + self.dice.below(2));
        let mut merge = Running::start(vhdkit(lab.folder.path(), &line(lab, form, &jobs)));
        let ends = form.delete || form.options.contains("--relink");
        let copying = if ends && self.dice.below(3) == 0 {
            // That is a short time, which is hit only when it is aimed at.
            merge.works_until(|| lab.note(LEAF).exists())
        } else if self.dice.below(5) == 0 {
            merge.works_for(self.dice.time_below(self.usual / 4));
            false
        } else {
            let copying = merge.reaches_copying();
            // What it takes is mostly the start of the program, and a rerun has less to do.
            merge.works_for(self.dice.time_below(self.usual / 2));
            copying
        };
        let end = merge.kill();
        if !end.killed {
            assert_eq!(end.code, Some(0), "{}: {}", form.options, end.stderr);
            self.tally.too_late += 1;
            return Left::Nothing;
        }
        self.tally.kills += 1;
        self.tally.copying += usize::from(copying);
        self.tally.with_checkpoint += usize::from(lab.checkpoint(form.target).exists());
        self.tally.with_note += usize::from(lab.note(LEAF).exists());
        if !self.check(lab, form) {
            return Left::Something;
        }
        self.tally.at_the_end += 1;
        // A run that was killed after it had forgotten its place had nothing left to do.
        if lab.note(LEAF).exists() { Left::End } else { Left::Nothing }
    }

    /// What must hold after a kill. Whether the end of the merge shows in the chain.
    fn check(&self, lab: &Lab, form: &Form) -> bool {
        let when = format!("after a kill of {}", form.options);
        let mut gone = false;
        for depth in LEAF..form.target {
            if depth >= form.source && form.delete && !lab.path(depth).exists() {
                gone = true;
            } else if depth <= form.source {
                lab.assert_shows(depth, view_of(self.format, depth), &when);
            }
        }
        if gone {
            lab.assert_shows(form.target, view_of(self.format, form.source), &when);
            return true;
        }
        // What the target shows is nobody's business yet, but it opens.
        lab.shows(form.target).unwrap_or_else(|error| panic!("the target does not open {when}: {error}"));
        let (_, files) = lab.shows(LEAF).expect("it was read before");
        if files == 3 {
            return false;
        }
        lab.assert_shows(form.target, view_of(self.format, form.source), &when);
        true
    }

    fn finished(&self, lab: &Lab, form: &Form) {
        let (format, when) = (self.format, "at the end");
        lab.assert_shows(form.target, view_of(format, form.source), when);
        lab.assert_well_formed(form.target);
        for entry in fs::read_dir(lab.folder.path()).expect("a folder") {
            let path = entry.expect("an entry").path();
            assert!((LEAF..=BASE).any(|depth| path == lab.path(depth)), "{} was left behind", path.display());
        }
        for depth in LEAF..=form.source {
            if lab.path(depth).exists() {
                lab.assert_shows(depth, view_of(format, depth), when);
            }
        }
    }
}

fn campaign(format: Format) {
    let mut campaign = Campaign::new(format);
    for round in 0.. {
        if campaign.tally.kills >= KILLS {
            break;
        }
        assert!(round < 4 * KILLS, "the merges end before they can be killed: {:?}", campaign.tally);
        campaign.round(&FORMS[round % FORMS.len()]);
    }
    let tally = campaign.tally;
    say(format_args!("{format}: a merge takes {:?}; {tally:?}", campaign.usual));
    assert!(tally.copying > KILLS / 3, "{tally:?}");
    assert!(tally.with_checkpoint > KILLS / 5, "{tally:?}");
    assert!(tally.resumed > KILLS / 20, "{tally:?}");
    assert!(tally.with_note > 2, "{tally:?}");
}

#[test]
fn killed_vhd_merges_lose_nothing_and_a_rerun_finishes() {
    campaign(Format::Vhd);
}

#[test]
fn killed_vhdx_merges_lose_nothing_and_a_rerun_finishes() {
    campaign(Format::Vhdx);
}

/// A chain whose merge into the base was killed after it had kept its place.
fn killed_after_a_checkpoint(format: Format) -> Lab {
    for _ in 0..50 {
        let lab = Lab::new(format);
        let mut merge = Running::start(vhdkit(lab.folder.path(), &line(&lab, &FORMS[0], "--progress json")));
        merge.works_until(|| lab.checkpoint(BASE).exists());
        if merge.kill().killed && lab.checkpoint(BASE).exists() {
            return lab;
        }
    }
    panic!("the merge always ends before it can be killed");
}

fn rerun(lab: &Lab, extra: &str) -> End {
    run(vhdkit(lab.folder.path(), &line(lab, &FORMS[0], extra)))
}

#[track_caller]
fn finishes(lab: &Lab, extra: &str, view: &[u8]) -> Option<u64> {
    let end = rerun(lab, extra);
    assert_eq!(end.code, Some(0), "{}: {}", lab.format, end.stderr);
    lab.assert_shows(LEAF, view, "after the rerun");
    lab.assert_shows(BASE, view, "after the rerun");
    lab.assert_well_formed(BASE);
    resumed_at(&end)
}

#[test]
fn a_rerun_says_where_it_goes_on() {
    for format in FORMATS {
        let lab = killed_after_a_checkpoint(format);
        assert!(finishes(&lab, "", view_of(format, LEAF)).is_some_and(|at| at >= MIB), "{format}");
    }
}

#[test]
fn restart_copies_everything_again() {
    for format in FORMATS {
        let lab = killed_after_a_checkpoint(format);
        assert_eq!(finishes(&lab, "--restart", view_of(format, LEAF)), None, "{format}");
    }
}

#[test]
fn a_child_written_after_the_kill_is_merged_as_it_is_now() {
    for format in FORMATS {
        let lab = killed_after_a_checkpoint(format);
        let mut view = view_of(format, LEAF).to_vec();
        let bytes = pattern(MIB, 3000, 77);
        let input = lab.folder.path().join("input");
        fs::write(&input, &bytes).unwrap();
        let mut write = vhdkit(lab.folder.path(), &format!("write {} --offset 512 --quiet", lab.name(LEAF)));
        write.stdin(fs::File::open(&input).unwrap());
        let end = run(write);
        assert_eq!(end.code, Some(0), "{}", end.stderr);
        view[512..512 + bytes.len()].copy_from_slice(&bytes);
        let at = finishes(&lab, "", &view);
        assert_eq!(at.is_some(), format == Format::Vhd, "a VHD is compared, a VHDX copied again: {at:?}");
    }
}

#[test]
fn a_damaged_checkpoint_is_not_believed() {
    for format in FORMATS {
        let lab = killed_after_a_checkpoint(format);
        let whole = fs::read(lab.checkpoint(BASE)).unwrap();
        let text = String::from_utf8(whole.clone()).unwrap();
        // Its own sum tells: another place, half of it, nothing, noise.
        let (before, _) = text.split_once("done ").unwrap();
        let damaged = [format!("{before}done 41943040\n").into_bytes(), whole[..whole.len() / 2].to_vec(), Vec::new()];
        for bytes in damaged.into_iter().chain([pattern(0, 5000, 3)]) {
            let lab = killed_after_a_checkpoint(format);
            fs::write(lab.checkpoint(BASE), bytes).unwrap();
            assert_eq!(finishes(&lab, "", view_of(format, LEAF)), None, "{format}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_merge_is_not_believed() {
    for format in FORMATS {
        let (lab, other) = (killed_after_a_checkpoint(format), killed_after_a_checkpoint(format));
        fs::copy(other.checkpoint(BASE), lab.checkpoint(BASE)).unwrap();
        let at = finishes(&lab, "", view_of(format, LEAF));
        // Copies of one VHD chain have the same ids, so there it is compared byte by byte; a VHDX target got an id of
        // its own when its merge began.
        assert_eq!(at.is_some(), format == Format::Vhd, "{format}: {at:?}");
    }
}

#[test]
fn a_checkpoint_of_a_newer_program_is_refused_until_restart() {
    for format in FORMATS {
        let lab = killed_after_a_checkpoint(format);
        let text = fs::read_to_string(lab.checkpoint(BASE)).unwrap();
        let text = text.replace("checkpoint 1\n", "checkpoint 2\n");
        let (body, _) = text.split_once("crc ").unwrap();
        let sealed = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
        fs::write(lab.checkpoint(BASE), sealed).unwrap();
        let end = rerun(&lab, "");
        assert_eq!(end.code, Some(6), "{}", end.stderr);
        assert!(end.stderr.contains("version 2") && end.stderr.contains("--restart"), "{}", end.stderr);
        lab.assert_shows(LEAF, view_of(format, LEAF), "after the refusal");
        assert_eq!(finishes(&lab, "--restart", view_of(format, LEAF)), None);
    }
}
