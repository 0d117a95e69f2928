//! Structures that were overwritten: the rest of the file says what they said.

use crate::chains;
use crate::lab::{Lab, rescued, try_rescued};
use proptest::prelude::*;
use std::sync::Arc;
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::vhdx::Vhdx;
use vhdkit::{BlockMap, BlockSink, Content, ErrorKind, Findings, Structure, Want};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What happens to a range of a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Zeros,
    Garbage,
    /// One bit, so that only the checksum is wrong.
    Bit,
}

fn harm(lab: &Lab, (at, len): (u64, usize), how: Harm) {
    let mut bytes = vec![0; len];
    lab.leaf.read_exact_at(&mut bytes, at).unwrap();
    match how {
        Harm::Zeros => bytes.fill(0),
        Harm::Garbage => bytes.iter_mut().zip(0u64..).for_each(|(byte, n)| *byte = (n * 167 % 251) as u8 | 1),
        Harm::Bit => bytes[len - 1] ^= 0x10,
    }
    lab.leaf.write_all_at(&bytes, at).unwrap();
}

const HEADERS: [(u64, usize); 2] = [(64 * KIB, 4096), (128 * KIB, 4096)];
const REGIONS: [(u64, usize); 2] = [(192 * KIB, 64 << 10), (256 * KIB, 64 << 10)];

/// Asserts that everything is read, and which structures were made up for it.
#[track_caller]
fn assert_all_read(lab: &Lab, what: &str, assumed: &[Structure]) {
    let (report, _) = rescued(lab, &[0xEE]);
    assert_eq!(report.lost, [], "{} {what}", lab.name);
    let mut found: Vec<_> = report.files[0].assumptions.iter().map(|one| one.structure).collect();
    found.dedup();
    assert_eq!(found, assumed, "{} {what}: {:?}", lab.name, report.files[0].assumptions);
}

#[test]
fn vhdx_structures_are_made_up_from_what_is_left() {
    use Structure as S;
    for name in ["VHDX fixed", "VHDX dynamic", "VHDX differencing", "VHDX of 4096"] {
        let sound = Lab::named(name);
        for how in [Harm::Zeros, Harm::Garbage, Harm::Bit] {
            let with = |places: &[(u64, usize)]| {
                let lab = sound.copy();
                places.iter().for_each(|place| harm(&lab, *place, how));
                lab
            };
            let what = format!("{how:?}");
            for (header, region) in HEADERS.into_iter().zip(REGIONS) {
                assert_all_read(&with(&[header]), &what, &[]);
                assert_all_read(&with(&[region]), &what, &[]);
            }
            assert_all_read(&with(&HEADERS), &what, &[S::VhdxHeader]);
            assert_all_read(&with(&REGIONS), &what, &[S::VhdxRegionTable]);
            assert_all_read(
                &with(&[HEADERS[0], HEADERS[1], REGIONS[0], REGIONS[1]]),
                &what,
                &[S::VhdxHeader, S::VhdxRegionTable],
            );
            if !matches!(how, Harm::Bit) {
                assert_all_read(&with(&[(0, 8)]), &what, &[S::VhdxIdentifier]);
                // Signature and entry count of the metadata table, which lies at 2 MiB.
                assert_all_read(&with(&[(2 * MIB, 32)]), &what, &[S::VhdxMetadata]);
            }
        }
        // Nothing else says how long blocks are.
        let lab = sound.copy();
        harm(&lab, (2 * MIB, 64 << 10), Harm::Zeros);
        let error = try_rescued(&lab, &[]).unwrap_err();
        assert_eq!(error.problem().unwrap().structure, S::VhdxMetadata, "{error}");
    }
}

/// Headers that are wholly gone may have named a log; that is a loss nobody can place.
#[test]
fn lost_headers_leave_a_doubt() {
    let lab = Lab::named("VHDX dynamic");
    HEADERS.into_iter().for_each(|place| harm(&lab, place, Harm::Zeros));
    let (report, _) = rescued(&lab, &[]);
    assert!(report.lost.is_empty() && !report.is_whole());
    let lab = Lab::named("VHDX dynamic");
    HEADERS.into_iter().for_each(|place| harm(&lab, place, Harm::Bit));
    assert!(rescued(&lab, &[]).0.is_whole());
}

