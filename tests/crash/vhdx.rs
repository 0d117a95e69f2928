//! VHDX: whatever survives of a session, the file opens without repair, and each sector shows what it held at some moment
//! since the last one that was promised to be durable.

use std::ops::Range;
use std::sync::Arc;
use vhdkit::storage::sim::{CrashState, ExploreOptions, SimDisk, SimFailure, SimFault, SimFile};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{
    BlockMap, BlockSink, Content, DiskKind, Findings, GrowAs, Guid, ImageId, NewParent, ParentPaths, Source, Want,
};

const MIB: u64 = 1 << 20;
const FILE: &str = "disk.vhdx";
/// The disks are compared in steps of this, the unit the simulator tears at.
const SECTOR: usize = 512;

/// What a test looks at: bytes of the disk (the parent's where they are not the image's own), and what names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    size: u64,
    probes: Vec<Vec<u8>>,
    id: ImageId,
    disk_id: Guid,
    linkage2: Option<Guid>,
    parents: Vec<ImageId>,
    path: Option<String>,
}

/// The state after one action, and the crash points between which it comes true.
struct Moment {
    started: usize,
    durable: usize,
    shown: Shown,
}

/// An image that is written to, and what it showed at each moment.
struct Session {
    disk: SimDisk,
    image: Option<Vhdx>,
    /// The ranges of the disk that are looked at.
    probes: Vec<Range<u64>>,
    moments: Vec<Moment>,
}

fn parent_byte(at: u64) -> u8 {
    (at / 512 % 200) as u8 | 1
}

fn bytes_of(image: &Vhdx, range: Range<u64>) -> Result<Vec<u8>, String> {
    let end = range.end.min(image.virtual_size());
    let mut bytes = vec![0; end.saturating_sub(range.start) as usize];
    let mut at = range.start;
    while at < end {
        let extent = image.extent_at(at, end - at).map_err(|error| error.to_string())?;
        let part = &mut bytes[(at - range.start) as usize..][..extent.len as usize];
        match extent.source {
            Source::Data(from) => {
                image.storage().read_exact_at(part, from.get()).map_err(|error| error.to_string())?;
            }
            Source::Zero => {}
            Source::Absent => {
                let sectors = part.chunks_mut(SECTOR).zip((at..).step_by(SECTOR));
                sectors.for_each(|(sector, at)| sector.fill(parent_byte(at)));
            }
        }
        at += extent.len;
    }
    Ok(bytes)
}

fn shown(image: &Vhdx, probes: &[Range<u64>]) -> Result<Shown, String> {
    let link = image.parent_link();
    Ok(Shown {
        size: image.virtual_size(),
        probes: probes.iter().map(|range| bytes_of(image, range.clone())).collect::<Result<_, _>>()?,
        id: image.id(),
        disk_id: image.disk_id(),
        linkage2: image.linkage2(),
        parents: link.iter().flat_map(|link| link.ids.clone()).collect(),
        path: link.map(|link| link.hints[0].path.clone()),
    })
}

fn options(kind: DiskKind, size: u64) -> VhdxCreate {
    let options = VhdxCreate::new(size).kind(kind).block_size(MIB as u32);
    if kind == DiskKind::Differencing { options.parent(parent(7, ".\\first.vhdx")) } else { options }
}

fn parent(id: u128, path: &str) -> NewParent {
    let paths = ParentPaths { relative: Some(path.into()), absolute: None };
    NewParent { id: ImageId::Vhdx(Guid::from_u128(id)), paths, timestamp: 0 }
}

fn data(start: u64, end: u64) -> Want {
    Want { range: start..end, content: Content::Data }
}

fn zero(start: u64, end: u64) -> Want {
    Want { range: start..end, content: Content::Zero }
}

fn open(file: &Arc<SimFile>, access: Access) -> Result<Vhdx, String> {
    let opened = Vhdx::open(Arc::clone(file) as _, access, &mut Findings::new());
    opened.map_err(|error| format!("open for {access:?}: {error:?}"))
}

impl Session {
    /// A new image, prepared by `prepare`, closed, durable, and opened again for writing.
    fn new(options: &VhdxCreate, prepare: impl FnOnce(&mut Vhdx)) -> Self {
        let memory = Arc::new(MemoryStorage::new());
        let mut image = Vhdx::create(Arc::clone(&memory) as _, options).unwrap();
        prepare(&mut image);
        let whole = 0..image.virtual_size().max(8 * MIB);
        image.close().unwrap();
        Self::over(&memory, Some(whole))
    }

