//! One planted damage per rule: it is found, named, placed, and nothing else is said.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

use super::*;
use crate::guid::Guid;
use crate::storage::{FileStorage, Lock, MemoryStorage};
use crate::support::real;
use crate::units::{KIB, MIB, TIB};
use crate::vhdx::VhdxCreate;
use crate::vhdx::header::HeaderPair;
use crate::vhdx::image::tests::{Counting, child_of_nobody};
use crate::vhdx::raw::{HEADER_LEN, RawRegionEntry, RawRegionHeader, checksum};
use std::io;

/// Where the table of a file we create is.
pub(in crate::vhdx) const BAT: u64 = 3 * MIB;
const FULL: u64 = 6;
const PARTIAL: u64 = 7;

/// The place of entry `index`.
pub(in crate::vhdx) const fn entry(index: u64) -> u64 {
    BAT + 8 * index
}

pub(in crate::vhdx) fn created(options: &VhdxCreate) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::new());
    drop(Vhdx::create(storage.clone(), options).unwrap());
    storage
}

pub(in crate::vhdx) fn set(storage: &dyn Storage, index: u64, raw: u64) {
    storage.write_all_at(&raw.to_le_bytes(), entry(index)).unwrap();
}

/// A disk of 8 MiB in blocks of 1 MiB: blocks 0 to 3 lie at 4 to 7 MiB, each filled with its number plus 1.
pub(in crate::vhdx) fn sample(kind: DiskKind) -> Arc<MemoryStorage> {
    let options = VhdxCreate::new(8 * MIB).block_size(1 << 20).kind(kind);
    let storage = created(&if kind == DiskKind::Differencing { options.parent(child_of_nobody()) } else { options });
    if kind != DiskKind::Fixed {
        for block in 0..4u64 {
            set(&*storage, block, (4 + block) * MIB + FULL);
            storage.write_all_at(&vec![block as u8 + 1; MIB as usize], (4 + block) * MIB).unwrap();
        }
    }
    storage
}

/// A finding without its words.
type Brief = (Severity, Structure, Fault, Option<u64>, bool);

pub(in crate::vhdx) fn check(storage: &Arc<MemoryStorage>) -> (CheckSummary, Vec<Brief>) {
    let mut findings = Findings::new();
    let summary = Vhdx::check(storage.clone(), true, &mut findings).unwrap();
    (summary, briefs(&findings))
}

fn briefs(findings: &Findings) -> Vec<Brief> {
    let brief = |finding: &crate::finding::Finding| {
        let problem = &finding.problem;
        assert!(!problem.found.is_empty() && !problem.allowed.is_empty());
        let offset = problem.offset.map(FileOffset::get);
        (finding.severity, problem.structure, problem.fault, offset, finding.repairable)
    };
    findings.list().iter().map(brief).collect()
}

use crate::link::DiskKind;
use Fault as F;
use Severity::{Error as Bad, Warning};
use Structure as S;

#[test]
fn what_we_create_is_in_order() {
    for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
        let (summary, found) = check(&sample(kind));
        assert_eq!(found, [], "{kind:?}");
        assert_eq!((summary.virtual_size, summary.leaked_bytes, summary.trailing_bytes), (8 * MIB, 0, 0));
        assert_eq!(summary.allocated_blocks, if kind == DiskKind::Fixed { 8 } else { 4 });
        assert_eq!(summary.file_size, if kind == DiskKind::Fixed { 12 * MIB } else { 8 * MIB });
    }
}

