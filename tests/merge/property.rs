//! Bug this finds: any byte that a merge moves to the wrong place, forgets, or takes from the wrong layer, in any mix of
//! formats, block sizes, sizes, sector sizes and states.

use crate::chains::{self, Built, ChainSpec, Edit, LayerSpec};
use proptest::prelude::*;
use std::sync::Arc;
use vhdkit::ops::{MergeOptions, merge_chain};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{Format, Watch};

fn edits(size: u64, grain: u64) -> impl Strategy<Value = Vec<Edit>> {
    let at = 0..size / grain;
    let edit = prop_oneof![
        4 => (at.clone(), 1..12u64, any::<u8>(), 0..3u64, 0..3u64).prop_map(move |(at, len, seed, skew, cut)| {
            // Mostly whole sectors, sometimes ranges that begin or end inside one.
            let (skew, cut) = (if skew == 2 { 123 } else { 0 }, if cut == 2 { 77 } else { 0 });
            Edit::Write { offset: at * grain + skew, len: len * grain - skew - cut, seed }
        }),
        1 => (at.clone(), 1..64u64).prop_map(move |(at, len)| Edit::Zero { offset: at * grain, len: len * grain }),
        1 => (at, 1..200u64).prop_map(move |(at, len)| Edit::Discard { offset: at * grain, len: len * grain }),
        1 => (0..size, any::<u8>()).prop_map(move |(at, seed)| Edit::Write { offset: at / 2, len: size / 2, seed }),
    ];
    proptest::collection::vec(edit, 0..6)
}

fn layer(sizes: &'static [u64], blocks: &'static [u32], grain: u64) -> impl Strategy<Value = LayerSpec> {
    (proptest::sample::select(sizes), proptest::sample::select(blocks)).prop_flat_map(move |(size, block_size)| {
        edits(size, grain).prop_map(move |edits| LayerSpec { size, block_size, edits })
    })
}

pub(crate) fn vhd() -> impl Strategy<Value = ChainSpec> {
    const SIZES: &[u64] = &[64 << 10, 100 << 10, 128 << 10, (96 << 10) + 512];
    let layers = proptest::collection::vec(layer(SIZES, &[4096, 8192, 32 << 10], 512), 2..=6);
    (layers, any::<bool>()).prop_map(|(layers, base_fixed)| ChainSpec {
        format: Format::Vhd,
        sector: 512,
        base_fixed,
        layers,
    })
}

pub(crate) fn vhdx() -> impl Strategy<Value = ChainSpec> {
    const SIZES: &[u64] = &[2 << 20, 3 << 20, (2 << 20) + (256 << 10)];
    const BLOCKS: &[u32] = &[1 << 20, 2 << 20];
    (any::<bool>(), any::<bool>()).prop_flat_map(|(large_sectors, base_fixed)| {
        let sector = if large_sectors { 4096 } else { 512 };
        proptest::collection::vec(layer(SIZES, BLOCKS, 4096), 2..=6).prop_map(move |layers| ChainSpec {
            format: Format::Vhdx,
            sector,
            base_fixed,
            layers,
        })
    })
}

/// VHDX only: turns some ZERO entries (2) into UNMAPPED (3) or UNDEFINED (1), as other programs write them. All read as
/// zeros. The table of our own images is at 3 MiB.
pub(crate) fn vary_zero_states(storage: &Arc<dyn Storage>) {
    let mut table = [0; 4096];
    storage.read_exact_at(&mut table, 3 << 20).unwrap();
    for (index, entry) in table.chunks_exact_mut(8).enumerate() {
        if entry == 2u64.to_le_bytes() {
            entry[0] = [1, 2, 3][index % 3];
        }
    }
    storage.write_all_at(&table, 3 << 20).unwrap();
}

fn merge_and_compare(spec: &ChainSpec, choice: (usize, usize), relink: bool) -> Result<(), TestCaseError> {
    let Built { storages, views } = chains::build(spec, |_| Arc::new(MemoryStorage::from_bytes(&[])));
    if spec.format == Format::Vhdx {
        storages.iter().for_each(vary_zero_states);
    }
    for depth in 0..storages.len() {
        let chain = chains::open(&storages[depth..], Access::Read).unwrap();
        prop_assert!(chains::read_all(&chain) == views[depth], "layer {depth} before the merge");
    }
    let count = storages.len();
    let target = 2 + choice.0 % (count - 1);
    let source = 1 + choice.1 % (target - 1);
    let relink = relink && source > 1;
    let mut chain = chains::open(&storages, Access::Read).unwrap();
    let options = MergeOptions::between(source, target).relink(relink).jobs(2);
    merge_chain(&mut chain, &options, &Watch::none()).unwrap();
    chain.close().unwrap();

    // A relinked file stands on the target from now on, the files above it with it.
    let over_source = if relink { source - 1..source } else { 0..source };
    for depth in over_source {
        let chain = chains::open(&storages[depth..], Access::Read).unwrap();
        prop_assert!(chains::read_all(&chain) == views[depth], "layer {depth} after ({source}, {target})");
    }
    let chain = chains::open(&storages[target - 1..], Access::Read).unwrap();
    prop_assert!(chains::read_all(&chain) == views[source - 1], "the target after ({source}, {target})");
    if relink {
        let mut shorter = storages[..source - 1].to_vec();
        shorter.extend_from_slice(&storages[target - 1..]);
        for depth in 0..source - 1 {
            let chain = chains::open(&shorter[depth..], Access::Read).unwrap();
            prop_assert!(chains::read_all(&chain) == views[depth], "layer {depth} over the target, relinked");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vhd_chains(spec in vhd(), choice in any::<(usize, usize)>(), relink in any::<bool>()) {
        merge_and_compare(&spec, choice, relink)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vhdx_chains(spec in vhdx(), choice in any::<(usize, usize)>(), relink in any::<bool>()) {
        merge_and_compare(&spec, choice, relink)?;
    }
}
