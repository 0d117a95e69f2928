//! Opening what must be refused, refusing what is odd but whole, writing through a reading handle.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

#[cfg(feature = "sim")]
mod crash;
mod mutated;
mod real;

use super::*;
use crate::link::{NewParent, ParentPaths};
use crate::map::{BlockMap, Source};
use crate::storage::MemoryStorage;
use crate::vhdx::VhdxCreate;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};

/// A parent for children whose parent is never looked for.
pub(in crate::vhdx) fn child_of_nobody() -> NewParent {
    let paths = ParentPaths { relative: Some(".\\parent.vhdx".into()), absolute: None };
    NewParent { id: ImageId::Vhdx(Guid::from_u128(1)), paths, timestamp: 0 }
}

/// SHA-256 of the whole disk, with absent ranges as zeros: right for a disk without a parent.
pub(in crate::vhdx) fn disk_hash(image: &Vhdx) -> Result<String> {
    const PIECE: u64 = 1 << 20;
    let zeros = vec![0; PIECE as usize];
    let mut buffer = vec![0; PIECE as usize];
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < image.virtual_size() {
        let extent = image.extent_at(at, PIECE)?;
        let len = extent.len as usize;
        match extent.source {
            Source::Data(place) => {
                image.storage().read_exact_at(&mut buffer[..len], place.get()).unwrap();
                hash.update(&buffer[..len]);
            }
            Source::Zero | Source::Absent => hash.update(&zeros[..len]),
        }
        at += extent.len;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Counts what is read through it.
#[derive(Debug)]
pub(in crate::vhdx) struct Counting {
    inner: Arc<dyn Storage>,
    read: AtomicU64,
}

impl Counting {
    pub(in crate::vhdx) fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, read: AtomicU64::new(0) }
    }

    pub(in crate::vhdx) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl Storage for Counting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }
}

fn created(options: &VhdxCreate) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::new());
    drop(Vhdx::create(storage.clone(), options).unwrap());
    storage
}

fn open(storage: &Arc<MemoryStorage>, access: Access) -> (Result<Vhdx>, Findings) {
    let mut findings = Findings::new();
    (Vhdx::open(storage.clone(), access, &mut findings), findings)
}

#[test]
fn probe_knows_the_signature_and_nothing_else() {
    assert!(Vhdx::probe(&*created(&VhdxCreate::new(MIB))).unwrap());
    for bytes in [&b""[..], b"vhdxfil", b"conectix and more"] {
        let storage = Arc::new(MemoryStorage::from_bytes(bytes));
        assert!(!Vhdx::probe(&*storage).unwrap());
        assert_eq!(open(&storage, Access::Read).0.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn creator_is_what_stands_before_the_first_nul_or_all_of_it() {
    let storage = created(&VhdxCreate::new(MIB).creator("x".repeat(256)));
    assert_eq!(open(&storage, Access::Read).0.unwrap().creator(), "x".repeat(256));
    storage.write_all_at(&[0, 0], 8 + 20).unwrap();
    assert_eq!(open(&storage, Access::Read).0.unwrap().creator(), "x".repeat(10));
}

#[test]
fn reader_cannot_write_through_its_storage() {
    let storage = created(&VhdxCreate::new(MIB));
    let image = open(&storage, Access::Read).0.unwrap();
    assert!(image.storage().write_all_at(b"x", 0).is_err());
    assert!(open(&storage, Access::Write).0.unwrap().storage().write_all_at(b"v", 0).is_ok());
}

/// Disk2vhd leaves files of 260 MiB and 512 bytes.
#[test]
fn odd_file_length_is_a_warning_and_no_obstacle_to_writing() {
    let storage = created(&VhdxCreate::new(MIB));
    storage.set_len(4 * MIB + 512).unwrap();
    let (image, findings) = open(&storage, Access::Write);
    assert!(image.is_ok());
    let [finding] = findings.list() else { panic!("{findings:?}") };
    assert_eq!((finding.severity, finding.problem.fault), (Severity::Warning, Fault::Alignment));
}

#[test]
fn damage_that_a_reader_can_live_with_keeps_a_writer_out() {
    let storage = created(&VhdxCreate::new(MIB));
    storage.set_len(4 * MIB - 1).unwrap();
    let before = storage.to_bytes().unwrap();
    let (image, findings) = open(&storage, Access::Read);
    assert!(image.is_ok());
    assert!(findings.list().iter().any(|finding| finding.severity == Severity::Error));
    let error = open(&storage, Access::Write).0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.hint().is_some() && error.problem().is_some());
    assert!(storage.to_bytes().unwrap() == before);
}

#[test]
fn log_at_an_impossible_place_is_no_obstacle_to_reading_only() {
    let storage = created(&VhdxCreate::new(MIB));
    let mut pair = HeaderPair::read(&*storage, &mut Findings::new()).unwrap();
    pair.update(&*storage, |header| header.log_offset = 0).unwrap();
    assert!(open(&storage, Access::Read).0.is_ok());
    assert_eq!(open(&storage, Access::Write).0.unwrap_err().kind(), ErrorKind::Refused);
    pair.update(&*storage, |header| header.log_length = 0).unwrap();
    assert!(open(&storage, Access::Write).0.is_ok(), "a writer makes a log for a file that has none");
}

#[test]
fn log_in_use_without_entries_is_refused() {
    let storage = created(&VhdxCreate::new(MIB));
    let mut pair = HeaderPair::read(&*storage, &mut Findings::new()).unwrap();
    pair.update(&*storage, |header| header.log_guid = Guid::from_u128(1)).unwrap();
    for access in [Access::Read, Access::Write] {
        let error = open(&storage, access).0.unwrap_err();
        assert_eq!(error.problem().unwrap().structure, Structure::VhdxLog);
    }
}

#[test]
fn table_region_shorter_than_the_disk_needs_is_refused() {
    // 300 000 blocks need a table of 2.3 MiB; the region is cut to 2 MiB.
    let storage = created(&VhdxCreate::new(300_000 * MIB).block_size(1 << 20));
    let image = open(&storage, Access::Read).0.unwrap();
    let cut = image.regions.with_bat(&(3 * MIB..5 * MIB)).encode();
    drop(image);
    for at in crate::vhdx::raw::REGION_TABLE_AT {
        storage.write_all_at(&cut, at).unwrap();
    }
    let error = open(&storage, Access::Read).0.unwrap_err();
    assert_eq!(error.problem().unwrap().structure, Structure::VhdxBat);
    assert_eq!(error.offset(), Some(FileOffset(3 * MIB)));
}
