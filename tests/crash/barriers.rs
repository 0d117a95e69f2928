//! Bug this finds: an explorer and workloads that would not notice that a wait for the medium is gone. One test for each
//! wait of the write paths: with it taken away the rules are broken in some crash state. Where two of them stand for each
//! other, both are taken away. The list is held against the source, so a new wait cannot be forgotten.

use crate::budget;
use crate::case::{Case, Judge, Recorded};
use crate::create::Creation;
use crate::generate;
use crate::guest::{self, Guest};
use crate::merge::Merge;
use crate::sites::{self, Site, find as site};
use crate::{chains, files};
use std::sync::Arc;
use vhdkit::chain::Layer;
use vhdkit::storage::sim::{CrashState, ExploreOptions, SimDisk};
use vhdkit::storage::{Access, Storage};
use vhdkit::{Format, GrowAs, Image};

/// A file that an interrupted writer left, mended by the next one.
struct Mending {
    name: String,
    base: SimDisk,
    guest: Guest,
}

impl Mending {
    /// The states that a crash leaves of `guest` and that the next writer has to mend.
    fn of(guest: &Guest) -> Vec<Self> {
        let Recorded { disk, .. } = guest.record(&|_| {});
        let mut found = Vec::new();
        let file = guest.leaf();
        disk.explore(&ExploreOptions::seeded(budget::seed()), |state| {
            let left = state.disk();
            let before = left.position();
            let mended = files::mend(left.file(&file)).is_ok() && left.position() > before + 1;
            if mended && found.len() < 40 && state.point() % 3 == 0 {
                let base = state.disk();
                found.push(Self {
                    name: format!("mending {}", guest.spec.name),
                    base,
                    guest: Guest::new(guest.spec.clone()),
                });
            }
            Ok(())
        });
        found
    }
}

impl Case for Mending {
    fn name(&self) -> &str {
        &self.name
    }

    fn record(&self, spoil: &dyn Fn(&SimDisk)) -> Recorded<'_> {
        let disk = self.base.fork();
        spoil(&disk);
        let file = self.guest.leaf();
        // Not closed: what mends must not rely on a later sync.
        drop(Layer::open(disk.file(&file), Access::Recover).unwrap_or_else(|error| panic!("{}: {error}", self.name)));
        let done = disk.promise();
        let storages = |disk: &SimDisk| -> Vec<Arc<dyn Storage>> { self.guest.storages(disk) };
        let want =
            chains::open(&storages(&self.base), Access::Read).map(|chain| chains::read_all(&chain)).expect("opens");
        let judge: Judge<'_> = Box::new(move |state: &CrashState<'_>| {
            let left = state.disk();
            let access = if state.point() >= done { Access::Write } else { Access::Recover };
            for access in [Access::Read, access] {
                let chain = chains::open(&storages(&left), access).map_err(|error| error.to_string())?;
                if chains::read_all(&chain) != want {
                    return Err("mending changed the disk".to_owned());
                }
            }
            Ok(())
        });
        Recorded { disk, judge }
    }
}

/// A guest whose file must have a whole footer at any time besides the copy at the start, which is one sector only.
struct Footed(Guest);

fn is_footer(sector: &[u8]) -> bool {
    let counted = sector.iter().enumerate().filter(|(at, _)| !(64..68).contains(at));
    let sum = !counted.map(|(_, &byte)| u32::from(byte)).sum::<u32>();
    sector.starts_with(b"conectix") && sector[64..68] == sum.to_be_bytes()
}

impl Case for Footed {
    fn name(&self) -> &str {
        &self.0.spec.name
    }

    fn record(&self, spoil: &dyn Fn(&SimDisk)) -> Recorded<'_> {
        let Recorded { disk, .. } = self.0.record(spoil);
        let leaf = self.0.leaf();
        let judge: Judge<'_> = Box::new(move |state: &CrashState<'_>| {
            let file = state.disk().file(&leaf);
            let mut bytes = vec![0; file.len().map_err(|error| error.to_string())? as usize];
            file.read_exact_at(&mut bytes, 0).map_err(|error| error.to_string())?;
            let footed = bytes.chunks_exact(512).skip(1).any(is_footer);
            if footed { Ok(()) } else { Err("no footer but the copy at the start".to_owned()) }
        });
        Recorded { disk, judge }
    }
}

