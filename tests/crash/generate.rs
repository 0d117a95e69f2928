//! The chains that are merged here: a list of known ones, and as many more as a seed gives.
//!
//! Owns: what is in them. Must not know: how they are crashed.

use crate::budget::{self, Dice};
use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::files;
use crate::merge::MergeSpec;
use crate::view::Model;
use std::sync::Arc;
use vhdkit::Format;
use vhdkit::chain::Layer;
use vhdkit::storage::sim::{ExploreOptions, SimDisk};
use vhdkit::storage::{Access, Storage};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Where the block allocation table of a VHDX that we made is.
const VHDX_TABLE: u64 = 3 * MIB;

/// A machine with the chain on it, everything durable, and what each layer shows, leaf first.
pub(crate) fn build(spec: &MergeSpec) -> (SimDisk, Vec<Model>) {
    let mut disk = SimDisk::new();
    let mut views: Vec<Vec<u8>> = Vec::new();
    for (index, layer) in spec.chain.layers.iter().enumerate() {
        let parent = index.checked_sub(1).map(|below| {
            let parent = Layer::open(disk.file(&files::name(below)), Access::Read).expect("open the parent");
            parent.image().id().expect("an identity")
        });
        chains::create_layer(disk.file(&files::name(index)), &spec.chain, index, parent);
        let storages: Vec<Arc<dyn Storage>> =
            (0..=index).rev().map(|index| disk.file(&files::name(index)) as Arc<dyn Storage>).collect();
        let mut view = views.first().cloned().unwrap_or_default();
        view.resize(layer.size as usize, 0);
        let mut chain = chains::open(&storages, Access::Write).expect("open what was just made");
        for edit in &layer.edits {
            chains::apply(&mut chain, &mut view, edit);
        }
        if spec.dirty {
            if spec.chain.format == Format::Vhd {
                chain.flush().expect("flush");
            }
            disk = cut_off(&disk);
        } else {
            chain.close().expect("close");
            vary_zero_states(spec.chain.format, &*disk.file(&files::name(index)));
        }
        views.insert(0, view);
    }
    if spec.resume {
        let _ = disk.file(crate::merge::CHECKPOINT);
    }
    (disk.fork(), views.iter().map(|view| Model::of(view)).collect())
}

/// The machine after a power cut at this moment that loses everything not synced.
pub(crate) fn cut_off(disk: &SimDisk) -> SimDisk {
    let options = ExploreOptions { from_point: disk.position(), ..ExploreOptions::seeded(0) };
    let mut left = None;
    disk.explore(&options, |state| {
        left = Some(state.disk());
        Err("enough".to_owned())
    });
    left.expect("a state").fork()
}

/// Turns some ZERO entries (2) into UNMAPPED (3) or UNDEFINED (1), as other programs write them: all read as zeros.
fn vary_zero_states(format: Format, file: &dyn Storage) {
    if format != Format::Vhdx {
        return;
    }
    let mut table = [0; 4096];
    file.read_exact_at(&mut table, VHDX_TABLE).expect("the table");
    for (index, entry) in table.chunks_exact_mut(8).enumerate() {
        if entry == 2u64.to_le_bytes() {
            entry[0] = [1, 2, 3][index % 3];
        }
    }
    file.write_all_at(&table, VHDX_TABLE).expect("the table");
}

fn write(offset: u64, len: u64, seed: u8) -> Edit {
    Edit::Write { offset, len, seed }
}

fn layer(size: u64, block_size: u64, edits: Vec<Edit>) -> LayerSpec {
    LayerSpec { size, block_size: block_size as u32, edits }
}

fn spec(name: &str, format: Format, (source, target): (usize, usize), layers: Vec<LayerSpec>) -> MergeSpec {
    MergeSpec {
        name: format!("{format} {source},{target} of {}: {name}", layers.len()),
        chain: ChainSpec { format, sector: 512, base_fixed: false, layers },
        source,
        target,
        relink: source > 1,
        resume: false,
        dirty: false,
    }
}

/// The workloads that are always explored.
pub(crate) fn known(format: Format) -> Vec<MergeSpec> {
    if format == Format::Vhd { known_vhd() } else { known_vhdx() }
}

