//! Opening a damaged image: it reads as the second reader says, or is refused with an error that names a structure; a
//! write to it changes what it was asked to change and nothing else.
//!
//! Owns: the questions asked of one damaged image.

use crate::chains::pattern;
use crate::damage::damaged;
use crate::guarded::Guarded;
use crate::images::Subject;
use crate::input::Input;
use crate::second::{Second, by_copy, says_by_copy};
use crate::subjects::{VHD, VHDX};
use crate::support::spec::vhdx_log::TOO_MANY_ZEROS;
use crate::views::{self, Windows, assert_typed};
use vhdkit::storage::{Access, MemoryStorage};
use vhdkit::{Problem, Severity};

/// One of the VHD images, damaged.
pub(super) fn vhd(data: &[u8]) {
    body(data, &VHD);
}

/// One of the VHDX images, damaged.
pub(super) fn vhdx(data: &[u8]) {
    body(data, &VHDX);
}

fn body(data: &[u8], subjects: &[Subject]) {
    let mut input = Input::new(data);
    let subject = &subjects[input.below(subjects.len())];
    let file = damaged(&mut input, subject);
    judge(&file, &subject.storages[1..]);
}

/// All that must hold of `file` as the leaf over `parents`.
pub(super) fn judge(file: &MemoryStorage, parents: &[MemoryStorage]) {
    let chain = match views::open(Guarded::for_reading(file), parents, Access::Read) {
        Ok(chain) => chain,
        Err(error) => {
            assert_typed(&error);
            let writable = views::open(Guarded::for_writing(file), parents, Access::Write);
            assert!(writable.is_err(), "opens for writing, though not for reading: {error}");
            return;
        }
    };
    let size = chain.virtual_size();
    // What comes before the first broken piece has to cover the disk without a gap.
    let mut covered = 0;
    for piece in chain.pieces(0..size.min(1 << 30)) {
        match piece {
            Ok(piece) => {
                assert!(piece.offset == covered && piece.len > 0, "a gap before {piece:?}");
                covered += piece.len;
            }
            Err(error) => {
                assert_typed(&error);
                break;
            }
        }
    }
    let seen = views::read(&chain);
    let findings = chain.layers().iter().flat_map(|layer| layer.findings().list());
    let severe: Vec<Problem> =
        findings.filter(|one| one.severity > Severity::Warning).map(|one| one.problem.clone()).collect();
    drop(chain);
    seen.iter().filter_map(|(_, answer)| answer.as_ref().err()).for_each(assert_typed);
    let leaf = if severe.iter().any(says_by_copy) { by_copy(file) } else { file.clone() };
    let files: Vec<MemoryStorage> = std::iter::once(&leaf).chain(parents).cloned().collect();
    match Second::open(&files) {
        Ok(second) => views::compare(&seen, size, &second),
        // What vhdkit reads in spite of damage, it says so.
        Err(why) => assert!(may_refuse(&why) || !severe.is_empty(), "opens in silence, where the second finds: {why}"),
    }
    write(file, parents, &seen);
}

/// What the second reader refuses that is no damage: limits of its own.
fn may_refuse(why: &str) -> bool {
    [
        "a file of",
        TOO_MANY_ZEROS,
        // Half of a surrogate pair in a path that is a hint only.
        "is no UTF-16",
        // They may differ in reserved bytes, which nobody reads.
        "two different headers with one sequence number",
    ]
    .iter()
    .any(|limit| why.contains(limit))
}

/// A write in the first block and one in the last.
fn write(file: &MemoryStorage, parents: &[MemoryStorage], seen: &Windows) {
    let guarded = Guarded::for_writing(file);
    let mut chain = match views::open(guarded.clone(), parents, Access::Write) {
        Ok(chain) => chain,
        Err(error) => return assert_typed(&error),
    };
    let sector = u64::from(chain.logical_sector_size());
    let size = chain.virtual_size();
    let places = [sector, size.saturating_sub(sector) / sector * sector];
    let mut done = Vec::new();
    for at in places.into_iter().filter(|at| at + sector <= size) {
        let bytes = pattern(at, sector, 0x5A);
        match chain.write_at(&bytes, at) {
            Ok(()) => done.push((at, bytes)),
            Err(error) => assert_typed(&error),
        }
    }
    if let Err(error) = chain.close() {
        assert_typed(&error);
        done.clear();
    }
    let after = views::open(Guarded::for_reading(&guarded.contents()), parents, Access::Read);
    let after = after.unwrap_or_else(|error| panic!("does not open after a write: {error}"));
    for (at, bytes) in &done {
        let mut found = vec![0; bytes.len()];
        after.read_at(&mut found, *at).unwrap_or_else(|error| panic!("what was written does not read: {error}"));
        assert!(found == *bytes, "what was written at {at:#x} is not there");
    }
    let written = |at: u64| places.iter().any(|&place| at < place + sector && place < at + 512);
    for (at, answer) in seen {
        let Ok(bytes) = answer else { continue };
        let mut found = vec![0; bytes.len()];
        after.read_at(&mut found, *at).unwrap_or_else(|error| panic!("{at:#x} no longer reads: {error}"));
        for (index, (old, new)) in bytes.chunks(512).zip(found.chunks(512)).enumerate() {
            let place = at + 512 * index as u64;
            assert!(old == new || written(place), "a write changed {place:#x} too");
        }
    }
}
