//! Every state a crash can leave, of every change.

use super::{data, new_parent};
use crate::error::Result;
use crate::finding::{Findings, Severity};
use crate::link::{DiskKind, GrowAs, ImageId, NewParent, ParentPaths};
use crate::map::{BlockMap, BlockSink, Content, Want};
use crate::storage::sim::{CrashState, ExploreOptions, SimDisk, SimFailure, SimFault};
use crate::storage::{Access, Storage};
use crate::support::Report;
use crate::vhd::{Vhd, VhdCreate};

const FILE: &str = "a.vhd";
const SEED: u64 = 0x5EED_0001;

/// What a reader sees, and who it thinks it reads.
#[derive(Clone, Debug)]
struct View {
    bytes: Vec<u8>,
    id: ImageId,
    link: Option<crate::link::ParentLink>,
}

/// What was promised when.
struct Stage {
    position: usize,
    view: View,
}

type Step = fn(&mut Vhd) -> Result<()>;

fn parent_of(vhd: &Vhd) -> Option<Vhd> {
    (vhd.kind() == DiskKind::Differencing).then(|| {
        let options = VhdCreate::new(3 << 20).kind(DiskKind::Fixed);
        let (_, fixed) = super::create(&options);
        let pattern: Vec<u8> = (0..(3 << 20) / 512u32).flat_map(|sector| [0x80 | (sector % 100) as u8; 512]).collect();
        fixed.storage().write_all_at(&pattern, 0).unwrap();
        fixed
    })
}

thread_local! {
    static PARENT: Option<Vhd> = parent_of(&super::create(&VhdCreate::new(512).parent(new_parent())).1);
}

fn view(vhd: &Vhd) -> View {
    try_view(vhd).unwrap()
}

fn try_view(vhd: &Vhd) -> Result<View, String> {
    let bytes = PARENT.with(|parent| {
        let layers = if vhd.kind() == DiskKind::Differencing { vec![vhd, parent.as_ref().unwrap()] } else { vec![vhd] };
        super::read(&layers, 0..vhd.virtual_size())
    });
    let bytes = bytes.map_err(|error| format!("cannot be read: {error}"))?;
    Ok(View { bytes, id: vhd.id(), link: vhd.parent_link() })
}

fn open(disk: &SimDisk, access: Access) -> (Result<Vhd>, Findings) {
    let mut findings = Findings::new();
    (Vhd::open(disk.file(FILE), access, &mut findings), findings)
}

/// Whether `seen` is a mixture of `old` and `new`, sector by sector, of the size of one of them.
fn between(seen: &View, old: &View, new: &View) -> Result<(), String> {
    if seen.bytes.len() != old.bytes.len() && seen.bytes.len() != new.bytes.len() {
        return Err(format!("{} bytes, not {} or {}", seen.bytes.len(), old.bytes.len(), new.bytes.len()));
    }
    for (sector, bytes) in seen.bytes.chunks(512).enumerate() {
        let at = sector * 512..sector * 512 + 512;
        let is = |view: &View| view.bytes.get(at.clone()) == Some(bytes);
        if !is(old) && !is(new) {
            let bytes = |view: &View| view.bytes.get(at.start).copied();
            return Err(format!(
                "sector {sector} holds {:#x}, not {:x?} or {:x?}",
                bytes(seen).unwrap(),
                bytes(old),
                bytes(new)
            ));
        }
    }
    if seen.id != old.id && seen.id != new.id || seen.link != old.link && seen.link != new.link {
        return Err(format!("{:?} under {:?}", seen.id, seen.link));
    }
    Ok(())
}

