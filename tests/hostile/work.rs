//! Files made to keep a reader busy.

use crate::Counting;
use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::support::bytes::{le16, le32, le64, vhdx_checksum};
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::vhdx::VhdxCreate;
use vhdkit::{ErrorKind, Format, Structure};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const LINKS: usize = 1024;

fn bytes_of(storage: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0; storage.len().unwrap() as usize];
    storage.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// A VHDX of 8 MiB in blocks of 1 MiB, of which none has space.
fn empty_vhdx() -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new());
    vhdkit::vhdx::Vhdx::create(storage.clone(), &VhdxCreate::new(8 << 20).block_size(1 << 20))
        .unwrap()
        .close()
        .unwrap();
    bytes_of(&*storage)
}

#[test]
fn a_chain_of_1024_links_costs_each_of_its_files_the_same() {
    for format in [Format::Vhd, Format::Vhdx] {
        let layer = LayerSpec { size: 4 << 20, block_size: 1 << 20, edits: Vec::new() };
        let layers = vec![layer; LINKS];
        let spec = ChainSpec { format, sector: 512, base_fixed: false, layers };
        let mut files: Vec<Arc<Counting>> = Vec::new();
        for index in 0..LINKS {
            let id = files.last().map(|parent| {
                Layer::open(Arc::clone(parent) as Arc<dyn Storage>, Access::Read).unwrap().image().id().unwrap()
            });
            let storage = Arc::new(MemoryStorage::new());
            chains::create_layer(storage.clone(), &spec, index, id);
            files.push(Counting::new(&bytes_of(&*storage)));
        }
        for file in &files {
            file.take();
        }
        let open = |(index, file): (usize, &Arc<Counting>)| {
            Layer::open(Arc::clone(file) as Arc<dyn Storage>, Access::Read).unwrap().named(chains::name(index))
        };
        let chain = Chain::from_layers(files.iter().enumerate().rev().map(open).collect()).unwrap();
        let opening: Vec<u64> = files.iter().map(|file| file.take().0).collect();
        let mut bytes = vec![1; 4 << 20];
        chain.read_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        let reading: Vec<u64> = files.iter().map(|file| file.take().0).collect();
        println!(
            "{format}: {} to open the first, {} at most, {} to read",
            opening[0],
            opening.iter().max().unwrap(),
            reading.iter().max().unwrap()
        );
        assert!(opening.iter().all(|reads| *reads <= 32), "{format}: {opening:?}");
        assert!(reading.iter().all(|reads| *reads <= 32), "{format}: {reading:?}");
    }
}

/// Gives both headers the log id `[7; 16]` and fills the log with entries of one sector: number, tail and whether it is one
/// come from `entry`.
fn with_log(entry: impl Fn(u32) -> Option<u32>) -> Vec<u8> {
    let mut file = empty_vhdx();
    let seal = |bytes: &mut [u8]| {
        let sum = vhdx_checksum(bytes, 4);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    };
    for at in [64 * KIB, 128 * KIB] {
        file[at + 48..at + 64].fill(7);
        seal(&mut file[at..at + 4096]);
    }
    let (log, len) = (le64(&file, 64 * KIB + 72) as usize, le32(&file, 64 * KIB + 68) as usize);
    let file_len = file.len() as u64;
    for number in 0..(len / 4096) as u32 {
        let Some(tail) = entry(number) else { continue };
        let at = log + number as usize * 4096;
        let sector = &mut file[at..at + 4096];
        sector.fill(0);
        sector[..4].copy_from_slice(b"loge");
        sector[8..12].copy_from_slice(&4096u32.to_le_bytes());
        sector[12..16].copy_from_slice(&tail.to_le_bytes());
        sector[16..24].copy_from_slice(&u64::from(number + 1).to_le_bytes());
        sector[32..48].fill(7);
        sector[48..56].copy_from_slice(&file_len.to_le_bytes());
        sector[56..64].copy_from_slice(&file_len.to_le_bytes());
        seal(sector);
    }
    file
}

