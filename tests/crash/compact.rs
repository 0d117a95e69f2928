//! Bug this finds: a compaction that for some subset of surviving writes shows other bytes, loses a child, makes a file
//! longer, or cannot be finished by running it again.

use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::ops::{CompactOptions, CompactReport, compact_chain};
use vhdkit::storage::sim::{ExploreOptions, ExploreReport, SimDisk, SimFailure, SimFault, SimOperation};
use vhdkit::storage::{Access, Storage};
use vhdkit::{Error, ErrorKind, Format, ImageId, Watch};

const MIB: u64 = 1 << 20;
const NAMES: [&str; 3] = ["0", "1", "2"];

/// An image to compact: the layer `target` (base = 0) of a chain.
struct Workload {
    name: &'static str,
    spec: ChainSpec,
    target: usize,
    /// Zeros written as data, in the target: offset and length.
    zeros: Vec<(u64, u64)>,
    /// The table of a VHD forgets its first block, so that its space belongs to nobody.
    leak: bool,
    /// The bytes of the disk that a file system in it says are free; none: file systems are not read.
    free: Option<Vec<(u64, u64)>>,
}

/// A machine before the compaction and what its layers show, leaf first.
struct Prepared {
    disk: SimDisk,
    views: Vec<Vec<u8>>,
    file_len: u64,
    id: ImageId,
}

impl Workload {
    fn options(&self) -> CompactOptions {
        CompactOptions::new().jobs(1).file_systems(self.free.is_some())
    }

    /// The files from layer `top` (base = 0) down.
    fn files(&self, disk: &SimDisk, top: usize) -> Vec<Arc<dyn Storage>> {
        (0..=top).rev().map(|index| disk.file(NAMES[index]) as Arc<dyn Storage>).collect()
    }

    fn prepare(&self, spoil: impl Fn(&SimDisk)) -> Prepared {
        let disk = SimDisk::new();
        let built = chains::build(&self.spec, |index| disk.file(NAMES[index]));
        let mut views = built.views;
        let top = self.spec.layers.len() - 1;
        if !self.zeros.is_empty() {
            assert_eq!(self.target, top, "only a leaf is written to");
            let mut chain = chains::open(&self.files(&disk, top), Access::Write).unwrap();
            for &(offset, len) in &self.zeros {
                chain.write_at(&vec![0; len as usize], offset).unwrap();
                views[0][offset as usize..][..len as usize].fill(0);
            }
            chain.close().unwrap();
        }
        if self.free.is_some() {
            let mut chain = chains::open(&self.files(&disk, top), Access::Write).unwrap();
            let system = fat16(self.spec.layers[top].size);
            chain.write_at(&system, 0).unwrap();
            views[0][..system.len()].copy_from_slice(&system);
            chain.close().unwrap();
        }
        if self.leak {
            let file = disk.file(NAMES[top]);
            let mut table = [0; 8];
            file.read_exact_at(&mut table, 512 + 16).unwrap();
            file.write_all_at(&[0xFF; 4], u64::from_be_bytes(table)).unwrap();
            let block = self.spec.layers[top].block_size as usize;
            let (above, below) = views.split_at_mut(1);
            above[0][..block].copy_from_slice(&below[0][..block]);
        }
        disk.checkpoint();
        spoil(&disk);
        let file = disk.file(NAMES[self.target]);
        let id = Layer::open(Arc::clone(&file) as _, Access::Read).unwrap().image().id().unwrap();
        Prepared { file_len: file.len().unwrap(), disk, views, id }
    }

    fn compact(&self, disk: &SimDisk) -> Result<CompactReport, Error> {
        let mut chain = chains::open(&self.files(disk, self.target), Access::Read)?;
        let report = compact_chain(&mut chain, &self.options(), &Watch::none())?;
        chain.close()?;
        Ok(report)
    }

    /// Every layer shows what it showed; free space may read as zeros, block by block.
    fn check(&self, disk: &SimDisk, before: &Prepared) -> Result<(), String> {
        for (index, view) in before.views.iter().rev().enumerate().skip(self.target) {
            let files = self.files(disk, index);
            let chain = chains::open(&files, Access::Read).map_err(|error| format!("layer {index}: {error}"))?;
            let bytes = bytes_of(&chain)?;
            let block = self.spec.layers[index].block_size as usize;
            for (number, (found, wanted)) in bytes.chunks(block).zip(view.chunks(block)).enumerate() {
                let start = (number * block) as u64;
                let free = self.free.iter().flatten().any(|&(at, len)| at <= start && start + block as u64 <= at + len);
                if found != wanted && !(free && found.iter().all(|&byte| byte == 0)) {
                    let at = found.iter().zip(wanted).position(|(a, b)| a != b);
                    return Err(format!("layer {index}: block {number} differs at {at:?}"));
                }
            }
        }
        let file = disk.file(NAMES[self.target]);
        let layer = Layer::open(Arc::clone(&file) as _, Access::Read).map_err(|error| error.to_string())?;
        if self.free.is_none() && layer.image().id() != Some(before.id) {
            return Err("another identity, though nothing changed".to_owned());
        }
        let len = file.len().unwrap();
        if len > before.file_len { Err(format!("{len} bytes, {} before", before.file_len)) } else { Ok(()) }
    }

