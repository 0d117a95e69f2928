//! Chains that land on another machine: described, found again, linked anew, taken back.

use crate::lab::{KIB, Lab, MIB, any, pattern, shows, write};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{
    AbsolutePath, ExportOptions, FoundBy, ImportOptions, ImportOutcome, ImportReport, Manifest, NotImported,
    ReparentOptions, adopt, cleanup_import, export, import, imports, reparent,
};
use vhdkit::{ErrorKind, HintKind, ImageId, Watch};

/// A folder as Hyper-V exports it: disks in one place, checkpoints in another, `D:\...` parents in the children.
struct Export {
    lab: Lab,
    manifest: Manifest,
    views: BTreeMap<String, Vec<u8>>,
}

const FILES: [&str; 5] = [
    "vm/Virtual Hard Disks/base.vhdx",
    "vm/Snapshots/base_1.avhdx",
    "vm/Snapshots/base_2.avhdx",
    "vm/Virtual Hard Disks/data.vhd",
    "vm/Snapshots/data_1.vhd",
];

impl Export {
    fn new() -> Self {
        let lab = Lab::new();
        let base = lab.disk(FILES[0], 4 * MIB);
        write(&base, 5, &pattern(70 * KIB, 1));
        let one = lab.child(FILES[1], &base);
        write(&one, MIB, &pattern(9 * KIB, 2));
        let two = lab.child(FILES[2], &one);
        write(&two, 3 * MIB, &pattern(8 * KIB, 3));
        let data = lab.disk(FILES[3], 2 * MIB);
        write(&data, 0, &pattern(6 * KIB, 4));
        let data_1 = lab.child(FILES[4], &data);
        write(&data_1, 4 * KIB, &pattern(6 * KIB, 5));
        for (child, parent) in [(&one, &base), (&two, &one), (&data_1, &data)] {
            let relative = parent.strip_prefix(&lab.root).unwrap().to_string_lossy().replace('/', "\\");
            let options = ReparentOptions::new().absolute(AbsolutePath::Set(format!("D:\\{relative}")));
            reparent(child, parent, &options.chain(any())).unwrap();
        }
        let chain = any().map("D:\\", &lab.root).unwrap();
        let options = ExportOptions::new().hash(true).chain(chain);
        let manifest = export(&[two, data_1], &options, &Watch::none()).unwrap();
        let views = FILES.iter().map(|&name| (name.to_owned(), shows(&lab.root.join(name)))).collect();
        Self { lab, manifest, views }
    }

    /// The files, moved and renamed below `new`: nothing that any of them says is right any more.
    fn landed(&self) -> PathBuf {
        let new = self.lab.root.join("srv");
        for (index, name) in FILES.iter().enumerate() {
            let extension = Path::new(name).extension().unwrap().to_string_lossy();
            let to = new.join(format!("d{index}")).join(format!("x{index}.{extension}"));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::rename(self.lab.root.join(name), to).unwrap();
        }
        fs::remove_dir_all(self.lab.root.join("vm")).unwrap();
        new
    }

    /// Where file `index` landed.
    fn at(&self, index: usize) -> PathBuf {
        let extension = Path::new(FILES[index]).extension().unwrap().to_string_lossy();
        self.lab.root.join("srv").join(format!("d{index}")).join(format!("x{index}.{extension}"))
    }

    /// File `index` opens by its own paths, and shows what it showed.
    #[track_caller]
    fn opens(&self, index: usize) {
        assert!(shows(&self.at(index)) == self.views[FILES[index]], "{index}");
    }
}

