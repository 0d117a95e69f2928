//! The rules of the merge contract one by one, on files: which depths are allowed, who wins, what is refused before the
//! first write.

use std::fs;
use std::path::{Path, PathBuf};
use vhdkit::chain::{Chain, ChainOptions, ParentPolicy};
use vhdkit::ops::{CreateOptions, MergeOptions, Siblings, create, merge, plan_merge};
use vhdkit::storage::Access;
use vhdkit::{DiskKind, ErrorKind, Format, Watch};

const MIB: u64 = 1 << 20;
const FORMATS: [Format; 2] = [Format::Vhd, Format::Vhdx];

/// A directory with `base <- c1 <- c2 ...`; layer n has its number in every sector from n * 4 KiB on, 64 KiB long.
struct Files {
    dir: tempfile::TempDir,
    format: Format,
    count: usize,
}

impl Files {
    fn new(format: Format, count: usize) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap(), format, count };
        for index in 0..count {
            let mut options = CreateOptions::new(format, DiskKind::Dynamic).size(4 * MIB).block_size(1 << 20);
            if index > 0 {
                options = CreateOptions::new(format, DiskKind::Differencing).parent(files.path(index - 1));
            }
            create(files.path(index), &options).unwrap();
            files.write(index, index as u64 * 4096, &[index as u8 + 1; 65536]);
        }
        files
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("c{index}.{}", self.format))
    }

    fn leaf(&self) -> PathBuf {
        self.path(self.count - 1)
    }

    fn write(&self, index: usize, offset: u64, bytes: &[u8]) {
        let mut chain = Chain::open(self.path(index), &ChainOptions::new().access(Access::Write)).unwrap();
        chain.write_at(bytes, offset).unwrap();
        chain.close().unwrap();
    }

    fn view(&self, index: usize) -> Vec<u8> {
        view(&self.path(index))
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        (0..self.count).map(|index| fs::read(self.path(index)).unwrap()).collect()
    }
}

fn view(path: &Path) -> Vec<u8> {
    let chain = Chain::open(path, &ChainOptions::new()).unwrap();
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn refused(files: &Files, options: &MergeOptions) -> ErrorKind {
    let before = files.bytes();
    let error = merge(files.leaf(), options, &Watch::none()).unwrap_err();
    assert!(files.bytes() == before, "a refused merge writes nothing: {error}");
    assert!(error.hint().is_some() || error.path().is_some(), "{error} says what to do or where");
    error.kind()
}

#[test]
fn depth_one_and_two_on_three_files_nearest_the_leaf_wins() {
    for format in FORMATS {
        for depth in [1, 2] {
            let files = Files::new(format, 3);
            let leaf = files.view(2);
            assert_eq!((leaf[0], leaf[4096], leaf[8192], leaf[8192 + 65536]), (1, 2, 3, 0));
            let report = merge(files.leaf(), &MergeOptions::depth(depth), &Watch::none()).unwrap();
            assert_eq!(report.target, Some(files.path(2 - depth)));
            assert!(files.view(2 - depth) == leaf, "{format} depth {depth}");
            assert!(files.view(2) == leaf, "{format}: the leaf after depth {depth}");
        }
    }
}

/// The vector of Merge-VHD's documentation: Parent <- Child1 <- Child2 <- Child3 <- Child4, Child4 into Child2.
#[test]
fn the_documented_example_takes_two_files_in_either_form() {
    for format in FORMATS {
        for options in [MergeOptions::depth(2), MergeOptions::between(1, 3)] {
            let files = Files::new(format, 5);
            let (leaf, parent) = (files.view(4), files.view(1));
            merge(files.leaf(), &options.delete(true), &Watch::none()).unwrap();
            assert!(files.view(2) == leaf && files.view(1) == parent);
            assert!(!files.path(4).exists() && !files.path(3).exists() && files.path(1).exists());
        }
        let files = Files::new(format, 5);
        let leaf = files.view(4);
        merge(files.leaf(), &MergeOptions::into_file(files.path(2)), &Watch::none()).unwrap();
        assert!(files.view(2) == leaf);
    }
}

#[test]
fn a_merge_in_the_middle_can_relink_and_delete() {
    for format in FORMATS {
        let files = Files::new(format, 4);
        let leaf = files.view(3);
        assert_eq!(refused(&files, &MergeOptions::between(2, 4).delete(true)), ErrorKind::Refused);
        assert_eq!(refused(&files, &MergeOptions::between(1, 3).relink(true)), ErrorKind::Chain);
        let middle = files.view(2);
        let options = MergeOptions::between(2, 4).relink(true).delete(true);
        let report = merge(files.leaf(), &options, &Watch::none()).unwrap();
        assert_eq!(report.relinked, Some(files.path(3)));
        assert_eq!(report.deleted.len(), 2);
        assert!(files.view(3) == leaf && files.view(0) == middle, "{format}");
        assert_eq!(Chain::open(files.leaf(), &ChainOptions::new()).unwrap().layers().len(), 2);
    }
}

#[test]
fn depths_that_mean_nothing_are_refused() {
    for format in FORMATS {
        let files = Files::new(format, 3);
        for options in [
            MergeOptions::depth(0),
            MergeOptions::depth(3),
            MergeOptions::between(0, 2),
            MergeOptions::between(2, 2),
            MergeOptions::between(3, 2),
            MergeOptions::between(1, 4),
            MergeOptions::depth(usize::MAX),
        ] {
            assert_eq!(refused(&files, &options), ErrorKind::Chain);
        }
        let lone = Files::new(format, 1);
        assert_eq!(refused(&lone, &MergeOptions::depth(1)), ErrorKind::Chain);
        assert_eq!(refused(&files, &MergeOptions::into_file(lone.path(0))), ErrorKind::Chain);
    }
}

#[test]
fn siblings_are_refused_or_given_up() {
    for format in FORMATS {
        let files = Files::new(format, 3);
        let sibling = files.dir.path().join("elsewhere");
        fs::create_dir(&sibling).unwrap();
        let sibling = sibling.join("sibling.img");
        create(&sibling, &CreateOptions::new(format, DiskKind::Differencing).parent(files.path(0))).unwrap();
        let options = || MergeOptions::depth(2).search(sibling.parent().unwrap());
        assert_eq!(refused(&files, &options()), ErrorKind::Refused);
        let plan = plan_merge(files.leaf(), &options()).unwrap();
        assert_eq!(plan.siblings.len(), 1);
        assert!(
            plan_merge(files.leaf(), &MergeOptions::depth(1).search(sibling.parent().unwrap()))
                .unwrap()
                .siblings
                .is_empty()
        );
        let report = merge(files.leaf(), &options().siblings(Siblings::Invalidate), &Watch::none()).unwrap();
        assert_eq!(report.siblings, plan.siblings);
        let policy = ChainOptions::new().policy(ParentPolicy::Anywhere);
        let opened = Chain::open(&sibling, &policy);
        if format == Format::Vhdx {
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::ParentMismatch, "the sibling is shut out by its id");
        }
    }
}