#[test]
fn every_kind_of_bad_entry_is_named_at_its_place() {
    let dynamic = DiskKind::Dynamic;
    let child = DiskKind::Differencing;
    let bat = S::VhdxBat;
    for (kind, entries, expected) in [
        (dynamic, &[(4, 4 * MIB + FULL)][..], (Bad, bat, F::Duplicate, 4, false)),
        (dynamic, &[(4, MIB + FULL)], (Bad, bat, F::Overlap, 4, false)),
        (dynamic, &[(4, 2 * MIB + FULL)], (Bad, bat, F::Overlap, 4, false)),
        (dynamic, &[(5, BAT | FULL)], (Bad, bat, F::Overlap, 5, false)),
        (dynamic, &[(4, FULL)], (Bad, bat, F::Range, 4, false)),
        (dynamic, &[(6, 100 * MIB + FULL)], (Bad, bat, F::Range, 6, false)),
        (dynamic, &[(7, PLACE_MAX | FULL)], (Bad, bat, F::Range, 7, false)),
        (dynamic, &[(4, 8)], (Bad, bat, F::Reserved, 4, false)),
        (dynamic, &[(4, 4)], (Bad, bat, F::State, 4, false)),
        (dynamic, &[(4, 5)], (Bad, bat, F::State, 4, false)),
        (dynamic, &[(2, 6 * MIB + PARTIAL)], (Bad, bat, F::State, 2, false)),
        (child, &[(1, 5 * MIB + PARTIAL), (2, 6 * MIB + PARTIAL)], (Bad, bat, F::State, 1, false)),
        (child, &[(2, 6 * MIB + PARTIAL), (4096, 7 * MIB + FULL)], (Bad, bat, F::Duplicate, 4096, false)),
        (child, &[(2, 6 * MIB + PARTIAL), (4096, 90 * MIB + FULL)], (Bad, bat, F::Range, 4096, false)),
        (child, &[(2, 6 * MIB + PARTIAL), (4096, 8 * MIB + PARTIAL)], (Bad, bat, F::State, 4096, false)),
        (child, &[(4096, 9 * MIB)], (Warning, bat, F::Value, 4096, true)),
        (dynamic, &[(5, 5 * MIB), (6, 9 * MIB + 2)], (Warning, bat, F::Value, 5, true)),
        (dynamic, &[(5, 4 * MIB + 3)], (Bad, bat, F::Overlap, 5, true)),
        (dynamic, &[(5, 80 * MIB + 1)], (Bad, bat, F::Overlap, 5, true)),
        (dynamic, &[(3, 7 * MIB + 3)], (Warning, bat, F::Leaked, 3, false)),
        (dynamic, &[(100, 5)], (Warning, bat, F::Range, 100, true)),
        (child, &[(8, 5)], (Warning, bat, F::Range, 8, true)),
    ] {
        let storage = sample(kind);
        for (index, raw) in entries {
            set(&*storage, *index, *raw);
        }
        let (severity, structure, fault, index, repairable) = expected;
        let expected = (severity, structure, fault, Some(entry(index)), repairable);
        let (_, found) = check(&storage);
        // Space an entry gave up is leaked; that is another rule.
        let found: Vec<Brief> = found.into_iter().filter(|one| one.1 != S::File).collect();
        assert_eq!(found, [expected], "{entries:x?}");
    }
}

/// The greatest place an entry can name.
const PLACE_MAX: u64 = !(MIB - 1);

#[test]
fn both_owners_of_space_are_named() {
    let storage = created(&VhdxCreate::new(64 * MIB).block_size(2 << 20));
    storage.set_len(20 * MIB).unwrap();
    for (index, at) in [(0, 8), (7, 4), (9, 6), (10, 5), (20, 8)] {
        set(&*storage, index, at * MIB + FULL);
    }
    let mut findings = Findings::new();
    Vhdx::check(storage, false, &mut findings).unwrap();
    let shared: Vec<_> = findings.list().iter().filter(|finding| finding.problem.structure == S::VhdxBat).collect();
    let [tenth, last] = &shared[..] else { panic!("{findings:?}") };
    assert_eq!((tenth.problem.fault, tenth.problem.offset), (F::Overlap, Some(FileOffset(entry(10)))));
    assert!(tenth.problem.found.contains("over block 7 at 0x400000"), "{}", tenth.problem.found);
    assert_eq!((last.problem.fault, last.problem.offset), (F::Duplicate, Some(FileOffset(entry(20)))));
    assert!(last.problem.found.contains("over block 0 at 0x800000"), "{}", last.problem.found);
}

#[test]
fn sector_bitmaps_of_a_disk_without_a_parent_are_errors_a_repair_can_mend() {
    let storage = created(&VhdxCreate::new(5000 * MIB).block_size(1 << 20));
    set(&*storage, 4096, 9 * MIB + FULL);
    assert_eq!(check(&storage).1, [(Bad, S::VhdxBat, F::State, Some(entry(4096)), true)]);
    set(&*storage, 4096, 9 * MIB + FULL + 16);
    assert_eq!(check(&storage).1, [(Bad, S::VhdxBat, F::Reserved, Some(entry(4096)), false)]);
}

#[test]
fn fixed_disk_misses_no_block() {
    let storage = sample(DiskKind::Fixed);
    set(&*storage, 2, 0);
    set(&*storage, 5, 0);
    let (summary, found) = check(&storage);
    assert_eq!(
        found,
        [(Warning, S::VhdxBat, F::State, Some(entry(2)), false), (Warning, S::File, F::Leaked, None, false)]
    );
    assert_eq!((summary.leaked_bytes, summary.trailing_bytes, summary.allocated_blocks), (2 * MIB, 0, 6));
}

