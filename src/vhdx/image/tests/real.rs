//! Images made by other software, read to the bytes that several independent readers agree on.

use super::{Counting, Vhdx, disk_hash};
use crate::error::ErrorKind;
use crate::finding::{Findings, Severity};
use crate::map::BlockMap;
use crate::problem::{Fault, Structure};
use crate::storage::{Access, FileStorage, Lock, MemoryStorage, Storage};
use crate::support::real::{self, RealImage};
use std::sync::Arc;

const DIRTY: &str = "openvmm/dirty-unapplied.vhdx";

fn open(name: &str) -> Option<(crate::Result<Vhdx>, Findings)> {
    let storage = FileStorage::open(&real::folder()?.join(name), Access::Read, Lock::Shared).unwrap();
    let mut findings = Findings::new();
    let opened = Vhdx::open(Arc::new(storage), Access::Read, &mut findings);
    Some((opened, findings))
}

/// A copy in memory, to be written to.
fn copy(name: &str) -> Option<Arc<MemoryStorage>> {
    Some(Arc::new(MemoryStorage::from_bytes(&std::fs::read(real::folder()?.join(name)).unwrap())))
}

#[test]
fn every_root_image_has_its_contents() {
    for real in real::ALL.iter().filter(|real| real.chain.len() == 1 && real.name().ends_with(".vhdx")) {
        let Some((opened, _)) = open(real.name()) else { return };
        let image = opened.unwrap();
        assert_eq!(image.virtual_size(), real.size, "{}", real.name());
        assert_eq!(disk_hash(&image).unwrap(), real.sha256, "{}", real.name());
        assert_eq!(image.log_was_dirty(), real.name() == DIRTY, "{}", real.name());
    }
}

#[test]
fn dirty_log_is_replayed_in_memory_for_a_reader_and_in_the_file_for_a_writer() {
    let Some(storage) = copy(DIRTY) else { return };
    let contents = RealImage::named(DIRTY).sha256;
    let before = storage.to_bytes().unwrap();
    let mut findings = Findings::new();
    let reader = Vhdx::open(storage.clone(), Access::Read, &mut findings).unwrap();
    assert_eq!(disk_hash(&reader).unwrap(), contents);
    assert!(reader.log_was_dirty());
    assert!(findings.list().iter().any(|finding| finding.problem.fault == Fault::Dirty));
    let old = *reader.headers.current();
    drop(reader);
    assert!(storage.to_bytes().unwrap() == before, "a reader changed the file");

    let writer = Vhdx::open(storage.clone(), Access::Write, &mut Findings::new()).unwrap();
    assert_eq!(disk_hash(&writer).unwrap(), contents);
    let new = *writer.headers.current();
    drop(writer);
    assert!(new.log_guid.is_nil());
    assert_ne!(new.file_write_guid, old.file_write_guid);
    assert_eq!(new.data_write_guid, old.data_write_guid);
    assert!(storage.to_bytes().unwrap() != before);

    let mut findings = Findings::new();
    let again = Vhdx::open(storage, Access::Read, &mut findings).unwrap();
    assert_eq!(disk_hash(&again).unwrap(), contents);
    assert!(!again.log_was_dirty());
    assert!(findings.list().is_empty(), "{findings:?}");
}

#[test]
fn windows_child_names_its_parent() {
    let Some((opened, _)) = open("dfvfs/ntfs-differential.vhdx") else { return };
    let Some((parent, _)) = open("dfvfs/ntfs-parent.vhdx") else { return };
    let link = opened.unwrap().parent_link().unwrap();
    assert_eq!(link.ids, [parent.unwrap().id()], "the second linkage is all zeros and does not count");
    assert_eq!(link.hints[0].path, ".\\ntfs-parent.vhdx");
}

#[test]
fn damaged_copies_open_from_the_good_one() {
    let contents = RealImage::named("dfvfs/ntfs-fixed.vhdx").sha256;
    for (name, structure) in [
        ("malformed/g-vhdx-hdr2-badcrc.vhdx", Structure::VhdxHeader),
        ("malformed/g-vhdx-rt1-badcrc.vhdx", Structure::VhdxRegionTable),
    ] {
        let Some((opened, findings)) = open(name) else { return };
        assert_eq!(disk_hash(&opened.unwrap()).unwrap(), contents, "{name}");
        let [finding] = findings.list() else { panic!("{name}: {findings:?}") };
        assert_eq!(
            (finding.severity, finding.problem.structure, finding.problem.fault, finding.repairable),
            (Severity::Warning, structure, Fault::Checksum, true)
        );
        assert!(finding.problem.offset.is_some());
    }
}

#[test]
fn what_no_reader_can_use_is_refused_with_the_reason() {
    for (name, structure, fault) in [
        ("malformed/g-vhdx-both-hdr-badcrc.vhdx", Structure::VhdxHeader, Fault::Checksum),
        ("malformed/g-vhdx-metadata-badsig.vhdx", Structure::VhdxMetadata, Fault::Signature),
    ] {
        let Some((opened, _)) = open(name) else { return };
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
        let problem = error.problem().unwrap();
        assert_eq!((problem.structure, problem.fault), (structure, fault), "{name}");
        assert!(problem.offset.is_some());
    }
}

#[test]
fn lost_block_is_an_error_when_read() {
    for name in ["malformed/g-vhdx-bat-past-eof.vhdx", "malformed/g-vhdx-cut-payload.vhdx"] {
        let Some((opened, _)) = open(name) else { return };
        let error = disk_hash(&opened.unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}");
        let problem = error.problem().unwrap();
        assert_eq!((problem.structure, problem.fault), (Structure::VhdxBat, Fault::Range), "{name}");
        assert!(problem.offset.is_some());
    }
}

#[test]
fn log_ends_at_its_first_damaged_entry() {
    let Some((opened, _)) = open("malformed/g-vhdx-log-last-entry-badcrc.vhdx") else { return };
    let hash = disk_hash(&opened.unwrap()).unwrap();
    assert_eq!(&hash[..8], "5e9e4770");
}

#[test]
fn opening_a_real_file_reads_kilobytes() {
    let Some(storage) = copy("dfvfs/ntfs-dynamic.vhdx") else { return };
    assert!(storage.len().unwrap() > 1 << 20);
    let counting = Arc::new(Counting::new(storage));
    Vhdx::open(counting.clone(), Access::Read, &mut Findings::new()).unwrap();
    assert!(counting.bytes_read() < 256 << 10, "{} bytes", counting.bytes_read());
}