#[test]
fn files_in_use_and_read_only_files_are_refused_by_name() {
    for format in FORMATS {
        for held in 0..3 {
            let files = Files::new(format, 3);
            let lock = fs::File::open(files.path(held)).unwrap();
            lock.lock_shared().unwrap();
            let error = merge(files.leaf(), &MergeOptions::depth(2), &Watch::none()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse);
            assert_eq!(error.path().unwrap().file_name(), files.path(held).file_name());
        }
    }
}

#[test]
fn a_chain_that_leads_back_to_itself_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    create(path("a.vhd"), &CreateOptions::new(Format::Vhd, DiskKind::Dynamic).size(MIB)).unwrap();
    create(path("b.vhd"), &CreateOptions::new(Format::Vhd, DiskKind::Differencing).parent(path("a.vhd"))).unwrap();
    create(path("c.vhd"), &CreateOptions::new(Format::Vhd, DiskKind::Differencing).parent(path("b.vhd"))).unwrap();
    // c names b as its parent; c takes b's place and is then its own parent.
    fs::rename(path("c.vhd"), path("b.vhd")).unwrap();
    let error = Chain::open(path("b.vhd"), &ChainOptions::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cycle);
    assert_eq!(error.windows_name(), Some("ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED"));
}

#[test]
fn formats_and_sector_sizes_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    create(path("p.vhd"), &CreateOptions::new(Format::Vhd, DiskKind::Dynamic).size(MIB)).unwrap();
    let child = CreateOptions::new(Format::Vhdx, DiskKind::Differencing).parent(path("p.vhd"));
    let error = create(path("c.vhdx"), &child).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Chain);
    assert!(error.hint().unwrap().contains("convert"));
    assert!(!path("c.vhdx").exists());
    let base = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic).size(4 * MIB).logical_sector_size(4096);
    create(path("p.vhdx"), &base).unwrap();
    let child = CreateOptions::new(Format::Vhdx, DiskKind::Differencing).parent(path("p.vhdx"));
    let error = create(path("c.vhdx"), &child.clone().logical_sector_size(512)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    create(path("c.vhdx"), &child).unwrap();
    assert_eq!(Chain::open(path("c.vhdx"), &ChainOptions::new()).unwrap().logical_sector_size(), 4096);
}

#[test]
fn a_dry_run_counts_and_writes_nothing() {
    for format in FORMATS {
        let files = Files::new(format, 3);
        let before = files.bytes();
        let plan = plan_merge(files.leaf(), &MergeOptions::depth(2)).unwrap();
        assert!(files.bytes() == before);
        assert_eq!(plan.data_bytes, 65536 + 4096, "the union of both children");
        assert_eq!((plan.merged.len(), plan.target.depth, plan.zero_bytes), (2, 3, 0));
        assert_eq!(plan.space_needed, 0, "the base has the block already");
    }
}

/// Bug this finds: a merge that starts on a disk whose saved machine will wake up to other bytes.
#[test]
fn a_disk_with_a_saved_state_is_refused_before_anything_is_planned() {
    let files = Files::new(Format::Vhd, 3);
    for index in 0..3 {
        let path = files.path(index);
        let clean = fs::read(&path).unwrap();
        let mut bytes = clean.clone();
        let tail = bytes.len() - 512;
        for at in [0, tail] {
            // VHD 1.0: the flag is byte 84 of the footer, the checksum the complement of the sum of its bytes.
            bytes[at + 84] = 1;
            bytes[at + 64..at + 68].fill(0);
            let sum: u32 = bytes[at..at + 512].iter().map(|&byte| u32::from(byte)).sum();
            bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
        }
        fs::write(&path, &bytes).unwrap();
        assert_eq!(refused(&files, &MergeOptions::depth(2)), ErrorKind::Refused);
        assert_eq!(plan_merge(files.leaf(), &MergeOptions::depth(2)).unwrap_err().kind(), ErrorKind::Refused);
        fs::write(&path, &clean).unwrap();
    }
}