#[test]
fn space_that_nobody_owns_is_counted() {
    let storage = sample(DiskKind::Dynamic);
    storage.set_len(10 * MIB).unwrap();
    set(&*storage, 1, 0);
    let (summary, found) = check(&storage);
    assert_eq!(found, [(Warning, S::File, F::Leaked, None, false), (Warning, S::File, F::Leaked, Some(8 * MIB), true)]);
    assert_eq!((summary.leaked_bytes, summary.trailing_bytes), (3 * MIB, 2 * MIB));
}

#[test]
fn end_of_the_file_is_held_against_what_lies_there() {
    let odd = |repairable| (Warning, S::File, F::Alignment, None, repairable);
    let storage = sample(DiskKind::Dynamic);
    storage.set_len(8 * MIB + 512).unwrap();
    assert_eq!(check(&storage).1, [odd(true), (Warning, S::File, F::Leaked, Some(8 * MIB), true)]);
    storage.set_len(8 * MIB - 512).unwrap();
    let lost = (Bad, S::VhdxBat, F::Range, Some(entry(3)), false);
    assert_eq!(check(&storage).1, [odd(false), lost]);

    let storage = created(&VhdxCreate::new(8 * MIB - 4096).block_size(1 << 20));
    set(&*storage, 7, 4 * MIB + FULL);
    storage.set_len(5 * MIB - 4096).unwrap();
    let cut = (Warning, S::VhdxBat, F::Truncated, Some(entry(7)), true);
    assert_eq!(check(&storage).1, [odd(true), cut]);
    storage.set_len(5 * MIB).unwrap();
    storage.write_all_at(&[1], 5 * MIB - 1).unwrap();
    assert_eq!(check(&storage).1, [(Warning, S::VhdxBlock, F::Reserved, Some(5 * MIB - 1), false)]);
}

#[test]
fn table_that_the_file_ends_in_is_checked_as_far_as_it_goes() {
    let storage = created(&VhdxCreate::new(300_000 * MIB).block_size(1 << 20));
    set(&*storage, 3, 5);
    storage.set_len(4 * MIB).unwrap();
    let (_, found) = check(&storage);
    assert_eq!(
        found,
        [
            (Bad, S::VhdxRegionTable, F::Range, Some(192 * KIB), false),
            (Bad, S::VhdxBat, F::State, Some(entry(3)), false),
            (Bad, S::VhdxBat, F::Truncated, Some(4 * MIB), false),
        ]
    );
}

#[test]
fn headers_and_log_place() {
    let moved = |offset, length| {
        let storage = sample(DiskKind::Dynamic);
        let mut pair = HeaderPair::read(&*storage, &mut Findings::new()).unwrap();
        pair.update(&*storage, |header| (header.log_offset, header.log_length) = (offset, length)).unwrap();
        check(&storage).1.into_iter().filter(|one| one.1 != S::File).collect::<Vec<_>>()
    };
    assert_eq!(moved(50 * MIB, 1 << 20), [(Bad, S::VhdxLog, F::Range, Some(50 * MIB), false)]);
    assert_eq!(moved(8 * MIB, 1 << 20), [(Bad, S::VhdxLog, F::Range, Some(8 * MIB), true)]);
    assert_eq!(moved(5 * MIB, 1 << 20), [(Bad, S::VhdxBat, F::Overlap, Some(entry(1)), false)]);
    assert_eq!(moved(2 * MIB, 1 << 20), [(Bad, S::VhdxRegionTable, F::Overlap, Some(192 * KIB), false)]);
    let [length] = moved(MIB, 0)[..] else { panic!() };
    assert_eq!((length.0, length.1, length.2), (Warning, S::VhdxHeader, F::Value));

    let storage = sample(DiskKind::Dynamic);
    let mut pair = HeaderPair::read(&*storage, &mut Findings::new()).unwrap();
    pair.update_once(&*storage, |header| header.data_write_guid = Guid::from_u128(5)).unwrap();
    assert_eq!(check(&storage).1, [(Warning, S::VhdxHeader, F::Mismatch, Some(128 * KIB), true)]);
    storage.write_all_at(&[0; 8], 64 * KIB).unwrap();
    assert_eq!(check(&storage).1, [(Warning, S::VhdxHeader, F::Signature, Some(64 * KIB), true)]);
}

