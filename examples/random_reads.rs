//! Random reads of a chain against the same reads of a flat raw file with the same contents, by several numbers of
//! threads. Every read is compared once.
//!
//! `cargo run --release --example random_reads -- LEAF FLAT`

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;
use vhdkit::chain::{Chain, ChainOptions};

const LEN: usize = 4096;
const READS: u64 = 50_000;
const ROUNDS: usize = 9;

type Read<'a> = &'a (dyn Fn(&mut [u8], u64) + Sync);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [leaf, flat] = args.as_slice() else { panic!("usage: random_reads LEAF FLAT") };
    let chain = Chain::open(leaf, &ChainOptions::new()).expect("the chain opens");
    let flat = File::open(flat).expect("the flat file opens");
    let pages = chain.virtual_size() / LEN as u64;
    let offset = |number: u64| number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % pages * LEN as u64;
    let read_flat: Read<'_> = &|buf, at| flat.read_exact_at(buf, at).expect("the flat file reads");
    let read_chain: Read<'_> = &|buf, at| chain.read_at(buf, at).expect("the chain reads");

    let (mut ours, mut theirs) = ([0; LEN], [0; LEN]);
    for at in (0..READS).map(offset) {
        read_chain(&mut ours, at);
        read_flat(&mut theirs, at);
        assert!(ours == theirs, "the chain and the flat file differ at {at}");
    }
    // Nanoseconds for each read, dealt out to threads.
    let timed = |threads: u64, read: Read<'_>| {
        let start = Instant::now();
        thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    let mut buf = [0; LEN];
                    (thread..READS).step_by(threads as usize).for_each(|number| read(&mut buf, offset(number)));
                });
            }
        });
        start.elapsed().as_secs_f64() * 1e9 / READS as f64
    };
    for threads in [1, 2, 4] {
        let mut rounds: Vec<_> = (0..ROUNDS).map(|_| (timed(threads, read_flat), timed(threads, read_chain))).collect();
        let best = |of: fn(&(f64, f64)) -> f64| rounds.iter().map(of).fold(f64::MAX, f64::min);
        let (flat, chain) = (best(|round| round.0), best(|round| round.1));
        rounds.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
        let ratio = rounds[ROUNDS / 2].1 / rounds[ROUNDS / 2].0;
        println!("{threads} threads: flat {flat:.0} ns, chain {chain:.0} ns a read at best; median ratio {ratio:.2}");
    }
}
