//! New files that read back otherwise than asked for, cost more than they must, or look whole too early.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

use super::super::image::tests::child_of_nobody;
use super::*;
use crate::link::{HintKind, ImageId, ParentPaths};
use crate::map::{BlockMap, Extent, Source};
use crate::storage::MemoryStorage;
use crate::units::{GIB, TIB};
use std::io;
use std::sync::Mutex;

fn create(options: &VhdxCreate) -> (Vhdx, Arc<MemoryStorage>) {
    let storage = Arc::new(MemoryStorage::new());
    (Vhdx::create(storage.clone(), options).unwrap(), storage)
}

/// Opens what was made again; a new file has nothing to find.
fn reopen(storage: &Arc<MemoryStorage>) -> Vhdx {
    let mut findings = Findings::new();
    let image = Vhdx::open(storage.clone(), Access::Read, &mut findings).unwrap();
    assert!(findings.list().is_empty(), "{findings:?}");
    image
}

#[test]
fn empty_dynamic_disk_is_four_mib() {
    let (image, storage) = create(&VhdxCreate::new(127 * GIB));
    assert_eq!(storage.len().unwrap(), 4 * MIB);
    drop(image);
    let image = reopen(&storage);
    assert_eq!((image.kind(), image.virtual_size(), image.block_size()), (DiskKind::Dynamic, 127 * GIB, 32 << 20));
    assert_eq!((image.logical_sector_size(), image.physical_sector_size()), (512, 4096));
    assert!(image.creator().starts_with("vhdkit "));
    assert!(!image.log_was_dirty() && image.parent_link().is_none());
    assert_eq!(image.allocated_blocks().unwrap(), 0);
    assert_eq!(image.extent_at(0, u64::MAX).unwrap(), Extent { len: 127 * GIB, source: Source::Zero });
}

#[test]
fn fixed_disk_has_every_block_one_behind_the_other() {
    for (size, block, sector) in [(5 * GIB + 512, 256u32 << 20, 512), (40 * MIB, 1 << 20, 4096), (512, 1 << 28, 512)] {
        let options = VhdxCreate::new(size).kind(DiskKind::Fixed).block_size(block).logical_sector_size(sector);
        let (image, storage) = create(&options);
        let blocks = size.div_ceil(u64::from(block));
        assert_eq!(storage.len().unwrap(), 4 * MIB + blocks * u64::from(block));
        assert!(storage.allocated() < MIB);
        drop(image);
        let image = reopen(&storage);
        assert_eq!((image.kind(), image.allocated_blocks().unwrap()), (DiskKind::Fixed, blocks));
        let whole = Extent { len: size, source: Source::Data(FileOffset(4 * MIB)) };
        assert_eq!(image.extent_at(0, u64::MAX).unwrap(), whole);
    }
}

/// More entries than one piece of the table holds.
#[test]
fn fixed_table_is_written_in_pieces() {
    let size = 40_000 * MIB;
    let (image, storage) = create(&VhdxCreate::new(size).kind(DiskKind::Fixed).block_size(1 << 20));
    assert_eq!(image.allocated_blocks().unwrap(), 40_000);
    let mut offset = 0;
    while offset < size {
        let extent = image.extent_at(offset, u64::MAX).unwrap();
        assert_eq!(extent.source, Source::Data(FileOffset(4 * MIB + offset)));
        offset += extent.len;
    }
    assert!(storage.allocated() < 2 * MIB);
}

