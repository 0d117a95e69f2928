//! How far an operation is, shown on standard error.
//!
//! Owns: the bar, the JSON lines, how often either is drawn. Must not know: which operation runs.

use crate::args::{DisplayArgs, ProgressMode};
use crate::size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use vhdkit::{Observer, Progress};

/// Milliseconds between two updates.
const INTERVAL: u64 = 100;

/// Shows progress; dropping it shows the last state and takes the bar away.
#[derive(Debug)]
pub(crate) struct Reporter {
    view: View,
    start: Instant,
    /// When the next update is due, in milliseconds after the start.
    due: AtomicU64,
    done: AtomicU64,
    total: AtomicU64,
    moved: AtomicU64,
    /// What was moved when `done` last rose.
    moved_then: AtomicU64,
}

#[derive(Debug)]
enum View {
    Nothing,
    Bar(ProgressBar),
    Json,
}

impl Reporter {
    /// A reporter as `display` asks for. `machine` says that standard output is for a program, so that a person's bar is
    /// out of place unless asked for.
    pub(crate) fn new(display: DisplayArgs, machine: bool) -> Self {
        let view = match display.progress {
            ProgressMode::Json => View::Json,
            ProgressMode::Auto if !machine && !display.quiet && io::stderr().is_terminal() => View::Bar(bar()),
            ProgressMode::Auto | ProgressMode::None => View::Nothing,
        };
        let zero = || AtomicU64::new(0);
        Self {
            view,
            start: Instant::now(),
            due: zero(),
            done: zero(),
            total: zero(),
            moved: zero(),
            moved_then: zero(),
        }
    }

    fn latest(&self) -> Progress {
        let value = |of: &AtomicU64| of.load(Ordering::Relaxed);
        Progress { done: value(&self.done), total: value(&self.total), moved: value(&self.moved) }
    }

    /// How far a bar reaches. `done` rises by large steps; what was moved since the last one is dealt with too.
    fn position(&self) -> u64 {
        let Progress { done, total, moved } = self.latest();
        done.saturating_add(moved.saturating_sub(self.moved_then.load(Ordering::Relaxed))).min(total)
    }

    /// Whether an update is due; of several threads that ask at once one is told so.
    fn is_due(&self) -> bool {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let due = self.due.load(Ordering::Relaxed);
        let next = now.saturating_add(INTERVAL);
        now >= due && self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn show(&self) {
        let Progress { done, total, moved } = self.latest();
        match &self.view {
            View::Nothing => {}
            View::Bar(bar) => {
                bar.set_length(total);
                bar.set_position(self.position());
                bar.set_message(size::human(moved));
            }
            View::Json => {
                let line = format!("{{\"event\":\"progress\",\"done\":{done},\"total\":{total},\"moved\":{moved}}}\n");
                // Progress is a courtesy: nobody reading it is no reason to stop.
                let _ = io::stderr().lock().write_all(line.as_bytes());
            }
        }
    }
}

impl Observer for Reporter {
    fn progress(&self, progress: Progress) {
        if matches!(self.view, View::Nothing) {
            return;
        }
        // Calls from several threads may arrive out of order; what is shown never goes back.
        if self.done.fetch_max(progress.done, Ordering::Relaxed) < progress.done {
            self.moved_then.fetch_max(progress.moved, Ordering::Relaxed);
        }
        self.total.fetch_max(progress.total, Ordering::Relaxed);
        self.moved.fetch_max(progress.moved, Ordering::Relaxed);
        if self.is_due() {
            self.show();
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.show();
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{wide_bar} {percent:>3} % of {binary_total_bytes}, {msg} moved, {eta} left");
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_numbers_are_kept_and_updates_are_spaced() {
        let display = DisplayArgs { progress: ProgressMode::None, quiet: false };
        let mut reporter = Reporter::new(display, false);
        reporter.progress(Progress { done: 1, total: 2, moved: 3 });
        assert_eq!(reporter.latest(), Progress::default(), "nobody is shown anything");
        reporter.view = View::Bar(ProgressBar::hidden());
        reporter.progress(Progress { done: 5, total: 9, moved: 7 });
        reporter.progress(Progress { done: 4, total: 9, moved: 8 });
        assert_eq!(reporter.latest(), Progress { done: 5, total: 9, moved: 8 });
        assert_eq!(reporter.position(), 6, "one byte was moved after the step to 5");
        reporter.progress(Progress { done: 5, total: 9, moved: 80 });
        assert_eq!(reporter.position(), 9);
        reporter.due.store(u64::MAX, Ordering::Relaxed);
        assert!(!reporter.is_due());
        reporter.due.store(0, Ordering::Relaxed);
        assert!(reporter.is_due());
        assert!(reporter.due.load(Ordering::Relaxed) >= INTERVAL);
    }
}
