//! Repairing a damaged image in place: what a check called repairable is mended, no readable byte changes, and the way
//! back leads to every byte that was there.
//!
//! Owns: what a safe repair promises.

use crate::damage::damaged;
use crate::guarded::Guarded;
use crate::input::Input;
use crate::scratch;
use crate::subjects::{VHD, VHDX};
use crate::views::{self, Windows, assert_typed, first_difference};
use std::path::Path;
use vhdkit::ops::{CheckOptions, CheckReport, CheckedFinding, RepairOptions, check, repair, undo_repair};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{Fault, Severity, Structure};

/// Longer files are left to the other targets: this one writes them.
const MAX_LEN: u64 = 1 << 30;

/// One of all images, damaged, repaired, and damaged again by taking that back.
pub(super) fn body(data: &[u8]) {
    let mut input = Input::new(data);
    let subjects = [&**VHD, &**VHDX][input.below(2)];
    let subject = &subjects[input.below(subjects.len())];
    let before = damaged(&mut input, subject);
    if before.len().is_ok_and(|len| len > MAX_LEN) {
        return;
    }
    let folder = scratch::folder();
    let path = folder.path().join("disk");
    scratch::write(&path, &before);
    let parents = &subject.storages[1..];
    let found = match check(&path, &CheckOptions::new()) {
        Ok(report) => report,
        Err(error) => {
            assert_typed(&error);
            let refused = repair(&path, &RepairOptions::new()).expect_err("what cannot be checked cannot be repaired");
            assert_typed(&refused);
            return assert_same(&path, &before, "after a refused repair");
        }
    };
    let seen = seen(&before, parents);
    let plan = repair(&path, &RepairOptions::new().dry_run(true));
    assert_same(&path, &before, "after a dry run");
    let done = match (plan, repair(&path, &RepairOptions::new())) {
        (Ok(plan), Ok(done)) => {
            assert_eq!(plan.repairs, done.repairs, "planned, made");
            done
        }
        (plan, Err(error)) => {
            assert!(!error.to_string().contains("did not help"), "a repair that does not help: {error}");
            assert!(plan.is_err(), "planned, but: {error}");
            assert_typed(&error);
            return assert_same(&path, &before, "after a refused repair");
        }
        (Err(error), Ok(_)) => panic!("made, though not planned: {error}"),
    };
    assert!(done.repairs.iter().all(|one| one.safe && one.loses.is_empty()), "{:?}", done.repairs);
    let now = check(&path, &CheckOptions::new()).unwrap_or_else(|error| panic!("after a repair: {error}"));
    assert_mended(&found, &now, &format!("{:?}", done.repairs));
    compare(&scratch::read(&path), parents, &seen);
    let again = repair(&path, &RepairOptions::new().dry_run(true)).expect("a repaired image can be planned for");
    assert_eq!(again.repairs, [], "wanted again");
    if done.repairs.is_empty() {
        assert!(done.undo.is_none());
        return assert_same(&path, &before, "after nothing to repair");
    }
    undo_repair(&path).unwrap_or_else(|error| panic!("the way back after {:?}: {error}", done.repairs));
    assert_same(&path, &before, "after the way back");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "files left beside the image");
}

/// What the disk shows, when it opens.
fn seen(file: &MemoryStorage, parents: &[MemoryStorage]) -> Option<(u64, Windows)> {
    let chain = views::open(Guarded::for_reading(file), parents, Access::Read).ok()?;
    Some((chain.virtual_size(), views::read(&chain)))
}

/// All that was readable still is.
fn compare(file: &MemoryStorage, parents: &[MemoryStorage], before: &Option<(u64, Windows)>) {
    let Some((size, before)) = before else { return };
    let (now_size, now) = seen(file, parents).expect("a repaired image opens when the damaged one did");
    assert_eq!(*size, now_size, "the size of the disk");
    for ((at, old), (_, new)) in before.iter().zip(&now) {
        let Ok(old) = old else { continue };
        let new = new.as_ref().unwrap_or_else(|error| panic!("{at:#x} no longer reads: {error}"));
        assert!(old == new, "a repair changed {at:#x}: {}", first_difference(old, new));
    }
}

fn findings(report: &CheckReport) -> impl Iterator<Item = &CheckedFinding> {
    report.files.iter().flat_map(|file| &file.findings)
}

/// Nothing is left that was called repairable, and nothing worse came of it.
fn assert_mended(before: &CheckReport, after: &CheckReport, repairs: &str) {
    let left: Vec<String> =
        findings(after).filter(|one| one.finding.repairable).map(|one| one.finding.problem.to_string()).collect();
    assert!(left.is_empty(), "still repairable after {repairs}: {left:#?}");
    for now in findings(after).filter(|one| one.finding.severity > Severity::Warning) {
        let known = findings(before).any(|old| what(old) == what(now));
        assert!(known, "new after {repairs}: {}", now.finding.problem);
    }
}

/// What is wrong with what. A footer and its copy are one: each is mended from the other, odd bytes and all.
fn what(found: &CheckedFinding) -> (Structure, Fault) {
    let problem = &found.finding.problem;
    match problem.structure {
        Structure::VhdFooterCopy => (Structure::VhdFooter, problem.fault),
        structure => (structure, problem.fault),
    }
}

fn assert_same(path: &Path, wanted: &MemoryStorage, when: &str) {
    let found = scratch::read(path);
    let len = wanted.len().expect("memory has a length");
    assert_eq!(found.len().expect("memory has a length"), len, "the length {when}");
    let same = |one: &MemoryStorage, other: &MemoryStorage| {
        const PAGE: u64 = 4096;
        let mut next = 0;
        while let Some(data) = one.next_data(next).expect("memory answers") {
            let at = data / PAGE * PAGE;
            let (mut here, mut there) = ([0; PAGE as usize], [0; PAGE as usize]);
            let count = (len - at).min(PAGE) as usize;
            one.read_exact_at(&mut here[..count], at).expect("inside the file");
            other.read_exact_at(&mut there[..count], at).expect("inside the file");
            assert!(here == there, "{when}, page {at:#x}: {}", first_difference(&here, &there));
            next = at + PAGE;
        }
    };
    same(&found, wanted);
    same(wanted, &found);
}