/// A VHDX that grows by more blocks than its table has room for.
struct LongTable {
    base: SimDisk,
}

impl LongTable {
    const OLD: u64 = 100 << 30;
    const NEW: u64 = 200 << 30;
    const BYTES: [u8; 4096] = [0xA7; 4096];

    fn new() -> Self {
        let disk = SimDisk::new();
        let options = vhdkit::vhdx::VhdxCreate::new(Self::OLD).block_size(1 << 20);
        let image = vhdkit::vhdx::Vhdx::create(disk.file("long"), &options).and_then(vhdkit::vhdx::Vhdx::close);
        image.expect("an image");
        let mut chain = chains::open(&[disk.file("long")], Access::Write).expect("opens");
        chain.write_at(&Self::BYTES, 0).expect("write");
        chain.close().expect("close");
        Self { base: disk.fork() }
    }

    fn judge(disk: &SimDisk, sizes: &[u64]) -> Result<(), String> {
        let chain = chains::open(&[disk.file("long")], Access::Read).map_err(|error| error.to_string())?;
        let size = chain.virtual_size();
        for at in [0, Self::OLD - 4096, size - 4096] {
            let mut found = [0xEE; 4096];
            chain.read_at(&mut found, at).map_err(|error| format!("reading {at:#x}: {error}"))?;
            if found != if at == 0 { Self::BYTES } else { [0; 4096] } {
                return Err(format!("other bytes at {at:#x}"));
            }
        }
        if sizes.contains(&size) { Ok(()) } else { Err(format!("a disk of {size} bytes")) }
    }
}

impl Case for LongTable {
    fn name(&self) -> &str {
        "vhdx: another table"
    }

    fn record(&self, spoil: &dyn Fn(&SimDisk)) -> Recorded<'_> {
        let disk = self.base.fork();
        spoil(&disk);
        let mut image = Image::open(disk.file("long"), Access::Write, &mut vhdkit::Findings::new()).expect("opens");
        image.set_virtual_size(Self::NEW, GrowAs::Zero).and_then(|()| image.close()).expect("grows");
        let done = disk.promise();
        let judge: Judge<'_> = Box::new(move |state: &CrashState<'_>| {
            let sizes: &[u64] = if state.point() >= done { &[Self::NEW] } else { &[Self::OLD, Self::NEW] };
            Self::judge(&state.disk(), sizes)
        });
        Recorded { disk, judge }
    }
}

/// Bug this finds: a growth that moves the table and loses an entry, a file left with one footer.
#[test]
fn a_table_that_moves_and_the_footer_behind_the_data_survive_every_crash() {
    let seeded = ExploreOptions::seeded(budget::seed());
    LongTable::new().walk(&seeded, &|_| {}).assert_ok();
    for spec in guest::known(Format::Vhd) {
        let case = Footed(Guest::new(spec));
        let report = case.walk(&seeded, &|_| {});
        assert!(report.first_failure.is_none(), "{}: {:?}", case.name(), report.first_failure);
    }
}

/// Shows the workloads that the barriers of a format are looked for in to `visit`, the cheapest first, until it has seen
/// enough.
fn each_workload(format: Format, visit: &mut dyn FnMut(&dyn Case) -> bool) -> bool {
    let guests = || guest::known(format).into_iter().map(Guest::new);
    Creation::all(format).iter().any(|case| visit(case))
        || guests().any(|case| visit(&case))
        || (format == Format::Vhd && guests().map(Footed).any(|case| visit(&case)))
        || (format == Format::Vhdx && visit(&LongTable::new()))
        || generate::known(format).into_iter().any(|spec| visit(&Merge::new(spec)))
        || (format == Format::Vhd && guests().any(|guest| Mending::of(&guest).iter().any(|case| visit(case))))
}

/// What goes wrong without the syncs of `sites`, in words; `None` when nothing was found.
fn without(sites: &[Site]) -> Option<String> {
    let formats: &[Format] = match sites[0].file.split('/').nth(1) {
        Some("vhd") => &[Format::Vhd],
        Some("vhdx") => &[Format::Vhdx],
        _ => &[Format::Vhd, Format::Vhdx],
    };
    let seeded = ExploreOptions::seeded(budget::seed());
    let options = ExploreOptions { samples_per_point: 4, exhaustive_limit: 4, by_promise: true, ..seeded };
    let mut found = None;
    for &format in formats {
        each_workload(format, &mut |case| {
            let report = case.walk(&options, &|disk| sites::take_away(sites, disk));
            found = report.first_failure.map(|failure| format!("{}: {failure}", case.name()));
            found.is_some()
        });
        if found.is_some() {
            break;
        }
    }
    found
}

