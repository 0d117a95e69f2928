//! Pointing a child at another parent file: what is written, what is refused, and that a refusal writes nothing.

use crate::lab::{FORMATS, Lab, MIB, shows};
use crate::support::bytes::Bytes;
use crate::support::spec::Layer;
use crate::support::{self, SpecDisk, real};
use std::fs::{self, File};
use std::path::Path;
use vhdkit::chain::{Chain, ChainOptions, ParentPolicy};
use vhdkit::ops::{AbsolutePath, CreateOptions, ReparentOptions, create, reparent};
use vhdkit::storage::{Access, FileStorage, Lock};
use vhdkit::{DiskKind, ErrorKind, Format};

const K: u64 = 65536;

/// The relative and the absolute path in `child`, as the format pages say where they are.
fn paths(child: &Path) -> (Option<String>, Option<String>) {
    let file: Box<dyn Bytes> = Box::new(File::open(child).unwrap());
    let text = |path: Option<&str>| path.map(str::to_owned);
    match Layer::open(file).unwrap() {
        Layer::Vhd(image) => (text(image.locator(b"W2ru")), text(image.locator(b"W2ku"))),
        Layer::Vhdx(image) => {
            assert_eq!(image.locator_value("parent_linkage2"), None);
            assert_eq!(image.locator_value("volume_path"), None);
            (text(image.locator_value("relative_path")), text(image.locator_value("absolute_win32_path")))
        }
        Layer::Raw(_) => panic!("not an image"),
    }
}

/// A path as VHDX holds it.
fn verbatim(format: Format, path: &str) -> Option<String> {
    Some(if format == Format::Vhdx { format!("\\\\?\\{path}") } else { path.to_owned() })
}

fn refused(child: &Path, parent: &Path, options: &ReparentOptions) -> ErrorKind {
    let before = fs::read(child).unwrap();
    let error = reparent(child, parent, options).unwrap_err();
    assert!(fs::read(child).unwrap() == before, "a refusal writes nothing: {error}");
    error.kind()
}

#[test]
fn a_moved_parent_is_found_by_the_relative_path_again() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        let leaf = lab.child("vm/leaf", &child, 2 * K, 3);
        lab.name_on_windows(&child, &base, "D:\\VMs\\base");
        let far = lab.moved(&base, "store/sub/renamed");
        assert_eq!(shows(&child, &ChainOptions::new()).unwrap_err().kind(), ErrorKind::ParentNotFound);
        let under = ChainOptions::new().policy(ParentPolicy::Under(lab.root.clone()));
        let relative = Some("..\\store\\sub\\renamed".to_owned());
        let set = |absolute: AbsolutePath| {
            let chain = ChainOptions::new().map("\\\\srv\\vms", lab.root.join("store")).unwrap();
            let options = ReparentOptions::new().absolute(absolute).chain(chain);
            let report = reparent(&child, &far, &options).unwrap();
            assert!(report.written && report.warnings.is_empty() && report.parent_error.is_none());
            let (found, absolute) = paths(&child);
            assert_eq!(found, relative, "{format}");
            assert_eq!(shows(&leaf, &under).unwrap(), [1, 2, 3, 0], "{format}: its own children still find it");
            absolute
        };
        assert_eq!(set(AbsolutePath::Keep), verbatim(format, "D:\\VMs\\base"));
        let mapped = verbatim(format, "UNC\\srv\\vms\\sub\\renamed");
        let plain = Some("\\\\srv\\vms\\sub\\renamed".to_owned());
        assert_eq!(set(AbsolutePath::Mapped), if format == Format::Vhdx { mapped } else { plain });
        assert_eq!(set(AbsolutePath::Set("E:\\x\\y".to_owned())), verbatim(format, "E:\\x\\y"));
        assert_eq!(set(AbsolutePath::Blank), None);
        assert_eq!(set(AbsolutePath::Keep), None, "there is none to keep any more");
        // A second opinion on the whole chain, by files given in order.
        let disk = SpecDisk::open(&[&leaf, &child, &far]).unwrap();
        assert_eq!(disk.read(2 * K, 1).unwrap(), [3]);
        match format {
            Format::Vhd => support::assert_well_formed_vhd(&child),
            _ => support::assert_well_formed_vhdx(&child),
        }
    }
}

