//! Merges as jobs: stopped, paused and taken up again at points that the test chooses.
//!
//! The checkpoint store is the gate: each save tells the test how far the merge is and waits to be let through, so that
//! nothing here depends on time.

use crate::lab::{BASE, DISK, FORMATS, LEAF, Lab, MIB, pattern, quiet, view_of};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{Cancel, CheckpointStore, Job, JobState, MergeOptions, MergeReport, Wait, merge};
use vhdkit::storage::{Access, FileStorage, Lock};
use vhdkit::{CancelToken, ErrorKind, Format, Observer, Progress, Result, Watch};

/// A checkpoint store in memory whose saves wait for the test.
#[derive(Debug)]
struct Gate {
    saved: Mutex<Option<Vec<u8>>>,
    /// Gone once the test no longer looks: then nothing waits.
    reached: SyncSender<()>,
    go: Mutex<Receiver<()>>,
}

/// The test's side of a [`Gate`].
struct Keeper {
    store: Arc<Gate>,
    reached: Receiver<()>,
    go: SyncSender<()>,
}

impl Keeper {
    fn new() -> Self {
        let ((reached, seen), (go, allowed)) = (sync_channel(0), sync_channel(1));
        let store = Gate { saved: Mutex::new(None), reached, go: Mutex::new(allowed) };
        Self { store: Arc::new(store), reached: seen, go }
    }

    /// Waits until the merge stands at a checkpoint.
    fn wait(&self) {
        self.reached.recv_timeout(Duration::from_secs(60)).expect("the merge comes to a checkpoint");
    }

    /// Lets it go on to the next one.
    fn let_go(&self) {
        self.go.send(()).expect("the merge waits");
    }

    /// Lets it go on and looks no more; the store keeps working.
    fn leave(self) -> Arc<Gate> {
        self.store
    }
}

impl CheckpointStore for Gate {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.saved.lock().unwrap().clone())
    }

    fn save(&self, bytes: &[u8]) -> Result<()> {
        *self.saved.lock().unwrap() = Some(bytes.to_vec());
        if self.reached.send(()).is_ok() {
            // An error means that the test looks no more.
            self.go.lock().unwrap().recv().ok();
        }
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        *self.saved.lock().unwrap() = None;
        Ok(())
    }
}

/// The merge of everything into the base, a checkpoint every MiB.
fn options(store: &Arc<Gate>) -> MergeOptions {
    let store: Arc<dyn CheckpointStore> = Arc::<Gate>::clone(store);
    MergeOptions::depth(2).checkpoint_every(MIB).jobs(2).store(store)
}

/// Starts it and lets it come to its `nth` checkpoint.
fn started(lab: &Lab, keeper: &Keeper, nth: usize) -> Job<MergeReport> {
    let (leaf, options) = (lab.path(LEAF), options(&keeper.store));
    let job = Job::spawn(move |watch| merge(leaf, &options, watch)).unwrap();
    keeper.wait();
    for _ in 1..nth {
        keeper.let_go();
        keeper.wait();
    }
    job
}

/// Runs the merge to its end and looks at what became of it.
fn finish(lab: &Lab, store: &Arc<Gate>, view: &[u8]) -> MergeReport {
    let report = merge(lab.path(LEAF), &options(store), &Watch::none()).unwrap();
    lab.assert_shows(LEAF, view, "after the rerun");
    lab.assert_shows(BASE, view, "after the rerun");
    lab.assert_well_formed(BASE);
    assert!(store.load().unwrap().is_none(), "a finished merge leaves no checkpoint");
    report
}

#[test]
fn a_cancelled_merge_is_terminated_and_says_that_a_rerun_goes_on() {
    for format in FORMATS {
        let _quiet = quiet();
        let (lab, keeper) = (Lab::new(format), Keeper::new());
        let job = started(&lab, &keeper, 3);
        assert_eq!(job.status().0, JobState::Running);
        assert_eq!((job.cancel(), job.cancel()), (Cancel::Requested, Cancel::Requested));
        assert_eq!(job.status().0, JobState::ShuttingDown);
        let store = keeper.leave();
        assert_eq!(job.wait(None), Wait::Ended);
        assert_eq!((job.status().0, job.cancel()), (JobState::Terminated, Cancel::AlreadyCancelled));
        let error = job.result().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(error.hint().is_some_and(|hint| hint.contains("run the same merge again")), "{error:?}");

        lab.assert_shows(LEAF, view_of(format, LEAF), "after the cancel");
        let report = finish(&lab, &store, view_of(format, LEAF));
        assert!(report.resumed_at.is_some_and(|at| at >= 3 * MIB), "{format}: {report:?}");
    }
}

