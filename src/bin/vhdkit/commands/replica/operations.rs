//! The operations of relations and groups as subcommands.
//!
//! Owns: their names and options, those of waiting too. Must not know: what an operation does.

use super::job;
use crate::args::PlaceArgs;
use crate::commands::snapshot_set::seconds;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use vhdkit::ops::{CopyState, Operation, Replicas};

#[derive(Clone, Debug, Args)]
pub(super) struct Common {
    /// Where the records are
    #[arg(long, value_name = "DIR", default_value = ".vhdkit")]
    pub(super) registry: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) places: PlaceArgs,
}

impl Common {
    pub(super) fn replicas(&self) -> Replicas {
        Replicas::at(&self.registry, self.places.options())
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct OperationArgs {
    /// Which relation, or which group
    pub(super) id: String,
    /// Overlook states that speak against it; never what is wrong with a file
    #[arg(long)]
    pub(super) force: bool,
    /// How many threads copy [default: one per processor]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub(super) jobs: usize,
    #[command(flatten)]
    pub(super) wait: WaitArgs,
    #[command(flatten)]
    pub(super) common: Common,
}

/// How long an operation is waited for; without any of these, until its end.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct WaitArgs {
    /// Return as soon as this state is reached; the operation goes on in the background
    #[arg(long, value_name = "STATE", value_parser = job::state, conflicts_with = "no_wait")]
    pub(super) wait: Option<CopyState>,
    /// Return as soon as the operation has begun; it goes on in the background
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Wait no longer than this; the operation goes on in the background
    #[arg(long, value_name = "SECONDS", requires = "wait", value_parser = seconds)]
    pub(super) timeout: Option<f64>,
}

/// Waiting for what goes on already.
#[derive(Clone, Debug, Args)]
pub(super) struct Waiting {
    /// Which relation, or which group
    pub(super) id: String,
    /// The state to wait for
    #[arg(long = "for", value_name = "STATE", value_parser = job::state)]
    pub(super) state: CopyState,
    /// Wait no longer than this
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Option<f64>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// The operations that relations and groups have.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Modify {
    /// Give up a copy that was interrupted; the target is unusable until it is resynced
    Abort(OperationArgs),
    /// Make the replica
    Activate(OperationArgs),
    /// Stop, and forget how far it got
    Deactivate(OperationArgs),
    /// Forget the relation; both disks stay
    Detach(OperationArgs),
    /// As detach, but keep a record of the point in time
    Dissolve(OperationArgs),
    /// Go on with the replica, in a new leaf above it
    Failover(OperationArgs),
    /// Bring what was written since the failover back to the source
    Failback(OperationArgs),
    /// Separate the two, remembering what they are
    Fracture(OperationArgs),
    /// Make the target what the source is; for a snapshot, a new point in time
    ResyncReplica(OperationArgs),
    /// Make the source what the target is
    RestoreFromReplica(OperationArgs),
    /// Go on with a copy that was suspended
    Resume(OperationArgs),
    /// Not supported: synchronous copies need the live path of writes
    ResetToSync(OperationArgs),
    /// Copy on demand, as mirrors always do
    ResetToAsync(OperationArgs),
    /// Merge a snapshot away
    ReturnToResourcePool(OperationArgs),
    /// Swap source and target
    ReverseRoles(OperationArgs),
    /// As fracture; in a consistent group, all members or none
    Split(OperationArgs),
    /// Do not go on with an interrupted copy for now
    Suspend(OperationArgs),
    /// Back to before the replica was made
    Unprepare(OperationArgs),
}

impl Modify {
    pub(super) fn parts(&self) -> (Operation, &OperationArgs) {
        match self {
            Self::Abort(args) => (Operation::Abort, args),
            Self::Activate(args) => (Operation::Activate, args),
            Self::Deactivate(args) => (Operation::Deactivate, args),
            Self::Detach(args) => (Operation::Detach, args),
            Self::Dissolve(args) => (Operation::Dissolve, args),
            Self::Failover(args) => (Operation::Failover, args),
            Self::Failback(args) => (Operation::Failback, args),
            Self::Fracture(args) => (Operation::Fracture, args),
            Self::ResyncReplica(args) => (Operation::ResyncReplica, args),
            Self::RestoreFromReplica(args) => (Operation::RestoreFromReplica, args),
            Self::Resume(args) => (Operation::Resume, args),
            Self::ResetToSync(args) => (Operation::ResetToSync, args),
            Self::ResetToAsync(args) => (Operation::ResetToAsync, args),
            Self::ReturnToResourcePool(args) => (Operation::ReturnToResourcePool, args),
            Self::ReverseRoles(args) => (Operation::ReverseRoles, args),
            Self::Split(args) => (Operation::Split, args),
            Self::Suspend(args) => (Operation::Suspend, args),
            Self::Unprepare(args) => (Operation::Unprepare, args),
        }
    }
}