/// Every file below `directory` but records, and its bytes.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut open = vec![directory.to_path_buf()];
    let mut found = BTreeMap::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if path.file_name().is_some_and(|name| name == ".vhdkit") => {}
                true => open.push(path),
                false => drop(found.insert(path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    found
}

/// What a child says of its parent.
fn link(path: &Path) -> (Vec<ImageId>, Vec<(HintKind, String)>) {
    let layer = Chain::open_leaf(path, &ChainOptions::new()).unwrap();
    let link = layer.image().parent_link().unwrap();
    (link.ids, link.hints.into_iter().map(|hint| (hint.kind, hint.path)).collect())
}

fn hint(path: &Path, kind: HintKind) -> Option<String> {
    link(path).1.into_iter().find(|hint| hint.0 == kind).map(|hint| hint.1)
}

fn why(report: &ImportReport, index: usize) -> NotImported {
    let name = Path::new(FILES[index]).file_name().unwrap().to_str().unwrap();
    report.not_imported.iter().find(|missing| missing.name == name).expect(name).why.clone()
}

#[test]
fn a_manifest_names_every_file_once_and_comes_back_from_its_text() {
    let export = Export::new();
    let names: Vec<&str> = export.manifest.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["base.vhdx", "base_1.avhdx", "base_2.avhdx", "data.vhd", "data_1.vhd"]);
    let parents: Vec<Option<usize>> = export.manifest.files.iter().map(|file| file.parent).collect();
    assert_eq!(parents, [None, Some(0), Some(1), None, Some(3)]);
    assert_eq!(export.manifest.files[1].path.as_deref(), Some("D:\\vm\\Snapshots\\base_1.avhdx"));
    let path = export.lab.root.join("manifest.json");
    export.manifest.write(&path, false).unwrap();
    assert_eq!(Manifest::read(&path).unwrap(), export.manifest);
    assert_eq!(export.manifest.write(&path, false).unwrap_err().kind(), ErrorKind::Refused);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.trim_end(), export.manifest.to_json());
    for (from, to, kind) in [
        ("\"version\": 1", "\"version\": 2", ErrorKind::Unsupported),
        ("\"parent\": 1", "\"parent\": 7", ErrorKind::Corrupt),
        ("\"parent\": 1", "\"parent\": 2", ErrorKind::Corrupt),
        ("\"parent\": 1", "\"parent\": 4", ErrorKind::Corrupt),
        ("\"name\": \"data.vhd\"", "\"name\": \"../data.vhd\"", ErrorKind::Corrupt),
        ("\"format\": \"vhd\"", "\"format\": \"raw\"", ErrorKind::Corrupt),
        ("\"format\": \"vhd\"", "\"format\": \"qcow2\"", ErrorKind::Corrupt),
        ("\"files\"", "\"disks\"", ErrorKind::Corrupt),
    ] {
        assert!(text.contains(from));
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        assert_eq!(Manifest::read(&path).unwrap_err().kind(), kind, "{from} -> {to}");
    }
}

