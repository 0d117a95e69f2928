//! Benchmarks of the parts, in memory: what a change of one of them costs or gains. `compare.py` beside this measures
//! the program against other programs.
//!
//! `cargo bench -- FILTER`

mod images;
mod maps;
mod reads;
mod writes;

criterion::criterion_group!(maps, maps::tables, maps::bitmaps, maps::plans, maps::opening);
criterion::criterion_group!(reads, reads::sequential, reads::random, reads::threads);
criterion::criterion_group!(writes, writes::copier, writes::zero_scan, writes::transactions, writes::log_replay);
criterion::criterion_main!(maps, reads, writes);
