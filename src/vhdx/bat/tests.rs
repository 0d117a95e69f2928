//! BAT indexes off by a bitmap entry, entry states taken for those of another kind of disk.
#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use super::*;
use crate::guid::Guid;
use crate::units::{GIB, KIB, TIB};
use proptest::prelude::*;

fn geometry(virtual_size: u64, block_size: u64, logical_sector: u32, has_parent: bool) -> Geometry {
    Geometry::new(&DiskMetadata {
        block_size: u32::try_from(block_size).unwrap(),
        leave_blocks: false,
        has_parent,
        virtual_size,
        disk_id: Guid::nil(),
        logical_sector,
        physical_sector: 4096,
    })
}

/// The table of worked examples of the format page.
#[test]
fn worked_examples() {
    for (size, block, sector, ratio, blocks, dynamic, differencing, mib) in [
        (127 * GIB, 32 * MIB, 512, 128, 4064, 4095, 4128, 1),
        (GIB, 2 * MIB, 512, 2048, 512, 512, 2049, 1),
        (2 * TIB, 2 * MIB, 512, 2048, 1_048_576, 1_049_087, 1_049_088, 9),
        (TIB, 32 * MIB, 4096, 1024, 32_768, 32_799, 32_800, 1),
        (64 * TIB, MIB, 512, 4096, 67_108_864, 67_125_247, 67_125_248, 513),
        (64 * TIB, 256 * MIB, 512, 16, 262_144, 278_527, 278_528, 3),
    ] {
        let root = geometry(size, block, sector, false);
        assert_eq!((root.chunk_ratio, root.blocks(), root.entries()), (ratio, blocks, dynamic));
        assert_eq!(geometry(size, block, sector, true).entries(), differencing);
        assert_eq!(root.region_len(), mib * MIB);
    }
}

#[test]
fn smallest_disk_has_one_entry() {
    let root = geometry(512, MIB, 512, false);
    assert_eq!((root.blocks(), root.chunks(), root.entries(), root.region_len()), (1, 1, 1, MIB));
}

proptest! {
    /// Blocks and bitmaps laid out by hand: after every `chunk_ratio` blocks one bitmap.
    #[test]
    fn indexes_follow_the_enumeration(
        block_log in 20u32..29, sector in prop_oneof![Just(512u32), Just(4096)], chunks in 1u64..4, cut in 0u64..17,
    ) {
        let block_size = 1u64 << block_log;
        let per_chunk = (1u64 << 23) * u64::from(sector) / block_size;
        let size = (chunks * per_chunk - cut.min(per_chunk - 1)) * block_size;
        let geometry = geometry(size, block_size, sector, true);
        prop_assert_eq!(geometry.chunks(), chunks);
        let (mut index, mut block) = (0, 0);
        for chunk in 0..chunks {
            for inside in 0..per_chunk {
                prop_assert_eq!(geometry.slot(index), Slot::Payload(block));
                prop_assert_eq!(geometry.payload_index(block), index);
                prop_assert_eq!(geometry.offset_of(index), block * block_size);
                prop_assert_eq!(geometry.chunk_of(block), chunk);
                prop_assert_eq!(geometry.first_bit(block), inside * block_size / u64::from(sector));
                block += 1;
                index += 1;
            }
            prop_assert_eq!(geometry.slot(index), Slot::Bitmap(chunk));
            prop_assert!(geometry.is_bitmap(index));
            prop_assert_eq!(geometry.bitmap_index(chunk), index);
            prop_assert_eq!(geometry.offset_of(index), block * block_size);
            index += 1;
        }
        prop_assert_eq!(geometry.entries(), index);
    }

    #[test]
    fn entries_decode_to_what_they_encode(raw in any::<u64>(), differencing in any::<bool>()) {
        if let Ok(entry) = PayloadEntry::decode(raw, differencing) {
            prop_assert_eq!(PayloadEntry::decode(entry.encode(), differencing), Ok(entry));
            prop_assert_eq!(raw & RESERVED_BITS, 0);
        }
        if let Ok(place) = decode_bitmap(raw, differencing) {
            prop_assert_eq!(decode_bitmap(encode_bitmap(place), differencing), Ok(place));
        }
    }
}

#[test]
fn payload_states_by_kind_of_disk() {
    let at = 5 * MIB;
    let fault = |raw, differencing| PayloadEntry::decode(raw, differencing).unwrap_err().0;
    for differencing in [false, true] {
        for (raw, state, offset) in [
            (at, PayloadState::NotPresent, 0),
            (at | 1, PayloadState::Undefined, at),
            (at | 2, PayloadState::Zero, 0),
            (at | 3, PayloadState::Unmapped, at),
            (3, PayloadState::Unmapped, 0),
            (at | 6, PayloadState::FullyPresent, at),
        ] {
            let entry = PayloadEntry::decode(raw, differencing).unwrap();
            assert_eq!((entry.state, entry.offset), (state, FileOffset(offset)));
        }
        assert_eq!(fault(at | 4, differencing), Fault::State);
        assert_eq!(fault(at | 5, differencing), Fault::State);
        assert_eq!(fault(6, differencing), Fault::Range);
        assert_eq!(fault(at | 6 | (4 * KIB), differencing), Fault::Reserved);
    }
    assert_eq!(fault(at | 7, false), Fault::State);
    assert_eq!(fault(7, true), Fault::Range);
    assert_eq!(PayloadEntry::decode(at | 7, true).unwrap().state, PayloadState::PartiallyPresent);
}

#[test]
fn bitmap_states_by_kind_of_disk() {
    let at = 5 * MIB;
    assert_eq!(decode_bitmap(at | 6, true), Ok(Some(FileOffset(at))));
    assert_eq!(decode_bitmap(at, true), Ok(None));
    assert_eq!(decode_bitmap(0, false), Ok(None));
    assert_eq!(decode_bitmap(at | 6, false).unwrap_err().0, Fault::State);
    assert_eq!(decode_bitmap(6, true).unwrap_err().0, Fault::Range);
    for state in [1, 2, 3, 4, 5, 7] {
        assert_eq!(decode_bitmap(at | state, true).unwrap_err().0, Fault::State);
    }
}
