//! Bugs this finds: a map that names the wrong file, place or reason for any byte; two points of a chain that differ in a
//! sector `changes` does not list; a comparison that calls different bytes equal (because of a wrong "both maps prove
//! it"), or equal bytes different, or puts a difference at the wrong sector.

use crate::chains::{self, Built, ChainSpec};
use crate::property::{vary_zero_states, vhd, vhdx};
use proptest::prelude::*;
use std::sync::Arc;
use vhdkit::ops::{CompareOptions, ExtentState, StripOptions, changes, compare, map, strips};
use vhdkit::storage::{Access, MemoryStorage};
use vhdkit::{ErrorKind, Format, Watch};

const SECTOR: usize = 512;

fn built(spec: &ChainSpec) -> Built {
    let built = chains::build(spec, |_| Arc::new(MemoryStorage::from_bytes(&[])));
    if spec.format == Format::Vhdx {
        built.storages.iter().for_each(vary_zero_states);
    }
    built
}

/// Which sectors of two disks differ, zeros standing in for what the shorter does not have.
fn model(one: &[u8], other: &[u8]) -> Vec<bool> {
    let len = one.len().max(other.len());
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(len, 0);
        bytes
    };
    let (one, other) = (padded(one), padded(other));
    one.chunks(SECTOR).zip(other.chunks(SECTOR)).map(|(one, other)| one != other).collect()
}

/// `ranges` as one answer per sector; they must ascend and have room between them.
fn as_sectors(ranges: impl Iterator<Item = (u64, u64)>, sectors: usize) -> Result<Vec<bool>, TestCaseError> {
    let mut marked = vec![false; sectors];
    let mut end = None;
    for (offset, length) in ranges {
        prop_assert!(end.is_none_or(|end| offset > end), "ranges ascend and do not touch");
        prop_assert!(length > 0 && (offset | length).is_multiple_of(SECTOR as u64));
        marked[offset as usize / SECTOR..(offset + length) as usize / SECTOR].fill(true);
        end = Some(offset + length);
    }
    Ok(marked)
}

fn the_map_explains_every_byte(built: &Built, depth: usize) -> Result<(), TestCaseError> {
    let view = &built.views[depth];
    let chain = chains::open(&built.storages[depth..], Access::Read).unwrap();
    let mut at = 0;
    for extent in map(&chain, 0..u64::MAX) {
        let extent = extent.unwrap();
        prop_assert_eq!(extent.offset, at, "no gap");
        prop_assert!(extent.length > 0);
        at += extent.length;
        let shown = &view[extent.offset as usize..at as usize];
        let layer = extent.depth.map(|depth| &chain.layers()[depth - 1]);
        match (extent.state, extent.file_offset, layer) {
            (ExtentState::Data, Some(from), Some(layer)) => {
                let mut held = vec![0; shown.len()];
                layer.image().map().storage().read_exact_at(&mut held, from.get()).unwrap();
                prop_assert!(held == shown, "{extent:?}");
            }
            (ExtentState::Zero, None, Some(layer)) => {
                prop_assert!(extent.offset + extent.length <= layer.image().virtual_size(), "{extent:?}");
            }
            (ExtentState::PastEnd, None, Some(layer)) => {
                prop_assert!(extent.offset >= layer.image().virtual_size(), "{extent:?}");
            }
            (ExtentState::Unallocated, None, None) => {}
            other => prop_assert!(false, "{other:?}"),
        }
        prop_assert!(extent.state == ExtentState::Data || shown.iter().all(|&byte| byte == 0), "{extent:?}");
    }
    prop_assert_eq!(at as usize, view.len());
    Ok(())
}

