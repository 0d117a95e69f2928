//! Items that are missing, short, doubled, outside of their region or unknown: mistaken for another case, or lost.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

use super::super::raw::{ITEM_GEOMETRY, ITEM_INCOMPLETE, ITEM_PARENT_LOCATOR, ITEM_PMEM_LABEL};
use super::*;
use crate::error::ErrorKind;
use crate::finding::Severity;
use crate::link::{ImageId, NewParent, ParentPaths};
use crate::storage::MemoryStorage;
use crate::units::{MIB, TIB};

const AT: u64 = 2 * MIB;
const FIRST: u32 = 64 << 10;

fn disk() -> DiskMetadata {
    DiskMetadata {
        block_size: 32 << 20,
        leave_blocks: false,
        has_parent: false,
        virtual_size: 127 << 30,
        disk_id: Guid::from_u128(77),
        logical_sector: 512,
        physical_sector: 4096,
    }
}

/// A metadata region under construction.
struct Build {
    items: Vec<MetadataItem>,
    bytes: Vec<u8>,
}

impl Build {
    fn new(disk: &DiskMetadata) -> Self {
        let mut build = Self { items: Vec::new(), bytes: Vec::new() };
        for (id, flags, bytes) in disk.items() {
            build.add(id, flags, &bytes);
        }
        build
    }

    fn add(&mut self, id: Guid, flags: u32, bytes: &[u8]) -> &mut Self {
        let (offset, length) = (FIRST + self.bytes.len() as u32, bytes.len() as u32);
        self.items.push(MetadataItem { id, flags, offset: if length == 0 { 0 } else { offset }, length });
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn item(&mut self, id: Guid) -> &mut MetadataItem {
        self.items.iter_mut().find(|item| item.id == id).unwrap()
    }

    fn read(&self) -> (Result<Metadata>, Vec<(Severity, Fault)>) {
        let storage = self.storage();
        let region = Region { id: Guid::nil(), offset: AT, length: 1 << 20, flags: 1 };
        let mut findings = Findings::new();
        let metadata = Metadata::read(&storage, &region, &mut findings);
        (metadata, findings.list().iter().map(|finding| (finding.severity, finding.problem.fault)).collect())
    }

    fn storage(&self) -> MemoryStorage {
        let storage = MemoryStorage::new();
        storage.set_len(3 * MIB).unwrap();
        storage.write_all_at(&encode_table(&self.items), AT).unwrap();
        storage.write_all_at(&self.bytes, AT + u64::from(FIRST)).unwrap();
        storage
    }

    fn fault(&self) -> (ErrorKind, Fault) {
        let error = self.read().0.unwrap_err();
        (error.kind(), error.problem().unwrap().fault)
    }
}

#[test]
fn what_is_written_is_read() {
    let build = Build::new(&disk());
    let (metadata, findings) = build.read();
    let metadata = metadata.unwrap();
    assert_eq!(metadata.disk, disk());
    assert_eq!(metadata.items, build.items);
    assert!(findings.is_empty() && metadata.locator.is_none());
    let item = metadata.item(ITEM_DISK_ID, false).unwrap();
    assert_eq!(metadata.read_item(&build.storage(), item).unwrap(), Guid::from_u128(77).to_bytes_le());
    assert_eq!(metadata.place_of(item).get(), AT + u64::from(item.offset));
}

/// A file made by Windows had a second, stale copy of an entry behind the last one.
#[test]
fn entries_past_the_count_mean_nothing() {
    let mut build = Build::new(&disk());
    build.add(ITEM_INCOMPLETE, 4, &[]);
    let storage = build.storage();
    storage.write_all_at(&5u16.to_le_bytes(), AT + 10).unwrap();
    let region = Region { id: Guid::nil(), offset: AT, length: 1 << 20, flags: 1 };
    let mut findings = Findings::new();
    assert_eq!(Metadata::read(&storage, &region, &mut findings).unwrap().items.len(), 5);
    assert!(findings.list().is_empty());
}

#[test]
fn every_required_item_must_be_there_and_long_enough() {
    for (id, ..) in disk().items() {
        let mut build = Build::new(&disk());
        build.item(id).length -= 1;
        assert_eq!(build.fault(), (ErrorKind::Corrupt, Fault::Truncated));
        build.items.retain(|item| item.id != id);
        assert_eq!(build.fault(), (ErrorKind::Corrupt, Fault::Missing));
    }
}

#[test]
fn required_item_outside_the_region_is_fatal_and_a_users_is_an_error() {
    for (offset, length) in [(0, 8), (FIRST - 1, 8), ((1 << 20) - 4, 8), (u32::MAX, 8), (FIRST, u32::MAX)] {
        let mut build = Build::new(&disk());
        let id = Guid::from_u128(1);
        build.add(id, ITEM_IS_USER, b"12345678");
        *build.item(id) = MetadataItem { offset, length, ..*build.item(id) };
        let (read, findings) = build.read();
        assert!(findings.contains(&(Severity::Error, Fault::Range)), "{findings:?}");
        let metadata = read.unwrap();
        let user = *metadata.item(id, true).unwrap();
        assert!(metadata.read_item(&build.storage(), &user).is_err());

        let size = build.item(ITEM_VIRTUAL_SIZE);
        *size = MetadataItem { offset, length, ..*size };
        assert_eq!(build.fault(), (ErrorKind::Corrupt, Fault::Range));
    }
}

#[test]
fn unknown_items_are_kept_unless_required() {
    let id = Guid::from_u128(1);
    let mut build = Build::new(&disk());
    build.add(id, ITEM_IS_VIRTUAL_DISK, b"system").add(id, ITEM_IS_USER, b"user");
    build.add(ITEM_GEOMETRY, ITEM_IS_REQUIRED, &[0; 8]).add(ITEM_PMEM_LABEL, ITEM_IS_REQUIRED, b"label");
    let (metadata, findings) = build.read();
    assert!(findings.is_empty());
    assert_eq!(metadata.unwrap().items.len(), 9);

    for flags in [ITEM_IS_REQUIRED, ITEM_IS_REQUIRED | ITEM_IS_USER] {
        build.item(id).flags = flags;
        let error = build.read().0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(&id.to_string()), "{error}");
    }
}

