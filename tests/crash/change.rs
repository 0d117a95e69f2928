//! Bug this finds: a resize that shows a size or bytes that were neither there before nor are to be there after, a
//! partition table of which no copy is whole, a child that loses its parent for good while that gets another id, an item
//! of metadata that is neither the old nor the new one.

use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::sites;
use crate::support::Report;
use crate::support::gpt::{GptSpec, gpt_problems, read_copy};
use std::cell::Cell;
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::ops::{CheckpointStore, ResizeOptions, SetOptions, resize_chain, set_image};
use vhdkit::storage::sim::{CrashState, ExploreOptions, SimDisk, SimFailure, SimFault, SimFile};
use vhdkit::storage::{Access, Storage};
use vhdkit::vhdx::Vhdx;
use vhdkit::{Error, Findings, Format, Guid, Image, Watch};

const MIB: u64 = 1 << 20;
const LEAF: &str = "leaf";
const PARENT: &str = "parent";

fn options() -> ExploreOptions {
    ExploreOptions { samples_per_point: 2, exhaustive_limit: 3, ..ExploreOptions::seeded(crate::seed()) }
}

fn write(offset: u64, len: u64, seed: u8) -> Edit {
    Edit::Write { offset, len, seed }
}

/// Holds a file to the rules of its format; a VHDX may have been left between the two header writes of a clean close.
fn check_format(format: Format, file: &Arc<SimFile>) -> Result<(), String> {
    let opened = Image::open(Arc::clone(file) as _, Access::Write, &mut Findings::new());
    opened.and_then(Image::close).map_err(|error| format!("to close it: {error:?}"))?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let report = if format == Format::Vhd { Report::vhd(&bytes) } else { Report::vhdx(&bytes) };
    let issues = report.issues.iter().filter(|issue| !["clean-log", "headers-agree"].contains(&issue.rule));
    let issues: Vec<String> = issues.map(ToString::to_string).collect();
    if issues.is_empty() { Ok(()) } else { Err(issues.join("; ")) }
}

/// Whether this is one of the states whose files are held to every rule: that reads all of them.
fn is_sampled(count: &Cell<u32>) -> bool {
    count.set(count.get() + 1);
    count.get() % 8 == 1
}

fn copy_of(disk: &SimDisk) -> SimDisk {
    let copy = SimDisk::new();
    for name in disk.names() {
        copy.import(&name, &*disk.file(&name)).unwrap();
    }
    copy
}

// ---- resize ----

/// A leaf, perhaps over a parent, that gets another size.
struct Resize {
    format: Format,
    base_fixed: bool,
    /// The parent's size, when there is one.
    parent: Option<u64>,
    old: u64,
    new: u64,
    block: u32,
    edits: Vec<Edit>,
    gpt: Option<GptSpec>,
    count: Cell<u32>,
}

impl Resize {
    fn new(format: Format, old: u64, new: u64) -> Self {
        let block = if format == Format::Vhd { 8192 } else { MIB as u32 };
        Self {
            format,
            base_fixed: false,
            parent: None,
            old,
            new,
            block,
            edits: Vec::new(),
            gpt: None,
            count: Cell::new(0),
        }
    }

    fn options(&self) -> ResizeOptions {
        ResizeOptions::size(self.new).fix_gpt(self.gpt.is_some()).allow_data_loss(self.gpt.is_none())
    }

    fn files(&self, disk: &SimDisk) -> Vec<Arc<dyn Storage>> {
        let names: &[&str] = if self.parent.is_some() { &[LEAF, PARENT] } else { &[LEAF] };
        names.iter().map(|name| disk.file(name) as Arc<dyn Storage>).collect()
    }

