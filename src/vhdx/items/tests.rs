//! Items set, deleted and listed, through closing and opening again.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::error::ErrorKind;
use crate::guid::Guid;
use crate::link::DiskKind;
use crate::storage::{Access, MemoryStorage, Storage};
use crate::support::Report;
use crate::units::MIB;
use crate::vhdx::Vhdx;
use crate::vhdx::raw::{ITEM_DISK_ID, MAX_USER_ITEMS};
use crate::vhdx::write::tests::{create, memory, open};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn id(number: u128) -> Guid {
    Guid::from_u128(number)
}

/// The items of users, and which of them are the disk's.
fn items(image: &Vhdx) -> BTreeMap<u128, (Vec<u8>, bool)> {
    let users = image.metadata_items().into_iter().filter(|item| item.user);
    users
        .map(|item| {
            let bytes = image.metadata_item(item.id, true).unwrap().unwrap();
            assert_eq!(bytes.len() as u32, item.length);
            (item.id.as_u128(), (bytes, item.virtual_disk))
        })
        .collect()
}

#[test]
fn only_what_belongs_to_the_disk_changes_the_id_that_children_know() {
    let storage = memory();
    create(&storage, 2 * MIB, DiskKind::Dynamic, 512).close().unwrap();
    let mut id_before = open(&storage, Access::Read).data_write_guid();
    let mut step = |changes: bool, act: &dyn Fn(&mut Vhdx)| {
        let mut image = open(&storage, Access::Write);
        let file_id = image.file_write_guid();
        act(&mut image);
        assert_eq!(image.data_write_guid() != id_before, changes);
        id_before = image.data_write_guid();
        let wrote = image.file_write_guid() != file_id;
        image.close().unwrap();
        wrote
    };
    assert!(step(false, &|image| image.set_metadata_item(id(1), b"note", false).unwrap()));
    assert!(!step(false, &|image| image.set_metadata_item(id(1), b"note", false).unwrap()), "it is so already");
    assert!(step(true, &|image| image.set_metadata_item(id(2), b"disk", true).unwrap()));
    assert!(!step(false, &|image| image.set_metadata_item(id(2), b"disk", true).unwrap()));
    assert!(step(true, &|image| image.set_metadata_item(id(2), b"disk", false).unwrap()), "it was the disk's");
    assert!(step(true, &|image| image.set_metadata_item(id(2), b"disk", true).unwrap()));
    assert!(step(false, &|image| assert!(image.delete_metadata_item(id(1)).unwrap())));
    assert!(!step(false, &|image| assert!(!image.delete_metadata_item(id(1)).unwrap())));
    assert!(step(true, &|image| assert!(image.delete_metadata_item(id(2)).unwrap())));
    assert!(!step(false, &|image| assert!(!image.delete_metadata_item(ITEM_DISK_ID).unwrap())), "not a user's");
    assert!(step(true, &|image| image.set_physical_sector_size(512).unwrap()));
    assert!(!step(false, &|image| image.set_physical_sector_size(512).unwrap()));
    assert!(step(true, &|image| image.set_disk_id(id(77)).unwrap()));
    let image = open(&storage, Access::Read);
    assert_eq!((image.disk_id(), image.physical_sector_size()), (id(77), 512));
    let names: Vec<_> = image.metadata_items().iter().filter_map(|item| item.name).collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

#[test]
fn what_no_disk_can_be_is_refused() {
    let storage = memory();
    let mut image = create(&storage, 2 * MIB, DiskKind::Dynamic, 4096);
    let kind = |done: crate::error::Result<()>| done.unwrap_err().kind();
    assert_eq!(kind(image.set_disk_id(Guid::nil())), ErrorKind::InvalidInput);
    assert_eq!(kind(image.set_physical_sector_size(512)), ErrorKind::InvalidInput, "shorter than a logical sector");
    assert_eq!(kind(image.set_physical_sector_size(8192)), ErrorKind::InvalidInput);
    assert_eq!(kind(image.set_metadata_item(id(1), &vec![1; (1 << 20) + 1], false)), ErrorKind::InvalidInput);
    image.set_metadata_item(id(1), &vec![1; 1 << 20], false).unwrap();
    image.close().unwrap();
    let mut image = open(&storage, Access::Read);
    assert_eq!(items(&image), BTreeMap::from([(1, (vec![1; 1 << 20], false))]));
    assert_eq!(kind(image.set_metadata_item(id(1), b"x", false)), ErrorKind::ReadOnly);
    assert_eq!(image.delete_metadata_item(id(1)).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn there_is_room_for_1024_items_and_128_mib() {
    let file = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
    let mut image = create(&storage, 2 * MIB, DiskKind::Dynamic, 512);
    for number in 1..=MAX_USER_ITEMS as u128 {
        image.set_metadata_item(id(number), &number.to_le_bytes(), false).unwrap();
    }
    let error = image.set_metadata_item(id(5000), b"", false).unwrap_err();
    assert_eq!((error.kind(), error.windows_name()), (ErrorKind::Unsupported, Some("ERROR_VHD_METADATA_FULL")));
    for number in 1..=127 {
        image.set_metadata_item(id(number), &vec![number as u8; 1 << 20], false).unwrap();
    }
    let error = image.set_metadata_item(id(128), &vec![1; 1 << 20], false).unwrap_err();
    assert_eq!((error.kind(), error.windows_name()), (ErrorKind::Unsupported, Some("ERROR_VHD_METADATA_FULL")));
    let shown = items(&image);
    assert_eq!(shown.len(), MAX_USER_ITEMS);
    assert!((1..=127).all(|number| shown[&number].0 == vec![number as u8; 1 << 20]));
    assert_eq!(shown[&128].0, 128u128.to_le_bytes());
    image.close().unwrap();
    Report::vhdx(&file.to_bytes().unwrap()).assert_clean("a great many items");
}

#[derive(Clone, Debug)]
enum Act {
    Set { number: u128, len: usize, seed: u8, virtual_disk: bool },
    Delete { number: u128 },
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let len = prop_oneof![2 => 0usize..100, 1 => 4000usize..9000, 1 => 100_000usize..500_000, 1 => Just(1 << 20)];
    let act = prop_oneof![
        5 => (1u128..6, len, any::<u8>(), any::<bool>())
            .prop_map(|(number, len, seed, virtual_disk)| Act::Set { number, len, seed, virtual_disk }),
        2 => (1u128..6).prop_map(|number| Act::Delete { number }),
        1 => Just(Act::Reopen),
    ];
    prop::collection::vec(act, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn items_are_what_they_were_last_set_to(acts in acts()) {
        let file = Arc::new(MemoryStorage::new());
        let storage: Arc<dyn Storage> = Arc::clone(&file) as _;
        let mut image = create(&storage, 2 * MIB, DiskKind::Differencing, 512);
        let link = image.parent_link();
        let mut want = BTreeMap::new();
        for act in acts {
            match act {
                Act::Set { number, len, seed, virtual_disk } => {
                    let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8 ^ seed).collect();
                    image.set_metadata_item(id(number), &bytes, virtual_disk).unwrap();
                    want.insert(number, (bytes, virtual_disk));
                }
                Act::Delete { number } => {
                    prop_assert_eq!(image.delete_metadata_item(id(number)).unwrap(), want.remove(&number).is_some());
                }
                Act::Reopen => {
                    image.close().unwrap();
                    image = open(&storage, Access::Write);
                }
            }
            prop_assert!(items(&image) == want, "wrong items");
        }
        prop_assert!(items(&open(&storage, Access::Read)) == want, "through the log");
        prop_assert_eq!(image.parent_link(), link);
        image.close().unwrap();
        Report::vhdx(&file.to_bytes().unwrap()).assert_clean("items");
    }
}
