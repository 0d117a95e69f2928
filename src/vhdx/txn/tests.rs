//! The ring as a writer fills it: any length of entries, and at every moment a reader finds all that was committed.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::{Session, Transaction};
use crate::error::ErrorKind;
use crate::finding::Findings;
use crate::guid::Guid;
use crate::storage::pages::Pages;
use crate::storage::{MemoryStorage, OverlayStorage, Storage};
use crate::units::MIB;
use crate::vhdx::log::replay::find_active;
use crate::vhdx::log::{LogArea, PAGE};
use proptest::prelude::*;
use std::sync::Arc;

fn area() -> LogArea {
    LogArea { offset: MIB, length: MIB, guid: Guid::from_u128(5) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn replay_brings_back_every_commit(
        commits in prop::collection::vec((0u64..300, 1u64..80, any::<u8>(), 0u64..4, any::<bool>()), 1..40),
    ) {
        let file = Arc::new(MemoryStorage::new());
        file.set_len(8 * MIB).unwrap();
        let store = Pages::new(Arc::clone(&file) as _, 64);
        let mut session = Session::start(&*file, area(), 8 * MIB).unwrap();
        for (first, count, byte, zeros, flush) in commits {
            // What the pages in place held before the last commit whose pages may not be there yet.
            let stale = file.as_ref().clone();
            let mut transaction = Transaction::new();
            for index in 0..zeros {
                transaction.zero((5 + index % 3) * MIB..(5 + index % 3) * MIB + 8 * PAGE);
            }
            for page in first..first + count {
                transaction.page_mut(&store, 4 * MIB + page * PAGE).unwrap().fill(byte);
            }
            let fits = transaction.entry_len_with(&[], 0) <= session.max_entry();
            let committed = session.commit(&store, &transaction);
            prop_assert_eq!(committed.is_ok(), fits);
            if !fits {
                prop_assert_eq!(committed.unwrap_err().kind(), ErrorKind::InvalidInput);
            }
            if flush {
                session.flush(&*file).unwrap();
            }
            // The log of now over the pages of before this commit, as after a crash that kept the log alone.
            let mut log = vec![0; MIB as usize];
            file.read_exact_at(&mut log, MIB).unwrap();
            stale.write_all_at(&log, MIB).unwrap();
            let view = OverlayStorage::new(Arc::new(stale)).unwrap();
            if fits || !flush {
                find_active(&view, &area(), &mut Findings::new()).unwrap().apply(&view).unwrap();
            }
            let (mut want, mut got) = (vec![0; 4 * MIB as usize], vec![0; 4 * MIB as usize]);
            file.read_exact_at(&mut want, 4 * MIB).unwrap();
            view.read_exact_at(&mut got, 4 * MIB).unwrap();
            prop_assert!(want == got, "a commit is not in the log");
        }
    }
}

#[test]
fn edits_after_zeroing_start_from_zeros() {
    let file = Arc::new(MemoryStorage::from_bytes(&vec![7; 4 * MIB as usize]));
    let store = Pages::new(Arc::clone(&file) as _, 64);
    let mut session = Session::start(&*file, area(), 4 * MIB).unwrap();
    let mut transaction = Transaction::new();
    transaction.write(&store, 3 * MIB + 4090, &[9; 12]).unwrap();
    transaction.zero(3 * MIB..3 * MIB + 4096);
    transaction.write(&store, 3 * MIB + 8, &[1]).unwrap();
    let known = 3 * MIB..3 * MIB + 1;
    assert_eq!(transaction.entry_len_with(std::slice::from_ref(&known), 0), transaction.entry_len_with(&[], 0));
    session.commit(&store, &transaction).unwrap();
    let mut bytes = [0; 4106];
    file.read_exact_at(&mut bytes, 3 * MIB).unwrap();
    assert_eq!((bytes[7], bytes[8], bytes[4095], bytes[4096], bytes[4102]), (0, 1, 0, 9, 7));
    assert_eq!(store.read(3 * MIB).unwrap()[..], bytes[..4096], "the cache knows");
}
