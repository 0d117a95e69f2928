//! Where a session stands, and what it came to.
//!
//! Owns: the states and the report. Must not know: how one state leads to the next.

use super::journal::Recovered;
use super::plan::SnapshotDisk;
use serde::Serialize;
use std::fmt;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// Nothing was done.
    New,
    /// Every participant knows of the set.
    Prepared,
    /// Every participant holds still.
    Frozen,
    /// The new leaves are there.
    Committed,
    /// Everybody goes on; the set stays.
    Post,
    /// Over, with a set.
    Completed,
    /// Over, without one.
    Aborted,
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Prepared => "prepared",
            Self::Frozen => "frozen",
            Self::Committed => "committed",
            Self::Post => "past its point of no return",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
        })
    }
}

/// What a set came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionReport {
    /// The session.
    pub id: String,
    /// The disks and their new leaves.
    pub disks: Vec<SnapshotDisk>,
    /// For how long participants were frozen, in milliseconds.
    pub frozen_ms: u64,
    /// What participants answered that did not like `post`.
    pub post_failures: Vec<String>,
    /// Sessions whose process had died, which were ended first.
    pub recovered: Vec<Recovered>,
}
