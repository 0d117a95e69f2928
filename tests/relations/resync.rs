//! Disks made to show what others show, by moving as little as possible.

use crate::lab::{KIB, Lab, MIB, any, pattern, shows, write};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{
    CompareOptions, ResyncIdentity, ResyncOptions, ResyncPair, ResyncReport, ResyncedPair, WhatDiffers, compare, resync,
};
use vhdkit::storage::Access;
use vhdkit::{CancelToken, Error, ErrorKind, Observer, Progress, Watch};

fn pair(source: &Path, target: &Path) -> ResyncPair {
    ResyncPair { source: source.to_path_buf(), target: target.to_path_buf() }
}

fn options() -> ResyncOptions {
    ResyncOptions::new().chain(any())
}

/// Resyncs one pair and expects that both show the same afterwards, and that nothing is left beside the target.
#[track_caller]
fn synced(source: &Path, target: &Path, options: &ResyncOptions) -> ResyncedPair {
    let before = shows(source);
    let mut report = resync(&[pair(source, target)], options, &Watch::none()).unwrap();
    assert!(shows(target) == before);
    assert!(shows(source) == before);
    assert!(!mark(target).exists());
    let [one, two] = [source, target].map(|path| Chain::open(path, &any()).unwrap());
    assert!(compare(&one, &two, &CompareOptions::new(), &Watch::none()).unwrap().equal);
    report.pairs.remove(0)
}

fn mark(target: &Path) -> PathBuf {
    target.with_file_name(format!(".{}.vhdkit-resync", target.file_name().unwrap().to_string_lossy()))
}

fn refused(source: &Path, target: &Path, options: &ResyncOptions) -> Error {
    let before = fs::read(target).unwrap();
    let error = resync(&[pair(source, target)], options, &Watch::none()).unwrap_err();
    assert!(fs::read(target).unwrap() == before, "nothing was written: {error}");
    assert!(!mark(target).exists());
    error
}

#[test]
fn only_what_differs_moves_between_all_formats() {
    for (from, to) in [("s.vhdx", "t.vhdx"), ("s.vhd", "t.vhdx"), ("s.vhdx", "t.vhd"), ("s.vhd", "t.vhd")] {
        let lab = Lab::new();
        let (source, target) = (lab.disk(from, 8 * MIB), lab.disk(to, 8 * MIB));
        write(&source, 0, &pattern(5 * MIB, 1));
        let first = synced(&source, &target, &options());
        assert_eq!((first.by, first.differing, first.moved), (WhatDiffers::Compared, 5 * MIB, 5 * MIB), "{from} {to}");
        write(&source, MIB, &pattern(4 * KIB, 2));
        write(&source, 7 * MIB, &pattern(2 * KIB, 3));
        write(&target, 3 * MIB + 512, &[0; 512]);
        write(&target, 6 * MIB, b"stray");
        let second = synced(&source, &target, &options());
        // What of the bytes happened to be the same in whole sectors does not move.
        assert!(second.differing <= 7 * KIB + 512, "{from} {to}: {second:?}");
        assert!(second.moved + second.zeroed <= second.differing, "{second:?}");
        let third = synced(&source, &target, &options());
        assert_eq!((third.differing, third.moved, third.zeroed), (0, 0, 0));
    }
}

#[test]
fn what_was_written_since_the_last_resync_is_known_without_reading() {
    let lab = Lab::new();
    let (source, target) = (lab.disk("s.vhdx", 64 * MIB), lab.disk("t.vhdx", 64 * MIB));
    write(&source, 0, &pattern(16 * MIB, 1));
    synced(&source, &target, &options());
    // Nothing was written: nothing is read.
    let again = synced(&source, &target, &options());
    assert_eq!((again.by, again.compared, again.moved), (WhatDiffers::Recorded, 0, 0));
    // Frozen, and written to above: exactly those sectors move.
    let leaf = lab.child("s1.vhdx", &source);
    write(&leaf, 5 * MIB, &pattern(24 * KIB, 2));
    write(&leaf, 40 * MIB, &pattern(8 * KIB, 3));
    let dry = resync(&[pair(&leaf, &target)], &options().dry_run(true), &Watch::none()).unwrap().pairs.remove(0);
    assert_eq!((dry.by, dry.differing), (WhatDiffers::Recorded, 32 * KIB));
    let since = synced(&leaf, &target, &options());
    assert_eq!((since.by, since.compared, since.moved), (WhatDiffers::Recorded, 0, 32 * KIB));
    // Somebody wrote to the target: the record is not believed.
    write(&target, 9 * MIB, b"stray");
    let looked = synced(&leaf, &target, &options());
    assert_eq!((looked.by, looked.differing), (WhatDiffers::Compared, 512));
    // Somebody wrote to the source itself: neither.
    write(&leaf, 9 * MIB, b"news");
    assert_eq!(synced(&leaf, &target, &options()).by, WhatDiffers::Compared);
    // A record that is damaged saves nothing.
    fs::write(lab.root.join(".t.vhdx.vhdkit-resynced"), "{").unwrap();
    assert_eq!(synced(&leaf, &target, &options()).by, WhatDiffers::Compared);
}