    fn over(memory: &MemoryStorage, probes: impl IntoIterator<Item = Range<u64>>) -> Self {
        let probes: Vec<_> = probes.into_iter().collect();
        let disk = SimDisk::new();
        let image = open(&disk.import(FILE, memory).unwrap(), Access::Write).unwrap();
        let moment = Moment { started: 0, durable: 0, shown: shown(&image, &probes).unwrap() };
        Self { disk, image: Some(image), probes, moments: vec![moment] }
    }

    /// One action. It is durable when it returns; on the way, what shows is from before or after.
    fn act(&mut self, action: impl FnOnce(&mut Vhdx)) {
        let started = self.disk.position();
        let image = self.image.as_mut().unwrap();
        action(image);
        let shown = shown(image, &self.probes).unwrap();
        self.moments.push(Moment { started, durable: self.disk.position(), shown });
    }

    fn write(&mut self, wants: &[Want], seed: u8) {
        self.act(|image| write(image, wants, seed));
    }

    /// Every crash state, those of the clean close included, opens both ways and shows what it may.
    fn explore(self) {
        let seed = crate::seed();
        let failure = self.find_failure(seed);
        assert!(failure.is_none(), "seed {seed}: {}", failure.unwrap());
    }

    fn find_failure(mut self, seed: u64) -> Option<String> {
        self.image.take().unwrap().close().unwrap();
        let options = ExploreOptions { samples_per_point: 6, exhaustive_limit: 4, ..ExploreOptions::seeded(seed) };
        let report = self.disk.explore(&options, |state| self.judge(state));
        assert!(report.first_failure.is_some() || report.states + report.repeated > 100, "too few states: {report:?}");
        report.first_failure.map(|failure| failure.to_string())
    }

    fn judge(&self, state: &CrashState<'_>) -> Result<(), String> {
        let disk = state.disk();
        let file = disk.file(FILE);
        let read = shown(&open(&file, Access::Read)?, &self.probes)?;
        if disk.counts().changes() > 0 {
            return Err("opening for reading changed the file".into());
        }
        self.allowed(state.point(), &read)?;
        let mut image = open(&file, Access::Write)?;
        if shown(&image, &self.probes)? != read {
            return Err("replay in the file and replay in memory differ".into());
        }
        // The file goes on as if nothing had happened.
        let last = image.virtual_size() - 512;
        let wants = [data(last, last + 512)];
        write(&mut image, &wants, 0x77);
        let want = Shown { id: image.id(), ..shown(&image, &self.probes)? };
        if bytes_of(&image, last..last + 512)? != painted(last..last + 512, 0x77) {
            return Err("writing after the crash went wrong".into());
        }
        image.close().map_err(|error| format!("closing: {error:?}"))?;
        let image = open(&file, Access::Read)?;
        if image.log_was_dirty() || shown(&image, &self.probes)? != want {
            return Err("closing after the crash went wrong".into());
        }
        Ok(())
    }

    /// Whether a reader after a crash at `point` may see `read`.
    fn allowed(&self, point: usize, read: &Shown) -> Result<(), String> {
        let oldest = self.moments.iter().rposition(|moment| moment.durable <= point).unwrap();
        let begun = |moment: &&Moment| moment.started < point || moment.durable <= point;
        let may: Vec<&Shown> = self.moments[oldest..].iter().take_while(begun).map(|moment| &moment.shown).collect();
        let any = |pick: &dyn Fn(&Shown) -> bool| may.iter().any(|shown| pick(shown));
        if !any(&|shown| shown.disk_id == read.disk_id && shown.size == read.size) {
            return Err(format!("a disk {} of {} bytes", read.disk_id, read.size));
        }
        let link = |shown: &Shown| (shown.linkage2, shown.parents.clone(), shown.path.clone());
        if !any(&|shown| link(shown) == link(read)) {
            return Err(format!("names {:?}", link(read)));
        }
        if !any(&|shown| shown.id == read.id) {
            return Err(format!("is {}", read.id));
        }
        for (probe, bytes) in read.probes.iter().enumerate() {
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                let range = index * SECTOR..index * SECTOR + sector.len();
                if !any(&|shown| shown.probes[probe].get(range.clone()) == Some(sector)) {
                    return Err(format!("sector {index} of probe {probe} shows {:02x?}, never held", &sector[..8]));
                }
            }
        }
        // Children tell a changed parent by its id.
        let first = &self.moments[0].shown;
        if read.id == first.id && (&read.probes, read.size, read.disk_id) != (&first.probes, first.size, first.disk_id)
        {
            return Err("the disk changed under its old id".into());
        }
        Ok(())
    }
}