/// Syncs that no state here misses, taken away alone: why. Where another one covers it, both are in one of the groups
/// below.
const UNMISSED: &[(&str, &str, usize, &str)] = &[
    (
        "src/ops/transfer.rs",
        "run",
        2,
        "a VHDX has the map in its log, and a VHD's checkpoint is compared before it is believed",
    ),
    ("src/ops/transfer.rs", "run", 3, "as before"),
    ("src/vhd/create.rs", "create", 1, "the close that follows covers it"),
    ("src/vhd/create.rs", "lay_out", 2, "the close that follows covers it"),
    ("src/vhd/parent.rs", "write_link", 1, "that between the footers covers it"),
    ("src/vhd/parent.rs", "write_link", 2, "that between the footers covers it"),
    ("src/vhd/resize.rs", "cut_table", 1, "nothing shows what lies past the end"),
    ("src/vhd/resize.rs", "grow_sparse", 1, "that between the footers covers it"),
    ("src/vhd/resize.rs", "set_table_size", 2, "those of the footers cover it"),
    ("src/vhd/space.rs", "write_footers", 1, "each is one sector, and either leads"),
    ("src/vhdx/resize.rs", "grow", 1, "the log entry of the size covers it"),
    ("src/vhdx/resize.rs", "zero_tail", 1, "that before the size covers it"),
    ("src/vhdx/header.rs", "finish", 1, "between two updates of the headers a log entry or a flush has waited"),
    (
        "src/vhdx/session.rs",
        "cut_tail",
        1,
        "what is put where the file was cut is durable, and the cut with it, before an entry leads to it",
    ),
    ("src/vhdx/write.rs", "flush", 1, "what was published is in the log already"),
];

macro_rules! barriers {
    ($($name:ident: $file:literal, $function:literal, $nth:literal;)*) => {
        const BARRIERS: &[(&str, &str, usize)] = &[$(($file, $function, $nth)),*];

        $(
            #[test]
            fn $name() {
                let site = site($file, $function, $nth);
                let found = without(std::slice::from_ref(&site)).unwrap_or_else(|| panic!("{site}: nothing is missed without it"));
                println!("without {site}: {found}");
            }
        )*
    };
}

barriers! {
    vhd_tables_before_the_footers_of_a_new_disk: "src/vhd/create.rs", "lay_out", 1;
    vhd_a_mended_copy_is_durable: "src/vhd/open.rs", "mend", 1;
    vhd_a_cut_file_before_it_grows_again: "src/vhd/open.rs", "cut_behind", 1;
    vhd_fixed_footer_at_the_new_end_before_the_old_one_goes: "src/vhd/resize.rs", "grow_fixed", 1;
    vhd_fixed_zeros_before_the_new_size: "src/vhd/resize.rs", "grow_fixed", 2;
    vhd_fixed_footer_before_the_slack_is_cut: "src/vhd/resize.rs", "cut_slack", 1;
    vhd_the_bitmap_of_a_new_last_block_before_its_entry: "src/vhd/resize.rs", "fill_with_zeros", 1;
    vhd_a_table_in_its_place_before_the_header: "src/vhd/resize.rs", "set_table_size", 1;
    vhd_another_footer_before_the_old_one_goes: "src/vhd/space.rs", "ensure_tail", 1;
    vhd_another_footer_before_the_file_is_cut: "src/vhd/space.rs", "trim", 1;
    vhd_footers_are_durable: "src/vhd/space.rs", "write_footers", 2;
    vhd_everything_is_durable_after_a_close: "src/vhd/space.rs", "end_session", 1;
    vhd_everything_is_durable_after_a_flush: "src/vhd/write.rs", "flush", 1;
    vhdx_a_new_file_before_its_identifier: "src/vhdx/create.rs", "create", 1;
    vhdx_a_table_in_its_place_before_the_regions: "src/vhdx/resize.rs", "move_bat", 1;
    vhdx_a_new_file_is_durable_when_made: "src/vhdx/create.rs", "create", 2;
    vhdx_one_header_before_the_other: "src/vhdx/header.rs", "update_once", 1;
    vhdx_a_replayed_log_before_it_is_dropped: "src/vhdx/image.rs", "make_writable", 1;
    vhdx_zeros_of_a_new_last_block_before_its_entry: "src/vhdx/resize.rs", "partial_zeros", 1;
    vhdx_pages_in_place_before_the_log_is_dropped: "src/vhdx/session.rs", "end_session", 1;
    vhdx_log_entry_before_the_pages: "src/vhdx/txn.rs", "append", 1;
    guest_bytes_before_the_map: "src/chain/io.rs", "fill", 1;
    merged_bytes_before_the_map: "src/ops/transfer.rs", "write", 1;
    merged_map_is_durable_at_the_end: "src/ops/transfer.rs", "run", 1;
}

