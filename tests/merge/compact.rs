//! Bug this finds: a compaction that changes a byte of any layer, breaks a rule of the format, leaves space it could have
//! given back, or loses a child; in any mix of blocks whole, partial, zero, unmapped and leaked.

use crate::chains::{self, Built, ChainSpec};
use crate::property::{vary_zero_states, vhd, vhdx};
use crate::support::{Bytes, Report, SpecDisk};
use proptest::prelude::*;
use std::sync::Arc;
use vhdkit::chain::Chain;
use vhdkit::ops::{CompactOptions, CompactReport, compact_chain};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{DiskKind, Format, Watch};

fn bytes_of(storage: &Arc<dyn Storage>) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// VHDX only: every block in state UNMAPPED (3) keeps space, as other programs leave it: new space at the end.
fn keep_space_of_unmapped(storage: &Arc<dyn Storage>, block: u64) {
    let mut table = [0; 4096];
    storage.read_exact_at(&mut table, 3 << 20).unwrap();
    for entry in table.chunks_exact_mut(8) {
        if entry == 3u64.to_le_bytes() {
            let at = storage.len().unwrap();
            storage.write_all_at(&vec![0xDD; block as usize], at).unwrap();
            entry.copy_from_slice(&(at | 3).to_le_bytes());
        }
    }
    storage.write_all_at(&table, 3 << 20).unwrap();
}

fn compact(storages: &[Arc<dyn Storage>], options: &CompactOptions) -> CompactReport {
    let mut chain = chains::open(storages, Access::Read).expect("open");
    let report = compact_chain(&mut chain, options, &Watch::none()).expect("compact");
    chain.close().expect("close");
    report
}

/// Every layer shows what it showed, says another reader, and the file at `depth` (leaf = 0) keeps the rules.
fn compare(built: &Built, format: Format, depth: usize) -> Result<(), TestCaseError> {
    let files: Vec<Vec<u8>> = built.storages.iter().map(bytes_of).collect();
    for (at, view) in built.views.iter().enumerate() {
        let chain = files[at..].iter().map(|file| Box::new(file) as Box<dyn Bytes>).collect();
        let disk = SpecDisk::from_bytes(chain).expect("the other reader opens it");
        let shown = disk.read(0, view.len()).expect("the other reader reads it");
        prop_assert!(&shown == view, "layer {at} differs");
        let chain: Chain = chains::open(&built.storages[at..], Access::Read).expect("open");
        prop_assert!(&chains::read_all(&chain) == view, "layer {at} differs here");
    }
    let report = match format {
        Format::Vhd => Report::vhd(&files[depth]),
        _ => Report::vhdx(&files[depth]),
    };
    report.assert_clean("the compacted file");
    Ok(())
}

fn compact_and_compare(spec: &ChainSpec, choice: usize, jobs: usize) -> Result<(), TestCaseError> {
    let built = chains::build(spec, |_| Arc::new(MemoryStorage::new()));
    let depth = choice % built.storages.len();
    let target = &built.storages[depth];
    let block = u64::from(spec.layers[spec.layers.len() - 1 - depth].block_size);
    if spec.format == Format::Vhdx {
        vary_zero_states(target);
        keep_space_of_unmapped(target, block);
    }
    let chain = &built.storages[depth..];
    let layer = chains::open(chain, Access::Read).expect("open");
    let (id, kind) = (layer.leaf().image().id(), layer.leaf().image().kind());
    drop(layer);
    if kind == DiskKind::Fixed {
        return Ok(());
    }
    let before = bytes_of(target);
    let options = CompactOptions::new().jobs(jobs);
    let dry = compact(chain, &options.clone().dry_run(true));
    prop_assert!(bytes_of(target) == before, "a dry run changes nothing");
    let done = compact(chain, &options);
    prop_assert_eq!((dry.before, dry.freed, dry.after.blocks), (done.before, done.freed, done.after.blocks));
    prop_assert!(done.after.file_size <= dry.after.file_size && dry.after.file_size <= done.before.file_size);
    prop_assert_eq!(done.after.file_size, target.len().unwrap());
    compare(&built, spec.format, depth)?;
    let layer = chains::open(chain, Access::Read).expect("open");
    prop_assert_eq!(layer.leaf().image().id(), id, "children are bound to it");
    // All blocks lie together: what is left over is less than one, and what the format aligns.
    let used = done.after.blocks * (block + 4096) + (8 << 20) * u64::from(spec.format == Format::Vhdx);
    prop_assert!(done.after.file_size <= used + block + (32 << 10), "{:?}", done);
    let again = compact(chain, &options);
    prop_assert_eq!((again.moved, again.after), (0, done.after));
    prop_assert_eq!(again.freed.zero + again.freed.unmapped, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vhd_compactions_change_nothing(spec in vhd(), choice in any::<usize>(), jobs in 1..3usize) {
        compact_and_compare(&spec, choice, jobs)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vhdx_compactions_change_nothing(spec in vhdx(), choice in any::<usize>(), jobs in 1..3usize) {
        compact_and_compare(&spec, choice, jobs)?;
    }
}
