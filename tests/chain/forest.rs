//! The images below a directory: every state of a link, and the command that would help.

use crate::lab::{FORMATS, Lab, MIB};
use std::fs;
use std::path::{Path, PathBuf};
use vhdkit::chain::{ChainOptions, ParentPolicy};
use vhdkit::ops::{CreateOptions, Forest, LinkState, ReparentOptions, create, forest, reparent};
use vhdkit::{DiskKind, ErrorKind, Format};

const K: u64 = 65536;

fn look(lab: &Lab) -> Forest {
    forest(&lab.root, &ChainOptions::new()).unwrap()
}

fn state(forest: &Forest, path: &Path) -> LinkState {
    forest.image(path).unwrap().parent.as_ref().unwrap().state
}

fn parent(forest: &Forest, path: &Path) -> Option<PathBuf> {
    forest.image(path).unwrap().parent.as_ref().unwrap().path.clone()
}

fn command(forest: &Forest, path: &Path) -> String {
    forest.image(path).unwrap().help.as_ref().map_or_else(String::new, |help| help.command.clone())
}

#[test]
fn a_sound_forest_says_who_stands_on_whom_and_what_can_be_merged() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let left = lab.child("vm/left", &base, K, 2);
        let right = lab.child("vm/right", &base, K, 3);
        let middle = lab.child("vm/middle", &right, K, 4);
        let leaf = lab.child("snap/a leaf", &middle, 2 * K, 5);
        let alone = lab.base("alone", 6);
        fs::write(lab.path("vm/notes.txt"), b"not an image").unwrap();
        let forest = look(&lab);
        assert!(forest.is_sound(), "{forest:?}");
        assert_eq!(forest.images.len(), 6);
        let roots: Vec<_> = forest.roots().into_iter().map(|image| image.path.clone()).collect();
        assert_eq!(roots, [alone.clone(), base.clone()], "{format}");
        assert_eq!(forest.image(&base).unwrap().children, [left.clone(), right.clone()]);
        for (child, over) in [(&left, &base), (&right, &base), (&middle, &right), (&leaf, &middle)] {
            assert_eq!((state(&forest, child), parent(&forest, child)), (LinkState::Linked, Some(over.clone())));
        }
        let leaves: Vec<_> = forest.images.iter().filter(|image| image.leaf).map(|image| &image.path).collect();
        assert_eq!(leaves, [&alone, &leaf, &left]);
        // As far down as nobody else stands: `right` has a sibling, so `base` cannot be merged into.
        let root = lab.root.display();
        let merge = format!("vhdkit merge '{root}/snap/a leaf' --depth 2 --parents under={root}");
        assert_eq!(command(&forest, &leaf), merge);
        assert_eq!(command(&forest, &left), "", "its parent has another child");
        assert_eq!(command(&forest, &base), "");
    }
}

#[test]
fn moved_changed_and_missing_parents_are_told_apart() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let there = |name: &str| lab.base(&format!("{name}/base"), 1);
        let over = |name: &str, base: &Path| lab.child(&format!("{name}/child"), base, K, 2);
        let (moved, swapped, changed, lost, damaged) =
            (there("moved"), there("swapped"), there("changed"), there("lost"), there("damaged"));
        let children = [
            (over("moved", &moved), LinkState::Moved),
            (over("swapped", &swapped), LinkState::WrongPath),
            (over("changed", &changed), LinkState::Mismatch),
            (over("lost", &lost), LinkState::Missing),
            // Without its bytes a file is no image at all, except by its name.
            (over("damaged", &damaged), LinkState::Mismatch),
        ];
        let far = lab.moved(&moved, "store/one");
        let near = lab.moved(&swapped, "store/two");
        fs::remove_file(&changed).unwrap();
        let (other, third) = (lab.base("swapped/base", 8), lab.base("changed/base", 9));
        fs::remove_file(&lost).unwrap();
        fs::write(&damaged, b"nothing of the kind").unwrap();
        let named = lab.path("damaged/broken.vhdx");
        fs::write(&named, b"no image either").unwrap();
        let forest = look(&lab);
        for (child, expected) in &children {
            assert_eq!(state(&forest, child), *expected, "{format} {}", child.display());
            assert!(!forest.image(child).unwrap().opens);
        }
        let [(moved, _), (swapped, _), (changed, _), (lost, _), _] = &children;
        assert_eq!((parent(&forest, moved), parent(&forest, swapped)), (Some(far.clone()), Some(near.clone())));
        assert_eq!(forest.image(swapped).unwrap().parent.as_ref().unwrap().wrong, Some(other));
        assert_eq!((parent(&forest, changed), parent(&forest, lost)), (None, None));
        let relink =
            |child: &Path, parent: &Path| format!("vhdkit reparent {} --parent {}", child.display(), parent.display());
        assert_eq!(command(&forest, moved), relink(moved, &far));
        assert_eq!(command(&forest, swapped), relink(swapped, &near));
        assert_eq!(command(&forest, changed), relink(changed, &third) + " --ignore-id-mismatch");
        assert_eq!(command(&forest, lost), format!("vhdkit reparent {} --search DIR", lost.display()));
        assert!(!forest.is_sound());
        let broken: Vec<_> = forest.broken.iter().map(|file| &file.path).collect();
        assert_eq!(broken, [&named]);
        assert!(forest.broken[0].error.contains("neither a VHD nor a VHDX"));
        // The help helps.
        reparent(moved, &far, &ReparentOptions::new()).unwrap();
        reparent(swapped, &near, &ReparentOptions::new()).unwrap();
        let forest = look(&lab);
        assert!(forest.image(moved).unwrap().opens && forest.image(swapped).unwrap().opens);
    }
}

