//! What is done to the names of a directory, step by step.
//!
//! Owns: telling the tests of each step before it is taken, and leaving one out for them. Outside of tests it does nothing.
//! Must not know: what the steps are for.

use std::path::PathBuf;

/// A step that changes which name leads to what, or makes that durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A new file, with all that is written to it until its next sync.
    Create(PathBuf),
    /// What was written to the file is durable.
    SyncFile(PathBuf),
    /// The file of the first name has the second from now on, in place of what had it.
    Rename(PathBuf, PathBuf),
    /// The name is gone.
    Remove(PathBuf),
    /// The names in the directory are durable as they are.
    SyncDirectory(PathBuf),
}

/// Whether a step is to be taken.
#[cfg(not(test))]
#[inline]
pub(super) fn is_taken(_: impl FnOnce() -> Step) -> bool {
    true
}

#[cfg(test)]
pub(super) use recorder::is_taken;
#[cfg(test)]
pub(crate) use recorder::{Without, record};

#[cfg(test)]
mod recorder {
    use super::Step;
    use std::cell::RefCell;

    /// One step to leave out: its kind, and how many of that kind are taken before it.
    pub(crate) type Without = Option<(fn(&Step) -> bool, usize)>;

    #[derive(Default)]
    struct Recorder {
        steps: Vec<Step>,
        without: Without,
    }

    thread_local! {
        static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
    }

    pub(in crate::storage::atomic) fn is_taken(step: impl FnOnce() -> Step) -> bool {
        RECORDER.with_borrow_mut(|recorder| {
            let Some(recorder) = recorder else { return true };
            let step = step();
            if let Some((kind, before)) = &mut recorder.without
                && kind(&step)
            {
                match before.checked_sub(1) {
                    Some(left) => *before = left,
                    None => {
                        recorder.without = None;
                        return false;
                    }
                }
            }
            recorder.steps.push(step);
            true
        })
    }

    /// The steps that `run` takes in this thread, but for the one to leave out; `None` when there is no such step.
    pub(crate) fn record(without: Without, run: impl FnOnce()) -> Option<Vec<Step>> {
        let wanted = without.is_some();
        RECORDER.set(Some(Recorder { steps: Vec::new(), without }));
        run();
        let recorder = RECORDER.take().expect("it was put there");
        (!wanted || recorder.without.is_none()).then_some(recorder.steps)
    }
}
