//! Reading chains. Bugs these find: a byte from the wrong layer or place, in chains short and long, by one reader or
//! several at once, while cached pages of map come and go, after writes; a failure that is not told, or told to a reader
//! that did not need what failed.

#[path = "../support/chains.rs"]
mod chains;

use chains::{Built, ChainSpec, Edit, LayerSpec};
use proptest::prelude::*;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use vhdkit::chain::Chain;
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{ErrorKind, Format};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn edit(size: u64) -> impl Strategy<Value = Edit> {
    let at = 0..size / 512;
    prop_oneof![
        6 => (at.clone(), prop_oneof![1u64..9, 1u64..300], any::<u8>())
            .prop_map(|(at, len, seed)| Edit::Write { offset: at * 512, len: len * 512, seed }),
        1 => (at.clone(), 1u64..300).prop_map(|(at, len)| Edit::Zero { offset: at * 512, len: len * 512 }),
        1 => (at, 1u64..5000).prop_map(|(at, len)| Edit::Discard { offset: at * 512, len: len * 512 }),
    ]
}

/// Chains of 1 to 14 layers: more than are asked one by one, and fewer.
fn spec() -> impl Strategy<Value = ChainSpec> {
    any::<bool>().prop_flat_map(|vhd| {
        let (format, blocks, sizes) = if vhd {
            (Format::Vhd, vec![4 * KIB as u32, 64 * KIB as u32], vec![3 * MIB, 5 * MIB + 512])
        } else {
            (Format::Vhdx, vec![MIB as u32, 2 * MIB as u32], vec![3 * MIB, 5 * MIB])
        };
        let layer = (prop::sample::select(sizes), prop::sample::select(blocks)).prop_flat_map(|(size, block_size)| {
            prop::collection::vec(edit(size), 0..5).prop_map(move |edits| LayerSpec { size, block_size, edits })
        });
        (prop::collection::vec(layer, 1..=14), any::<bool>()).prop_map(move |(layers, base_fixed)| ChainSpec {
            format,
            sector: 512,
            base_fixed,
            layers,
        })
    })
}

fn build(spec: &ChainSpec) -> Built {
    chains::build(spec, |_| Arc::new(MemoryStorage::new()))
}

/// Where a read of `len` bytes starts, somewhere in `view`.
fn place(view: &[u8], (at, len): (u64, usize)) -> Range<usize> {
    let at = (at % view.len() as u64) as usize;
    at..(at + len).min(view.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn readers_at_once_see_what_the_leaf_shows(
        spec in spec(),
        reads in prop::collection::vec((any::<u64>(), prop_oneof![1usize..5000, 100_000usize..3_000_000]), 24),
    ) {
        let built = build(&spec);
        let view = built.views.first().unwrap();
        let chain = chains::open(&built.storages, Access::Read).unwrap();
        thread::scope(|scope| {
            for reader in 0..3 {
                let (chain, reads) = (&chain, &reads);
                scope.spawn(move || {
                    for read in reads.iter().skip(reader).step_by(3) {
                        let range = place(view, *read);
                        let mut got = vec![0xEE; range.len()];
                        chain.read_at(&mut got, range.start as u64).unwrap();
                        assert!(got == view[range.clone()], "{range:?}");
                    }
                });
            }
        });
    }

    #[test]
    fn pieces_cover_the_range_and_name_the_layer_that_was_written(spec in spec(), at in any::<u64>(), len in 1usize..4_000_000) {
        let built = build(&spec);
        let view = built.views.first().unwrap();
        let range = place(view, (at, len));
        let chain = chains::open(&built.storages, Access::Read).unwrap();
        let mut reached = range.start as u64;
        for piece in chain.pieces(range.start as u64..range.end as u64) {
            let piece = piece.unwrap();
            prop_assert!(piece.offset == reached && piece.len > 0);
            reached = piece.end();
            let expected = &view[piece.offset as usize..reached as usize];
            let mut got = vec![0; piece.len as usize];
            if let vhdkit::chain::Owner::Layer { index, at } = piece.owner {
                built.storages[index].read_exact_at(&mut got, at.get()).unwrap();
            }
            prop_assert!(got == expected, "{piece:?}");
        }
        prop_assert_eq!(reached, range.end as u64);
    }

    #[test]
    fn what_was_written_shows_at_once(
        spec in spec(),
        steps in prop::collection::vec((any::<u64>(), 1usize..200_000, any::<u8>(), any::<bool>()), 1..12),
    ) {
        let built = build(&spec);
        let mut view = built.views.first().unwrap().clone();
        let mut chain = chains::open(&built.storages, Access::Write).unwrap();
        for (at, len, seed, zero) in steps {
            let range = place(&view, (at, len));
            let mut before = vec![0; range.len()];
            chain.read_at(&mut before, range.start as u64).unwrap();
            prop_assert!(before == view[range.clone()]);
            let (offset, len) = (range.start as u64, range.len() as u64);
            let edit = if zero { Edit::Zero { offset, len } } else { Edit::Write { offset, len, seed } };
            chains::apply(&mut chain, &mut view, &edit);
            let mut after = vec![0; range.len()];
            chain.read_at(&mut after, range.start as u64).unwrap();
            prop_assert!(after == view[range]);
        }
        prop_assert!(chains::read_all(&chain) == view);
    }
}

/// Many more blocks than bitmaps are kept of, so that readers at once push each other's out.
#[test]
fn readers_that_evict_each_others_bitmaps_see_what_the_leaf_shows() {
    let size = 24 * MIB;
    let scattered = |seed: u8, step: u64| {
        let edits = (0..size / step).map(move |at| Edit::Write { offset: at * step, len: 512 * (1 + at % 3), seed });
        LayerSpec { size, block_size: 4 * KIB as u32, edits: edits.collect() }
    };
    let layers = vec![scattered(1, 20 * KIB), scattered(2, 36 * KIB)];
    let built = build(&ChainSpec { format: Format::Vhd, sector: 512, base_fixed: false, layers });
    let view = &built.views[0];
    let chain = &chains::open(&built.storages, Access::Read).unwrap();
    thread::scope(|scope| {
        for reader in 0..4u64 {
            scope.spawn(move || {
                for step in 0..4000 {
                    let at = (step * 4 + reader).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                    let range = place(view, (at, 3000));
                    let mut got = vec![0; range.len()];
                    chain.read_at(&mut got, range.start as u64).unwrap();
                    assert!(got == view[range.clone()], "{range:?}");
                }
            });
        }
    });
}

/// Fails to read some bytes.
#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Storage>,
    bytes: Range<u64>,
}

