//! Parents that are not where their child says: found by a mapped path, by identity, or not at all.

use crate::lab::{FORMATS, Lab, shows};
use std::fs;
use std::os::unix::fs::symlink;
use vhdkit::chain::{Chain, ChainOptions, ParentPolicy};
use vhdkit::storage::{Access, FileStorage, Lock, Storage};
use vhdkit::vhdx::Vhdx;
use vhdkit::{ErrorKind, Findings, Format, ImageId};

const K: u64 = 65536;

fn plain() -> ChainOptions {
    ChainOptions::new()
}

#[test]
fn a_moved_parent_is_found_where_its_windows_path_is_mapped() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        lab.name_on_windows(&child, &base, "D:\\VMs\\Base\\disk.VHDX");
        let store = lab.moved(&base, "store/base/Disk.vhdx").parent().unwrap().parent().unwrap().to_path_buf();
        let error = shows(&child, &plain()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentNotFound, "{format}");
        assert!(error.hint().unwrap().contains("--map") && error.hint().unwrap().contains("--search"), "{error:?}");
        for from in ["D:\\VMs", "d:/vms/", "\\\\?\\D:\\vms", "D:\\x\\..\\VMs"] {
            let options = plain().map(from, &store).unwrap();
            assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0], "{format} {from}");
        }
        // Told so by the caller, so whatever the policy.
        for policy in [ParentPolicy::Explicit, ParentPolicy::Deny, ParentPolicy::Under("/nowhere".into())] {
            let options = plain().policy(policy).map("D:\\VMs", &store).unwrap();
            assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0]);
        }
        for elsewhere in ["D:\\VM", "D:\\VMs\\Bas", "E:\\VMs", "\\\\D\\VMs", "\\VMs"] {
            let error = shows(&child, &plain().map(elsewhere, &store).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ParentNotFound, "{format} {elsewhere}");
        }
        // The map that says more is tried first, and a wrong one does not stand in the way.
        let options =
            plain().map("D:\\", lab.root.join("no")).unwrap().map("D:\\VMs\\Base", store.join("base")).unwrap();
        assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0]);
        assert_eq!(plain().map("VMs", &store).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn network_paths_are_mapped_too() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        for windows in ["\\\\Srv\\Share\\VMs\\p", "\\\\?\\UNC\\srv\\share\\vms\\p"] {
            let here = if base.exists() { base.clone() } else { lab.moved(&lab.root.join("mnt/vms/p"), "vm/base") };
            lab.name_on_windows(&child, &here, windows);
            lab.moved(&here, "mnt/vms/p");
            for from in ["\\\\srv\\share", "\\\\?\\UNC\\SRV\\share\\", "//srv/share"] {
                let options = plain().map(from, lab.root.join("mnt")).unwrap();
                assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0], "{format} {windows} {from}");
            }
            let options = plain().map("\\\\srv\\shar", lab.root.join("mnt")).unwrap();
            assert_eq!(shows(&child, &options).unwrap_err().kind(), ErrorKind::ParentNotFound);
        }
    }
}

/// Bug this finds: a link inside a mapped directory that makes us open a file outside of it.
#[test]
fn a_map_does_not_lead_out_of_its_directory() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        lab.name_on_windows(&child, &base, "D:\\VMs\\dir\\base");
        let hidden = lab.moved(&base, "hidden/base");
        let options = plain().map("D:\\VMs", lab.root.join("in")).unwrap();
        fs::create_dir_all(lab.root.join("in/dir")).unwrap();
        symlink(&hidden, lab.root.join("in/dir/base")).unwrap();
        assert_eq!(
            shows(&child, &options).unwrap_err().kind(),
            ErrorKind::ParentDenied,
            "{format}: a link to the file"
        );
        fs::remove_dir_all(lab.root.join("in/dir")).unwrap();
        symlink(hidden.parent().unwrap(), lab.root.join("in/dir")).unwrap();
        assert_eq!(shows(&child, &options).unwrap_err().kind(), ErrorKind::ParentDenied, "{format}: a link above it");
        // A link that stays inside is fine, and so is the directory being one itself.
        fs::remove_file(lab.root.join("in/dir")).unwrap();
        lab.moved(&hidden, "in/real/base");
        symlink(lab.root.join("in/real"), lab.root.join("in/dir")).unwrap();
        symlink(lab.root.join("in"), lab.root.join("alias")).unwrap();
        let options = plain().map("D:\\VMs", lab.root.join("alias")).unwrap();
        assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0]);
    }
}

