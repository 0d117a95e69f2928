//! Replica relations: every operation in every state, held to the published table and to a model of bytes.

use crate::lab::{KIB, Lab, MIB, any, pattern, shows, write};
use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use vhdkit::ops::{
    CopyState, Hooks, Leads, ModifyOptions, Moment, Operation, RelationView, Replicas, ReturnCode, SyncType,
    capabilities,
};
use vhdkit::{CancelToken, ErrorKind, Observer, Progress, Watch};

fn replicas(lab: &Lab) -> Replicas {
    Replicas::at(lab.root.join("records"), any())
}

fn force() -> ModifyOptions {
    ModifyOptions::new().force(true)
}

/// Does it, and expects that what is observed is where the table says it leads.
#[track_caller]
fn done(replicas: &Replicas, id: &str, operation: Operation) -> RelationView {
    let report = replicas.modify(id, operation, &ModifyOptions::new(), &Watch::none()).unwrap();
    if let Some(Leads::To(state)) = leads(report.relation.relation.sync_type, operation) {
        assert_eq!(report.relation.observed, state, "{operation}");
        assert_eq!(replicas.show(id).unwrap().observed, state);
    }
    report.relation
}

fn leads(kind: SyncType, operation: Operation) -> Option<Leads> {
    capabilities(kind).into_iter().find(|row| row.operation == operation).unwrap().leads
}

#[test]
fn numbers_are_those_of_cim() {
    assert_eq!(Operation::ALL.map(Operation::number), std::array::from_fn(|at| at as u16 + 2));
    assert_eq!(CopyState::ALL.map(CopyState::number), std::array::from_fn(|at| at as u16 + 2));
    assert_eq!(SyncType::ALL.map(SyncType::number), [6, 7, 8]);
    assert_eq!(ReturnCode::JobStarted.number(), 4096);
    assert_eq!(ReturnCode::of(ErrorKind::Unsupported), ReturnCode::NotSupported);
    assert_eq!(ReturnCode::of(ErrorKind::InUse), ReturnCode::InUse);
    for kind in SyncType::ALL {
        let rows = capabilities(kind);
        assert_eq!(rows.len(), 22);
        assert!(!rows.iter().find(|row| row.operation == Operation::ResetToSync).unwrap().supported);
    }
}

