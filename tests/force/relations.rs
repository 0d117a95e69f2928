//! Resyncs and snapshot sets killed at random moments.

use crate::lab::{KIB, MIB, assert_same, pattern, quiet, read};
use crate::program::{Dice, End, Running, ok, run, say, vhdkit};
use crate::support;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{CreateOptions, create};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, Format};

/// How many running resyncs are killed for each case.
const RESYNC_KILLS: usize = 10;
/// How many running snapshot sets are killed.
const SET_KILLS: usize = 24;
/// How many disks a set has.
const DISKS: usize = 4;

fn format_of(name: &str) -> Format {
    if name.ends_with(".vhd") { Format::Vhd } else { Format::Vhdx }
}

fn assert_well_formed(path: &Path) {
    match format_of(&path.to_string_lossy()) {
        Format::Vhd => support::assert_well_formed_vhd(path),
        _ => support::assert_well_formed_vhdx(path),
    }
}

fn new_disk(path: &Path, size: u64) {
    let options = CreateOptions::new(format_of(&path.to_string_lossy()), DiskKind::Dynamic).size(size);
    create(path, &options.block_size(1 << 20)).expect("create");
}

fn new_child(path: &Path, parent: &Path) {
    let options = CreateOptions::new(format_of(&path.to_string_lossy()), DiskKind::Differencing).parent(parent);
    create(path, &options).expect("create");
}

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    let mut chain = Chain::open(path, &ChainOptions::new().access(Access::Write)).expect("open");
    chain.write_at(bytes, offset).expect("write");
    chain.close().expect("close");
}

fn shows(path: &Path) -> Vec<u8> {
    let _quiet = quiet();
    read(path, &ChainOptions::new()).unwrap_or_else(|error| panic!("{} does not open: {error}", path.display())).0
}

