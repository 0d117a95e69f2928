//! Relations and groups driven by the program, which is killed again and again, held to a model of their states and bytes.

use crate::lab::{KIB, MIB, assert_same, pattern, quiet, read};
use crate::program::{Dice, Running, run, say, vhdkit};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{CopyState, CreateOptions, Leads, Operation, Relation, RelationView, Replicas, SyncType};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, Format};

/// How many sequences of operations are driven, and how long each is.
const SEQUENCES: usize = 12;
const STEPS: usize = 14;
const DISK: u64 = 2 * MIB;
/// Where the records are.
const REGISTRY: &str = "records";
const GROUP: &str = "vm";

/// What is published of one operation on one type: the states it starts from, with force too, and where it leads.
type Published = BTreeMap<(SyncType, Operation), (bool, Vec<CopyState>, Option<Leads>)>;

/// The table as the program prints it.
fn published(folder: &Path) -> Published {
    let end = run(vhdkit(folder, "replica capabilities --json"));
    let table: serde_json::Value = serde_json::from_slice(&end.stdout).expect("JSON");
    let word = |value: &serde_json::Value| serde_json::from_value::<CopyState>(value.clone()).expect("a state");
    let mut all = Published::new();
    for (kind, rows) in SyncType::ALL.into_iter().zip(table.as_array().expect("types")) {
        assert_eq!(rows["type"], kind.to_string());
        for (operation, row) in Operation::ALL.into_iter().zip(rows["operations"].as_array().expect("rows")) {
            assert_eq!(
                (&row["operation"], &row["number"]),
                (&operation.to_string().into(), &operation.number().into())
            );
            let leads = match &row["leads"] {
                serde_json::Value::Null => None,
                serde_json::Value::String(word) if word == "same" => Some(Leads::Same),
                serde_json::Value::String(word) if word == "gone" => Some(Leads::Gone),
                leads => Some(Leads::To(word(&leads["to"]))),
            };
            let from = row["from"].as_array().expect("states").iter().map(word).collect();
            all.insert((kind, operation), (row["groups_only"] == true, from, leads));
        }
    }
    all
}

/// A relation as it should be.
#[derive(Clone, Debug)]
struct Model {
    id: String,
    kind: SyncType,
    state: CopyState,
    source: Vec<u8>,
    replica: Option<Vec<u8>>,
    /// The leaf above the replica that is in use.
    live: Option<Vec<u8>>,
    /// What is below the source, when that is such a leaf.
    below: Option<Vec<u8>>,
}

impl Model {
    /// What the operation, done, makes of it.
    fn follow(&mut self, operation: Operation, leads: Option<Leads>) {
        use Operation as Op;
        match operation {
            Op::Activate | Op::Resume | Op::ResyncReplica => self.replica = Some(self.source.clone()),
            Op::RestoreFromReplica => self.source = self.replica.clone().expect("a replica"),
            Op::Failover => self.live = self.replica.clone(),
            Op::Failback => {
                self.source = self.live.take().unwrap_or_else(|| self.source.clone());
                self.below = None;
                if self.kind != SyncType::Snapshot {
                    self.replica = Some(self.source.clone());
                }
            }
            Op::ReverseRoles => self.reverse(),
            _ => {}
        }
        if let Some(Leads::To(state)) = leads {
            self.state = state;
        }
    }

    fn reverse(&mut self) {
        let replica = self.replica.take().expect("a replica");
        match (self.live.take(), self.below.take()) {
            (Some(live), _) => {
                self.below = Some(replica);
                self.replica = Some(std::mem::replace(&mut self.source, live));
            }
            (None, Some(below)) => {
                self.live = Some(std::mem::replace(&mut self.source, replica));
                self.replica = Some(below);
            }
            (None, None) => self.replica = Some(std::mem::replace(&mut self.source, replica)),
        }
    }
}

/// One folder of disks, its records, and what should be there.
struct World {
    folder: TempDir,
    root: PathBuf,
    table: Published,
    models: Vec<Model>,
    consistent: bool,
    dice: Dice,
    /// How long an operation takes that nobody kills.
    usual: Duration,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    done: usize,
    refused: usize,
    kills: usize,
    /// Kills after which the record said that something was begun.
    begun: usize,
    too_late: usize,
}