#[test]
fn a_mirror_is_fractured_and_resynced_by_its_change_log() {
    for extension in ["vhdx", "vhd"] {
        let lab = Lab::new();
        let all = replicas(&lab);
        let disk = lab.disk(&format!("disk.{extension}"), 16 * MIB);
        write(&disk, 0, &pattern(8 * MIB, 1));
        let copy = lab.path(&format!("dr/copy.{extension}"));
        all.create("m", SyncType::Mirror, &disk, Some(&copy)).unwrap();
        done(&all, "m", Operation::Activate);
        assert!(shows(&copy) == shows(&disk));
        for round in 0..3 {
            let view = done(&all, "m", Operation::Fracture);
            let log = view.relation.source.clone();
            assert_ne!(log, disk);
            write(&log, 3 * MIB, &pattern(12 * KIB, round + 2));
            write(&log, 12 * MIB + 512, &pattern(4 * KIB, round + 3));
            assert_eq!(all.show("m").unwrap().observed, CopyState::Fractured, "the source may be written to");
            let expected = shows(&log);
            let report = all.modify("m", Operation::ResyncReplica, &ModifyOptions::new(), &Watch::none()).unwrap();
            assert!(report.moved <= 16 * KIB && report.moved > 8 * KIB, "exactly the log: {report:?}");
            assert_eq!(report.relation.observed, CopyState::Synchronized);
            assert_eq!(report.relation.relation.source, disk, "the log is merged away");
            assert!(!log.exists());
            assert!(shows(&disk) == expected && shows(&copy) == expected);
        }
        // Written to behind its back.
        write(&disk, 0, b"news");
        assert_eq!(all.show("m").unwrap().observed, CopyState::Unsynchronized);
        done(&all, "m", Operation::ResyncReplica);
        write(&copy, 0, b"stray");
        assert_eq!(all.show("m").unwrap().observed, CopyState::Skewed);
        let refused = all.modify("m", Operation::ResyncReplica, &ModifyOptions::new(), &Watch::none()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused);
        assert!(refused.hint().unwrap().contains("--force"));
        all.modify("m", Operation::ResyncReplica, &force(), &Watch::none()).unwrap();
        assert!(shows(&copy) == shows(&disk));
        // Back from the replica.
        done(&all, "m", Operation::Split);
        let before = shows(&copy);
        write(&all.show("m").unwrap().relation.source, MIB, b"unwanted");
        let restored = done(&all, "m", Operation::RestoreFromReplica);
        assert!(shows(&restored.relation.source) == before);
        done(&all, "m", Operation::ResyncReplica);
        done(&all, "m", Operation::ReverseRoles);
        assert_eq!(all.show("m").unwrap().relation.source, copy);
        assert_eq!(done(&all, "m", Operation::ReverseRoles).observed, CopyState::Synchronized);
        // Files that go missing, and forgetting it all.
        fs::rename(&copy, copy.with_extension("away")).unwrap();
        assert_eq!(all.show("m").unwrap().observed, CopyState::Partitioned);
        assert_eq!(
            all.modify("m", Operation::Detach, &ModifyOptions::new(), &Watch::none()).unwrap_err().kind(),
            ErrorKind::Refused
        );
        assert!(all.modify("m", Operation::Dissolve, &force(), &Watch::none()).unwrap().gone);
        assert_eq!(all.show("m").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(lab.root.join("records/dissolved-m.json").exists());
    }
}

#[test]
fn a_clone_fails_over_and_back() {
    let lab = Lab::new();
    let all = replicas(&lab);
    let disk = lab.disk("disk.vhdx", 8 * MIB);
    write(&disk, 0, &pattern(2 * MIB, 1));
    let copy = lab.path("copy.vhdx");
    all.create("c", SyncType::Clone, &disk, Some(&copy)).unwrap();
    done(&all, "c", Operation::Activate);
    let copied = shows(&copy);
    let view = done(&all, "c", Operation::Failover);
    let live = view.relation.live.unwrap();
    write(&live, 5 * MIB, &pattern(4 * KIB, 2));
    let expected = shows(&live);
    assert!(shows(&copy) == copied, "the replica itself stays as it was");
    done(&all, "c", Operation::Failback);
    assert!(shows(&disk) == expected && shows(&copy) == expected);
    assert!(!live.exists());
    for operation in [Operation::ResetToSync, Operation::ResetToAsync, Operation::ReturnToResourcePool] {
        let error = all.modify("c", operation, &force(), &Watch::none()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{operation}");
    }
    assert_eq!(
        all.modify("c", Operation::AddSyncPair, &force(), &Watch::none()).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}

#[test]
fn a_snapshot_is_a_point_in_time_below_the_live_leaf() {
    for extension in ["vhdx", "vhd"] {
        let lab = Lab::new();
        let all = replicas(&lab);
        let disk = lab.disk(&format!("disk.{extension}"), 4 * MIB);
        write(&disk, 0, &pattern(MIB, 1));
        all.create("s", SyncType::Snapshot, &disk, None).unwrap();
        let view = done(&all, "s", Operation::Activate);
        assert_eq!(view.relation.target, disk);
        let frozen = shows(&disk);
        write(&view.relation.source, MIB, b"later");
        assert_eq!(all.show("s").unwrap().observed, CopyState::Synchronized, "the leaf is meant to be written to");
        // Given up, in place.
        let view = done(&all, "s", Operation::RestoreFromReplica);
        assert!(shows(&view.relation.source) == frozen);
        write(&view.relation.source, 2 * MIB, b"kept");
        let kept = shows(&view.relation.source);
        // A new point in time.
        let view = done(&all, "s", Operation::ResyncReplica);
        assert!(shows(&view.relation.target) == kept && shows(&view.relation.source) == kept);
        write(&view.relation.source, 3 * MIB, b"last");
        let last = shows(&view.relation.source);
        // Another leaf over the point in time, and back.
        let view = done(&all, "s", Operation::Failover);
        let live = view.relation.live.unwrap();
        assert!(shows(&live) == kept);
        write(&live, 0, b"other");
        let other = shows(&live);
        let view = done(&all, "s", Operation::Failback);
        assert!(shows(&view.relation.source) == other && other != last);
        // Merged away.
        let report = all.modify("s", Operation::ReturnToResourcePool, &ModifyOptions::new(), &Watch::none()).unwrap();
        assert!(report.gone && !view.relation.source.exists());
        assert!(shows(&view.relation.target) == other);
        assert_eq!(all.list().unwrap(), []);
    }
}

/// Pulls the token at the first byte that is moved.
struct Stop(CancelToken);

impl Observer for Stop {
    fn progress(&self, progress: Progress) {
        if progress.moved > 0 {
            self.0.cancel();
        }
    }
}

#[test]
fn an_interrupted_copy_is_suspended_resumed_aborted_and_resynced() {
    let lab = Lab::new();
    let all = replicas(&lab);
    let disk = lab.disk("disk.vhdx", 8 * MIB);
    write(&disk, 0, &pattern(4 * MIB, 1));
    let copy = lab.path("copy.vhdx");
    all.create("m", SyncType::Mirror, &disk, Some(&copy)).unwrap();
    let stop = Stop(CancelToken::new());
    let watch = Watch::none().observer(&stop).cancel(&stop.0);
    let stopped = all.modify("m", Operation::Activate, &ModifyOptions::new(), &watch).unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Cancelled);
    let view = all.show("m").unwrap();
    assert_eq!(
        (view.observed, view.relation.pending.unwrap().operation),
        (CopyState::Unsynchronized, Operation::Activate)
    );
    let other = all.modify("m", Operation::Fracture, &force(), &Watch::none()).unwrap_err();
    assert!(other.to_string().contains("activate was begun"), "{other}");
    done(&all, "m", Operation::Suspend);
    done(&all, "m", Operation::Resume);
    assert!(shows(&copy) == shows(&disk));
    write(&disk, MIB, b"news");
    done(&all, "m", Operation::Abort);
    assert_eq!(done(&all, "m", Operation::Abort).observed, CopyState::Aborted, "again is no error");
    let refused = all.modify("m", Operation::Failover, &force(), &Watch::none()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "an aborted copy is unusable");
    // States are told as they are reached: who waits for one need not wait for the end.
    let (told, states) = mpsc::channel();
    all.modify("m", Operation::ResyncReplica, &ModifyOptions::new().tell(told), &Watch::none()).unwrap();
    assert_eq!(states.iter().collect::<Vec<_>>(), [CopyState::Unsynchronized, CopyState::Synchronized]);
    assert!(shows(&copy) == shows(&disk));
    done(&all, "m", Operation::Deactivate);
    done(&all, "m", Operation::Unprepare);
    done(&all, "m", Operation::Activate);
}

/// Two mirrors and a clone, in a consistent group.
fn grouped(lab: &Lab) -> (Replicas, Vec<PathBuf>) {
    let all = replicas(lab);
    let names = ["a.vhdx", "b.vhd", "c.vhdx"];
    let kinds = [SyncType::Mirror, SyncType::Mirror, SyncType::Clone];
    let disks: Vec<PathBuf> = names.iter().map(|name| lab.disk(name, 2 * MIB)).collect();
    all.create_group("vm").unwrap();
    for ((disk, name), kind) in disks.iter().zip(names).zip(kinds) {
        write(disk, 0, &pattern(64 * KIB, 1));
        all.create(name, kind, disk, Some(&lab.path(&format!("copy-{name}")))).unwrap();
        done(&all, name, Operation::Activate);
        all.set_member("vm", name, true).unwrap();
    }
    assert!(all.set_consistent("vm", true).unwrap().group.consistent);
    (all, disks)
}

#[test]
fn a_consistent_group_is_split_all_or_none() {
    let lab = Lab::new();
    let (all, _) = grouped(&lab);
    assert_eq!(all.group("vm").unwrap().state, CopyState::Synchronized);
    let split = |people: Vec<Box<dyn vhdkit::ops::Participant>>| {
        all.modify_group("vm", (Operation::Split, &ModifyOptions::new()), people, &Watch::none())
    };
    // Somebody cannot hold still: nothing happens to anybody.
    let files = lab.files();
    let stubborn = Hooks::new("guest").on(Moment::Freeze, "false");
    split(vec![Box::new(stubborn)]).unwrap_err();
    assert_eq!(all.group("vm").unwrap().state, CopyState::Synchronized);
    assert_eq!(lab.files().iter().filter(|name| name.contains("-1.")).count(), 0);
    assert!(lab.files().len() <= files.len() + 1, "at most a lock more: {:?}", lab.files());
    // A member in a state that speaks against it: neither.
    write(&lab.path("copy-b.vhd"), 0, b"stray");
    let refused = split(Vec::new()).unwrap_err();
    assert!(refused.to_string().contains("b.vhd"), "{refused}");
    assert_eq!(all.group("vm").unwrap().state, CopyState::Mixed);
    all.modify("b.vhd", Operation::ResyncReplica, &force(), &Watch::none()).unwrap();
    // All of them.
    let report = split(Vec::new()).unwrap();
    assert_eq!((report.group.state, report.failed.len()), (CopyState::Split, 0));
    for (name, logs) in [("a.vhdx", true), ("b.vhd", true), ("c.vhdx", false)] {
        assert_eq!(all.show(name).unwrap().relation.base.is_some(), logs);
    }
    write(&all.show("a.vhdx").unwrap().relation.source, MIB, b"news");
    let report =
        all.modify_group("vm", (Operation::ResyncReplica, &ModifyOptions::new()), Vec::new(), &Watch::none()).unwrap();
    assert_eq!(report.group.state, CopyState::Synchronized);
    assert!(shows(&lab.path("copy-a.vhdx")) == shows(&lab.path("a.vhdx")));
    // Membership.
    assert_eq!(all.set_member("vm", "a.vhdx", true).unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(all.set_member("vm", "a.vhdx", false).unwrap().relations.len(), 2);
    all.modify("b.vhd", Operation::Detach, &ModifyOptions::new(), &Watch::none()).unwrap();
    assert_eq!(all.group("vm").unwrap().group.members, ["c.vhdx"]);
    all.remove_group("vm").unwrap();
    assert_eq!(all.show("c.vhdx").unwrap().relation.group, None);
}

/// Changes the record `name` of `kind` by hand, as if the process had died before a later version was written.
fn rewrite(lab: &Lab, file: &str, change: impl Fn(&mut serde_json::Value)) {
    let path = lab.root.join(format!("records/{file}.json"));
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record["record"]);
    fs::write(&path, record.to_string()).unwrap();
}

/// The group's record says that a split is at work.
fn in_a_split(lab: &Lab, run: &str) {
    rewrite(lab, "group-vm", |group| group["run"] = serde_json::json!({ "operation": "split", "id": run }));
}

/// The member's record says that it is to be split.
fn to_be_split(lab: &Lab, name: &str) {
    rewrite(lab, &format!("relation-{name}"), |relation| {
        let child = relation["base"].as_str().map(|_| relation["source"].clone());
        let run = relation["run"].take();
        relation["pending"] = serde_json::json!({ "operation": "split", "child": child, "run": run });
        if !relation["base"].is_null() {
            relation["source"] = relation["base"].take();
        }
        relation["state"] = "synchronized".into();
    });
}

#[test]
fn a_group_split_that_died_half_way_is_finished_by_the_next() {
    // When the records of so many members said that they are split; the last one is a clone, which has no log.
    for ended in 0..=2 {
        let lab = Lab::new();
        let (all, _) = grouped(&lab);
        let split = || all.modify_group("vm", (Operation::Split, &ModifyOptions::new()), Vec::new(), &Watch::none());
        split().unwrap();
        let run = all.show("a.vhdx").unwrap().relation.run.unwrap();
        in_a_split(&lab, &run);
        let names = ["a.vhdx", "b.vhd", "c.vhdx"];
        names[ended..].iter().for_each(|name| to_be_split(&lab, name));
        assert_eq!(
            all.group("vm").unwrap().state,
            if ended == 0 { CopyState::Unsynchronized } else { CopyState::Mixed }
        );
        let files = lab.files();
        let report = split().unwrap();
        assert_eq!((report.group.state, report.done.len(), report.failed.len()), (CopyState::Split, 3 - ended, 0));
        assert_eq!(report.group.group.run, None);
        assert_eq!(lab.files(), files, "no second log");
        for (name, logs) in names.into_iter().zip([true, true, false]) {
            assert_eq!(all.show(name).unwrap().relation.base.is_some(), logs);
        }
    }
}

#[test]
fn a_group_split_that_died_before_its_set_was_there_starts_anew() {
    let lab = Lab::new();
    let (all, disks) = grouped(&lab);
    in_a_split(&lab, "dead");
    to_be_split(&lab, "a.vhdx");
    rewrite(&lab, "relation-a.vhdx", |relation| {
        relation["pending"]["run"] = "dead".into();
        relation["pending"]["child"] = disks[0].with_file_name("a-7.vhdx").to_str().into();
    });
    let report = all.modify_group("vm", (Operation::Split, &ModifyOptions::new()), Vec::new(), &Watch::none()).unwrap();
    assert_eq!((report.group.state, report.done.len()), (CopyState::Split, 3));
    assert_eq!(all.show("a.vhdx").unwrap().relation.source, disks[0].with_file_name("a-1.vhdx"));
    // One member that somebody was at work on by itself is finished first.
    all.modify_group("vm", (Operation::ResyncReplica, &ModifyOptions::new()), Vec::new(), &Watch::none()).unwrap();
    to_be_split(&lab, "b.vhd");
    let refused = all.modify_group("vm", (Operation::Split, &ModifyOptions::new()), Vec::new(), &Watch::none());
    assert!(refused.unwrap_err().to_string().contains("b.vhd: split was begun"));
    assert_eq!(all.group("vm").unwrap().group.run, None);
    assert_eq!(all.show("a.vhdx").unwrap().observed, CopyState::Synchronized);
}

#[test]
fn an_interrupted_reversal_of_a_group_turns_each_member_once() {
    let lab = Lab::new();
    let (all, disks) = grouped(&lab);
    let reverse = || {
        all.modify_group("vm", (Operation::ReverseRoles, &ModifyOptions::new()), Vec::new(), &Watch::none()).unwrap()
    };
    reverse();
    let run = all.show("a.vhdx").unwrap().relation.run.unwrap();
    // As if the process had died after the first.
    rewrite(&lab, "group-vm", |group| group["run"] = serde_json::json!({ "operation": "reverse-roles", "id": run }));
    for name in ["b.vhd", "c.vhdx"] {
        all.modify(name, Operation::ReverseRoles, &ModifyOptions::new(), &Watch::none()).unwrap();
    }
    assert_eq!(reverse().done.len(), 2);
    for (view, disk) in all.group("vm").unwrap().relations.iter().zip(&disks) {
        assert_eq!(view.relation.target, *disk, "it was the source");
    }
}

#[test]
fn a_member_and_its_group_agree_whichever_record_was_written_last() {
    let lab = Lab::new();
    let (all, _) = grouped(&lab);
    // It was told of the group, and the group not yet of it; the group is gone, and it was not yet told.
    rewrite(&lab, "group-vm", |group| group["members"] = serde_json::json!(["b.vhd"]));
    assert_eq!(all.show("a.vhdx").unwrap().relation.group, None);
    assert_eq!(all.set_member("vm", "a.vhdx", true).unwrap().group.members, ["b.vhd", "a.vhdx"]);
    fs::remove_file(lab.root.join("records/group-vm.json")).unwrap();
    assert_eq!(all.list().unwrap().len(), 3);
    all.create_group("other").unwrap();
    assert_eq!(all.set_member("other", "a.vhdx", true).unwrap().relations.len(), 1);
}

#[test]
fn a_copy_that_died_before_it_had_a_target_goes_on_or_is_given_up() {
    for operation in [Operation::Suspend, Operation::Abort, Operation::Activate] {
        let lab = Lab::new();
        let all = replicas(&lab);
        let disk = lab.disk("disk.vhdx", 2 * MIB);
        write(&disk, 0, &pattern(64 * KIB, 1));
        let copy = lab.path("copy.vhdx");
        all.create("m", SyncType::Mirror, &disk, Some(&copy)).unwrap();
        rewrite(&lab, "relation-m", |relation| {
            relation["state"] = "unsynchronized".into();
            relation["pending"] = serde_json::json!({ "operation": "activate" });
        });
        assert_eq!(all.show("m").unwrap().observed, CopyState::Unsynchronized);
        done(&all, "m", operation);
        match operation {
            Operation::Suspend => drop(done(&all, "m", Operation::Resume)),
            Operation::Abort => drop(done(&all, "m", Operation::ResyncReplica)),
            _ => {}
        }
        assert!(shows(&copy) == shows(&disk));
    }
}

#[test]
fn what_a_failover_wrote_survives_reversed_roles() {
    for extension in ["vhdx", "vhd"] {
        let lab = Lab::new();
        let all = replicas(&lab);
        let disk = lab.disk(&format!("disk.{extension}"), 4 * MIB);
        write(&disk, 0, &pattern(MIB, 1));
        let copy = lab.path(&format!("copy.{extension}"));
        all.create("m", SyncType::Mirror, &disk, Some(&copy)).unwrap();
        done(&all, "m", Operation::Activate);
        let live = done(&all, "m", Operation::Failover).relation.live.unwrap();
        write(&live, MIB, b"written to the replica");
        let expected = shows(&live);
        let view = done(&all, "m", Operation::ReverseRoles);
        assert_eq!((&view.relation.source, &view.relation.target, view.relation.live), (&live, &disk, None));
        // And as they were.
        let view = done(&all, "m", Operation::ReverseRoles);
        assert_eq!(
            (view.relation.source, view.relation.target, view.relation.live),
            (disk.clone(), copy.clone(), Some(live.clone()))
        );
        done(&all, "m", Operation::ReverseRoles);
        write(&live, 2 * MIB, b"more");
        let after = shows(&live);
        assert!(after != expected);
        let view = done(&all, "m", Operation::Failback);
        assert_eq!((&view.relation.source, &view.relation.target), (&copy, &disk), "the leaf is merged away");
        assert!(shows(&copy) == after && shows(&disk) == after && !live.exists());
    }
}

#[test]
fn why_an_operation_stopped_is_in_the_record_until_it_is_done() {
    let lab = Lab::new();
    let all = replicas(&lab);
    let disk = lab.disk("disk.vhdx", 2 * MIB);
    let copy = lab.path("copy.vhdx");
    all.create("m", SyncType::Mirror, &disk, Some(&copy)).unwrap();
    fs::write(&copy, "no image").unwrap();
    let failure = all.modify("m", Operation::Activate, &ModifyOptions::new(), &Watch::none()).unwrap_err();
    let view = all.show("m").unwrap();
    assert_eq!((view.observed, view.relation.failed), (CopyState::Invalid, Some(failure.to_string())));
    fs::remove_file(&copy).unwrap();
    assert_eq!(all.show("m").unwrap().observed, CopyState::Broken);
    assert_eq!(done(&all, "m", Operation::ResyncReplica).relation.failed, None);
}

fn operations() -> impl Strategy<Value = Vec<(u8, u8, bool)>> {
    prop::collection::vec((0..30u8, 0..16u8, prop::bool::weighted(0.2)), 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Random operations, writes and interruptions on one relation of each type, against a model of its state and of what
    /// both disks show. What the published table allows happens, what it does not is refused, and bytes follow.
    #[test]
    fn states_capabilities_and_bytes_agree_at_every_step(steps in operations(), kind in 0..3usize, vhd in prop::bool::ANY) {
        let kind = SyncType::ALL[kind];
        let lab = Lab::new();
        let all = replicas(&lab);
        let extension = if vhd { "vhd" } else { "vhdx" };
        let disk = lab.disk(&format!("disk.{extension}"), 2 * MIB);
        write(&disk, 0, &pattern(300 * KIB, 1));
        let copy = lab.path(&format!("copy.{extension}"));
        let target = (kind != SyncType::Snapshot).then_some(copy.as_path());
        all.create("r", kind, &disk, target).unwrap();
        let mut source = shows(&disk);
        let mut replica: Option<Vec<u8>> = None;
        let mut live: Option<Vec<u8>> = None;
        let mut below: Option<Vec<u8>> = None;
        let mut state = CopyState::Initialized;
        for (seed, (choice, place, interrupt)) in (2..).zip(steps) {
            let view = all.show("r").unwrap();
            prop_assert_eq!(view.observed, state);
            let Some(&operation) = Operation::ALL.get(usize::from(choice)) else {
                // A write to the source, or to the leaf that is in use instead.
                let at = u64::from(place) * 128 * KIB;
                let bytes = pattern(3 * KIB, seed);
                let (path, model) = match (&view.relation.live, &mut live) {
                    (Some(path), Some(model)) => (path.clone(), model),
                    _ => (view.relation.source.clone(), &mut source),
                };
                write(&path, at, &bytes);
                model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                let follows = matches!(state, CopyState::Synchronized | CopyState::Restored);
                if follows && kind != SyncType::Snapshot {
                    state = CopyState::Unsynchronized;
                }
                continue;
            };
            let row = capabilities(kind).into_iter().find(|row| row.operation == operation).unwrap();
            let allowed = row.from.contains(&state);
            if matches!(operation, Operation::Detach | Operation::Dissolve | Operation::ReturnToResourcePool) && allowed {
                continue;
            }
            if interrupt && allowed {
                // Stopped before its first byte; whatever it had begun, running it again below finishes it.
                let token = CancelToken::new();
                token.cancel();
                let _ = all.modify("r", operation, &ModifyOptions::new(), &Watch::none().cancel(&token));
                if all.list().unwrap().is_empty() {
                    break;
                }
                if all.show("r").unwrap().relation.pending.is_none() {
                    // It needs no copying and was done.
                    let now = all.show("r").unwrap();
                    let ended = now.relation != view.relation;
                    if ended {
                        model(kind, operation, &row.leads, (&mut source, &mut replica, &mut live, &mut below), &mut state);
                    }
                    continue;
                }
            }
            let result = all.modify("r", operation, &ModifyOptions::new(), &Watch::none());
            prop_assert_eq!(result.is_ok(), allowed, "{} in {}: {:?}", operation, state, result.err());
            if !allowed {
                continue;
            }
            model(kind, operation, &row.leads, (&mut source, &mut replica, &mut live, &mut below), &mut state);
            let view = all.show("r").unwrap();
            prop_assert_eq!(view.observed, state, "after {}", operation);
            prop_assert!(shows(&view.relation.source) == source, "the source after {operation}");
            if let Some(replica) = &replica {
                prop_assert!(shows(&view.relation.target) == *replica, "the replica after {operation}");
            }
            if let (Some(path), Some(live)) = (&view.relation.live, &live) {
                prop_assert!(shows(path) == *live, "the live leaf after {operation}");
            }
        }
    }
}

/// The source, the replica, the leaf above it; the file below the leaf when the roles of those are reversed.
type Bytes<'a> = (&'a mut Vec<u8>, &'a mut Option<Vec<u8>>, &'a mut Option<Vec<u8>>, &'a mut Option<Vec<u8>>);

/// What an operation that is done means, in bytes.
fn model(
    kind: SyncType,
    operation: Operation,
    leads: &Option<Leads>,
    (source, replica, live, below): Bytes<'_>,
    state: &mut CopyState,
) {
    match operation {
        Operation::Activate | Operation::Resume | Operation::ResyncReplica => *replica = Some(source.clone()),
        Operation::RestoreFromReplica => *source = replica.clone().unwrap(),
        Operation::Failover => *live = replica.clone(),
        Operation::Failback => {
            // Without a leaf in use the roles were reversed: the source is what was written to.
            *source = live.take().unwrap_or_else(|| source.clone());
            *below = None;
            if kind != SyncType::Snapshot {
                *replica = Some(source.clone());
            }
        }
        Operation::ReverseRoles => match (live.take(), below.take()) {
            (Some(used), _) => {
                *below = replica.take();
                *replica = Some(std::mem::replace(source, used));
            }
            (None, Some(under)) => *live = Some(std::mem::replace(source, replica.replace(under).unwrap())),
            (None, None) => *replica = Some(std::mem::replace(source, replica.take().unwrap())),
        },
        _ => {}
    }
    if let Some(Leads::To(to)) = leads {
        *state = *to;
    }
}
