//! Long operations on a thread of their own.
//!
//! Owns: the life of a job and who may ask what of it. Must not know: which operation runs.
//!
//! The states carry the numbers of CIM_ConcreteJob (DMTF), so that management code can pass them on. In the words of
//! IVssAsync: pending is any state up to `ShuttingDown`, finished is `Completed`, cancelled is `Terminated`.

use crate::error::{Error, ErrorKind, Result};
use crate::watch::{CancelToken, Observer, Progress, Watch};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[repr(u16)]
pub enum JobState {
    /// Made, its thread not yet running.
    New = 2,
    /// The thread runs, the operation has not begun.
    Starting = 3,
    /// At work.
    Running = 4,
    /// Asked to pause; it stands still as soon as every worker has finished its chunk.
    Suspended = 5,
    /// Asked to stop; it goes on until every worker has finished its chunk.
    ShuttingDown = 6,
    /// Ended with a result.
    Completed = 7,
    /// Ended because it was cancelled.
    Terminated = 8,
    /// Ended by a panic; nothing can be said of how far it got.
    Killed = 9,
    /// Ended with an error.
    Exception = 10,
}

impl JobState {
    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Terminated | Self::Killed | Self::Exception)
    }
}

/// What asking for a cancel led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// The job was asked to stop, now or by an earlier call, and has not ended yet.
    Requested,
    /// It had completed already.
    AlreadyFinished,
    /// It had ended by an earlier cancel.
    AlreadyCancelled,
    /// It had failed already.
    AlreadyFailed,
}

/// What waiting led to. Says nothing about success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The job has ended.
    Ended,
    /// The time was up first.
    StillPending,
}

/// An operation on a thread of its own. Dropping the handle leaves it running; its result is then lost.
pub struct Job<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
    token: CancelToken,
}

struct Inner<T> {
    state: JobState,
    progress: Progress,
    result: Option<Result<T>>,
}

impl<T> fmt::Debug for Job<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, progress) = self.status();
        f.debug_struct("Job").field("state", &state).field("progress", &progress).finish()
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        // The data are plain values that are whole after every statement; a panic elsewhere does not spoil them.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves from one of `from` to `to`; leaves any other state as it is.
    fn step(&self, from: &[JobState], to: JobState) {
        let mut inner = self.lock();
        if from.contains(&inner.state) {
            inner.state = to;
            self.changed.notify_all();
        }
    }

    fn end(&self, state: JobState, result: Result<T>) {
        let mut inner = self.lock();
        inner.state = state;
        inner.result = Some(result);
        self.changed.notify_all();
    }
}

impl<T: Send> Observer for Shared<T> {
    fn progress(&self, progress: Progress) {
        self.lock().progress = progress;
    }
}

impl<T: Send + 'static> Job<T> {
    /// Starts `work` on a new thread. It is given the watch to pass to the operation.
    ///
    /// ```no_run
    /// # use vhdkit::ops::{Job, MergeOptions, merge};
    /// let job = Job::spawn(|watch| merge("leaf.avhdx", &MergeOptions::depth(1), watch))?;
    /// job.wait(None);
    /// let report = job.result()?;
    /// # Ok::<(), vhdkit::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn(work: impl FnOnce(&Watch<'_>) -> Result<T> + Send + 'static) -> Result<Self> {
        let inner = Inner { state: JobState::New, progress: Progress::default(), result: None };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new(), token: CancelToken::new() });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("vhdkit-job".to_owned()).spawn(move || run(&of_thread, work));
        thread.map_err(|error| Error::io("start the job's thread", error))?;
        Ok(Self { shared })
    }
}

fn run<T: Send + 'static>(shared: &Shared<T>, work: impl FnOnce(&Watch<'_>) -> Result<T>) {
    shared.step(&[JobState::New], JobState::Starting);
    shared.step(&[JobState::Starting], JobState::Running);
    let watch = Watch::none().observer(shared).cancel(&shared.token);
    match catch_unwind(AssertUnwindSafe(|| work(&watch))) {
        Ok(Ok(result)) => shared.end(JobState::Completed, Ok(result)),
        Ok(Err(error)) if error.kind() == ErrorKind::Cancelled => shared.end(JobState::Terminated, Err(error)),
        Ok(Err(error)) => shared.end(JobState::Exception, Err(error)),
        Err(_) => {
            let error = Error::new(ErrorKind::Io, "the job's thread panicked: this is a fault of the program");
            shared.end(JobState::Killed, Err(error));
        }
    }
}

impl<T> Job<T> {
    /// Where the job is and how far, both of one moment. Progress is a ratio and may fall; all done is not yet ended.
    #[must_use]
    pub fn status(&self) -> (JobState, Progress) {
        let inner = self.shared.lock();
        (inner.state, inner.progress)
    }

