//! Whole images: real ones, damaged ones, fresh ones.

mod check;
mod crash;
mod model;
mod pack;
mod repair;

use super::*;
use crate::error::{ErrorKind, Result};
use crate::finding::{Findings, Severity};
use crate::link::{DiskKind, HintKind, ImageId, NewParent, ParentPaths};
use crate::map::{BlockMap, BlockSink, Content, Source, Want};
use crate::problem::{Fault, Structure};
use crate::storage::{Access, FileStorage, Lock, MemoryStorage, Storage};
use crate::support::{Report, real};
use crate::units::{FileOffset, GIB, MIB};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const PARENT_ID: [u8; 16] = *b"parent of a test";

fn memory(bytes: &[u8]) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::from_bytes(bytes))
}

fn open(storage: &Arc<MemoryStorage>, access: Access) -> (Result<Vhd>, Findings) {
    let mut findings = Findings::new();
    let shared: Arc<dyn Storage> = Arc::<MemoryStorage>::clone(storage);
    (Vhd::open(shared, access, &mut findings), findings)
}

fn faults(findings: &Findings) -> Vec<(Severity, Structure, Fault)> {
    findings.list().iter().map(|f| (f.severity, f.problem.structure, f.problem.fault)).collect()
}

/// Reads through the layers, leaf first.
fn read(layers: &[&Vhd], range: Range<u64>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    let Some((leaf, below)) = layers.split_first() else { return Ok(bytes) };
    let mut at = range.start;
    let end = range.end.min(leaf.virtual_size());
    while at < end {
        let extent = leaf.extent_at(at, end - at)?;
        assert!(extent.len > 0 && extent.len <= end - at);
        let part = &mut bytes[(at - range.start) as usize..][..extent.len as usize];
        match extent.source {
            Source::Data(from) => leaf.storage().read_exact_at(part, from.get()).unwrap(),
            Source::Zero => {}
            Source::Absent => part.copy_from_slice(&read(below, at..at + extent.len)?),
        }
        at += extent.len;
    }
    Ok(bytes)
}

fn contents(layers: &[&Vhd]) -> Vec<u8> {
    read(layers, 0..layers[0].virtual_size()).unwrap()
}

/// Reserves, fills, syncs and publishes; `fill` gives the byte of each virtual sector.
fn put(vhd: &mut Vhd, wants: Vec<Want>, fill: impl Fn(u64) -> u8) -> Result<()> {
    let reservation = vhd.reserve(wants)?;
    for place in reservation.places() {
        for sector in 0..place.len / 512 {
            let byte = match place.content {
                Content::Data => fill(place.offset / 512 + sector),
                Content::Zero => 0,
            };
            let failed = |error| crate::error::Error::io("write a test's bytes", error);
            vhd.storage().write_all_at(&[byte; 512], place.at.get() + sector * 512).map_err(failed)?;
        }
    }
    vhd.flush()?;
    vhd.publish(reservation)?;
    vhd.flush()
}

fn data(range: Range<u64>) -> Want {
    Want { range, content: Content::Data }
}

fn new_parent() -> NewParent {
    NewParent {
        id: ImageId::Vhd(PARENT_ID),
        paths: ParentPaths { relative: Some(".\\p.vhd".into()), absolute: Some("C:\\vm\\p.vhd".into()) },
        timestamp: 77,
    }
}

fn create(options: &VhdCreate) -> (Arc<MemoryStorage>, Vhd) {
    let storage = Arc::new(MemoryStorage::new());
    let vhd = Vhd::create(Arc::<MemoryStorage>::clone(&storage), options).unwrap();
    (storage, vhd)
}

fn open_real(path: &Path) -> (Result<Vhd>, Findings) {
    let mut findings = Findings::new();
    let storage = FileStorage::open(path, Access::Read, Lock::Shared).unwrap();
    (Vhd::open(Arc::new(storage), Access::Read, &mut findings), findings)
}

fn real_bytes(folder: &Path, name: &str) -> Arc<MemoryStorage> {
    memory(&std::fs::read(folder.join("malformed").join(name)).unwrap())
}

