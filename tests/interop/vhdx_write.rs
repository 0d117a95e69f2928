//! VHDX files that we write to, as qemu-img finds them: with a log to replay, and after the size changed.

use crate::support::oracle::QemuImg;
use crate::support::{Contents, assert_well_formed_vhdx};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use vhdkit::storage::{Access, FileStorage, Lock, MemoryStorage, Storage};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{BlockMap, BlockSink, Content, Findings, GrowAs, Want};

const MIB: u64 = 1 << 20;

fn pattern(at: u64, seed: u8) -> u8 {
    (at / 512) as u8 ^ (at % 241) as u8 ^ seed
}

fn wants(ranges: &[(u64, u64, Content)]) -> Vec<Want> {
    ranges.iter().map(|&(start, end, content)| Want { range: start..end, content }).collect()
}

/// Writes `wants`; `before_publish` sees the image when the bytes are there and the map does not show them yet.
fn write(image: &mut Vhdx, bytes: &mut [u8], wants: Vec<Want>, before_publish: impl FnOnce()) {
    for want in &wants {
        for at in want.range.clone() {
            bytes[at as usize] = if want.content == Content::Data { pattern(at, 9) } else { 0 };
        }
    }
    let reservation = image.reserve(wants).unwrap();
    for place in reservation.places() {
        let part = &bytes[place.offset as usize..][..place.len as usize];
        image.storage().write_all_at(part, place.at.get()).unwrap();
    }
    image.storage().sync().unwrap();
    before_publish();
    image.publish(reservation).unwrap();
}

/// The file as a crash leaves it that lost every page in its place and kept the log: qemu has to bring them back.
#[test]
fn qemu_replays_our_log() {
    let Some(qemu) = QemuImg::find() else { return };
    let memory = Arc::new(MemoryStorage::new());
    let options = VhdxCreate::new(20 * MIB).block_size(MIB as u32);
    let mut image = Vhdx::create(Arc::clone(&memory) as _, &options).unwrap();
    let mut bytes = vec![0; 20 * MIB as usize];
    let data = Content::Data;
    write(&mut image, &mut bytes, wants(&[(0, 3 * MIB, data), (7 * MIB, 7 * MIB + 512, data)]), || ());
    image.flush().unwrap();
    let mut stale = MemoryStorage::new();
    let batch = wants(&[(MIB, 2 * MIB, Content::Zero), (9 * MIB + 512, 12 * MIB, data), (19 * MIB, 20 * MIB, data)]);
    write(&mut image, &mut bytes, batch, || stale = memory.as_ref().clone());
    // Our files have the log at 1 MiB, 1 MiB long.
    let mut log = vec![0; MIB as usize];
    memory.read_exact_at(&mut log, MIB).unwrap();
    stale.write_all_at(&log, MIB).unwrap();

    let folder = TempDir::new().unwrap();
    let path = folder.path().join("crashed.vhdx");
    std::fs::write(&path, stale.to_bytes().unwrap()).unwrap();
    let name = path.display().to_string();
    let refused = qemu.run(["check", "-f", "vhdx", &name]);
    assert!(refused.is_err_and(|text| text.contains("log")), "qemu-img sees a log to replay");
    qemu.run(["check", "-r", "all", "-f", "vhdx", &name]).unwrap();
    assert_eq!(qemu.contents(&path, "vhdx"), Contents::of(&bytes));
}

#[test]
fn a_resized_disk_is_whole_to_qemu() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("resized.vhdx");
    let storage = Arc::new(FileStorage::create_new(&path).unwrap());
    let mut image = Vhdx::create(storage, &VhdxCreate::new(20 * MIB).block_size(MIB as u32)).unwrap();
    let mut bytes = vec![0; 20 * MIB as usize];
    write(&mut image, &mut bytes, wants(&[(MIB - 512, 20 * MIB, Content::Data)]), || ());
    for size in [5 * MIB + 4096, 9 * MIB, 3 * MIB + 512, 16 * MIB + 1024] {
        image.set_virtual_size(size, GrowAs::Zero).unwrap();
        bytes.resize(size as usize, 0);
        write(&mut image, &mut bytes, wants(&[(size - 512, size, Content::Data)]), || ());
    }
    image.close().unwrap();
    check(&qemu, &path, &bytes);
}

fn check(qemu: &QemuImg, path: &Path, bytes: &[u8]) {
    assert_well_formed_vhdx(path);
    qemu.assert_checks(path);
    assert_eq!(qemu.contents(path, "vhdx"), Contents::of(bytes));
}

/// Growing past what one MiB of table holds moves it; qemu finds it, and everything in it.
#[test]
fn qemu_finds_a_table_that_moved() {
    let Some(qemu) = QemuImg::find() else { return };
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("moved.vhdx");
    let storage = Arc::new(FileStorage::create_new(&path).unwrap());
    let mut image = Vhdx::create(storage, &VhdxCreate::new(20 * MIB).block_size(MIB as u32)).unwrap();
    let mut bytes = vec![0; 20 * MIB as usize];
    write(&mut image, &mut bytes, wants(&[(MIB - 512, 20 * MIB, Content::Data)]), || ());
    image.set_virtual_size(130 << 30, GrowAs::Zero).unwrap();
    image.close().unwrap();
    assert_well_formed_vhdx(&path);
    qemu.assert_checks(&path);
    // Back to a size that can be read whole.
    let storage = FileStorage::open(&path, Access::Write, Lock::Exclusive).unwrap();
    let mut image = Vhdx::open(Arc::new(storage), Access::Write, &mut Findings::new()).unwrap();
    assert_eq!(image.virtual_size(), 130 << 30);
    image.set_virtual_size(20 * MIB, GrowAs::Zero).unwrap();
    image.close().unwrap();
    check(&qemu, &path, &bytes);
}