#[test]
fn reserved_bytes_are_found_at_their_place() {
    for (at, structure) in [
        (600, S::VhdxIdentifier),
        (64 * KIB + 5000, S::VhdxHeader),
        (192 * KIB - 1, S::VhdxHeader),
        (320 * KIB, S::File),
        (MIB - 1, S::File),
    ] {
        let storage = sample(DiskKind::Dynamic);
        storage.write_all_at(&[1], at).unwrap();
        assert_eq!(check(&storage).1, [(Warning, structure, F::Reserved, Some(at), false)]);
    }
    let storage = sample(DiskKind::Dynamic);
    storage.write_all_at(&[1; HEADER_LEN], 64 * KIB + HEADER_LEN as u64).unwrap();
    assert_eq!(check(&storage).1[0].3, Some(68 * KIB));
}

#[test]
fn foreign_parts_are_kept_in_mind() {
    let storage = sample(DiskKind::Dynamic);
    let unknown = MIB * 8;
    storage.set_len(9 * MIB).unwrap();
    let mut table = vec![0; REGION_TABLE_LEN];
    storage.read_exact_at(&mut table, REGION_TABLE_AT[0]).unwrap();
    let third = size_of::<RawRegionHeader>() + 2 * size_of::<RawRegionEntry>();
    table[8] = 3;
    table[third..third + 16].fill(9);
    table[third + 16..third + 24].copy_from_slice(&unknown.to_le_bytes());
    table[third + 24..third + 28].copy_from_slice(&(1u32 << 20).to_le_bytes());
    let sum = checksum(&table).to_le_bytes();
    table[4..8].copy_from_slice(&sum);
    for at in REGION_TABLE_AT {
        storage.write_all_at(&table, at).unwrap();
    }
    let region = (Warning, S::VhdxRegionTable, F::Unsupported, Some(unknown), false);
    assert_eq!(check(&storage).1, [region]);

    // A sixth item of the metadata table, empty and not required.
    storage.write_all_at(&[6], 2 * MIB + 10).unwrap();
    storage.write_all_at(&[9; 16], 2 * MIB + 32 + 5 * 32).unwrap();
    let item = (Warning, S::VhdxMetadata, F::Unsupported, Some(2 * MIB + 32 + 5 * 32), false);
    assert_eq!(check(&storage).1, [region, item]);
}

#[test]
fn link_without_an_id_or_a_path_is_an_error() {
    let patched = |from: &str, to: &str| {
        let storage = sample(DiskKind::Differencing);
        let bytes = storage.to_bytes().unwrap();
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let at = bytes.windows(2 * from.len()).position(|window| window == wide(from)).unwrap();
        storage.write_all_at(&wide(to), at as u64).unwrap();
        check(&storage).1.into_iter().map(|one| (one.0, one.1, one.2)).collect::<Vec<_>>()
    };
    assert_eq!(
        patched("relative_path", "relative_pest"),
        [(Warning, S::VhdxLocator, F::Missing), (Bad, S::VhdxLocator, F::Missing)]
    );
    let one = Guid::from_u128(1).to_string();
    assert_eq!(patched(&one, &Guid::nil().to_string()), [(Bad, S::VhdxLocator, F::Value)]);
}

#[test]
fn aliases_by_the_thousand_are_counted() {
    let storage = created(&VhdxCreate::new(100_000 * MIB).block_size(1 << 20));
    storage.set_len(6 * MIB).unwrap();
    let raw = (5 * MIB + FULL).to_le_bytes();
    let table: Vec<u8> = std::iter::repeat_n(raw, 4096).flatten().collect();
    storage.write_all_at(&table, BAT).unwrap();
    let mut findings = Findings::new();
    Vhdx::check(storage, false, &mut findings).unwrap();
    assert_eq!(findings.list().len() as u64 + findings.dropped(), 4095 + 1, "all but the first, and a leak");
    assert!(findings.list()[1].problem.found.contains("over block 0"));
}

#[test]
fn largest_disk_with_a_few_blocks_takes_few_reads() {
    let storage = created(&VhdxCreate::new(64 * TIB).block_size(1 << 20));
    let first = storage.len().unwrap();
    let last = 64 * TIB / MIB - 1;
    set(&*storage, last + last / 4096, first + FULL);
    set(&*storage, 12_000_000, 4);
    storage.set_len(first + MIB).unwrap();
    let counting = Arc::new(Counting::new(storage));
    let mut findings = Findings::new();
    let summary = Vhdx::check(counting.clone(), false, &mut findings).unwrap();
    assert_eq!(summary.allocated_blocks, 1);
    assert_eq!(briefs(&findings), [(Bad, S::VhdxBat, F::State, Some(entry(12_000_000)), false)]);
    assert!(counting.bytes_read() < 2 * MIB, "{} bytes", counting.bytes_read());
}