    fn explore(&self, options: &ExploreOptions, spoil: impl Fn(&SimDisk)) -> (ExploreReport, CompactReport) {
        let before = self.prepare(spoil);
        let done = self.compact(&before.disk).unwrap();
        let file_len = before.disk.file(NAMES[self.target]).len().unwrap();
        assert_eq!(done.after.file_size, file_len, "{}", self.name);
        let report = before.disk.explore(options, |state| {
            self.check(&state.disk(), &before).map_err(|error| format!("before the rerun: {error}"))?;
            let disk = state.disk();
            self.compact(&disk).map_err(|error| format!("the rerun: {error:?}"))?;
            self.check(&disk, &before).map_err(|error| format!("after the rerun: {error}"))?;
            let len = disk.file(NAMES[self.target]).len().unwrap();
            if len == file_len {
                Ok(())
            } else {
                Err(format!("{len} bytes after the rerun, {file_len} without a crash"))
            }
        });
        (report, done)
    }
}

fn bytes_of(chain: &Chain) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0xEE; chain.virtual_size() as usize];
    chain.read_at(&mut bytes, 0).map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn write(offset: u64, len: u64, seed: u8) -> Edit {
    Edit::Write { offset, len, seed }
}

fn spec(format: Format, size: u64, block_size: u32, layers: Vec<Vec<Edit>>) -> ChainSpec {
    let layers = layers.into_iter().map(|edits| LayerSpec { size, block_size, edits }).collect();
    ChainSpec { format, sector: 512, base_fixed: false, layers }
}

/// Blocks in another order than on the disk, some of zeros, a child over them.
fn vhd_base() -> Workload {
    let k = 1 << 10;
    let base = vec![
        write(72 * k, 8 * k, 1),
        write(0, 40 * k, 2),
        write(48 * k, 9 * k, 3),
        Edit::Zero { offset: 8 * k, len: 16 * k },
    ];
    let child = vec![write(9 * k, 2000, 4)];
    let spec = spec(Format::Vhd, 80 * k, 8192, vec![base, child]);
    Workload { name: "VHD under a child", spec, target: 0, zeros: Vec::new(), leak: false, free: None }
}

/// A child whose blocks without a sector of their own go, and whose blocks of zeros stay.
fn vhd_child() -> Workload {
    let k = 1 << 10;
    let child = vec![write(0, 8 * k, 2), write(24 * k, 9000, 3), write(72 * k, 512, 4)];
    let spec = spec(Format::Vhd, 80 * k, 8192, vec![vec![write(0, 80 * k, 1)], child]);
    Workload { name: "VHD child", spec, target: 1, zeros: vec![(24 * k, 8 * k)], leak: true, free: None }
}

fn vhdx_base() -> Workload {
    let base = vec![
        write(5 * MIB, MIB, 1),
        write(0, 3 * MIB, 2),
        write(3 * MIB, 9000, 3),
        Edit::Zero { offset: 0, len: 2 * MIB },
    ];
    let spec = spec(Format::Vhdx, 6 * MIB, MIB as u32, vec![base, vec![write(4 * MIB, 512, 4)]]);
    Workload { name: "VHDX under a child", spec, target: 0, zeros: Vec::new(), leak: false, free: None }
}

/// Whole and partial blocks, a sector bitmap behind blocks that go, zeros over a parent that holds something.
fn vhdx_child() -> Workload {
    let child = vec![
        write(0, 2 * MIB, 2),
        write(2 * MIB + 512, 1024, 3),
        write(4 * MIB, 512, 4),
        Edit::Zero { offset: 0, len: MIB },
    ];
    let spec = spec(Format::Vhdx, 5 * MIB, MIB as u32, vec![vec![write(0, 5 * MIB, 1)], child]);
    Workload { name: "VHDX child", spec, target: 1, zeros: vec![(MIB, MIB)], leak: false, free: None }
}

/// A FAT16 file system with data in its free clusters.
fn with_file_system(format: Format) -> Workload {
    let (size, block) = if format == Format::Vhd { (5 * MIB, 256 << 10) } else { (8 * MIB, MIB) };
    // The file system is written over this later, all but its data.
    let spec = spec(format, size, block as u32, vec![vec![write(0, size, 7)]]);
    let free = vec![(FAT_USED_TO, size - FAT_USED_TO)];
    Workload {
        name: "a file system",
        spec,
        target: 0,
        zeros: vec![(size - block, block)],
        leak: false,
        free: Some(free),
    }
}

/// Where the free clusters of [`fat16`] start.
const FAT_USED_TO: u64 = 512 << 10;

