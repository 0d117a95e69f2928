//! Links and items, through closing and opening again.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::NewItem;
use crate::error::ErrorKind;
use crate::guid::Guid;
use crate::link::{DiskKind, ImageId, NewParent, ParentPaths};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::support::Report;
use crate::units::MIB;
use crate::vhdx::Vhdx;
use crate::vhdx::raw::{ITEM_IS_USER, ITEM_IS_VIRTUAL_DISK};
use crate::vhdx::session::Seen;
use crate::vhdx::write::tests::{contents, create, data, memory, model, open, write};
use std::sync::Arc;

fn parent(id: u128, path: &str) -> NewParent {
    let paths = ParentPaths { relative: Some(path.into()), absolute: None };
    NewParent { id: ImageId::Vhdx(Guid::from_u128(id)), paths, timestamp: 0 }
}

fn path(image: &Vhdx) -> String {
    image.parent_link().unwrap().hints[0].path.clone()
}

#[test]
fn links_change_and_stay() {
    let file = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
    let mut image = create(&storage, 2 * MIB, DiskKind::Differencing, 512);
    let id = image.id();
    assert_eq!(image.linkage2(), None);
    image.set_linkage2(Some(Guid::from_u128(8))).unwrap();
    assert_eq!(open(&storage, Access::Read).linkage2(), Some(Guid::from_u128(8)), "durable, through the log");
    image.close().unwrap();
    let mut image = open(&storage, Access::Write);
    assert_eq!(image.linkage2(), Some(Guid::from_u128(8)));
    assert!(image.parent_link().unwrap().accepts(ImageId::Vhdx(Guid::from_u128(7))));
    // Longer than what is there, then shorter, then longer than a page.
    for (number, length) in [(20u128, 300), (21, 3), (22, 9000), (23, 9001), (24, 5)] {
        let name = format!(r".\{}.vhdx", "p".repeat(length));
        image.set_parent(&parent(number, &name)).unwrap();
        assert_eq!((image.linkage2(), path(&image)), (None, name.clone()));
        let again = open(&storage, Access::Read);
        assert_eq!(path(&again), name);
        assert_eq!(again.parent_link().unwrap().ids, [ImageId::Vhdx(Guid::from_u128(number))]);
    }
    assert_eq!(image.id(), id, "children of this image still find it");
    image.close().unwrap();
    Report::vhdx(&file.to_bytes().unwrap()).assert_clean("relinked");
}

#[test]
fn only_a_child_has_links() {
    let mut image = create(&memory(), 2 * MIB, DiskKind::Dynamic, 512);
    assert_eq!(image.set_linkage2(None).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(image.set_parent(&parent(1, "x")).unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn user_item(number: u128, flags: u32, len: usize) -> NewItem {
    NewItem { id: Guid::from_u128(number), flags: ITEM_IS_USER | flags, bytes: vec![number as u8; len] }
}

/// Adds items as other software may have.
fn add(image: &mut Vhdx, items: &[NewItem]) {
    image.begin(Seen::ByNobody).unwrap();
    image.replace_items(&|_| false, items).unwrap();
}

fn users_item(image: &Vhdx, number: u128) -> Option<Vec<u8>> {
    let item = *image.metadata.item(Guid::from_u128(number), true)?;
    Some(image.metadata.read_item(&*image.storage, &item).unwrap())
}

#[test]
fn what_belongs_to_the_disk_is_taken_over() {
    let file = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
    let mut target = create(&storage, 4 * MIB, DiskKind::Differencing, 512);
    write(&mut target, vec![data(512..2048)], 4);
    add(
        &mut target,
        &[user_item(1, ITEM_IS_VIRTUAL_DISK, 10), user_item(2, 0, 10), user_item(3, ITEM_IS_VIRTUAL_DISK, 99)],
    );
    let mut source = create(&memory(), 2 * MIB, DiskKind::Differencing, 512);
    // More than one log entry holds, and an empty one.
    add(
        &mut source,
        &[
            user_item(1, ITEM_IS_VIRTUAL_DISK, 20),
            user_item(2, 0, 5),
            user_item(4, ITEM_IS_VIRTUAL_DISK, 0),
            user_item(5, ITEM_IS_VIRTUAL_DISK, 600_000),
        ],
    );
    let link = target.parent_link();
    target.replace_disk_metadata_from(&source).unwrap();
    for image in [open(&storage, Access::Read), target] {
        assert_eq!(image.disk_id(), source.disk_id());
        assert_eq!(users_item(&image, 1), Some(vec![1; 20]));
        assert_eq!(users_item(&image, 2), Some(vec![2; 10]), "not the disk's: stays");
        assert_eq!(users_item(&image, 3), None);
        assert_eq!(users_item(&image, 4), Some(Vec::new()));
        assert_eq!(users_item(&image, 5), Some(vec![5; 600_000]));
        assert_eq!((image.parent_link(), image.virtual_size_of_table()), (link.clone(), 4 * MIB));
        let mut want = vec![0; 4 * MIB as usize];
        model(&mut want, &[data(512..2048)], 4);
        assert!(contents(&image, &[]) == want);
        drop(image);
    }
    Report::vhdx(&file.to_bytes().unwrap()).assert_clean("taken over");
}

impl Vhdx {
    fn virtual_size_of_table(&self) -> u64 {
        self.metadata.disk.virtual_size
    }
}

/// 1.4 MB of items in a region of 1 MiB: it moves, and everything in it.
#[test]
fn a_region_that_is_full_gets_another_place() {
    let file = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
    let mut target = create(&storage, 2 * MIB, DiskKind::Differencing, 512);
    let link = target.parent_link();
    let mut source = create(&memory(), 2 * MIB, DiskKind::Dynamic, 512);
    add(&mut source, &[user_item(1, ITEM_IS_VIRTUAL_DISK, 900_000)]);
    add(&mut target, &[user_item(2, 0, 500_000), user_item(3, 0, 0)]);
    let before = target.regions.metadata().range();
    target.replace_disk_metadata_from(&source).unwrap();
    for image in [open(&storage, Access::Read), target] {
        assert_eq!(image.regions.metadata().length, 2 << 20);
        assert_ne!(image.regions.metadata().offset, before.start);
        assert_eq!((image.disk_id(), image.parent_link()), (source.disk_id(), link.clone()));
        assert_eq!(users_item(&image, 1), Some(vec![1; 900_000]));
        assert_eq!(users_item(&image, 2), Some(vec![2; 500_000]));
        assert_eq!(users_item(&image, 3), Some(Vec::new()));
        drop(image);
    }
    let mut image = open(&storage, Access::Write);
    write(&mut image, vec![data(0..512)], 9);
    assert!(before.contains(&image.payload_entry(0).unwrap().offset.get()), "the old region's space is used again");
    image.close().unwrap();
    Report::vhdx(&file.to_bytes().unwrap()).assert_clean("a moved metadata region");
}

#[test]
fn items_of_another_sector_size_are_not_taken_over() {
    let source = create(&memory(), 2 * MIB, DiskKind::Dynamic, 512);
    let mut other = create(&memory(), 2 * MIB, DiskKind::Dynamic, 4096);
    assert_eq!(other.replace_disk_metadata_from(&source).unwrap_err().kind(), ErrorKind::InvalidInput);
}