#[test]
fn a_path_that_windows_would_not_take_is_refused() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("base", 1);
        let child = lab.child("child", &base, K, 2);
        for path in ["", "base", "..\\base", "D:base"] {
            let options = ReparentOptions::new().absolute(AbsolutePath::Set(path.to_owned()));
            assert_eq!(refused(&child, &base, &options), ErrorKind::InvalidInput, "{path}");
        }
        let options = ReparentOptions::new().absolute(AbsolutePath::Mapped);
        assert_eq!(refused(&child, &base, &options), ErrorKind::InvalidInput, "no map at all");
        let chain = ChainOptions::new().map("D:\\", "/no/such").unwrap();
        assert_eq!(refused(&child, &base, &options.chain(chain)), ErrorKind::InvalidInput, "a map of elsewhere");
    }
}

#[test]
fn another_identity_is_refused_and_taken_when_asked() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("base", 1);
        let child = lab.child("child", &base, K, 2);
        let other = lab.disk("other", 6 * MIB, 9);
        assert_eq!(refused(&child, &other, &ReparentOptions::new()), ErrorKind::ParentMismatch, "{format}");
        let ignore = ReparentOptions::new().ignore_id_mismatch(true);
        let before = fs::read(&child).unwrap();
        let plan = reparent(&child, &other, &ignore.clone().dry_run(true)).unwrap();
        assert!(!plan.written && fs::read(&child).unwrap() == before, "a dry run writes nothing");
        let report = reparent(&child, &other, &ignore).unwrap();
        let names: Vec<_> = report.warnings.iter().map(|finding| finding.problem.windows_name().unwrap()).collect();
        assert_eq!(names, ["ERROR_VHD_CHILD_PARENT_ID_MISMATCH", "ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH"]);
        assert_eq!((report.relative, plan.id), (Some(".\\other".to_owned()), report.id));
        assert_eq!(shows(&child, &ChainOptions::new()).unwrap(), [9, 2, 0, 0]);
        assert_eq!(paths(&child), (Some(".\\other".to_owned()), None));
        // And back: nothing but the link was changed.
        assert_eq!(refused(&child, &base, &ReparentOptions::new()), ErrorKind::ParentMismatch);
        let report = reparent(&child, &base, &ignore).unwrap();
        assert_eq!(report.warnings.len(), 1, "the sizes agree");
        assert_eq!(shows(&child, &ChainOptions::new()).unwrap(), [1, 2, 0, 0]);
        assert!(reparent(&child, &base, &ignore).unwrap().warnings.is_empty(), "nothing is ignored now");
    }
}

#[test]
fn a_parent_must_not_stand_on_its_child() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("base", 1);
        let child = lab.child("child", &base, K, 2);
        let leaf = lab.child("leaf", &child, 2 * K, 3);
        let tip = lab.child("tip", &leaf, 3 * K, 4);
        let ignore = ReparentOptions::new().ignore_id_mismatch(true);
        for parent in [&child, &leaf, &tip] {
            assert_eq!(refused(&child, parent, &ignore), ErrorKind::Cycle, "{format}: {}", parent.display());
        }
        let alias = lab.root.join("alias");
        fs::hard_link(&child, &alias).unwrap();
        assert_eq!(refused(&child, &alias, &ignore), ErrorKind::Cycle);
        fs::remove_file(&alias).unwrap();
        // Though no path leads from its descendant to it any more.
        let renamed = lab.moved(&child, "renamed");
        assert_eq!(refused(&renamed, &tip, &ignore), ErrorKind::Cycle, "{format}: by identity");
    }
}