/// Blocks absent, partial and whole in every combination, sizes that differ; base first.
fn small_vhd(sizes: [u64; 4]) -> Vec<LayerSpec> {
    vec![
        layer(sizes[0], 8192, vec![write(0, 3000, 1), write(20 * KIB, 9000, 2)]),
        layer(sizes[1], 8192, vec![write(1024, 2048, 3), write(9 * KIB, 512, 4)]),
        layer(
            sizes[2],
            4096,
            vec![write(1536, 512, 5), write(24 * KIB, 4096, 6), Edit::Zero { offset: 512, len: 512 }],
        ),
        layer(sizes[3], 4096, vec![write(12 * KIB, 5000, 7), write(512, 1024, 8), write(37 * KIB, 3 * KIB, 9)]),
    ]
}

fn known_vhd() -> Vec<MergeSpec> {
    let same = [40 * KIB; 4];
    let three = |sizes| small_vhd(sizes)[..3].to_vec();
    let make = |name: &str, depths, layers| spec(name, Format::Vhd, depths, layers);
    let mut list = vec![
        make("plain", (1, 2), three(same)),
        make("two at once", (1, 3), three(same)),
        make("survivor", (2, 3), three(same)),
        make("growing", (1, 2), three([48 * KIB, 32 * KIB, 44 * KIB, 0])),
        make("growing past both", (1, 3), three([30 * KIB, 30 * KIB, 90 * KIB, 0])),
        make("shrinking", (1, 3), three([48 * KIB, 40 * KIB, 29 * KIB, 0])),
        make("into a child", (1, 3), small_vhd(same)),
        make("survivor, into a child", (2, 3), small_vhd([40 * KIB, 36 * KIB, 48 * KIB, 44 * KIB])),
        make("two survivors", (3, 4), small_vhd([28 * KIB, 40 * KIB, 40 * KIB, 40 * KIB])),
    ];
    let long_table = |size| layer(size, 4096, vec![write(size - 4096, 4096, 9)]);
    list.push(make("growing by another table", (1, 2), vec![long_table(2048 * KIB), long_table(2058 * KIB)]));
    for (name, depths) in [("fixed target", (1, 2)), ("fixed target, grown", (1, 3))] {
        let mut fixed = make(name, depths, three(if depths.1 == 2 { same } else { [31 * KIB, 40 * KIB, 40 * KIB, 0] }));
        fixed.chain.layers.drain(..if depths.1 == 2 { 1 } else { 0 });
        fixed.chain.base_fixed = true;
        list.push(fixed);
    }
    list.extend([
        MergeSpec { resume: true, ..make("resumed", (1, 3), three(same)) },
        MergeSpec {
            resume: true,
            ..make("survivor, resumed", (2, 4), small_vhd([40 * KIB, 44 * KIB, 44 * KIB, 40 * KIB]))
        },
        // Relinked, the chain is one on which the same depths mean another merge.
        MergeSpec { resume: true, ..make("survivor, into a child, resumed", (2, 3), small_vhd(same)) },
        MergeSpec { relink: false, ..make("not relinked", (2, 3), three(same)) },
        MergeSpec { dirty: true, ..make("after crashes", (1, 3), three(same)) },
    ]);
    list
}

fn small_vhdx(sizes: [u64; 4]) -> Vec<LayerSpec> {
    vec![
        layer(sizes[0], MIB, vec![write(0, 9000, 1), write(MIB + 512, 4096, 2)]),
        layer(sizes[1], MIB, vec![write(4096, 2048, 3)]),
        layer(sizes[2], MIB, vec![write(4608, 512, 5), Edit::Zero { offset: MIB, len: MIB }]),
        layer(sizes[3], 2 * MIB, vec![write(8192, 4096, 6), Edit::Zero { offset: 0, len: 4096 }]),
    ]
}

