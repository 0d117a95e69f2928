//! Reading chains.

use crate::images::{self, FORMATS, Layout};
use criterion::{BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::thread;
use vhdkit::chain::Chain;
use vhdkit::storage::Access;
use vhdkit::units::MIB;

const SIZE: u64 = 32 * MIB;
const PAGE: usize = 4096;
/// Random reads in one round.
const READS: u64 = 1000;

fn chains() -> impl Iterator<Item = (String, Chain)> {
    let layouts = [Layout::Runs, Layout::Scattered];
    let kinds = FORMATS.into_iter().flat_map(move |format| layouts.map(|layout| (format, layout)));
    kinds.flat_map(|(format, layout)| {
        [1, 3, 16].into_iter().filter_map(move |layers| {
            // Alone, a base is the same whatever the layout.
            let same = layers == 1 && matches!(layout, Layout::Scattered);
            let name = format!("{format}/{layout:?}/{layers}");
            (!same).then(|| (name, images::open(&images::files(format, layers, (layout, SIZE)), Access::Read)))
        })
    })
}

pub(crate) fn sequential(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sequential read");
    group.throughput(Throughput::Bytes(SIZE)).sample_size(20);
    for (name, chain) in chains() {
        let mut buffer = vec![0; MIB as usize];
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for at in (0..SIZE).step_by(buffer.len()) {
                    chain.read_at(&mut buffer, at).expect("the chain reads");
                }
                black_box(&buffer);
            });
        });
    }
}

/// The offset of a page, far from the one before.
fn offset(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % (SIZE / PAGE as u64) * PAGE as u64
}

pub(crate) fn random(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("random 4 KiB reads");
    group.throughput(Throughput::Elements(READS)).sample_size(20);
    for (name, chain) in chains() {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut buffer = [0; PAGE];
            bencher.iter(|| {
                for at in (0..READS).map(offset) {
                    chain.read_at(&mut buffer, at).expect("the chain reads");
                }
                black_box(&buffer);
            });
        });
    }
}

/// What readers of the same pages of map cost each other.
pub(crate) fn threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("random 4 KiB reads by threads");
    group.throughput(Throughput::Elements(READS)).sample_size(20);
    for format in FORMATS {
        let chain = images::open(&images::files(format, 3, (Layout::Scattered, SIZE)), Access::Read);
        for threads in [1, 2, 4] {
            group.bench_function(BenchmarkId::new(format.to_string(), threads), |bencher| {
                bencher.iter(|| {
                    thread::scope(|scope| {
                        for thread in 0..threads {
                            let chain = &chain;
                            scope.spawn(move || {
                                let mut buffer = [0; PAGE];
                                for number in (thread..READS).step_by(threads as usize) {
                                    chain.read_at(&mut buffer, offset(number)).expect("the chain reads");
                                }
                                black_box(&buffer);
                            });
                        }
                    });
                });
            });
        }
    }
}
