//! The second reader and the checker themselves, tried on images made by other software and on damaged ones: what they
//! say of our own files is worth no more than this.

use crate::support::bytes::{vhd_checksum, vhdx_checksum};
use crate::support::check::{azure_problems, geometry};
use crate::support::oracle::{Libvhdi, QemuImg, SevenZip};
use crate::support::real::{self, RealImage};
use crate::support::{Report, SpecDisk};
use std::fs;
use std::path::Path;

fn report(path: &Path) -> Report {
    let file = fs::File::open(path).unwrap();
    if path.extension().is_some_and(|extension| extension == "vhdx") { Report::vhdx(&file) } else { Report::vhd(&file) }
}

#[test]
fn every_real_image_decodes_to_its_digest() {
    let Some(folder) = real::folder() else { return };
    for image in real::ALL {
        let paths = image.paths(&folder);
        let contents = SpecDisk::open(&paths).and_then(|disk| disk.contents());
        let contents = contents.unwrap_or_else(|error| panic!("{}: {error}", image.name()));
        assert_eq!((contents.len, contents.sha256.as_str()), (image.size, image.sha256), "{}", image.name());
    }
}

#[test]
fn damaged_images_are_read_or_refused_as_the_pages_say() {
    let Some(folder) = real::folder() else { return };
    let contents = |name: &str| {
        let leaf = folder.join("malformed").join(name);
        SpecDisk::open(&[leaf]).and_then(|disk| disk.contents()).map(|contents| contents.sha256)
    };
    let dynamic = RealImage::named("dfvfs/ntfs-dynamic.vhd").sha256;
    for name in ["vhd-dyn-tail-footer-cut.vhd", "vhd-dyn-tail-badsum.vhd", "vhd-dyn-head-copy-badsum.vhd"] {
        assert_eq!(contents(name).as_deref(), Ok(dynamic), "{name}");
    }
    let fixed = RealImage::named("dfvfs/ntfs-fixed.vhdx").sha256;
    for name in ["g-vhdx-hdr2-badcrc.vhdx", "g-vhdx-rt1-badcrc.vhdx"] {
        assert_eq!(contents(name).as_deref(), Ok(fixed), "{name}");
    }
    let replayed = contents("g-vhdx-log-last-entry-badcrc.vhdx").unwrap();
    assert!(replayed.starts_with("5e9e4770"), "{replayed}");
    for (name, why) in [
        ("vhd-dyn-blocksize-0.vhd", "block size 0"),
        ("vhd-fixed-nofooter.vhd", "no valid footer"),
        ("vhd-dyn-bat-past-eof.vhd", "reach past the end"),
        ("vhd-dyn-cut-in-last-block.vhd", "data at"),
        ("g-vhdx-both-hdr-badcrc.vhdx", "neither header is valid"),
        ("g-vhdx-metadata-badsig.vhdx", "no valid metadata table"),
        ("g-vhdx-bat-past-eof.vhdx", "data at"),
        ("g-vhdx-cut-payload.vhdx", "data at"),
    ] {
        let error = contents(name).expect_err(name);
        assert!(error.contains(why), "{name}: {error}");
    }
    let strangers =
        ["vhd-diff-parent-uuid-mismatch.vhd", "ntfs-parent.vhd"].map(|name| folder.join("malformed").join(name));
    assert!(SpecDisk::open(&strangers).err().unwrap().contains("the child names parent"));
}

#[test]
fn the_checker_names_the_damage() {
    let Some(folder) = real::folder() else { return };
    for (name, rule) in [
        ("vhd-dyn-tail-footer-cut.vhd", "tail-footer"),
        ("vhd-dyn-tail-badsum.vhd", "tail-footer"),
        ("vhd-dyn-head-copy-badsum.vhd", "head-copy"),
        ("vhd-dyn-bat-past-eof.vhd", "past-end"),
        ("vhd-dyn-cut-in-last-block.vhd", "past-end"),
        ("vhd-dyn-blocksize-0.vhd", "block-size"),
        ("vhd-fixed-nofooter.vhd", "unreadable"),
        ("g-vhdx-hdr2-badcrc.vhdx", "header-checksum"),
        ("g-vhdx-rt1-badcrc.vhdx", "region-checksum"),
        ("g-vhdx-both-hdr-badcrc.vhdx", "header-checksum"),
        ("g-vhdx-metadata-badsig.vhdx", "unreadable"),
        ("g-vhdx-bat-past-eof.vhdx", "past-end"),
        ("g-vhdx-cut-payload.vhdx", "past-end"),
        ("g-vhdx-log-last-entry-badcrc.vhdx", "clean-log"),
    ] {
        let found = report(&folder.join("malformed").join(name));
        assert!(found.broke(rule), "{name}: {rule} not in {:?}", found.issues);
    }
}

