//! Bug this finds: a child orphaned unasked, a child re-pointed that stands on a copy, an item lost, a value other than the
//! one asked for, a creator that changed.

use crate::lab::{FORMATS, Lab, MIB, pattern, show, try_show};
use std::fs;
use std::path::Path;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{SetOptions, info, metadata_item, metadata_items, set};
use vhdkit::{DiskKind, ErrorKind, Format, Guid, ImageId};

fn id(number: u128) -> Guid {
    Guid::from_u128(number)
}

fn image_id(path: &Path) -> ImageId {
    Chain::open_leaf(path, &ChainOptions::new()).unwrap().image().id().unwrap()
}

/// A base, a child of it, and a child of that child, each with its bytes.
fn family(format: Format) -> (Lab, Vec<std::path::PathBuf>, Vec<Vec<u8>>) {
    let lab = Lab::new(format);
    let views: Vec<Vec<u8>> = (1..4).map(|seed| pattern(2 * MIB, seed)).collect();
    let base = lab.disk("base", DiskKind::Dynamic, &views[0]);
    let child = lab.child("child", &base, &views[1]);
    let grandchild = lab.child("grandchild", &child, &views[2]);
    (lab, vec![base, child, grandchild], views)
}

/// A change that children of an image of this format would see.
fn seen(format: Format) -> SetOptions {
    if format == Format::Vhd { SetOptions::new().unique_id([9; 16]) } else { SetOptions::new().disk_id(id(9)) }
}

#[test]
fn a_change_that_would_orphan_children_is_refused_or_relinks_them() {
    for format in FORMATS {
        let (lab, paths, views) = family(format);
        let before: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        let unchanged = || paths.iter().zip(&before).all(|(path, bytes)| fs::read(path).unwrap() == *bytes);
        let error = set(&paths[0], &seen(format)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("child") && error.hint().unwrap().contains("--relink"), "{error:?}");
        let dry = set(&paths[0], &seen(format).relink(true).dry_run(true)).unwrap();
        assert_eq!((dry.relinked, dry.written, dry.changes.len()), (vec![paths[1].clone()], false, 1));
        assert!(unchanged(), "something was written");
        let children_id = image_id(&paths[1]);
        let creator = info(&paths[0], &ChainOptions::new(), false).unwrap().creator;
        let report = set(&paths[0], &seen(format).relink(true)).unwrap();
        assert_eq!((report.relinked, report.written), (vec![paths[1].clone()], true));
        assert_eq!(info(&paths[0], &ChainOptions::new(), false).unwrap().creator, creator);
        assert_eq!(image_id(&paths[1]), children_id, "the grandchild would lose its parent");
        for (path, view) in paths.iter().zip(&views) {
            assert!(show(path) == *view);
            lab.assert_well_formed(path);
        }
        lab.assert_others_read(&paths[0], &views[0]);
        // Again: it is like that.
        let again = set(&paths[0], &seen(format).relink(true)).unwrap();
        assert_eq!((again.changes.len(), again.relinked.len(), again.written), (0, 0, false));
        // The leaf has no children.
        set(&paths[2], &seen(format)).unwrap();
        assert!(show(&paths[2]) == views[2]);
    }
}

#[test]
fn children_elsewhere_are_relinked_when_they_are_looked_for_and_those_of_copies_never() {
    for format in FORMATS {
        let (lab, paths, views) = family(format);
        // A copy of the whole family, by the same names in a directory of its own.
        let copies = tempfile::tempdir().unwrap();
        let copied: Vec<_> = paths.iter().map(|path| copies.path().join(path.file_name().unwrap())).collect();
        for (from, to) in paths.iter().zip(&copied) {
            fs::copy(from, to).unwrap();
        }
        let report = set(&paths[0], &seen(format).relink(true).search(copies.path())).unwrap();
        assert_eq!(report.relinked, [paths[1].clone()]);
        assert_eq!(report.of_copies, [fs::canonicalize(&copied[1]).unwrap()]);
        for (path, view) in paths.iter().chain(&copied).zip(views.iter().chain(&views)) {
            assert!(show(path) == *view, "{}", path.display());
        }
        drop(lab);
    }
}