#[test]
fn one_percent_of_changes_moves_little_more_than_that() {
    let lab = Lab::new();
    let base = lab.disk("base.vhdx", 64 * MIB);
    write(&base, 0, &pattern(64 * MIB, 1));
    let copy = lab.disk("copy.vhd", 64 * MIB);
    synced(&base, &copy, &options());
    let leaf = lab.child("leaf.vhdx", &base);
    let blocks: Vec<u64> = (0..160).map(|at| (at * 7919) % 16384).collect();
    for &block in &blocks {
        write(&leaf, block * 4 * KIB, &pattern(4 * KIB, block + 2));
    }
    // By maps of a chain that shares its base, and by bytes with a copy of another format and block size.
    let beside = lab.child("beside.vhdx", &base);
    let by_maps = synced(&leaf, &beside, &options());
    assert!(by_maps.compared <= 160 * 4 * KIB, "{by_maps:?}");
    let by_bytes = synced(&leaf, &copy, &options());
    for one in [by_maps, by_bytes] {
        assert!(one.moved as f64 <= 1.1 * (blocks.len() as f64) * 4096.0, "{one:?}");
        assert!(one.moved > 100 * 4 * KIB);
    }
}

#[test]
fn sizes_follow_the_source() {
    for (from, to) in [("s.vhdx", "t.vhdx"), ("s.vhd", "t.vhd"), ("s.vhdx", "t.vhd")] {
        let lab = Lab::new();
        let (source, target) = (lab.disk(from, 3 * MIB), lab.disk(to, 7 * MIB));
        write(&source, 0, &pattern(2 * MIB, 1));
        write(&target, 0, &pattern(7 * MIB, 2));
        let cut = synced(&source, &target, &options());
        assert_eq!(cut.resized_from, Some(7 * MIB));
        let larger = lab.disk(&format!("larger-{from}"), 9 * MIB);
        write(&larger, 8 * MIB, &pattern(4 * KIB, 3));
        let small = refused(&larger, &target, &options());
        assert_eq!(small.kind(), ErrorKind::NoSpace);
        let grown = synced(&larger, &target, &options().grow(true));
        assert_eq!(grown.resized_from, Some(3 * MIB));
    }
}

#[test]
fn differencing_sources_and_targets() {
    for extension in ["vhd", "vhdx"] {
        let lab = Lab::new();
        let name = |stem: &str| format!("{stem}.{extension}");
        let base = lab.disk(&name("base"), 8 * MIB);
        write(&base, 0, &pattern(6 * MIB, 1));
        let one = lab.child(&name("one"), &base);
        write(&one, MIB, &pattern(MIB, 2));
        let two = lab.child(&name("two"), &base);
        write(&two, 2 * MIB, &pattern(MIB, 3));
        let base_before = shows(&base);
        // Where the target has its own bytes and the source shows the base's, they are written over it.
        let report = synced(&one, &two, &options());
        assert!(report.compared <= 2 * MIB && report.known_equal >= 6 * MIB, "{report:?}");
        assert!(shows(&base) == base_before);
        // And zeros of the source over data of the target's parent.
        let mut chain = Chain::open(&one, &any().access(Access::Write)).unwrap();
        chain.zero(4 * MIB..6 * MIB).unwrap();
        chain.close().unwrap();
        synced(&one, &two, &options());
        assert!(shows(&base) == base_before);
    }
}

