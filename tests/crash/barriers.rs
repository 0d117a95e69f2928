//! Bug this finds: an explorer and workloads that would not notice that a wait for the medium is gone. One test for each
//! wait of the write paths: with it taken away the rules are broken in some crash state. Where two of them stand for each
//! other, both are taken away. The list is held against the source, so a new wait cannot be forgotten.

use crate::budget;
use crate::case::{Case, Judge, Recorded};
use crate::create::Creation;
use crate::generate;
use crate::guest::{self, Guest};
use crate::merge::Merge;
use crate::sites::{self, Site};
use crate::{chains, files};
use std::sync::Arc;
use vhdkit::Format;
use vhdkit::chain::Layer;
use vhdkit::storage::sim::{CrashState, ExploreOptions, SimDisk};
use vhdkit::storage::{Access, Storage};

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

/// Shows the workloads that the barriers of a format are looked for in to `visit`, the cheapest first, until it has seen
/// enough.
fn each_workload(format: Format, visit: &mut dyn FnMut(&dyn Case) -> bool) -> bool {
    let guests: Vec<Guest> = guest::known(format).into_iter().map(Guest::new).collect();
    Creation::all(format).iter().any(|case| visit(case))
        || guests.iter().any(|case| visit(case))
        || generate::known(format).into_iter().any(|spec| visit(&Merge::new(spec)))
        || (format == Format::Vhd && guests.iter().flat_map(Mending::of).any(|case| visit(&case)))
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

/// The site of that name.
fn site(file: &str, function: &str, nth: usize) -> Site {
    let all = sites::all();
    let found = all.into_iter().find(|site| site.file == file && site.function == function && site.nth == nth);
    found.unwrap_or_else(|| panic!("{file} has no {function} #{nth} that waits"))
}

/// Syncs that no state here misses, taken away alone: why.
const UNMISSED: &[(&str, &str, usize, &str)] = &[
    (
        "src/ops/transfer.rs",
        "run",
        2,
        "a VHDX has the map in its log, and a VHD's checkpoint is compared before it is believed",
    ),
    ("src/ops/transfer.rs", "run", 3, "as before"),
    ("src/vhd/create.rs", "create", 1, "the close that follows covers it"),
    ("src/vhd/open.rs", "mend", 2, "the copy at the start leads meanwhile"),
    ("src/vhd/create.rs", "lay_out", 2, "the close that follows covers it"),
    ("src/vhd/resize.rs", "cut_table", 1, "that of the shorter table covers it"),
    ("src/vhd/space.rs", "ensure_tail", 1, "the copy at the start leads meanwhile"),
    ("src/vhd/space.rs", "trim", 1, "the copy at the start leads meanwhile"),
    ("src/vhd/space.rs", "write_footers", 1, "each is one sector, and either leads; see the pairs below"),
    ("src/vhd/parent.rs", "write_link", 2, "that between the footers covers it; see the pairs below"),
    ("src/vhd/parent.rs", "write_link", 1, "that between the footers covers it; see the pairs below"),
    (
        "src/vhd/parent.rs",
        "follow_parent",
        1,
        "no workload here changes a parent's id; tests/crash/change.rs crashes those",
    ),
    (
        "src/vhdx/session.rs",
        "cut_tail",
        1,
        "the file is given back after the log was emptied; no workload fills it again",
    ),
    ("src/vhd/resize.rs", "grow_sparse", 1, "that before the new size covers it"),
    ("src/vhd/resize.rs", "finish_shrink", 1, "only keeps the file tidy"),
    ("src/vhd/resize.rs", "set_table_size", 2, "those of the footers cover it"),
    ("src/vhd/resize.rs", "grow_sparse", 2, "that between the footers covers it"),
    ("src/vhd/resize.rs", "set_table_size", 1, "no workload here moves a table that holds blocks"),
    ("src/vhd/resize.rs", "fill_with_zeros", 1, "that before the new size covers it"),
    ("src/vhdx/create.rs", "create", 1, "a half-made file does not open without its headers"),
    ("src/vhdx/write.rs", "flush", 1, "what was published is in the log already"),
    ("src/vhdx/resize.rs", "finish_shrink", 1, "only keeps the file tidy"),
    ("src/vhdx/resize.rs", "move_bat", 1, "no workload here moves a table"),
    ("src/vhdx/resize.rs", "grow", 1, "the log entry of the table covers it"),
    ("src/vhdx/resize.rs", "zero_tail", 1, "no workload here has bytes past the end when it grows"),
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
    vhd_footers_are_durable: "src/vhd/space.rs", "write_footers", 2;
    vhd_everything_is_durable_after_a_close: "src/vhd/space.rs", "end_session", 1;
    vhd_everything_is_durable_after_a_flush: "src/vhd/write.rs", "flush", 1;
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

/// Bug this finds: a new wait in the write paths that no test takes away.
#[test]
fn every_barrier_of_the_source_is_taken_away_once() {
    let listed = |site: &Site| {
        BARRIERS.contains(&(site.file, site.function.as_str(), site.nth))
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

/// Either sync alone is enough; without both a crash leaves footers that lead to a header that is not there.
#[test]
fn vhd_new_header_and_the_footers_that_lead_to_it() {
    let both = [site("src/vhd/parent.rs", "write_link", 1), site("src/vhd/space.rs", "write_footers", 1)];
    let found = without(&both).expect("a header that was never written is missed");
    println!("without both: {found}");
}