#[test]
fn a_damaged_parent_is_told_from_a_changed_one() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base(&format!("base.{format}"), 1);
        let child = lab.child("child", &base, K, 2);
        fs::write(&base, b"cut").unwrap();
        let forest = look(&lab);
        assert_eq!(state(&forest, &child), LinkState::Broken);
        assert_eq!(command(&forest, &child), format!("vhdkit check {}", base.display()));
        assert_eq!(forest.broken.len(), 1);
    }
}

#[test]
fn copies_of_a_parent_are_duplicates_and_only_a_path_tells_them_apart() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        let copy = lab.path("copy/base");
        fs::copy(&base, &copy).unwrap();
        fs::hard_link(&base, lab.path("vm/same")).unwrap();
        let forest = look(&lab);
        assert_eq!((state(&forest, &child), parent(&forest, &child)), (LinkState::Linked, Some(base.clone())));
        assert_eq!(forest.duplicates.len(), 1, "{format}");
        assert_eq!(forest.duplicates[0].files, [copy.clone(), base.clone()]);
        assert!(forest.image(&child).unwrap().opens && !forest.is_sound());
        let far = lab.moved(&child, "far/child");
        let forest = look(&lab);
        let link = forest.image(&far).unwrap().parent.clone().unwrap();
        assert_eq!((link.state, link.path, link.candidates), (LinkState::Ambiguous, None, vec![copy, base]));
        assert_eq!(command(&forest, &far), format!("vhdkit reparent {} --parent FILE", far.display()));
    }
}

#[test]
fn parents_elsewhere_and_mapped_ones_count_as_the_policy_says() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("out/base", 1);
        let child = lab.child("in/child", &base, K, 2);
        let inside = lab.root.join("in");
        let strict = forest(&inside, &ChainOptions::new()).unwrap();
        assert_eq!(state(&strict, &child), LinkState::Missing);
        let free = forest(&inside, &ChainOptions::new().policy(ParentPolicy::Anywhere)).unwrap();
        assert_eq!((state(&free, &child), parent(&free, &child)), (LinkState::Linked, Some(base.clone())));
        assert!(free.is_sound() && free.roots().len() == 1);
        let renamed = lab.moved(&base, "out/renamed");
        let searched = forest(&inside, &ChainOptions::new().search(lab.root.join("out"))).unwrap();
        assert_eq!((state(&searched, &child), parent(&searched, &child)), (LinkState::Moved, Some(renamed.clone())));
        fs::copy(&renamed, &base).unwrap();
        let searched = forest(&inside, &ChainOptions::new().search(lab.root.join("out"))).unwrap();
        assert_eq!(state(&searched, &child), LinkState::Ambiguous);
        let candidates = &searched.image(&child).unwrap().parent.as_ref().unwrap().candidates;
        assert_eq!(candidates, &[base.clone(), renamed.clone()]);
        fs::remove_file(&renamed).unwrap();
        assert_eq!(command(&free, &child), "", "who else stands on that parent is not known");
        let options = ReparentOptions::new();
        let options = options.absolute(vhdkit::ops::AbsolutePath::Set("D:\\VMs\\sub\\base".to_owned()));
        reparent(&child, &base, &options).unwrap();
        let far = lab.moved(&base, "in/store/sub/base");
        let plain = forest(&inside, &ChainOptions::new()).unwrap();
        assert_eq!(state(&plain, &child), LinkState::Moved);
        let map = ChainOptions::new().map("D:\\VMs", inside.join("store")).unwrap();
        let mapped = forest(&inside, &map).unwrap();
        assert_eq!((state(&mapped, &child), parent(&mapped, &child)), (LinkState::Linked, Some(far.clone())));
        let relink = format!("vhdkit reparent {} --parent {}", child.display(), far.display());
        assert_eq!(command(&mapped, &child), relink);
    }
}

