//! The simulator finds planted crash bugs, accepts correct code, and fails as told.

use proptest::prelude::*;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use vhdkit::storage::sim::{
    CrashState, ExploreOptions, ExploreReport, SimDisk, SimFailure, SimFault, SimFile, SimOperation,
};
use vhdkit::storage::{MemoryStorage, Storage};

const SEED: u64 = 0x5EED;

/// A record at `AT`, announced by a flag at 0: the record has to be durable before the flag is.
const AT: u64 = 4096;

fn announce(file: &SimFile, barrier: bool) {
    file.write_all_at(&[7; 1024], AT).unwrap();
    if barrier {
        file.sync().unwrap();
    }
    file.write_all_at(&[1], 0).unwrap();
    file.sync().unwrap();
}

fn announced_is_complete(state: &CrashState<'_>) -> Result<(), String> {
    let file = state.disk().file("a");
    let mut flag = [0];
    if file.read_exact_at(&mut flag, 0).is_err() || flag == [0] {
        return Ok(());
    }
    let mut record = [0; 1024];
    file.read_exact_at(&mut record, AT).map_err(|error| error.to_string())?;
    if record == [7; 1024] { Ok(()) } else { Err("announced, but torn".into()) }
}

fn explore(disk: &SimDisk, visit: impl FnMut(&CrashState<'_>) -> Result<(), String>) -> ExploreReport {
    disk.explore(&ExploreOptions::seeded(SEED), visit)
}

fn contents(file: &Arc<SimFile>) -> Vec<u8> {
    file.contents().to_bytes().unwrap()
}

#[test]
fn a_missing_barrier_is_found_and_described() {
    let disk = SimDisk::new();
    announce(&disk.file("a"), false);
    let failure = explore(&disk, announced_is_complete).first_failure.expect("the planted bug was not found");
    let text = failure.to_string();
    assert!(text.contains("of 3 operations") && text.contains("write of 1024 bytes at 0x1000"), "{text}");
}

#[test]
fn the_barrier_mends_it() {
    let disk = SimDisk::new();
    announce(&disk.file("a"), true);
    let report = explore(&disk, announced_is_complete);
    report.assert_ok();
    assert!(report.points == 5 && report.states + report.repeated > 10, "{report:?}");
}

#[test]
fn a_barrier_that_is_dropped_is_missed() {
    for skip in [Some(0), None] {
        let disk = SimDisk::new();
        disk.drop_syncs("a", skip);
        announce(&disk.file("a"), true);
        assert!(explore(&disk, announced_is_complete).first_failure.is_some(), "{skip:?}");
    }
    let disk = SimDisk::new();
    disk.drop_syncs("a", Some(1));
    disk.drop_syncs("b", None);
    announce(&disk.file("a"), true);
    explore(&disk, announced_is_complete).assert_ok();
}

#[test]
fn a_promise_holds_from_the_position_where_it_was_given() {
    for dropped in [false, true] {
        let disk = SimDisk::new();
        if dropped {
            disk.drop_syncs("a", None);
        }
        let file = disk.file("a");
        file.write_all_at(b"promised", 0).unwrap();
        file.sync().unwrap();
        let promised = disk.position();
        file.write_all_at(b"later", 8).unwrap();
        let report = explore(&disk, |state| {
            let mut found = [0; 8];
            let kept = state.disk().file("a").read_exact_at(&mut found, 0).is_ok() && &found == b"promised";
            if kept || state.point() < promised { Ok(()) } else { Err("the promise is broken".into()) }
        });
        assert_eq!(report.first_failure.is_some(), dropped);
    }
}

#[test]
fn a_sync_orders_its_own_file_only() {
    let disk = SimDisk::new();
    let (a, b) = (disk.file("a"), disk.file("b"));
    a.write_all_at(&[7; 1024], AT).unwrap();
    b.sync().unwrap();
    a.write_all_at(&[1], 0).unwrap();
    assert!(explore(&disk, announced_is_complete).first_failure.is_some());
}

/// Every content the last crash point of `disk` can leave in file "a", the given number of samples deep.
fn outcomes(disk: &SimDisk) -> HashSet<Vec<u8>> {
    let mut outcomes = HashSet::new();
    let last = disk.position();
    let report = explore(disk, |state| {
        if state.point() == last {
            outcomes.insert(contents(&state.disk().file("a")));
        }
        Ok(())
    });
    report.assert_ok();
    outcomes
}

#[test]
fn all_subsets_of_few_writes_occur() {
    let disk = SimDisk::new();
    let file = disk.add_file("a", b"....");
    for (at, byte) in (0..).zip(b"abcd") {
        file.write_all_at(&[*byte], at).unwrap();
    }
    assert_eq!(outcomes(&disk).len(), 16);
}

#[test]
fn growth_and_bytes_come_apart() {
    let disk = SimDisk::new();
    disk.add_file("a", b"old").write_all_at(b"newer", 0).unwrap();
    let wanted = [&b"old"[..], b"newer", b"old\0\0", b"new"].map(<[u8]>::to_vec);
    assert_eq!(outcomes(&disk), HashSet::from(wanted));
}

#[test]
fn a_surviving_write_past_a_lost_one_leaves_zeros_between() {
    let disk = SimDisk::new();
    let file = disk.file("a");
    file.write_all_at(b"ab", 0).unwrap();
    file.write_all_at(b"cd", 2).unwrap();
    let outcomes = outcomes(&disk);
    for wanted in [&b""[..], b"ab", b"\0\0cd", b"abcd", b"\0\0", b"ab\0\0"] {
        assert!(outcomes.contains(wanted), "{wanted:?} is not among {outcomes:?}");
    }
}

#[test]
fn writes_tear_at_sectors_and_nowhere_else() {
    let disk = SimDisk::new();
    disk.add_file("a", &[1; 4096]).write_all_at(&[2; 2000], 100).unwrap();
    let outcomes = outcomes(&disk);
    assert!(outcomes.len() > 5, "only {} outcomes", outcomes.len());
    for bytes in outcomes {
        assert!(bytes[..100].iter().chain(&bytes[2100..]).all(|&byte| byte == 1));
        for sector in bytes[100..2100].chunk_by(|a, b| a == b).scan(100, |at, run| Some((*at, *at += run.len()).0)) {
            assert!(sector == 100 || sector % 512 == 0, "torn at {sector}");
        }
    }
}

#[test]
fn changes_of_the_length_and_zeros_can_be_lost_too() {
    let disk = SimDisk::new();
    let file = disk.add_file("a", &[1; 2048]);
    file.set_len(1024).unwrap();
    file.zero_range(0..1024).unwrap();
    let outcomes = outcomes(&disk);
    let torn = [vec![0; 512], vec![1; 512]].concat();
    for wanted in [vec![1; 2048], vec![1; 1024], vec![0; 1024], [vec![0; 1024], vec![1; 1024]].concat(), torn] {
        assert!(outcomes.contains(&wanted));
    }
}

#[test]
fn many_unsynced_writes_are_sampled_with_the_ends_always_there() {
    let disk = SimDisk::new();
    let file = disk.add_file("a", &[0; 64]);
    for at in 0..64 {
        file.write_all_at(&[1], at).unwrap();
    }
    let outcomes = outcomes(&disk);
    assert!(outcomes.contains(&vec![0; 64]) && outcomes.contains(&vec![1; 64]));
    assert!(outcomes.len() > 30, "only {} outcomes", outcomes.len());
}

#[test]
fn a_long_run_without_a_sync_is_thinned_but_its_end_is_not() {
    let disk = SimDisk::new();
    let file = disk.file("a");
    for at in 0..301 {
        file.write_all_at(&[1], at * 512).unwrap();
    }
    file.sync().unwrap();
    let mut points = Vec::new();
    explore(&disk, |state| {
        points.push(state.point());
        Ok(())
    })
    .assert_ok();
    points.dedup();
    assert!(points.len() < 100 && points.ends_with(&[288, 301, 302]), "{points:?}");
}

#[test]
fn the_same_seed_walks_the_same_states() {
    let disk = SimDisk::new();
    let file = disk.file("a");
    for at in 0..40 {
        file.write_all_at(&[at as u8; 3000], at * 1000).unwrap();
    }
    let walk = |seed| {
        let mut states = Vec::new();
        disk.explore(&ExploreOptions::seeded(seed), |state| {
            states.push(state.to_string());
            Ok(())
        })
        .assert_ok();
        states
    };
    assert_eq!(walk(1), walk(1));
    assert_ne!(walk(1), walk(2));
}

#[test]
fn a_checkpoint_is_where_exploration_starts() {
    let disk = SimDisk::new();
    let file = disk.file("a");
    file.write_all_at(b"setup", 0).unwrap();
    disk.checkpoint();
    assert_eq!((disk.position(), disk.crash_points()), (0, 1));
    file.write_all_at(b"S", 0).unwrap();
    assert_eq!(outcomes(&disk), HashSet::from([b"setup".to_vec(), b"Setup".to_vec()]));
}

#[test]
fn crash_states_can_crash_again() {
    let disk = SimDisk::new();
    announce(&disk.file("a"), true);
    let mut inner = 0;
    explore(&disk, |state| {
        let disk = state.disk();
        // The recovery: whatever was not announced is announced now.
        announce(&disk.file("a"), true);
        let report = explore(&disk, announced_is_complete);
        inner += report.states + report.repeated;
        report.first_failure.map_or(Ok(()), |failure| Err(failure.to_string()))
    })
    .assert_ok();
    assert!(inner > 100, "{inner}");
}

#[test]
fn every_operation_can_be_failed() {
    type Act = fn(&SimFile) -> io::Result<()>;
    let acts: [(SimOperation, Act); 5] = [
        (SimOperation::Read, |file| file.read_exact_at(&mut [0; 4], 0)),
        (SimOperation::Write, |file| file.write_all_at(&[9; 2048], 0)),
        (SimOperation::Zero, |file| file.zero_range(0..2048)),
        (SimOperation::SetLen, |file| file.set_len(8192)),
        (SimOperation::Sync, |file| file.sync()),
    ];
    for (operation, act) in acts {
        for (failure, kind) in [
            (SimFailure::Io, io::ErrorKind::Other),
            (SimFailure::NoSpace, io::ErrorKind::StorageFull),
            (SimFailure::Eof, io::ErrorKind::UnexpectedEof),
        ] {
            let disk = SimDisk::new();
            let (file, other) = (disk.add_file("a", &[5; 4096]), disk.add_file("b", &[5; 4096]));
            disk.inject(SimFault::nth(1, failure).of(operation).on("a"));
            act(&other).unwrap();
            act(&other).unwrap();
            act(&file).unwrap();
            for (another, act) in acts {
                if another != operation {
                    act(&file).unwrap();
                }
            }
            assert_eq!(act(&file).unwrap_err().kind(), kind);
            act(&file).unwrap();
            disk.inject(SimFault::nth(0, failure).of(operation).from_then_on());
            assert!(act(&file).is_err() && act(&file).is_err() && act(&other).is_err());
            disk.clear_faults();
            act(&file).unwrap();
        }
    }
}

#[test]
fn a_fault_without_a_kind_meets_changes_in_their_order() {
    let disk = SimDisk::new();
    let file = disk.file("a");
    announce(&file, true);
    assert_eq!(disk.counts().changes(), 4);
    for nth in 0..4 {
        let disk = SimDisk::new();
        let file = disk.file("a");
        disk.inject(SimFault::nth(nth, SimFailure::Io));
        let _ = file.len().unwrap();
        let changes = [
            file.write_all_at(&[7; 1024], AT).is_ok(),
            file.sync().is_ok(),
            file.write_all_at(&[1], 0).is_ok(),
            file.sync().is_ok(),
        ];
        assert_eq!(changes.iter().position(|ok| !ok), Some(nth as usize));
    }
}

#[test]
fn writing_on_after_a_failure_is_counted() {
    let disk = SimDisk::new();
    let (a, b) = (disk.file("a"), disk.file("b"));
    disk.inject(SimFault::nth(0, SimFailure::Io).of(SimOperation::Read));
    disk.inject(SimFault::nth(1, SimFailure::Io));
    assert!(a.read_exact_at(&mut [0], 0).is_err());
    a.write_all_at(&[1], 0).unwrap();
    a.sync().unwrap_err();
    b.sync().unwrap();
    let _ = a.len().unwrap();
    assert_eq!(disk.changes_after_failure(), 0, "another file, and reads, may go on");
    a.sync().unwrap();
    a.set_len(7).unwrap();
    assert_eq!(disk.changes_after_failure(), 2);
    disk.clear_faults();
    a.sync().unwrap();
    assert_eq!(disk.changes_after_failure(), 0);
}

#[test]
fn a_fork_is_a_machine_of_its_own() {
    let disk = SimDisk::new();
    disk.file("a").write_all_at(b"both", 0).unwrap();
    let fork = disk.fork();
    fork.file("a").write_all_at(b"fork", 0).unwrap();
    assert_eq!((contents(&disk.file("a")), contents(&fork.file("a"))), (b"both".to_vec(), b"fork".to_vec()));
    assert_eq!(fork.position(), 1, "what was there before is durable and not in the journal");
}

#[test]
fn the_journal_can_be_listed() {
    let disk = SimDisk::new();
    announce(&disk.file("a"), true);
    disk.file("b").set_len(9).unwrap();
    let steps = disk.steps();
    let listed: Vec<_> = steps.iter().map(|step| (&*step.file, step.operation, step.range.clone())).collect();
    use SimOperation::{SetLen, Sync, Write};
    let sync = ("a", Sync, 0..0);
    let wanted = [("a", Write, AT..AT + 1024), sync.clone(), ("a", Write, 0..1), sync, ("b", SetLen, 9..9)];
    assert_eq!(listed, wanted);
    assert_eq!(steps[2].bytes.as_deref(), Some(&[1][..]));
}

#[test]
fn exploration_can_begin_late() {
    let disk = SimDisk::new();
    announce(&disk.file("a"), false);
    let late = ExploreOptions { from_point: 3, ..ExploreOptions::seeded(SEED) };
    let mut points = HashSet::new();
    disk.explore(&late, |state| {
        points.insert(state.point());
        Ok(())
    });
    assert_eq!(points, HashSet::from([3]));
}

#[test]
fn a_failed_write_leaves_any_of_its_sectors() {
    let mut outcomes = HashSet::new();
    let mut prefixes = HashSet::new();
    for seed in 0..40 {
        for (failure, seen) in [(SimFailure::Io, &mut outcomes), (SimFailure::NoSpace, &mut prefixes)] {
            let disk = SimDisk::new();
            let file = disk.add_file("a", &[1; 2048]);
            disk.inject(SimFault::nth(0, failure).seed(seed));
            file.write_all_at(&[2; 2048], 0).unwrap_err();
            let bytes = contents(&file);
            seen.insert([0, 512, 1024, 1536].map(|at| bytes[at]));
        }
    }
    assert!(outcomes.len() > 8, "{outcomes:?}");
    assert_eq!(prefixes, HashSet::from([[1; 4], [2, 1, 1, 1], [2, 2, 1, 1], [2, 2, 2, 1]]));
}

#[test]
fn what_a_failed_sync_lost_no_later_sync_brings_back() {
    let mut lost = HashSet::new();
    for seed in 0..40 {
        let disk = SimDisk::new();
        let file = disk.add_file("a", b"..");
        file.write_all_at(b"a", 0).unwrap();
        file.write_all_at(b"b", 1).unwrap();
        disk.inject(SimFault::nth(0, SimFailure::Io).of(SimOperation::Sync).seed(seed));
        file.sync().unwrap_err();
        file.sync().unwrap();
        let left = contents(&file);
        assert_eq!(outcomes(&disk), HashSet::from([left.clone()]));
        lost.insert(left);
    }
    assert_eq!(lost, HashSet::from([b"..", b"a.", b".b", b"ab"].map(|bytes| bytes.to_vec())));
}

#[test]
fn import_takes_over_a_sparse_file() {
    let memory = MemoryStorage::new();
    memory.set_len(2 << 40).unwrap();
    memory.write_all_at(b"far", 1 << 40).unwrap();
    memory.write_all_at(b"end", (2 << 40) - 3).unwrap();
    let file = SimDisk::new().import("a", &memory).unwrap();
    assert_eq!(file.len().unwrap(), 2 << 40);
    let mut found = [0; 3];
    for (wanted, at) in [(b"far", 1 << 40), (b"end", (2 << 40) - 3)] {
        file.read_exact_at(&mut found, at).unwrap();
        assert_eq!(&found, wanted);
    }
    assert_eq!(file.contents().allocated(), 2 * 4096);
}

proptest! {
    #[test]
    fn a_file_reads_as_a_vector_and_everything_surviving_is_everything(
        steps in proptest::collection::vec((0u8..6, 0u64..20_000, 0usize..9000, any::<u8>()), 1..30),
    ) {
        let disk = SimDisk::new();
        let file = disk.file("a");
        let mut model = Vec::new();
        for (kind, at, len, fill) in steps {
            let end = at as usize + len;
            match kind {
                0..=2 => file.write_all_at(&vec![fill; len], at).unwrap(),
                3 => file.zero_range(at..end as u64).unwrap(),
                4 => file.set_len(at).unwrap(),
                _ => file.sync().unwrap(),
            }
            match kind {
                0..=3 if len > 0 => {
                    model.resize(model.len().max(end), 0);
                    model[at as usize..end].fill(if kind == 3 { 0 } else { fill });
                }
                4 => model.resize(at as usize, 0),
                _ => {}
            }
            prop_assert!(contents(&file) == model);
        }
        prop_assert!(outcomes(&disk).contains(&model));
        file.sync().unwrap();
        prop_assert_eq!(outcomes(&disk).len(), 1);
    }
}

#[test]
fn every_point_of_a_long_journal_is_explored_over_shared_pages() {
    let disk = SimDisk::new();
    let file = disk.file("a");
    file.set_len(6 << 20).unwrap();
    for page in 0..64 {
        file.write_all_at(&[3; 4096], page * 65_536).unwrap();
    }
    disk.checkpoint();
    for round in 0..150u64 {
        for write in 0..6 {
            file.write_all_at(&[(round % 200) as u8 + 1; 4096], ((round * 7 + write * 31) % 1500) * 4096).unwrap();
        }
        file.sync().unwrap();
    }
    let mut pages = 0;
    let report = explore(&disk, |state| {
        let mut page = [0; 4096];
        state.disk().file("a").read_exact_at(&mut page, 65_536).map_err(|error| error.to_string())?;
        pages += u64::from(page[0] != 0);
        Ok(())
    });
    report.assert_ok();
    assert!(report.points == 1051 && report.states > 50_000 && pages == report.states, "{report:?}");
}
