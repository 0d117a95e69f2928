//! Which operation leads from which state to which: the table that a service publishes as its capabilities.
//!
//! Owns: the one table, and the refusals that rest on it. Must not know: what an operation does to files.

use super::words::{CopyState as State, Operation as Op, SyncType};
use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;

/// Where an operation leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leads {
    /// To this state.
    To(State),
    /// The state stays.
    Same,
    /// The relation is gone.
    Gone,
}

/// What is possible with one operation on relations of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// The operation.
    pub operation: Op,
    /// CIM's number of it.
    pub number: u16,
    /// Whether it is possible at all.
    pub supported: bool,
    /// Whether it is one of groups and not of single relations.
    pub groups_only: bool,
    /// The states it starts from.
    pub from: Vec<State>,
    /// Further states it starts from with force, which skips consistency warnings and never integrity checks.
    pub from_with_force: Vec<State>,
    /// Where it leads.
    pub leads: Option<Leads>,
}

/// What is possible with relations of `sync_type`, one entry for each operation.
#[must_use]
pub fn capabilities(sync_type: SyncType) -> Vec<Capability> {
    Op::ALL.into_iter().map(|operation| capability(sync_type, operation)).collect()
}

fn capability(sync_type: SyncType, operation: Op) -> Capability {
    let row = row(sync_type, operation);
    let (from, force, leads) = row.unwrap_or((&[], &[], Leads::Same));
    Capability {
        operation,
        number: operation.number(),
        supported: row.is_some() || is_for_groups(operation),
        groups_only: is_for_groups(operation),
        from: from.to_vec(),
        from_with_force: force.to_vec(),
        leads: row.is_some().then_some(leads),
    }
}

/// Operations that only a group has.
pub(super) const fn is_for_groups(operation: Op) -> bool {
    matches!(operation, Op::AddSyncPair | Op::RemoveSyncPair | Op::ActivateConsistency | Op::DeactivateConsistency)
}

type Row = (&'static [State], &'static [State], Leads);

/// States in which the relation is, as far as it goes, in order.
const SETTLED: &[State] = &[State::Synchronized, State::Split, State::Fractured];
/// All the others: leaving them loses the knowledge of what the two disks are to each other.
const UNSETTLED: &[State] = &[
    State::Initialized,
    State::Prepared,
    State::Inactive,
    State::Unsynchronized,
    State::Suspended,
    State::Aborted,
    State::Broken,
    State::Skewed,
    State::Partitioned,
    State::Invalid,
    State::Restored,
    State::Failedover,
];

/// The row of an operation on one relation; `None` where it is not supported.
fn row(sync_type: SyncType, operation: Op) -> Option<Row> {
    let copies = sync_type != SyncType::Snapshot;
    let row: Row = match operation {
        Op::Activate => (&[State::Inactive, State::Prepared, State::Initialized], &[], Leads::To(State::Synchronized)),
        Op::Suspend if copies => (&[State::Unsynchronized], &[], Leads::To(State::Suspended)),
        Op::Resume if copies => (&[State::Suspended], &[], Leads::To(State::Synchronized)),
        Op::Abort if copies => {
            (&[State::Unsynchronized, State::Suspended, State::Aborted], &[], Leads::To(State::Aborted))
        }
        Op::Fracture => (&[State::Synchronized], &[State::Unsynchronized], Leads::To(State::Fractured)),
        Op::Split => (&[State::Synchronized], &[], Leads::To(State::Split)),
        Op::ResyncReplica => (
            &[
                State::Fractured,
                State::Split,
                State::Broken,
                State::Aborted,
                State::Unsynchronized,
                State::Restored,
                State::Synchronized,
            ],
            &[State::Skewed],
            Leads::To(State::Synchronized),
        ),
        Op::RestoreFromReplica => (SETTLED, &[], Leads::To(State::Restored)),
        Op::Failover => (SETTLED, &[State::Broken, State::Partitioned], Leads::To(State::Failedover)),
        Op::Failback => (&[State::Failedover], &[], Leads::To(State::Synchronized)),
        Op::ReverseRoles if copies => (&[State::Synchronized, State::Split, State::Failedover], &[], Leads::Same),
        Op::Detach | Op::Dissolve => (SETTLED, UNSETTLED, Leads::Gone),
        Op::Deactivate if sync_type != SyncType::Clone => (
            &[State::Synchronized, State::Fractured, State::Split, State::Unsynchronized, State::Suspended],
            &[],
            Leads::To(State::Inactive),
        ),
        Op::Unprepare if sync_type != SyncType::Clone => {
            (&[State::Prepared, State::Inactive, State::Initialized], &[], Leads::To(State::Initialized))
        }
        Op::ReturnToResourcePool if !copies => (SETTLED, &[State::Restored, State::Inactive], Leads::Gone),
        Op::ResetToAsync if sync_type == SyncType::Mirror => (SETTLED, UNSETTLED, Leads::Same),
        _ => return None,
    };
    Some(row)
}

/// Lets `operation` through on a relation of `sync_type` in `state`, and says where it leads.
///
/// # Errors
/// `Unsupported` when it never is possible; `InvalidInput` when it is one of groups; `Refused` in this state.
pub(super) fn check(sync_type: SyncType, operation: Op, state: State, force: bool) -> Result<Leads> {
    if is_for_groups(operation) {
        let message = format_args!("{operation} is something to do to a group").to_string();
        return Err(Error::new(ErrorKind::InvalidInput, message).with_hint("`vhdkit group` does it"));
    }
    let Some((from, with_force, leads)) = row(sync_type, operation) else {
        let message = format_args!("{operation} is not supported for a {sync_type}").to_string();
        let hint = match operation {
            Op::ResetToSync => "synchronous copies need the live path of a host's writes, which no offline tool has",
            _ => "`vhdkit replica capabilities` lists what is",
        };
        return Err(Error::new(ErrorKind::Unsupported, message).with_hint(hint));
    };
    if from.contains(&state) || (force && with_force.contains(&state)) {
        return Ok(leads);
    }
    let list = |states: &[State]| states.iter().map(State::to_string).collect::<Vec<_>>().join(", ");
    let message = format!("{operation} is possible in these states only: {}; this one is {state}", list(from));
    let error = Error::new(ErrorKind::Refused, message);
    Err(if with_force.contains(&state) {
        error.with_hint("with --force it is possible in this state too")
    } else {
        error.with_hint("`vhdkit replica show` says how it stands with the relation")
    })
}
