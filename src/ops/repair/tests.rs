//! Repairs of whole files: planned, made, interrupted, taken back.

use super::*;
use crate::image::Format;
use crate::link::DiskKind;
use crate::mend::Edit;
use crate::ops::{CheckOptions, CreateOptions, check, create};
use crate::storage::MemoryStorage;
use crate::storage::sim::{ExploreOptions, SimDisk};
use crate::units::MIB;
use std::fs;
use tempfile::TempDir;

const SEED: u64 = 0x5EED_0004;
const BLOCK: u64 = 64 << 10;

fn dynamic() -> CreateOptions {
    CreateOptions::new(Format::Vhd, DiskKind::Dynamic).size(MIB)
}

/// A 1 MiB VHD in blocks of 64 KiB, three of them written.
fn sample() -> Vec<u8> {
    use crate::chain::{Chain, ChainOptions};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    create(&path, &dynamic().block_size(BLOCK as u32)).unwrap();
    let mut chain = Chain::open(&path, &ChainOptions::new().access(Access::Write)).unwrap();
    for block in [2, 5, 9u64] {
        chain.write_at(&vec![block as u8; BLOCK as usize], block * BLOCK).unwrap();
    }
    chain.close().unwrap();
    fs::read(&path).unwrap()
}

/// A damaged image, what it is called, and what its repair has to be allowed.
fn damaged() -> Vec<(&'static str, Vec<u8>, Vec<RepairKind>)> {
    let good = sample();
    let tail = good.len() - 512;
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let entry = |block: usize| 1536 + 4 * block;
    let leaking = with(&|bytes| {
        bytes.truncate(tail);
        bytes.resize(tail + 100_000, 0);
        bytes.extend_from_slice(&[8; 40_000]);
        bytes.resize(bytes.len().next_multiple_of(512), 8);
        bytes.extend_from_slice(&good[tail..]);
    });
    vec![
        ("cut footer", good[..tail].to_vec(), vec![]),
        ("bad footer", with(&|bytes| bytes[tail + 300] ^= 1), vec![]),
        ("bad copy", with(&|bytes| bytes[300] ^= 1), vec![]),
        ("leaked space", leaking, vec![]),
        ("cut block", good[..tail - 30_000].to_vec(), vec![RepairKind::UnmapLostBlocks]),
        ("cut block, extended", good[..tail - 30_000].to_vec(), vec![RepairKind::ZeroExtend]),
        (
            "past the end",
            with(&|bytes| bytes[entry(5)..entry(6)].copy_from_slice(&[0, 1, 0, 0])),
            vec![RepairKind::UnmapLostBlocks],
        ),
        // The new footer ends in a sector of which the file had a part, with other bytes.
        (
            "footer cut in the middle",
            with(&|bytes| {
                bytes.truncate(tail + 100);
                bytes[tail + 50] ^= 1;
            }),
            vec![],
        ),
    ]
}

fn placed(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn options(allow: &[RepairKind]) -> RepairOptions {
    allow.iter().fold(RepairOptions::new(), |options, &kind| options.allow(kind))
}

fn names(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_repair_is_planned_made_and_taken_back_byte_for_byte() {
    for (name, bytes, allow) in damaged() {
        let (folder, path) = placed(&bytes);
        let planned = repair(&path, &options(&allow).dry_run(true)).unwrap();
        assert!(planned.dry_run && planned.undo.is_none(), "{name}");
        assert_eq!((fs::read(&path).unwrap(), names(&folder)), (bytes.clone(), vec!["a.vhd".to_owned()]), "{name}");

        let report = repair(&path, &options(&allow)).unwrap();
        assert_eq!(report.repairs, planned.repairs, "{name}");
        assert!(!report.repairs.is_empty() && !report.resumed, "{name}");
        assert!(report.repairs.iter().all(|repaired| repaired.safe == repaired.loses.is_empty()), "{name}");
        assert!(report.findings.iter().all(|found| !found.finding.repairable), "{name}: {:?}", report.findings);
        assert_eq!(names(&folder), [".a.vhd.vhdkit-undo", "a.vhd"], "{name}");
        assert!(fs::read(&path).unwrap() != bytes, "{name}");

        let again = repair(&path, &options(&allow)).unwrap();
        assert!(again.repairs.is_empty() && again.undo.is_none(), "{name}: a second repair");
        undo_repair(&path).unwrap();
        assert!(fs::read(&path).unwrap() == bytes, "{name}: not brought back");
        assert_eq!(names(&folder), ["a.vhd"], "{name}");
        assert_eq!(undo_repair(&path).unwrap_err().kind(), ErrorKind::NotFound, "{name}");
    }
}

#[test]
fn nothing_is_lost_without_being_allowed() {
    for (name, bytes, allow) in damaged().into_iter().filter(|(.., allow)| !allow.is_empty()) {
        let (folder, path) = placed(&bytes);
        let report = repair(&path, &RepairOptions::new()).unwrap();
        assert!(report.repairs.is_empty(), "{name}: {:?} without {allow:?}", report.repairs);
        assert!(!report.findings.is_empty(), "{name}");
        assert_eq!((fs::read(&path).unwrap(), names(&folder)), (bytes, vec!["a.vhd".to_owned()]), "{name}");
    }
}

#[test]
fn an_image_in_good_order_is_left_alone() {
    let good = sample();
    let (folder, path) = placed(&good);
    let report = repair(&path, &options(&RepairKind::ALL)).unwrap();
    assert!(report.repairs.is_empty() && report.findings.is_empty());
    assert_eq!((fs::read(&path).unwrap(), names(&folder)), (good, vec!["a.vhd".to_owned()]));
}

/// The way back from one repair is not written over by the next.
#[test]
fn a_second_repair_waits_for_the_first_to_be_given_up() {
    let (_, bytes, _) = damaged().remove(0);
    let (_folder, path) = placed(&bytes);
    repair(&path, &RepairOptions::new()).unwrap();
    let mut other = fs::read(&path).unwrap();
    other[300] ^= 1;
    fs::write(&path, &other).unwrap();
    let refused = repair(&path, &RepairOptions::new()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.hint().unwrap().contains("--discard-undo"), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), other);
    assert_eq!(repair(&path, &RepairOptions::new().dry_run(true)).unwrap().repairs.len(), 1);
    repair(&path, &RepairOptions::new().discard_undo(true)).unwrap();
    undo_repair(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), other, "the way back leads to before the second repair");
}

