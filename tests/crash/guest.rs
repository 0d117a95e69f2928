//! Bug this finds: a guest's write, zeroing or discard, another size or another link, that a crash turns into anything but
//! what was before or after it, or that a crash takes back after it was promised.

use crate::budget::{self, Dice, Quota};
use crate::case::{Case, Judge, Recorded};
use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::generate::{self, KIB, MIB};
use crate::merge::open;
use crate::view::{Model, compare};
use crate::{files, merge::MergeSpec};
use std::cell::Cell;
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::storage::sim::{CrashState, SimDisk, SimFault, SimFile};
use vhdkit::storage::{Access, Storage};
use vhdkit::{Format, GrowAs, Image, NewParent, ParentPaths, Source};

/// One state in so many is also looked at by the checker of the rules and the second reader.
const SECOND_OPINION: u64 = 8;

/// One thing that is done to the leaf.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Edit(Edit),
    /// Everything before it is durable when it returns.
    Flush,
    /// Ends the session, and begins another one.
    Reopen,
    /// Another size, and for a child what the new range shows.
    Resize(u64, GrowAs),
    /// Another path to the same parent, of about this length.
    Link(usize),
}

/// A leaf, perhaps over a base, and what is done to it.
#[derive(Clone, Debug)]
pub(crate) struct GuestSpec {
    pub(crate) name: String,
    pub(crate) chain: ChainSpec,
    pub(crate) acts: Vec<Act>,
    /// Another program left bytes in the leaf's last block past the end of the disk.
    past_end: bool,
}

/// What the disk shows and who its parent is, from one promise to the next.
#[derive(Clone, Debug)]
struct Moment {
    /// The crash point before which none of it can be seen.
    started: usize,
    /// The crash point from which on nothing older can be seen.
    durable: Option<usize>,
    shown: Model,
    path: Option<String>,
}

pub(crate) struct Guest {
    pub(crate) spec: GuestSpec,
    base: SimDisk,
    views: Vec<Model>,
    judged: Cell<u64>,
}

impl Guest {
    pub(crate) fn new(spec: GuestSpec) -> Self {
        let (mut base, views) = generate::build(&MergeSpec::of_chain(&spec.chain));
        if spec.past_end {
            fill_past_end(&base.file(&files::name(views.len() - 1)), &spec.chain);
            base = base.fork();
        }
        Self { spec, base, views, judged: Cell::new(0) }
    }

    pub(crate) fn storages(&self, disk: &SimDisk) -> Vec<Arc<dyn Storage>> {
        (0..self.views.len()).rev().map(|index| disk.file(&files::name(index)) as Arc<dyn Storage>).collect()
    }

    pub(crate) fn leaf(&self) -> String {
        files::name(self.views.len() - 1)
    }

    fn path(&self, disk: &SimDisk) -> Option<String> {
        let layer = Layer::open(disk.file(&self.leaf()), Access::Read).expect("the leaf");
        layer.image().parent_link().map(|link| link.hints[0].path.clone())
    }

    /// Does everything on `disk` and notes in `moments` what may be seen when.
    fn act_all(&self, disk: &SimDisk, moments: &mut Vec<Moment>) -> vhdkit::Result<()> {
        let mut now =
            Moment { started: 0, durable: Some(0), shown: self.views[0].clone(), path: self.path(&self.base) };
        moments.push(now.clone());
        let mut chain = None;
        for act in &self.spec.acts {
            now.started = disk.position();
            let durable = self.act(disk, &mut chain, act, &mut now)?;
            now.durable = durable.then(|| disk.promise());
            moments.push(now.clone());
        }
        chain.take().map_or(Ok(()), Chain::close)?;
        now.durable = Some(disk.promise());
        moments.push(now);
        Ok(())
    }