    /// The machine before, everything on it durable, and what the leaf shows.
    fn machine(&self) -> (SimDisk, Vec<u8>) {
        let disk = SimDisk::new();
        let parent = self.parent.map(|size| LayerSpec { size, block_size: self.block, edits: vec![write(0, size, 9)] });
        let leaf = LayerSpec { size: self.old, block_size: self.block, edits: self.edits.clone() };
        let layers: Vec<LayerSpec> = parent.into_iter().chain([leaf]).collect();
        let count = layers.len();
        let spec = ChainSpec { format: self.format, sector: 512, base_fixed: self.base_fixed, layers };
        let built = chains::build(&spec, |index| disk.file(if index + 1 == count { LEAF } else { PARENT }));
        let mut view = built.views[0].clone();
        if let Some(gpt) = &self.gpt {
            gpt.write(&mut view);
            let mut chain = chains::open(&built.storages, Access::Write).unwrap();
            chain.write_at(&view, 0).unwrap();
            chain.close().unwrap();
        }
        (copy_of(&disk), view)
    }

    fn run(&self, disk: &SimDisk) -> vhdkit::Result<()> {
        let mut chain = chains::open(&self.files(disk), Access::Read)?;
        resize_chain(&mut chain, &self.options(), &Watch::none())?;
        chain.close()
    }

