//! Making an image's file as short as what it holds.
//!
//! Owns: the order of a compaction (give up, move, cut), its refusals and its report. Must not know: how a format keeps or
//! moves a block (`pack`), how file systems keep their free space (`guest`).
//!
//! 1. Blocks that nobody reads, blocks of zeros and, when asked for, blocks that a guest's file system says are free give
//!    up their space. 2. What lies behind the end the file will have moves into gaps before it. 3. The file is cut. The
//!    file grows at no time, and nothing is written down about how far it got: running it again goes on.

mod scan;
#[cfg(feature = "fs")]
mod volumes;

#[cfg(feature = "fs")]
use super::children;
use crate::chain::{Chain, ChainOptions};
use crate::copy::{Copier, Meter, Move, Work};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image};
use crate::link::DiskKind;
use crate::pack::{Marks, Pack};
use crate::storage::Access;
use crate::units::MIB;
use crate::watch::Watch;
use std::path::Path;

/// Bytes moved between two syncs.
const MOVE_BATCH: u64 = 128 * MIB;

/// What [`compact`] gives up and how.
#[derive(Clone, Debug)]
pub struct CompactOptions {
    scan_zeros: bool,
    #[cfg(feature = "fs")]
    file_systems: bool,
    dry_run: bool,
    jobs: usize,
    open: ChainOptions,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self {
            scan_zeros: true,
            #[cfg(feature = "fs")]
            file_systems: false,
            dry_run: false,
            jobs: 0,
            open: ChainOptions::default(),
        }
    }
}

impl CompactOptions {
    /// Blocks of zeros and blocks that nobody reads; nothing that the disk shows changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Read every block and give up those of zeros (default true).
    #[must_use]
    pub fn scan_zeros(mut self, scan: bool) -> Self {
        self.scan_zeros = scan;
        self
    }

    /// Also give up blocks that hold nothing but free space of the guest's file systems (default false). They read as
    /// zeros afterwards: what deleted files left there is gone, and images that stand on this one no longer fit it.
    #[cfg(feature = "fs")]
    #[must_use]
    pub fn file_systems(mut self, read: bool) -> Self {
        self.file_systems = read;
        self
    }

    /// Only find out what would be done (default false).
    #[must_use]
    pub fn dry_run(mut self, dry: bool) -> Self {
        self.dry_run = dry;
        self
    }

    /// How many threads read and copy; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// How the file is opened, and where parents may come from; they are opened only to read file systems.
    #[must_use]
    pub fn open(mut self, open: ChainOptions) -> Self {
        self.open = open;
        self
    }

    fn reads_file_systems(&self) -> bool {
        #[cfg(feature = "fs")]
        return self.file_systems;
        #[cfg(not(feature = "fs"))]
        return false;
    }
}

/// What a file holds; bytes and blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CompactSize {
    /// The file's length.
    pub file_size: u64,
    /// Blocks with space in the file.
    pub blocks: u64,
}

/// Blocks that gave up their space, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CompactFreed {
    /// Blocks that nobody read: unmapped ones that kept their space, and those without a sector of their own.
    pub unmapped: u64,
    /// Blocks of zeros.
    pub zero: u64,
    /// Blocks with nothing but free space of file systems, which held something else than zeros.
    pub file_system: u64,
}

/// A volume of the guest, as its free space was read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CompactVolume {
    /// The number of its partition; none for a disk without a partition table.
    pub partition: Option<u32>,
    /// Where it starts on the disk, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Its file system.
    pub file_system: Option<&'static str>,
    /// Bytes its file system says are free.
    pub free: u64,
    /// Blocks of the image given up for it.
    pub blocks: u64,
    /// Why it was left alone.
    pub skipped: Option<String>,
}

/// What [`compact`] did, or would do.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct CompactReport {
    /// The format.
    pub format: Format,
    /// Dynamic or differencing.
    pub kind: DiskKind,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// The file before.
    pub before: CompactSize,
    /// The file after; of a dry run the length it would have at most.
    pub after: CompactSize,
    /// What gave up its space.
    pub freed: CompactFreed,
    /// Bytes copied to other places of the file.
    pub moved: u64,
    /// The guest's volumes, when file systems were read.
    pub volumes: Vec<CompactVolume>,
    /// What is odd about the guest's partition table.
    pub notes: Vec<String>,
}

/// Makes the file of the image at `path` as short as what it holds, in place.
///
/// What the disk shows stays, byte by byte, but for the free space of file systems when
/// [`file_systems`](CompactOptions::file_systems) are read. After an interruption, of whatever kind, the image shows the
/// same; running it again finishes the work. Children of the image stay valid unless such free space was given up.
///
/// A block of zeros in a differencing VHD stays: its format has no other way to say that it does not show the parent. For
/// the same reason free space of a file system gives up a block there only where no layer below holds anything.
///
/// # Errors
/// `Refused` for a fixed image, one with a saved state, or one that others stand on when its free space is to go; `InUse`;
/// `Corrupt` when the image has to be repaired first; what opening, reading and writing answer; `Cancelled`, and then
/// running it again goes on.
pub fn compact(path: impl AsRef<Path>, options: &CompactOptions, watch: &Watch<'_>) -> Result<CompactReport> {
    let path = path.as_ref();
    let access = if options.dry_run { Access::Read } else { Access::Write };
    let open = options.open.clone().access(access);
    let mut chain = if options.reads_file_systems() {
        Chain::open(path, &open)?
    } else {
        Chain::of_leaf(Chain::open_leaf(path, &open)?)
    };
    let report = run(&mut chain, options, watch).map_err(|error| error.with_path(path));
    let closed = chain.close();
    report.and_then(|report| closed.map(|()| report))
}