/// Opens what a crash left, for reading and for writing, and goes on writing.
fn judge(state: &CrashState<'_>, stages: &[Stage]) -> Result<(), String> {
    let reached = stages.iter().rposition(|stage| stage.position <= state.point());
    let next = &stages[(reached.map_or(0, |at| at + 1)).min(stages.len() - 1)].view;
    let (read, _) = open(&state.disk(), Access::Read);
    let Some(reached) = reached else {
        // Nothing was promised yet: a file that is not an image, or a whole new one.
        return read.map_or(Ok(()), |vhd| try_view(&vhd).and_then(|seen| between(&seen, next, next)));
    };
    let old = &stages[reached].view;
    let seen = try_view(&read.map_err(|error| format!("does not open for reading: {error}"))?)?;
    between(&seen, old, next)?;
    let disk = state.disk();
    let recovered = open(&disk, Access::Recover).0.map_err(|error| format!("does not recover: {error}"))?;
    between(&try_view(&recovered)?, &seen, &seen).map_err(|error| format!("recovery changed the disk: {error}"))?;
    drop(recovered);
    let (vhd, findings) = open(&disk, Access::Write);
    let mut vhd = vhd.map_err(|error| format!("does not open for writing after recovery: {error}"))?;
    if let Some(finding) = findings.list().iter().find(|finding| finding.severity != Severity::Warning) {
        return Err(format!("after recovery there is still {}", finding.problem));
    }
    // Going on must not bring back, or run into, what the interrupted change left.
    let mut expected = seen;
    let last = expected.bytes.len() as u64 / 512 - 1;
    for sector in [last, 17.min(last)] {
        super::put(&mut vhd, vec![data(sector * 512..sector * 512 + 512)], |_| 0x77)
            .map_err(|e| format!("a write: {e}"))?;
        expected.bytes[sector as usize * 512..][..512].fill(0x77);
    }
    between(&try_view(&vhd)?, &expected, &expected).map_err(|error| format!("writing on: {error}"))?;
    let larger = expected.bytes.len() + 4608;
    vhd.set_virtual_size(larger as u64, GrowAs::Zero).map_err(|error| format!("growing on: {error}"))?;
    expected.bytes.resize(larger, 0);
    vhd.close().map_err(|error| format!("closing: {error}"))?;
    let vhd = open(&disk, Access::Read).0.map_err(|error| format!("after all: {error}"))?;
    between(&try_view(&vhd)?, &expected, &expected).map_err(|error| format!("growing on: {error}"))
}

/// Prepares with `before`, then records `steps`.
fn record(options: &VhdCreate, before: Step, steps: &[Step]) -> (SimDisk, Vec<Stage>) {
    let disk = SimDisk::new();
    let mut vhd = Vhd::create(disk.file(FILE), options).unwrap();
    before(&mut vhd).unwrap();
    vhd.flush().unwrap();
    disk.checkpoint();
    let mut stages = vec![Stage { position: 0, view: view(&vhd) }];
    for step in steps {
        step(&mut vhd).unwrap();
        stages.push(Stage { position: disk.position(), view: view(&vhd) });
    }
    vhd.close().unwrap();
    let last = stages.last().unwrap().view.clone();
    stages.push(Stage { position: disk.position(), view: last });
    (disk, stages)
}

fn explore(options: &VhdCreate, before: Step, steps: &[Step]) {
    let (disk, stages) = record(options, before, steps);
    let report = disk.explore(&ExploreOptions::seeded(SEED), |state| judge(state, &stages));
    report.assert_ok();
    assert!(report.states >= 4, "{report:?}");
    fail_everywhere(options, before, steps, &stages);
}

/// The same steps with the n-th change failing: nothing is written after it, and the file is as after a crash.
fn fail_everywhere(options: &VhdCreate, before: Step, steps: &[Step], stages: &[Stage]) {
    for (nth, failure) in (0..).flat_map(|nth| [(nth, SimFailure::Io), (nth, SimFailure::NoSpace)]) {
        let disk = SimDisk::new();
        let mut vhd = Vhd::create(disk.file(FILE), options).unwrap();
        before(&mut vhd).unwrap();
        vhd.flush().unwrap();
        disk.inject(SimFault::nth(nth, failure).seed(nth));
        let failed = steps.iter().position(|step| step(&mut vhd).is_err());
        let Some(failed) = failed else { return };
        disk.clear_faults();
        let changes = disk.counts().changes();
        assert!(vhd.flush().is_err() && vhd.set_unique_id([1; 16]).is_err(), "written on after a failure");
        assert_eq!(disk.counts().changes(), changes);
        drop(vhd);
        let (vhd, _) = open(&disk, Access::Recover);
        let vhd = vhd.unwrap_or_else(|error| panic!("change {nth} failed, then: {error}"));
        between(&view(&vhd), &stages[failed].view, &stages[failed + 1].view)
            .unwrap_or_else(|message| panic!("change {nth} failed, then: {message}"));
    }
}

fn put(vhd: &mut Vhd, wants: &[(u64, u64, Content)], byte: u8) -> Result<()> {
    let want = |&(start, len, content): &(u64, u64, Content)| Want { range: start * 512..(start + len) * 512, content };
    super::put(vhd, wants.iter().map(want).collect(), |_| byte)
}

use Content::{Data, Zero};

