//! What an error over a damaged field may name.
//!
//! Owns: one list for each field, with the reason wherever it holds more than the structure the field is in. Must not
//! know: where fields lie, what is put into them.
//!
//! An empty list: whatever the field says, the disk shows what it showed, and takes writes.

use vhdkit::Structure::{self as S};

/// Any structure: a cut file loses whatever was there.
pub(crate) const ANY: &[S] = &[
    S::File,
    S::VhdFooter,
    S::VhdFooterCopy,
    S::VhdHeader,
    S::VhdBat,
    S::VhdBlock,
    S::VhdBitmap,
    S::VhdLocator,
    S::VhdxIdentifier,
    S::VhdxHeader,
    S::VhdxRegionTable,
    S::VhdxLog,
    S::VhdxMetadata,
    S::VhdxLocator,
    S::VhdxBat,
    S::VhdxBlock,
    S::VhdxBitmap,
    S::ParentLink,
];

/// `name` as "structure, field", with the numbers of copies, entries and pairs left out.
fn plain(name: &str) -> String {
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let part = |part: &str| {
        part.rsplit_once(' ').filter(|(_, last)| number(last)).map_or(part.to_owned(), |(rest, _)| rest.to_owned())
    };
    name.split(", ").map(part).collect::<Vec<_>>().join(", ")
}

pub(crate) fn vhd(name: &str) -> &'static [S] {
    let name = plain(name);
    let (structure, field) = name.split_once(", ").unwrap_or((&name, ""));
    match (structure, field) {
        // Without its cookie nothing says that the file is a VHD.
        ("only footer" | "both footers", "cookie") => &[S::File],
        // A fixed disk that calls itself dynamic has no header.
        ("only footer", "type") => &[S::VhdFooter, S::VhdHeader],
        ("only footer", _) => &[S::VhdFooter],
        // A footer that is not believed leaves the copy alone in the file.
        ("tail footer", "cookie" | "version" | "data offset" | "checksum") => &[S::VhdFooter],
        // A dynamic disk that calls itself differencing has no parent, a differencing one that does not needs none.
        ("tail footer" | "both footers", "type") => &[S::VhdFooter, S::ParentLink],
        // The child of a disk names it by its id.
        ("tail footer", "unique id") => &[S::VhdFooter, S::VhdFooterCopy, S::ParentLink],
        ("both footers", "unique id") => &[S::VhdFooter, S::ParentLink],
        // Two footers that are both believed, and differ: the copy is the one that should follow.
        ("tail footer", _) => &[S::VhdFooter, S::VhdFooterCopy],
        ("footer copy", _) => &[S::VhdFooterCopy],
        // At another offset there is no header; a larger disk needs more entries than it has.
        ("both footers", "data offset" | "current size") => &[S::VhdFooter, S::VhdHeader],
        ("both footers", _) => &[S::VhdFooter],
        // Elsewhere, or with more entries, lies what is no table.
        ("header", "table offset" | "entries") => &[S::VhdHeader, S::VhdBat],
        // Larger blocks reach over each other and past the end.
        ("header", "block size") => &[S::VhdHeader, S::VhdBat, S::VhdBlock],
        ("header", "parent id") => &[S::VhdHeader, S::ParentLink],
        // The header holds the locators, and its checksum covers them.
        ("header" | "locator", field) if field != "path" => &[S::VhdHeader],
        ("BAT entry", "") => &[S::VhdBat, S::VhdBlock],
        // No path is followed where the caller names the parent; bitmaps hold any bits.
        ("locator", "path") | ("BAT", "behind the entries") | ("bitmap of block", _) => &[],
        _ => panic!("no list for {name:?}"),
    }
}