#[test]
fn what_would_lose_somebodys_data_is_refused() {
    let lab = Lab::new();
    let base = lab.disk("base.vhdx", 4 * MIB);
    write(&base, 0, &pattern(MIB, 1));
    let leaf = lab.child("leaf.vhdx", &base);
    let other = lab.disk("other.vhdx", 4 * MIB);
    // The source stands on the target, is it, or the target on the source.
    assert_eq!(refused(&leaf, &base, &options()).kind(), ErrorKind::Refused);
    assert_eq!(refused(&base, &base, &options()).kind(), ErrorKind::Refused);
    assert_eq!(refused(&base, &leaf, &options()).kind(), ErrorKind::Refused);
    // Another image stands on the target.
    let children = refused(&other, &base, &options());
    assert_eq!(children.kind(), ErrorKind::Refused);
    assert!(children.to_string().contains("leaf.vhdx"), "{children}");
    // One target twice, nothing at all, one target that another pair reads.
    let twice = resync(&[pair(&base, &other), pair(&leaf, &other)], &options(), &Watch::none()).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::InvalidInput);
    assert_eq!(resync(&[], &options(), &Watch::none()).unwrap_err().kind(), ErrorKind::InvalidInput);
    let third = lab.disk("third.vhdx", 4 * MIB);
    let crossed = resync(&[pair(&base, &other), pair(&other, &third)], &options(), &Watch::none()).unwrap_err();
    assert_eq!(crossed.kind(), ErrorKind::Refused);
    // A partition that only the target has.
    let mut record = [0; 512];
    record[446 + 4] = 0x83;
    record[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    record[446 + 12..446 + 16].copy_from_slice(&2048u32.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xAA]);
    write(&third, 0, &record);
    let partition = refused(&other, &third, &options());
    assert!(partition.to_string().contains("a partition that the source has not: number 1"), "{partition}");
    synced(&other, &third, &options().volume_check(false));
    // Two targets that would be one disk to Windows.
    let copy = lab.path("copy.vhdx");
    fs::copy(&third, &copy).unwrap();
    let alike = [pair(&other, &third), pair(&other, &copy)];
    assert_eq!(resync(&alike, &options(), &Watch::none()).unwrap_err().kind(), ErrorKind::Refused);
    let report = resync(&alike, &options().identity(ResyncIdentity::Fresh), &Watch::none()).unwrap();
    assert_eq!(report.pairs.len(), 2);
    // In use.
    let _held = Chain::open(&copy, &ChainOptions::new()).unwrap();
    assert_eq!(refused(&other, &copy, &options()).kind(), ErrorKind::InUse);
}

#[test]
fn identities_stay_are_taken_or_are_fresh() {
    let id = |path: &Path| vhdkit::ops::info(path, &any(), false).unwrap().id;
    for extension in ["vhd", "vhdx"] {
        let lab = Lab::new();
        let source = lab.disk(&format!("s.{extension}"), 2 * MIB);
        let target = lab.disk(&format!("t.{extension}"), 2 * MIB);
        write(&source, 0, &pattern(MIB, 1));
        let [theirs, ours] = [id(&source), id(&target)];
        synced(&source, &target, &options());
        assert_eq!(id(&target), ours);
        synced(&source, &target, &options().identity(ResyncIdentity::TakeSource));
        assert_eq!(id(&target), theirs);
        synced(&source, &target, &options().identity(ResyncIdentity::Fresh));
        assert!(id(&target) != theirs && id(&target) != ours);
    }
}

/// Pulls the token when so many bytes have been moved.
struct StopAt {
    bytes: u64,
    token: CancelToken,
}

impl Observer for StopAt {
    fn progress(&self, progress: Progress) {
        if progress.moved >= self.bytes {
            self.token.cancel();
        }
    }
}

