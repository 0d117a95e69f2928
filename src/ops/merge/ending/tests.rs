//! The names a merge changes when it ends, at every crash: of real files, in a model of their directory.

use super::*;
use crate::link::DiskKind;
use crate::ops::{CreateOptions, create, merge};
use crate::storage::atomic::model::{Left, explore};
use crate::storage::atomic::steps::{self, Step, Without};
use crate::watch::Watch;

fn is_directory_sync(step: &Step) -> bool {
    matches!(step, Step::SyncDirectory(_))
}

fn is_file_sync(step: &Step) -> bool {
    matches!(step, Step::SyncFile(_))
}

/// Merges two files into a third and deletes them, without a step when one is given, and looks at the names after every
/// crash; `None` when there is no such step.
fn crash(format: Format, without: Without) -> Option<std::result::Result<usize, String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(format!("{name}.{format}"));
    let (base, middle, leaf) = (path("base"), path("middle"), path("leaf"));
    create(&base, &CreateOptions::new(format, DiskKind::Dynamic).size(1 << 20)).unwrap();
    for (child, parent) in [(&middle, &base), (&leaf, &middle)] {
        create(child, &CreateOptions::new(format, DiskKind::Differencing).parent(parent)).unwrap();
    }
    let note = dir.path().join(format!(".leaf.{format}.vhdkit-merge-end"));
    let steps = steps::record(without, || {
        merge(&leaf, &MergeOptions::depth(2).delete(true), &Watch::none()).unwrap();
    })?;
    Some(explore(&[&base, &middle, &leaf], &steps, &mut |names, done| {
        let (has_leaf, has_middle) = (names.contains_key(&leaf), names.contains_key(&middle));
        if has_leaf && !has_middle {
            return Err("the leaf is left without its parent".to_owned());
        }
        if done && (has_leaf || has_middle || names.contains_key(&note)) {
            return Err("the merge is over and left something".to_owned());
        }
        match names.get(&note) {
            Some(Left::New { whole: true, .. }) => Ok(()),
            Some(_) => Err("half a note".to_owned()),
            None if !has_leaf && has_middle => Err("the leaf is gone and nothing says what is left to do".to_owned()),
            None => Ok(()),
        }
    }))
}

#[test]
fn the_names_of_a_merge_that_ends_survive_every_crash() {
    for format in [Format::Vhd, Format::Vhdx] {
        let states = crash(format, None).unwrap().unwrap();
        assert!(states > 20, "{states}");
    }
}

/// Bug this finds: a sync of a name or of the note that no crash would miss.
#[test]
fn every_sync_of_the_names_of_a_merge_that_ends_is_missed() {
    for format in [Format::Vhd, Format::Vhdx] {
        let mut without = 0;
        for kind in [is_directory_sync as fn(&Step) -> bool, is_file_sync] {
            let mut nth = 0;
            while let Some(found) = crash(format, Some((kind, nth))) {
                assert!(found.is_err(), "{format}: nothing is missed without number {nth}");
                (nth, without) = (nth + 1, without + 1);
            }
        }
        // The note, its bytes and its removal, and two merged files.
        assert_eq!(without, 5, "{format}");
    }
}
