//! The rules of a VHDX metadata region as we write it.
//!
//! Owns: the metadata table, the known items and the parent locator.

use super::Report;
use crate::support::bytes::{Bytes, Outcome, all_zero, le32, le64, take};
use crate::support::spec::vhdx::{
    DISK_ID, DISK_SIZE, FILE_PARAMETERS, Item, KIB, LOGICAL_SECTOR, MIB, PARENT_LOCATOR, PHYSICAL_SECTOR, Region,
    items, locator_pairs,
};

/// Item, its name, the flags it carries and its length (0: any).
const KNOWN: [([u8; 16], &str, u32, u64); 6] = [
    (FILE_PARAMETERS, "file parameters", 4, 8),
    (DISK_SIZE, "disk size", 6, 8),
    (DISK_ID, "disk id", 6, 16),
    (LOGICAL_SECTOR, "logical sector size", 6, 4),
    (PHYSICAL_SECTOR, "physical sector size", 6, 4),
    (PARENT_LOCATOR, "parent locator", 4, 0),
];

pub fn check(report: &mut Report, file: &dyn Bytes, region: Region) -> Outcome<()> {
    let table = take(file, region.offset, 64 * KIB)?;
    let rows = items(&table)?;
    let used = 32 + 32 * rows.len();
    report.expect(all_zero(&table[8..10]) && all_zero(&table[12..32]), "metadata-reserved", || "header".to_owned());
    report.expect(all_zero(&table[used..]), "metadata-slack", || "bytes past the last row are in use".to_owned());
    for (number, row) in rows.iter().enumerate() {
        let spare = le32(&table, 32 + 32 * number + 28);
        report.expect(spare == 0, "metadata-reserved", || format!("row {number} ends in {spare:#x}"));
        check_row(report, row, region, &rows);
    }
    let find = |id: [u8; 16]| rows.iter().find(|row| row.id == id);
    for (id, name, _, len) in KNOWN {
        let needed = len > 0;
        report.expect(!needed || find(id).is_some(), "metadata-missing", || format!("no {name}"));
    }
    let read = |id| find(id).map(|row| take(file, region.offset + row.offset, row.len)).transpose();
    if let Some(parameters) = read(FILE_PARAMETERS)? {
        let (size, bits) = (u64::from(le32(&parameters, 0)), le32(&parameters, 4));
        let legal = size.is_power_of_two() && (MIB..=256 * MIB).contains(&size);
        report.expect(legal, "block-size", || format!("{size}"));
        report.expect(bits < 3, "file-parameters", || format!("bits {bits:#x}"));
        let agrees = (bits & 2 != 0) == find(PARENT_LOCATOR).is_some();
        report.expect(agrees, "parent-locator", || format!("file parameters {bits:#x} and locator disagree"));
    }
    let sector = |bytes: Option<Vec<u8>>| bytes.map_or(0, |bytes| u64::from(le32(&bytes, 0)));
    let (logical, physical) = (sector(read(LOGICAL_SECTOR)?), sector(read(PHYSICAL_SECTOR)?));
    let legal = [512, 4096].contains(&logical) && [512, 4096].contains(&physical) && logical <= physical;
    report.expect(legal, "sector-size", || format!("logical {logical}, physical {physical}"));
    if let Some(size) = read(DISK_SIZE)?.map(|bytes| le64(&bytes, 0)) {
        let legal = size > 0 && size <= 64 << 40 && size.is_multiple_of(logical.max(1));
        report.expect(legal, "disk-size", || format!("{size}"));
    }
    if let Some(id) = read(DISK_ID)? {
        report.expect(!all_zero(&id), "disk-id", || "nil".to_owned());
    }
    if let Some(locator) = read(PARENT_LOCATOR)? {
        check_locator(report, &locator)?;
    }
    Ok(())
}

fn check_row(report: &mut Report, row: &Item, region: Region, rows: &[Item]) {
    let mut expect = |holds, rule| report.expect(holds, rule, || format!("{row:02x?}"));
    let twins = rows.iter().filter(|other| other.id == row.id && other.flags & 1 == row.flags & 1).count();
    expect(twins == 1, "metadata-unique");
    expect(row.flags & !7 == 0, "metadata-flags");
    expect(row.len <= MIB && row.offset + row.len <= region.len, "metadata-place");
    expect(if row.len == 0 { row.offset == 0 } else { row.offset >= 64 * KIB }, "metadata-place");
    let shares = |other: &&Item| other.offset < row.offset + row.len && row.offset < other.offset + other.len;
    expect(row.len == 0 || rows.iter().filter(shares).count() == 1, "metadata-overlap");
    match KNOWN.iter().find(|(id, ..)| *id == row.id) {
        Some((_, _, flags, len)) => {
            expect(row.flags == *flags, "metadata-flags");
            expect(*len == 0 || row.len == *len, "metadata-length");
        }
        None => expect(row.flags & 4 == 0, "metadata-known"),
    }
}

fn check_locator(report: &mut Report, item: &[u8]) -> Outcome<()> {
    let pairs = locator_pairs(item)?;
    let value = |key: &str| pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    let mut expect = |holds, what: &str| report.expect(holds, "parent-locator", || format!("{what}: {pairs:?}"));
    expect(all_zero(&item[16..18]), "reserved bytes are in use");
    let clean = |text: &str| !text.is_empty() && !text.contains('\0');
    expect(pairs.iter().all(|(key, value)| clean(key) && clean(value)), "an empty text or a NUL");
    expect(pairs.iter().all(|(key, _)| pairs.iter().filter(|(other, _)| other == key).count() == 1), "a key twice");
    let is_linkage = |text: &str| {
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or("");
        inner.len() == 36
            && inner.chars().enumerate().all(|(at, c)| match at {
                8 | 13 | 18 | 23 => c == '-',
                _ => c.is_ascii_digit() || ('a'..='f').contains(&c),
            })
    };
    expect(value("parent_linkage").is_some_and(is_linkage), "parent_linkage is not {lower-case GUID}");
    expect(value("parent_linkage2").is_none_or(is_linkage), "parent_linkage2 is not {lower-case GUID}");
    let paths = ["relative_path", "volume_path", "absolute_win32_path"];
    expect(paths.iter().any(|key| value(key).is_some()), "no path");
    let relative = value("relative_path");
    expect(relative.is_none_or(|path| path.starts_with(".\\") || path.starts_with("..\\")), "relative_path is not");
    let absolute = value("absolute_win32_path");
    let prefixed = absolute.is_none_or(|path| path.starts_with("\\\\?\\"));
    report.expect(prefixed, "absolute-path", || format!("no \\\\?\\ in front of {absolute:?}"));
    Ok(())
}
