//! Moving bytes into images, and what it takes to make that safe.

use crate::images::{self, FORMATS, Layout};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::ops::{ConvertOptions, MergeOptions, convert, merge_chain};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::units::MIB;
use vhdkit::{Format, Image, Watch};

const SIZE: u64 = 32 * MIB;

/// A merge of a leaf into its parent: reserve, copy, sync, publish.
pub(crate) fn copier(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copier, merge in memory");
    group.sample_size(10).throughput(Throughput::Bytes(SIZE / 8));
    for format in FORMATS {
        for layout in [Layout::Runs, Layout::Scattered] {
            let files = images::files(format, 2, (layout, SIZE));
            group.bench_function(BenchmarkId::new(format.to_string(), format!("{layout:?}")), |bencher| {
                let chain = || images::open(&images::copies(&files), Access::Read);
                let options = MergeOptions::depth(1);
                bencher.iter_batched(
                    chain,
                    |mut chain| merge_chain(&mut chain, &options, &Watch::none()).expect("the merge is done"),
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

/// A disk of zeros that has all its blocks, made into one that has none.
pub(crate) fn zero_scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("zero scan");
    group.sample_size(10).throughput(Throughput::Bytes(SIZE));
    let file = images::image(Format::Vhdx, SIZE, None);
    let mut full = images::open(std::slice::from_ref(&file), Access::Write);
    full.write_at(&vec![0; SIZE as usize], 0).expect("the image takes bytes");
    full.close().expect("the image closes");
    let chain = images::open(&[file], Access::Read);
    let folder = tempfile::tempdir().expect("a folder");
    let options = ConvertOptions::new(Format::Vhdx).overwrite(true);
    group.bench_function("convert 32 MiB of zeros", |bencher| {
        bencher.iter(|| convert(&chain, folder.path().join("new.vhdx"), &options, &Watch::none()).expect("converted"));
    });
}

/// Single sectors into new blocks of a VHDX, each through the log.
pub(crate) fn transactions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("VHDX transactions");
    group.sample_size(10).throughput(Throughput::Elements(SIZE / u64::from(images::BLOCK)));
    let empty = [images::image(Format::Vhdx, SIZE, None)];
    group.bench_function("a sector into each of 16 new blocks", |bencher| {
        let open = || images::open(&images::copies(&empty), Access::Write);
        bencher.iter_batched(open, |mut chain| write_sectors(&mut chain), BatchSize::PerIteration);
    });
}

fn write_sectors(chain: &mut Chain) {
    for at in (0..SIZE).step_by(images::BLOCK as usize) {
        chain.write_at(&[9; 512], at).expect("the image takes bytes");
    }
    chain.flush().expect("the image is flushed");
}

/// Opening a file whose log holds updates, replayed in memory.
pub(crate) fn log_replay(criterion: &mut Criterion) {
    let file = images::image(Format::Vhdx, SIZE, None);
    let mut chain = images::open(std::slice::from_ref(&file), Access::Write);
    chain.write_at(&[9; 512], 0).expect("the image takes bytes");
    // As it would be found after a crash here: the log is emptied when the session ends.
    let dirty = Arc::new(MemoryStorage::clone(&file));
    let open = || Layer::open(Arc::clone(&dirty) as Arc<dyn Storage>, Access::Read).expect("the image opens");
    assert!(matches!(open().image(), Image::Vhdx(image) if image.log_was_dirty()), "there is nothing to replay");
    criterion.bench_function("log replay, read only", |bencher| bencher.iter(open));
}