#[test]
fn unfinished_file_is_refused() {
    assert_eq!(Build::new(&disk()).add(ITEM_INCOMPLETE, 4, &[]).fault(), (ErrorKind::Corrupt, Fault::Dirty));
}

#[test]
fn doubles_and_overlaps_are_errors() {
    let mut build = Build::new(&disk());
    build.add(ITEM_DISK_ID, 6, &[1; 16]);
    let (metadata, findings) = build.read();
    assert_eq!(findings, [(Severity::Error, Fault::Duplicate)]);
    assert_eq!(metadata.unwrap().disk.disk_id, disk().disk_id);

    let mut build = Build::new(&disk());
    build.item(ITEM_PHYSICAL_SECTOR).offset -= 2;
    assert!(build.read().1.contains(&(Severity::Error, Fault::Overlap)));
}

#[test]
fn parent_and_locator_come_together() {
    let child = DiskMetadata { has_parent: true, ..disk() };
    assert_eq!(Build::new(&child).fault(), (ErrorKind::Corrupt, Fault::Missing));

    let paths = ParentPaths { relative: Some("p.vhdx".into()), absolute: None };
    let parent = NewParent { id: ImageId::Vhdx(Guid::from_u128(3)), paths, timestamp: 0 };
    let bytes = Locator::for_parent(&parent).unwrap().build().unwrap();
    let (metadata, findings) = Build::new(&child).add(ITEM_PARENT_LOCATOR, 4, &bytes).read();
    assert_eq!(metadata.unwrap().locator.unwrap().linkage(), Some(Guid::from_u128(3)));
    assert!(findings.is_empty());

    let (metadata, findings) = Build::new(&disk()).add(ITEM_PARENT_LOCATOR, 4, &bytes).read();
    assert!(metadata.unwrap().locator.is_none());
    assert_eq!(findings, [(Severity::Error, Fault::Mismatch)]);
}

#[test]
fn sizes_that_are_not_allowed_are_refused_and_named() {
    let good = disk();
    for (bad, id) in [
        (DiskMetadata { block_size: 0, ..good }, ITEM_FILE_PARAMETERS),
        (DiskMetadata { block_size: 3 << 20, ..good }, ITEM_FILE_PARAMETERS),
        (DiskMetadata { block_size: 1 << 19, ..good }, ITEM_FILE_PARAMETERS),
        (DiskMetadata { block_size: 1 << 29, ..good }, ITEM_FILE_PARAMETERS),
        (DiskMetadata { virtual_size: 0, ..good }, ITEM_VIRTUAL_SIZE),
        (DiskMetadata { virtual_size: 513, ..good }, ITEM_VIRTUAL_SIZE),
        (DiskMetadata { virtual_size: 512, logical_sector: 4096, ..good }, ITEM_VIRTUAL_SIZE),
        (DiskMetadata { virtual_size: 64 * TIB + 512, ..good }, ITEM_VIRTUAL_SIZE),
        (DiskMetadata { logical_sector: 0, ..good }, ITEM_LOGICAL_SECTOR),
        (DiskMetadata { logical_sector: 1024, ..good }, ITEM_LOGICAL_SECTOR),
        (DiskMetadata { physical_sector: 520, ..good }, ITEM_PHYSICAL_SECTOR),
    ] {
        assert_eq!(bad.broken_rule().unwrap().0, id, "{bad:?}");
        let mut build = Build::new(&bad);
        let at = AT + u64::from(build.item(id).offset);
        let error = build.read().0.unwrap_err();
        assert_eq!((error.kind(), error.offset().unwrap().get()), (ErrorKind::Corrupt, at), "{bad:?}");
    }
    for good in [
        DiskMetadata { virtual_size: 64 * TIB, block_size: 1 << 20, ..good },
        DiskMetadata { virtual_size: 512, block_size: 1 << 28, ..good },
        DiskMetadata { virtual_size: 4096, logical_sector: 4096, ..good },
    ] {
        assert_eq!(good.broken_rule(), None);
    }
}

#[test]
fn logical_sectors_longer_than_physical_ones_are_odd_but_read() {
    let (metadata, findings) =
        Build::new(&DiskMetadata { logical_sector: 4096, physical_sector: 512, ..disk() }).read();
    assert!(metadata.is_ok());
    assert_eq!(findings, [(Severity::Warning, Fault::Value)]);
}

#[test]
fn damaged_table_is_fatal() {
    let region = Region { id: Guid::nil(), offset: AT, length: 1 << 20, flags: 1 };
    for (at, bytes, fault) in [(AT, &b"METADATA"[..], Fault::Signature), (AT + 10, &[0, 8][..], Fault::Value)] {
        let storage = Build::new(&disk()).storage();
        storage.write_all_at(bytes, at).unwrap();
        let error = Metadata::read(&storage, &region, &mut Findings::new()).unwrap_err();
        assert_eq!(error.problem().unwrap().fault, fault);
    }
    let storage = Build::new(&disk()).storage();
    storage.set_len(AT + 40).unwrap();
    let error = Metadata::read(&storage, &region, &mut Findings::new()).unwrap_err();
    assert_eq!(error.problem().unwrap().fault, Fault::Truncated);
}
