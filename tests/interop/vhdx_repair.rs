//! Damaged VHDX files, repaired: other programs read them, the stricter rules for what we write hold, and the way back
//! brings back every byte.

use crate::support::oracle::{QemuImg, SevenZip};
use crate::support::{Contents, assert_well_formed_vhdx, real};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use vhdkit::ops::{CheckOptions, RepairOptions, check, repair, undo_file, undo_repair};
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{BlockMap, BlockSink, Content, ErrorKind, RepairKind, Severity, Want};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const BAT: u64 = 3 * MIB;

/// A disk of 8 MiB in blocks of 1 MiB with data in blocks 0 to 2, and what it holds.
fn sound() -> (MemoryStorage, Vec<u8>) {
    let memory = Arc::new(MemoryStorage::new());
    let mut image = Vhdx::create(memory.clone(), &VhdxCreate::new(8 * MIB).block_size(MIB as u32)).unwrap();
    let mut bytes = vec![0; 8 * MIB as usize];
    let reservation = image.reserve(vec![Want { range: 0..3 * MIB, content: Content::Data }]).unwrap();
    for place in reservation.places() {
        for at in place.offset..place.offset + place.len {
            bytes[at as usize] = (at / 512) as u8 | 1;
        }
        let part = &bytes[place.offset as usize..][..place.len as usize];
        image.storage().write_all_at(part, place.at.get()).unwrap();
    }
    image.storage().sync().unwrap();
    image.publish(reservation).unwrap();
    image.close().unwrap();
    (MemoryStorage::from_bytes(&memory.to_bytes().unwrap()), bytes)
}

fn assert_read_by_others(path: &Path, contents: &Contents) {
    if let Some(qemu) = QemuImg::find() {
        qemu.assert_checks(path);
        assert_eq!(qemu.contents(path, "vhdx"), *contents);
    }
    if let Some(seven) = SevenZip::find() {
        assert_eq!(seven.contents(path, "VHDX"), *contents);
    }
}

fn kinds(path: &Path, options: &RepairOptions) -> Vec<RepairKind> {
    repair(path, options).unwrap().repairs.iter().map(|repaired| repaired.kind).collect()
}

#[test]
fn safe_repairs_make_a_file_as_we_write_it_and_can_be_taken_back() {
    let (storage, bytes) = sound();
    storage.write_all_at(b"HEAD", 128 * KIB).unwrap();
    storage.write_all_at(&[1], 192 * KIB + 900).unwrap();
    for (index, raw) in [(4, 9 * MIB), (5, 9 * MIB + 2), (7000, 6)] {
        storage.write_all_at(&raw.to_le_bytes(), BAT + 8 * index).unwrap();
    }
    storage.write_all_at(b"left over", 12 * MIB).unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.vhdx");
    let damaged = storage.to_bytes().unwrap();
    fs::write(&path, &damaged).unwrap();
    let before = check(&path, &CheckOptions::new()).unwrap();
    assert_eq!(before.worst(), Some(Severity::Warning));

    let expected = [RepairKind::Header, RepairKind::RegionTable, RepairKind::BlockOffsets, RepairKind::LeakedSpace];
    assert_eq!(kinds(&path, &RepairOptions::new().dry_run(true)), expected);
    assert!(fs::read(&path).unwrap() == damaged);
    assert_eq!(kinds(&path, &RepairOptions::new()), expected);
    assert_eq!(check(&path, &CheckOptions::new().deep(true)).unwrap().worst(), None);
    assert_well_formed_vhdx(&path);
    assert_read_by_others(&path, &Contents::of(&bytes));

    undo_repair(&path).unwrap();
    assert!(fs::read(&path).unwrap() == damaged);
    assert!(!undo_file(&path).unwrap().exists());
}

#[test]
fn cut_file_shows_zeros_for_what_was_cut_off_once_that_is_allowed() {
    let (storage, mut bytes) = sound();
    let len = storage.len().unwrap();
    storage.set_len(len - 70_000).unwrap();
    let damaged = storage.to_bytes().unwrap();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.vhdx");
    fs::write(&path, &damaged).unwrap();
    assert_eq!(kinds(&path, &RepairOptions::new()), []);
    assert!(fs::read(&path).unwrap() == damaged, "nothing is made up unasked");
    assert_eq!(check(&path, &CheckOptions::new()).unwrap().worst(), Some(Severity::Error));

    let report = repair(&path, &RepairOptions::new().allow(RepairKind::ZeroExtend)).unwrap();
    let [repaired] = &report.repairs[..] else { panic!("{report:?}") };
    let [lost] = &repaired.loses[..] else { panic!("{report:?}") };
    // Whole sectors.
    assert_eq!((lost.start, lost.end), ((3 * MIB - 70_000) / 512 * 512, 3 * MIB));
    // The bytes of the cut sector that are still there stay; a reader had no use for them before.
    bytes[(3 * MIB - 70_000) as usize..3 * MIB as usize].fill(0);
    assert_well_formed_vhdx(&path);
    assert_read_by_others(&path, &Contents::of(&bytes));
    undo_repair(&path).unwrap();
    assert!(fs::read(&path).unwrap() == damaged);
}

#[test]
fn log_that_cannot_be_read_is_given_up_only_when_allowed() {
    let Some(folder) = real::folder() else { return };
    let scratch = TempDir::new().unwrap();
    let path = scratch.path().join("a.vhdx");
    let mut damaged = fs::read(folder.join("openvmm/dirty-unapplied.vhdx")).unwrap();
    // Every entry of the log, wherever it is: its signature goes.
    for page in damaged.chunks_exact_mut(4096) {
        if page.starts_with(b"loge") {
            page[0] = b'L';
        }
    }
    fs::write(&path, &damaged).unwrap();
    let error = repair(&path, &RepairOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.hint().unwrap().contains("drop-log"), "{error:?}");
    assert!(fs::read(&path).unwrap() == damaged);
    let report = repair(&path, &RepairOptions::new().allow(RepairKind::DropLog)).unwrap();
    assert_eq!(report.repairs[0].kind, RepairKind::DropLog);
    let lost = &report.repairs[0].loses;
    assert!(lost.len() == 1 && lost[0].start == 0 && lost[0].end == 64 * MIB, "{lost:?}");
    undo_repair(&path).unwrap();
    assert!(fs::read(&path).unwrap() == damaged);
}