    fn view(&self, disk: &SimDisk) -> Result<Vec<u8>, String> {
        let chain: Chain = chains::open(&self.files(disk), Access::Read).map_err(|error| error.to_string())?;
        let mut bytes = vec![0xEE; chain.virtual_size() as usize];
        chain.read_at(&mut bytes, 0).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// What it shows at the end, by the request alone: where there is a table, by the rules of such tables.
    fn judge_end(&self, before: &[u8], after: &[u8]) -> Result<(), String> {
        if after.len() as u64 != self.new {
            return Err(format!("{} bytes at the end", after.len()));
        }
        match &self.gpt {
            None => {
                let mut want = before.to_vec();
                want.resize(self.new as usize, 0);
                if after == want { Ok(()) } else { Err("wrong bytes at the end".to_owned()) }
            }
            Some(gpt) => {
                let problems = gpt_problems(after, gpt.sector);
                let entries = |view: &[u8]| read_copy(view, gpt.sector, 1).map(|copy| (copy.entries, copy.disk_id));
                let sector = gpt.sector;
                let same = gpt.partitions.iter().all(|(first, last)| {
                    let range = *first as usize * sector..(*last as usize + 1) * sector;
                    before[range.clone()] == after[range]
                });
                if problems.is_empty() && same && entries(before) == entries(after) {
                    Ok(())
                } else {
                    Err(problems.join("; "))
                }
            }
        }
    }

    fn judge(&self, disk: &SimDisk, (before, after): (&[u8], &[u8])) -> Result<(), String> {
        let view = self.view(disk)?;
        if ![before.len(), after.len()].contains(&view.len()) {
            return Err(format!("a disk of {} bytes", view.len()));
        }
        for (index, sector) in view.chunks(512).enumerate() {
            let range = index * 512..index * 512 + sector.len();
            let held = [before, after].iter().any(|view| view.get(range.clone()) == Some(sector));
            // Between the old and the new size a new disk shows its new bytes, or still the zeros it grew by.
            let grew = index * 512 >= before.len() && sector.iter().all(|byte| *byte == 0);
            if !held && !grew {
                return Err(format!("sector {index} of {} bytes shows neither the old nor the new bytes", view.len()));
            }
        }
        if let Some(gpt) = &self.gpt {
            let first = read_copy(&view, gpt.sector, 1)?;
            let backup = read_copy(&view, gpt.sector, first.other)?;
            if first.partitions() != gpt.partitions || backup.partitions() != gpt.partitions {
                return Err("the partitions are not what they were".to_owned());
            }
        }
        Ok(())
    }

    /// What must hold after an interruption: old or new, a rerun that completes, and nothing old when the disk grows again.
    fn judge_and_finish(&self, disk: &SimDisk, (before, after): (&[u8], &[u8])) -> Result<(), String> {
        self.judge(disk, (before, after))?;
        self.run(disk).map_err(|error| format!("rerun: {error:?}"))?;
        let end = self.view(disk)?;
        self.judge_end(before, &end).map_err(|error| format!("after the rerun: {error}"))?;
        let sampled = is_sampled(&self.count);
        if sampled && self.format == Format::Vhd {
            check_format(self.format, &disk.file(LEAF)).map_err(|error| format!("after the rerun: {error}"))?;
        }
        let more = self.old.max(self.new) + 3 * u64::from(self.block) / 2;
        let mut chain = chains::open(&self.files(disk), Access::Read).map_err(|error| error.to_string())?;
        resize_chain(&mut chain, &ResizeOptions::size(more), &Watch::none()).map_err(|error| error.to_string())?;
        chain.close().map_err(|error| error.to_string())?;
        let grown = self.view(disk)?;
        let zeros = grown[end.len()..].iter().all(|byte| *byte == 0);
        if grown[..end.len()] != end || !zeros {
            return Err("old bytes when it grows again".to_owned());
        }
        if sampled { check_format(self.format, &disk.file(LEAF)) } else { Ok(()) }
    }

    fn explore(&self, name: &str) {
        let (disk, before) = self.machine();
        disk.checkpoint();
        self.run(&disk).unwrap();
        let after = self.view(&disk).unwrap();
        self.judge_end(&before, &after).unwrap();
        let report = disk.explore(&options(), |state| self.judge_and_finish(&state.disk(), (&before, &after)));
        println!("resize {name}: {} crash states at {} points", report.states, report.points);
        report.assert_ok();
        assert!(report.points > 4, "{name}: the workload writes something");
    }

    /// Every operation fails once, as the medium and as a full file system would.
    fn fail(&self, name: &str) {
        let (machine, before) = self.machine();
        let clean = copy_of(&machine);
        self.run(&clean).unwrap();
        let after = self.view(&clean).unwrap();
        for failure in [SimFailure::Io, SimFailure::NoSpace] {
            let mut failed = 0;
            for skip in 0.. {
                let disk = copy_of(&machine);
                let files = self.files(&disk);
                let mut chain = chains::open(&files, Access::Read).unwrap();
                disk.inject(SimFault::nth(skip, failure));
                let done = resize_chain(&mut chain, &self.options(), &Watch::none()).and_then(|_| chain.close());
                disk.clear_faults();
                if done.is_ok() {
                    break;
                }
                failed += 1;
                let judged = self.judge_and_finish(&disk, (&before, &after));
                judged.unwrap_or_else(|error| panic!("{name}: {failure:?} of operation {skip}: {error}"));
            }
            println!("resize {name}: {failed} operations failed as {failure:?}");
            assert!(failed >= 6, "{name}: {failed}");
        }
    }
}

fn vhd_resizes() -> Vec<(&'static str, Resize)> {
    let edits = || vec![write(0, 3000, 1), write(20 << 10, 20 << 10, 2), Edit::Zero { offset: 24 << 10, len: 4096 }];
    let leaf = |old, new| Resize { edits: edits(), ..Resize::new(Format::Vhd, old, new) };
    vec![
        ("vhd dynamic, growing", leaf(40 << 10, 90 << 10)),
        ("vhd dynamic, shrinking", leaf(44 << 10, (25 << 10) + 512)),
        ("vhd fixed, growing", Resize { base_fixed: true, ..leaf(40 << 10, 64 << 10) }),
        ("vhd fixed, shrinking", Resize { base_fixed: true, ..leaf(44 << 10, 21 << 10) }),
        ("vhd child, growing over a longer parent", Resize { parent: Some(70 << 10), ..leaf(42 << 10, 90 << 10) }),
        ("vhd child, growing over a shorter parent", Resize { parent: Some(30 << 10), ..leaf(42 << 10, 90 << 10) }),
        ("vhd child, shrinking", Resize { parent: Some(60 << 10), ..leaf(44 << 10, (25 << 10) + 512) }),
        // 128 entries fill their sector, and the first block stands right behind it.
        ("vhd, the table moves", Resize { block: 4096, ..leaf(512 << 10, 640 << 10) }),
    ]
}

fn vhdx_resizes() -> Vec<(&'static str, Resize)> {
    let edits = || vec![write(0, 9000, 1), write(MIB + 512, 2 * MIB, 2)];
    let leaf = |old, new| Resize { edits: edits(), ..Resize::new(Format::Vhdx, old, new) };
    vec![
        ("vhdx dynamic, growing", leaf(3 * MIB + 4096, 5 * MIB)),
        ("vhdx dynamic, shrinking", leaf(4 * MIB, MIB + 2560)),
        ("vhdx fixed, growing", Resize { base_fixed: true, ..leaf(3 * MIB + 512, 5 * MIB) }),
        ("vhdx fixed, shrinking", Resize { base_fixed: true, ..leaf(4 * MIB, MIB + 2560) }),
        ("vhdx child, growing over a longer parent", Resize { parent: Some(4 * MIB), ..leaf(2 * MIB + 512, 5 * MIB) }),
        ("vhdx child, growing over a shorter parent", Resize { parent: Some(MIB), ..leaf(2 * MIB + 512, 4 * MIB) }),
        ("vhdx child, shrinking", Resize { parent: Some(4 * MIB), ..leaf(4 * MIB, MIB + 2560) }),
    ]
}

fn gpt_resizes() -> Vec<(&'static str, Resize)> {
    let gpt = |partitions: &[(u64, u64)]| GptSpec { sector: 512, count: 4, partitions: partitions.to_vec() };
    let vhd = |old, new| Resize {
        gpt: Some(gpt(&[(4, 30), (40, 60)])),
        edits: vec![write(0, old, 3)],
        ..Resize::new(Format::Vhd, old, new)
    };
    let vhdx = |old, new| Resize {
        gpt: Some(gpt(&[(8, 1000), (2048, 2500)])),
        edits: vec![write(0, old, 3)],
        ..Resize::new(Format::Vhdx, old, new)
    };
    vec![
        ("vhd with a GPT, growing", vhd(64 << 10, 100 << 10)),
        ("vhd with a GPT, shrinking", vhd(64 << 10, 34 << 10)),
        ("vhdx with a GPT, growing", vhdx(2 * MIB, 4 * MIB)),
        ("vhdx with a GPT, shrinking", vhdx(3 * MIB, 2 * MIB)),
        (
            "vhdx child with a GPT, growing over a longer parent",
            Resize { parent: Some(3 * MIB), ..vhdx(2 * MIB, 4 * MIB) },
        ),
    ]
}

#[test]
fn vhd_resizes_survive_every_crash() {
    vhd_resizes().iter().for_each(|(name, resize)| resize.explore(name));
}

#[test]
fn vhdx_resizes_survive_every_crash() {
    vhdx_resizes().iter().for_each(|(name, resize)| resize.explore(name));
}

#[test]
fn a_partition_table_that_moves_survives_every_crash() {
    gpt_resizes().iter().for_each(|(name, resize)| resize.explore(name));
}

#[test]
fn a_resize_over_a_failing_or_full_medium_shows_the_old_or_the_new_and_a_rerun_completes() {
    let all = [vhd_resizes(), vhdx_resizes(), gpt_resizes()];
    let hard = |(name, _): &&(&str, Resize)| name.contains("shrinking") || name.contains("longer parent");
    all.iter().flatten().filter(hard).for_each(|(name, resize)| resize.fail(name));
}

// ---- ids and metadata ----

/// The note of a change in a file of the machine.
#[derive(Debug)]
struct Note(Arc<SimFile>);

impl CheckpointStore for Note {
    fn load(&self) -> vhdkit::Result<Option<Vec<u8>>> {
        let failed = |error| Error::io("read the note", error);
        let mut bytes = vec![0; self.0.len().map_err(failed)? as usize];
        self.0.read_exact_at(&mut bytes, 0).map_err(failed)?;
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    fn save(&self, bytes: &[u8]) -> vhdkit::Result<()> {
        let failed = |error| Error::io("write the note", error);
        self.0.set_len(0).and_then(|()| self.0.write_all_at(bytes, 0)).and_then(|()| self.0.sync()).map_err(failed)
    }

    fn clear(&self) -> vhdkit::Result<()> {
        self.0.set_len(0).and_then(|()| self.0.sync()).map_err(|error| Error::io("clear the note", error))
    }
}

const CHILDREN: [&str; 2] = ["one", "two"];

/// A base with two children whose ids or items change.
struct Set {
    format: Format,
    /// What is asked for.
    request: fn(SetOptions) -> SetOptions,
    /// The base holds an item of 700 000 bytes, so that another large one has no room in its region.
    full: bool,
    /// There are children.
    children: bool,
    count: Cell<u32>,
}

fn id(number: u128) -> Guid {
    Guid::from_u128(number)
}

/// What a reader sees of the base, apart from its data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    unique_id: Option<vhdkit::ImageId>,
    disk_id: Option<Guid>,
    physical_sector: Option<u32>,
    items: Vec<(Guid, bool, Vec<u8>)>,
}

impl Set {
    fn machine(&self) -> (SimDisk, Vec<Vec<u8>>) {
        let disk = SimDisk::new();
        let (size, block) = if self.format == Format::Vhd { (40 << 10, 8192) } else { (2 * MIB, MIB as u32) };
        let base = LayerSpec { size, block_size: block, edits: vec![write(0, size / 2, 1)] };
        let child = LayerSpec { size, block_size: block, edits: Vec::new() };
        let spec = ChainSpec { format: self.format, sector: 512, base_fixed: false, layers: vec![base.clone()] };
        let built = chains::build(&spec, |_| disk.file(PARENT));
        if self.full {
            let mut image = Vhdx::open(disk.file(PARENT), Access::Write, &mut Findings::new()).unwrap();
            image.set_metadata_item(id(2), &[0xBB; 700_000], false).unwrap();
            image.close().unwrap();
        }
        let mut views = vec![built.views[0].clone()];
        for (name, seed) in CHILDREN.into_iter().zip(5..).filter(|_| self.children) {
            let parent = Layer::open(disk.file(PARENT), Access::Read).unwrap().image().id();
            let spec = ChainSpec { layers: vec![base.clone(), child.clone()], ..spec.clone() };
            chains::create_layer(disk.file(name), &spec, 1, parent);
            let mut view = built.views[0].clone();
            let mut chain = chains::open(&[disk.file(name), disk.file(PARENT)], Access::Write).unwrap();
            chains::apply(&mut chain, &mut view, &write(1024, 4096, seed));
            chain.close().unwrap();
            views.push(view);
        }
        (copy_of(&disk), views)
    }