#[test]
fn a_mapped_file_must_be_the_right_one() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        lab.name_on_windows(&child, &base, "D:\\VMs\\base");
        lab.moved(&base, "deep/er/renamed");
        lab.base("other/base", 9);
        let mapped = plain().map("D:\\VMs", lab.root.join("other")).unwrap();
        let error = shows(&child, &mapped).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentMismatch, "{format}");
        assert_eq!(error.windows_name(), Some("ERROR_VHD_CHILD_PARENT_ID_MISMATCH"));
        // Identity beats name.
        let both = mapped.search(lab.root.join("deep"));
        assert_eq!(shows(&child, &both).unwrap(), [1, 2, 0, 0]);
    }
}

#[test]
fn renamed_and_scattered_parents_are_found_by_identity() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let middle = lab.child("vm/middle", &base, K, 2);
        let leaf = lab.child("vm/leaf", &middle, 2 * K, 3);
        lab.moved(&base, "store/a/b/c/renamed.bin");
        lab.moved(&middle, "attic/old name");
        fs::write(lab.path("store/not an image"), b"conectix").unwrap();
        fs::write(lab.path("store/empty"), b"").unwrap();
        let (store, attic) = (lab.root.join("store"), lab.root.join("attic"));
        let options = plain().policy(ParentPolicy::Explicit).search(&store).search(&attic);
        assert_eq!(shows(&leaf, &options).unwrap(), [1, 2, 3, 0], "{format}");
        let missing = shows(&leaf, &plain().search(&store)).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::ParentNotFound);
        assert!(missing.to_string().contains("1 images below"), "{missing}");
        let error = shows(&leaf, &plain().search(lab.root.join("no such"))).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::NotFound, Some(lab.root.join("no such").as_path())));
    }
}

#[test]
fn two_files_with_the_identity_are_both_named() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        let (one, two) = (lab.path("store/one"), lab.path("store/deep/two"));
        fs::copy(&base, &one).unwrap();
        fs::copy(&base, &two).unwrap();
        let options = plain().search(lab.root.join("store"));
        assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0], "found by its path, so nothing is searched");
        fs::remove_file(&base).unwrap();
        let error = shows(&child, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Chain, "{format}");
        let text = error.to_string();
        assert!(text.contains(one.to_str().unwrap()) && text.contains(two.to_str().unwrap()), "{text}");
        let named = options.clone().parent(&two);
        assert_eq!(shows(&child, &named).unwrap(), [1, 2, 0, 0]);
        // One file by two names, searched twice, is one file.
        fs::remove_file(&two).unwrap();
        fs::hard_link(&one, &two).unwrap();
        let options = options.search(lab.root.join("store/deep"));
        assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0]);
    }
}

/// Bug this finds: a search that follows a link out of the directory the caller named.
#[test]
fn a_search_does_not_follow_links() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        let hidden = lab.moved(&base, "hidden/base");
        fs::create_dir(lab.root.join("in")).unwrap();
        symlink(&hidden, lab.root.join("in/base")).unwrap();
        symlink(hidden.parent().unwrap(), lab.root.join("in/dir")).unwrap();
        let error = shows(&child, &plain().search(lab.root.join("in"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ParentNotFound, "{format}");
    }
}

/// Bug this finds: a copy opened in place of the file that is in use.
#[test]
fn a_parent_in_use_is_not_replaced_by_a_copy_of_it() {
    for format in FORMATS {
        let lab = Lab::new(format);
        let base = lab.base("vm/base", 1);
        let child = lab.child("vm/child", &base, K, 2);
        fs::copy(&base, lab.path("copies/base")).unwrap();
        let _writer = FileStorage::open(&base, Access::Write, Lock::Exclusive).unwrap();
        let error = shows(&child, &plain().search(lab.root.join("copies"))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{format}");
    }
}

/// In the middle of a merge the parent has the identity of the second linkage.
#[test]
fn the_second_linkage_finds_a_parent_too() {
    let lab = Lab::new(Format::Vhdx);
    let base = lab.base("vm/base", 1);
    let child = lab.child("vm/child", &base, K, 2);
    let open = |path: &std::path::Path| {
        let storage: std::sync::Arc<dyn Storage> =
            std::sync::Arc::new(FileStorage::open(path, Access::Write, Lock::Exclusive).unwrap());
        Vhdx::open(storage, Access::Write, &mut Findings::new()).unwrap()
    };
    let next = vhdkit::Guid::from_u128(42);
    let mut image = open(&child);
    image.set_linkage2(Some(next)).unwrap();
    image.close().unwrap();
    let mut image = open(&base);
    image.set_data_write_guid(next).unwrap();
    image.close().unwrap();
    lab.moved(&base, "store/renamed");
    let options = plain().search(lab.root.join("store"));
    assert_eq!(shows(&child, &options).unwrap(), [1, 2, 0, 0]);
    let leaf = Chain::open_leaf(&child, &options).unwrap();
    let parent = Chain::find_parent(&leaf, &options).unwrap().unwrap();
    assert_eq!(parent.image().id(), Some(ImageId::Vhdx(next)));
}