#[test]
fn circles_and_other_sector_sizes_do_not_open() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("base", 1);
        let one = lab.child("one", &base, K, 2);
        let leaf = lab.child("leaf", &one, 2 * K, 3);
        let stray = lab.child("stray", &one, 3 * K, 4);
        // The base's place is taken by a copy of a descendant: one -> base (a copy of leaf) -> one.
        let ignore = ReparentOptions::new().ignore_id_mismatch(true);
        fs::copy(&leaf, &base).unwrap();
        fs::remove_file(&leaf).unwrap();
        assert_eq!(reparent(&one, &base, &ignore).unwrap_err().kind(), ErrorKind::Cycle);
        let before = look(&lab);
        assert_eq!(state(&before, &one), LinkState::Mismatch);
        // Made by hand, as no tool of ours makes it: the child names the identity of its own descendant.
        name_by_hand(format, &one, &base);
        let forest = look(&lab);
        for image in [&one, &base] {
            assert_eq!(state(&forest, image), LinkState::Circular, "{format}: {forest:?}");
        }
        assert_eq!((state(&forest, &stray), forest.image(&stray).unwrap().opens), (LinkState::Linked, false));
        assert_eq!(forest.roots().len(), 1, "a circle is drawn from one of its images");
    }
    let lab = Lab::new(Format::Vhdx);
    let base = lab.base("base", 1);
    let child = lab.child("child", &base, K, 2);
    let large = lab.path("large");
    let options = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic).size(4 * MIB).logical_sector_size(4096);
    create(&large, &options).unwrap();
    name_by_hand(Format::Vhdx, &child, &large);
    let forest = look(&lab);
    assert_eq!(state(&forest, &child), LinkState::Unstackable);
    assert!(!forest.image(&child).unwrap().opens);
}

/// Writes a link that `reparent` would refuse, through the formats themselves.
fn name_by_hand(format: Format, child: &Path, parent: &Path) {
    use std::sync::Arc;
    use vhdkit::storage::{Access, FileStorage, Lock, Storage};
    use vhdkit::{Findings, Image, NewParent, ParentPaths};
    let open = |path: &Path, access: Access| {
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(path, access, Lock::Exclusive).unwrap());
        Image::open(storage, access, &mut Findings::new()).unwrap()
    };
    let id = open(parent, Access::Read).id().unwrap();
    let relative = Some(format!(".\\{}", parent.file_name().unwrap().to_str().unwrap()));
    let mut image = open(child, Access::Write);
    assert_eq!(image.format(), format);
    image.set_parent(&NewParent { id, paths: ParentPaths { relative, absolute: None }, timestamp: 0 }).unwrap();
    image.close().unwrap();
}

#[test]
fn a_missing_directory_is_an_error_and_an_empty_one_is_sound() {
    let lab = Lab::new(Format::Vhd);
    assert_eq!(forest(lab.root.join("no"), &ChainOptions::new()).unwrap_err().kind(), ErrorKind::NotFound);
    let empty = look(&lab);
    assert!(empty.is_sound() && empty.images.is_empty() && empty.roots().is_empty());
}

/// Bug this finds: a name that is not UTF-8 fails the whole answer.
#[test]
fn any_name_can_be_reported() {
    use std::os::unix::ffi::OsStrExt;
    let lab = Lab::new(Format::Vhd);
    let base = lab.base("base", 1);
    fs::rename(&base, lab.root.join(std::ffi::OsStr::from_bytes(b"\xff.vhd"))).unwrap();
    let json = serde_json::to_value(look(&lab)).unwrap();
    assert_eq!(json["images"][0]["format"], "vhd");
    assert_eq!(json["images"][0]["type"], "dynamic");
    assert!(json["images"][0]["path"].as_str().unwrap().ends_with("\u{fffd}.vhd"));
}