/// The boot sector and tables of a FAT16 file system of clusters of 1 KiB, of which those that end by [`FAT_USED_TO`] are
/// in use; after Microsoft's description of the format.
fn fat16(size: u64) -> Vec<u8> {
    let (sectors, table, roots) = (size / 512, 48u64, 16u64);
    let data = 1 + 2 * table + roots * 32 / 512;
    let mut bytes = vec![0; (data * 512) as usize];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &[0xEB, 0x3C, 0x90]);
    put(11, &[0, 2, 2, 1, 0, 2, roots as u8, 0]);
    put(19, &(sectors as u16).to_le_bytes());
    put(21, &[0xF8, table as u8, 0]);
    put(54, b"FAT16   ");
    put(510, &[0x55, 0xAA]);
    let used = (FAT_USED_TO / 512 - data).div_ceil(2);
    for copy in 0..2 {
        let at = |cluster: u64| ((1 + copy * table) * 512 + cluster * 2) as usize;
        put(at(0), &[0xF8, 0xFF, 0xFF, 0xFF]);
        (2..used + 2).for_each(|cluster| put(at(cluster), &[0xFF, 0xFF]));
    }
    bytes
}

fn thorough() -> ExploreOptions {
    ExploreOptions { samples_per_point: 8, exhaustive_limit: 5, ..ExploreOptions::seeded(crate::seed()) }
}

fn run(workload: &Workload) -> CompactReport {
    let (report, done) = workload.explore(&thorough(), |_| {});
    let (name, format) = (workload.name, workload.spec.format);
    println!("compact {name} ({format}): {} crash states at {} points", report.states, report.points);
    report.assert_ok();
    assert!(report.points > 5 && done.after.file_size < done.before.file_size, "{name}: {done:?}");
    done
}

#[test]
fn vhd_compactions_survive_every_crash() {
    let done = run(&vhd_base());
    assert_eq!((done.freed.zero, done.after.blocks), (2, 6), "two blocks of zeros go");
    assert!(done.moved > 0);
    let done = run(&vhd_child());
    assert_eq!((done.freed.zero, done.after.blocks), (0, done.before.blocks), "zeros hide what lies below");
}

#[test]
fn vhdx_compactions_survive_every_crash() {
    let done = run(&vhdx_base());
    assert!(done.moved > 0);
    let done = run(&vhdx_child());
    assert_eq!(done.freed.zero, 1, "ZERO hides what lies below");
}

#[test]
fn free_space_of_a_file_system_reads_as_it_did_or_as_zeros() {
    for format in [Format::Vhd, Format::Vhdx] {
        let done = run(&with_file_system(format));
        assert_eq!(done.volumes[0].skipped, None);
        assert!(done.freed.file_system > 2 && done.freed.zero == 1, "{done:?}");
    }
}

/// Bug this finds: an explorer, or a workload, that would not notice a missing barrier.
#[test]
fn a_removed_barrier_of_a_compaction_is_noticed() {
    for workload in [vhd_base(), vhdx_base()] {
        let (report, _) = workload.explore(&thorough(), |disk| disk.drop_syncs(NAMES[0], None));
        assert!(report.first_failure.is_some(), "{}: no failure in {} states", workload.name, report.states);
    }
}

#[test]
fn a_compaction_over_a_failing_file_stops_and_a_rerun_finishes() {
    for workload in [vhd_base(), vhd_child(), vhdx_base(), vhdx_child(), with_file_system(Format::Vhdx)] {
        let whole = workload.prepare(|_| {});
        workload.compact(&whole.disk).unwrap();
        let wanted = whole.disk.file(NAMES[workload.target]).len().unwrap();
        let mut failures = 0;
        for (operation, failure) in [
            (SimOperation::Read, SimFailure::Io),
            (SimOperation::Write, SimFailure::Io),
            (SimOperation::Write, SimFailure::NoSpace),
            (SimOperation::Sync, SimFailure::Io),
        ] {
            for skip in (0..40).step_by(3) {
                let before = workload.prepare(|_| {});
                before.disk.inject(SimFault::nth(skip, failure).of(operation).on(NAMES[workload.target]));
                let when = format!("{}: {operation:?} {skip}", workload.name);
                let Err(error) = workload.compact(&before.disk) else { break };
                failures += 1;
                assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace), "{when}: {error}");
                assert_eq!(before.disk.changes_after_failure(), 0, "{when}: it wrote on");
                before.disk.clear_faults();
                workload.check(&before.disk, &before).unwrap_or_else(|error| panic!("{when}: {error}"));
                workload.compact(&before.disk).unwrap_or_else(|error| panic!("{when}: the rerun: {error:?}"));
                workload.check(&before.disk, &before).unwrap_or_else(|error| panic!("{when}: {error}"));
                assert_eq!(before.disk.file(NAMES[workload.target]).len().unwrap(), wanted, "{when}");
            }
        }
        assert!(failures > 6, "{}: only {failures} failures", workload.name);
    }
}