#[test]
fn moved_and_renamed_files_are_found_by_identity_and_linked_anew() {
    let export = Export::new();
    let new = export.landed();
    let before = snapshot(&new);
    let map = ChainOptions::new().map("E:\\VMs", &new).unwrap();
    // A look first: nothing is written, and the chains open with their parents named.
    let look = ImportOptions::new().read_only(true).verify_hash(true);
    let report = import(&export.manifest, &new, &look, &Watch::none()).unwrap();
    assert_eq!((report.outcome, report.id.as_deref()), (ImportOutcome::Complete, None));
    assert_eq!(snapshot(&new), before);
    assert!(!new.join(".vhdkit").exists());
    for chain in &report.chains {
        let options = chain.parents.iter().fold(ChainOptions::new(), ChainOptions::parent);
        assert_eq!(Chain::open(&chain.leaf, &options).unwrap().layers().len(), chain.parents.len() + 1);
    }
    assert_eq!(report.chains.len(), 2);
    // Then in earnest.
    let options = ImportOptions::new().verify_hash(true).chain(map);
    let report = import(&export.manifest, &new, &options, &Watch::none()).unwrap();
    assert_eq!(report.outcome, ImportOutcome::Complete);
    assert!(report.imported.iter().all(|one| one.found_by == FoundBy::Identity));
    let relinked: Vec<bool> = report.imported.iter().map(|one| one.relinked).collect();
    assert_eq!(relinked, [false, true, true, false, true]);
    (0..FILES.len()).for_each(|index| export.opens(index));
    assert_eq!(hint(&export.at(1), HintKind::Relative).as_deref(), Some("..\\d0\\x0.vhdx"));
    assert_eq!(hint(&export.at(1), HintKind::Absolute).as_deref(), Some("\\\\?\\E:\\VMs\\d0\\x0.vhdx"));
    assert_eq!(hint(&export.at(4), HintKind::Absolute).as_deref(), Some("E:\\VMs\\d3\\x3.vhd"));
    // Again there is nothing to do.
    let again = import(&export.manifest, &new, &options.verify_hash(false), &Watch::none()).unwrap();
    assert_eq!((again.outcome, again.id), (ImportOutcome::Complete, None));
    // And back: every link is as it was, with its old paths in their old order.
    let links_before: Vec<_> = [1, 2, 4].map(|index| before[&export.at(index)].clone()).into();
    let registry = new.join(".vhdkit");
    assert_eq!(imports(&registry).unwrap(), [report.id.clone().unwrap()]);
    let back = cleanup_import(&registry, report.id.as_deref().unwrap()).unwrap();
    assert_eq!((back.restored.len(), back.left.len()), (3, 0));
    for (index, old) in [1, 2, 4].into_iter().zip(links_before) {
        let copy = export.lab.root.join("old").with_extension(export.at(index).extension().unwrap());
        fs::write(&copy, old).unwrap();
        assert_eq!(link(&export.at(index)), link(&copy), "{index}");
        assert_eq!(hint(&export.at(index), HintKind::Absolute), hint(&copy, HintKind::Absolute));
    }
    assert_eq!(imports(&registry).unwrap(), Vec::<String>::new());
    assert_eq!(cleanup_import(&registry, "none").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn files_in_their_place_are_found_by_their_paths() {
    let export = Export::new();
    let new = export.lab.root.join("new home");
    fs::rename(export.lab.root.join("vm"), &new).unwrap();
    let map = ChainOptions::new().map("D:\\vm", &new).unwrap();
    let report = import(&export.manifest, &new, &ImportOptions::new().chain(map), &Watch::none()).unwrap();
    assert_eq!(report.outcome, ImportOutcome::Complete);
    assert!(report.imported.iter().all(|one| one.found_by == FoundBy::Path && !one.relinked), "{report:?}");
    assert_eq!(report.id, None, "nothing was written");
    // Without a map the names do.
    let report = import(&export.manifest, &new, &ImportOptions::new(), &Watch::none()).unwrap();
    assert!(report.imported.iter().all(|one| one.found_by == FoundBy::Name), "{report:?}");
}

#[test]
fn duplicates_and_missing_files_are_told_apart_and_the_rest_is_imported() {
    let export = Export::new();
    let new = export.landed();
    fs::remove_file(export.at(3)).unwrap();
    fs::copy(export.at(1), new.join("copy of 1.avhdx")).unwrap();
    let report = import(&export.manifest, &new, &ImportOptions::new(), &Watch::none()).unwrap();
    assert_eq!(report.outcome, ImportOutcome::SomeNotImported);
    assert_eq!(report.imported.len(), 1, "the base");
    let both = vec![new.join("copy of 1.avhdx"), export.at(1)];
    assert_eq!(why(&report, 1), NotImported::Ambiguous { candidates: both.clone() });
    let NotImported::ParentNotImported { path, candidates, .. } = why(&report, 2) else { panic!("{report:?}") };
    assert_eq!((path, candidates), (export.at(2), both));
    assert_eq!(why(&report, 3), NotImported::Missing);
    assert!(matches!(why(&report, 4), NotImported::ParentNotImported { .. }));
    // The caller knows which one.
    let options = ImportOptions::new().file(export.at(1));
    let report = import(&export.manifest, &new, &options, &Watch::none()).unwrap();
    assert_eq!(report.imported.len(), 3);
    assert_eq!(report.imported[1].found_by, FoundBy::Given);
    (0..3).for_each(|index| export.opens(index));
    // Nothing at all.
    let empty = export.lab.root.join("empty");
    fs::create_dir(&empty).unwrap();
    let report = import(&export.manifest, &empty, &ImportOptions::new(), &Watch::none()).unwrap();
    assert_eq!((report.outcome, report.not_imported.len()), (ImportOutcome::NoneImported, 5));
}

#[test]
fn a_file_that_was_changed_is_not_taken_for_the_one_that_was_exported() {
    let export = Export::new();
    // A VHDX that was written to has another id; under its own name it is said to be another.
    write(&export.lab.root.join(FILES[2]), 0, b"later");
    let new = export.lab.root.join("vm");
    let map = any().map("D:\\", &export.lab.root).unwrap();
    let options = ImportOptions::new().chain(map);
    let report = import(&export.manifest, &new, &options, &Watch::none()).unwrap();
    let NotImported::OtherIdentity { path, .. } = why(&report, 2) else { panic!("{report:?}") };
    assert_eq!(path, export.lab.root.join(FILES[2]));
    assert_eq!(report.imported.len(), 4);
    // A VHD keeps its id, so only its bytes tell.
    write(&export.lab.root.join(FILES[3]), 0, b"later");
    let report = import(&export.manifest, &new, &options.verify_hash(true), &Watch::none()).unwrap();
    assert_eq!(why(&report, 3), NotImported::OtherBytes { path: export.lab.root.join(FILES[3]) });
    assert!(matches!(why(&report, 4), NotImported::ParentNotImported { .. }));
    // A file that is no image any more.
    fs::write(export.lab.root.join(FILES[0]), b"gone").unwrap();
    let report = import(&export.manifest, &new, &ImportOptions::new(), &Watch::none()).unwrap();
    assert!(matches!(why(&report, 0), NotImported::Broken { .. }), "{report:?}");
}

#[test]
fn a_folder_is_adopted_without_a_manifest() {
    let export = Export::new();
    let new = export.landed();
    let report = adopt(&new, &ImportOptions::new(), &Watch::none()).unwrap();
    assert_eq!(report.outcome, ImportOutcome::Complete);
    assert_eq!((report.imported.len(), report.chains.len()), (5, 2));
    (0..FILES.len()).for_each(|index| export.opens(index));
    cleanup_import(new.join(".vhdkit"), report.id.as_deref().unwrap()).unwrap();
    Chain::open(export.at(2), &any()).unwrap_err();
    // A base that is there twice leaves its child without a parent until the caller says which.
    fs::copy(export.at(3), new.join("data copy.vhd")).unwrap();
    fs::remove_file(export.at(0)).unwrap();
    let report = adopt(&new, &ImportOptions::new(), &Watch::none()).unwrap();
    assert_eq!(report.outcome, ImportOutcome::SomeNotImported);
    let reasons: BTreeMap<&str, &NotImported> =
        report.not_imported.iter().map(|missing| (missing.name.as_str(), &missing.why)).collect();
    let NotImported::ParentNotImported { candidates, .. } = reasons["x4.vhd"] else { panic!("{report:?}") };
    assert_eq!(candidates.len(), 2);
    assert!(matches!(reasons["x1.avhdx"], NotImported::ParentNotImported { candidates, .. } if candidates.is_empty()));
    assert!(matches!(reasons["x2.avhdx"], NotImported::ParentNotImported { .. }));
    let report = adopt(&new, &ImportOptions::new().file(export.at(3)), &Watch::none()).unwrap();
    assert!(report.imported.iter().any(|one| one.name == "x4.vhd" && one.relinked), "{report:?}");
    export.opens(4);
}

#[test]
fn a_cleanup_leaves_links_that_were_written_since() {
    let export = Export::new();
    let new = export.landed();
    let report = adopt(&new, &ImportOptions::new(), &Watch::none()).unwrap();
    let options = ReparentOptions::new().absolute(AbsolutePath::Set("F:\\x.vhdx".to_owned())).chain(any());
    reparent(export.at(1), export.at(0), &options).unwrap();
    fs::remove_file(export.at(4)).unwrap();
    let back = cleanup_import(new.join(".vhdkit"), report.id.as_deref().unwrap()).unwrap();
    assert_eq!((back.restored, back.left.len()), (vec![export.at(2)], 2));
    export.opens(1);
}

#[test]
fn one_import_at_a_time_and_disks_with_one_id_are_warned_of() {
    let lab = Lab::new();
    let one = lab.disk("a/one.vhdx", 2 * MIB);
    fs::copy(&one, lab.path("a/two.vhdx")).unwrap();
    let report = adopt(lab.root.join("a"), &ImportOptions::new(), &Watch::none()).unwrap();
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert!(report.warnings[0].contains("one.vhdx") && report.warnings[0].contains("two.vhdx"));
    let lock = fs::File::create(lab.root.join("a/.vhdkit/lock")).unwrap();
    lock.lock().unwrap();
    let busy = adopt(lab.root.join("a"), &ImportOptions::new(), &Watch::none()).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::InUse);
}

#[test]
fn whole_chains_get_identities_of_their_own() {
    let export = Export::new();
    let new = export.landed();
    let id = |index: usize| vhdkit::ops::info(export.at(index), &any(), false).unwrap().id.unwrap();
    let before: Vec<String> = (0..FILES.len()).map(id).collect();
    let report = adopt(&new, &ImportOptions::new().fresh_ids(true), &Watch::none()).unwrap();
    assert_eq!((report.outcome, report.id.as_deref()), (ImportOutcome::Complete, None));
    assert_eq!(imports(new.join(".vhdkit")).unwrap(), Vec::<String>::new(), "there is no way back");
    let after: Vec<String> = (0..FILES.len()).map(id).collect();
    assert!(before.iter().zip(&after).all(|(old, new)| old != new));
    assert!(after[0] == after[1] && after[1] == after[2], "one VHDX chain is one disk: {after:?}");
    assert_ne!(after[3], after[4]);
    (0..FILES.len()).for_each(|index| export.opens(index));
    // Not as long as something is missing.
    fs::remove_file(export.at(3)).unwrap();
    let report = adopt(&new, &ImportOptions::new().fresh_ids(true), &Watch::none()).unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("identity of its own")), "{report:?}");
    assert_eq!((0..3).map(id).collect::<Vec<_>>(), after[..3]);
}
