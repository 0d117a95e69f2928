//! The samples of `testdata/`: the second reader shows what their README says they hold.

use crate::support::bytes::{vhd_checksum, vhdx_checksum};
use crate::support::oracle::{Libvhdi, QemuImg, SevenZip};
use crate::support::spec::vhdx::{Vhdx, items, locator_pairs, regions};
use crate::support::{Bytes, Contents, Report, SpecDisk, sample};

const BLOCK: usize = 1 << 20;
/// The virtual size of the VHDX samples.
const VHDX_SIZE: usize = 4 * BLOCK + BLOCK / 2;

fn read(chain: &[&str]) -> Vec<u8> {
    let files = chain.iter().map(|name| Box::new(sample::load(name)) as Box<dyn Bytes>).collect();
    let disk = SpecDisk::from_bytes(files).unwrap();
    disk.read(0, usize::try_from(disk.size()).unwrap()).unwrap()
}

/// Puts `count` times the two bytes `tag`, `number` at `at`.
fn fill(disk: &mut [u8], at: usize, len: usize, pattern: [u8; 2]) {
    disk[at..at + len].copy_from_slice(&pattern.repeat(len / 2));
}

/// Sectors of a VHD sample that hold `tag` and their own number.
fn put_sectors(disk: &mut [u8], tag: u8, sectors: &[u8]) {
    for &sector in sectors {
        fill(disk, usize::from(sector) * 512, 512, [tag, sector]);
    }
}

fn vhdx_dynamic() -> Vec<u8> {
    let mut disk = vec![0; VHDX_SIZE];
    fill(&mut disk, 0, BLOCK, [0xD0, 0]);
    fill(&mut disk, 3 * 512, 512, [0xD0, 3]);
    fill(&mut disk, 4 * BLOCK, BLOCK / 2, [0xD0, 4]);
    disk
}

fn same(got: &[u8], expected: &[u8]) {
    assert_eq!(got.len(), expected.len());
    let differs = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
}

#[test]
fn vhd_samples_hold_what_they_say() {
    let mut fixed = vec![0; 4096];
    put_sectors(&mut fixed, 0xF0, &[0, 1, 7]);
    same(&read(&["vhd-fixed"]), &fixed);

    let mut disk = vec![0; 10 << 10];
    put_sectors(&mut disk, 0xD0, &[0, 1, 5, 16, 19]);
    same(&read(&["vhd-dynamic"]), &disk);

    disk.resize(12 << 10, 0);
    put_sectors(&mut disk, 0xC0, &[15, 17, 19, 21]);
    same(&read(&["vhd-differencing", "vhd-dynamic"]), &disk);
    for name in ["vhd-fixed", "vhd-dynamic", "vhd-differencing"] {
        Report::vhd(&sample::load(name)).assert_clean(name);
    }
}

#[test]
fn vhdx_samples_hold_what_they_say() {
    let mut disk = vhdx_dynamic();
    same(&read(&["vhdx-dynamic"]), &disk);

    fill(&mut disk, 512, 1024, [0xC0, 0]);
    fill(&mut disk, 2 * BLOCK, BLOCK, [0xC0, 2]);
    fill(&mut disk, VHDX_SIZE - 512, 512, [0xC0, 4]);
    same(&read(&["vhdx-differencing", "vhdx-dynamic"]), &disk);
    for name in ["vhdx-dynamic", "vhdx-differencing"] {
        Report::vhdx(&sample::load(name)).assert_clean(name);
    }
}

#[test]
fn a_log_that_wraps_is_replayed_from_its_tail() {
    let mut disk = vhdx_dynamic();
    fill(&mut disk, 0, BLOCK, [0xD0, 0]);
    fill(&mut disk, 3 * BLOCK, BLOCK, [0xD0, 3]);
    same(&read(&["vhdx-dirty-log"]), &disk);

    let file = sample::load("vhdx-dirty-log");
    assert_eq!(Report::vhdx(&file).rules(), ["clean-log"]);
    let image = Vhdx::open(Box::new(&file)).unwrap();
    assert_eq!(image.file.length().unwrap(), 9 << 20, "the last entry's LastFileOffset");
    assert_eq!(image.entry(512).unwrap(), 0, "the second entry's zeros came after the first one's page");

    let block_3 = |file: &Vec<u8>| Vhdx::open(Box::new(file)).unwrap().entry(3).unwrap();
    assert_eq!(block_3(&file), 7 << 20 | 6);
    let mut untorn = file.clone();
    untorn[(1 << 20) + 3 * 4096 + 5000] ^= 1;
    assert_eq!(block_3(&untorn), 1 << 20 | 6, "a whole fourth entry counts");
    let mut lost = file.clone();
    lost[(1 << 20) + 8192] ^= 1;
    assert_eq!(block_3(&lost), 1 << 20 | 6, "the sequence ends before the broken third entry");
}

#[test]
fn structure_samples_keep_the_published_checksums() {
    assert_eq!(vhd_checksum(&sample::load("vhd-footer-fixed"), 64), 0xFFFF_F002);
    assert_eq!(vhd_checksum(&sample::load("vhd-footer-dynamic"), 64), 0xFFFF_F7F7);
    assert_eq!(vhd_checksum(&sample::load("vhd-header"), 36), 0xFFFF_F475);
    assert_eq!(vhdx_checksum(&sample::load("vhdx-header"), 4), 0x26C5_251A);
    assert_eq!(vhdx_checksum(&sample::load("vhdx-region-table"), 4), 0xC66B_8CAE);
    assert_eq!(vhdx_checksum(&sample::load("vhdx-log-empty-entry"), 4), 0x6384_8303);
    assert_eq!(regions(&sample::load("vhdx-region-table")).len(), 2);
    assert_eq!(items(&sample::load("vhdx-metadata")).unwrap().len(), 6);
    let pairs = locator_pairs(&sample::load("vhdx-locator")).unwrap();
    assert_eq!(pairs[1], ("relative_path".to_owned(), ".\\vhdx-dynamic.vhdx".to_owned()));
}

#[test]
fn the_oracles_read_the_samples_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, extension| sample::write(name, folder.path(), extension);
    let [_, dynamic, child] = ["vhd-fixed", "vhd-dynamic", "vhd-differencing"].map(|name| write(name, "vhd"));
    let [base, leaf] = ["vhdx-dynamic", "vhdx-differencing"].map(|name| write(name, "vhdx"));
    let expected = |chain: &[&str]| Contents::of(&read(chain));
    if let Some(seven_zip) = SevenZip::find() {
        assert_eq!(seven_zip.contents(&dynamic, "VHD"), expected(&["vhd-dynamic"]));
        // The child is larger than its parent, which it does not read past the parent's end.
        assert!(seven_zip.try_contents(&child, "VHD").is_err());
        assert_eq!(seven_zip.contents(&base, "VHDX"), expected(&["vhdx-dynamic"]));
        assert_eq!(seven_zip.contents(&leaf, "VHDX"), expected(&["vhdx-differencing", "vhdx-dynamic"]));
    }
    if let Some(qemu) = QemuImg::find() {
        assert_eq!(qemu.contents(&dynamic, "vpc"), expected(&["vhd-dynamic"]));
        assert_eq!(qemu.contents(&base, "vhdx"), expected(&["vhdx-dynamic"]));
        qemu.assert_checks(&base);
    }
    if let Some(libvhdi) = Libvhdi::find() {
        assert_eq!(libvhdi.contents(&[&leaf, &base]), expected(&["vhdx-differencing", "vhdx-dynamic"]));
        assert_eq!(libvhdi.parent_identifier(&leaf), "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee");
    }
}