/// Windows' files keep the rules we write by, save for what stands here; other producers are known by what they do
/// differently.
#[test]
fn the_checker_tells_producers_apart() {
    let Some(folder) = real::folder() else { return };
    let expected: &[(&str, &[&str])] = &[
        ("DiscUtils/swap.vhdx", &["metadata-slack"]),
        ("dfvfs/ext2.vhd", &["block-alignment", "creator", "file-length"]),
        ("dfvfs/ext2.vhdx", &["headers-agree", "region-required", "table-padding"]),
        ("dfvfs/ntfs-differential.vhd", &[]),
        ("dfvfs/ntfs-differential.vhdx", &["absolute-path", "bitmap-tail", "metadata-slack"]),
        ("dfvfs/ntfs-dynamic.vhd", &[]),
        ("dfvfs/ntfs-dynamic.vhdx", &["metadata-slack"]),
        ("dfvfs/ntfs-fixed.vhd", &[]),
        ("dfvfs/ntfs-fixed.vhdx", &["metadata-slack"]),
        ("dfvfs/ntfs-parent.vhd", &[]),
        ("dfvfs/ntfs-parent.vhdx", &["metadata-slack"]),
        ("openvmm/dirty-unapplied.replayed.vhdx", &["clean-log", "creator", "headers-agree"]),
        ("openvmm/dirty-unapplied.vhdx", &["clean-log", "creator", "headers-agree"]),
        ("openvmm/dyn-4k.vhdx", &["clean-log", "creator", "headers-agree"]),
        ("openvmm/dyn-trims.vhdx", &["clean-log", "creator", "headers-agree"]),
        ("qemu/dyn-1M.vhdx", &["headers-agree", "region-required"]),
        ("qemu/dyn-chs.vhd", &["block-alignment", "creator"]),
        ("qemu/fixed-chs.vhd", &["creator"]),
        ("virtualbox/diff1.vhd", &["block-alignment", "file-length", "locator", "table-padding"]),
        ("virtualbox/diff2.vhd", &["block-alignment", "file-length", "locator", "table-padding"]),
        ("virtualbox/dyn.vhd", &["block-alignment", "file-length", "table-padding"]),
        ("virtualbox/fixed.vhd", &[]),
        ("plaso/image.vhd", &["block-alignment", "creator", "file-length", "unique-id"]),
    ];
    assert_eq!(expected.len(), real::ALL.len());
    for (name, rules) in expected {
        let found = report(&folder.join(name));
        assert_eq!(found.rules(), *rules, "{name}: {:?}", found.issues);
    }
}

/// Changes bytes of a good file, mends the checksum over them, and expects the rule that the change breaks.
fn plant(good: &[u8], damage: &[Damage]) {
    for &(at, bytes, checksum, rule) in damage {
        let mut file = good.to_vec();
        let at = if at < 0 { file.len() - usize::try_from(-at).unwrap() } else { usize::try_from(at).unwrap() };
        file[at..at + bytes.len()].copy_from_slice(bytes);
        match checksum {
            Sum::None => {}
            Sum::Footers => {
                let end = file.len();
                let tail = &file[end - 512..];
                let sum = vhd_checksum(tail, 64).to_be_bytes();
                file[end - 448..end - 444].copy_from_slice(&sum);
                file.copy_within(end - 512.., 0);
            }
            Sum::Header => {
                let sum = vhd_checksum(&file[512..1536], 36).to_be_bytes();
                file[548..552].copy_from_slice(&sum);
            }
            Sum::Vhdx(start, len) => {
                let sum = vhdx_checksum(&file[start..start + len], 4).to_le_bytes();
                file[start + 4..start + 8].copy_from_slice(&sum);
            }
        }
        let found = if file.starts_with(b"vhdxfile") { Report::vhdx(&file) } else { Report::vhd(&file) };
        assert!(found.broke(rule), "{at:#x}: {rule} not in {:?}", found.issues);
    }
}

/// Where (from the end when negative), what, the checksum to mend, the rule it breaks.
type Damage = (i64, &'static [u8], Sum, &'static str);

