//! Files with changed bytes in their structures, checksums made right again: any answer will do, as long as there is one.

use super::{child_of_nobody, created};
use crate::finding::{Findings, Severity};
use crate::link::DiskKind;
use crate::map::{BlockMap, Source};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::units::{GIB, MIB};
use crate::vhdx::raw::{HEADER_AT, HEADER_LEN, REGION_TABLE_AT, REGION_TABLE_LEN, checksum};
use crate::vhdx::{Vhdx, VhdxCreate};
use proptest::prelude::*;
use std::sync::Arc;

/// Where the structures of a new file have their fields: start and length.
const FIELDS: [(u64, u64); 6] = [
    (HEADER_AT[1], 80),
    (REGION_TABLE_AT[0], 80),
    (2 * MIB, 32 + 6 * 32),
    (2 * MIB + (64 << 10), 40),
    (2 * MIB + (68 << 10), 220),
    (3 * MIB, 64),
];

fn seed(kind: DiskKind) -> Arc<MemoryStorage> {
    let options = VhdxCreate::new(GIB + 512).kind(kind).block_size(16 << 20);
    if kind == DiskKind::Differencing { created(&options.parent(child_of_nobody())) } else { created(&options) }
}

/// Makes the checksum of the structure at `at` right.
fn seal(storage: &MemoryStorage, at: u64, len: usize) {
    let mut bytes = vec![0; len];
    storage.read_exact_at(&mut bytes, at).unwrap();
    storage.write_all_at(&checksum(&bytes).to_le_bytes(), at + 4).unwrap();
}

fn kinds() -> impl Strategy<Value = DiskKind> {
    prop_oneof![Just(DiskKind::Fixed), Just(DiskKind::Dynamic), Just(DiskKind::Differencing)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_file_is_answered(
        kind in kinds(),
        edits in proptest::collection::vec((0usize..FIELDS.len(), any::<u64>(), any::<u8>()), 1..6),
        extremes in proptest::collection::vec((0usize..FIELDS.len(), any::<u64>(), any::<bool>()), 0..3),
        len in prop_oneof![4 => Just(None), 1 => (0u64..5 * MIB).prop_map(Some)],
    ) {
        let storage = seed(kind);
        for (field, place, value) in edits {
            let (start, len) = FIELDS[field];
            storage.write_all_at(&[value], start + place % len).unwrap();
        }
        for (field, place, ones) in extremes {
            let (start, len) = FIELDS[field];
            storage.write_all_at(&[if ones { 0xFF } else { 0 }; 4], start + place % len / 4 * 4).unwrap();
        }
        HEADER_AT.into_iter().for_each(|at| seal(&storage, at, HEADER_LEN));
        REGION_TABLE_AT.into_iter().for_each(|at| seal(&storage, at, REGION_TABLE_LEN));
        if let Some(len) = len {
            storage.set_len(len).unwrap();
        }
        let mut findings = Findings::new();
        let before = storage.to_bytes_of_start();
        match Vhdx::open(storage.clone(), Access::Read, &mut findings) {
            Err(error) => {
                let fatal = findings.list().iter().find(|finding| finding.severity == Severity::Fatal);
                prop_assert_eq!(error.problem(), fatal.map(|finding| &finding.problem));
            }
            Ok(image) => {
                walk(&image);
                prop_assert!(image.allocated_blocks().is_err() || image.creator().starts_with("vhdkit"));
            }
        }
        prop_assert!(storage.to_bytes_of_start() == before);
    }
}

/// Asks for the start of the disk and of its last sectors, and reads what is said to be there.
fn walk(image: &Vhdx) {
    let mut offset = 0;
    for step in 0..200 {
        if step == 150 {
            offset = offset.max(image.virtual_size().saturating_sub(64 << 20));
        }
        if offset >= image.virtual_size() {
            return;
        }
        match image.extent_at(offset, 16 << 20) {
            Ok(extent) => {
                assert!(extent.len > 0 && extent.len <= image.virtual_size() - offset);
                if let Source::Data(place) = extent.source {
                    let mut last = [0];
                    image.storage().read_exact_at(&mut last, place.get() + extent.len - 1).unwrap();
                }
                offset += extent.len;
            }
            Err(error) => {
                assert!(error.problem().is_some(), "{error}");
                offset += 512;
            }
        }
    }
}

trait Start {
    fn to_bytes_of_start(&self) -> Vec<u8>;
}

impl Start for MemoryStorage {
    /// The first 4 MiB: every structure of the files above.
    fn to_bytes_of_start(&self) -> Vec<u8> {
        let len = self.len().unwrap().min(4 * MIB);
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}
