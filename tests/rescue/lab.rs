//! Small images of every kind with the bytes they show, and ways to damage a copy.

use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::medium::Medium;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use vhdkit::chain::{Layer, Owner};
use vhdkit::ops::{RescueOptions, RescueReport, rescue_layers};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{Format, Watch};

const MIB: u64 = 1 << 20;
/// Whole blocks, so that a disk whose size is lost has the same.
const SIZE: u64 = 6 * MIB;

/// An image, its parents, and what it shows.
pub(crate) struct Lab {
    pub(crate) name: &'static str,
    pub(crate) leaf: MemoryStorage,
    parents: Vec<Arc<dyn Storage>>,
    pub(crate) model: Vec<u8>,
    pub(crate) sector: u32,
    /// Ranges of the leaf that cannot be read.
    bad: Vec<Range<u64>>,
}

/// Bytes of the leaf's file and where they are in the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) place: u64,
}

const KINDS: [(&str, Format, bool, usize, u32); 7] = [
    ("VHD fixed", Format::Vhd, true, 1, 512),
    ("VHD dynamic", Format::Vhd, false, 1, 512),
    ("VHD differencing", Format::Vhd, false, 2, 512),
    ("VHDX fixed", Format::Vhdx, true, 1, 512),
    ("VHDX dynamic", Format::Vhdx, false, 1, 512),
    ("VHDX differencing", Format::Vhdx, false, 2, 512),
    ("VHDX of 4096", Format::Vhdx, false, 1, 4096),
];

impl Lab {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        KINDS.into_iter().map(|(name, ..)| Self::named(name))
    }

    pub(crate) fn named(name: &str) -> Self {
        let (name, format, base_fixed, count, sector) = *KINDS.iter().find(|kind| kind.0 == name).unwrap();
        let block_size = 1 << 20;
        let write = |offset: u64, len: u64, seed| Edit::Write { offset, len, seed };
        let base = vec![write(0, MIB, 1), write(2 * MIB + 4096, 8192, 2), write(5 * MIB, MIB, 3)];
        let child = vec![
            write(4096, 4096, 4),
            write(MIB, MIB, 5),
            Edit::Zero { offset: 2 * MIB, len: MIB },
            write(4 * MIB + 65536, 12288, 6),
            write(5 * MIB + 4096, 4096, 7),
        ];
        let mut layers = vec![LayerSpec { size: SIZE, block_size, edits: base }];
        if count > 1 {
            layers.push(LayerSpec { size: SIZE, block_size, edits: child });
        }
        let spec = ChainSpec { format, sector, base_fixed, layers };
        let mut built = chains::build(&spec, |_| Arc::new(MemoryStorage::new()));
        let leaf = built.storages.remove(0);
        let mut bytes = vec![0; leaf.len().unwrap() as usize];
        leaf.read_exact_at(&mut bytes, 0).unwrap();
        let leaf = MemoryStorage::from_bytes(&bytes);
        Self { name, leaf, parents: built.storages, model: built.views.remove(0), sector, bad: Vec::new() }
    }

    /// The same image over another medium.
    pub(crate) fn copy(&self) -> Self {
        let leaf = MemoryStorage::from_bytes(&self.leaf.to_bytes().unwrap());
        let (parents, model) = (self.parents.clone(), self.model.clone());
        Self { name: self.name, leaf, parents, model, sector: self.sector, bad: Vec::new() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.leaf.len().unwrap()
    }

    /// Where the sector bitmap lies, which all blocks of a differencing VHDX of this size share.
    pub(crate) fn bitmap_of_chunk(&self) -> Option<u64> {
        let mut entry = [0; 8];
        // The table lies at 3 MiB; the bitmap's entry follows those of 4096 blocks of 1 MiB with sectors of 512 bytes.
        (self.name == "VHDX differencing").then(|| self.leaf.read_exact_at(&mut entry, 3 * MIB + 8 * 4096).unwrap());
        Some(u64::from_le_bytes(entry) & !(MIB - 1)).filter(|place| *place > 0)
    }

    pub(crate) fn leaf_is_bad_at(&mut self, range: Range<u64>) {
        self.bad.push(range);
    }

    fn medium(&self) -> Arc<dyn Storage> {
        Arc::new(Medium { file: self.leaf.to_bytes().unwrap(), bad: self.bad.clone() })
    }

    /// # Errors
    /// Those of opening the leaf.
    pub(crate) fn try_layers(&self) -> vhdkit::Result<Vec<Layer>> {
        let parents = self.parents.len() + 1;
        let mut layers = vec![Layer::open_damaged(&self.medium())?.named(chains::name(parents))];
        for (index, parent) in self.parents.iter().enumerate() {
            let name = chains::name(parents - 1 - index);
            layers.push(Layer::open_damaged(parent).unwrap().named(name));
        }
        Ok(layers)
    }

    pub(crate) fn layers(&self) -> Vec<Layer> {
        self.try_layers().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub(crate) fn rescue(&self, path: &Path, options: &RescueOptions) -> vhdkit::Result<RescueReport> {
        rescue_layers(&self.try_layers()?, path, options, &Watch::none())
    }

    /// What of the disk lies in the leaf's file, by the map of the sound image.
    pub(crate) fn data(&self) -> Vec<Run> {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&self.leaf.to_bytes().unwrap()));
        let mut storages = vec![storage];
        storages.extend(self.parents.iter().cloned());
        let chain = chains::open(&storages, Access::Read).unwrap();
        let pieces = chain.pieces(0..SIZE).map(Result::unwrap);
        let own = |piece: vhdkit::chain::Piece| match piece.owner {
            Owner::Layer { index: 0, at } => Some(Run { offset: piece.offset, len: piece.len, place: at.get() }),
            _ => None,
        };
        pieces.filter_map(own).collect()
    }
}

pub(crate) fn ranges(report: &RescueReport) -> Vec<(u64, u64)> {
    report.lost.iter().map(|lost| (lost.offset, lost.length)).collect()
}

/// Rescues `lab` to raw and checks every byte: the model's, or the pattern where the map says that it is lost.
pub(crate) fn rescued(lab: &Lab, fill: &[u8]) -> (RescueReport, Vec<u8>) {
    try_rescued(lab, fill).unwrap_or_else(|error| panic!("{}: {error}", lab.name))
}

/// # Errors
/// Those of the rescue.
pub(crate) fn try_rescued(lab: &Lab, fill: &[u8]) -> vhdkit::Result<(RescueReport, Vec<u8>)> {
    // In memory where there is such a place: thousands of syncs are not what is tested.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = folder.path().join("out.raw");
    let report = lab.rescue(&path, &RescueOptions::new(Format::Raw).fill(fill))?;
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), lab.model.len(), "{}", lab.name);
    let mut expected = lab.model.clone();
    let mut end = 0;
    for lost in &report.lost {
        assert!(lost.offset >= end && lost.length > 0 && !lost.error.is_empty(), "{}: {lost:?}", lab.name);
        end = lost.offset + lost.length;
        for at in lost.offset..end {
            expected[at as usize] = if fill.is_empty() { 0 } else { fill[at as usize % fill.len()] };
        }
    }
    assert_eq!(report.lost_bytes, report.lost.iter().map(|lost| lost.length).sum::<u64>());
    let differs = bytes.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{}: another byte than the model's, and not lost; lost {:?}", lab.name, ranges(&report));
    Ok((report, bytes))
}
