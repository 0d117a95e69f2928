//! Images made by other software, read to the bytes that several independent readers agree on.
//!
//! The images are not part of the project; `VHDKIT_REAL_IMAGES` names the folder they lie in.

use super::{Counting, Vhdx, disk_hash};
use crate::error::ErrorKind;
use crate::finding::{Findings, Severity};
use crate::problem::{Fault, Structure};
use crate::storage::{Access, FileStorage, Lock, MemoryStorage, Storage};
use std::path::PathBuf;
use std::sync::Arc;

const NTFS_FIXED: &str = "5237dd895f38052344e2ef35a207fe9df08cd18d17b6ea857a1b93cc475e1f2e";
const DIRTY: &str = "06dfd38546ff6f3c95ae22b76ce2234ea7638529409781fb1187b9caf61ca240";

const IMAGES: [(&str, &str); 9] = [
    ("DiscUtils/swap.vhdx", "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49"),
    ("dfvfs/ext2.vhdx", "a6c2f0e39afe6c6ab432ca5465349fcefe8dc944398e97b2d957d3f89dbb5d80"),
    ("dfvfs/ntfs-dynamic.vhdx", "b92731f8e4bf3532418444d22a9086823a8122569500acd09cd8d2ce20eb98e9"),
    ("dfvfs/ntfs-fixed.vhdx", NTFS_FIXED),
    ("dfvfs/ntfs-parent.vhdx", "c5523065bc6ef82267be56c5f8888e2876ead8ba7edba2a65a3da8b076231b68"),
    ("openvmm/dirty-unapplied.replayed.vhdx", DIRTY),
    ("openvmm/dyn-4k.vhdx", "cdf29dcb8e2da12be876a29c09dae11b373c67e01b6abf7dc5f655ea63cb0256"),
    ("openvmm/dyn-trims.vhdx", "7baa93c8e67acbb8ba8a99f2ad2b1afb69b1171771e1c5f973eb2718e3fcc069"),
    ("qemu/dyn-1M.vhdx", "1bf7f44d528e4de2a60e51071d0c88fafe08d3d66e5147fec2f63dd05f1b33f6"),
];

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("VHDKIT_REAL_IMAGES").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: VHDKIT_REAL_IMAGES does not name the folder of real images");
    }
    folder
}

fn open(name: &str) -> Option<(crate::Result<Vhdx>, Findings)> {
    let storage = FileStorage::open(&folder()?.join(name), Access::Read, Lock::Shared).unwrap();
    let mut findings = Findings::new();
    let opened = Vhdx::open(Arc::new(storage), Access::Read, &mut findings);
    Some((opened, findings))
}

/// A copy in memory, to be written to.
fn copy(name: &str) -> Option<Arc<MemoryStorage>> {
    Some(Arc::new(MemoryStorage::from_bytes(&std::fs::read(folder()?.join(name)).unwrap())))
}

#[test]
fn every_root_image_has_its_contents() {
    for (name, hash) in IMAGES {
        let Some((opened, _)) = open(name) else { return };
        let image = opened.unwrap();
        assert_eq!(disk_hash(&image).unwrap(), hash, "{name}");
        assert!(!image.log_was_dirty());
    }
}

#[test]
fn dirty_log_is_replayed_in_memory_for_a_reader_and_in_the_file_for_a_writer() {
    let name = "openvmm/dirty-unapplied.vhdx";
    let Some(storage) = copy(name) else { return };
    let before = storage.to_bytes().unwrap();
    let mut findings = Findings::new();
    let reader = Vhdx::open(storage.clone(), Access::Read, &mut findings).unwrap();
    assert_eq!(disk_hash(&reader).unwrap(), DIRTY);
    assert!(reader.log_was_dirty());
    assert!(findings.list().iter().any(|finding| finding.problem.fault == Fault::Dirty));
    let old = *reader.headers.current();
    drop(reader);
    assert!(storage.to_bytes().unwrap() == before, "a reader changed the file");

    let writer = Vhdx::open(storage.clone(), Access::Write, &mut Findings::new()).unwrap();
    assert_eq!(disk_hash(&writer).unwrap(), DIRTY);
    let new = *writer.headers.current();
    drop(writer);
    assert!(new.log_guid.is_nil());
    assert_ne!(new.file_write_guid, old.file_write_guid);
    assert_eq!(new.data_write_guid, old.data_write_guid);
    assert!(storage.to_bytes().unwrap() != before);

    let mut findings = Findings::new();
    let again = Vhdx::open(storage, Access::Read, &mut findings).unwrap();
    assert_eq!(disk_hash(&again).unwrap(), DIRTY);
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
    for (name, structure) in [
        ("malformed/g-vhdx-hdr2-badcrc.vhdx", Structure::VhdxHeader),
        ("malformed/g-vhdx-rt1-badcrc.vhdx", Structure::VhdxRegionTable),
    ] {
        let Some((opened, findings)) = open(name) else { return };
        assert_eq!(disk_hash(&opened.unwrap()).unwrap(), NTFS_FIXED, "{name}");
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
