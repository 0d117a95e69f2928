//! Merging a chain, interrupted and run again, against vectors of bytes.
//!
//! Owns: which files go into which, how the first run ends, and what must show what afterwards.

use crate::chains::{self, Edit};
use crate::input::Input;
use crate::workload::{self, assert_shows, assert_well_formed};
use std::sync::{Arc, Mutex, PoisonError};
use vhdkit::ops::{CheckpointStore, MergeOptions, merge_chain};
use vhdkit::storage::sim::{SimDisk, SimFailure, SimFault, SimOperation};
use vhdkit::storage::{Access, Storage};
use vhdkit::{Format, Watch};

const NAMES: [&str; 5] = ["0", "1", "2", "3", "4"];

/// Keeps the place of a merge in memory.
#[derive(Debug, Default)]
struct Kept(Mutex<Option<Vec<u8>>>);

impl CheckpointStore for Kept {
    fn load(&self) -> vhdkit::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&self, bytes: &[u8]) -> vhdkit::Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.to_vec());
        Ok(())
    }

    fn clear(&self) -> vhdkit::Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

/// One merge of one chain.
pub(super) fn body(data: &[u8]) {
    let mut input = Input::new(data);
    let spec = workload::chain(&mut input, (2, NAMES.len()));
    let disk = SimDisk::new();
    let built = chains::build(&spec, |index| disk.file(NAMES[index]));
    let (storages, mut views) = (built.storages, built.views);
    if spec.format == Format::Vhdx {
        storages.iter().for_each(|storage| vary_zero_states(&**storage, input.byte()));
    }
    let count = storages.len();
    let target = 2 + input.below(count - 1);
    let source = 1 + input.below(target - 1);
    let relink = input.flag() && source > 1;
    let store = Arc::new(Kept::default());
    let options = || {
        let options = MergeOptions::between(source, target).relink(relink).jobs(1).checkpoint_every(1 << 13);
        options.store(Arc::clone(&store) as Arc<dyn CheckpointStore>)
    };
    let options = if input.one_in(4) { options().scan_zeros(false) } else { options() };
    let (mut whole, stopped) = (true, input.flag());
    if stopped {
        if interrupted(&mut input, &disk, &storages, &options) {
            store.clear().expect("memory forgets");
        }
        // Relinking is its last step: a run that got there is over.
        whole = chains::open(&storages, Access::Read).is_ok();
        assert!(whole || relink, "an interrupted merge leaves a chain that does not open");
        if whole {
            for depth in 0..source {
                assert_shows(&storages[depth..], &views[depth], &format!("layer {depth} after the interruption"));
            }
            if source == 1 && input.one_in(4) {
                written_between(&mut input, &storages, (spec.format, &mut views[0]));
            }
        }
    }
    if whole {
        let mut chain = chains::open(&storages, Access::Read).expect("opened before");
        merge_chain(&mut chain, &options, &Watch::none()).unwrap_or_else(|error| panic!("the merge: {error}"));
        chain.close().unwrap_or_else(|error| panic!("closing after the merge: {error}"));
    }
    // A relinked file stands on the target from now on, the files above it with it.
    for depth in if relink { source - 1..source } else { 0..source } {
        assert_shows(&storages[depth..], &views[depth], &format!("layer {depth} after ({source}, {target})"));
    }
    assert_shows(&storages[target - 1..], &views[source - 1], &format!("the target after ({source}, {target})"));
    let mut shorter = storages[..source - 1].to_vec();
    shorter.extend_from_slice(&storages[target - 1..]);
    if relink {
        for depth in 0..source - 1 {
            assert_shows(&shorter[depth..], &views[depth], &format!("layer {depth} over the target, relinked"));
        }
    }
    // An interruption may leave bits set past a smaller disk's end, where nobody looks.
    if !stopped {
        assert_well_formed(spec.format, &shorter, "after the merge");
    }
}

/// A run whose n-th operation of a kind fails; whether it got through all the same.
fn interrupted(input: &mut Input<'_>, disk: &SimDisk, storages: &[Arc<dyn Storage>], options: &MergeOptions) -> bool {
    let operations =
        [SimOperation::Read, SimOperation::Write, SimOperation::Zero, SimOperation::SetLen, SimOperation::Sync];
    let failure = input.pick(&[SimFailure::Io, SimFailure::NoSpace]);
    let fault = SimFault::nth(u64::from(input.byte()), failure).of(input.pick(&operations));
    let fault = if input.flag() { fault.from_then_on() } else { fault };
    let mut chain = chains::open(storages, Access::Read).expect("what was just made opens");
    disk.inject(fault.seed(u64::from(input.byte())));
    let outcome = merge_chain(&mut chain, options, &Watch::none());
    let closed = chain.close();
    assert_eq!(disk.changes_after_failure(), 0, "wrote on after a failure");
    disk.clear_faults();
    outcome.is_ok() && closed.is_ok()
}

/// Somebody uses the leaf between the two runs.
fn written_between(input: &mut Input<'_>, storages: &[Arc<dyn Storage>], (format, view): (Format, &mut Vec<u8>)) {
    let mut chain = chains::open(storages, Access::Recover).expect("an interrupted merge leaves a leaf to write to");
    let edit: Edit = workload::edit(input, format, view.len() as u64);
    chains::apply(&mut chain, view, &edit);
    chain.close().expect("memory takes writes");
}

/// VHDX only: turns ZERO entries (2) into UNMAPPED (3) or UNDEFINED (1), as other programs write them. All read as
/// zeros. The table of our own images is at 3 MiB.
fn vary_zero_states(storage: &dyn Storage, choice: u8) {
    let mut table = [0; 4096];
    storage.read_exact_at(&mut table, 3 << 20).expect("a table");
    for (index, entry) in table.chunks_exact_mut(8).enumerate() {
        if entry == 2u64.to_le_bytes() {
            entry[0] = [1, 2, 3][(index + usize::from(choice)) % 3];
        }
    }
    storage.write_all_at(&table, 3 << 20).expect("memory takes writes");
}