/// The largest disk with every block in the file: the table is made up as it is read.
#[derive(Debug)]
struct Full {
    start: Arc<MemoryStorage>,
    table: Range<u64>,
    first: u64,
    entries: u64,
}

impl Storage for Full {
    fn len(&self) -> io::Result<u64> {
        Ok(self.first + 64 * TIB)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.table.contains(&offset) {
            return self.start.read_exact_at(buf, offset);
        }
        for (index, word) in ((offset - self.table.start) / 8..).zip(buf.as_chunks_mut::<8>().0) {
            let bitmap = index % 4097 == 4096 || index >= self.entries;
            let raw = if bitmap { 0 } else { self.first + (index - index / 4097) * MIB + FULL };
            *word = raw.to_le_bytes();
        }
        Ok(())
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a check writes nothing")
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a check writes nothing")
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn largest_disk_with_all_of_its_blocks_is_in_order() {
    let start = created(&VhdxCreate::new(64 * TIB).block_size(1 << 20));
    let first = start.len().unwrap();
    let blocks = 64 * TIB / MIB;
    let entries = blocks + (blocks - 1) / 4096;
    let full = Arc::new(Full { start, table: BAT..first, first, entries });
    let mut findings = Findings::new();
    let summary = Vhdx::check(full, false, &mut findings).unwrap();
    assert_eq!(briefs(&findings), []);
    assert_eq!((summary.allocated_blocks, summary.leaked_bytes), (blocks, 0));
}

#[test]
fn images_of_other_software_have_no_errors() {
    let Some(folder) = real::folder() else { return };
    for image in real::ALL.iter().filter(|image| image.name().ends_with(".vhdx")) {
        let storage = FileStorage::open(&folder.join(image.name()), Access::Read, Lock::Shared).unwrap();
        let mut findings = Findings::new();
        let summary = Vhdx::check(Arc::new(storage), true, &mut findings).unwrap();
        assert_eq!(summary.virtual_size, image.size);
        let errors: Vec<_> = findings.list().iter().filter(|finding| finding.severity > Warning).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", image.name());
        eprintln!("{}: {summary:?} {:?}", image.name(), findings.list());
    }
}

#[test]
fn malformed_images_of_other_software_are_seen_through() {
    let Some(folder) = real::folder() else { return };
    let check = |name: &str| {
        let path = folder.join("malformed").join(name).with_extension("vhdx");
        let storage = FileStorage::open(&path, Access::Read, Lock::Shared).unwrap();
        let mut findings = Findings::new();
        let opened = Vhdx::check(Arc::new(storage), true, &mut findings);
        let worst: Vec<Brief> = briefs(&findings).into_iter().filter(|one| one.0 > Warning || one.4).collect();
        (opened.is_ok(), worst.into_iter().map(|one| (one.0, one.1, one.2, one.4)).collect::<Vec<_>>())
    };
    assert_eq!(check("g-vhdx-hdr2-badcrc"), (true, vec![(Warning, S::VhdxHeader, F::Checksum, true)]));
    assert_eq!(check("g-vhdx-rt1-badcrc"), (true, vec![(Warning, S::VhdxRegionTable, F::Checksum, true)]));
    let (opened, found) = check("g-vhdx-both-hdr-badcrc");
    assert!(!opened && found.contains(&(Severity::Fatal, S::VhdxHeader, F::Checksum, false)), "{found:?}");
    let (opened, found) = check("g-vhdx-metadata-badsig");
    assert!(!opened && found == [(Severity::Fatal, S::VhdxMetadata, F::Signature, false)], "{found:?}");
    for name in ["g-vhdx-bat-past-eof", "g-vhdx-cut-payload"] {
        let (opened, found) = check(name);
        assert!(opened && found.contains(&(Bad, S::VhdxBat, F::Range, false)), "{name}: {found:?}");
    }
    let (opened, found) = check("g-vhdx-log-last-entry-badcrc");
    assert!(opened && found.contains(&(Warning, S::VhdxLog, F::Dirty, true)), "{found:?}");
}