/// Reserve, fill, sync, publish.
fn write(image: &mut Vhdx, wants: &[Want], seed: u8) {
    try_write(image, wants, seed).unwrap();
}

fn try_write(image: &mut Vhdx, wants: &[Want], seed: u8) -> vhdkit::Result<()> {
    let reservation = image.reserve(wants.to_vec())?;
    let failed = |error| vhdkit::Error::io("write", error);
    for place in reservation.places() {
        let bytes: Vec<u8> = match place.content {
            Content::Data => (place.offset..place.offset + place.len).map(|at| byte(at, seed)).collect(),
            Content::Zero => vec![0; place.len as usize],
        };
        image.storage().write_all_at(&bytes, place.at.get()).map_err(failed)?;
    }
    image.storage().sync().map_err(failed)?;
    image.publish(reservation)
}

fn byte(at: u64, seed: u8) -> u8 {
    (at / 512) as u8 ^ seed | 1
}

fn painted(range: Range<u64>, seed: u8) -> Vec<u8> {
    range.map(|at| byte(at, seed)).collect()
}

#[test]
fn writes_to_a_dynamic_disk() {
    let mut session = Session::new(&options(DiskKind::Dynamic, 4 * MIB), |image| write(image, &[data(0, MIB)], 1));
    session.write(&[data(0, 8192), data(MIB + 512, MIB + 4096), data(3 * MIB, 4 * MIB)], 2);
    session.write(&[data(4096, 12288), data(MIB, MIB + 1024)], 3);
    session.act(|image| image.flush().unwrap());
    session.write(&[data(2 * MIB, 2 * MIB + 512)], 4);
    session.explore();
}

#[test]
fn writes_to_a_fixed_disk() {
    let mut session = Session::new(&options(DiskKind::Fixed, 2 * MIB), |_| ());
    session.write(&[data(0, 8192), zero(MIB, MIB + 4096)], 2);
    session.write(&[data(4096, 12288)], 3);
    session.explore();
}

/// Absent to partial, more bits, the last bits, a whole block at once, a block of zeros in part.
#[test]
fn bits_of_a_child() {
    let mut session = Session::new(&options(DiskKind::Differencing, 4 * MIB), |_| ());
    session.write(&[data(512, 4096), data(MIB, 2 * MIB), zero(2 * MIB + 512, 2 * MIB + 4096)], 2);
    session.write(&[data(2048, 20480), data(2 * MIB + 1024, 2 * MIB + 2048)], 3);
    session.write(&[data(0, 512), data(20480, MIB)], 4);
    session.explore();
}

/// Freed space goes to other blocks and to bitmaps; nobody ever sees what it held.
#[test]
fn freed_space_is_given_out_again() {
    for kind in [DiskKind::Dynamic, DiskKind::Differencing] {
        let prepare = |image: &mut Vhdx| write(image, &[data(0, 2 * MIB)], 1);
        let mut session = Session::new(&options(kind, 5 * MIB), prepare);
        session.write(&[zero(0, MIB)], 0);
        session.write(&[data(2 * MIB + 512, 2 * MIB + 1024)], 2);
        session.write(&[zero(MIB, 2 * MIB), data(3 * MIB, 3 * MIB + 512)], 3);
        session.write(&[data(4096, 8192), zero(2 * MIB, 3 * MIB), data(4 * MIB, 4 * MIB + 512)], 4);
        session.explore();
    }
}

/// A reservation that was filled and never published, its space given to another.
#[test]
fn an_abandoned_reservation_shows_nothing() {
    let mut session = Session::new(&options(DiskKind::Differencing, 3 * MIB), |_| ());
    session.act(|image| {
        let reservation = image.reserve(vec![data(0, 4096), data(MIB, 2 * MIB)]).unwrap();
        for place in reservation.places() {
            image.storage().write_all_at(&vec![0xEE; place.len as usize], place.at.get()).unwrap();
        }
    });
    session.write(&[data(8192, 12288), data(2 * MIB, 2 * MIB + 512)], 2);
    session.explore();
}