#[test]
fn every_real_image_decodes_to_its_digest() {
    let Some(folder) = real::folder() else { return };
    let mut seen = 0;
    for image in real::ALL.iter().filter(|image| image.name().ends_with(".vhd")) {
        let layers: Vec<Vhd> = image.paths(&folder).iter().map(|path| open_real(path).0.unwrap()).collect();
        let layers: Vec<&Vhd> = layers.iter().collect();
        for pair in layers.windows(2) {
            assert!(pair[0].parent_link().unwrap().accepts(pair[1].id()), "{}", image.name());
        }
        assert_eq!(layers.last().unwrap().parent_link(), None, "{}", image.name());
        let bytes = contents(&layers);
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((bytes.len() as u64, digest.as_str()), (image.size, image.sha256), "{}", image.name());
        seen += 1;
    }
    assert_eq!(seen, 12);
}

#[test]
fn what_real_images_say_of_themselves() {
    let Some(folder) = real::folder() else { return };
    let open = |name: &str| open_real(&folder.join(name));
    let (vhd, findings) = open("dfvfs/ntfs-differential.vhd");
    let vhd = vhd.unwrap();
    assert_eq!(
        (vhd.kind(), vhd.creator(), vhd.block_size()),
        (DiskKind::Differencing, "win 10.0".into(), Some(2 << 20))
    );
    assert_eq!(vhd.allocated_blocks().unwrap(), 2);
    let hints: Vec<_> = vhd.parent_link().unwrap().hints.into_iter().map(|hint| (hint.kind, hint.path)).collect();
    let path = "C:\\Projects\\dfvfs\\test_data\\ntfs-parent.vhd".to_owned();
    assert_eq!(
        hints,
        [
            (HintKind::Relative, ".\\ntfs-parent.vhd".to_owned()),
            (HintKind::Absolute, path.clone()),
            (HintKind::Name, path)
        ]
    );
    assert_eq!(faults(&findings), []);
    let (vhd, findings) = open("virtualbox/diff2.vhd");
    assert_eq!(vhd.unwrap().creator(), "vbox 7.2");
    assert!(findings.list().iter().all(|finding| finding.severity == Severity::Warning), "{:?}", findings.list());
    let (vhd, findings) = open("plaso/image.vhd");
    let vhd = vhd.unwrap();
    assert_eq!((vhd.chs_size(), vhd.virtual_size(), vhd.saved_state()), (104_448, 104_448, false));
    assert!(faults(&findings).contains(&(Severity::Error, Structure::VhdFooter, Fault::Value)), "null unique id");
}

/// A footer that was lost must cost nothing, and must not be written over before it is restored.
#[test]
fn a_lost_tail_is_read_around_and_mended_on_request() {
    let Some(folder) = real::folder() else { return };
    let whole = contents(&[&open_real(&folder.join("dfvfs/ntfs-dynamic.vhd")).0.unwrap()]);
    for (name, structure, fault) in [
        ("vhd-dyn-tail-footer-cut.vhd", Structure::VhdFooter, Fault::Missing),
        ("vhd-dyn-tail-badsum.vhd", Structure::VhdFooter, Fault::Checksum),
        ("vhd-dyn-head-copy-badsum.vhd", Structure::VhdFooterCopy, Fault::Checksum),
    ] {
        let storage = real_bytes(&folder, name);
        let before = storage.to_bytes().unwrap();
        let (vhd, findings) = open(&storage, Access::Read);
        assert_eq!(contents(&[&vhd.unwrap()]), whole, "{name}");
        assert!(faults(&findings).contains(&(Severity::Error, structure, fault)), "{name}: {findings:?}");
        let refused = open(&storage, Access::Write).0.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Refused, "{name}");
        assert!(refused.hint().unwrap().contains("vhdkit repair"), "{name}");
        assert_eq!(storage.to_bytes().unwrap(), before, "{name}: nothing was written");
        open(&storage, Access::Recover).0.unwrap().close().unwrap();
        let (vhd, findings) = open(&storage, Access::Write);
        assert_eq!(contents(&[&vhd.unwrap()]), whole, "{name}");
        assert_eq!(
            faults(&findings).into_iter().filter(|f| f.0 != Severity::Warning).collect::<Vec<_>>(),
            [],
            "{name}"
        );
        let after = storage.to_bytes().unwrap();
        assert_eq!(after[..512], after[after.len() - 512..], "{name}");
        assert_eq!(after[512..4000], before[512..4000], "{name}");
    }
}