fn nothing(_: &mut Vhd) -> Result<()> {
    Ok(())
}

fn small(kind: DiskKind) -> VhdCreate {
    let options = VhdCreate::new(64 << 10).unique_id([2; 16]);
    match kind {
        DiskKind::Fixed => options.kind(kind),
        DiskKind::Dynamic => options.block_size(4096),
        DiskKind::Differencing => options.block_size(4096).parent(new_parent()),
    }
}

fn scattered(vhd: &mut Vhd) -> Result<()> {
    put(vhd, &[(3, 2, Data), (40, 1, Data), (120, 8, Data)], 0x11)
}

/// All sectors of the first three blocks and of the last.
fn full(vhd: &mut Vhd) -> Result<()> {
    let last = vhd.virtual_size() / 512;
    put(vhd, &[(0, 24, Data), (last.saturating_sub(12), 12.min(last), Data)], 0x11)
}

#[test]
fn creation() {
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        let disk = SimDisk::new();
        let file = disk.file(FILE);
        disk.checkpoint();
        let vhd = Vhd::create(file, &small(kind)).unwrap();
        let stages = [Stage { position: disk.position(), view: view(&vhd) }];
        disk.explore(&ExploreOptions::seeded(SEED), |state| judge(state, &stages)).assert_ok();
    }
}

#[test]
fn allocation_and_bitmap_updates() {
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        explore(
            &small(kind),
            nothing,
            &[
                scattered,
                |vhd| put(vhd, &[(5, 1, Data), (8, 8, Data), (41, 30, Zero)], 0x22),
                |vhd| put(vhd, &[(0, 128, Data)], 0x33),
                |vhd| put(vhd, &[(2, 20, Zero), (100, 1, Data)], 0x44),
            ],
        );
    }
}

/// Space that was reserved and given up is used again, and its remains never show.
#[test]
fn given_up_reservations() {
    for kind in [DiskKind::Dynamic, DiskKind::Differencing] {
        explore(
            &small(kind),
            scattered,
            &[
                |vhd| {
                    let reservation = vhd.reserve(vec![data(8192..20480)])?;
                    for place in reservation.places() {
                        let failed = |error| crate::error::Error::io("write a test's bytes", error);
                        vhd.storage().write_all_at(&vec![0xEE; place.len as usize], place.at.get()).map_err(failed)?;
                    }
                    Ok(())
                },
                |vhd| put(vhd, &[(17, 1, Data), (60, 2, Data)], 0x22),
            ],
        );
    }
}

#[test]
fn growing_inside_the_table() {
    for grow in [GrowAs::Zero, GrowAs::ZeroBelow(70 << 10), GrowAs::Parent] {
        for kind in [DiskKind::Dynamic, DiskKind::Differencing] {
            let steps: [Step; 2] = match grow {
                GrowAs::Zero => [
                    |vhd| vhd.set_virtual_size((64 << 10) + 2560, GrowAs::Zero),
                    |vhd| vhd.set_virtual_size(90 << 10, GrowAs::Zero),
                ],
                GrowAs::ZeroBelow(_) => [
                    |vhd| vhd.set_virtual_size((64 << 10) + 2560, GrowAs::ZeroBelow(70 << 10)),
                    |vhd| vhd.set_virtual_size(90 << 10, GrowAs::ZeroBelow(70 << 10)),
                ],
                GrowAs::Parent => [
                    |vhd| vhd.set_virtual_size((64 << 10) + 2560, GrowAs::Parent),
                    |vhd| vhd.set_virtual_size(90 << 10, GrowAs::Parent),
                ],
            };
            explore(&small(kind), full, &steps);
        }
    }
}

/// A table that fills its sectors, with the next structure right behind it.
#[test]
fn growing_by_another_table() {
    let options = VhdCreate::new(512 << 10).unique_id([2; 16]).block_size(4096).parent(new_parent());
    explore(
        &options,
        full,
        &[
            |vhd| vhd.set_virtual_size((512 << 10) + 5120, GrowAs::Zero),
            |vhd| put(vhd, &[(700, 9, Data), (1030, 1, Data)], 0x22),
        ],
    );
    explore(&options, full, &[|vhd| vhd.set_virtual_size(530 << 10, GrowAs::Parent)]);
}