#[test]
fn vhd_structures_are_made_up_from_what_is_left() {
    use Structure as S;
    for name in ["VHD dynamic", "VHD differencing"] {
        let sound = Lab::named(name);
        let (tail, copy) = ((sound.len() - 512, 512), (0, 512));
        for how in [Harm::Zeros, Harm::Garbage, Harm::Bit] {
            let with = |places: &[(u64, usize)]| {
                let lab = sound.copy();
                places.iter().for_each(|place| harm(&lab, *place, how));
                lab
            };
            let what = format!("{how:?}");
            assert_all_read(&with(&[tail]), &what, &[]);
            assert_all_read(&with(&[copy]), &what, &[]);
            assert_all_read(&with(&[tail, copy]), &what, &[S::VhdFooter]);
            // The second sector of the header: a parent's locators, or nothing.
            let had_none = name == "VHD dynamic" && matches!(how, Harm::Zeros);
            assert_all_read(&with(&[(1024, 512)]), &what, if had_none { &[] } else { &[S::VhdHeader] });
            if name == "VHD dynamic" || matches!(how, Harm::Bit) {
                assert_all_read(&with(&[(512, 1024)]), &what, &[S::VhdHeader]);
                assert_all_read(&with(&[(512, 1024), copy]), &what, &[S::VhdHeader]);
            }
        }
        let lab = sound.copy();
        [tail, copy, (512, 1024)].into_iter().for_each(|place| harm(&lab, place, Harm::Zeros));
        assert_eq!(try_rescued(&lab, &[]).unwrap_err().kind(), ErrorKind::UnknownFormat);
        // Each field of the header that cannot be true is corrected by the others, or refused.
        for (field, bytes, structures) in
            [(32, &[0u8; 4][..], &[S::VhdHeader][..]), (28, &[0; 4], &[S::VhdHeader]), (28, &[0xFF; 4], &[])]
        {
            let lab = sound.copy();
            lab.leaf.write_all_at(bytes, 512 + field).unwrap();
            let mut header = vec![0; 1024];
            lab.leaf.read_exact_at(&mut header, 512).unwrap();
            let sum = crate::support::bytes::vhd_checksum(&header, 36);
            header[36..40].copy_from_slice(&sum.to_be_bytes());
            lab.leaf.write_all_at(&header, 512).unwrap();
            assert_all_read(&lab, &format!("header field {field}"), structures);
        }
    }
    let lab = Lab::named("VHD fixed");
    harm(&lab, (lab.len() - 512, 512), Harm::Bit);
    assert_all_read(&lab, "checksum", &[S::VhdFooter]);
    harm(&lab, (lab.len() - 512, 512), Harm::Zeros);
    assert_eq!(try_rescued(&lab, &[]).unwrap_err().kind(), ErrorKind::UnknownFormat);
}

/// A VHDX whose writer was cut off: the newest table is only in the log.
fn dirty() -> (Lab, u64) {
    let lab = Lab::named("VHDX dynamic");
    let storage = Arc::new(MemoryStorage::from_bytes(&lab.leaf.to_bytes().unwrap()));
    let mut writer = Vhdx::open(storage.clone(), Access::Write, &mut Findings::new()).unwrap();
    let bytes = chains::pattern(3 * MIB, 8192, 9);
    let want = Want { range: 3 * MIB..3 * MIB + 8192, content: Content::Data };
    let reservation = writer.reserve(vec![want]).unwrap();
    for place in reservation.places() {
        let from = (place.offset - 3 * MIB) as usize;
        writer.storage().write_all_at(&bytes[from..from + place.len as usize], place.at.get()).unwrap();
    }
    writer.storage().sync().unwrap();
    writer.publish(reservation).unwrap();
    let copy = MemoryStorage::from_bytes(&storage.to_bytes().unwrap());
    drop(writer);
    let mut dirty = lab.copy();
    dirty.model[3 * MIB as usize..][..8192].copy_from_slice(&bytes);
    dirty.leaf = copy;
    // The page of the table that the log holds, as it was before.
    let mut old = [0; 4096];
    lab.leaf.read_exact_at(&mut old, 3 * MIB).unwrap();
    dirty.leaf.write_all_at(&old, 3 * MIB).unwrap();
    let len = dirty.len();
    (dirty, len)
}