    /// Asks the job to stop. It answers within one chunk of every worker. Asking again is harmless.
    pub fn cancel(&self) -> Cancel {
        // Pulled under the lock: a job that is not final here sees it, and `Requested` is true when it is answered.
        let mut inner = self.shared.lock();
        match inner.state {
            JobState::Completed => Cancel::AlreadyFinished,
            JobState::Terminated => Cancel::AlreadyCancelled,
            JobState::Killed | JobState::Exception => Cancel::AlreadyFailed,
            _ => {
                inner.state = JobState::ShuttingDown;
                self.shared.token.cancel();
                self.shared.changed.notify_all();
                Cancel::Requested
            }
        }
    }

    /// Asks the job to stand still, keeping its locks and its place. No effect on one that is ending or has ended.
    pub fn suspend(&self) {
        let mut inner = self.shared.lock();
        if matches!(inner.state, JobState::New | JobState::Starting | JobState::Running) {
            inner.state = JobState::Suspended;
            self.shared.token.suspend();
        }
    }

    /// Lets a suspended job go on. No effect on any other.
    pub fn resume(&self) {
        let mut inner = self.shared.lock();
        if inner.state == JobState::Suspended {
            inner.state = JobState::Running;
            self.shared.token.resume();
        }
    }

    /// Waits until the job has ended, at most `timeout`; `None` waits for ever.
    pub fn wait(&self, timeout: Option<Duration>) -> Wait {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut inner = self.shared.lock();
        while !inner.state.is_final() {
            inner = match deadline {
                None => self.shared.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                        return Wait::StillPending;
                    };
                    self.shared.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Wait::Ended
    }

    /// Waits for the end and answers what came of it.
    ///
    /// # Errors
    /// The operation's error; `Cancelled` when it was stopped.
    pub fn result(self) -> Result<T> {
        self.wait(None);
        self.shared.lock().result.take().unwrap_or_else(|| Err(Error::new(ErrorKind::Io, "the job left no result")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A job that works in steps: each message lets it do one, and it answers with the number of the step.
    fn stepped() -> (Job<u64>, mpsc::Sender<()>, mpsc::Receiver<u64>) {
        let (go, steps) = mpsc::channel::<()>();
        let (say, said) = mpsc::channel();
        let job = Job::spawn(move |watch| {
            let mut done = 0;
            while steps.recv().is_ok() {
                watch.check()?;
                done += 1;
                watch.report(Progress { done, total: 4, moved: done });
                say.send(done).ok();
            }
            Ok(done)
        });
        (job.unwrap(), go, said)
    }

    #[test]
    fn a_job_reports_and_completes() {
        let (job, go, said) = stepped();
        go.send(()).unwrap();
        assert_eq!(said.recv(), Ok(1));
        assert_eq!(job.status(), (JobState::Running, Progress { done: 1, total: 4, moved: 1 }));
        assert_eq!(job.wait(Some(Duration::ZERO)), Wait::StillPending);
        drop(go);
        assert_eq!(job.wait(None), Wait::Ended);
        assert_eq!(job.cancel(), Cancel::AlreadyFinished);
        assert_eq!(job.status().0, JobState::Completed);
        assert_eq!(job.result().unwrap(), 1);
    }

    #[test]
    fn cancelling_twice_and_after_the_end_says_what_happened() {
        let (job, go, _said) = stepped();
        assert_eq!(job.cancel(), Cancel::Requested);
        assert_eq!(job.cancel(), Cancel::Requested);
        assert_eq!(job.status().0, JobState::ShuttingDown);
        go.send(()).unwrap();
        assert_eq!(job.wait(None), Wait::Ended);
        assert_eq!(job.cancel(), Cancel::AlreadyCancelled);
        assert_eq!(job.status().0, JobState::Terminated);
        assert_eq!(job.result().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn a_suspended_job_stands_still_until_resumed_or_cancelled() {
        let (job, go, said) = stepped();
        job.suspend();
        assert_eq!(job.status().0, JobState::Suspended);
        go.send(()).unwrap();
        assert!(said.recv_timeout(Duration::from_millis(50)).is_err(), "it does no step");
        job.resume();
        assert_eq!(said.recv(), Ok(1));
        job.suspend();
        go.send(()).unwrap();
        assert_eq!(job.cancel(), Cancel::Requested);
        job.resume();
        assert_eq!(job.wait(None), Wait::Ended);
        assert_eq!(job.result().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn failures_and_panics_are_told_apart() {
        let failed = Job::<()>::spawn(|_| Err(Error::new(ErrorKind::Corrupt, "bad"))).unwrap();
        failed.wait(None);
        assert_eq!((failed.status().0, failed.cancel()), (JobState::Exception, Cancel::AlreadyFailed));
        let panicked = Job::<()>::spawn(|_| std::panic::resume_unwind(Box::new("on purpose"))).unwrap();
        panicked.wait(None);
        assert_eq!((panicked.status().0, panicked.cancel()), (JobState::Killed, Cancel::AlreadyFailed));
        assert!(panicked.result().is_err());
    }
}
