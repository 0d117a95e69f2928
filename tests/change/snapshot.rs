//! Bug this finds: a snapshot over another one's file, a child that does not show what the leaf shows, metadata of the
//! disk that is left behind.

use crate::lab::{FORMATS, Lab, MIB, pattern, show};
use crate::support::oracle::SevenZip;
use crate::support::{Contents, read_chain};
use std::fs;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{CreateOptions, SetOptions, SnapshotOptions, create, metadata_item, set, snapshot};
use vhdkit::{DiskKind, ErrorKind, Format, Guid, Image};

#[test]
fn a_child_shows_what_the_leaf_shows_and_is_named_after_it() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let view = pattern(3 * MIB, 1);
        let base = lab.disk("disk", DiskKind::Dynamic, &view);
        let before = fs::read(&base).unwrap();
        let dry = snapshot(&base, &SnapshotOptions::new().dry_run(true)).unwrap();
        assert_eq!((dry.child.clone(), dry.written), (lab.path("disk-1"), false));
        assert!(!dry.child.exists());
        let one = snapshot(&base, &SnapshotOptions::new()).unwrap();
        assert_eq!((&one.child, &one.parent, one.virtual_size), (&lab.path("disk-1"), &base, 3 * MIB));
        let two = snapshot(&one.child, &SnapshotOptions::new()).unwrap();
        assert_eq!(two.child, lab.path("disk-2"));
        // A second branch from the base: the first name is taken, and so is the second.
        let other = snapshot(&base, &SnapshotOptions::new()).unwrap();
        assert_eq!((other.child, other.siblings), (lab.path("disk-3"), vec![one.child.clone()]));
        for path in [&one.child, &two.child, &lab.path("disk-3")] {
            assert!(show(path) == view);
            lab.assert_well_formed(path);
        }
        assert!(fs::read(&base).unwrap() == before, "the leaf was written to");
        if let Some(seven) = SevenZip::find() {
            let name = if format == Format::Vhd { "VHD" } else { "VHDX" };
            assert_eq!(seven.contents(&two.child, name), Contents::of(&view), "7-Zip");
        }
        assert!(read_chain(&[&two.child, &one.child, &base]) == view, "the second reader");
        let error = snapshot(&base, &SnapshotOptions::new().child(lab.path("disk-2"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        let names: Vec<_> = fs::read_dir(base.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 4, "nothing else is left");
    }
}

#[test]
fn what_belongs_to_the_disk_goes_with_it() {
    let lab = Lab::new(Format::Vhdx);
    let base = lab.path("disk");
    let options = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic).size(8 * MIB).block_size(1 << 20);
    create(&base, &options.logical_sector_size(4096).physical_sector_size(4096)).unwrap();
    let [with, without] = [1, 2].map(Guid::from_u128);
    let items = SetOptions::new().item(with, vec![7; 900_000], true).item(without, "the file's", false);
    set(&base, &items).unwrap();
    let child = snapshot(&base, &SnapshotOptions::new()).unwrap().child;
    let get = |id| metadata_item(&child, (id, true), &ChainOptions::new()).unwrap();
    assert_eq!(get(with), Some(vec![7; 900_000]));
    assert_eq!(get(without), None, "it belongs to the file");
    let [one, two] = [&base, &child].map(|path| Chain::open_leaf(path, &ChainOptions::new()).unwrap());
    let (Image::Vhdx(one), Image::Vhdx(two)) = (one.image(), two.image()) else { panic!("VHDX") };
    assert_eq!((one.disk_id(), one.block_size()), (two.disk_id(), two.block_size()));
    assert_eq!((two.logical_sector_size(), two.physical_sector_size()), (4096, 4096));
    lab.assert_well_formed(&child);
}