    /// Does one thing; answers whether everything so far is durable then.
    fn act(&self, disk: &SimDisk, chain: &mut Option<Chain>, act: &Act, now: &mut Moment) -> vhdkit::Result<bool> {
        match act {
            Act::Edit(edit) => {
                let (range, bytes) = chains::try_apply(self.session(chain, disk)?, edit)?;
                now.shown.write(range.start, &bytes);
                return Ok(false);
            }
            Act::Flush => self.session(chain, disk)?.flush()?,
            Act::Reopen => chain.take().map_or(Ok(()), Chain::close)?,
            Act::Resize(size, grow) => {
                chain.take().map_or(Ok(()), Chain::close)?;
                let mut image = self.image(disk)?;
                image.set_virtual_size(*size, *grow)?;
                image.close()?;
                now.shown.resize(*size, self.views.get(1).filter(|_| *grow == GrowAs::Parent));
            }
            Act::Link(len) => {
                chain.take().map_or(Ok(()), Chain::close)?;
                let mut image = self.image(disk)?;
                let id = image.parent_link().expect("a parent").ids[0];
                let new = format!(".\\{}.vhd", "p".repeat(*len));
                let paths = ParentPaths { relative: Some(new.clone()), absolute: None };
                image.set_parent(&NewParent { id, paths, timestamp: 0 })?;
                image.close()?;
                now.path = Some(new);
            }
        }
        Ok(true)
    }

    fn session<'a>(&self, chain: &'a mut Option<Chain>, disk: &SimDisk) -> vhdkit::Result<&'a mut Chain> {
        if chain.is_none() {
            *chain = Some(chains::open(&self.storages(disk), Access::Write)?);
        }
        Ok(chain.as_mut().expect("just opened"))
    }

    fn image(&self, disk: &SimDisk) -> vhdkit::Result<Image> {
        Image::open(disk.file(&self.leaf()), Access::Write, &mut vhdkit::Findings::new())
    }

    /// Whether the chain shows what one of `may` says, sector by sector, and names one of their parents.
    fn check(&self, disk: &SimDisk, may: &[Moment]) -> Result<(), String> {
        let chain = open(&self.storages(disk))?;
        let models: Vec<&Model> = may.iter().map(|moment| &moment.shown).collect();
        compare(&chain, &models)?;
        let path = chain.leaf().image().parent_link().map(|link| link.hints[0].path.clone());
        if may.iter().any(|moment| moment.path == path) { Ok(()) } else { Err(format!("names the parent {path:?}")) }
    }

    /// Reads what a crash left, mends it, and goes on writing.
    fn judge(&self, disk: &SimDisk, may: &[Moment]) -> Result<(), String> {
        self.check(disk, may)?;
        let judged = self.judged.replace(self.judged.get() + 1);
        if self.spec.chain.format == Format::Vhd {
            let leaf = disk.file(&self.leaf());
            if judged.is_multiple_of(2) {
                files::mend(leaf)?;
            } else {
                files::repair(leaf)?;
            }
            self.check(disk, may).map_err(|error| format!("after it was mended: {error}"))?;
        }
        // The next writer goes on as if nothing had happened: what it grows into is empty.
        let mut chain =
            chains::open(&self.storages(disk), Access::Write).map_err(|error| format!("writing: {error}"))?;
        let mut want = Model::shown(&chain)?;
        let last = want.size - 512;
        for offset in [0, last / 1024 * 512, last] {
            let edit = Edit::Write { offset, len: 512, seed: 0x5A };
            let (range, new) = chains::try_apply(&mut chain, &edit).map_err(|error| format!("writing on: {error}"))?;
            want.write(range.start, &new);
        }
        chain.close().map_err(|error| format!("closing: {error}"))?;
        let larger = want.size + if self.spec.chain.format == Format::Vhd { 9 * 512 } else { 64 * KIB };
        let mut image = self.image(disk).map_err(|error| format!("opening to grow: {error}"))?;
        image.set_virtual_size(larger, GrowAs::Zero).map_err(|error| format!("growing on: {error}"))?;
        image.close().map_err(|error| format!("closing the grown disk: {error}"))?;
        want.resize(larger, None);
        let after = |error: String| format!("after going on: {error}");
        compare(&open(&self.storages(disk)).map_err(after)?, &[&want]).map_err(after)?;
        if judged.is_multiple_of(SECOND_OPINION) {
            // A VHD's data comes before its bit: between the two it lies under a clear one, which no order avoids.
            files::check_rules(self.spec.chain.format, disk, (&self.leaf(), &["bytes-under-clear-bit"]))
                .map_err(after)?;
            let names: Vec<String> = (0..self.views.len()).rev().map(files::name).collect();
            files::check_reader(disk, &names, &want).map_err(after)?;
        }
        Ok(())
    }

    /// The moments that a reader after a crash at `point` may see.
    fn allowed(moments: &[Moment], point: usize) -> Vec<Moment> {
        let promised = |moment: &Moment| moment.durable.is_some_and(|at| at <= point);
        let oldest = moments.iter().rposition(promised).unwrap_or(0);
        moments[oldest..].iter().filter(|moment| moment.started <= point).cloned().collect()
    }

    /// Does everything while `fault` is armed; says whether it met anything. Whatever failed, no handle wrote on, and the
    /// disk shows what it may, as it reads and after a crash.
    pub(crate) fn survives(&self, fault: SimFault) -> Result<bool, String> {
        let mut good = Vec::new();
        self.act_all(&self.base.fork(), &mut good).map_err(|error| error.to_string())?;
        let disk = self.base.fork();
        disk.inject(fault);
        let mut moments = Vec::new();
        if self.act_all(&disk, &mut moments).is_ok() {
            let failures = disk.failures();
            disk.clear_faults();
            let last = moments.len() - 1;
            self.judge(&disk.fork(), &moments[last..]).map_err(|error| format!("done, but {error}"))?;
            return Ok(failures > 0);
        }
        if disk.changes_after_failure() > 0 {
            return Err("a handle wrote on after a failed write".to_owned());
        }
        disk.clear_faults();
        // What failed may have been done all the same.
        moments.push(good[moments.len()].clone());
        let oldest = moments[..moments.len() - 1].iter().rposition(|moment| moment.durable.is_some()).unwrap_or(0);
        let may = &moments[oldest..];
        self.judge(&disk.fork(), may).map_err(|error| format!("as it reads: {error}"))?;
        self.judge(&generate::cut_off(&disk), may).map_err(|error| format!("after a crash: {error}"))?;
        Ok(true)
    }
}