#[derive(Clone, Copy)]
enum Sum {
    None,
    Footers,
    Header,
    Vhdx(usize, usize),
}

#[test]
fn the_checker_sees_planted_damage_in_a_vhd() {
    let Some(folder) = real::folder() else { return };
    let good = fs::read(folder.join("dfvfs/ntfs-differential.vhd")).unwrap();
    let table = i64::from(u32::from_be_bytes(good[532..536].try_into().unwrap()));
    let block = u32::from_be_bytes(good[table as usize..table as usize + 4].try_into().unwrap());
    let bitmap = i64::from(block) * 512;
    plant(
        &good,
        &[
            (-504, &[0; 4], Sum::Footers, "features"),
            (-499, &[9], Sum::Footers, "version"),
            (-488, &[0xF0], Sum::Footers, "timestamp"),
            (-484, b"vpc ", Sum::Footers, "creator"),
            (-476, b"Mac ", Sum::Footers, "creator-os"),
            (-472, &[0, 0, 0, 0, 0, 0, 0, 1], Sum::Footers, "original-size"),
            (-455, &[1], Sum::Footers, "geometry"),
            (-444, &[0; 16], Sum::Footers, "unique-id"),
            (-428, &[1], Sum::Footers, "saved-state"),
            (-1, &[1], Sum::Footers, "reserved"),
            (100, &[1], Sum::None, "head-copy"),
            (520, &[0], Sum::Header, "header-data-offset"),
            (536, &[0, 2], Sum::Header, "header-version"),
            (543, &[3], Sum::Header, "table-entries"),
            (552, &[0; 16], Sum::Header, "parent-id"),
            (572, &[1], Sum::Header, "header-reserved"),
            (576, &[0; 512], Sum::Header, "parent-name"),
            (1088, b"Zx", Sum::Header, "locator"),
            (1095, &[1], Sum::Header, "locator"),
            (1280, &[1], Sum::Header, "header-reserved"),
            (table + 8, &[0], Sum::None, "table-padding"),
            (table + 4, &[0, 0, 0, 1], Sum::None, "overlap"),
            (table + 4, &[0x7F, 0, 0, 0], Sum::None, "past-end"),
            (bitmap, &[0; 512], Sum::None, "bytes-under-clear-bit"),
        ],
    );
}

#[test]
fn the_checker_sees_planted_damage_in_a_vhdx() {
    const HEADER: Sum = Sum::Vhdx(64 << 10, 4096);
    const TABLE: Sum = Sum::Vhdx(192 << 10, 64 << 10);
    let Some(folder) = real::folder() else { return };
    let good = fs::read(folder.join("dfvfs/ntfs-fixed.vhdx")).unwrap();
    let row = |at: usize| i64::try_from(u64::from_le_bytes(good[at..at + 8].try_into().unwrap())).unwrap();
    let (first, second) = (row((192 << 10) + 32), row((192 << 10) + 64));
    let is_metadata = good[first as usize..].starts_with(b"metadata");
    let (metadata, bat) = if is_metadata { (first, second) } else { (second, first) };
    plant(
        &good,
        &[
            (600, &[1], Sum::None, "identifier-reserved"),
            (8, &[0, 0], Sum::None, "creator"),
            (500 << 10, &[1], Sum::None, "header-section-reserved"),
            (65_536 + 8, &[0xFF; 8], HEADER, "header-sequence"),
            (65_536 + 16, &[0; 16], HEADER, "file-write-guid"),
            (65_536 + 32, &[0; 16], HEADER, "data-write-guid"),
            (65_536 + 48, &[1], HEADER, "clean-log"),
            (65_536 + 64, &[1], HEADER, "log-version"),
            (65_536 + 68, &[1], HEADER, "log-length"),
            (65_536 + 72, &[1], HEADER, "log-offset"),
            (65_536 + 200, &[1], HEADER, "header-reserved"),
            (65_536 + 5000, &[1], Sum::None, "header-reserved"),
            (65_536 + 16, &[7; 16], HEADER, "headers-agree"),
            ((192 << 10) + 12, &[1], TABLE, "region-reserved"),
            ((192 << 10) + 44, &[0], TABLE, "region-required"),
            ((192 << 10) + 44, &[0], TABLE, "region-copies"),
            (metadata + 8, &[1], Sum::None, "metadata-reserved"),
            (metadata + 32 + 24, &[0x14], Sum::None, "metadata-flags"),
            (metadata + 32 + 28, &[1], Sum::None, "metadata-reserved"),
            (bat, &[0], Sum::None, "fixed-state"),
            (bat, &[7], Sum::None, "payload-state"),
            (bat, &[4], Sum::None, "payload-state"),
            (bat, &[0x0E], Sum::None, "entry-reserved"),
            (bat + 2, &[0, 0, 0, 0, 0, 0], Sum::None, "payload-offset"),
            (bat + 2, &[0x10, 0, 0, 0, 0, 0], Sum::None, "overlap"),
            (bat + 5, &[1], Sum::None, "past-end"),
            (bat + 800, &[1], Sum::None, "table-padding"),
        ],
    );
}

