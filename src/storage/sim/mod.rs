//! A simulated disk: every crash state of a run, and faults on demand.
//!
//! Owns: the files of one simulated machine and the journal of what was done to them. Must not know: any format.
//!
//! # The model
//!
//! A [`SimDisk`] holds files. Each [`SimFile`] is a [`Storage`]; all of them write one journal. A crash after `k`
//! operations leaves in each file everything up to its last successful sync among them, and of the later operations any
//! subset, each whole or torn at 512 bytes; a write that grew the file may have lost its growth, or have brought the
//! growth alone. Syncs order only their own file. Creating files is not journaled: a file is there from the start, empty.
//!
//! [`SimDisk::explore`] walks the crash states; see there for which. All choices follow from a seed.

mod explore;
mod fault;
mod file;
mod journal;
mod random;

pub use explore::{CrashState, ExploreFailure, ExploreOptions, ExploreReport};
pub use fault::{SimFailure, SimFault, SimOperation};
pub use file::SimFile;
pub use journal::SimStep;

use super::sparse::Sparse;
use super::{PAGE, Storage};
use fault::Faults;
use journal::{Action, Fate, Operation};
use random::Random;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One simulated machine with some files. A clone is another handle on the same machine.
#[derive(Clone, Default)]
pub struct SimDisk {
    machine: Arc<Mutex<Machine>>,
}

/// How many operations a disk saw, failed ones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimCounts {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Ranges made zero.
    pub zeros: u64,
    /// Changes of the length.
    pub set_lens: u64,
    /// Syncs.
    pub syncs: u64,
}

impl SimCounts {
    /// The operations that change something: everything but reads.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.writes + self.zeros + self.set_lens + self.syncs
    }
}

#[derive(Default)]
struct Machine {
    files: Vec<Contents>,
    journal: Vec<Operation>,
    /// Places in the journal where something was promised.
    promises: Vec<usize>,
    faults: Faults,
    counts: SimCounts,
    changes_after_failure: u64,
}

/// Invariant: `view` is `durable` with the `pending` operations done to it in order.
struct Contents {
    name: Arc<str>,
    /// Before the journal's first operation.
    base: Sparse,
    durable: Sparse,
    view: Sparse,
    /// Places in the journal.
    pending: Vec<usize>,
    /// A change of it failed, as a fault wanted.
    failed: bool,
}

impl Contents {
    fn new(name: &str, contents: Sparse) -> Self {
        Self {
            name: name.into(),
            base: contents.clone(),
            durable: contents.clone(),
            view: contents,
            pending: Vec::new(),
            failed: false,
        }
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.lock();
        let names: Vec<_> = machine.files.iter().map(|file| &file.name).collect();
        f.debug_struct("SimDisk").field("files", &names).field("operations", &machine.journal.len()).finish()
    }
}