#[test]
fn shrinking_and_growing_again() {
    for kind in [DiskKind::Dynamic, DiskKind::Differencing] {
        explore(
            &small(kind),
            full,
            &[
                |vhd| vhd.set_virtual_size(61_952, GrowAs::Zero),
                |vhd| vhd.set_virtual_size(66 << 10, GrowAs::Zero),
                |vhd| vhd.set_virtual_size(1536, GrowAs::Zero),
                |vhd| put(vhd, &[(0, 3, Data)], 0x22),
                |vhd| vhd.set_virtual_size(20 << 10, GrowAs::Parent),
            ],
        );
    }
}

#[test]
fn fixed_disks_change_size() {
    explore(
        &small(DiskKind::Fixed).kind(DiskKind::Fixed),
        full,
        &[
            |vhd| vhd.set_virtual_size((64 << 10) + 512, GrowAs::Zero),
            |vhd| vhd.set_virtual_size(80 << 10, GrowAs::Zero),
            |vhd| put(vhd, &[(128, 2, Data), (159, 1, Data)], 0x22),
            |vhd| vhd.set_virtual_size(65 << 10, GrowAs::Zero),
            |vhd| vhd.set_virtual_size(512, GrowAs::Zero),
            |vhd| vhd.set_virtual_size(4096, GrowAs::Zero),
        ],
    );
}

#[test]
fn identity_and_parent() {
    fn relink(vhd: &mut Vhd, name: &str) -> Result<()> {
        let long = format!("C:\\{}\\{name}.vhd", "d".repeat(230));
        let paths = ParentPaths { relative: Some(format!(".\\{name}.vhd")), absolute: Some(long) };
        vhd.set_parent(&NewParent { id: ImageId::Vhd([name.len() as u8; 16]), paths, timestamp: 5 })
    }
    explore(
        &small(DiskKind::Differencing),
        full,
        &[
            |vhd| vhd.set_unique_id([8; 16]),
            |vhd| relink(vhd, "first"),
            |vhd| put(vhd, &[(60, 4, Data)], 0x22),
            |vhd| relink(vhd, "second one"),
            |vhd| relink(vhd, "third"),
        ],
    );
    explore(&small(DiskKind::Dynamic), full, &[|vhd| vhd.set_unique_id([8; 16])]);
    explore(&small(DiskKind::Fixed), full, &[|vhd| vhd.set_unique_id([8; 16])]);
}

/// Recovery itself can be interrupted.
#[test]
fn recovery_is_crash_safe_too() {
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        for damage in [0, 1, 2] {
            let disk = SimDisk::new();
            let mut vhd = Vhd::create(disk.file(FILE), &small(kind)).unwrap();
            full(&mut vhd).unwrap();
            let seen = view(&vhd);
            drop(vhd);
            let file = disk.file(FILE);
            let len = file.len().unwrap();
            match (kind, damage) {
                (DiskKind::Fixed, _) => file.set_len(len + 512 * damage + 5 * 4096 * damage).unwrap(),
                (_, 0) => file.set_len(len - 512).unwrap(),
                (_, 1) => file.write_all_at(&[0xAB; 20_000], len - 512).unwrap(),
                _ => file.write_all_at(&[0; 8], 0).unwrap(),
            }
            disk.checkpoint();
            open(&disk, Access::Recover).0.unwrap().close().unwrap();
            let stages = [Stage { position: 0, view: seen.clone() }, Stage { position: disk.position(), view: seen }];
            disk.explore(&ExploreOptions::seeded(SEED), |state| judge(state, &stages)).assert_ok();
        }
    }
}

/// Readers that know nothing of the copy find a footer: the last one is not written over before the next is durable.
#[test]
fn a_tail_footer_is_always_there() {
    let (disk, _) = record(
        &small(DiskKind::Dynamic),
        scattered,
        &[|vhd| put(vhd, &[(60, 4, Data), (70, 30, Data)], 0x22), |vhd| put(vhd, &[(17, 1, Data)], 0x33)],
    );
    let mut tails = std::collections::BTreeSet::new();
    let report = disk.explore(&ExploreOptions::seeded(SEED), |state| {
        let file = state.disk().file(FILE);
        let len = file.len().unwrap();
        let mut footer = [0; 8];
        let mut is_footer = |at| file.read_exact_at(&mut footer, at).is_ok() && &footer == b"conectix";
        if is_footer(len - 512) {
            tails.insert(len - 512);
            return Ok(());
        }
        let inside = tails.iter().any(|&at| is_footer(at));
        if inside { Ok(()) } else { Err("no footer behind the data".to_owned()) }
    });
    report.assert_ok();
    assert!(tails.len() >= 3, "{tails:?}");
}