#[test]
fn the_pages_test_vectors_hold() {
    let mut footer = vec![0; 512];
    for (at, bytes) in [
        (0, b"conectix".as_slice()),
        (8, &[0, 0, 0, 2, 0, 1, 0, 0]),
        (16, &[0xFF; 8]),
        (28, b"test\0\x01\0\0Wi2k"),
        (40, &[0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 120, 4, 17, 0, 0, 0, 2]),
        (68, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    ] {
        footer[at..at + bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(vhd_checksum(&footer, 64), 0xFFFF_F002);

    let mut header = vec![0; 4096];
    for (at, bytes) in [(0, b"head".as_slice()), (8, &[1]), (66, &[1]), (70, &[0x10]), (74, &[0x10])] {
        header[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let guid = crate::support::spec::vhdx::guid("{00112233-4455-6677-8899-aabbccddeeff}");
    header[16..32].copy_from_slice(&guid);
    header[32..48].copy_from_slice(&guid);
    assert_eq!(vhdx_checksum(&header, 4), 0x26C5_251A);

    for (size, expected) in [
        (3_145_728, (90, 4, 17)),
        (4_194_304, (120, 4, 17)),
        (20_971_520, (602, 4, 17)),
        (67_108_864, (963, 8, 17)),
        (104_857_600, (1003, 12, 17)),
        (528_482_304, (1024, 16, 63)),
        (1_073_741_824, (2080, 16, 63)),
        (33_822_350_848, (65_534, 16, 63)),
        (33_822_351_360, (16_191, 16, 255)),
        (136_365_211_648, (65_278, 16, 255)),
        (1 << 41, (65_535, 16, 255)),
    ] {
        assert_eq!(geometry(size), expected, "{size}");
    }
}

#[test]
fn azure_takes_fixed_disks_of_whole_mebibytes_only() {
    let Some(folder) = real::folder() else { return };
    let problems = |name: &str| azure_problems(folder.join(name));
    assert_eq!(problems("virtualbox/fixed.vhd"), ["file length 10486272 is out of bounds"]);
    assert_eq!(problems("qemu/fixed-chs.vhd").len(), 2);
    assert_eq!(problems("virtualbox/dyn.vhd").len(), 3);
}

#[test]
fn the_oracles_agree_with_the_digests() {
    let Some(folder) = real::folder() else { return };
    let small = |image: &&RealImage| image.size < 1 << 30;
    for image in real::ALL.iter().filter(small) {
        let paths = image.paths(&folder);
        let leaf = &paths[0];
        let vhdx = leaf.extension().is_some_and(|extension| extension == "vhdx");
        let dirty = image.name() == "openvmm/dirty-unapplied.vhdx";
        let sectors_4k = image.name() == "openvmm/dyn-4k.vhdx";
        if let Some(seven_zip) = SevenZip::find().filter(|_| !dirty) {
            let contents = seven_zip.contents(leaf, if vhdx { "VHDX" } else { "VHD" });
            assert_eq!(contents.sha256, image.sha256, "7zz {}", image.name());
        }
        if let Some(qemu) = QemuImg::find().filter(|_| !dirty && !sectors_4k && paths.len() == 1) {
            let contents = qemu.contents(leaf, if vhdx { "vhdx" } else { "vpc" });
            assert_eq!(contents.sha256, image.sha256, "qemu-img {}", image.name());
        }
        if let Some(libvhdi) = Libvhdi::find().filter(|_| !dirty && (vhdx || paths.len() == 1)) {
            let contents = libvhdi.contents(&paths);
            assert_eq!(contents.sha256, image.sha256, "libvhdi {}", image.name());
        }
    }
}