/// The sums of a picture against the map, sector by sector.
fn the_picture_adds_up(built: &Built, depth: usize) -> Result<(), TestCaseError> {
    let chain = chains::open(&built.storages[depth..], Access::Read).unwrap();
    let (count, size) = (chain.layers().len(), chain.virtual_size());
    let options = (2..=count).fold(StripOptions::new(7), |options, to| options.merge(1, to));
    let strips = strips(&chain, &options, &Watch::none()).unwrap();
    prop_assert_eq!((strips.files.len(), strips.columns), (count, 7));
    let column = |sector: u64| (0..7).find(|&column| strips.range(column).contains(&(sector * 512))).unwrap();
    // Parts end inside sectors; what a sector has in the next part is counted there.
    let split = |sector: u64| strips.range(column(sector)).end.min(sector * 512 + 512) - sector * 512;
    let mut shown = vec![[0u64; 7]; count];
    for extent in map(&chain, 0..size) {
        let extent = extent.unwrap();
        if let (ExtentState::Data, Some(depth)) = (extent.state, extent.depth) {
            for sector in extent.offset / 512..(extent.offset + extent.length) / 512 {
                let here = split(sector);
                shown[depth - 1][column(sector)] += here;
                if here < 512 {
                    shown[depth - 1][column(sector) + 1] += 512 - here;
                }
            }
        }
    }
    for (file, shown) in strips.files.iter().zip(&shown) {
        for (cell, shown) in file.cells.iter().zip(shown) {
            prop_assert_eq!(cell.shown, *shown, "depth {}", file.depth);
        }
        prop_assert_eq!(file.held, file.cells.iter().map(|cell| cell.shown + cell.hidden).sum::<u64>());
        prop_assert!(file.depth > 1 || file.cells.iter().all(|cell| cell.hidden == 0), "nothing covers the leaf");
    }
    if let Some(merge) = &strips.merge {
        // Into the base: what the files above it show of their data.
        prop_assert_eq!(merge.moved, shown[..count - 1].iter().flatten().sum::<u64>());
        prop_assert_eq!(merge.moved, merge.cells.iter().sum::<u64>());
    }
    Ok(())
}

fn two_points(spec: &ChainSpec, points: (usize, usize)) -> Result<(), TestCaseError> {
    let built = built(spec);
    let (one, other) = (points.0 % spec.layers.len(), points.1 % spec.layers.len());
    the_map_explains_every_byte(&built, one)?;
    the_picture_adds_up(&built, one)?;
    let views = [&built.views[one], &built.views[other]];
    let expected = model(views[0], views[1]);
    let chains = [one, other].map(|point| chains::open(&built.storages[point..], Access::Read).unwrap());

    let listed = changes(&chains[0], &chains[1]).unwrap().map(|range| range.map(|range| (range.offset, range.length)));
    let listed = listed.collect::<vhdkit::Result<Vec<_>>>().unwrap();
    let changed = as_sectors(listed.iter().copied(), expected.len())?;
    let missed = expected.iter().zip(&changed).position(|(differs, listed)| *differs && !listed);
    prop_assert_eq!(missed, None, "a sector that differs and is not among the changes");
    prop_assert!(one != other || listed.is_empty());

    // Once as two views of the same files, once as a copy that shares none.
    let apart = chains::build(spec, |_| Arc::new(MemoryStorage::from_bytes(&[])));
    let apart = chains::open(&apart.storages[other..], Access::Read).unwrap();
    for (right, shared) in [(&chains[1], true), (&apart, false)] {
        let report = compare(&chains[0], right, &CompareOptions::new().jobs(2), &Watch::none()).unwrap();
        let found = as_sectors(report.ranges.iter().map(|range| (range.offset, range.length)), expected.len())?;
        prop_assert!(found == expected, "shared files: {shared}");
        prop_assert_eq!(report.differing, expected.iter().filter(|differs| **differs).count() as u64 * SECTOR as u64);
        let same_size = views[0].len() == views[1].len();
        prop_assert_eq!(report.equal, same_size && report.ranges.is_empty());
        prop_assert_eq!(report.examined, views[0].len().max(views[1].len()) as u64);
        prop_assert!(!(shared && one == other) || report.known_equal == report.examined, "one file is itself");

        let first = CompareOptions::new().all(false).pad_with_zeros(true);
        let report = compare(right, &chains[0], &first, &Watch::none()).unwrap();
        prop_assert_eq!(report.equal, !expected.contains(&true), "padded");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn points_of_vhd_chains(spec in vhd(), points in any::<(usize, usize)>()) {
        two_points(&spec, points)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn points_of_vhdx_chains(spec in vhdx(), points in any::<(usize, usize)>()) {
        two_points(&spec, points)?;
    }
}

#[test]
fn chains_that_share_no_file_have_no_changes_to_list() {
    let layers = vec![chains::LayerSpec { size: 64 << 10, block_size: 4096, edits: Vec::new() }];
    let spec = ChainSpec { format: Format::Vhd, sector: 512, base_fixed: false, layers };
    let [one, other] = [built(&spec), built(&spec)].map(|built| chains::open(&built.storages, Access::Read).unwrap());
    let error = changes(&one, &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Chain);
    assert!(error.hint().is_some_and(|hint| hint.contains("vhdkit compare")));
}
