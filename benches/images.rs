//! Chains in memory to measure on.

use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::units::MIB;
use vhdkit::vhd::{Vhd, VhdCreate};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{DiskKind, Format, NewParent, ParentPaths};

pub(crate) const FORMATS: [Format; 2] = [Format::Vhd, Format::Vhdx];
/// Bytes per block of the images here.
pub(crate) const BLOCK: u32 = 2 << 20;

/// What each child of a chain holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// Runs of 4 MiB, each layer's behind those of the one below.
    Runs,
    /// Single pages of 4 KiB in every block.
    Scattered,
}

/// An image of `size` bytes without contents; over `parent` when there is one.
pub(crate) fn image(format: Format, size: u64, parent: Option<&Arc<MemoryStorage>>) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::new());
    let parent = parent.map(|parent| {
        let layer = Layer::open(Arc::clone(parent) as Arc<dyn Storage>, Access::Read).expect("the parent opens");
        let paths = ParentPaths { relative: Some(".\\parent".to_owned()), absolute: None };
        NewParent { id: layer.image().id().expect("an identity"), paths, timestamp: 0 }
    });
    let kind = if parent.is_some() { DiskKind::Differencing } else { DiskKind::Dynamic };
    let target = Arc::clone(&storage) as Arc<dyn Storage>;
    if format == Format::Vhd {
        let create = VhdCreate::new(size).kind(kind).block_size(BLOCK);
        let create = parent.into_iter().fold(create, VhdCreate::parent);
        Vhd::create(target, &create).and_then(Vhd::close).expect("the image is made");
    } else {
        let create = VhdxCreate::new(size).kind(kind).block_size(BLOCK);
        let create = parent.into_iter().fold(create, VhdxCreate::parent);
        Vhdx::create(target, &create).and_then(Vhdx::close).expect("the image is made");
    }
    storage
}

/// The files of a chain of `layers`, leaf first; the base holds the whole disk.
pub(crate) fn files(format: Format, layers: usize, (layout, size): (Layout, u64)) -> Vec<Arc<MemoryStorage>> {
    let mut files = vec![image(format, size, None)];
    let mut base = open(&files, Access::Write);
    base.write_at(&vec![1; size as usize], 0).expect("the base takes bytes");
    base.close().expect("the base closes");
    for layer in 1..layers {
        let child = image(format, size, files.first());
        files.insert(0, child);
        let mut chain = open(&files, Access::Write);
        for (offset, len) in layout.runs(size, layer as u64) {
            chain.write_at(&vec![layer as u8 + 1; len as usize], offset).expect("the leaf takes bytes");
        }
        chain.close().expect("the chain closes");
    }
    files
}

impl Layout {
    fn runs(self, size: u64, layer: u64) -> Vec<(u64, u64)> {
        match self {
            Self::Runs => {
                let run = 4 * MIB;
                (0..size / run).filter(|at| at % 8 == layer % 8).map(|at| (at * run, run)).collect()
            }
            Self::Scattered => {
                let page = 4096;
                (0..size / page)
                    .filter(|at| (at * 7 + layer * 3).is_multiple_of(32))
                    .map(|at| (at * page, page))
                    .collect()
            }
        }
    }
}

/// The chain over `files`, leaf first, the leaf opened for `access`.
pub(crate) fn open(files: &[Arc<MemoryStorage>], access: Access) -> Chain {
    let layers = files.iter().enumerate().map(|(index, file)| {
        let access = if index == 0 { access } else { Access::Read };
        Layer::open(Arc::clone(file) as Arc<dyn Storage>, access).expect("the image opens")
    });
    Chain::from_layers(layers.collect()).expect("the chain holds together")
}

/// Independent copies of `files`.
pub(crate) fn copies(files: &[Arc<MemoryStorage>]) -> Vec<Arc<MemoryStorage>> {
    files.iter().map(|file| Arc::new(MemoryStorage::clone(file))).collect()
}