/// Taken away in tests/crash/change.rs.
const ELSEWHERE: (&str, &str, usize) = ("src/vhd/parent.rs", "follow_parent", 1);

/// Bug this finds: a new wait in the write paths that no test takes away.
#[test]
fn every_barrier_of_the_source_is_taken_away_once() {
    let listed = |site: &Site| {
        let name = (site.file, site.function.as_str(), site.nth);
        BARRIERS.contains(&name)
            || name == ELSEWHERE
            || UNMISSED
                .iter()
                .any(|(file, function, nth, _)| (*file, *function, *nth) == (site.file, &site.function, site.nth))
    };
    let all = sites::all();
    let missing: Vec<String> = all.iter().filter(|site| !listed(site)).map(ToString::to_string).collect();
    assert!(missing.is_empty(), "not listed: {missing:?}");
    let stale = BARRIERS.iter().copied().chain(UNMISSED.iter().map(|&(file, function, nth, _)| (file, function, nth)));
    for (file, function, nth) in stale {
        let _ = site(file, function, nth);
    }
    assert_eq!(sites::files_with_syncs(), Vec::<String>::new(), "files that tests/crash/sites.rs does not look at");
    budget::say(&format!("barriers taken away, each noticed: {}", BARRIERS.len()));
}

/// Bug this finds: workloads that no missing sync could spoil. Without all the syncs of the target a merge must fail in some
/// crash state.
#[test]
fn a_merge_without_any_barrier_is_noticed() {
    for format in [Format::Vhd, Format::Vhdx] {
        let merge = Merge::new(generate::known(format).swap_remove(1));
        let report =
            merge.walk(&ExploreOptions::seeded(budget::seed()), &|disk| disk.drop_syncs(&files::name(0), None));
        assert!(report.first_failure.is_some(), "{format}: no failure in {} states", report.states);
    }
}

macro_rules! groups {
    ($($name:ident: $($file:literal, $function:literal, $nth:literal);+ . )*) => {
        $(
            /// Each alone is covered by the others; without all of them something is missed.
            #[test]
            fn $name() {
                let group = [$(site($file, $function, $nth)),+];
                let found = without(&group).unwrap_or_else(|| panic!("nothing is missed without {group:?}"));
                println!("without all of {}: {found}", stringify!($name));
            }
        )*
    };
}

groups! {
    vhd_new_fixed_footer_or_its_close: "src/vhd/create.rs", "create", 1; "src/vhd/space.rs", "end_session", 1 .
    vhd_new_footers_or_their_close: "src/vhd/create.rs", "lay_out", 2; "src/vhd/space.rs", "end_session", 1 .
    vhd_new_header_and_the_footers_that_lead_to_it:
        "src/vhd/parent.rs", "write_link", 1; "src/vhd/space.rs", "write_footers", 1 .
    vhd_header_at_home_and_the_footers_that_lead_back:
        "src/vhd/parent.rs", "write_link", 2; "src/vhd/space.rs", "write_footers", 1 .
    vhd_a_grown_disk_before_its_footers:
        "src/vhd/resize.rs", "grow_sparse", 1; "src/vhd/space.rs", "write_footers", 1 .
    vhd_a_longer_table_before_the_footers:
        "src/vhd/resize.rs", "set_table_size", 2; "src/vhd/resize.rs", "grow_sparse", 1;
        "src/vhd/space.rs", "write_footers", 1 .
    vhdx_zeros_of_a_last_block_before_the_size:
        "src/vhdx/resize.rs", "zero_tail", 1; "src/vhdx/resize.rs", "grow", 1 .
}
