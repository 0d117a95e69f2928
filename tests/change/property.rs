//! Bug this finds: bytes that once lay past the end of a disk, or that a longer parent holds there, show when it grows.

use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::support::Report;
use proptest::prelude::*;
use std::sync::Arc;
use vhdkit::ops::{ResizeOptions, resize_chain};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{Format, Watch};

#[derive(Clone, Debug)]
enum Act {
    /// In halves of a block.
    Resize(u64, u64),
    Edit(Edit),
}

/// Sizes from one sector to `max`, often near blocks; edits anywhere.
fn acts(block: u64, max: u64) -> impl Strategy<Value = Vec<Act>> {
    let edit = prop_oneof![
        3 => (0..max, 1..2 * block, any::<u8>()).prop_map(|(offset, len, seed)| Edit::Write { offset, len, seed }),
        1 => (0..max, 1..2 * block).prop_map(|(offset, len)| Edit::Zero { offset, len }),
        1 => (0..max, 1..3 * block).prop_map(|(offset, len)| Edit::Discard { offset, len }),
    ];
    let act = prop_oneof![
        (0..max / block * 2, prop_oneof![Just(0u64), 0..8u64])
            .prop_map(|(halves, sectors)| Act::Resize(halves, sectors)),
        edit.prop_map(Act::Edit),
    ];
    prop::collection::vec(act, 2..12)
}

fn run(format: Format, fixed: bool, parent: Option<u64>, (block, sector): (u64, u32), acts: Vec<Act>) {
    let layer = |size, edits| LayerSpec { size, block_size: block as u32, edits };
    let whole = |size, seed| vec![Edit::Write { offset: 0, len: size, seed }];
    let leaf = layer(5 * block, whole(2 * block, 1));
    let layers: Vec<_> = parent.map(|size| layer(size, whole(size, 9))).into_iter().chain([leaf]).collect();
    let files: Vec<Arc<MemoryStorage>> = layers.iter().map(|_| Arc::new(MemoryStorage::new())).collect();
    let spec = ChainSpec { format, sector, base_fixed: fixed, layers };
    let built = chains::build(&spec, |index| Arc::clone(&files[index]) as _);
    let mut view = built.views[0].clone();
    for act in acts {
        match act {
            Act::Resize(halves, sectors) => {
                let unit = u64::from(sector);
                let size = (halves * block / 2 / unit * unit + sectors * unit).max(unit);
                let mut chain = chains::open(&built.storages, Access::Read).unwrap();
                let options = ResizeOptions::size(size).allow_data_loss(true);
                let report = resize_chain(&mut chain, &options, &Watch::none()).unwrap();
                assert_eq!((report.old_size, report.new_size), (view.len() as u64, size));
                chain.close().unwrap();
                view.resize(size as usize, 0);
            }
            Act::Edit(edit) => {
                let mut chain = chains::open(&built.storages, Access::Write).unwrap();
                chains::apply(&mut chain, &mut view, &edit);
                chain.close().unwrap();
            }
        }
        let chain = chains::open(&built.storages, Access::Read).unwrap();
        assert!(chains::read_all(&chain) == view, "wrong bytes");
    }
    let bytes = files.last().unwrap().to_bytes().unwrap();
    let report = if format == Format::Vhd { Report::vhd(&bytes) } else { Report::vhdx(&bytes) };
    report.assert_clean("after all of it");
    if let Some(size) = parent {
        let below: Vec<Arc<dyn Storage>> = built.storages[1..].to_vec();
        assert_eq!(chains::read_all(&chains::open(&below, Access::Read).unwrap()), built.views[1], "of {size} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_vhd_that_shrinks_and_grows_never_shows_old_bytes(
        fixed in any::<bool>(),
        parent in prop::option::of(prop_oneof![Just(3 * 8192u64), Just(13 * 8192 + 512), Just(5 * 8192)]),
        acts in acts(8192, 12 * 8192),
    ) {
        run(Format::Vhd, fixed, parent, (8192, 512), acts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_vhdx_that_shrinks_and_grows_never_shows_old_bytes(
        fixed in any::<bool>(),
        large in any::<bool>(),
        parent in prop::option::of(prop_oneof![Just(3u64 << 20), Just((9 << 20) + 4096), Just(5 << 20)]),
        acts in acts(1 << 20, 8 << 20),
    ) {
        run(Format::Vhdx, fixed, parent, (1 << 20, if large { 4096 } else { 512 }), acts);
    }
}
