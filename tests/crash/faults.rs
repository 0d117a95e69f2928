//! Bug this finds: an operation that fails and is taken for done, or after which the handle writes on, so that the source
//! of a merge, or a guest's disk, shows other bytes than it may, or the merge cannot be run again.

use crate::budget::say;
use crate::generate::{self, cut_off};
use crate::guest::{self, Guest};
use crate::merge::Merge;
use vhdkit::Format;
use vhdkit::storage::sim::{SimDisk, SimFailure, SimFault, SimOperation};

/// What comes after the first operation that fails.
#[derive(Clone, Copy, Debug)]
enum Then {
    AllFail,
    EveryFails(u64),
    NoneFails,
}

/// Every operation that changes something fails, and all after it, or that one alone: with an I/O error, because the medium
/// is full, or, for a sync, so that all that it should have made durable is lost. Then every read fails, or comes short: all
/// from one on, that one alone, or some of them.
fn each_fault(mut met: impl FnMut(SimFault) -> Result<bool, String>, stride: usize) -> Result<u64, String> {
    let mut faults = 0;
    let read = Some(SimOperation::Read);
    let kinds: [(Option<SimOperation>, SimFailure, Then, usize); 9] = [
        (None, SimFailure::Io, Then::AllFail, 1),
        (None, SimFailure::Io, Then::NoneFails, 1),
        (None, SimFailure::NoSpace, Then::AllFail, 1),
        (Some(SimOperation::Sync), SimFailure::LostWrites, Then::AllFail, 1),
        (read, SimFailure::Io, Then::AllFail, stride),
        (read, SimFailure::Eof, Then::AllFail, stride),
        (read, SimFailure::Io, Then::NoneFails, stride + 1),
        (read, SimFailure::Io, Then::EveryFails(3), 2 * stride + 1),
        (read, SimFailure::Io, Then::EveryFails(7), 2 * stride + 3),
    ];
    for (operation, failure, then, stride) in kinds {
        for skip in (0u64..).step_by(stride) {
            let fault = SimFault::nth(skip, failure);
            let fault = operation.map_or(fault.clone(), |operation| fault.of(operation));
            let fault = match then {
                Then::AllFail => fault.from_then_on(),
                Then::EveryFails(nth) => fault.every(nth),
                Then::NoneFails => fault,
            };
            let at = |error: String| format!("{failure:?} of {operation:?} number {skip}, then {then:?}: {error}");
            if !met(fault).map_err(at)? {
                break;
            }
            faults += 1;
        }
    }
    Ok(faults)
}

/// Runs the merge with a fault. Everything that holds after a crash holds after a failure too, whether the machine then
/// goes down or not.
fn merge_survives(merge: &Merge, fault: SimFault) -> Result<bool, String> {
    let disk = merge.base.fork();
    disk.inject(fault);
    let done = merge.merge(&disk);
    let failures = disk.failures();
    let Err(error) = done else {
        // What failed was not needed.
        disk.clear_faults();
        merge.check_done(&disk, &merge.views).map_err(|error| format!("done, but {error}"))?;
        return Ok(failures > 0);
    };
    if disk.changes_after_failure() > 0 {
        return Err(format!("a handle wrote on after: {error}"));
    }
    disk.clear_faults();
    let judge = |disk: &SimDisk| merge.judge(disk, &merge.views);
    judge(&disk.fork()).map_err(|error| format!("as it reads: {error}"))?;
    judge(&cut_off(&disk)).map_err(|error| format!("after a crash: {error}"))?;
    Ok(true)
}

fn merges(format: Format, stride: usize) {
    let mut faults = 0;
    for spec in generate::known(format) {
        let merge = Merge::new(spec);
        let met = each_fault(|fault| merge_survives(&merge, fault), stride);
        faults += met.unwrap_or_else(|error| panic!("{}: {error}", merge.spec.name));
    }
    say(&format!("faults injected into {format} merges: {faults}, none against the rules"));
    assert!(faults > 1000, "{faults}");
}

fn guests(format: Format, stride: usize) {
    let mut faults = 0;
    for spec in guest::known(format) {
        let guest = Guest::new(spec);
        let met = each_fault(|fault| guest.survives(fault), stride);
        faults += met.unwrap_or_else(|error| panic!("{}: {error}", guest.spec.name));
    }
    say(&format!("faults injected into {format} guests: {faults}, none against the rules"));
    assert!(faults > 300, "{faults}");
}

#[test]
fn vhd_merges_survive_every_failure() {
    merges(Format::Vhd, 7);
}

#[test]
fn vhdx_merges_survive_every_failure() {
    merges(Format::Vhdx, 7);
}

#[test]
fn vhd_guests_survive_every_failure() {
    guests(Format::Vhd, 3);
}

#[test]
fn vhdx_guests_survive_every_failure() {
    guests(Format::Vhdx, 3);
}
