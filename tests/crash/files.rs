//! The files of a simulated machine as others see them: the checkpoint store, the second reader, the rules.
//!
//! Owns: the way from simulated files to those. Must not know: workloads.

use crate::support::{Bytes, Report, SpecDisk};
use crate::view::Model;
use std::io;
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::ops::{CheckpointStore, repair_storage};
use vhdkit::storage::sim::{SimDisk, SimFile};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{Format, Severity};

/// The name of layer `index`, the base being 0.
pub(crate) fn name(index: usize) -> String {
    index.to_string()
}

/// A checkpoint overwritten in place: a crash can tear it, and it has to be recognised then.
#[derive(Debug)]
pub(crate) struct Place(pub(crate) Arc<SimFile>);

fn answer<T>(result: io::Result<T>) -> vhdkit::Result<T> {
    result.map_err(|error| vhdkit::Error::io("keep the place", error))
}

impl CheckpointStore for Place {
    fn load(&self) -> vhdkit::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; answer(self.0.len())? as usize];
        answer(self.0.read_exact_at(&mut bytes, 0))?;
        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    fn save(&self, bytes: &[u8]) -> vhdkit::Result<()> {
        answer(self.0.write_all_at(bytes, 0))?;
        answer(self.0.set_len(bytes.len() as u64))?;
        answer(self.0.sync())
    }

    fn clear(&self) -> vhdkit::Result<()> {
        answer(self.0.set_len(0))?;
        answer(self.0.sync())
    }
}

/// Opens a file as the next writer of ours does, which mends what a crash left.
pub(crate) fn mend(file: Arc<dyn Storage>) -> Result<(), String> {
    let layer = Layer::open(file, Access::Recover).map_err(|error| format!("mending: {error}"))?;
    Chain::from_layers(vec![layer]).map_or(Ok(()), Chain::close).map_err(|error| format!("mending: {error}"))
}

/// Repairs a file as `vhdkit repair` does. After that nothing stands in the way of writing to it.
pub(crate) fn repair(file: Arc<dyn Storage>) -> Result<(), String> {
    repair_storage(&file, &[]).map_err(|error| format!("repairing: {error}"))?;
    let layer = Layer::open(file, Access::Write).map_err(|error| format!("after the repair: {error}"))?;
    match layer.findings().list().iter().find(|finding| finding.severity > Severity::Warning) {
        Some(finding) => Err(format!("after the repair there is still {}", finding.problem)),
        None => Ok(()),
    }
}

/// A simulated file for the second reader, which knows nothing of this crate.
struct Foreign(MemoryStorage);

impl Bytes for Foreign {
    fn length(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// The rules of the format but for those named `except`, for a file that was closed cleanly.
pub(crate) fn check_rules(format: Format, disk: &SimDisk, (name, except): (&str, &[&str])) -> Result<(), String> {
    let file = Foreign(disk.file(name).contents());
    let report = if format == Format::Vhd { Report::vhd(&file) } else { Report::vhdx(&file) };
    let issues = report.issues.iter().filter(|issue| !except.contains(&issue.rule));
    let broken: Vec<String> = issues.map(ToString::to_string).collect();
    if broken.is_empty() { Ok(()) } else { Err(format!("file {name} breaks rules: {}", broken.join("; "))) }
}

/// What the second reader makes of the chain `names`, leaf first.
pub(crate) fn check_reader(disk: &SimDisk, names: &[String], wanted: &Model) -> Result<(), String> {
    let files = names.iter().map(|name| Box::new(Foreign(disk.file(name).contents())) as Box<dyn Bytes>).collect();
    let chain = SpecDisk::from_bytes(files).map_err(|error| format!("the second reader: {error}"))?;
    let bytes = chain.read(0, chain.size() as usize).map_err(|error| format!("the second reader: {error}"))?;
    if Model::of(&bytes) == *wanted { Ok(()) } else { Err(format!("the second reader sees another disk in {names:?}")) }
}