impl Case for Guest {
    fn name(&self) -> &str {
        &self.spec.name
    }

    fn record(&self, spoil: &dyn Fn(&SimDisk)) -> Recorded<'_> {
        let disk = self.base.fork();
        spoil(&disk);
        let mut moments = Vec::new();
        self.act_all(&disk, &mut moments).unwrap_or_else(|error| panic!("{}: {error}", self.spec.name));
        let judge: Judge<'_> =
            Box::new(move |state: &CrashState<'_>| self.judge(&state.disk(), &Self::allowed(&moments, state.point())));
        Recorded { disk, judge }
    }
}

/// Fills what the last block of the leaf has past the end of the disk.
fn fill_past_end(file: &SimFile, chain: &ChainSpec) {
    let leaf = chain.layers.last().expect("a leaf");
    let block = u64::from(leaf.block_size);
    let layer = Layer::open(Arc::new(vhdkit::storage::MemoryStorage::from_bytes(&contents(file))), Access::Read);
    let layer = layer.expect("the leaf");
    let last = layer.image().map().extent_at(leaf.size - 512, 512).expect("the last sector");
    let Source::Data(at) = last.source else { panic!("the last sector has no place: {last:?}") };
    let past = vec![0xEE; (block - leaf.size % block) as usize];
    file.write_all_at(&past, at.get() + 512).expect("write");
    file.sync().expect("sync");
}