#[test]
fn a_suspended_merge_keeps_its_locks_and_goes_on_when_resumed() {
    for format in FORMATS {
        let _quiet = quiet();
        let (lab, keeper) = (Lab::new(format), Keeper::new());
        let job = started(&lab, &keeper, 2);
        job.suspend();
        keeper.let_go();
        assert_eq!(job.wait(Some(Duration::from_millis(50))), Wait::StillPending);
        assert!(keeper.reached.try_recv().is_err(), "it comes to no further checkpoint");
        assert_eq!(job.status().0, JobState::Suspended);
        for depth in 1..=3 {
            let held = FileStorage::open(&lab.path(depth), Access::Read, Lock::Shared).map(drop);
            assert_eq!(held.unwrap_err().kind(), ErrorKind::InUse, "depth {depth}");
        }
        lab.assert_shows_unlocked(LEAF, view_of(format, LEAF), "the leaf of a suspended merge");
        job.resume();
        keeper.wait();
        assert_eq!(job.status().0, JobState::Running);
        let store = keeper.leave();
        assert_eq!(job.wait(None), Wait::Ended);
        assert_eq!(job.status().0, JobState::Completed);
        assert_eq!(job.result().unwrap().resumed_at, None);
        assert!(store.load().unwrap().is_none());
        lab.assert_shows(BASE, view_of(format, LEAF), "after the merge");
    }
}

#[test]
fn a_suspended_merge_can_be_cancelled() {
    let _quiet = quiet();
    let (lab, keeper) = (Lab::new(Format::Vhdx), Keeper::new());
    let job = started(&lab, &keeper, 1);
    job.suspend();
    assert_eq!(job.cancel(), Cancel::Requested);
    let store = keeper.leave();
    assert_eq!(job.wait(None), Wait::Ended);
    assert_eq!(job.status().0, JobState::Terminated);
    finish(&lab, &store, view_of(Format::Vhdx, LEAF));
}

/// The case that a checkpoint must not be fooled by: the merge stops, the user goes on with the child, and what is
/// changed lies in the part that was merged already.
#[test]
fn a_child_written_between_the_runs_is_merged_as_it_is_now() {
    for format in FORMATS {
        let _quiet = quiet();
        let (lab, keeper) = (Lab::new(format), Keeper::new());
        let job = started(&lab, &keeper, 8);
        job.cancel();
        let store = keeper.leave();
        job.wait(None);

        let mut view = view_of(format, LEAF).to_vec();
        let mut chain = Chain::open(lab.path(LEAF), &ChainOptions::new().access(Access::Write)).unwrap();
        for (offset, len) in [(4 * MIB + 512, 1024), (9 * MIB, 4096), (100, 50), (30 * MIB, MIB)] {
            let bytes = pattern(offset, len, 99);
            chain.write_at(&bytes, offset).unwrap();
            view[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
        }
        chain.close().unwrap();
        lab.assert_shows(LEAF, &view, "after the write");

        let report = finish(&lab, &store, &view);
        match format {
            // Compared byte by byte up to there.
            Format::Vhd => assert!(report.resumed_at.is_some(), "{report:?}"),
            // The leaf's id tells that it changed.
            _ => assert_eq!(report.resumed_at, None),
        }
    }
}

/// Pulls the token as soon as something was moved, and remembers how much that was.
struct PullsEarly {
    token: CancelToken,
    at: OnceLock<u64>,
    last: AtomicU64,
}

impl Observer for PullsEarly {
    fn progress(&self, progress: Progress) {
        if progress.moved >= MIB {
            self.at.get_or_init(|| progress.moved);
            self.token.cancel();
        }
        self.last.fetch_max(progress.moved, Ordering::Relaxed);
    }
}

#[test]
fn a_cancel_is_answered_within_one_chunk_of_every_worker() {
    const WORKERS: u64 = 2;
    for format in FORMATS {
        let _quiet = quiet();
        let lab = Lab::new(format);
        let observer = PullsEarly { token: CancelToken::new(), at: OnceLock::new(), last: AtomicU64::new(0) };
        let watch = Watch::none().observer(&observer).cancel(&observer.token);
        let options = MergeOptions::depth(2).jobs(WORKERS as usize);
        let error = merge(lab.path(LEAF), &options, &watch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let (at, last) = (*observer.at.get().unwrap(), observer.last.load(Ordering::Relaxed));
        assert!(last <= at + WORKERS * MIB, "{format}: pulled at {at}, went on to {last}");
        assert!(!lab.checkpoint(BASE).exists(), "nothing was published that a checkpoint could keep");
        lab.assert_shows(LEAF, view_of(format, LEAF), "after the cancel");
    }
}

/// Counts the saves.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl CheckpointStore for Counter {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn save(&self, _: &[u8]) -> Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn checkpoints_come_as_often_as_asked() {
    for format in FORMATS {
        let _quiet = quiet();
        let saves = |every: u64| {
            let (lab, counter) = (Lab::new(format), Arc::new(Counter::default()));
            let store: Arc<dyn CheckpointStore> = Arc::<Counter>::clone(&counter);
            let options = MergeOptions::depth(2).checkpoint_every(every).store(store);
            let report = merge(lab.path(LEAF), &options, &Watch::none()).unwrap();
            (counter.0.load(Ordering::Relaxed), report.moved)
        };
        assert_eq!(saves(DISK).0, 0, "less is moved than that");
        let (few, moved) = saves(8 * MIB);
        assert!((1..=moved / (8 * MIB)).contains(&few), "{few} for {moved} bytes");
        let (many, moved) = saves(0);
        assert!(many >= moved / (2 * MIB), "{many} for {moved} bytes");
    }
}