#[test]
fn links_to_the_parent() {
    let mut session = Session::new(&options(DiskKind::Differencing, 2 * MIB), |image| write(image, &[data(0, 512)], 1));
    session.act(|image| image.set_linkage2(Some(Guid::from_u128(8))).unwrap());
    session.act(|image| image.set_parent(&parent(9, &format!(".\\{}.vhdx", "long".repeat(900)))).unwrap());
    session.act(|image| image.set_linkage2(Some(Guid::from_u128(10))).unwrap());
    session.act(|image| image.set_linkage2(None).unwrap());
    session.act(|image| image.set_parent(&parent(11, ".\\short.vhdx")).unwrap());
    session.explore();
}

#[test]
fn ids_and_disk_metadata() {
    let other = Vhdx::create(Arc::new(MemoryStorage::new()), &options(DiskKind::Dynamic, 2 * MIB)).unwrap();
    let mut session = Session::new(&options(DiskKind::Dynamic, 2 * MIB), |_| ());
    session.act(|image| image.set_data_write_guid(Guid::from_u128(5)).unwrap());
    session.act(|image| image.replace_disk_metadata_from(&other).unwrap());
    session.write(&[data(0, 512)], 2);
    session.explore();
}

#[test]
fn a_disk_grows_and_shrinks() {
    for kind in [DiskKind::Dynamic, DiskKind::Differencing, DiskKind::Fixed] {
        let prepare = |image: &mut Vhdx| write(image, &[data(0, 3 * MIB)], 1);
        let mut session = Session::new(&options(kind, 3 * MIB + 4096), prepare);
        session.act(|image| image.set_virtual_size(MIB + 512 * 5, GrowAs::Zero).unwrap());
        session.act(|image| image.set_virtual_size(2 * MIB + 512, GrowAs::Zero).unwrap());
        session.write(&[data(2 * MIB, 2 * MIB + 512)], 2);
        session.act(|image| image.set_virtual_size(4 * MIB, GrowAs::Parent).unwrap());
        session.explore();
    }
}

/// 1 MiB of table is the entries of 128 GiB: growing past that moves it.
#[test]
fn the_table_moves() {
    let memory = Arc::new(MemoryStorage::new());
    let size = 64 << 30;
    let mut image = Vhdx::create(Arc::clone(&memory) as _, &options(DiskKind::Differencing, size)).unwrap();
    write(&mut image, &[data(MIB, MIB + 1024), data(size - 512, size)], 1);
    image.close().unwrap();
    let end = 200 << 30;
    let mut session = Session::over(&memory, [0..2 * MIB, size - MIB..size + MIB, end - MIB..end]);
    session.act(|image| image.set_virtual_size(end, GrowAs::Parent).unwrap());
    session.write(&[data(end - 512, end)], 2);
    session.explore();
}

/// Replaying a log is itself cut short, at any point: the log is still there for the next one.
#[test]
fn a_crash_while_the_log_is_replayed() {
    let memory = Arc::new(MemoryStorage::new());
    let mut image = Vhdx::create(Arc::clone(&memory) as _, &options(DiskKind::Differencing, 3 * MIB)).unwrap();
    write(&mut image, &[data(0, 512)], 1);
    let reservation = image.reserve(vec![data(1024, 4096), data(2 * MIB, 3 * MIB)]).unwrap();
    let stale = memory.as_ref().clone();
    image.publish(reservation).unwrap();
    image.set_linkage2(Some(Guid::from_u128(8))).unwrap();
    // The log of after (at 1 MiB, 1 MiB long) over the pages of before.
    let mut log = vec![0; MIB as usize];
    memory.read_exact_at(&mut log, MIB).unwrap();
    stale.write_all_at(&log, MIB).unwrap();
    let session = Session::over(&stale, Some(0..3 * MIB));
    assert!(session.image.as_ref().unwrap().log_was_dirty());
    let first = &session.moments[0].shown;
    assert_eq!(first.linkage2, Some(Guid::from_u128(8)));
    assert!(first.probes[0][1024..4096] == [0; 3072] && first.probes[0][512] == parent_byte(512));
    session.explore();
}

