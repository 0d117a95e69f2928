//! New images keep every rule the checker knows, and hold nothing but zeros, or their parent.

use crate::support::{Bytes, Report, SpecDisk};
use std::sync::Arc;
use vhdkit::storage::MemoryStorage;
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{DiskKind, NewParent, ParentPaths};

const MIB: u64 = 1 << 20;

fn created(options: &VhdxCreate) -> (Vec<u8>, Vhdx) {
    let storage = Arc::new(MemoryStorage::new());
    let image = Vhdx::create(storage.clone(), options).unwrap();
    (storage.to_bytes().unwrap(), image)
}

fn child_of(parent: &Vhdx, size: u64) -> VhdxCreate {
    let paths =
        ParentPaths { relative: Some(".\\parent.vhdx".into()), absolute: Some("C:\\disks\\parent.vhdx".into()) };
    VhdxCreate::new(size).kind(DiskKind::Differencing).parent(NewParent { id: parent.id(), paths, timestamp: 0 })
}

fn assert_zero(chain: &[&Vec<u8>], size: u64) {
    let files = chain.iter().map(|&file| Box::new(file) as Box<dyn Bytes>).collect();
    let disk = SpecDisk::from_bytes(files).unwrap();
    assert_eq!(disk.size(), size);
    for at in [0, size / 2, size - 512] {
        assert_eq!(disk.read(at, 512).unwrap(), [0; 512], "at {at}");
    }
}

#[test]
fn new_vhdx_files_keep_every_rule() {
    let sizes = [4096, 3 * MIB, 100 * MIB + 4096, 5 << 30, 127 << 30, 64 << 40];
    let blocks = [1 << 20, 2 << 20, 32 << 20, 256 << 20];
    for (size, block) in sizes.into_iter().flat_map(|size| blocks.map(|block| (size, block))) {
        // A 64 TiB BAT in blocks of 1 MiB takes 513 MiB: measured elsewhere.
        if size > 1 << 40 && block < 32 << 20 {
            continue;
        }
        for (logical, physical) in [(512, 512), (512, 4096), (4096, 4096)] {
            let options =
                VhdxCreate::new(size).block_size(block).logical_sector_size(logical).physical_sector_size(physical);
            let name = format!("{size} bytes in blocks of {block}, sectors of {logical}/{physical}");
            let (file, image) = created(&options);
            Report::vhdx(&file).assert_clean(format_args!("dynamic, {name}"));
            assert_zero(&[&file], size);

            let options = child_of(&image, size).block_size(block).logical_sector_size(logical);
            let (child, _) = created(&options);
            Report::vhdx(&child).assert_clean(format_args!("differencing, {name}"));
            assert_zero(&[&child, &file], size);
        }
    }
}

#[test]
fn a_new_fixed_vhdx_has_all_its_blocks() {
    for (size, block) in [(4096, 1 << 20), (5 * MIB, 1 << 20), (65 * MIB, 32 << 20)] {
        let (file, _) = created(&VhdxCreate::new(size).kind(DiskKind::Fixed).block_size(block));
        Report::vhdx(&file).assert_clean(format_args!("fixed, {size} bytes in blocks of {block}"));
        let blocks = size.next_multiple_of(u64::from(block));
        assert_eq!(file.len() as u64, 4 * MIB + blocks);
        assert_zero(&[&file], size);
    }
}
