//! Builds differencing chains together with a plain model of what each layer shows.
//!
//! The model is one byte vector per layer: the whole contents of the disk as seen through that layer. It knows no
//! blocks, bitmaps or states, so it cannot share a mistake with the crate.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::storage::{Access, Storage};
use vhdkit::vhd::{Vhd, VhdCreate};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{DiskKind, Format, ImageId, NewParent, ParentPaths};

/// A change made to a layer while it was the leaf. Offsets and lengths are cut to the disk.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    /// `len` bytes from `offset` on, made from `seed`.
    Write { offset: u64, len: u64, seed: u8 },
    /// Zeros.
    Zero { offset: u64, len: u64 },
    /// Whole blocks inside the range become zeros, the rest stays.
    Discard { offset: u64, len: u64 },
}

/// One layer to build.
#[derive(Clone, Debug)]
pub(crate) struct LayerSpec {
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    pub(crate) edits: Vec<Edit>,
}

/// A chain to build, base first.
#[derive(Clone, Debug)]
pub(crate) struct ChainSpec {
    pub(crate) format: Format,
    pub(crate) sector: u32,
    pub(crate) base_fixed: bool,
    pub(crate) layers: Vec<LayerSpec>,
}

/// A built chain, leaf first.
pub(crate) struct Built {
    pub(crate) storages: Vec<Arc<dyn Storage>>,
    /// What each layer shows.
    pub(crate) views: Vec<Vec<u8>>,
}

/// Bytes that differ from place to place and from edit to edit, and are never zero.
pub(crate) fn pattern(offset: u64, len: u64, seed: u8) -> Vec<u8> {
    (offset..offset + len).map(|at| ((at / 512).wrapping_mul(37) as u8 ^ at as u8).wrapping_add(seed) | 1).collect()
}

/// The name layer `index` goes by; its directory exists, the file does not.
pub(crate) fn name(index: usize) -> PathBuf {
    std::env::temp_dir().join(format!("layer-{index}"))
}

/// Opens the chain over `storages` (leaf first), the leaf for `access`, the others for reading.
pub(crate) fn open(storages: &[Arc<dyn Storage>], access: Access) -> vhdkit::Result<Chain> {
    let mut layers = Vec::new();
    for (index, storage) in storages.iter().enumerate() {
        let access = if index == 0 { access } else { Access::Read };
        let distance = storages.len() - index;
        layers.push(Layer::open(Arc::clone(storage), access)?.named(name(distance)));
    }
    Chain::from_layers(layers)
}

/// Everything the chain shows.
pub(crate) fn read_all(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0xEE; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0).expect("the chain reads");
    bytes
}

/// Makes an empty layer in `storage`; `parent` is the identity of the layer below.
pub(crate) fn create_layer(storage: Arc<dyn Storage>, spec: &ChainSpec, index: usize, parent: Option<ImageId>) {
    let layer = &spec.layers[index];
    let kind = match (parent, spec.base_fixed) {
        (Some(_), _) => DiskKind::Differencing,
        (None, true) => DiskKind::Fixed,
        (None, false) => DiskKind::Dynamic,
    };
    let link = parent.map(|id| NewParent {
        id,
        paths: ParentPaths { relative: Some(format!(".\\layer-{index}")), absolute: None },
        timestamp: 0,
    });
    match spec.format {
        Format::Vhd => {
            let mut create = VhdCreate::new(layer.size).kind(kind);
            if kind != DiskKind::Fixed {
                create = create.block_size(layer.block_size);
            }
            if let Some(link) = link {
                create = create.parent(link);
            }
            Vhd::create(storage, &create).expect("create").close().expect("close");
        }
        _ => {
            let mut create = VhdxCreate::new(layer.size).kind(kind).block_size(layer.block_size);
            create = create.logical_sector_size(spec.sector).physical_sector_size(4096);
            if let Some(link) = link {
                create = create.parent(link);
            }
            Vhdx::create(storage, &create).expect("create").close().expect("close");
        }
    }
}

impl Edit {
    /// The bytes of a disk of `size` bytes that it changes, and what they become; a discard changes whole blocks only.
    pub(crate) fn outcome(&self, size: u64, block: u64) -> (Range<u64>, Vec<u8>) {
        let cut = |offset: u64, len: u64| {
            let start = offset.min(size);
            start..start.saturating_add(len).min(size)
        };
        let zeros = |range: Range<u64>| (range.clone(), vec![0; (range.end - range.start) as usize]);
        match *self {
            Self::Write { offset, len, seed } => {
                let range = cut(offset, len);
                (range.clone(), pattern(range.start, range.end - range.start, seed))
            }
            Self::Zero { offset, len } => zeros(cut(offset, len)),
            Self::Discard { offset, len } => {
                let range = cut(offset, len);
                let first = range.start.next_multiple_of(block);
                let last = if range.end == size { size } else { range.end / block * block };
                zeros(first.min(last)..last)
            }
        }
    }
}

/// Applies `edit` to the leaf; answers what it changed and what that shows now.
pub(crate) fn try_apply(chain: &mut Chain, edit: &Edit) -> vhdkit::Result<(Range<u64>, Vec<u8>)> {
    let size = chain.virtual_size();
    let block = u64::from(chain.layers()[0].image().block_size().unwrap_or(512));
    let (range, bytes) = edit.outcome(size, block);
    match *edit {
        Edit::Write { .. } => chain.write_at(&bytes, range.start)?,
        Edit::Zero { .. } => chain.zero(range.clone())?,
        Edit::Discard { offset, len } => chain.discard(offset.min(size)..offset.saturating_add(len).min(size))?,
    }
    Ok((range, bytes))
}

/// Applies `edit` to the leaf and to the model of what it shows.
pub(crate) fn apply(chain: &mut Chain, view: &mut [u8], edit: &Edit) {
    let (range, bytes) = try_apply(chain, edit).expect("edit");
    view[range.start as usize..range.end as usize].copy_from_slice(&bytes);
}

/// Builds the chain `spec` describes; `storage(n)` gives the empty storage of the n-th layer, base first.
pub(crate) fn build(spec: &ChainSpec, mut storage: impl FnMut(usize) -> Arc<dyn Storage>) -> Built {
    let mut storages: Vec<Arc<dyn Storage>> = Vec::new();
    let mut views: Vec<Vec<u8>> = Vec::new();
    for (index, layer) in spec.layers.iter().enumerate() {
        let parent = storages.first().map(|parent| {
            let parent = Layer::open(Arc::clone(parent), Access::Read).expect("open the parent");
            parent.image().id().expect("an identity")
        });
        let new = storage(index);
        create_layer(Arc::clone(&new), spec, index, parent);
        storages.insert(0, new);
        let mut view = views.first().cloned().unwrap_or_default();
        view.resize(layer.size as usize, 0);
        let mut chain = open(&storages, Access::Write).expect("open what was just made");
        for edit in &layer.edits {
            apply(&mut chain, &mut view, edit);
        }
        chain.close().expect("close");
        views.insert(0, view);
    }
    Built { storages, views }
}