#[test]
fn an_interrupted_resync_marks_its_target_and_a_rerun_finishes() {
    for extension in ["vhd", "vhdx"] {
        let lab = Lab::new();
        let source = lab.disk(&format!("s.{extension}"), 256 * MIB);
        let target = lab.disk(&format!("t.{extension}"), 256 * MIB);
        // A little more than is made durable at a time.
        for at in 0..2 {
            write(&source, at * 128 * MIB, &pattern(36 * MIB, at + 1));
        }
        let stop = StopAt { bytes: 66 * MIB, token: CancelToken::new() };
        let watch = Watch::none().observer(&stop).cancel(&stop.token);
        let error = resync(&[pair(&source, &target)], &options(), &watch).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(error.hint().unwrap().contains("run again"), "{error:?}");
        assert!(mark(&target).exists());
        let chain = Chain::open(&target, &any()).unwrap();
        let findings = chain.leaf().findings().list();
        assert!(
            findings.iter().any(|finding| finding.problem.to_string().contains("parts of two disks")),
            "{findings:?}"
        );
        drop(chain);
        let report = synced(&source, &target, &options());
        assert!(report.resumed);
        assert!(report.moved <= 8 * MIB, "what was there is not moved again: {report:?}");
        let chain = Chain::open(&target, &any()).unwrap();
        assert!(chain.leaf().findings().list().is_empty());
    }
}

#[test]
fn data_moves_inside_the_file_system_or_not_at_all_when_asked() {
    let lab = Lab::new();
    let (source, target) = (lab.disk("s.vhdx", 4 * MIB), lab.disk("t.vhdx", 4 * MIB));
    write(&source, MIB, &pattern(MIB, 1));
    match resync(&[pair(&source, &target)], &options().require_offload(true), &Watch::none()) {
        Ok(report) => assert_eq!(report.pairs[0].offloaded, MIB),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
    }
    // Another file system is out of reach for most kernels; where it is not, everything went that way.
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let far = elsewhere.path().join("t.vhdx");
    fs::copy(&target, &far).unwrap();
    write(&source, 2 * MIB, &pattern(MIB, 2));
    match resync(&[pair(&source, &far)], &options().require_offload(true), &Watch::none()) {
        Ok(report) => assert_eq!(report.pairs[0].offloaded, report.pairs[0].moved),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(mark(&far).exists());
        }
    }
    synced(&source, &far, &options());
}

#[derive(Clone, Debug)]
struct Change {
    disk: usize,
    offset: u64,
    len: u64,
    zero: bool,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (0..3usize, 0..12 * 1024u64, 1..2048u64, any_bool());
    let change = change.prop_map(|(disk, at, len, zero)| Change { disk, offset: at * 512, len: len * 512, zero });
    prop::collection::vec(change, 1..12)
}

fn any_bool() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Two children of one base and a disk of its own, changed at random and resynced in turns, any format to any.
    #[test]
    fn whatever_changed_both_show_the_same_afterwards(
        rounds in prop::collection::vec((changes(), 0..3usize, 0..3usize), 1..4),
        formats in prop::array::uniform2(any_bool()),
    ) {
        let [shared, alone] = formats.map(|vhd| if vhd { "vhd" } else { "vhdx" });
        let lab = Lab::new();
        let base = lab.disk(&format!("base.{shared}"), 6 * MIB);
        write(&base, 3 * MIB, &pattern(2 * MIB, 9));
        let disks = [
            lab.child(&format!("a.{shared}"), &base),
            lab.child(&format!("b.{shared}"), &base),
            lab.disk(&format!("c.{alone}"), 6 * MIB),
        ];
        let mut models = disks.clone().map(|disk| shows(&disk));
        for (seed, (changes, from, to)) in (1..).zip(rounds) {
            for change in changes {
                let (start, end) = (change.offset.min(6 * MIB - 512), (change.offset + change.len).min(6 * MIB));
                let model = &mut models[change.disk][start as usize..end as usize];
                let mut chain = Chain::open(&disks[change.disk], &any().access(Access::Write)).unwrap();
                if change.zero {
                    model.fill(0);
                    chain.zero(start..end).unwrap();
                } else {
                    model.copy_from_slice(&pattern(end - start, seed));
                    chain.write_at(model, start).unwrap();
                }
                chain.close().unwrap();
            }
            if from != to {
                let report: ResyncReport =
                    resync(&[pair(&disks[from], &disks[to])], &options(), &Watch::none()).unwrap();
                prop_assert_eq!(report.pairs.len(), 1);
                models[to] = models[from].clone();
            }
            for (disk, model) in disks.iter().zip(&models) {
                prop_assert!(shows(disk) == *model);
            }
        }
    }
}
