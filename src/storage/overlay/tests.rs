//! Edits that read otherwise than on a plain vector, or cost a range's length instead of what it holds.

use super::*;
use crate::storage::MemoryStorage;
use proptest::prelude::*;

const TIB: u64 = 1 << 40;

#[test]
fn huge_ranges_cost_nothing() {
    let base = Arc::new(MemoryStorage::from_bytes(&[7; 3 * PAGE]));
    let overlay = OverlayStorage::new(base.clone()).unwrap();
    overlay.zero_range(5..64 * TIB).unwrap();
    overlay.set_len(0).unwrap();
    overlay.set_len(63 * TIB).unwrap();
    overlay.write_all_at(&[1], 40 * TIB).unwrap();
    overlay.zero_range(0..32 * TIB).unwrap();
    let edits = overlay.edits();
    assert!(edits.pages.len() <= 3 && edits.hidden.len() == 1);
    drop(edits);
    assert_eq!(overlay.next_data(0).unwrap(), Some(40 * TIB));
    assert_eq!(base.to_bytes().unwrap(), [7; 3 * PAGE]);
}

#[test]
fn edits_end_at_the_limit_with_an_error() {
    let overlay = OverlayStorage::new(Arc::new(MemoryStorage::new())).unwrap();
    overlay.write_all_at(&vec![1; MAX_EDITED_PAGES * PAGE], 0).unwrap();
    let end = (MAX_EDITED_PAGES * PAGE) as u64;
    assert_eq!(overlay.write_all_at(&[1], end).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    assert_eq!(overlay.len().unwrap(), end);
    overlay.write_all_at(&[2], 0).unwrap();
    overlay.zero_range(0..PAGE_BYTES).unwrap();
    overlay.write_all_at(&[1], end).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, u64),
    SetLen(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![0u64..60_000, (0u64..15).prop_map(|page| page * PAGE_BYTES)];
    let len = prop_oneof![0u64..20_000, (0u64..5).prop_map(|page| page * PAGE_BYTES)];
    prop_oneof![
        (at.clone(), 0usize..9000, any::<u8>()).prop_map(|(at, len, fill)| Step::Write(at, len, fill)),
        (at.clone(), len).prop_map(|(at, len)| Step::Zero(at, at + len)),
        at.prop_map(Step::SetLen),
    ]
}

proptest! {
    #[test]
    fn reads_as_a_vector_with_the_same_changes(
        base_len in 0usize..40_000,
        steps in proptest::collection::vec(step(), 1..24),
    ) {
        let mut model: Vec<u8> = (0..base_len).map(|at| (at % 251) as u8 + 1).collect();
        let base = Arc::new(MemoryStorage::from_bytes(&model));
        let before = model.clone();
        let overlay = OverlayStorage::new(base.clone()).unwrap();
        for step in steps {
            match step {
                Step::Write(at, len, fill) if len > 0 => {
                    overlay.write_all_at(&vec![fill; len], at).unwrap();
                    let at = at as usize;
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].fill(fill);
                }
                Step::Write(at, _, _) => overlay.write_all_at(&[], at).unwrap(),
                Step::Zero(start, end) => {
                    overlay.zero_range(start..end).unwrap();
                    if start < end {
                        model.resize(model.len().max(end as usize), 0);
                        model[start as usize..end as usize].fill(0);
                    }
                }
                Step::SetLen(len) => {
                    overlay.set_len(len).unwrap();
                    model.resize(len as usize, 0);
                }
            }
            prop_assert_eq!(overlay.len().unwrap(), model.len() as u64);
            let mut all = vec![0xEE; model.len()];
            overlay.read_exact_at(&mut all, 0).unwrap();
            prop_assert!(all == model, "contents differ");
            let edits = overlay.edits();
            let ranges: Vec<_> = edits.hidden.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "hidden ranges touch: {:?}", ranges);
        }
        let mut at = 0;
        while let Some(found) = overlay.next_data(at).unwrap() {
            prop_assert!(model[at as usize..found as usize].iter().all(|&byte| byte == 0));
            at = found + 1000;
        }
        prop_assert!(model.get(at as usize..).unwrap_or(&[]).iter().all(|&byte| byte == 0));
        prop_assert_eq!(base.to_bytes().unwrap(), before);
    }
}