/// As [`compact`], of the leaf of a chain that is open already; it stays open. Parents that are not there are not missed.
///
/// # Errors
/// As [`compact`].
pub fn compact_chain(chain: &mut Chain, options: &CompactOptions, watch: &Watch<'_>) -> Result<CompactReport> {
    chain.reopen(0, if options.dry_run { Access::Read } else { Access::Write })?;
    run(chain, options, watch)
}

fn run(chain: &mut Chain, options: &CompactOptions, watch: &Watch<'_>) -> Result<CompactReport> {
    let leaf = chain.layer(0)?;
    require_blocks(leaf.image())?;
    let copier = Copier::new(options.jobs)?;
    // Reading is the first half of what a watcher sees, moving the second.
    let meter = Meter::new(watch, leaf.image().virtual_size());
    let mut report = CompactReport {
        format: leaf.image().format(),
        kind: leaf.image().kind(),
        virtual_size: leaf.image().virtual_size(),
        block_size: leaf.image().block_size().unwrap_or(0),
        dry_run: options.dry_run,
        before: CompactSize { file_size: leaf.file_size()?, blocks: 0 },
        after: CompactSize::default(),
        freed: CompactFreed::default(),
        moved: 0,
        volumes: Vec::new(),
        notes: Vec::new(),
    };
    let free = free_blocks(chain, options, &mut report)?;
    let layer = chain.layer_mut(0)?;
    let without =
        scan::give_up(layer.image_mut(), &copier, &meter, &mut scan::Job { options, free, report: &mut report })
            .map_err(again)?;
    let pack = pack_of(layer.image_mut())?;
    let packing = pack.packing(&without)?;
    report.after.file_size = packing.file_size;
    if !options.dry_run {
        shrink(layer.image_mut(), packing, &copier, &meter).map_err(again)?;
        report.after.file_size = layer.file_size()?;
    }
    meter.reached(report.virtual_size);
    let freed = report.freed.unmapped + report.freed.zero + report.freed.file_system;
    report.after.blocks = report.before.blocks - freed;
    report.moved = meter.moved();
    Ok(report)
}

/// Moves what lies behind the end the file will have, and cuts the file.
fn shrink(image: &mut Image, mut packing: crate::pack::Packing, copier: &Copier, meter: &Meter<'_>) -> Result<()> {
    loop {
        meter.check()?;
        let moves = pack_of(image)?.next_moves(&mut packing, MOVE_BATCH)?;
        if moves.is_empty() {
            return pack_of(image)?.cut();
        }
        let storage = image.map().storage();
        let moves_of = |one: &crate::pack::Relocation| {
            let (from, to) = (one.from.get(), one.to.get());
            Move { source: storage, from, to, len: one.len, near: false }
        };
        let work = moves.iter().map(moves_of).collect();
        let work = Work { target: storage, moves: work, zeros: Vec::new(), target_is_zero: false };
        copier.run(work, meter)?;
        // The bytes are durable in their new places before any map says so.
        storage.sync().map_err(|error| Error::io("sync moved blocks", error))?;
        pack_of(image)?.moved(&moves)?;
    }
}

fn pack_of(image: &mut Image) -> Result<&mut dyn Pack> {
    image.pack().ok_or_else(|| Error::new(ErrorKind::Refused, "the image has no blocks to give up"))
}

/// Only an image with blocks can be shorter than its disk.
fn require_blocks(image: &Image) -> Result<()> {
    let refused = |message: &str, hint: &str| Err(Error::new(ErrorKind::Refused, message).with_hint(hint));
    match image {
        Image::Raw(_) => refused("a raw image has no blocks to give up", "convert it to a VHDX or a VHD instead"),
        _ if image.kind() == DiskKind::Fixed => {
            refused("a fixed image holds all of its disk by definition", "convert it to a dynamic image instead")
        }
        Image::Vhd(vhd) if vhd.saved_state() => refused(
            "a saved state of a virtual machine depends on the image",
            "start the machine, shut it down and try again",
        ),
        _ => Ok(()),
    }
}

/// Says that the operation can be run again.
fn again(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Cancelled | ErrorKind::Io | ErrorKind::NoSpace => {
            error.with_hint("the disk shows what it showed; run the same compaction again to finish it")
        }
        _ => error,
    }
}

/// The blocks that a guest's file systems say are free.
#[cfg(feature = "fs")]
fn free_blocks(chain: &mut Chain, options: &CompactOptions, report: &mut CompactReport) -> Result<Marks> {
    if !options.file_systems {
        return Ok(Marks::default());
    }
    let free = volumes::free_blocks(chain, report)?;
    if free.count_from(0) > 0 && scan::meets(chain.layer_mut(0)?.image_mut(), &free)? {
        require_no_children(chain)?;
    }
    Ok(free)
}

#[cfg(not(feature = "fs"))]
fn free_blocks(_: &mut Chain, _: &CompactOptions, _: &mut CompactReport) -> Result<Marks> {
    Ok(Marks::default())
}

/// Nobody may stand on an image whose contents change, be it free space: a child's file system may use what is free here.
#[cfg(feature = "fs")]
fn require_no_children(chain: &Chain) -> Result<()> {
    let leaf = chain.leaf();
    let (Some(path), Some(id)) = (leaf.path(), leaf.image().id()) else { return Ok(()) };
    let own = std::fs::canonicalize(path).into_iter().collect();
    match children::find(&[id], &own, &[])?.first() {
        None => Ok(()),
        Some(child) => {
            let message = format!("{} stands on this image, whose free space would read as zeros", child.display());
            Err(Error::new(ErrorKind::Refused, message)
                .with_hint("leave file systems alone (--no-fs): what the disk shows then stays as it is"))
        }
    }
}
