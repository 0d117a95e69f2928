//! The words of replication, with the numbers that CIM gives them.
//!
//! Owns: types of relations, operations, states, results. Must not know: which operation leads where.
//!
//! Numbers: CIM_ReplicationService.ModifyReplicaSynchronization and CIM_StorageSynchronized, as SMI-S uses them.

use crate::error::ErrorKind;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a relation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum SyncType {
    /// An independent copy, refreshed on demand; while it is fractured a change log tells what it lacks.
    Mirror = 6,
    /// A point in time: the frozen parent below the live leaf.
    Snapshot = 7,
    /// An independent copy.
    Clone = 8,
}

impl SyncType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mirror, Self::Snapshot, Self::Clone];
}

/// What is done to a relation or a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum Operation {
    /// Give up a copy that is under way; its target is unusable until it is resynced.
    Abort = 2,
    /// Deal with the members of a group together from now on.
    ActivateConsistency = 3,
    /// Make the replica.
    Activate = 4,
    /// Take a relation into a group.
    AddSyncPair = 5,
    /// Deal with the members of a group one by one from now on.
    DeactivateConsistency = 6,
    /// Stop, and forget how far it got.
    Deactivate = 7,
    /// Forget the relation; both disks stay.
    Detach = 8,
    /// As Detach, but keep a record of what the point in time was.
    Dissolve = 9,
    /// Go on with the replica, through a new leaf above it.
    Failover = 10,
    /// Bring what was written since the failover back to the source.
    Failback = 11,
    /// Separate the two, remembering what they are.
    Fracture = 12,
    /// Take a relation out of its group.
    RemoveSyncPair = 13,
    /// Make the target show what the source shows; for a snapshot, a new point in time.
    ResyncReplica = 14,
    /// Make the source show what the target shows.
    RestoreFromReplica = 15,
    /// Go on with a copy that was suspended.
    Resume = 16,
    /// Copy synchronously. Not supported: that needs the live I/O path.
    ResetToSync = 17,
    /// Copy on demand, as it always does.
    ResetToAsync = 18,
    /// Merge a snapshot away.
    ReturnToResourcePool = 19,
    /// Swap source and target.
    ReverseRoles = 20,
    /// As Fracture; in a consistent group all members or none.
    Split = 21,
    /// Do not go on with an interrupted copy for now.
    Suspend = 22,
    /// Back to before it was made.
    Unprepare = 23,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::Abort,
        Self::ActivateConsistency,
        Self::Activate,
        Self::AddSyncPair,
        Self::DeactivateConsistency,
        Self::Deactivate,
        Self::Detach,
        Self::Dissolve,
        Self::Failover,
        Self::Failback,
        Self::Fracture,
        Self::RemoveSyncPair,
        Self::ResyncReplica,
        Self::RestoreFromReplica,
        Self::Resume,
        Self::ResetToSync,
        Self::ResetToAsync,
        Self::ReturnToResourcePool,
        Self::ReverseRoles,
        Self::Split,
        Self::Suspend,
        Self::Unprepare,
    ];
}

/// How it stands with a relation or a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum CopyState {
    /// It exists, and nothing was copied.
    Initialized = 2,
    /// The target is not what the source is: a copy is under way or was interrupted, or the source was written to.
    Unsynchronized = 3,
    /// The target is what the source was at the last copy, and neither was written to since.
    Synchronized = 4,
    /// A copy failed.
    Broken = 5,
    /// Separated.
    Fractured = 6,
    /// Separated, with the rest of its group.
    Split = 7,
    /// Switched off.
    Inactive = 8,
    /// An interrupted copy that is not to go on for now.
    Suspended = 9,
    /// The replica is in use.
    Failedover = 10,
    /// Ready to be made.
    Prepared = 11,
    /// A copy was given up: the target is unusable.
    Aborted = 12,
    /// Somebody wrote to the target.
    Skewed = 13,
    /// The members of a group are in different states.
    Mixed = 14,
    /// There is no such thing here.
    NotApplicable = 15,
    /// A file is missing.
    Partitioned = 16,
    /// A chain does not open.
    Invalid = 17,
    /// The source was made what the target is.
    Restored = 18,
}

impl CopyState {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Initialized,
        Self::Unsynchronized,
        Self::Synchronized,
        Self::Broken,
        Self::Fractured,
        Self::Split,
        Self::Inactive,
        Self::Suspended,
        Self::Failedover,
        Self::Prepared,
        Self::Aborted,
        Self::Skewed,
        Self::Mixed,
        Self::NotApplicable,
        Self::Partitioned,
        Self::Invalid,
        Self::Restored,
    ];
}

/// What CIM calls the answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u16)]
pub enum ReturnCode {
    /// Done.
    Completed = 0,
    /// Never possible here.
    NotSupported = 1,
    /// It failed in a way that has no other number.
    Unspecified = 2,
    /// It took too long.
    Timeout = 3,
    /// It failed.
    Failed = 4,
    /// The request makes no sense, or not in this state.
    InvalidParameter = 5,
    /// Somebody else has a file.
    InUse = 6,
    /// A job goes on.
    JobStarted = 4096,
}

impl ReturnCode {
    /// The number of a failure.
    #[must_use]
    pub const fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Unsupported => Self::NotSupported,
            ErrorKind::InUse => Self::InUse,
            ErrorKind::InvalidInput | ErrorKind::Refused | ErrorKind::NotFound => Self::InvalidParameter,
            ErrorKind::Cancelled => Self::Unspecified,
            _ => Self::Failed,
        }
    }
}

/// What all the words here have.
macro_rules! words {
    ($($word:ident),*) => {$(
        impl $word {
            /// CIM's number.
            #[must_use]
            pub const fn number(self) -> u16 {
                self as u16
            }
        }

        /// The name in JSON, which is that of the program's options too.
        impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match serde_json::to_value(self) {
                    Ok(serde_json::Value::String(name)) => f.write_str(&name),
                    _ => Err(fmt::Error),
                }
            }
        }
    )*};
}

words!(SyncType, Operation, CopyState, ReturnCode);
