//! What a compaction must leave to others: batmaps that tell the truth, blocks where other programs put them, tables that
//! are longer than the disk.

use super::check::{BLOCK, STRIDE, check, edit_footers, entry, sample, set_entry, with_batmap};
use super::{memory, open, read};
use crate::pack::{Held, Marks, Pack};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::units::MIB;
use crate::vhd::raw::SECTOR_BYTES;
use crate::vhd::{Vhd, VhdCreate};
use std::sync::Arc;

fn opened(storage: &Arc<MemoryStorage>) -> Vhd {
    open(storage, Access::Write).0.unwrap()
}

/// Gives `blocks` up and packs the rest; answers how many bytes moved.
fn pack(vhd: &mut Vhd, storage: &Arc<MemoryStorage>, blocks: &[u64]) -> u64 {
    if !blocks.is_empty() {
        vhd.give_up(blocks, true).unwrap();
    }
    let mut packing = vhd.packing(&Marks::default()).unwrap();
    let mut moved = 0;
    loop {
        let moves = vhd.next_moves(&mut packing, u64::from(BLOCK)).unwrap();
        if moves.is_empty() {
            break;
        }
        for one in &moves {
            let mut bytes = vec![0; one.len as usize];
            storage.read_exact_at(&mut bytes, one.from.get()).unwrap();
            storage.write_all_at(&bytes, one.to.get()).unwrap();
            moved += one.len;
        }
        storage.sync().unwrap();
        vhd.moved(&moves).unwrap();
    }
    vhd.cut().unwrap();
    assert!(storage.len().unwrap() <= packing.file_size);
    moved
}

/// The sample's blocks hold their numbers; those of `gone` nothing.
#[track_caller]
fn assert_holds(storage: &Arc<MemoryStorage>, gone: &[u64]) {
    let vhd = open(storage, Access::Read).0.unwrap();
    for block in 0..MIB / u64::from(BLOCK) {
        let wanted = if [0, 3, 7, 15].contains(&block) && !gone.contains(&block) { block as u8 + 1 } else { 0 };
        let range = block * u64::from(BLOCK)..(block + 1) * u64::from(BLOCK);
        assert!(read(&[&vhd], range).unwrap().iter().all(|byte| *byte == wanted), "block {block}");
    }
    let (summary, findings) = check(&storage.to_bytes().unwrap(), true);
    assert_eq!(findings.list(), []);
    assert_eq!(summary.unwrap().leaked_bytes, 0);
}

#[test]
fn a_batmap_stays_while_blocks_move_and_goes_before_it_lies() {
    // Block 3 is not claimed by the map; giving it up makes block 15 move.
    let storage = memory(&with_batmap(0b1000_0001));
    let mut vhd = opened(&storage);
    assert_eq!(pack(&mut vhd, &storage, &[3]), STRIDE);
    assert_eq!(vhd.creator(), "tap 1.3");
    assert_holds(&storage, &[3]);
    vhd.give_up(&[7], true).unwrap();
    assert_eq!(vhd.creator(), "vkit 1.0", "the map says that block 7 is full");
    pack(&mut vhd, &storage, &[]);
    assert_holds(&storage, &[3, 7]);
}

/// QEMU lays blocks one behind the other, wherever that puts their data.
#[test]
fn gaps_between_blocks_of_other_programs_are_filled() {
    let aligned = sample(VhdCreate::new(MIB));
    let first = entry(&aligned, 0) as usize * SECTOR_BYTES;
    let mut packed = aligned[..first].to_vec();
    for (number, block) in [15u64, 0, 7, 3].into_iter().enumerate() {
        let from = entry(&aligned, block) as usize * SECTOR_BYTES;
        packed.extend_from_slice(&aligned[from..][..STRIDE as usize]);
        set_entry(&mut packed, block, ((first + number * STRIDE as usize) / SECTOR_BYTES) as u32);
    }
    packed.extend_from_slice(&aligned[aligned.len() - 512..]);
    let storage = memory(&packed);
    let mut vhd = opened(&storage);
    assert_eq!(pack(&mut vhd, &storage, &[0]), STRIDE);
    drop(vhd);
    assert_eq!(entry(&storage.to_bytes().unwrap(), 3) as usize * SECTOR_BYTES, first + STRIDE as usize);
    let vhd = open(&storage, Access::Read).0.unwrap();
    assert_eq!(read(&[&vhd], 3 * u64::from(BLOCK)..4 * u64::from(BLOCK)).unwrap(), vec![4; BLOCK as usize]);
    assert_eq!(read(&[&vhd], 0..u64::from(BLOCK)).unwrap(), vec![0; BLOCK as usize]);
}

/// Entries past the end of the disk are given no space, and what they point at is used again.
#[test]
fn entries_past_the_end_are_cleared() {
    let mut bytes = sample(VhdCreate::new(MIB));
    // The disk ends before block 15.
    edit_footers(&mut bytes, 48, &(15 * u64::from(BLOCK)).to_be_bytes());
    let storage = memory(&bytes);
    let mut vhd = opened(&storage);
    pack(&mut vhd, &storage, &[]);
    assert_eq!(entry(&storage.to_bytes().unwrap(), 15), u32::MAX);
    assert!(storage.len().unwrap() <= bytes.len() as u64 - u64::from(BLOCK));
}

#[test]
fn blocks_say_what_they_hold() {
    let storage = memory(&sample(VhdCreate::new(MIB)));
    let mut bytes = storage.to_bytes().unwrap();
    let bitmap = entry(&bytes, 7) as usize * SECTOR_BYTES;
    bytes[bitmap..bitmap + 512].fill(0);
    let vhd = opened(&memory(&bytes));
    let held = |from, limit| {
        let blocks = vhd.blocks(from, limit).unwrap();
        (blocks.list.iter().map(|block| (block.number, block.held)).collect::<Vec<_>>(), blocks.next)
    };
    use Held::{All, Nothing};
    assert_eq!(held(0, 99), (vec![(0, All), (3, All), (7, Nothing), (15, All)], None));
    assert_eq!(held(1, 2), (vec![(3, All), (7, Nothing)], Some(8)));
    assert_eq!(held(8, 1), (vec![(15, All)], None));
}