#[test]
fn child_names_its_parent_and_shares_its_disk_id() {
    let paths = ParentPaths { relative: Some(".\\p.vhdx".into()), absolute: Some("D:\\p.vhdx".into()) };
    let parent = NewParent { id: ImageId::Vhdx(Guid::from_u128(5)), paths, timestamp: 0 };
    let options = VhdxCreate::new(10 * GIB).kind(DiskKind::Differencing).parent(parent).disk_id(Guid::from_u128(6));
    let (_, storage) = create(&options);
    let image = reopen(&storage);
    assert_eq!(
        (image.kind(), image.block_size(), image.disk_id()),
        (DiskKind::Differencing, 2 << 20, Guid::from_u128(6))
    );
    let link = image.parent_link().unwrap();
    assert_eq!(link.ids, [ImageId::Vhdx(Guid::from_u128(5))]);
    let hints: Vec<(HintKind, &str)> = link.hints.iter().map(|hint| (hint.kind, hint.path.as_str())).collect();
    assert_eq!(hints, [(HintKind::Relative, ".\\p.vhdx"), (HintKind::Absolute, r"\\?\D:\p.vhdx")]);
    assert_eq!(image.extent_at(0, u64::MAX).unwrap(), Extent { len: 10 * GIB, source: Source::Absent });
}

#[test]
fn ids_are_fresh_every_time() {
    let (one, _) = create(&VhdxCreate::new(GIB));
    let (two, _) = create(&VhdxCreate::new(GIB));
    assert_ne!(one.id(), two.id());
    assert_ne!(one.disk_id(), two.disk_id());
    assert_ne!(one.file_write_guid(), two.file_write_guid());
}

#[test]
fn largest_disk_costs_no_table() {
    let (image, storage) = create(&VhdxCreate::new(64 * TIB).block_size(1 << 20));
    assert_eq!(image.virtual_size(), 64 * TIB);
    assert_eq!(storage.len().unwrap(), 516 * MIB);
    assert!(storage.allocated() < MIB, "{} bytes", storage.allocated());
}

#[test]
fn options_the_format_does_not_allow_are_invalid_and_nothing_is_written() {
    let size = VhdxCreate::new(GIB);
    for options in [
        VhdxCreate::new(0),
        VhdxCreate::new(513),
        VhdxCreate::new(64 * TIB + 512),
        size.clone().block_size(3 << 20),
        size.clone().block_size(1 << 19),
        size.clone().block_size(1 << 29),
        size.clone().logical_sector_size(1024),
        size.clone().logical_sector_size(4096).physical_sector_size(512),
        size.clone().kind(DiskKind::Differencing),
        size.clone().parent(child_of_nobody()),
        size.clone().creator("x".repeat(257)),
        size.kind(DiskKind::Differencing).parent(NewParent {
            paths: ParentPaths { relative: Some("x".repeat(40_000)), absolute: None },
            ..child_of_nobody()
        }),
    ] {
        let storage = Arc::new(MemoryStorage::new());
        let error = Vhdx::create(storage.clone(), &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{options:?}");
        assert_eq!(storage.len().unwrap(), 0);
    }
}

#[test]
fn file_that_is_not_empty_is_refused_and_kept() {
    let storage = Arc::new(MemoryStorage::from_bytes(b"precious"));
    let error = Vhdx::create(storage.clone(), &VhdxCreate::new(GIB)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(storage.to_bytes().unwrap(), b"precious");
}

/// Fails every write after a sync, and so shows what the file is at each of them.
#[derive(Debug)]
struct StopsAfter {
    inner: MemoryStorage,
    syncs_left: Mutex<u32>,
}

impl Storage for StopsAfter {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if *self.syncs_left.lock().unwrap() == 0 {
            Err(io::Error::other("stopped"))
        } else {
            self.inner.write_all_at(buf, offset)
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        *self.syncs_left.lock().unwrap() -= 1;
        Ok(())
    }
}

#[test]
fn file_is_no_vhdx_before_all_of_it_is_durable() {
    let storage = Arc::new(StopsAfter { inner: MemoryStorage::new(), syncs_left: Mutex::new(1) });
    assert_eq!(Vhdx::create(storage.clone(), &VhdxCreate::new(GIB)).unwrap_err().kind(), ErrorKind::Io);
    assert!(!Vhdx::probe(&*storage).unwrap());
    // All that is missing is the identifier.
    storage.inner.write_all_at(&IDENTIFIER_SIGNATURE, 0).unwrap();
    let mut findings = Findings::new();
    Vhdx::open(storage, Access::Read, &mut findings).unwrap();
    assert!(findings.list().is_empty());
}