#[test]
fn a_log_is_applied_and_one_that_cannot_be_is_told() {
    let (lab, len) = dirty();
    let (report, _) = rescued(&lab, &[]);
    assert!(report.is_whole(), "{report:?}");

    // The file is shorter than the log relies on: the block it placed is lost, all else is there.
    let cut = lab.copy();
    cut.leaf.set_len(len - MIB).unwrap();
    let (report, _) = rescued(&cut, &[0xEE]);
    assert!(!report.lost.is_empty() && report.lost.iter().all(|lost| lost.offset >> 20 == 3), "{:?}", report.lost);

    // A log of which nothing can be read: the older table shows the older disk, and that is said.
    for how in [Harm::Zeros, Harm::Garbage] {
        let mut gone = lab.copy();
        harm(&gone, (MIB, 1 << 20), how);
        gone.model[3 * MIB as usize..][..8192].fill(0);
        let (report, _) = rescued(&gone, &[]);
        assert!(report.lost.is_empty() && !report.is_whole());
        assert_eq!(report.files[0].assumptions[0].structure, Structure::VhdxLog);
    }
    // The same when the medium cannot be read there.
    let mut bad = lab.copy();
    bad.leaf_is_bad_at(MIB..2 * MIB);
    bad.model[3 * MIB as usize..][..8192].fill(0);
    assert!(!rescued(&bad, &[]).0.is_whole());
}

/// Bug this finds: two blocks on the same bytes, of which one must be wrong, and a report that says all is well.
#[test]
fn space_with_two_owners_is_in_doubt() {
    let lab = Lab::named("VHDX dynamic");
    let mut entry = [0; 8];
    lab.leaf.read_exact_at(&mut entry, 3 * MIB).unwrap();
    lab.leaf.write_all_at(&entry, 3 * MIB + 8).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = vhdkit::ops::RescueOptions::new(vhdkit::Format::Raw);
    let report = lab.rescue(&folder.path().join("out.raw"), &options).unwrap();
    assert_eq!(report.files[0].doubts.len(), 1, "{:?}", report.files);
    assert_eq!(report.files[0].doubts[0].problem.structure, Structure::VhdxBat);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Structures overwritten anywhere, data and tables spared: what is read is right, and what cannot be is refused.
    #[test]
    fn harm_to_structures_never_shows_other_bytes(
        kind in prop::sample::select(vec!["VHD dynamic", "VHD differencing", "VHDX fixed", "VHDX dynamic", "VHDX differencing"]),
        harms in prop::collection::vec((0u64..1024, 1usize..9000, 0..3u8), 1..5),
    ) {
        let lab = Lab::named(kind);
        // Headers, region tables and metadata lie there; the log is empty; the table is spared.
        let spared = if kind.starts_with("VHDX") { 3 * MIB } else { 1536 };
        for (at, len, how) in harms {
            let at = if kind.starts_with("VHDX") { at * 3 * KIB } else { at * 3 / 2 };
            let len = len.min((spared - at.min(spared)) as usize);
            let how = [Harm::Zeros, Harm::Garbage, Harm::Bit][usize::from(how)];
            if len > 0 {
                harm(&lab, (at, len), how);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.raw");
        match lab.rescue(&path, &vhdkit::ops::RescueOptions::new(vhdkit::Format::Raw)) {
            Err(error) => prop_assert!(error.kind() != ErrorKind::Io, "{error}"),
            Ok(report) => {
                let bytes = std::fs::read(&path).unwrap();
                let lost = |at: u64| report.lost.iter().any(|lost| (lost.offset..lost.offset + lost.length).contains(&at));
                // Fields of metadata and headers have no copy: a changed size or block size that keeps every rule shows.
                let assumed = report.files.iter().any(|file| !file.assumptions.is_empty());
                if bytes.len() == lab.model.len() && !assumed && report.virtual_size == lab.model.len() as u64 {
                    let wrong = (0u64..).zip(bytes.iter().zip(&lab.model)).find(|(at, (a, b))| a != b && !lost(*at));
                    prop_assert!(wrong.is_none(), "{}: {:?}", kind, wrong);
                }
            }
        }
    }
}
