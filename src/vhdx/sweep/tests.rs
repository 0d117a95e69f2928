//! The quick look against the walk entry by entry: whatever it says of a table, the walk says too.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]
#![allow(clippy::cast_possible_truncation)]

use super::super::create::VhdxCreate;
use super::super::image::tests::child_of_nobody;
use super::super::survey::Flaw;
use super::*;
use crate::link::DiskKind;
use crate::storage::{Access, MemoryStorage, Storage};
use crate::units::TIB;
use proptest::prelude::*;
use std::sync::Arc;

const BAT: u64 = 3 * MIB;

fn image(size: u64, differencing: bool, file_len: u64, entries: &[(u64, u64)]) -> Vhdx {
    let storage = Arc::new(MemoryStorage::new());
    let mut options = VhdxCreate::new(size).block_size(MIB as u32);
    if differencing {
        options = options.kind(DiskKind::Differencing).parent(child_of_nobody());
    }
    drop(Vhdx::create(storage.clone(), &options).unwrap());
    for (index, raw) in entries {
        storage.write_all_at(&raw.to_le_bytes(), BAT + index * 8).unwrap();
    }
    storage.set_len(file_len).unwrap();
    Vhdx::open(storage, Access::Read, &mut Findings::new()).unwrap()
}

type Told = (u64, u64, Option<u64>, (u64, u64), Option<u64>);

fn told(image: &Vhdx, survey: &Survey, file_len: u64) -> Told {
    let unstated = survey.first_unstated.filter(|_| survey.stated < image.geometry.blocks());
    (survey.allocated, survey.stated, unstated, survey.space.unowned(), survey.sound_len(image, file_len))
}

/// What the quick look tells, if anything, and what the walk tells and finds.
fn both(image: &Vhdx) -> (Option<Told>, Told, Vec<(u64, Flaw)>) {
    let file_len = image.file_len().unwrap();
    let count = u64::from(image.regions.bat().length) / 8;
    let quick = image.survey_if_sound(count, file_len).unwrap().map(|survey| told(image, &survey, file_len));
    let mut flaws = Vec::new();
    let walked = image.walk((count, 0), file_len, &mut |index, _, flaw| {
        flaws.push((index, flaw));
        Ok(())
    });
    (quick, told(image, &walked.unwrap(), file_len), flaws)
}

proptest! {
    #[test]
    fn a_table_called_sound_has_no_flaw_and_counts_the_same(
        differencing in any::<bool>(),
        blocks in 1u64..60,
        // Mostly blocks one behind the other, as writers place them.
        entries in prop::collection::vec((0u64..62, prop::sample::select(vec![0u64, 1, 2, 3, 5, 6, 6, 6, 6, 7]), 0u64..70), 0..40),
        in_order in any::<bool>(),
        bitmap in prop::option::of(4u64..70),
        reserved in prop::option::weighted(0.1, 0u64..62),
        len in 40u64..80,
    ) {
        let mut table: Vec<(u64, u64)> = entries
            .iter()
            .map(|&(index, state, place)| {
                let place = if in_order { 5 + index } else { place };
                (index, state | if state >= 5 || place % 7 == 0 { place << 20 } else { 0 })
            })
            .collect();
        table.extend(bitmap.map(|place| ((1 << 23) * 512 / MIB, place << 20 | 6)).filter(|_| differencing));
        table.extend(reserved.map(|index| (index, 1 << 12)));
        let image = image(blocks * MIB, differencing, len * MIB, &table);
        let (quick, walked, flaws) = both(&image);
        if let Some(quick) = quick {
            prop_assert_eq!(quick, walked);
            prop_assert!(flaws.is_empty(), "{:?}", flaws);
        }
    }

    #[test]
    fn tables_as_writers_make_them_are_called_sound(
        blocks in 1u64..60, from in 0u64..60, partial in any::<bool>(), zero in prop::option::of(0u64..60),
    ) {
        let ratio = (1 << 23) * 512 / MIB;
        let mut table: Vec<(u64, u64)> = (from..blocks).map(|block| (block, (5 + block) << 20 | 6)).collect();
        table.extend(zero.filter(|&block| block < blocks).map(|block| (block, 2)));
        if partial {
            table.extend([(0, 70 << 20 | 7), (ratio, 71 << 20 | 6)]);
        }
        let image = image(blocks * MIB, partial, 72 * MIB, &table);
        let (quick, walked, flaws) = both(&image);
        prop_assert!(flaws.is_empty(), "{:?}", flaws);
        prop_assert_eq!(quick, Some(walked));
    }
}

/// A table long enough for several threads.
#[test]
fn threads_together_see_what_one_walk_sees() {
    let blocks = TIB / MIB;
    let ratio = (1 << 23) * 512 / MIB;
    let index = |block: u64| block + block / ratio;
    let storage = Arc::new(MemoryStorage::new());
    drop(Vhdx::create(storage.clone(), &VhdxCreate::new(TIB).block_size(MIB as u32)).unwrap());
    let mut table = vec![0; (index(blocks - 1) as usize + 1) * 8];
    // The last block first in the file, and a hole of the disk.
    for block in (0..blocks).filter(|block| !(300_000..400_000).contains(block)) {
        let raw = (20 + blocks - block) << 20 | 6;
        table[index(block) as usize * 8..][..8].copy_from_slice(&raw.to_le_bytes());
    }
    storage.write_all_at(&table, BAT).unwrap();
    storage.set_len(TIB + 64 * MIB).unwrap();
    let open = || Vhdx::open(storage.clone(), Access::Read, &mut Findings::new()).unwrap();
    let (quick, walked, flaws) = both(&open());
    assert_eq!((quick, flaws), (Some(walked), Vec::new()));
    assert_eq!((walked.0, walked.1, walked.2), (blocks - 100_000, blocks - 100_000, Some(300_000)));
    assert_eq!(open().allocated_blocks().unwrap(), blocks - 100_000);

    // A block over one that another thread sees.
    let raw = (20 + blocks - 7) << 20 | 6;
    storage.write_all_at(&u64::to_le_bytes(raw), BAT + index(blocks - 9) * 8).unwrap();
    let (quick, _, flaws) = both(&open());
    assert_eq!((quick, flaws), (None, vec![(index(blocks - 9), Flaw::Shared)]));
}

#[test]
fn a_table_that_the_file_ends_inside_is_no_table_of_zeros() {
    let image = image(TIB, false, 5 * MIB, &[]);
    let error = image.count_allocated().unwrap_err();
    assert_eq!(error.problem().map(|problem| problem.structure), Some(Structure::VhdxBat));
}