/// A file without a log is given one before its first change.
#[test]
fn a_file_without_a_log_gets_one() {
    let memory = Arc::new(MemoryStorage::new());
    let mut image = Vhdx::create(Arc::clone(&memory) as _, &options(DiskKind::Dynamic, 2 * MIB)).unwrap();
    write(&mut image, &[data(0, 512)], 1);
    image.close().unwrap();
    for at in [64 << 10, 128 << 10] {
        let mut header = [0; 4096];
        memory.read_exact_at(&mut header, at).unwrap();
        // LogLength and LogOffset, and the checksum.
        header[68..80].fill(0);
        header[4..8].fill(0);
        let checksum = crc32c::crc32c(&header).to_le_bytes();
        header[4..8].copy_from_slice(&checksum);
        memory.write_all_at(&header, at).unwrap();
    }
    let before = memory.len().unwrap();
    let mut session = Session::over(&memory, Some(0..2 * MIB));
    session.write(&[data(512, 1024), data(MIB, MIB + 512)], 2);
    session.write(&[data(2048, 4096)], 3);
    assert!(session.disk.file(FILE).len().unwrap() > before);
    session.explore();
}

/// Each barrier on the way of a write is needed: without it the explorer finds a state that must not be.
#[test]
fn a_missing_barrier_is_found() {
    let session = || Session::new(&options(DiskKind::Differencing, 2 * MIB), |_| ());
    let run = |skip: Option<u64>| {
        let mut session = session();
        session.disk.drop_syncs(FILE, skip);
        session.write(&[data(512, 4096)], 2);
        session.find_failure(1)
    };
    assert!(run(None).is_some(), "no syncs at all");
    // The syncs of the first write: the first log entry, one header with its id and the new ones, the
    // caller's, the entry's.
    for (skip, what) in [(0, "log entry before its id"), (2, "bytes before the map"), (3, "log before the pages")] {
        assert!(run(Some(skip)).is_some(), "{what}");
    }
    assert_eq!(run(Some(1000)), None);
}

#[test]
fn a_publish_costs_one_sync_besides_the_callers() {
    let mut session = Session::new(&options(DiskKind::Differencing, 4 * MIB), |_| ());
    session.write(&[data(0, 512)], 1);
    for step in 1..20 {
        let before = session.disk.counts().syncs;
        session.write(&[data(step * 4096, step * 4096 + 512), data(2 * MIB + step * 512, 3 * MIB)], 2);
        assert_eq!(session.disk.counts().syncs - before, 2, "write {step}");
    }
}

/// Any operation may fail: the image takes no more writes, and the file shows what it may, as after a crash.
#[test]
fn a_failed_operation_is_as_a_crash() {
    let batches = [[data(512, MIB + 4096)], [zero(0, MIB)], [data(2 * MIB, 2 * MIB + 512)]];
    let session = || Session::new(&options(DiskKind::Differencing, 3 * MIB), |image| write(image, &[data(0, MIB)], 1));
    let mut good = session();
    for batch in &batches {
        good.write(batch, 2);
    }
    let shows: Vec<Vec<Vec<u8>>> = good.moments.iter().map(|moment| moment.shown.probes.clone()).collect();
    for failure in [SimFailure::Io, SimFailure::NoSpace] {
        let mut failed = 0;
        for skip in 0.. {
            let mut session = session();
            session.disk.inject(SimFault::nth(skip, failure));
            let image = session.image.as_mut().unwrap();
            let Some(step) = batches.iter().position(|batch| try_write(image, batch, 2).is_err()) else { break };
            assert!(try_write(image, &[data(0, 512)], 3).is_err(), "operation {skip}: writes go on after a failure");
            drop(session.image.take());
            let file = session.disk.file(FILE);
            let read = shown(&open(&file, Access::Read).unwrap(), &session.probes).unwrap();
            for (index, sector) in read.probes[0].chunks(SECTOR).enumerate() {
                let range = index * SECTOR..index * SECTOR + sector.len();
                let held = |show: &Vec<Vec<u8>>| show[0].get(range.clone()) == Some(sector);
                assert!(shows[step..=step + 1].iter().any(held), "operation {skip}, sector {index}");
            }
            let image = open(&file, Access::Write).unwrap();
            assert_eq!(shown(&image, &session.probes).unwrap(), read);
            failed += 1;
        }
        assert!(failed > 15, "{failed} operations failed");
    }
}