#[test]
fn a_vhd_whose_unique_id_was_left_half_changed_is_finished() {
    let (_lab, paths, views) = family(Format::Vhd);
    let note = paths[0].with_file_name(".base.vhd.vhdkit-set");
    let ImageId::Vhd(old) = image_id(&paths[0]) else { panic!("a VHD") };
    let text = format!("vhdkit set note 1\nold {}\nnew {}\n", Guid::from_bytes(old), Guid::from_bytes([9; 16]));
    fs::write(&note, format!("{text}crc {:08x}\n", crc32c::crc32c(text.as_bytes()))).unwrap();
    let mut image = vhdkit::vhd::Vhd::open(
        std::sync::Arc::new(
            vhdkit::storage::FileStorage::open(
                &paths[0],
                vhdkit::storage::Access::Write,
                vhdkit::storage::Lock::Exclusive,
            )
            .unwrap(),
        ),
        vhdkit::storage::Access::Write,
        &mut vhdkit::Findings::new(),
    )
    .unwrap();
    image.set_unique_id([9; 16]).unwrap();
    image.close().unwrap();
    assert_eq!(try_show(&paths[1]).unwrap_err().kind(), ErrorKind::ParentMismatch);
    let error = set(&paths[0], &SetOptions::new().unique_id([9; 16])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let report = set(&paths[0], &SetOptions::new().relink(true)).unwrap();
    assert_eq!(report.relinked, [paths[1].clone()]);
    assert!(!note.exists());
    assert!(paths.iter().zip(&views).all(|(path, view)| show(path) == *view));
}

#[test]
fn what_a_format_does_not_have_is_refused() {
    let [vhd, vhdx] = FORMATS.map(|format| {
        let lab = Lab::new(format);
        let path = lab.disk("disk", DiskKind::Dynamic, &pattern(MIB, 1));
        (lab, path)
    });
    let kind = |path: &Path, options: &SetOptions| set(path, options).unwrap_err().kind();
    assert_eq!(kind(&vhd.1, &SetOptions::new().fresh_disk_id()), ErrorKind::Unsupported);
    assert_eq!(kind(&vhd.1, &SetOptions::new().item(id(1), "x", false)), ErrorKind::Unsupported);
    assert_eq!(kind(&vhdx.1, &SetOptions::new().fresh_unique_id()), ErrorKind::Unsupported);
    assert_eq!(kind(&vhd.1, &SetOptions::new().unique_id([0; 16])), ErrorKind::InvalidInput);
    assert_eq!(kind(&vhdx.1, &SetOptions::new().disk_id(Guid::nil())), ErrorKind::InvalidInput);
    assert_eq!(kind(&vhdx.1, &SetOptions::new().physical_sector_size(1024)), ErrorKind::InvalidInput);
    assert_eq!(metadata_items(&vhd.1, &ChainOptions::new()).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn items_are_set_listed_read_and_deleted_and_others_still_read_the_file() {
    let (lab, paths, views) = family(Format::Vhdx);
    let chain = ChainOptions::new();
    // The file's own items are nobody else's business.
    set(&paths[0], &SetOptions::new().item(id(1), "a note", false).item(id(2), vec![5; 1 << 20], false)).unwrap();
    assert!(show(&paths[1]) == views[1]);
    let users: Vec<_> = metadata_items(&paths[0], &chain).unwrap().into_iter().filter(|item| item.user).collect();
    assert_eq!(users.iter().map(|item| (item.id, item.length)).collect::<Vec<_>>(), [(id(1), 6), (id(2), 1 << 20)]);
    assert_eq!(metadata_item(&paths[0], (id(1), true), &chain).unwrap(), Some(b"a note".to_vec()));
    assert_eq!(metadata_item(&paths[0], (id(3), true), &chain).unwrap(), None);
    // What belongs to the disk is what children were made over.
    let of_disk = || SetOptions::new().item(id(1), "of the disk", true);
    assert_eq!(set(&paths[0], &of_disk()).unwrap_err().kind(), ErrorKind::Refused);
    set(&paths[0], &of_disk().relink(true)).unwrap();
    assert_eq!(metadata_item(&paths[0], (id(1), true), &chain).unwrap(), Some(b"of the disk".to_vec()));
    let report = set(&paths[0], &SetOptions::new().delete_item(id(1)).relink(true)).unwrap();
    assert_eq!(report.relinked, [paths[1].clone()]);
    set(&paths[0], &SetOptions::new().delete_item(id(2))).unwrap();
    assert!(metadata_items(&paths[0], &chain).unwrap().iter().all(|item| !item.user));
    for (path, view) in paths.iter().zip(&views) {
        assert!(show(path) == *view);
        lab.assert_well_formed(path);
    }
    lab.assert_others_read(&paths[0], &views[0]);
}