fn known_vhdx() -> Vec<MergeSpec> {
    let same = [2 * MIB; 4];
    let three = |sizes| small_vhdx(sizes)[..3].to_vec();
    let make = |name: &str, depths, layers| spec(name, Format::Vhdx, depths, layers);
    let mut list = vec![
        make("plain", (1, 2), three(same)),
        make("two at once", (1, 3), three(same)),
        make("survivor", (2, 3), three(same)),
        make("growing", (1, 2), three([3 * MIB, MIB + 4096, 2 * MIB, 0])),
        make("shrinking", (1, 3), three([3 * MIB, 2 * MIB, 2 * MIB, 0])),
        make("shrinking inside a block", (1, 2), three([2 * MIB, 2 * MIB, MIB + 8192, 0])),
        make("into a child", (1, 3), small_vhdx(same)),
        make("survivor, into a child", (2, 3), small_vhdx([2 * MIB, MIB + 512, 2 * MIB, 2 * MIB])),
    ];
    // A block that is partial in both, whole only together.
    let halves = vec![
        layer(MIB, MIB, vec![write(0, 4096, 1)]),
        layer(MIB, MIB, vec![write(0, 512 * KIB, 2)]),
        layer(MIB, MIB, vec![write(512 * KIB, 512 * KIB, 3)]),
    ];
    list.push(make("two halves", (1, 2), halves));
    let mut large_sectors = make("large sectors", (1, 2), small_vhdx(same)[1..].to_vec());
    large_sectors.chain.sector = 4096;
    list.push(large_sectors);
    let mut fixed = make("fixed target", (1, 2), three([MIB, 2 * MIB, 2 * MIB, 0])[..2].to_vec());
    fixed.chain.base_fixed = true;
    list.push(fixed);
    list.extend([
        MergeSpec { resume: true, ..make("resumed", (1, 3), three(same)) },
        MergeSpec {
            resume: true,
            ..make("survivor, resumed", (2, 4), small_vhdx([2 * MIB, 3 * MIB, 3 * MIB, 2 * MIB]))
        },
        // Relinked, the chain is one on which the same depths mean another merge.
        MergeSpec { resume: true, ..make("survivor, into a child, resumed", (2, 3), small_vhdx(same)) },
        MergeSpec { relink: false, ..make("not relinked", (2, 3), three(same)) },
        MergeSpec { dirty: true, ..make("logs to replay", (1, 3), three(same)) },
    ]);
    list
}

/// A workload that the seed and `round` choose.
pub(crate) fn random(format: Format, round: u64) -> MergeSpec {
    let mut dice = Dice::new(budget::seed() ^ (round << 32));
    let vhd = format == Format::Vhd;
    let count = 2 + dice.below(if vhd { 4 } else { 3 }) as usize;
    let sector = if !vhd && dice.one_in(3) { 4096 } else { 512 };
    let (sizes, blocks): (&[u64], &[u64]) = if vhd {
        (&[40 * KIB, 33 * KIB, 48 * KIB, 37 * KIB + 512], &[4096, 8192, 16384])
    } else {
        (&[2 * MIB, 3 * MIB, 2 * MIB + 256 * KIB, MIB], &[MIB, 2 * MIB])
    };
    // Most chains have one size.
    let one_size = (!dice.one_in(3)).then(|| dice.pick(sizes));
    let layers = (0..count)
        .map(|_| {
            let size = one_size.unwrap_or_else(|| dice.pick(sizes));
            layer(size, dice.pick(blocks), edits(&mut dice, size, vhd))
        })
        .collect();
    let target = 2 + dice.below(count as u64 - 1) as usize;
    let source = 1 + dice.below(target as u64 - 1) as usize;
    let relink = source > 1 && !dice.one_in(4);
    let (resume, dirty) = (dice.one_in(2), dice.one_in(4));
    let mut layers: Vec<LayerSpec> = layers;
    if layers[count + 1 - target..=count - source].iter().all(|layer| layer.edits.is_empty()) {
        // A merge of nothing writes nothing.
        layers[count - source].edits.push(write(512, 4096, 3));
    }
    MergeSpec {
        name: format!("{format} {source},{target} of {count}: random {round}, relink {relink}, resume {resume}"),
        chain: ChainSpec { format, sector, base_fixed: dice.one_in(4), layers },
        source,
        target,
        relink,
        resume,
        dirty,
    }
}

/// Up to four edits; VHDX blocks are large, so a few of them are whole and the rest small.
pub(crate) fn edits(dice: &mut Dice, size: u64, vhd: bool) -> Vec<Edit> {
    let (unit, whole) = if vhd { (512, 4096) } else { (4096, MIB) };
    (0..dice.below(5))
        .map(|_| {
            let skew = if dice.one_in(4) { 123 } else { 0 };
            let offset = dice.below(size / unit) * unit;
            match dice.below(8) {
                0 => Edit::Zero { offset: offset + skew, len: (1 + dice.below(12)) * unit },
                1 => Edit::Zero { offset: offset / whole * whole, len: whole },
                2 => Edit::Discard { offset, len: dice.below(size) },
                3 => write(offset / whole * whole, whole, dice.below(256) as u8),
                _ => write(offset + skew, (1 + dice.below(12)) * unit - 77 * dice.below(2), dice.below(256) as u8),
            }
        })
        .collect()
}