impl World {
    fn new(kinds: &[(SyncType, &str)], dice: Dice) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = fs::canonicalize(folder.path()).expect("a folder");
        let table = published(&root);
        let usual = Duration::from_millis(25);
        let mut world =
            Self { folder, root, table, models: Vec::new(), consistent: false, dice, usual, tally: Tally::default() };
        for (index, &(kind, extension)) in kinds.iter().enumerate() {
            let (id, disk) = (format!("r{index}"), format!("disk{index}.{extension}"));
            {
                let _quiet = quiet();
                let format = if extension == "vhd" { Format::Vhd } else { Format::Vhdx };
                let options = CreateOptions::new(format, DiskKind::Dynamic).size(DISK).block_size(1 << 20);
                create(&world.root.join(&disk), &options);
            }
            let mut source = vec![0; DISK as usize];
            change(&world.root.join(&disk), &mut source, 0, &pattern(0, 300 * KIB, 1));
            let target = if kind == SyncType::Snapshot { String::new() } else { format!("copy{index}.{extension}") };
            world.ok(&format!("replica create {id} --no-activate --type {kind} {disk} {target}"));
            let state = CopyState::Initialized;
            world.models.push(Model { id, kind, state, source, replica: None, live: None, below: None });
        }
        world
    }

    fn replicas(&self) -> Replicas {
        Replicas::at(self.root.join(REGISTRY), ChainOptions::new())
    }

    fn command(&self, line: &str) -> std::process::Command {
        vhdkit(self.folder.path(), &format!("{line} --registry {REGISTRY}"))
    }

    #[track_caller]
    fn ok(&self, line: &str) {
        let end = run(self.command(line));
        assert_eq!(end.code, Some(0), "{line}: {}", end.stderr);
    }

    fn view(&self, id: &str) -> RelationView {
        let _quiet = quiet();
        self.replicas().show(id).unwrap_or_else(|error| panic!("{id}: {error}"))
    }

    fn records(&self) -> Vec<Relation> {
        self.models.iter().map(|model| self.view(&model.id).relation).collect()
    }

    fn allows(&self, model: &Model, operation: Operation) -> bool {
        let (groups_only, from, _) = &self.table[&(model.kind, operation)];
        !groups_only && from.contains(&model.state)
    }

    fn leads(&self, model: &Model, operation: Operation) -> Option<Leads> {
        self.table[&(model.kind, operation)].2
    }

    /// Everything is as the model has it.
    #[track_caller]
    fn check(&self, when: &str) {
        for model in &self.models {
            let view = self.view(&model.id);
            assert_eq!((view.observed, view.relation.pending.is_none()), (model.state, true), "{} {when}", model.id);
            self.check_bytes(model, &view.relation, when);
        }
    }

    #[track_caller]
    fn check_bytes(&self, model: &Model, relation: &Relation, when: &str) {
        assert_shows(&relation.source, &model.source, &format!("the source of {} {when}", model.id));
        if let Some(replica) = &model.replica {
            assert_shows(&relation.target, replica, &format!("the replica of {} {when}", model.id));
        }
        assert_eq!(relation.live.is_some(), model.live.is_some(), "{} {when}", model.id);
        if let (Some(path), Some(live)) = (&relation.live, &model.live) {
            assert_shows(path, live, &format!("the leaf over {} {when}", model.id));
        }
    }

    /// What holds of a relation while `operation` is not done: the disk that is not written shows what it showed, and the
    /// state says what is going on.
    fn check_between(&self, model: &Model, operation: Operation) {
        let view = self.view(&model.id);
        let (relation, when) = (&view.relation, format!("of {} killed in {operation}", model.id));
        let Some(pending) = &relation.pending else { return };
        assert_eq!(pending.operation, operation, "{when}");
        assert!(matches!(view.observed, CopyState::Unsynchronized | CopyState::Broken), "{when}: {}", view.observed);
        match operation {
            Operation::RestoreFromReplica => {
                assert_shows(&relation.target, model.replica.as_ref().unwrap(), &format!("the replica {when}"));
            }
            Operation::Failback => {
                let wanted = model.live.as_ref().unwrap_or(&model.source);
                let live = relation.live.as_ref().filter(|live| live.exists());
                let place = live.or(relation.live.is_none().then_some(&relation.source)).unwrap_or(&relation.target);
                let skip = model.kind == SyncType::Snapshot && live.is_none();
                let place = if skip { &relation.source } else { place };
                assert_shows(place, wanted, &format!("what was in use {when}"));
            }
            Operation::ReturnToResourcePool => {
                let place = if relation.source.exists() { &relation.source } else { &relation.target };
                assert_shows(place, &model.source, &format!("the disk {when}"));
            }
            _ => {
                assert_shows(&relation.source, &model.source, &format!("the source {when}"));
                if matches!(operation, Operation::Fracture | Operation::Split | Operation::Failover) {
                    assert_shows(&relation.target, model.replica.as_ref().unwrap(), &format!("the replica {when}"));
                }
            }
        }
    }

    /// Runs `line`, killed first as often as the dice say; `between` looks at what each kill left, and says whether it was
    /// all done. Answers the exit code of the run that was not killed; none when a killed one had done everything.
    fn insist(&mut self, line: &str, mut between: impl FnMut(&mut Self) -> bool) -> Option<i32> {
        for _ in 0..self.dice.below(4) {
            let start = Instant::now();
            let mut running = Running::start(self.command(line));
            let time = self.dice.time_below(self.usual);
            running.works_for(time);
            let end = running.kill();
            if !end.killed {
                self.tally.too_late += 1;
                self.usual = (self.usual * 3 + start.elapsed()) / 4;
                return end.code;
            }
            self.tally.kills += 1;
            if between(self) {
                return None;
            }
        }
        let start = Instant::now();
        let end = run(self.command(line));
        self.usual = (self.usual * 3 + start.elapsed()) / 4;
        assert!(end.code == Some(0) || end.stderr.is_empty() || !end.stderr.contains("panicked"), "{}", end.stderr);
        end.code
    }

    /// An operation on one relation, perhaps one that it does not have in this state.
    fn one(&mut self, index: usize, operation: Operation) {
        let model = self.models[index].clone();
        let line = format!("replica {operation} {}", model.id);
        let before = self.view(&model.id).relation;
        if !self.allows(&model, operation) {
            let end = run(self.command(&line));
            assert!(matches!(end.code, Some(2 | 4 | 6)), "{line} in {}: {:?} {}", model.state, end.code, end.stderr);
            assert_eq!(self.view(&model.id).relation, before, "{line} was refused");
            self.tally.refused += 1;
            return;
        }
        let leads = self.leads(&model, operation);
        let code = self.insist(&line, |world| {
            let now = world.view(&model.id).relation;
            world.tally.begun += usize::from(now.pending.is_some());
            world.check_between(&model, operation);
            now.pending.is_none() && now != before
        });
        assert!(matches!(code, Some(0) | None), "{line} in {}: {code:?}", model.state);
        self.models[index].follow(operation, leads);
        self.tally.done += 1;
    }

    /// A copy that is killed and then not simply run again, but given up or put off.
    fn interrupted_copy(&mut self, index: usize, operation: Operation) {
        let model = self.models[index].clone();
        let mut running = Running::start(self.command(&format!("replica {operation} {}", model.id)));
        running.works_for(self.dice.time_below(self.usual));
        let killed = running.kill().killed;
        self.tally.kills += usize::from(killed);
        let view = self.view(&model.id);
        if view.relation.pending.is_none() {
            // Not begun, or done: both are met by running it, from wherever it is now.
            if view.observed != CopyState::Synchronized {
                self.ok(&format!("replica {operation} {}", model.id));
            }
        } else {
            self.tally.begun += 1;
            self.check_between(&model, operation);
            let (first, then) = match self.dice.below(3) {
                0 => (Operation::Suspend, Operation::Resume),
                1 => (Operation::Abort, Operation::ResyncReplica),
                _ => (Operation::ResyncReplica, Operation::ResyncReplica),
            };
            self.ok(&format!("replica {first} {}", model.id));
            let Some(Leads::To(state)) = self.leads(&model, first) else { panic!("{first} leads to a state") };
            assert_eq!(self.view(&model.id).observed, state);
            self.models[index].state = state;
            self.models[index].replica = None;
            self.check_bytes(&self.models[index], &self.view(&model.id).relation, "given up or put off");
            self.one(index, then);
            return;
        }
        let leads = self.leads(&model, operation);
        self.models[index].follow(operation, leads);
        self.tally.done += 1;
    }

    /// An operation on all relations, as members of the group.
    fn all(&mut self, operation: Operation) {
        let separates = matches!(operation, Operation::Fracture | Operation::Split);
        let line =
            if separates { format!("group {operation} {GROUP}") } else { format!("group modify {operation} {GROUP}") };
        let models = self.models.clone();
        let allowed: Vec<bool> = models.iter().map(|model| self.allows(model, operation)).collect();
        let together = separates && self.consistent;
        let before = self.records();
        let code = self.insist(&line, |world| {
            let now = world.records();
            let begun = world.replicas().group(GROUP).expect("a group").group.run.is_some();
            world.tally.begun += usize::from(begun);
            if together && !allowed.iter().all(|one| *one) {
                assert_eq!(now, before, "one of them cannot, so none is");
            } else if together && world.dice.below(2) == 0 {
                world.is_all_or_none(&now);
            }
            for ((model, relation), before) in models.iter().zip(&now).zip(&before) {
                if relation.pending.is_some() {
                    world.check_between(model, operation);
                } else if relation == before {
                    world.check_bytes(model, relation, "before its turn");
                }
            }
            !begun && now != before
        });
        let is_done = |index: usize| if together { allowed.iter().all(|one| *one) } else { allowed[index] };
        let wanted = match (0..models.len()).all(is_done) {
            true => 0,
            false if together => 6,
            false => 1,
        };
        // Whether a state or the type speaks against it is said by different codes.
        assert!(code.is_none_or(|code| code == wanted || (together && wanted == 6 && code != 0)), "{line}: {code:?}");
        for index in (0..models.len()).filter(|index| is_done(*index)) {
            let leads = self.leads(&models[index], operation);
            self.models[index].follow(operation, leads);
        }
        self.tally.done += 1;
    }

    /// After the dead session is ended the change logs of all mirrors are there, or none is.
    fn is_all_or_none(&self, now: &[Relation]) {
        let sessions = format!("session recover --registry {REGISTRY}/sessions");
        if self.root.join(REGISTRY).join("sessions").exists() {
            assert_eq!(run(vhdkit(self.folder.path(), &sessions)).code, Some(0));
        }
        let mirrors = now.iter().filter(|relation| relation.sync_type == SyncType::Mirror);
        let logs: Vec<bool> = mirrors
            .map(|relation| {
                let child = relation.pending.as_ref().and_then(|pending| pending.child.as_ref());
                child.map_or(relation.base.is_some(), |child| child.exists())
            })
            .collect();
        assert!(logs.iter().all(|log| *log == logs[0]), "{logs:?}: {now:?}");
    }

    /// A guest writes to the source, or to the leaf that is in use instead.
    fn guest(&mut self, index: usize, seed: u8) {
        let at = self.dice.below(DISK / KIB - 8) * KIB;
        let relation = self.view(&self.models[index].id).relation;
        let model = &mut self.models[index];
        let (path, view) = match (&relation.live, &mut model.live) {
            (Some(path), Some(view)) => (path, view),
            _ => (&relation.source, &mut model.source),
        };
        change(path, view, at, &pattern(at, 3 * KIB, seed));
        let follows = matches!(model.state, CopyState::Synchronized | CopyState::Restored);
        if follows && model.kind != SyncType::Snapshot {
            model.state = CopyState::Unsynchronized;
        }
    }

    /// One more thing that happens.
    fn step(&mut self, seed: u8, grouped: bool) {
        let index = self.dice.below(self.models.len() as u64) as usize;
        let operation = loop {
            let operation = Operation::ALL[self.dice.below(Operation::ALL.len() as u64) as usize];
            let is_end = matches!(self.leads(&self.models[index], operation), Some(Leads::Gone));
            let groups = self.table[&(self.models[index].kind, operation)].0;
            // What is not allowed is asked for now and then.
            if !is_end && !groups && (self.allows(&self.models[index], operation) || self.dice.below(12) == 0) {
                break operation;
            }
        };
        let copies = matches!(operation, Operation::Activate | Operation::Resume | Operation::ResyncReplica)
            && self.models[index].kind != SyncType::Snapshot
            && self.allows(&self.models[index], operation);
        match self.dice.below(8) {
            0 | 1 => self.guest(index, seed),
            2 | 3 if grouped => self.all(operation),
            4 if copies => self.interrupted_copy(index, operation),
            5 if grouped => {
                self.consistent = !self.consistent;
                let what = if self.consistent { "activate" } else { "deactivate" };
                let code = self.insist(&format!("group {what}-consistency {GROUP}"), |_| false);
                assert_eq!(code, Some(0));
            }
            6 if grouped => {
                // Out of the group and in again.
                let id = self.models[index].id.clone();
                for (verb, there) in [("remove", true), ("add", false)] {
                    let code = self.insist(&format!("group {verb}-sync-pair {GROUP} {id}"), |world| {
                        let listed = world.replicas().group(GROUP).expect("a group").group.members.contains(&id);
                        assert_eq!(world.view(&id).relation.group.is_some(), listed, "the two records agree");
                        listed != there
                    });
                    assert!(matches!(code, Some(0) | None));
                }
            }
            _ => self.one(index, operation),
        }
        self.check(&format!("after {operation}"));
    }

    /// The relation ends; nothing is left of it, and nothing that died processes made.
    fn end(&mut self, operation: Operation) {
        while let Some(model) = self.models.pop() {
            let forced = if self.allows(&model, operation) { "" } else { "--force" };
            let relation = self.view(&model.id).relation;
            let gone = |world: &World| world.replicas().list().unwrap().iter().all(|view| view.relation.id != model.id);
            let code = self.insist(&format!("replica {operation} {} {forced}", model.id), |world| gone(world));
            assert!(matches!(code, Some(0) | None), "{operation}: {code:?}");
            assert!(gone(self));
            let disk = if operation == Operation::ReturnToResourcePool { &relation.target } else { &relation.source };
            assert_shows(disk, &model.source, "the disk when the relation is gone");
        }
        for folder in [self.root.clone(), self.root.join(REGISTRY), self.root.join(REGISTRY).join("sessions")] {
            let entries = fs::read_dir(folder).into_iter().flatten();
            let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
            let litter = |name: &String| name.ends_with(".partial") || name.ends_with(".snapshot");
            assert_eq!(names.filter(litter).collect::<Vec<_>>(), Vec::<String>::new());
        }
    }
}

