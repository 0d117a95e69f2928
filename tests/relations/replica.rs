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

#[test]
fn a_group_split_that_died_half_way_is_finished_by_the_next() {
    let lab = Lab::new();
    let (all, _) = grouped(&lab);
    all.modify_group("vm", (Operation::Split, &ModifyOptions::new()), Vec::new(), &Watch::none()).unwrap();
    // As if the process had died when one member's record was written and the others' were not.
    for name in ["b.vhd", "c.vhdx"] {
        let path = lab.root.join(format!("records/relation-{name}.json"));
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let relation = &mut record["record"];
        let child = relation["base"].as_str().map(|_| relation["source"].clone());
        relation["pending"] = serde_json::json!({ "operation": "split", "child": child });
        if !relation["base"].is_null() {
            relation["source"] = relation["base"].take();
        }
        relation["state"] = "synchronized".into();
        fs::write(&path, record.to_string()).unwrap();
    }
    let report = all.modify_group("vm", (Operation::Split, &ModifyOptions::new()), Vec::new(), &Watch::none()).unwrap();
    assert_eq!((report.group.state, report.done.len()), (CopyState::Split, 2));
    assert!(all.show("b.vhd").unwrap().relation.base.is_some());
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
                        model(kind, operation, &row.leads, (&mut source, &mut replica, &mut live), &mut state);
                    }
                    continue;
                }
            }
            let result = all.modify("r", operation, &ModifyOptions::new(), &Watch::none());
            prop_assert_eq!(result.is_ok(), allowed, "{} in {}: {:?}", operation, state, result.err());
            if !allowed {
                continue;
            }
            model(kind, operation, &row.leads, (&mut source, &mut replica, &mut live), &mut state);
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

type Bytes<'a> = (&'a mut Vec<u8>, &'a mut Option<Vec<u8>>, &'a mut Option<Vec<u8>>);

/// What an operation that is done means, in bytes.
fn model(
    kind: SyncType,
    operation: Operation,
    leads: &Option<Leads>,
    (source, replica, live): Bytes<'_>,
    state: &mut CopyState,
) {
    match operation {
        Operation::Activate | Operation::Resume | Operation::ResyncReplica => *replica = Some(source.clone()),
        Operation::RestoreFromReplica => *source = replica.clone().unwrap(),
        Operation::Failover => *live = replica.clone(),
        Operation::Failback => {
            *source = live.take().unwrap_or_else(|| replica.clone().unwrap());
            if kind != SyncType::Snapshot {
                *replica = Some(source.clone());
            }
        }
        Operation::ReverseRoles => {
            let other = live.take().or_else(|| replica.take()).unwrap();
            *replica = Some(std::mem::replace(source, other));
        }
        _ => {}
    }
    if let Some(Leads::To(to)) = leads {
        *state = *to;
    }
}