#[test]
fn a_lost_block_is_an_error_and_never_zeros() {
    let Some(folder) = real::folder() else { return };
    for name in ["vhd-dyn-bat-past-eof.vhd", "vhd-dyn-cut-in-last-block.vhd"] {
        let storage = real_bytes(&folder, name);
        let vhd = open(&storage, Access::Read).0.unwrap();
        let blocks: Vec<_> = (0..2).map(|block| read(&[&vhd], block * 2 * MIB..(block + 1) * 2 * MIB)).collect();
        let errors: Vec<_> = blocks.iter().filter_map(|block| block.as_ref().err()).collect();
        assert_eq!(errors.len(), 1, "{name}");
        let problem = errors[0].problem().unwrap();
        assert_eq!((errors[0].kind(), problem.structure), (ErrorKind::Corrupt, Structure::VhdBat), "{name}");
        let entry = problem.offset.unwrap().get();
        assert!((0x600..0x608).contains(&entry) || (0x2000..0x2008).contains(&entry), "{name}: {entry:#x}");
        if let Ok(mut writable) = open(&storage, Access::Write).0 {
            let before = storage.to_bytes().unwrap();
            assert_eq!(writable.reserve(vec![data(0..512)]).unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
            assert_eq!(storage.to_bytes().unwrap(), before, "{name}");
        }
        let before = storage.to_bytes().unwrap();
        if name.contains("cut") {
            assert_eq!(open(&storage, Access::Recover).0.unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
        }
        assert_eq!(storage.to_bytes().unwrap(), before, "{name}");
    }
    for (name, structure, fault) in [
        ("vhd-dyn-blocksize-0.vhd", Structure::VhdHeader, Fault::Value),
        ("vhd-fixed-nofooter.vhd", Structure::VhdFooter, Fault::Missing),
    ] {
        let storage = real_bytes(&folder, name);
        for access in [Access::Read, Access::Write, Access::Recover] {
            let error = open(&storage, access).0.unwrap_err();
            let problem = error.problem().unwrap();
            assert_eq!(
                (error.kind(), problem.structure, problem.fault),
                (ErrorKind::Corrupt, structure, fault),
                "{name}"
            );
        }
    }
}

/// Sizes that overflow when they are rounded up to whole blocks once counted as none, which any table can hold.
#[test]
fn no_disk_is_larger_than_its_table() {
    let whole = create(&VhdCreate::new(GIB)).0.to_bytes().unwrap();
    for size in [GIB + 512, 2040 * GIB, 1 << 63, u64::MAX - 511, !4095, !(2 * MIB - 1)] {
        let mut bytes = whole.clone();
        let tail = bytes.len() - 512;
        for at in [0, tail] {
            bytes[at + 48..at + 56].copy_from_slice(&size.to_be_bytes());
            bytes[at + 64..at + 68].fill(0);
            let sum = !bytes[at..at + 512].iter().map(|&byte| u32::from(byte)).sum::<u32>();
            bytes[at + 64..at + 68].copy_from_slice(&sum.to_be_bytes());
        }
        let error = open(&memory(&bytes), Access::Read).0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{size:#x}: {error}");
        assert_eq!(error.problem().unwrap().structure, Structure::VhdHeader, "{size:#x}: {error}");
    }
}

/// The rest of the table may lie past the end of the file, with the structures before it in order.
#[test]
fn a_table_cut_off_is_damage_with_a_place_and_no_failure_of_the_medium() {
    let whole = create(&VhdCreate::new(8 * GIB)).0.to_bytes().unwrap();
    let table = 1536..1536 + 4 * 4096;
    for len in [1537, 2048, 4095, 4096, 4098, 8192, 12_345, 16_384, table.end - 1] {
        let storage = memory(&whole[..len]);
        let (opened, findings) = open(&storage, Access::Read);
        let asked = opened.and_then(|vhd| {
            let last = vhd.extent_at(8 * GIB - 512, 512).map(drop);
            let all = vhd.allocated_blocks().map(drop);
            assert_eq!(last.is_err(), all.is_err(), "{len}");
            last.and(all)
        });
        let error = asked.expect_err("the last entry is not there");
        let problem = error.problem().unwrap_or_else(|| panic!("{len}: {error}, after {findings:?}"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}: {error}");
        assert!(matches!(problem.fault, Fault::Truncated | Fault::Range), "{len}: {error}");
        assert!(problem.offset.is_some(), "{len}: {error}");
        assert_eq!(storage.to_bytes().unwrap(), whole[..len], "{len}");
    }
}

/// A guest can write anything to its first sectors, a whole VHD among it.
#[test]
fn the_end_of_the_file_decides_what_a_fixed_disk_is() {
    let (inner, vhd) = create(&VhdCreate::new(MIB).block_size(64 << 10));
    drop(vhd);
    let inner = inner.to_bytes().unwrap();
    let (storage, fixed) = create(&VhdCreate::new(MIB).kind(DiskKind::Fixed));
    fixed.storage().write_all_at(&inner, 0).unwrap();
    let (vhd, findings) = open(&storage, Access::Write);
    let vhd = vhd.unwrap();
    assert_eq!((vhd.kind(), faults(&findings)), (DiskKind::Fixed, vec![]));
    assert_eq!(contents(&[&vhd])[..inner.len()], inner);
    assert!(Vhd::probe(&*storage).unwrap());
}

#[test]
fn what_is_a_vhd() {
    let (dynamic, _) = create(&VhdCreate::new(MIB).block_size(64 << 10));
    let dynamic = dynamic.to_bytes().unwrap();
    let (fixed, _) = create(&VhdCreate::new(4096).kind(DiskKind::Fixed));
    let fixed = fixed.to_bytes().unwrap();
    let probe = |bytes: &[u8]| Vhd::probe(&*memory(bytes)).unwrap();
    let all_but = |bytes: &[u8], cut: usize| bytes[..bytes.len() - cut].to_vec();
    assert!(probe(&dynamic) && probe(&fixed));
    assert!(probe(&all_but(&dynamic, 1)) && probe(&all_but(&fixed, 1)), "the footer before Virtual PC 2004");
    assert!(probe(&all_but(&dynamic, 512)), "the copy, with a header behind it");
    assert!(!probe(&all_but(&fixed, 512)), "a fixed disk has no copy");
    let mut headless = all_but(&dynamic, 512);
    headless[512] = 0;
    assert!(!probe(&headless), "a copy that nothing vouches for");
    let mut damaged = fixed;
    *damaged.last_mut().unwrap() = 1;
    assert!(probe(&damaged), "a damaged VHD is a VHD");
    for bytes in [&[][..], &[0; 511], &[0; 512], &[0; 4096], b"conectix", &[0xC7; 8192]] {
        assert!(!probe(bytes), "{} bytes", bytes.len());
    }
}

/// The footer of products before Virtual PC 2004 lacks its last byte.
#[test]
fn short_footers_open_and_are_made_whole_when_rewritten() {
    for options in [VhdCreate::new(MIB).kind(DiskKind::Fixed), VhdCreate::new(MIB).block_size(4096)] {
        let (storage, vhd) = create(&options);
        let len = storage.len().unwrap();
        drop(vhd);
        storage.set_len(len - 1).unwrap();
        let (vhd, findings) = open(&storage, Access::Write);
        let mut vhd = vhd.unwrap();
        assert!(
            faults(&findings).contains(&(Severity::Warning, Structure::VhdFooter, Fault::Truncated)),
            "{findings:?}"
        );
        assert_eq!(vhd.virtual_size(), MIB);
        put(&mut vhd, vec![data(0..4096)], |_| 7).unwrap();
        vhd.set_unique_id([9; 16]).unwrap();
        vhd.close().unwrap();
        let (vhd, findings) = open(&storage, Access::Write);
        let vhd = vhd.unwrap();
        assert_eq!((vhd.id(), faults(&findings)), (ImageId::Vhd([9; 16]), vec![]));
        assert_eq!(read(&[&vhd], 0..4096).unwrap(), [7; 4096]);
    }
}

/// A tap image whose host stopped has 0xC7 where its footer was.
#[test]
fn the_mark_of_an_interrupted_tap_writer_is_told_apart() {
    let (storage, mut vhd) = create(&VhdCreate::new(MIB).block_size(4096));
    put(&mut vhd, vec![data(4096..8192)], |_| 7).unwrap();
    let len = storage.len().unwrap();
    storage.write_all_at(&[0xC7; 512], len - 512).unwrap();
    let (vhd, findings) = open(&storage, Access::Read);
    assert_eq!(read(&[&vhd.unwrap()], 4096..8192).unwrap(), [7; 4096]);
    assert_eq!(faults(&findings), [(Severity::Error, Structure::VhdFooter, Fault::Dirty)]);
    assert!(open(&storage, Access::Recover).0.is_ok());
    assert!(open(&storage, Access::Write).0.is_ok());
    storage.write_all_at(b"v_poison", 0).unwrap();
    storage.set_len(storage.len().unwrap() - 512).unwrap();
    assert_eq!(open(&storage, Access::Recover).0.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_disagreement_is_settled_by_the_tail_unless_only_the_copy_fits() {
    let (storage, vhd) = create(&VhdCreate::new(MIB).block_size(4096));
    let bigger = vhd.footer.with_size(2 * MIB);
    let renamed = vhd.footer.with_unique_id([5; 16]);
    let tail_at = vhd.tail_at;
    storage.write_all_at(renamed.bytes(), 0).unwrap();
    let (opened, findings) = open(&storage, Access::Read);
    assert_eq!(opened.unwrap().id(), vhd.id());
    assert_eq!(faults(&findings), [(Severity::Error, Structure::VhdFooterCopy, Fault::Mismatch)]);
    storage.write_all_at(bigger.bytes(), tail_at).unwrap();
    let (opened, findings) = open(&storage, Access::Read);
    assert_eq!(opened.unwrap().id(), ImageId::Vhd([5; 16]), "the table is too short for what the tail says");
    assert_eq!(faults(&findings), [(Severity::Error, Structure::VhdFooter, Fault::Mismatch)]);
    let mended = open(&storage, Access::Recover).0.unwrap();
    assert_eq!((mended.id(), mended.virtual_size()), (ImageId::Vhd([5; 16]), MIB));
    assert_eq!(faults(&open(&storage, Access::Write).1), []);
}

/// The bytes of a new image: the layout every other reader takes, 4 KiB aligned from the start.
#[test]
fn fresh_dynamic_images_have_the_interoperable_layout() {
    let options = VhdCreate::new(GIB).unique_id([3; 16]).timestamp(0x1234_5678);
    let (storage, vhd) = create(&options);
    let bytes = storage.to_bytes().unwrap();
    assert_eq!(bytes.len(), 4096);
    assert_eq!(bytes[..512], bytes[4096 - 512..]);
    assert_eq!(bytes[..16], *b"conectix\0\0\0\x02\0\x01\0\0");
    assert_eq!(bytes[16..24], 512u64.to_be_bytes());
    assert_eq!(bytes[24..32], *b"\x12\x34\x56\x78vkit");
    assert_eq!(bytes[36..40], *b"Wi2k");
    assert_eq!((&bytes[40..48], &bytes[48..56]), (&GIB.to_be_bytes()[..], &GIB.to_be_bytes()[..]));
    assert_eq!(bytes[56..64], [0x08, 0x20, 16, 63, 0, 0, 0, 3]);
    assert_eq!(bytes[68..84], [3; 16]);
    assert_eq!(bytes[512..528], *b"cxsparse\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF");
    assert_eq!(bytes[528..536], 1536u64.to_be_bytes());
    assert_eq!(bytes[536..548], [0, 1, 0, 0, 0, 0, 2, 0, 0, 0x20, 0, 0]);
    assert!(bytes[1536..1536 + 2048].iter().all(|&byte| byte == 0xFF));
    assert_eq!(vhd.allocated_blocks().unwrap(), 0);
    assert_eq!(vhd.extent_at(0, GIB).unwrap(), crate::map::Extent { len: GIB, source: Source::Absent });
    drop(vhd);
    Report::vhd(&bytes).assert_clean("a fresh dynamic image");
}

#[test]
fn fresh_differencing_and_fixed_images() {
    let (storage, vhd) = create(&VhdCreate::new(MIB).block_size(512 << 10).parent(new_parent()));
    let bytes = storage.to_bytes().unwrap();
    let le = |at: usize, text: &str| {
        let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(bytes[at..at + wide.len()], wide, "{text}");
    };
    assert_eq!(bytes[512 + 40..512 + 60], [&PARENT_ID[..], &77u32.to_be_bytes()].concat());
    assert_eq!(bytes[512 + 64..512 + 70], *b"\0C\0:\0\\");
    assert_eq!(bytes[512 + 576..512 + 580], *b"W2ku");
    assert_eq!(bytes[512 + 600..512 + 604], *b"W2ru");
    le(2048, "C:\\vm\\p.vhd");
    le(2560, ".\\p.vhd");
    let link = vhd.parent_link().unwrap();
    assert_eq!(link.ids, [ImageId::Vhd(PARENT_ID)]);
    let hints: Vec<_> = link.hints.iter().map(|hint| (hint.kind, hint.path.as_str())).collect();
    let absolute = "C:\\vm\\p.vhd";
    assert_eq!(hints, [(HintKind::Relative, ".\\p.vhd"), (HintKind::Absolute, absolute), (HintKind::Name, absolute)]);
    assert_eq!(vhd.parent_timestamp(), Some(77));
    drop(vhd);
    Report::vhd(&bytes).assert_clean("a fresh differencing image");

    let (storage, vhd) = create(&VhdCreate::new(MIB + 512).kind(DiskKind::Fixed));
    let bytes = storage.to_bytes().unwrap();
    assert_eq!(bytes.len() as u64, MIB + 1024);
    assert_eq!(bytes[bytes.len() - 512 + 16..][..8], [0xFF; 8]);
    let whole = crate::map::Extent { len: MIB, source: Source::Data(FileOffset(512)) };
    assert_eq!(vhd.extent_at(512, u64::MAX).unwrap(), whole);
    assert_eq!((vhd.block_size(), vhd.allocated_blocks().unwrap()), (None, 0));
    drop(vhd);
    Report::vhd(&bytes).assert_clean("a fresh fixed image");
}

/// Whatever can be made can be opened, and what cannot be opened is not made.
#[test]
fn create_and_open_agree_on_what_is_allowed() {
    for block_size in [4 << 10, 512 << 10, 2 << 20, 256 << 20] {
        let (storage, vhd) = create(&VhdCreate::new(3 * GIB + 512).block_size(block_size));
        drop(vhd);
        let (vhd, findings) = open(&storage, Access::Write);
        assert_eq!((vhd.unwrap().block_size(), faults(&findings)), (Some(block_size), vec![]));
    }
    let null = NewParent { id: ImageId::Vhd([0; 16]), ..new_parent() };
    let vhdx = NewParent { id: ImageId::Vhdx(crate::guid::fresh()), ..new_parent() };
    let pathless = NewParent { paths: ParentPaths::default(), ..new_parent() };
    for (index, options) in [
        VhdCreate::new(0),
        VhdCreate::new(513),
        VhdCreate::new(2040 * GIB + 512),
        VhdCreate::new(u64::MAX - 511).kind(DiskKind::Fixed),
        VhdCreate::new(MIB).block_size(0),
        VhdCreate::new(MIB).block_size(2048),
        VhdCreate::new(MIB).block_size(3 << 20),
        VhdCreate::new(MIB).block_size(512 << 20),
        VhdCreate::new(MIB).block_size(4096).kind(DiskKind::Fixed),
        VhdCreate::new(MIB).kind(DiskKind::Differencing),
        VhdCreate::new(MIB).parent(new_parent()).kind(DiskKind::Dynamic),
        VhdCreate::new(MIB).parent(null),
        VhdCreate::new(MIB).parent(vhdx),
        VhdCreate::new(MIB).parent(pathless),
        VhdCreate::new(MIB).unique_id([0; 16]),
    ]
    .iter()
    .enumerate()
    {
        let storage = Arc::new(MemoryStorage::new());
        let shared: Arc<dyn Storage> = Arc::<MemoryStorage>::clone(&storage);
        assert_eq!(Vhd::create(shared, options).unwrap_err().kind(), ErrorKind::InvalidInput, "case {index}");
    }
    let full = memory(&[1]);
    assert_eq!(Vhd::create(full, &VhdCreate::new(MIB)).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// The largest disk: opening it and asking about it must read kilobytes, not its table of four megabytes.
#[test]
fn opening_the_largest_disk_reads_kilobytes() {
    use crate::storage::sim::SimDisk;
    let disk = SimDisk::new();
    Vhd::create(disk.file("a.vhd"), &VhdCreate::new(2040 * GIB)).unwrap().close().unwrap();
    let before = disk.counts().bytes_read;
    let vhd = Vhd::open(disk.file("a.vhd"), Access::Read, &mut Findings::new()).unwrap();
    let opened = disk.counts().bytes_read - before;
    assert!(opened < 16 << 10, "{opened} bytes");
    assert_eq!(vhd.virtual_size(), 2040 * GIB);
    let mut at = 0;
    let mut answers = 0;
    while at < vhd.virtual_size() {
        let extent = vhd.extent_at(at, u64::MAX).unwrap();
        assert_eq!(extent.source, Source::Absent);
        at += extent.len;
        answers += 1;
    }
    assert!(answers <= 16, "{answers} answers for one run");
}

/// Damage of one field at a time, in a file where everything else is right.
#[test]
fn odd_structures_are_found_on_opening() {
    type Damage = fn(&mut [u8]);
    let (storage, _) = create(&VhdCreate::new(MIB).block_size(64 << 10).parent(new_parent()));
    let good = storage.to_bytes().unwrap();
    let cases: [(Damage, (Severity, Structure, Fault)); 6] = [
        (|b| b[1536 + 64] = 0, (Severity::Warning, Structure::VhdBat, Fault::Reserved)),
        (|b| b[512 + 576 + 8] = 0xFF, (Severity::Error, Structure::VhdLocator, Fault::Range)),
        (|b| b[512 + 576 + 16] = 0xFF, (Severity::Error, Structure::VhdLocator, Fault::Range)),
        (|b| b[512 + 64..512 + 768].fill(0), (Severity::Error, Structure::VhdLocator, Fault::Missing)),
        (|b| b[512 + 8] = 0, (Severity::Error, Structure::VhdHeader, Fault::Value)),
        (|b| b[512 + 900] = 1, (Severity::Error, Structure::VhdHeader, Fault::Reserved)),
    ];
    for (index, (damage, expected)) in cases.into_iter().enumerate() {
        let mut bytes = good.clone();
        damage(&mut bytes);
        let sum = raw::checksum(&bytes[512..1536], u32::from_be_bytes(bytes[548..552].try_into().unwrap()));
        bytes[548..552].copy_from_slice(&sum.to_be_bytes());
        let (vhd, findings) = open(&memory(&bytes), Access::Read);
        assert!(vhd.is_ok(), "case {index}");
        assert_eq!(faults(&findings), [expected], "case {index}");
    }
}

/// A file whose last sector is cut off and is no footer is another kind of file, not one that cannot be read.
#[test]
fn a_file_of_another_kind_may_have_any_length() {
    for len in [0, 1, 511, 512, 513, 100_000] {
        assert!(!Vhd::probe(&MemoryStorage::from_bytes(&vec![7; len])).unwrap(), "{len}");
    }
}

/// Nothing that can be in a file makes opening or mapping it panic, or run on.
#[test]
fn damaged_bytes_never_panic() {
    use proptest::prelude::*;
    let (storage, mut vhd) = create(&VhdCreate::new(MIB).block_size(4096).parent(new_parent()));
    put(&mut vhd, vec![data(0..4096), data(512_000..516_096)], |_| 7).unwrap();
    vhd.close().unwrap();
    let good = storage.to_bytes().unwrap();
    let spot = prop_oneof![0usize..2600, Just(good.len() - 512).prop_flat_map(|at| at..at + 512)];
    let value = prop_oneof![Just(0u8), Just(0xFF), Just(0x7F), any::<u8>()];
    proptest!(|(edits in proptest::collection::vec((spot, value), 1..6), cut in 0usize..1200, reseal: bool)| {
        let mut bytes = good.clone();
        for (at, value) in edits {
            bytes[at] = value;
        }
        if reseal {
            let tail = bytes.len() - 512;
            for (at, len, field) in [(0, 512, 64), (512, 1024, 36), (tail, 512, 64)] {
                let stored = u32::from_be_bytes(bytes[at + field..at + field + 4].try_into().unwrap());
                let sum = raw::checksum(&bytes[at..at + len], stored);
                bytes[at + field..at + field + 4].copy_from_slice(&sum.to_be_bytes());
            }
        }
        bytes.truncate(bytes.len() - cut.saturating_sub(600));
        let storage = memory(&bytes);
        if let (Ok(vhd), _) = open(&storage, Access::Read) {
            let mut at = 0;
            for _ in 0..64 {
                let Ok(extent) = vhd.extent_at(at, u64::MAX) else { break };
                at += extent.len;
                if at >= vhd.virtual_size() {
                    break;
                }
            }
            let _ = (vhd.allocated_blocks().is_ok(), vhd.parent_link());
        }
        if let (Ok(mut vhd), _) = open(&storage, Access::Recover) {
            let _ = vhd.reserve(vec![data(0..512)]).is_ok();
        }
    });
}

/// Layouts of Windows, QEMU and VirtualBox, with their gaps, fillers and orders, are written on.
#[test]
fn real_images_are_written_on() {
    let Some(folder) = real::folder() else { return };
    for image in real::ALL.iter().filter(|image| image.name().ends_with(".vhd")) {
        let paths = image.paths(&folder);
        let parents: Vec<Vhd> = paths[1..].iter().map(|path| open_real(path).0.unwrap()).collect();
        let storage = memory(&std::fs::read(&paths[0]).unwrap());
        let mut leaf = open(&storage, Access::Write).0.unwrap();
        let shown = |leaf: &Vhd| {
            let layers: Vec<&Vhd> = std::iter::once(leaf).chain(&parents).collect();
            contents(&layers)
        };
        let mut expected = shown(&leaf);
        let sectors = expected.len() as u64 / 512;
        for (round, start) in [0, sectors / 3, sectors / 2 - 3, sectors - 5].into_iter().enumerate() {
            let byte = 0xA0 + round as u8;
            let range = start * 512..(start + 5) * 512;
            expected[range.start as usize..range.end as usize].fill(byte);
            put(&mut leaf, vec![data(range)], |_| byte).unwrap();
            assert!(shown(&leaf) == expected, "{} after write {round}", image.name());
        }
        leaf.set_virtual_size(image.size + (3 << 20), crate::link::GrowAs::Zero).unwrap();
        expected.resize(expected.len() + (3 << 20), 0);
        leaf.close().unwrap();
        let leaf = open(&storage, Access::Write).0.unwrap();
        assert!(shown(&leaf) == expected, "{} after growing", image.name());
        let mut files: Vec<Box<dyn crate::support::Bytes>> = vec![Box::new(storage.to_bytes().unwrap())];
        files.extend(paths[1..].iter().map(|path| Box::new(std::fs::File::open(path).unwrap()) as Box<_>));
        let second = crate::support::SpecDisk::from_bytes(files).unwrap();
        assert!(second.read(0, expected.len()).unwrap() == expected, "{} by the second reader", image.name());
    }
}

/// Bug this finds: telling what a large file of zeros is by reading all of it.
#[test]
fn a_long_tail_of_zeros_is_read_within_a_bound() {
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug, Default)]
    struct Zeros(AtomicU64);
    impl Storage for Zeros {
        fn len(&self) -> std::io::Result<u64> {
            Ok(100 * GIB)
        }
        fn read_exact_at(&self, buf: &mut [u8], _: u64) -> std::io::Result<()> {
            self.0.fetch_add(buf.len() as u64, Ordering::Relaxed);
            buf.fill(0);
            Ok(())
        }
        fn write_all_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }
        fn set_len(&self, _: u64) -> std::io::Result<()> {
            Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
        }
        fn sync(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let zeros = Zeros::default();
    assert!(!Vhd::probe(&zeros).unwrap());
    assert!(zeros.0.load(Ordering::Relaxed) < 66 * MIB);
}