    fn run(&self, disk: &SimDisk) -> vhdkit::Result<()> {
        let (mut base, mut children) = self.layers(disk)?;
        self.change(disk, &mut base, &mut children)
    }

    fn layers(&self, disk: &SimDisk) -> vhdkit::Result<(Layer, Vec<Layer>)> {
        let base = Layer::open(disk.file(PARENT), Access::Read)?;
        let names = CHILDREN.into_iter().filter(|_| self.children);
        let children = names.map(|name| Layer::open(disk.file(name), Access::Read)).collect::<vhdkit::Result<_>>()?;
        Ok((base, children))
    }

    fn change(&self, disk: &SimDisk, base: &mut Layer, children: &mut [Layer]) -> vhdkit::Result<()> {
        let options = SetOptions::new().relink(true).store(Arc::new(Note(disk.file("note"))));
        set_image(base, children, &(self.request)(options)).map(drop)
    }

    fn identity(disk: &SimDisk) -> Result<Identity, String> {
        let base = Layer::open(disk.file(PARENT), Access::Read).map_err(|error| error.to_string())?;
        Ok(match base.image() {
            Image::Vhdx(image) => {
                let users = image.metadata_items().into_iter().filter(|item| item.user);
                let bytes = |item: vhdkit::vhdx::MetadataEntry| {
                    let bytes = image.metadata_item(item.id, true).map_err(|error| error.to_string())?;
                    Ok((item.id, item.virtual_disk, bytes.unwrap_or_default()))
                };
                let mut items: Vec<_> = users.map(bytes).collect::<Result<_, String>>()?;
                items.sort();
                let disk_id = Some(image.disk_id());
                Identity { unique_id: None, disk_id, physical_sector: Some(image.physical_sector_size()), items }
            }
            other => Identity { unique_id: other.id(), disk_id: None, physical_sector: None, items: Vec::new() },
        })
    }