fn create(path: &Path, options: &CreateOptions) {
    vhdkit::ops::create(path, options).expect("create");
}

/// Writes `bytes` into the disk at `path` and into `view`. A VHD tells a change by its time, which advances in steps.
fn change(path: &Path, view: &mut [u8], offset: u64, bytes: &[u8]) {
    let _quiet = quiet();
    let time = || fs::metadata(path).and_then(|file| file.modified()).expect("a file");
    let before = time();
    while time() == before {
        let mut chain = Chain::open(path, &ChainOptions::new().access(Access::Write)).expect("open");
        chain.write_at(bytes, offset).expect("write");
        chain.close().expect("close");
    }
    view[offset as usize..][..bytes.len()].copy_from_slice(bytes);
}

#[track_caller]
fn assert_shows(path: &Path, view: &[u8], what: &str) {
    let _quiet = quiet();
    let shown = read(path, &ChainOptions::new());
    let (shown, _) = shown.unwrap_or_else(|error| panic!("{what}: {} does not open: {error}", path.display()));
    assert_same(&shown, view, what);
}

fn report(what: &str, worlds: &[World]) {
    let sum = |count: fn(&Tally) -> usize| worlds.iter().map(|world| count(&world.tally)).sum::<usize>();
    let (kills, begun) = (sum(|tally| tally.kills), sum(|tally| tally.begun));
    say(format_args!(
        "{what}: {} operations done, {} refused, {kills} kills, {begun} of them in the middle, {} too late",
        sum(|tally| tally.done),
        sum(|tally| tally.refused),
        sum(|tally| tally.too_late),
    ));
    assert!(kills > 2 * SEQUENCES && begun > kills / 8, "{kills} kills, {begun} in the middle");
}