pub(crate) fn vhdx(name: &str) -> &'static [S] {
    let plain = plain(name);
    let (structure, field) = plain.split_once(", ").unwrap_or((&plain, ""));
    match (structure, field) {
        // Without its signature nothing says that the file is a VHDX.
        ("identifier", "signature") => &[S::File],
        ("header" | "both headers", _) => header(structure == "both headers", field),
        ("region table" | "both region tables", _) => region_table(structure == "both region tables", field),
        ("metadata table", "signature" | "count") => &[S::VhdxMetadata],
        ("metadata row", "offset" | "length") => match name.split([' ', ',']).nth(2) {
            // The logical sector size, read elsewhere, need not be the parent's.
            Some("3") if field == "offset" => &[S::VhdxMetadata, S::ParentLink],
            // The parent locator, read elsewhere or cut short.
            Some("5") => &[S::VhdxMetadata, S::VhdxLocator],
            _ => &[S::VhdxMetadata],
        },
        ("metadata row", "id" | "flags") => &[S::VhdxMetadata],
        ("item", _) => item(name),
        ("locator", "type" | "count") => &[S::VhdxLocator],
        ("locator pair", _) => &[S::VhdxLocator],
        // An entry moved onto the space of another: the error names what lies there.
        ("BAT entry", "") => &[S::VhdxBat, S::VhdxBlock, S::VhdxBitmap],
        ("BAT entry of the bitmap", "") => &[S::VhdxBat, S::VhdxBitmap],
        ("log entry", _) => log_entry(field),
        ("identifier", "creator") | ("bitmap byte", "") => &[],
        ("metadata table" | "metadata row" | "locator", "reserved") => &[],
        _ => panic!("no list for {name:?}"),
    }
}

/// Of one damaged header the other is left, unless the damaged one is newer and whole.
fn header(both: bool, field: &str) -> &'static [S] {
    match field {
        "sequence" | "version" | "log version" => &[S::VhdxHeader],
        // The child of a disk names it by this.
        "data write guid" if both => &[S::VhdxHeader, S::ParentLink],
        "data write guid" => &[S::ParentLink],
        // Where the log is in use by the header, and is not there.
        "log guid" if both => &[S::VhdxHeader, S::VhdxLog],
        "log guid" => &[S::VhdxLog],
        // A log that could be there, and lies over regions or blocks: either of the two may be wrong.
        "log length" => &[S::VhdxHeader, S::VhdxRegionTable, S::VhdxBat],
        "log offset" => &[S::VhdxHeader, S::VhdxLog, S::VhdxRegionTable],
        _ if both => &[S::VhdxHeader],
        _ => &[],
    }
}

fn region_table(both: bool, field: &str) -> &'static [S] {
    match field {
        // Elsewhere lies what is no table of that kind.
        "row, offset" => &[S::VhdxRegionTable, S::VhdxMetadata, S::VhdxBat],
        // A shorter region has too few entries, a longer one lies over blocks.
        "row, length" => &[S::VhdxRegionTable, S::VhdxBat, S::VhdxBlock],
        "count" | "row, guid" => &[S::VhdxRegionTable],
        _ if both => &[S::VhdxRegionTable],
        _ => &[],
    }
}

fn item(name: &str) -> &'static [S] {
    match name {
        // Larger blocks reach over each other and past the end, smaller ones need more entries.
        "item 0, first half" => &[S::VhdxMetadata, S::VhdxBat, S::VhdxBlock],
        // A disk that calls itself a child has no parent, a child that does not needs none.
        "item 0, second half" => &[S::VhdxMetadata, S::ParentLink],
        "item 0" => &[S::VhdxMetadata, S::VhdxBat, S::VhdxBlock, S::ParentLink],
        // A larger disk needs more entries.
        "item 1" | "item 1, second half" => &[S::VhdxMetadata, S::VhdxBat],
        // The disk's id is for guests.
        "item 2" => &[],
        "item 1, first half" | "item 3" | "item 4" => &[S::VhdxMetadata],
        _ => panic!("no list for {name:?}"),
    }
}

/// An entry that is not whole was never finished: the ones before it count, and the table shows what it was before.
fn log_entry(field: &str) -> &'static [S] {
    match field {
        // No entry is left from which to begin.
        "tail" => &[S::VhdxLog, S::VhdxBat, S::VhdxBlock],
        // The file was longer when the entry was written.
        "flushed offset" => &[S::File, S::VhdxBat, S::VhdxBlock],
        // A page for the table that is put over something else.
        "descriptor, offset" => &[S::VhdxMetadata, S::VhdxBat, S::VhdxBlock],
        _ => &[S::VhdxBat, S::VhdxBlock],
    }
}
