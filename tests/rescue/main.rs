//! What is rescued from damaged images, against a plain model of what the sound ones showed: every byte that is not in the
//! map of lost ranges must be the right one, and the map must name no more than was lost.

#[allow(dead_code)]
#[path = "../support/chains.rs"]
mod chains;
mod lab;
mod medium;
mod structures;
#[path = "../support/mod.rs"]
mod support;

use lab::{Lab, rescued};
use std::fs;
use vhdkit::chain::Layer;
use vhdkit::ops::{RescueOptions, rescue_layers};
use vhdkit::storage::Access;
use vhdkit::{CancelToken, ErrorKind, Format, Watch};

#[test]
fn sound_images_are_read_whole_into_every_format() {
    for lab in Lab::all() {
        for (format, name) in [(Format::Raw, "out.raw"), (Format::Vhd, "out.vhd"), (Format::Vhdx, "out.vhdx")] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            if format == Format::Vhd && lab.sector != 512 {
                let error = lab.rescue(&path, &RescueOptions::new(format)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", lab.name);
                continue;
            }
            let report = lab.rescue(&path, &RescueOptions::new(format).block_size(1 << 20)).or_else(|error| {
                assert_eq!((format, error.kind()), (Format::Raw, ErrorKind::InvalidInput), "raw has no blocks");
                lab.rescue(&path, &RescueOptions::new(format))
            });
            let report = report.unwrap();
            assert!(report.is_whole() && report.lost.is_empty() && report.absent.is_empty(), "{}", lab.name);
            assert!(report.files.iter().all(|file| file.assumptions.is_empty() && file.doubts.is_empty()));
            let shown = if format == Format::Raw { fs::read(&path).unwrap() } else { support::read_chain(&[&path]) };
            assert!(shown == lab.model, "{} as {format}", lab.name);
            match format {
                Format::Vhd => support::assert_well_formed_vhd(&path),
                Format::Vhdx => support::assert_well_formed_vhdx(&path),
                _ => {}
            }
        }
    }
}

#[test]
fn lost_ranges_hold_the_pattern_at_its_place() {
    let mut lab = Lab::named("VHDX dynamic");
    let bad = lab.data().into_iter().find(|run| run.len > 4096).unwrap();
    lab.leaf_is_bad_at(bad.place + 1024..bad.place + 1025);
    let (report, bytes) = rescued(&lab, b"abcde");
    assert_eq!(lab::ranges(&report), [(bad.offset + 1024, 512)]);
    let lost = bad.offset as usize + 1024..bad.offset as usize + 1536;
    let expected: Vec<u8> = lost.clone().map(|at| b"abcde"[at % 5]).collect();
    assert_eq!(bytes[lost], expected);
}

#[test]
fn what_a_parent_holds_is_told_apart_from_what_is_lost() {
    for name in ["VHD differencing", "VHDX differencing"] {
        let lab = Lab::named(name);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.raw");
        let report = lab.rescue(&path, &RescueOptions::new(Format::Raw).alone(true)).unwrap();
        let bytes = fs::read(&path).unwrap();
        let own = lab.data();
        assert!(report.is_whole() && !report.absent.is_empty() && !own.is_empty());
        let mut expected = vec![0; lab.model.len()];
        for run in &own {
            let range = run.offset as usize..(run.offset + run.len) as usize;
            expected[range.clone()].copy_from_slice(&lab.model[range]);
        }
        assert!(bytes == expected, "{name}");
        let absent = |at: u64| report.absent.iter().any(|range| range.contains(&at));
        for at in (0..lab.model.len() as u64).step_by(512) {
            let held = own.iter().any(|run| (run.offset..run.offset + run.len).contains(&at));
            assert!(!(held && absent(at)), "{name}: {at:#x} is the leaf's");
            // What is neither the leaf's nor the parent's, the leaf says is zero.
            assert!(held || absent(at) || lab.model[at as usize] == 0, "{name}: {at:#x} is the parent's");
        }
        // The parents of a chain must be there when the chain is wanted.
        let alone: Vec<Layer> = lab.layers().into_iter().take(1).collect();
        let error =
            rescue_layers(&alone, folder.path().join("b.raw"), &RescueOptions::new(Format::Raw), &Watch::none());
        assert_eq!(error.unwrap_err().kind(), ErrorKind::ParentNotFound);
    }
}

#[test]
fn the_target_is_whole_or_not_there_and_never_a_source() {
    let lab = Lab::named("VHD dynamic");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.raw");
    let token = CancelToken::new();
    token.cancel();
    let options = RescueOptions::new(Format::Raw);
    let stopped = rescue_layers(&lab.layers(), &path, &options, &Watch::none().cancel(&token));
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");

    fs::write(&path, b"old").unwrap();
    assert_eq!(lab.rescue(&path, &options).unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    lab.rescue(&path, &options.clone().overwrite(true)).unwrap();
    assert!(fs::read(&path).unwrap() == lab.model);

    let source = folder.path().join("source.vhd");
    fs::write(&source, lab.leaf.to_bytes().unwrap()).unwrap();
    let error = vhdkit::ops::rescue(&source, &source, &options.overwrite(true), &Watch::none()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(fs::read(&source).unwrap() == lab.leaf.to_bytes().unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn what_is_no_image_at_all_is_refused() {
    for bytes in [vec![], vec![0; 1 << 20], vec![0xFF; 3 << 20]] {
        let storage: std::sync::Arc<dyn vhdkit::storage::Storage> =
            std::sync::Arc::new(vhdkit::storage::MemoryStorage::from_bytes(&bytes));
        assert_eq!(Layer::open_damaged(&storage).unwrap_err().kind(), ErrorKind::UnknownFormat);
        assert!(Layer::open(storage, Access::Read).is_err());
    }
}