#[test]
fn killed_operations_on_relations_follow_the_model() {
    let mut worlds = Vec::new();
    for sequence in 0..SEQUENCES {
        let kind = SyncType::ALL[sequence % 3];
        let extension = if (sequence / 3).is_multiple_of(2) { "vhdx" } else { "vhd" };
        let mut world = World::new(&[(kind, extension)], Dice::new(31 + sequence as u64));
        world.one(0, Operation::Activate);
        world.check("at first");
        (0..STEPS).for_each(|step| world.step(step as u8 + 2, false));
        let state = world.models[0].state;
        let settled = matches!(state, CopyState::Synchronized | CopyState::Fractured | CopyState::Split);
        world.end(match (kind, settled, sequence % 2) {
            (SyncType::Snapshot, true, _) => Operation::ReturnToResourcePool,
            (_, _, 0) => Operation::Dissolve,
            _ => Operation::Detach,
        });
        worlds.push(world);
    }
    report("relations", &worlds);
}

#[test]
fn killed_operations_on_groups_follow_the_model() {
    let kinds = [(SyncType::Mirror, "vhdx"), (SyncType::Mirror, "vhd"), (SyncType::Clone, "vhdx")];
    let mut worlds = Vec::new();
    for sequence in 0..SEQUENCES / 2 {
        let mut world = World::new(&kinds, Dice::new(51 + sequence as u64));
        world.ok(&format!("group create {GROUP}"));
        for index in 0..kinds.len() {
            world.ok(&format!("group add-sync-pair {GROUP} r{index}"));
        }
        world.consistent = true;
        world.ok(&format!("group activate-consistency {GROUP}"));
        world.all(Operation::Activate);
        world.all(Operation::Split);
        world.check("at first");
        (0..STEPS).for_each(|step| world.step(step as u8 + 2, true));
        world.end(Operation::Detach);
        assert_eq!(world.replicas().group(GROUP).expect("it stays").group.members, Vec::<String>::new());
        worlds.push(world);
    }
    report("groups", &worlds);
}
