//! Finding out where bytes are, without reading them.

use crate::images::{self, FORMATS, Layout};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::sync::Arc;
use vhdkit::chain::{Chain, ChainOptions, Layer};
use vhdkit::ops::{CreateOptions, MergeOptions, create, plan_merge};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::units::{GIB, MIB};
use vhdkit::{BlockMap, DiskKind, Format, Image};

const SIZE: u64 = 64 * MIB;

fn map(layer: &Layer) -> &dyn BlockMap {
    match layer.image() {
        Image::Vhd(vhd) => &**vhd,
        Image::Vhdx(vhdx) => &**vhdx,
        other => panic!("an image with a table is needed, not {}", other.format()),
    }
}

/// The runs that `map` answers for the whole disk.
fn walk(map: &dyn BlockMap) -> u64 {
    let (mut at, mut runs) = (0, 0);
    while at < map.virtual_size() {
        at += map.extent_at(at, map.virtual_size() - at).expect("the map answers").len;
        runs += 1;
    }
    runs
}

/// Every entry of a table: the count of blocks reads past the cache, the walk goes through it.
pub(crate) fn tables(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block allocation table");
    group.sample_size(20);
    for format in FORMATS {
        let file = images::image(format, 512 * GIB, None);
        group.bench_function(BenchmarkId::new("count, 512 GiB without blocks", format), |bencher| {
            let layer = open(&file);
            bencher.iter(|| match layer.image() {
                Image::Vhd(vhd) => vhd.allocated_blocks(),
                Image::Vhdx(vhdx) => vhdx.allocated_blocks(),
                _ => Ok(0),
            });
        });
        let files = images::files(format, 1, (Layout::Runs, SIZE));
        let layer = open(&files[0]);
        group.bench_function(BenchmarkId::new("walk, 32 blocks", format), |bencher| {
            bencher.iter(|| walk(map(&layer)));
        });
    }
}

/// Every run of the sector bitmaps of 32 blocks.
pub(crate) fn bitmaps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sector bitmaps");
    for format in FORMATS {
        let files = images::files(format, 2, (Layout::Scattered, SIZE));
        let layer = open(&files[0]);
        group.throughput(Throughput::Elements(walk(map(&layer))));
        group.bench_function(BenchmarkId::new("walk", format), |bencher| bencher.iter(|| walk(map(&layer))));
    }
}

/// The pieces of a chain, and the plan of a merge of it.
pub(crate) fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    group.sample_size(20);
    for format in FORMATS {
        let chain = images::open(&images::files(format, 3, (Layout::Scattered, SIZE)), Access::Read);
        group.bench_function(BenchmarkId::new("pieces of 3 layers", format), |bencher| {
            bencher.iter(|| chain.pieces(0..SIZE).map(|piece| piece.expect("the chain answers").len).sum::<u64>());
        });
        let folder = tempfile::tempdir().expect("a folder");
        let leaf = scattered_pair(folder.path(), format);
        group.bench_function(BenchmarkId::new("merge", format), |bencher| {
            bencher.iter(|| plan_merge(&leaf, &MergeOptions::depth(1)).expect("a plan"));
        });
    }
}

/// A base and a leaf with single pages, as files.
fn scattered_pair(folder: &std::path::Path, format: Format) -> std::path::PathBuf {
    let [base, leaf] = ["base", "leaf"].map(|name| folder.join(format!("{name}.{format}").to_lowercase()));
    let options = CreateOptions::new(format, DiskKind::Dynamic).size(SIZE).block_size(images::BLOCK);
    create(&base, &options).expect("the base is made");
    create(&leaf, &CreateOptions::new(format, DiskKind::Differencing).parent(&base)).expect("the leaf is made");
    let mut chain = Chain::open(&leaf, &ChainOptions::new().access(Access::Write)).expect("the chain opens");
    for at in (0..SIZE).step_by(128 << 10) {
        chain.write_at(&[7; 4096], at).expect("the leaf takes bytes");
    }
    chain.close().expect("the chain closes");
    leaf
}

/// From bytes to a trusted image: mostly checksums of headers, tables and footers.
pub(crate) fn opening(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open, checksums of all structures");
    for format in FORMATS {
        let file = images::image(format, GIB, None);
        group.bench_function(BenchmarkId::from_parameter(format), |bencher| {
            bencher.iter_batched(|| Arc::clone(&file), |file| black_box(open(&file)), BatchSize::SmallInput);
        });
    }
}

fn open(file: &Arc<MemoryStorage>) -> Layer {
    Layer::open(Arc::clone(file) as Arc<dyn Storage>, Access::Read).expect("the image opens")
}