    /// What each file shows; a child that does not open is `None`.
    fn views(&self, disk: &SimDisk) -> Vec<Option<Vec<u8>>> {
        let show =
            |files: &[Arc<dyn Storage>]| chains::open(files, Access::Read).ok().map(|chain| chains::read_all(&chain));
        let base = show(&[disk.file(PARENT)]);
        let children = CHILDREN.into_iter().filter(|_| self.children);
        [base].into_iter().chain(children.map(|name| show(&[disk.file(name), disk.file(PARENT)]))).collect()
    }

    fn judge_and_finish(
        &self,
        disk: &SimDisk,
        (views, old, new): (&[Vec<u8>], &Identity, &Identity),
    ) -> Result<(), String> {
        let found = Self::identity(disk)?;
        let either = |pick: &dyn Fn(&Identity) -> String| [old, new].iter().any(|side| pick(side) == pick(&found));
        let parts: [&dyn Fn(&Identity) -> String; 4] = [
            &|side| format!("{:?}", side.unique_id),
            &|side| format!("{:?} {:?}", side.disk_id, side.physical_sector),
            &|side| format!("{:?}", side.items.iter().find(|item| item.0 == id(1))),
            &|side| format!("{:?}", side.items.iter().find(|item| item.0 == id(2))),
        ];
        if !parts.iter().all(|pick| either(pick)) {
            return Err("an id or an item that is neither the old nor the new one".to_owned());
        }
        for (index, (view, want)) in self.views(disk).into_iter().zip(views).enumerate() {
            match view {
                Some(view) if view == *want => {}
                Some(_) => return Err(format!("file {index} shows something else")),
                // Its parent's new id waits for the rerun, which the note tells.
                None if self.format == Format::Vhd && index > 0 && disk.file("note").len().unwrap() > 0 => {}
                None => return Err(format!("file {index} does not open")),
            }
        }
        self.run(disk).map_err(|error| format!("rerun: {error:?}"))?;
        if Self::identity(disk)? != *new {
            return Err("the rerun did not complete".to_owned());
        }
        let shown: Option<Vec<Vec<u8>>> = self.views(disk).into_iter().collect();
        if shown.as_deref() != Some(views) {
            return Err("after the rerun a file shows something else".to_owned());
        }
        if disk.file("note").len().unwrap() > 0 {
            return Err("the note is still there after the rerun".to_owned());
        }
        for name in CHILDREN.into_iter().filter(|_| self.children) {
            let child = Layer::open(disk.file(name), Access::Read).map_err(|error| error.to_string())?;
            let ids = child.image().parent_link().map(|link| link.ids.len());
            if ids != Some(1) {
                return Err(format!("{name} names {ids:?} parents after the rerun"));
            }
        }
        if !is_sampled(&self.count) {
            return Ok(());
        }
        let images = disk.names().into_iter().filter(|name| name != "note");
        images.map(|name| disk.file(&name)).try_for_each(|file| check_format(self.format, &file))
    }