/// The explorer must see a missing barrier, or its silence is worth nothing.
#[test]
fn a_missing_barrier_is_noticed() {
    let changes: [(DiskKind, Step); 4] = [
        (DiskKind::Dynamic, |vhd| put(vhd, &[(60, 4, Data)], 0x22)),
        (DiskKind::Differencing, |vhd| vhd.set_virtual_size(80 << 10, GrowAs::Zero)),
        (DiskKind::Differencing, |vhd| vhd.set_parent(&new_parent())),
        (DiskKind::Fixed, |vhd| vhd.set_virtual_size(80 << 10, GrowAs::Zero)),
    ];
    for (index, (kind, change)) in changes.into_iter().enumerate() {
        let disk = SimDisk::new();
        let mut vhd = Vhd::create(disk.file(FILE), &small(kind)).unwrap();
        full(&mut vhd).unwrap();
        disk.checkpoint();
        disk.drop_syncs(FILE, None);
        let mut stages = vec![Stage { position: 0, view: view(&vhd) }];
        change(&mut vhd).unwrap();
        stages.push(Stage { position: disk.position(), view: view(&vhd) });
        let report = disk.explore(&ExploreOptions::seeded(SEED), |state| judge(state, &stages));
        assert!(report.first_failure.is_some(), "change {index}");
    }
}

/// A shrink that was cut short leaves a table longer than the disk, bits and bytes of its last block past the end, or slack
/// before a fixed disk's footer: other programs refuse some of it. Asking for the size that the disk has by then finishes
/// it. (Bug: bits and bytes were left when the disk ended inside the same block as before.)
#[test]
fn a_shrink_cut_short_is_finished_by_asking_again() {
    let sizes: [(DiskKind, Step, u64); 5] = [
        (DiskKind::Fixed, |vhd| vhd.set_virtual_size(20 << 10, GrowAs::Zero), 20 << 10),
        (DiskKind::Dynamic, |vhd| vhd.set_virtual_size(20 << 10, GrowAs::Zero), 20 << 10),
        (DiskKind::Differencing, |vhd| vhd.set_virtual_size(20 << 10, GrowAs::Zero), 20 << 10),
        (DiskKind::Dynamic, |vhd| vhd.set_virtual_size(vhd.virtual_size() - 1024, GrowAs::Zero), 0),
        (DiskKind::Differencing, |vhd| vhd.set_virtual_size(vhd.virtual_size() - 1024, GrowAs::Zero), 0),
    ];
    for (kind, shrink, size) in sizes {
        let (disk, stages) = record(&small(kind), full, &[shrink]);
        let size = if size > 0 { size } else { stages.last().unwrap().view.bytes.len() as u64 };
        let report = disk.explore(&ExploreOptions::seeded(SEED), |state| {
            let disk = state.disk();
            let mut vhd = open(&disk, Access::Recover).0.map_err(|error| error.to_string())?;
            vhd.set_virtual_size(size, GrowAs::Zero).map_err(|error| error.to_string())?;
            vhd.close().map_err(|error| error.to_string())?;
            let broken = Report::vhd(&disk.file(FILE).contents().to_bytes().unwrap()).rules();
            if broken.is_empty() { Ok(()) } else { Err(format!("breaks {broken:?}")) }
        });
        report.assert_ok();
    }
}

/// Bug: a growth cut short after the table was longer, then one by less, left places of blocks in the padding of the table.
#[test]
fn a_smaller_growth_after_one_that_was_cut_short_leaves_no_entries() {
    let options = small(DiskKind::Differencing);
    let (disk, stages) = record(&options, full, &[|vhd| vhd.set_virtual_size(120 << 10, GrowAs::Zero)]);
    let old = stages[0].view.bytes.len() as u64;
    assert!(old < 90 << 10);
    let report = disk.explore(&ExploreOptions::seeded(SEED), |state| {
        let disk = state.disk();
        let mut vhd = open(&disk, Access::Recover).0.map_err(|error| error.to_string())?;
        if vhd.virtual_size() == old {
            vhd.set_virtual_size(old + 512, GrowAs::Zero).map_err(|error| error.to_string())?;
        }
        vhd.close().map_err(|error| error.to_string())?;
        let broken = Report::vhd(&disk.file(FILE).contents().to_bytes().unwrap()).rules();
        if broken.is_empty() { Ok(()) } else { Err(format!("breaks {broken:?}")) }
    });
    report.assert_ok();
}
