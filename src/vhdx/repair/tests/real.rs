//! Damaged images that other software made, and what other software reads from them once they are mended.

use super::*;
use crate::support::bytes::{Bytes, Contents};
use crate::support::oracle::{QemuImg, SevenZip};
use crate::support::real::{self, RealImage};
use crate::support::spec::SpecDisk;

fn copy(name: &str) -> Option<Arc<MemoryStorage>> {
    let path = real::folder()?.join(name);
    Some(Arc::new(MemoryStorage::from_bytes(&std::fs::read(path).unwrap())))
}

fn by_second_reader(storage: &MemoryStorage) -> Contents {
    let bytes: Box<dyn Bytes> = Box::new(storage.to_bytes().unwrap());
    SpecDisk::from_bytes(vec![bytes]).unwrap().contents().unwrap()
}

/// What three programs by other people and the second reader say the disk holds; they must agree.
fn by_others(storage: &MemoryStorage) -> Contents {
    let contents = by_second_reader(storage);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mended.vhdx");
    std::fs::write(&path, storage.to_bytes().unwrap()).unwrap();
    if let Some(qemu) = QemuImg::find() {
        qemu.assert_checks(&path);
        assert_eq!(qemu.contents(&path, "vhdx"), contents);
    }
    if let Some(seven) = SevenZip::find() {
        assert_eq!(seven.contents(&path, "VHDX"), contents);
    }
    contents
}

#[test]
fn bad_copies_are_rewritten() {
    let sha256 = RealImage::named("dfvfs/ntfs-fixed.vhdx").sha256;
    for (name, kind) in [
        ("malformed/g-vhdx-hdr2-badcrc.vhdx", RepairKind::Header),
        ("malformed/g-vhdx-rt1-badcrc.vhdx", RepairKind::RegionTable),
    ] {
        let Some(storage) = copy(name) else { return };
        let steps = mend(&storage, &[]);
        assert_eq!(steps[0].kind, kind, "{name}");
        assert_eq!(by_others(&storage).sha256, sha256, "{name}");
        let (_, left) = check(&storage);
        assert!(left.iter().all(|one| one.1 != Structure::VhdxHeader && one.2 != Fault::Checksum), "{left:?}");
    }
}

#[test]
fn what_no_repair_can_mend_is_refused_with_the_reason() {
    for (name, structure) in [
        ("malformed/g-vhdx-both-hdr-badcrc.vhdx", Structure::VhdxHeader),
        ("malformed/g-vhdx-metadata-badsig.vhdx", Structure::VhdxMetadata),
    ] {
        let Some(storage) = copy(name) else { return };
        for allow in [&[][..], ALL] {
            let error = plan(&storage, allow).unwrap_err();
            assert_eq!((error.kind(), error.problem().unwrap().structure), (ErrorKind::Corrupt, structure), "{name}");
        }
    }
}

#[test]
fn lost_blocks_are_given_up_or_filled_with_zeros_only_when_that_is_allowed() {
    for name in ["malformed/g-vhdx-bat-past-eof.vhdx", "malformed/g-vhdx-cut-payload.vhdx"] {
        for kind in [RepairKind::UnmapLostBlocks, RepairKind::ZeroExtend] {
            let Some(storage) = copy(name) else { return };
            let left_alone = mend(&storage, &[]);
            assert!(left_alone.iter().all(|step| step.kind.is_safe() && step.edits.len() < 9), "{left_alone:?}");
            assert!(check(&storage).1.iter().any(|one| one.0 == Severity::Error), "{name}");
            // What can still be read, zeros for the rest.
            let damaged = open(storage.clone());
            let steps = plan(&storage, &[kind]).unwrap();
            let loses: Vec<_> = steps.iter().flat_map(|step| step.loses.clone()).collect();
            assert!(!loses.is_empty());
            let mut expected = vec![0; usize::try_from(damaged.virtual_size()).unwrap()];
            for (at, sector) in (0u64..).step_by(512).zip(expected.chunks_exact_mut(512)) {
                if loses.iter().any(|range| range.contains(&at)) {
                    continue;
                }
                if let Source::Data(place) = damaged.extent_at(at, 512).unwrap().source {
                    damaged.storage().read_exact_at(sector, place.get()).unwrap();
                }
            }
            drop(damaged);
            mend(&storage, &[kind]);
            assert_eq!(by_others(&storage), Contents::of(&expected), "{name}, {kind}");
            assert!(check(&storage).1.iter().all(|one| one.0 < Severity::Error));
        }
    }
}

#[test]
fn log_is_replayed_up_to_its_first_damaged_entry() {
    let Some(storage) = copy("malformed/g-vhdx-log-last-entry-badcrc.vhdx") else { return };
    assert_eq!(mend(&storage, &[])[0].kind, RepairKind::LogReplay);
    assert_eq!(by_others(&storage).sha256[..8], *"5e9e4770");
    let Some(storage) = copy("openvmm/dirty-unapplied.vhdx") else { return };
    mend(&storage, &[]);
    assert_eq!(by_others(&storage).sha256, RealImage::named("openvmm/dirty-unapplied.vhdx").sha256);
}

#[test]
fn every_sound_image_shows_the_same_after_a_repair() {
    for image in real::ALL.iter().filter(|image| image.chain.len() == 1 && image.name().ends_with(".vhdx")) {
        let Some(storage) = copy(image.name()) else { return };
        let steps = plan(&storage, &[]).unwrap();
        apply(&*storage, &steps);
        assert_eq!(by_second_reader(&storage).sha256, image.sha256, "{}", image.name());
        eprintln!("{}: {:?}", image.name(), kinds(&steps));
    }
}