#[test]
fn what_was_written_since_a_repair_is_not_thrown_away() {
    let (_, bytes, _) = damaged().remove(0);
    let (_folder, path) = placed(&bytes);
    repair(&path, &RepairOptions::new()).unwrap();
    let mut longer = fs::read(&path).unwrap();
    longer.extend_from_slice(&[1; 512]);
    fs::write(&path, &longer).unwrap();
    let refused = undo_repair(&path).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert_eq!(fs::read(&path).unwrap(), longer);

    let (_, bytes, _) = damaged().remove(2);
    let (_folder, path) = placed(&bytes);
    repair(&path, &RepairOptions::new()).unwrap();
    let mut other = fs::read(&path).unwrap();
    other[100] ^= 1;
    fs::write(&path, &other).unwrap();
    assert_eq!(undo_repair(&path).unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(fs::read(&path).unwrap(), other);
}

#[test]
fn a_damaged_undo_file_is_refused() {
    let (_, bytes, _) = damaged().remove(2);
    let (_folder, path) = placed(&bytes);
    repair(&path, &RepairOptions::new()).unwrap();
    let repaired = fs::read(&path).unwrap();
    let undo_path = undo_file(&path).unwrap();
    let kept = fs::read(&undo_path).unwrap();
    for at in (0..kept.len()).filter(|at| !(20..24).contains(at)) {
        let mut bad = kept.clone();
        bad[at] ^= 0x20;
        fs::write(&undo_path, &bad).unwrap();
        assert_eq!(undo_repair(&path).unwrap_err().kind(), ErrorKind::Refused, "byte {at}");
    }
    for len in 0..kept.len() {
        fs::write(&undo_path, &kept[..len]).unwrap();
        assert_eq!(undo_repair(&path).unwrap_err().kind(), ErrorKind::Refused, "{len} bytes");
    }
    assert_eq!(fs::read(&path).unwrap(), repaired);
    fs::write(&undo_path, &kept).unwrap();
    undo_repair(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn the_undo_file_is_as_private_as_the_image() {
    use std::os::unix::fs::PermissionsExt;
    let (_, bytes, _) = damaged().remove(0);
    let (_folder, path) = placed(&bytes);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    repair(&path, &RepairOptions::new()).unwrap();
    let mode = fs::metadata(undo_file(&path).unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A killed repair: some of its writes are there. The next one takes them back and starts again.
#[test]
fn an_interrupted_repair_is_run_again_or_undone() {
    for (name, bytes, allow) in damaged() {
        let whole = {
            let (_folder, path) = placed(&bytes);
            repair(&path, &options(&allow)).unwrap();
            fs::read(&path).unwrap()
        };
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&bytes));
        let steps = Image::plan_repair(Arc::clone(&storage), &allow).unwrap();
        let kept = MemoryStorage::new();
        Undo::write(&storage, &steps, &kept).unwrap();
        let edits: Vec<&Edit> = steps.iter().flat_map(|step| &step.edits).collect();
        for done in 0..=edits.len() {
            let image = MemoryStorage::from_bytes(&bytes);
            edits[..done].iter().for_each(|edit| apply::edit(&image, edit).unwrap());
            let (folder, path) = placed(&image.to_bytes().unwrap());
            fs::write(undo_file(&path).unwrap(), kept.to_bytes().unwrap()).unwrap();
            let report = repair(&path, &options(&allow)).unwrap();
            assert!(report.resumed, "{name} after {done} edits");
            assert!(fs::read(&path).unwrap() == whole, "{name} after {done} edits");
            undo_repair(&path).unwrap();
            assert!(fs::read(&path).unwrap() == bytes, "{name} after {done} edits");
            assert_eq!(names(&folder), ["a.vhd"], "{name}");
        }
    }
}

/// Whatever a crash in the middle leaves, the undo file is whole and leads back, or the image was not touched; and what
/// can be read of the image is never less than before.
#[test]
fn every_crash_of_a_repair_can_be_undone_and_run_again() {
    for (name, bytes, allow) in damaged() {
        let disk = SimDisk::new();
        let (image, kept) = (disk.add_file("image", &bytes), disk.file("undo"));
        let shared: Arc<dyn Storage> = Arc::<crate::storage::sim::SimFile>::clone(&image);
        let steps = Image::plan_repair(Arc::clone(&shared), &allow).unwrap();
        Undo::write(&shared, &steps, &*kept).unwrap();
        kept.sync().unwrap();
        apply::steps(&*image, &steps).unwrap();
        Undo::mark_done(&*kept).unwrap();
        let whole = image.contents().to_bytes().unwrap();
        let report = disk.explore(&ExploreOptions::seeded(SEED), |state| {
            let disk = state.disk();
            let image = disk.file("image");
            let now = image.contents().to_bytes().unwrap();
            let undo = Undo::read(&*disk.file("undo")).map_err(|error| error.to_string())?;
            let Some(undo) = undo else {
                return if now == bytes { Ok(()) } else { Err("changed before it could be undone".to_owned()) };
            };
            if undo.done && now != whole {
                return Err("said to be finished, and is not".to_owned());
            }
            // Without the way back: the repair can simply be run on.
            let onward: Arc<dyn Storage> = Arc::new(MemoryStorage::from_bytes(&now));
            let left = Image::plan_repair(Arc::clone(&onward), &allow).map_err(|error| format!("no plan: {error}"))?;
            apply::steps(&*onward, &left).map_err(|error| error.to_string())?;
            let left = Image::plan_repair(onward, &allow).map_err(|error| error.to_string())?;
            if !left.is_empty() {
                return Err(format!("run on, it still wants {left:?}"));
            }
            undo.restore(&*image, &*disk.file("undo")).map_err(|error| format!("does not go back: {error}"))?;
            let back = image.contents().to_bytes().unwrap();
            if back == bytes { Ok(()) } else { Err("not what it was".to_owned()) }
        });
        println!("{name}: {} crash states at {} points", report.states, report.points);
        report.assert_ok();
        assert!(report.states > 20, "{name}: {} states", report.states);
    }
}

#[test]
fn what_would_take_too_much_to_undo_is_refused() {
    let storage = MemoryStorage::new();
    storage.set_len(1 << 40).unwrap();
    let shared: Arc<dyn Storage> = Arc::new(storage);
    let steps = |range: Range<u64>| {
        let edits = vec![Edit::Zero(range), Edit::Sync];
        vec![Step { kind: RepairKind::ZeroExtend, what: String::new(), edits, loses: Vec::new() }]
    };
    Undo::write(&shared, &steps(0..1 << 40), &MemoryStorage::new()).unwrap();
    let count = undo::MAX_RUNS as u64 + 2;
    for at in 0..count {
        shared.write_all_at(&[1], at * (128 << 10)).unwrap();
    }
    let refused = Undo::write(&shared, &steps(0..1 << 40), &MemoryStorage::new()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
}

#[test]
fn a_chain_is_checked_link_by_link() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let make = |name: &str, options: &CreateOptions| create(path(name), options).unwrap();
    make("base.vhd", &dynamic());
    make("leaf.vhd", &CreateOptions::new(Format::Vhd, DiskKind::Differencing).parent(path("base.vhd")));
    make("twin.vhd", &CreateOptions::new(Format::Vhd, DiskKind::Differencing).parent(path("base.vhd")));
    let options = CheckOptions::new().chain(true);
    let report = check(path("leaf.vhd"), &options).unwrap();
    assert_eq!(report.worst(), None, "{report:?}");
    assert_eq!(report.files.iter().map(|file| file.depth).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(report.siblings, [fs::canonicalize(path("twin.vhd")).unwrap()]);
    assert_eq!(check(path("leaf.vhd"), &CheckOptions::new()).unwrap().files.len(), 1);

    // Damage in the parent is told of the parent; a parent that is gone, of the child.
    let mut bytes = fs::read(path("base.vhd")).unwrap();
    bytes[300] ^= 1;
    fs::write(path("base.vhd"), &bytes).unwrap();
    let report = check(path("leaf.vhd"), &options).unwrap();
    assert!(report.files[1].findings.iter().any(|found| found.finding.repairable), "{report:?}");
    fs::remove_file(path("base.vhd")).unwrap();
    let report = check(path("leaf.vhd"), &options).unwrap();
    assert_eq!(report.files.len(), 1);
    assert_eq!(report.files[0].findings[0].windows_name, Some("ERROR_VHD_PARENT_VHD_NOT_FOUND"));
    make("base.vhd", &dynamic());
    let report = check(path("leaf.vhd"), &options).unwrap();
    assert_eq!(report.files[0].findings[0].windows_name, Some("ERROR_VHD_CHILD_PARENT_ID_MISMATCH"));
}