impl Storage for Broken {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset < self.bytes.end && self.bytes.start < offset + buf.len() as u64 {
            return Err(io::Error::other("a bad sector"));
        }
        self.inner.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A chain whose base cannot be read at the sectors of the disk from 1 MiB on for 64 KiB; the layer above holds every
/// other 4 KiB of them.
fn with_a_bad_base(format: Format, layers: usize) -> (Chain, Vec<u8>, Range<u64>) {
    let bad = MIB..MIB + 64 * KIB;
    let block_size = if format == Format::Vhd { 64 * KIB } else { MIB } as u32;
    let layer = |edits| LayerSpec { size: 3 * MIB, block_size, edits };
    let pages = (bad.start..bad.end).step_by(8 * KIB as usize);
    let edits = pages.map(|offset| Edit::Write { offset, len: 4 * KIB, seed: 7 }).collect();
    let mut specs = vec![layer(vec![Edit::Write { offset: 0, len: 3 * MIB, seed: 3 }]), layer(edits)];
    specs.resize_with(layers, || layer(Vec::new()));
    let mut built = build(&ChainSpec { format, sector: 512, base_fixed: false, layers: specs });
    let base = chains::open(&built.storages[layers - 1..], Access::Read).unwrap();
    let piece = base.pieces(bad.clone()).next().unwrap().unwrap();
    let vhdkit::chain::Owner::Layer { at, .. } = piece.owner else { panic!("the base holds everything") };
    let inner = built.storages.pop().unwrap();
    built.storages.push(Arc::new(Broken { inner, bytes: at.get()..at.get() + 64 * KIB }));
    let view = built.views.swap_remove(0);
    (chains::open(&built.storages, Access::Read).unwrap(), view, bad)
}

#[test]
fn a_failure_is_told_to_who_needs_what_failed_and_to_nobody_else() {
    for (format, layers) in [(Format::Vhd, 2), (Format::Vhdx, 2), (Format::Vhd, 12), (Format::Vhdx, 12)] {
        let (chain, view, bad) = with_a_bad_base(format, layers);
        let read = |start: u64, end: u64| {
            let mut got = vec![0; (end - start) as usize];
            chain.read_at(&mut got, start).map(|()| got)
        };
        for at in (bad.start..bad.end).step_by(4 * KIB as usize) {
            let read = read(at, at + 4 * KIB);
            if (at - bad.start).is_multiple_of(8 * KIB) {
                assert!(read.unwrap() == view[at as usize..][..4096], "the layer above has all of it");
            } else {
                let error = read.unwrap_err();
                assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(Path::new(&chains::name(1)))));
            }
        }
        assert!(read(0, bad.start).unwrap() == view[..bad.start as usize]);
        assert!(read(bad.end, 3 * MIB).unwrap() == view[bad.end as usize..]);
        assert_eq!(read(0, 3 * MIB).unwrap_err().kind(), ErrorKind::Io);
    }
}

/// A VHD whose last block is cut off where the disk ends: the sectors of the disk are there, those of the block are not.
#[test]
fn nothing_is_read_past_the_end_of_a_file_for_a_read_that_does_not_reach_there() {
    let size = MIB + 12 * KIB;
    let layer = |seed| LayerSpec {
        size,
        block_size: 64 * KIB as u32,
        edits: (0..size / (8 * KIB)).map(|at| Edit::Write { offset: at * 8 * KIB, len: 4 * KIB, seed }).collect(),
    };
    let built =
        build(&ChainSpec { format: Format::Vhd, sector: 512, base_fixed: false, layers: vec![layer(1), layer(2)] });
    for storage in &built.storages {
        // Other writers leave out what no sector of the disk lies in; the footer follows at once.
        let len = storage.len().unwrap();
        let mut footer = [0; 512];
        storage.read_exact_at(&mut footer, len - 512).unwrap();
        let cut = len - 512 - (64 * KIB - 12 * KIB);
        storage.set_len(cut).unwrap();
        storage.write_all_at(&footer, cut).unwrap();
    }
    let chain = chains::open(&built.storages, Access::Read).unwrap();
    assert!(chains::read_all(&chain) == *built.views.first().unwrap());
}