impl SimDisk {
    /// A machine without files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn from_contents(files: impl Iterator<Item = (Arc<str>, Sparse)>) -> Self {
        let files = files.map(|(name, contents)| Contents::new(&name, contents)).collect();
        Self { machine: Arc::new(Mutex::new(Machine { files, ..Machine::default() })) }
    }

    /// The file of that name; an empty one when there was none.
    #[must_use]
    pub fn file(&self, name: &str) -> Arc<SimFile> {
        let mut machine = self.lock();
        let index = machine.files.iter().position(|file| &*file.name == name).unwrap_or_else(|| {
            machine.files.push(Contents::new(name, Sparse::default()));
            machine.files.len() - 1
        });
        Arc::new(SimFile { machine: Arc::clone(&self.machine), index, name: Arc::clone(&machine.files[index].name) })
    }

    /// A file that holds `bytes` durably before anything happens.
    ///
    /// # Panics
    /// When there is a file of that name.
    pub fn add_file(&self, name: &str, bytes: &[u8]) -> Arc<SimFile> {
        self.place(name, Sparse::from_bytes(bytes))
    }

    /// A file that durably holds what `storage` does; zeros cost nothing.
    ///
    /// # Errors
    /// What `storage` answers.
    ///
    /// # Panics
    /// When there is a file of that name.
    pub fn import(&self, name: &str, storage: &dyn Storage) -> io::Result<Arc<SimFile>> {
        let len = storage.len()?;
        let mut contents = Sparse::default();
        contents.set_len(len)?;
        let mut page = [0; PAGE];
        let mut next = 0;
        while let Some(found) = storage.next_data(next)? {
            let at = found - found % PAGE as u64;
            let part = &mut page[..(len - at).min(PAGE as u64) as usize];
            storage.read_exact_at(part, at)?;
            contents.write(part, at)?;
            next = at + PAGE as u64;
        }
        Ok(self.place(name, contents))
    }

    fn place(&self, name: &str, contents: Sparse) -> Arc<SimFile> {
        let mut machine = self.lock();
        assert!(machine.files.iter().all(|file| &*file.name != name), "the simulated disk already has a file {name:?}");
        machine.files.push(Contents::new(name, contents));
        drop(machine);
        self.file(name)
    }

    /// The names of all files.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().files.iter().map(|file| file.name.to_string()).collect()
    }

    /// How many operations the journal holds: the crash point of now. Note it when a call returns that promised
    /// something; at every crash point from there on the promise holds.
    #[must_use]
    pub fn position(&self) -> usize {
        self.lock().journal.len()
    }

    /// Notes that from here on more is promised than before, as when a call returns: states after it are judged anew
    /// whatever they hold ([`ExploreOptions::by_promise`]). Answers the [position](Self::position).
    pub fn promise(&self) -> usize {
        let mut machine = self.lock();
        let position = machine.journal.len();
        machine.promises.push(position);
        position
    }

    /// Makes everything so far durable and forgets how it came about: exploration starts here.
    pub fn checkpoint(&self) {
        let mut machine = self.lock();
        machine.journal.clear();
        machine.promises.clear();
        for file in &mut machine.files {
            *file = Contents::new(&file.name, file.view.clone());
        }
    }

    /// How many operations there were since the disk was made.
    #[must_use]
    pub fn counts(&self) -> SimCounts {
        self.lock().counts
    }

    /// How many changes were asked of a file after one of its changes had failed as a fault wanted; forgotten by
    /// [`clear_faults`](Self::clear_faults). More than none: a handle wrote on.
    #[must_use]
    pub fn changes_after_failure(&self) -> u64 {
        self.lock().changes_after_failure
    }

    /// What the journal holds, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<SimStep> {
        let machine = self.lock();
        let name = |operation: &Operation| Arc::clone(&machine.files[operation.file].name);
        machine.journal.iter().map(|operation| SimStep::of(name(operation), &operation.action)).collect()
    }

    /// Another machine whose files durably hold what these read as now; it has no journal and no faults.
    #[must_use]
    pub fn fork(&self) -> Self {
        let machine = self.lock();
        Self::from_contents(machine.files.iter().map(|file| (Arc::clone(&file.name), file.view.clone())))
    }

    /// Arms a fault. Several can be armed; an operation meets the first that matches.
    pub fn inject(&self, fault: SimFault) {
        self.lock().faults.arm(fault);
    }

    /// Makes syncs of the file named `file` answer `Ok` and do nothing: the one after `skip` others, or with `None` all.
    /// A test that still passes then does not test the barrier.
    pub fn drop_syncs(&self, file: &str, skip: Option<u64>) {
        self.lock().faults.drop_syncs(file, skip);
    }

    /// Asks `drops` before every sync, on the thread that wants it and with the name of the file, whether the sync is to
    /// answer `Ok` and do nothing. One such rule at a time.
    pub fn drop_syncs_when(&self, drops: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.lock().faults.drop_syncs_when(Arc::new(drops));
    }

    /// How many operations failed as a fault wanted; forgotten by [`clear_faults`](Self::clear_faults).
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.lock().faults.count()
    }

    /// Disarms all faults and dropped syncs.
    pub fn clear_faults(&self) {
        let mut machine = self.lock();
        machine.faults.clear();
        machine.changes_after_failure = 0;
        machine.files.iter_mut().for_each(|file| file.failed = false);
    }
}

impl Machine {
    fn record(&mut self, file: usize, action: Action) {
        let place = self.journal.len();
        let contents = &mut self.files[file];
        match &action {
            Action::Sync => {
                contents.durable = contents.view.clone();
                contents.pending.clear();
            }
            Action::SyncDropped => {}
            Action::SyncFailed { lost } => {
                contents.pending.retain(|at| !lost.contains(at));
                contents.view = contents.durable.clone();
                for &at in &contents.pending {
                    self.journal[at].action.apply(&mut contents.view);
                }
            }
            Action::Write { .. } | Action::Zero(_) | Action::SetLen(_) => {
                action.apply(&mut contents.view);
                contents.pending.push(place);
            }
        }
        self.journal.push(Operation { file, action });
    }

    /// Does `action`, or fails it as a fault wants.
    fn change(&mut self, file: usize, action: Action) -> io::Result<()> {
        let (operation, count) = match &action {
            Action::Write { bytes, .. } => {
                self.counts.bytes_written += bytes.len() as u64;
                (SimOperation::Write, &mut self.counts.writes)
            }
            Action::Zero(_) => (SimOperation::Zero, &mut self.counts.zeros),
            Action::SetLen(_) => (SimOperation::SetLen, &mut self.counts.set_lens),
            _ => (SimOperation::Sync, &mut self.counts.syncs),
        };
        *count += 1;
        let name = Arc::clone(&self.files[file].name);
        self.changes_after_failure += u64::from(self.files[file].failed);
        let Some((failure, seed)) = self.faults.meet(operation, &name) else {
            let dropped = operation == SimOperation::Sync && self.faults.drops_sync(&name);
            self.record(file, if dropped { Action::SyncDropped } else { action });
            return Ok(());
        };
        self.files[file].failed = true;
        if failure == SimFailure::Eof {
            return Err(failure.error());
        }
        let mut random = Random::new(seed);
        match operation {
            SimOperation::Sync => {
                let pending = self.files[file].pending.iter().copied();
                let all = failure == SimFailure::LostWrites;
                let lost = pending.filter(|_| all || random.hit(1, 2)).collect();
                self.record(file, Action::SyncFailed { lost });
            }
            SimOperation::Write | SimOperation::Zero => {
                let fate = match failure {
                    SimFailure::NoSpace => Fate::First(random.below(action.sectors())),
                    _ => Fate::Scattered(random.next()),
                };
                for part in action.survivors(fate, self.files[file].view.len()) {
                    self.record(file, part);
                }
            }
            _ => {}
        }
        Err(failure.error())
    }
}