#[test]
fn a_log_that_laps_itself_is_read_a_few_times() {
    // Each entry says that the sequence begins with the next one: all of the ring is one sequence.
    let whole = Counting::new(&with_log(|number| Some((number + 1) % 256 * 4096)));
    Layer::open(whole.clone(), Access::Read).unwrap();
    // No entry's tail is one: each start of a sequence runs to the end of the ring and is none.
    let none = Counting::new(&with_log(|number| (number > 0).then_some(0)));
    let error = Layer::open(none.clone(), Access::Read).unwrap_err();
    assert_eq!((error.kind(), error.problem().unwrap().structure), (ErrorKind::Corrupt, Structure::VhdxLog));
    for file in [whole, none] {
        let (reads, bytes) = file.take();
        println!("{reads} reads, {bytes} bytes");
        assert!(bytes < 4 * MIB as u64, "{bytes} bytes of a log of 1 MiB");
    }
}

#[test]
fn a_metadata_table_full_of_entries_is_read_once() {
    for same in [false, true] {
        let mut file = empty_vhdx();
        let table = 2 * MIB;
        assert!(file[table..].starts_with(b"metadata"));
        let own = usize::from(le16(&file, table + 10));
        file[table + 10..table + 12].copy_from_slice(&2047u16.to_le_bytes());
        for row in own..2047 {
            let at = table + 32 + 32 * row;
            // A user's items, on each other's bytes; perhaps all with one id.
            let id = if same { 1 } else { row as u32 };
            file[at..at + 4].copy_from_slice(&id.to_le_bytes());
            file[at + 16..at + 20].copy_from_slice(&(65536 + row as u32).to_le_bytes());
            file[at + 20..at + 24].copy_from_slice(&900_000u32.to_le_bytes());
            file[at + 24..at + 28].copy_from_slice(&1u32.to_le_bytes());
        }
        let file = Counting::new(&file);
        let layer = Layer::open(file.clone(), Access::Read).unwrap();
        let (reads, bytes) = file.take();
        println!("{reads} reads, {bytes} bytes");
        assert!(!layer.findings().list().is_empty() && layer.findings().list().len() <= vhdkit::MAX_FINDINGS);
        assert!(reads < 64 && bytes < MIB as u64, "{reads} reads, {bytes} bytes");
    }
}

#[test]
fn a_table_of_aliases_is_read_as_any_other() {
    // VHDX: every block in the same place; reading all of the disk reads it once per block.
    let mut file = empty_vhdx();
    file.resize(8 * MIB, 0);
    let table = 3 * MIB;
    for block in 0..8 {
        file[table + 8 * block..table + 8 * block + 8].copy_from_slice(&((7u64 << 20) | 6).to_le_bytes());
    }
    let file = Counting::new(&file);
    let chain = Chain::from_layers(vec![Layer::open(file.clone(), Access::Read).unwrap()]).unwrap();
    file.take();
    chain.read_at(&mut vec![0; 8 << 20], 0).unwrap();
    let (reads, bytes) = file.take();
    println!("{reads} reads, {bytes} bytes");
    assert!(reads < 64 && bytes < 9 * MIB as u64, "{reads} reads, {bytes} bytes");
}

#[test]
fn parents_are_never_written() {
    for format in [Format::Vhd, Format::Vhdx] {
        let layer = |edits| LayerSpec { size: 4 << 20, block_size: 1 << 20, edits };
        let base = layer(vec![Edit::Write { offset: 0, len: 2 << 20, seed: 1 }]);
        let spec =
            ChainSpec { format, sector: 512, base_fixed: false, layers: vec![base, layer(vec![]), layer(vec![])] };
        let built = chains::build(&spec, |_| Arc::new(MemoryStorage::new()));
        let mut layers =
            vec![Layer::open(Arc::clone(&built.storages[0]), Access::Write).unwrap().named(chains::name(3))];
        for (index, storage) in built.storages.iter().enumerate().skip(1) {
            // Any write to it fails the test.
            let parent = Counting::new(&bytes_of(&**storage));
            layers.push(Layer::open(parent, Access::Read).unwrap().named(chains::name(3 - index)));
        }
        let mut chain = Chain::from_layers(layers).unwrap();
        let mut model = built.views[0].clone();
        for edit in [
            Edit::Write { offset: 100, len: 70_000, seed: 9 },
            Edit::Zero { offset: 1 << 20, len: 1 << 20 },
            Edit::Discard { offset: 0, len: 4 << 20 },
            Edit::Write { offset: (3 << 20) + 7, len: 1000, seed: 5 },
        ] {
            chains::apply(&mut chain, &mut model, &edit);
        }
        chain.flush().unwrap();
        assert!(chains::read_all(&chain) == model, "{format}");
        chain.close().unwrap();
    }
}