/// Every name in a folder, hidden ones too.
fn names(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

// ---- resync ----

struct Case {
    source: &'static str,
    target: &'static str,
    /// The size of the target; the source has [`DISK`].
    size: u64,
    more: &'static str,
}

const DISK: u64 = 24 * MIB;

const CASES: [Case; 6] = [
    Case { source: "leaf.vhd", target: "t.vhd", size: DISK, more: "" },
    Case { source: "leaf.vhdx", target: "t.vhdx", size: DISK, more: "" },
    Case { source: "leaf.vhd", target: "t.vhdx", size: DISK, more: "--identity fresh" },
    Case { source: "leaf.vhdx", target: "t.vhd", size: DISK, more: "--jobs 1" },
    Case { source: "leaf.vhdx", target: "t.vhdx", size: 40 * MIB, more: "--identity source" },
    Case { source: "leaf.vhd", target: "t.vhd", size: 9 * MIB, more: "--grow" },
];

/// The files of a case before the resync, and what they show.
struct Master {
    folder: TempDir,
    new: Vec<u8>,
    old: Vec<u8>,
}

impl Case {
    fn line(&self) -> String {
        format!("resync {} {} --json --progress json {}", self.source, self.target, self.more)
    }

    fn build(&self) -> Master {
        let _quiet = quiet();
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let base = path(self.source).with_file_name("base").with_extension(self.source.rsplit_once('.').unwrap().1);
        new_disk(&base, DISK);
        write(&base, 0, &pattern(0, 14 * MIB, 1));
        new_child(&path(self.source), &base);
        for piece in 0..40 {
            let at = piece * 500 * KIB;
            write(&path(self.source), at, &pattern(at, 9000 + piece * 512, 2));
        }
        new_disk(&path(self.target), self.size);
        write(&path(self.target), 2 * MIB, &pattern(2 * MIB, 6 * MIB, 1));
        write(&path(self.target), self.size - 700 * KIB, &pattern(9, 700 * KIB, 3));
        let [new, old] = [self.source, self.target].map(|name| shows(&path(name)));
        Master { folder, new, old }
    }

    fn mark(&self) -> String {
        format!(".{}.vhdkit-resync", self.target)
    }

    /// What must hold after a kill; answers whether the target is marked.
    fn check(&self, master: &Master, folder: &Path) -> bool {
        self.check_source(master, folder);
        let shown = shows(&folder.join(self.target));
        let marked = folder.join(self.mark()).exists();
        if !marked {
            assert!(shown == master.old || shown == master.new, "{}: half a disk without a mark", self.line());
            return false;
        }
        for (index, sector) in shown.chunks(512).enumerate() {
            let place = index * 512..index * 512 + sector.len();
            let zero = place.start >= master.old.len().min(master.new.len()) && sector.iter().all(|byte| *byte == 0);
            let is = |view: &[u8]| view.get(place.clone()) == Some(sector);
            assert!(zero || is(&master.old) || is(&master.new), "{}: sector {index} is of neither", self.line());
        }
        let text = String::from_utf8(run(vhdkit(folder, &format!("check {}", self.target))).stdout).expect("text");
        assert!(text.contains("parts of two disks"), "whoever looks hears of it: {text}");
        true
    }

    fn check_source(&self, master: &Master, folder: &Path) {
        for name in names(master.folder.path()).into_iter().filter(|name| name != self.target) {
            let [now, before] = [folder, master.folder.path()].map(|folder| fs::read(folder.join(&name)).unwrap());
            assert!(now == before, "{}: {name} was written to", self.line());
        }
    }

    fn check_end(&self, master: &Master, folder: &Path) {
        self.check_source(master, folder);
        assert_same(&shows(&folder.join(self.target)), &master.new, &self.line());
        assert_well_formed(&folder.join(self.target));
        let record = format!(".{}.vhdkit-resynced", self.target);
        let strange: Vec<String> = names(folder)
            .into_iter()
            .filter(|name| *name != record && !master.folder.path().join(name).exists())
            .collect();
        assert_eq!(strange, Vec::<String>::new(), "{} leaves nothing behind", self.line());
    }
}

fn copy_of(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for name in names(folder) {
        fs::copy(folder.join(&name), copy.path().join(&name)).expect("room");
    }
    copy
}

#[test]
fn killed_resyncs_mark_their_target_and_a_rerun_finishes() {
    let mut dice = Dice::new(21);
    for case in CASES {
        let master = case.build();
        let lab = copy_of(master.folder.path());
        let start = Instant::now();
        ok(lab.path(), &case.line());
        let usual = start.elapsed();
        case.check_end(&master, lab.path());
        let (mut kills, mut marked, mut too_late) = (0, 0, 0);
        while kills < RESYNC_KILLS || marked < RESYNC_KILLS / 3 {
            assert!(too_late < 20 * RESYNC_KILLS, "{}: it ends before it can be killed", case.line());
            let lab = copy_of(master.folder.path());
            for _ in 0..=dice.below(3) {
                let mut resync = Running::start(vhdkit(lab.path(), &case.line()));
                if dice.below(3) > 0 {
                    resync.works_until(|| lab.path().join(case.mark()).exists());
                }
                resync.works_for(dice.time_below(usual / 2));
                let end = resync.kill();
                if !end.killed {
                    assert_eq!(end.code, Some(0), "{}: {}", case.line(), end.stderr);
                    too_late += 1;
                    break;
                }
                kills += 1;
                marked += usize::from(case.check(&master, lab.path()));
            }
            let was_marked = lab.path().join(case.mark()).exists();
            let report: serde_json::Value = serde_json::from_slice(&ok(lab.path(), &case.line())).expect("JSON");
            assert_eq!(report["pairs"][0]["resumed"], was_marked);
            case.check_end(&master, lab.path());
        }
        say(format_args!(
            "{}: takes {usual:?}; {kills} killed, {marked} of them had marked the target, {too_late} too late",
            case.line()
        ));
    }
}

// ---- snapshot sets ----

struct Disks {
    folder: TempDir,
    views: Vec<Vec<u8>>,
}

impl Disks {
    fn build() -> Self {
        let _quiet = quiet();
        let folder = tempfile::tempdir().expect("a folder");
        let mut views = Vec::new();
        for index in 0..DISKS {
            let path = folder.path().join(Self::disk(index));
            new_disk(&path, 2 * MIB);
            write(&path, 1000 * index as u64, &pattern(7, 9000, index as u8 + 1));
            views.push(shows(&path));
        }
        Self { folder, views }
    }

    fn name(index: usize, end: &str) -> String {
        format!("d{index}{end}.{}", if index.is_multiple_of(2) { "vhdx" } else { "vhd" })
    }

    fn disk(index: usize) -> String {
        Self::name(index, "")
    }

    fn child(index: usize) -> String {
        Self::name(index, "-1")
    }
}

/// A verb with a hook at every moment that writes down that it was run.
fn with_hooks(folder: &Path, line: &str) -> std::process::Command {
    let mut command = vhdkit(folder, line);
    for name in ["prepare", "freeze", "thaw", "post", "abort"] {
        command.arg(format!("--{name}-hook")).arg(format!("echo {name} >> heard"));
    }
    command
}

/// How far the only session got, by its record.
fn phase(folder: &Path) -> Option<String> {
    let record = names(&folder.join("records")).into_iter().find(|name| name.starts_with("session-"))?;
    let text = fs::read(folder.join("records").join(record)).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
    record["record"]["phase"].as_str().map(str::to_owned)
}

/// Runs `session recover`, now and then killed itself first.
fn recover(folder: &Path, dice: &mut Dice) -> End {
    if dice.below(3) == 0 {
        let mut first = Running::start(vhdkit(folder, "session recover --registry records"));
        first.works_for(dice.time_below(Duration::from_millis(25)));
        first.kill();
    }
    run(vhdkit(folder, "session recover --registry records"))
}

/// Whether the set is there. Nothing in between is let through, everybody who heard of it is released, nothing is left.
fn is_set(master: &Disks, folder: &Path, when: &str) -> bool {
    let there: Vec<bool> = (0..DISKS).map(|index| folder.join(Disks::child(index)).exists()).collect();
    assert!(there.iter().all(|one| *one == there[0]), "{when}: {there:?}");
    for (index, view) in master.views.iter().enumerate() {
        assert_same(&shows(&folder.join(Disks::disk(index))), view, when);
        if there[0] {
            let child = folder.join(Disks::child(index));
            assert_same(&shows(&child), view, when);
            assert_well_formed(&child);
        }
    }
    let heard = fs::read_to_string(folder.join("heard")).unwrap_or_default();
    let last = |moment: &str| heard.lines().enumerate().filter(|line| line.1 == moment).map(|line| line.0).last();
    if last("prepare").is_some() {
        assert!(last("freeze").is_none() || last("thaw") > last("freeze"), "{when}: still frozen after {heard}");
        let released = last("abort").or(last("post"));
        assert!(released.is_some(), "{when}: nobody said how it ended: {heard}");
        assert_eq!(last("abort").is_none(), there[0], "{when}: {heard}");
    }
    let strange: Vec<String> = names(folder)
        .into_iter()
        .chain(names(&folder.join("records")))
        .filter(|name| name.starts_with('.') || name.starts_with("session-"))
        .collect();
    assert_eq!(strange, Vec::<String>::new(), "{when}");
    there[0]
}

#[test]
fn killed_snapshot_sets_are_all_or_nothing_and_everybody_is_released() {
    let mut dice = Dice::new(22);
    let master = Disks::build();
    let disks: Vec<String> = (0..DISKS).map(Disks::disk).collect();
    let line = format!("snapshot-set {} --registry records", disks.join(" "));
    let lab = copy_of(master.folder.path());
    fs::create_dir(lab.path().join("records")).unwrap();
    let start = Instant::now();
    assert_eq!(run(with_hooks(lab.path(), &line)).code, Some(0));
    let usual = start.elapsed();
    assert!(is_set(&master, lab.path(), "without a kill"));
    let phases = ["preparing", "freezing", "committing", "committed", "thawed"];
    let (mut kills, mut sets, mut met, mut too_late) = (0, 0, BTreeMap::<String, usize>::new(), 0);
    while kills < SET_KILLS || met.len() < 4 {
        assert!(too_late + kills < 20 * SET_KILLS, "{too_late} ended too early; killed in {met:?}");
        let lab = copy_of(master.folder.path());
        fs::create_dir(lab.path().join("records")).unwrap();
        let mut set = Running::start(with_hooks(lab.path(), &line));
        match phases.get(dice.below(8) as usize) {
            Some(aim) => drop(set.works_until(|| phase(lab.path()).as_deref() == Some(*aim))),
            None => drop(set.works_for(dice.time_below(usual))),
        }
        let end = set.kill();
        if !end.killed {
            assert_eq!(end.code, Some(0), "{}", end.stderr);
            too_late += 1;
            continue;
        }
        kills += 1;
        let at = phase(lab.path());
        let when = format!("killed while {at:?}");
        at.into_iter().for_each(|phase| *met.entry(phase).or_default() += 1);
        let end = recover(lab.path(), &mut dice);
        assert_eq!(end.code, Some(0), "{when}: {}", end.stderr);
        sets += usize::from(is_set(&master, lab.path(), &when));
        // The next set is taken on whatever there is.
        let end = run(with_hooks(lab.path(), &line));
        assert_eq!(end.code, Some(0), "{when}, the next set: {}", end.stderr);
    }
    say(format_args!(
        "a set of {DISKS} takes {usual:?}; {kills} killed, {sets} of them were there; in {met:?}, {too_late} too late"
    ));
    assert!(sets > 0 && sets < kills, "both outcomes are met");
}
