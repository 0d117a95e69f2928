//! Chains and edits of them, out of an input, with the plain model of what each layer shows.
//!
//! Owns: which sizes there are: small enough for hundreds of inputs a second, uneven enough to end inside of blocks.

use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::input::Input;
use crate::second::{MAX_FILE, Second};
use crate::support::Report;
use crate::views::first_difference;
use std::sync::Arc;
use vhdkit::Format;
use vhdkit::chain::Chain;
use vhdkit::storage::{Access, MemoryStorage, Storage};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The sizes of one format, and the steps in which offsets fall.
struct Shape {
    sizes: &'static [u64],
    blocks: &'static [u32],
    grain: u64,
}

const VHD: Shape = Shape {
    sizes: &[40 * KIB, 64 * KIB, 100 * KIB, 96 * KIB + 512, 4096, 512, 33 * KIB],
    blocks: &[4096, 8192, 32 << 10],
    grain: 512,
};
const VHDX: Shape =
    Shape { sizes: &[MIB + 64 * KIB, MIB + 4096, 256 * KIB, 4096, 2 * MIB], blocks: &[1 << 20, 2 << 20], grain: 4096 };

fn shape(format: Format) -> &'static Shape {
    if format == Format::Vhd { &VHD } else { &VHDX }
}

/// A chain of `least` to `most` layers.
pub(crate) fn chain(input: &mut Input<'_>, (least, most): (usize, usize)) -> ChainSpec {
    // A VHDX block is a MiB at least, and costs as much time as ten VHD disks.
    let format = if input.byte() % 4 == 1 { Format::Vhdx } else { Format::Vhd };
    let shape = shape(format);
    let sector = if format == Format::Vhdx && input.flag() { 4096 } else { 512 };
    let base_fixed = input.one_in(4);
    let count = least + input.below(most - least + 1);
    // Mostly one size; a chain of many is the exception, in files as in life.
    let (size, even) = (input.pick(shape.sizes), !input.one_in(4));
    let layers = (0..count).map(|_| {
        let size = if even { size } else { input.pick(shape.sizes) };
        let edits = (0..input.below(4)).map(|_| edit(input, format, size)).collect();
        LayerSpec { size, block_size: input.pick(shape.blocks), edits }
    });
    ChainSpec { format, sector, base_fixed, layers: layers.collect() }
}

/// One change of a disk of `size` bytes.
pub(crate) fn edit(input: &mut Input<'_>, format: Format, size: u64) -> Edit {
    let grain = shape(format).grain;
    let kind = input.byte();
    let at = u64::from(input.short()) % (size / grain).max(1) * grain;
    let (count, seed) = (u64::from(input.byte()), input.byte());
    match kind % 8 {
        0..=2 => Edit::Write { offset: at, len: (1 + count % 12) * grain, seed },
        // Inside of sectors.
        3 => Edit::Write { offset: at + u64::from(kind), len: 1 + count * 7, seed },
        4 => Edit::Write { offset: at / 2, len: size / 2, seed },
        5 => Edit::Zero { offset: at + u64::from(kind & 8), len: count * grain },
        6 => Edit::Discard { offset: at, len: count * grain * 4 },
        _ => Edit::Write { offset: size.saturating_sub((1 + count % 4) * grain), len: u64::MAX / 2, seed },
    }
}

/// Files in memory for a new chain.
pub(crate) fn memory(_: usize) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new())
}

/// A copy in memory of what `storage` holds.
pub(crate) fn copy(storage: &dyn Storage) -> MemoryStorage {
    const PAGE: u64 = 4096;
    let copy = MemoryStorage::new();
    let len = storage.len().expect("a length");
    copy.set_len(len).expect("memory takes any length");
    let mut next = 0;
    while let Some(found) = storage.next_data(next).expect("an answer") {
        let at = found / PAGE * PAGE;
        let mut page = vec![0; (len - at).min(PAGE) as usize];
        storage.read_exact_at(&mut page, at).expect("inside the file");
        copy.write_all_at(&page, at).expect("memory takes writes");
        next = at + PAGE;
    }
    copy
}

/// The chain of `storages`, leaf first, shows `view`: to vhdkit, and to the second reader.
pub(crate) fn assert_shows(storages: &[Arc<dyn Storage>], view: &[u8], when: &str) {
    let chain = chains::open(storages, Access::Read).unwrap_or_else(|error| panic!("{when}: does not open: {error}"));
    assert_view(&chain, view, when);
    let files: Vec<MemoryStorage> = storages.iter().map(|storage| copy(&**storage)).collect();
    if files.iter().any(|file| file.len().expect("a length") > MAX_FILE) {
        return;
    }
    let second = Second::open(&files).unwrap_or_else(|why| panic!("{when}: the second reader finds: {why}"));
    assert_eq!(second.size(), view.len() as u64, "{when}: the size the second reader sees");
    let bytes = second.read(0, view.len()).unwrap_or_else(|why| panic!("{when}: the second reader finds: {why}"));
    assert!(bytes == view, "{when}, the second reader: {}", first_difference(&bytes, view));
}

/// `chain` shows `view`.
pub(crate) fn assert_view(chain: &Chain, view: &[u8], when: &str) {
    assert_eq!(chain.virtual_size(), view.len() as u64, "{when}: the size");
    let bytes = chains::read_all(chain);
    assert!(bytes == view, "{when}: {}", first_difference(&bytes, view));
}

/// The files keep every rule that files of ours have to.
pub(crate) fn assert_well_formed(format: Format, storages: &[Arc<dyn Storage>], when: &str) {
    for (index, storage) in storages.iter().enumerate() {
        let file = crate::second::File(copy(&**storage));
        let report = if format == Format::Vhd { Report::vhd(&file) } else { Report::vhdx(&file) };
        report.assert_clean(format_args!("{when}: file {}", index + 1));
    }
}