fn contents(file: &SimFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

fn write(offset: u64, len: u64, seed: u8) -> Act {
    Act::Edit(Edit::Write { offset, len, seed })
}

fn zero(offset: u64, len: u64) -> Act {
    Act::Edit(Edit::Zero { offset, len })
}

fn discard(offset: u64, len: u64) -> Act {
    Act::Edit(Edit::Discard { offset, len })
}

fn guest(name: &str, format: Format, layers: Vec<LayerSpec>, acts: Vec<Act>) -> GuestSpec {
    let chain = ChainSpec { format, sector: 512, base_fixed: false, layers };
    GuestSpec { name: format!("{format} guest: {name}"), chain, acts, past_end: false }
}

/// Every kind of change at least once, on a root and on a child.
pub(crate) fn known(format: Format) -> Vec<GuestSpec> {
    let (size, block) = if format == Format::Vhd { (40 * KIB, 8 * KIB) } else { (3 * MIB, MIB) };
    let whole = |count: u64| count * block;
    let layer = |edits| LayerSpec { size, block_size: block as u32, edits };
    let base = || layer(vec![Edit::Write { offset: 4096, len: 9000, seed: 9 }]);
    let acts = || {
        vec![
            write(0, 1024, 1),
            write(700, 900, 2),
            Act::Flush,
            write(2 * block - 1024, 2048, 3),
            zero(block, block),
            Act::Flush,
            discard(0, whole(2)),
            write(whole(2) + 4096, 4096, 4),
            Act::Reopen,
            write(whole(2) + 512, 512, 5),
        ]
    };
    let resizes = |grow| {
        vec![
            write(size - 1024, 1024, 6),
            Act::Resize(size - block - 1536, GrowAs::Zero),
            write(size - block - 2048, 512, 7),
            Act::Resize(size - 512, grow),
            write(size - 1024, 512, 8),
            Act::Flush,
            Act::Resize(size + whole(2) + 1024, grow),
            write(size + whole(2), 1024, 9),
        ]
    };
    let links = vec![write(0, 512, 1), Act::Link(20), Act::Link(220), write(512, 512, 2), Act::Link(5)];
    let mut list = vec![
        guest("a root", format, vec![base()], acts()),
        guest("a child", format, vec![base(), layer(Vec::new())], acts()),
        guest("sizes of a root", format, vec![base()], resizes(GrowAs::Zero)),
        guest("sizes of a child, zeros", format, vec![base(), layer(Vec::new())], resizes(GrowAs::Zero)),
        guest("sizes of a child, parent", format, vec![base(), layer(Vec::new())], resizes(GrowAs::Parent)),
        guest("links", format, vec![base(), layer(vec![Edit::Write { offset: 0, len: 512, seed: 3 }])], links),
    ];
    for (name, child, grow) in [
        ("a root", false, GrowAs::Zero),
        ("a child, zeros", true, GrowAs::Zero),
        ("a child, parent", true, GrowAs::Parent),
    ] {
        let size = size + 1024;
        let leaf = LayerSpec { size, ..layer(vec![Edit::Write { offset: size - 1024, len: 1024, seed: 4 }]) };
        let layers = if child { vec![base(), leaf] } else { vec![leaf] };
        let acts = vec![Act::Resize(size + 1024, grow), Act::Resize(size + whole(1), grow), write(size, 512, 5)];
        let name = format!("bytes past the end of {name}");
        list.push(GuestSpec { past_end: true, ..guest(&name, format, layers, acts) });
    }
    let short = LayerSpec { size: size - block / 2, ..layer(Vec::new()) };
    let full = layer(vec![Edit::Write { offset: 0, len: size, seed: 9 }]);
    let acts = vec![Act::Resize(size + whole(1), GrowAs::Zero), write(size, 512, 5)];
    list.push(guest("a child whose last block is absent", format, vec![full, short], acts));
    let mut fixed = guest("sizes of a fixed disk", format, vec![base()], resizes(GrowAs::Zero));
    fixed.chain.base_fixed = true;
    list.push(fixed);
    if format == Format::Vhd {
        // The table ends before the first unit of 4 KiB: 512 entries, and the next one needs another place.
        let long = || LayerSpec {
            size: 2048 * KIB,
            block_size: 4096,
            edits: vec![Edit::Write { offset: 0, len: 512, seed: 1 }],
        };
        let acts = vec![Act::Resize(2058 * KIB, GrowAs::Zero), write(2048 * KIB, 1024, 1), Act::Reopen];
        list.push(guest("a longer table", format, vec![long()], acts));
        let acts =
            vec![Act::Resize(4400 * KIB, GrowAs::Zero), Act::Resize(100 * KIB, GrowAs::Zero), write(512, 512, 1)];
        list.push(guest("a longer table that is cut again", format, vec![long()], acts));
    } else {
        let mut large = guest("large sectors", format, vec![base(), layer(Vec::new())], acts_of(4096, block));
        large.chain.sector = 4096;
        list.push(large);
    }
    list
}

fn acts_of(sector: u64, block: u64) -> Vec<Act> {
    vec![
        write(sector, sector, 1),
        write(block - sector, 2 * sector, 2),
        Act::Flush,
        discard(0, block),
        write(0, block, 3),
        zero(block, sector),
    ]
}

/// A workload that the seed and `round` choose.
fn random(format: Format, round: u64) -> GuestSpec {
    let mut dice = Dice::new(budget::seed() ^ (round << 24) ^ 0x6E57);
    let vhd = format == Format::Vhd;
    let (sizes, blocks): (&[u64], &[u64]) = if vhd {
        (&[40 * KIB, 33 * KIB, 48 * KIB, 37 * KIB + 512], &[4096, 8192])
    } else {
        (&[2 * MIB, 3 * MIB, MIB + 256 * KIB], &[MIB, 2 * MIB])
    };
    let count = 1 + dice.below(2) as usize;
    let mut size = dice.pick(sizes);
    let layers: Vec<LayerSpec> = (0..count)
        .map(|_| LayerSpec { size, block_size: dice.pick(blocks) as u32, edits: generate::edits(&mut dice, size, vhd) })
        .collect();
    let base_fixed = dice.one_in(5);
    let mut acts = vec![write(dice.below(size / 512) * 512, 512, 1)];
    for _ in 0..2 + dice.below(5) {
        match dice.below(10) {
            0 | 1 => acts.push(Act::Flush),
            2 => acts.push(Act::Reopen),
            3 => {
                let unit = if vhd { 512 } else { 4096 };
                size = (size / 2 + dice.below(size / unit) * unit) / unit * unit + unit;
                acts.push(Act::Resize(size, if count > 1 && dice.one_in(2) { GrowAs::Parent } else { GrowAs::Zero }));
            }
            4 if count > 1 => acts.push(Act::Link(1 + dice.below(230) as usize)),
            _ => acts.extend(generate::edits(&mut dice, size, vhd).into_iter().map(Act::Edit)),
        }
    }
    let name = format!("random {round}, {count} layers, fixed {base_fixed}");
    let mut spec = guest(&name, format, layers, acts);
    spec.chain.base_fixed = base_fixed;
    spec
}

fn explore_all(name: &'static str, format: Format) {
    let mut quota = Quota::new(name);
    let known = known(format);
    let mut round = 0;
    while round < known.len() || quota.wants_more() {
        let spec = known.get(round).cloned().unwrap_or_else(|| random(format, round as u64));
        Guest::new(spec).explore(&mut quota);
        round += 1;
    }
    quota.finish();
}

#[test]
fn vhd_guests_survive_every_crash() {
    explore_all("VHD guests", Format::Vhd);
}

#[test]
fn vhdx_guests_survive_every_crash() {
    explore_all("VHDX guests", Format::Vhdx);
}