#[test]
fn what_cannot_be_stacked_is_refused_whatever_is_ignored() {
    let (vhd, vhdx) = (Lab::new(Format::Vhd), Lab::new(Format::Vhdx));
    let ignore = ReparentOptions::new().ignore_id_mismatch(true);
    for (one, two) in [(&vhd, &vhdx), (&vhdx, &vhd)] {
        let base = one.base("base", 1);
        let child = one.child("child", &base, K, 2);
        assert_eq!(refused(&child, &two.base("stranger", 9), &ignore), ErrorKind::Chain);
        assert_eq!(refused(&base, &one.base("second", 3), &ignore), ErrorKind::InvalidInput, "a base has no parent");
        assert_eq!(refused(&child, &one.root.join("nothing"), &ignore), ErrorKind::NotFound);
        fs::write(one.path("text"), b"not an image").unwrap();
        assert_eq!(refused(&child, &one.path("text"), &ignore), ErrorKind::UnknownFormat);
    }
    let large = vhdx.path("4k");
    let options = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic).size(4 * MIB).logical_sector_size(4096);
    create(&large, &options).unwrap();
    assert_eq!(refused(&vhdx.root.join("child"), &large, &ignore), ErrorKind::Chain);
}

#[test]
fn a_child_in_use_is_left_alone() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("base", 1);
        let child = lab.child("child", &base, K, 2);
        let _reader = FileStorage::open(&child, Access::Read, Lock::Shared).unwrap();
        assert_eq!(refused(&child, &base, &ReparentOptions::new()), ErrorKind::InUse, "{format}");
    }
}

/// A chain is put together again from either end.
#[test]
fn a_parent_whose_own_parent_is_missing_will_do() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let middle = lab.child("vm/middle", &base, K, 2);
        let leaf = lab.child("vm/leaf", &middle, 2 * K, 3);
        let (base, middle) = (lab.moved(&base, "new/root"), lab.moved(&middle, "new/mid"));
        let report = reparent(&leaf, &middle, &ReparentOptions::new()).unwrap();
        assert!(report.parent_error.unwrap().contains("no file for the parent"));
        let under = ChainOptions::new().policy(ParentPolicy::Under(lab.root.clone()));
        assert_eq!(shows(&leaf, &under).unwrap_err().kind(), ErrorKind::ParentNotFound);
        assert_eq!(reparent(&middle, &base, &ReparentOptions::new()).unwrap().parent_error, None);
        assert_eq!(shows(&leaf, &under).unwrap(), [1, 2, 3, 0]);
    }
}

/// The path in a child given by a link counts from where the child really is.
#[test]
fn links_are_resolved_before_paths_are_written() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        fs::create_dir(lab.root.join("links")).unwrap();
        std::os::unix::fs::symlink(&child, lab.root.join("links/c")).unwrap();
        std::os::unix::fs::symlink(&base, lab.root.join("links/b")).unwrap();
        let report = reparent(lab.root.join("links/c"), lab.root.join("links/b"), &ReparentOptions::new()).unwrap();
        assert_eq!((report.child, report.relative), (child.clone(), Some(".\\base".to_owned())));
        assert_eq!(shows(&child, &ChainOptions::new()).unwrap(), [1, 2, 0, 0]);
    }
}

/// A child that another program made, over a parent with another Unique ID.
#[test]
fn a_foreign_child_with_the_wrong_parent_id_opens_after_it_is_told_so() {
    let Some(images) = real::folder() else { return };
    let lab = Lab::new(Format::Vhd);
    let (child, parent) = (lab.path("vhd-diff-parent-uuid-mismatch.vhd"), lab.path("ntfs-parent.vhd"));
    for file in [&child, &parent] {
        fs::copy(images.join("malformed").join(file.file_name().unwrap()), file).unwrap();
    }
    let error = Chain::open(&child, &ChainOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ParentMismatch);
    assert!(error.hint().unwrap().contains("--ignore-id-mismatch"), "{error:?}");
    assert_eq!(refused(&child, &parent, &ReparentOptions::new()), ErrorKind::ParentMismatch);
    reparent(&child, &parent, &ReparentOptions::new().ignore_id_mismatch(true)).unwrap();
    Chain::open(&child, &ChainOptions::new()).unwrap();
    let expected = real::RealImage::named("dfvfs/ntfs-differential.vhd");
    let contents = SpecDisk::open(&[&child, &parent]).unwrap().contents().unwrap();
    assert_eq!((contents.len, contents.sha256.as_str()), (expected.size, expected.sha256));
}