    fn explore(&self, name: &str) {
        let (machine, views) = self.machine();
        let old = Self::identity(&machine).unwrap();
        let disk = copy_of(&machine);
        let _ = disk.file("note");
        disk.checkpoint();
        self.run(&disk).unwrap();
        let new = Self::identity(&disk).unwrap();
        assert_ne!(old, new);
        let judge = |state: &CrashState<'_>| self.judge_and_finish(&state.disk(), (&views, &old, &new));
        let report = disk.explore(&options(), judge);
        println!("set {name}: {} crash states at {} points", report.states, report.points);
        report.assert_ok();
        assert!(report.points > 3, "{name}");
        for failure in [SimFailure::Io, SimFailure::NoSpace] {
            let mut failed = 0;
            for skip in 0.. {
                let disk = copy_of(&machine);
                let _ = disk.file("note");
                let (mut base, mut children) = self.layers(&disk).unwrap();
                disk.inject(SimFault::nth(skip, failure));
                let done = self.change(&disk, &mut base, &mut children);
                drop((base, children));
                disk.clear_faults();
                if done.is_ok() {
                    break;
                }
                failed += 1;
                let judged = self.judge_and_finish(&disk, (&views, &old, &new));
                judged.unwrap_or_else(|error| panic!("{name}: {failure:?} of operation {skip}: {error}"));
            }
            assert!(failed > 3, "{name}: {failed}");
        }
    }
}

#[test]
fn ids_that_change_survive_every_crash_and_no_child_is_lost() {
    let vhdx = |request| Set { format: Format::Vhdx, request, full: false, children: true, count: Cell::new(0) };
    let vhd = |request| Set { format: Format::Vhd, request, full: false, children: true, count: Cell::new(0) };
    vhdx(|options| options.disk_id(id(77)).physical_sector_size(512)).explore("disk id and sector size, two children");
    vhd(|options| options.unique_id([7; 16])).explore("unique id, two children");
    Set { children: false, ..vhd(|options| options.unique_id([7; 16])) }.explore("unique id");
    Set { children: false, ..vhdx(|options| options.disk_id(id(77))) }.explore("disk id");
}

#[test]
fn items_of_metadata_survive_every_crash() {
    let set = |request| Set { format: Format::Vhdx, request, full: true, children: false, count: Cell::new(0) };
    set(|options| options.item(id(1), "a note", false)).explore("a new item");
    set(|options| options.item(id(2), vec![0xCC; 700_000], false)).explore("a large item over an old one");
    set(|options| options.item(id(1), vec![0xAA; 400_000], true)).explore("an item for which the region must move");
    set(|options| options.delete_item(id(2))).explore("an item deleted");
    let with_children = Set { children: true, ..set(|options| options.item(id(1), vec![0xAA; 400_000], true)) };
    with_children.explore("an item of the disk, two children, the region moves");
}

/// Bug this finds: an explorer, or a workload, that would not notice a missing barrier.
#[test]
fn a_barrier_removed_from_a_resize_or_a_change_is_noticed() {
    let resizes = [vhd_resizes().swap_remove(1).1, vhdx_resizes().swap_remove(1).1];
    for resize in resizes {
        let (disk, before) = resize.machine();
        disk.checkpoint();
        disk.drop_syncs(LEAF, None);
        resize.run(&disk).unwrap();
        let after = resize.view(&disk).unwrap();
        let report = disk.explore(&options(), |state| resize.judge_and_finish(&state.disk(), (&before, &after)));
        assert!(report.first_failure.is_some(), "{}: no failure in {} states", resize.format, report.states);
    }
}

/// The note goes when the children name the new id: not before that is durable.
#[test]
fn without_its_sync_a_child_of_another_id_is_lost() {
    let request = |options: SetOptions| options.unique_id([7; 16]);
    let set = Set { format: Format::Vhd, request, full: false, children: true, count: Cell::new(0) };
    let (machine, views) = set.machine();
    let old = Set::identity(&machine).unwrap();
    let disk = copy_of(&machine);
    let _ = disk.file("note");
    disk.checkpoint();
    sites::take_away(&[sites::find("src/vhd/parent.rs", "follow_parent", 1)], &disk);
    set.run(&disk).unwrap();
    let new = Set::identity(&disk).unwrap();
    let report = disk.explore(&options(), |state| set.judge_and_finish(&state.disk(), (&views, &old, &new)));
    assert!(report.first_failure.is_some(), "no failure in {} states", report.states);
}
