//! The rules of a VHD file as we write it.
//!
//! Owns: footer, head copy, dynamic header, locators, BAT, bitmaps and the bytes under them.

use super::Report;
use crate::support::bytes::{Bytes, Outcome, all_zero, be16, be32, be64, id16, length, take, utf16le, vhd_checksum};
use crate::support::spec::vhd::{DIFFERENCING, DYNAMIC, FIXED, SECTOR, UNUSED, bitmap_bytes, find_footer};
use std::time::{SystemTime, UNIX_EPOCH};

/// The page a data area starts on.
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
/// 2000-01-01 in Unix time.
const EPOCH: u64 = 946_684_800;
/// Clocks of two machines may differ by this many seconds.
const CLOCK_SKEW: u64 = 30 * 60;
/// The most sectors a disk may have: 2040 GiB.
const MAX_SECTORS: u64 = 0xFF00_0000;

/// Cylinders, heads and sectors per track of a disk of `size` bytes.
pub fn geometry(size: u64) -> (u16, u8, u8) {
    let total = (size / SECTOR).min(65_535 * 16 * 255);
    let (tracks, heads, sectors) = if total >= 65_535 * 16 * 63 {
        (total / 255, 16, 255)
    } else {
        let tracks = total / 17;
        let heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            if total / 31 >= 16 * 1024 { (total / 63, 16, 63) } else { (total / 31, 16, 31) }
        } else {
            (tracks, heads, 17)
        }
    };
    ((tracks / heads) as u16, heads as u8, sectors as u8)
}

struct Image<'a> {
    file: &'a dyn Bytes,
    len: u64,
    footer: Vec<u8>,
    size: u64,
    kind: u32,
}

pub fn check(report: &mut Report, file: &dyn Bytes) -> Outcome<()> {
    let len = length(file)?;
    let (footer, from_head_copy) = find_footer(file)?;
    report.expect(!from_head_copy, "tail-footer", || "only the head copy is valid".to_owned());
    report.expect(len.is_multiple_of(SECTOR), "file-length", || format!("{len} bytes are no whole sectors"));
    let image = Image { file, len, size: be64(&footer, 48), kind: be32(&footer, 60), footer };
    image.check_footer(report);
    report.own(len.saturating_sub(SECTOR), SECTOR, "the footer");
    if image.kind == FIXED {
        report.own(0, image.size, "the disk");
        report.expect(len == image.size + SECTOR, "file-length", || format!("{len} bytes for {}", image.size));
    } else {
        image.check_dynamic(report)?;
    }
    report.judge_owners(len);
    Ok(())
}

impl Image<'_> {
    fn check_footer(&self, report: &mut Report) {
        let footer = &self.footer;
        let (size, kind) = (self.size, self.kind);
        let mut field = |holds, rule, at: usize, len: usize| {
            report.expect(holds, rule, || format!("footer bytes {at}.. hold {:02x?}", &footer[at..at + len]));
        };
        field(be32(footer, 8) == 2, "features", 8, 4);
        field(be32(footer, 12) == 0x0001_0000, "version", 12, 4);
        field(![*b"vpc ", *b"qemu"].iter().any(|tag| footer[28..32] == *tag), "creator", 28, 4);
        field(&footer[36..40] == b"Wi2k", "creator-os", 36, 4);
        field(size > 0 && size.is_multiple_of(SECTOR) && size / SECTOR <= MAX_SECTORS, "size", 48, 8);
        field(be64(footer, 40).is_multiple_of(SECTOR) && be64(footer, 40) > 0, "original-size", 40, 8);
        field((be16(footer, 56), footer[58], footer[59]) == geometry(size), "geometry", 56, 4);
        field([FIXED, DYNAMIC, DIFFERENCING].contains(&kind), "type", 60, 4);
        field((kind == FIXED) == (be64(footer, 16) == u64::MAX), "data-offset", 16, 8);
        field(!all_zero(&footer[68..84]), "unique-id", 68, 16);
        field(footer[84] == 0, "saved-state", 84, 1);
        field(all_zero(&footer[85..]), "reserved", 85, 427);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        field(u64::from(be32(footer, 24)) + EPOCH <= now + CLOCK_SKEW, "timestamp", 24, 4);
    }

    fn check_dynamic(&self, report: &mut Report) -> Outcome<()> {
        report.expect(self.len.is_multiple_of(PAGE), "file-length", || format!("{} is not x 4096", self.len));
        let head = take(self.file, 0, SECTOR)?;
        report.expect(head == self.footer, "head-copy", || "the copy at 0 differs from the footer".to_owned());
        report.own(0, SECTOR, "the head copy");
        let at = be64(&self.footer, 16);
        let header = take(self.file, at, 1024)?;
        report.own(at, 1024, "the dynamic header");
        let mut field = |holds, rule, at: usize, len: usize| {
            report.expect(holds, rule, || format!("header bytes {at}.. hold {:02x?}", &header[at..at + len]));
        };
        field(header.starts_with(b"cxsparse"), "header-cookie", 0, 8);
        field(be64(&header, 8) == u64::MAX, "header-data-offset", 8, 8);
        field(be32(&header, 24) == 0x0001_0000, "header-version", 24, 4);
        field(be32(&header, 36) == vhd_checksum(&header, 36), "header-checksum", 36, 4);
        field(all_zero(&header[60..64]) && all_zero(&header[768..]), "header-reserved", 768, 256);
        let (table, entries) = (be64(&header, 16), u64::from(be32(&header, 28)));
        let block = u64::from(be32(&header, 32));
        field(table > 0 && table.is_multiple_of(SECTOR), "table-offset", 16, 8);
        field(block.is_power_of_two() && (4096..=256 * MIB).contains(&block), "block-size", 32, 4);
        if block < SECTOR || !block.is_power_of_two() {
            return Err(format!("block size {block}"));
        }
        field(entries == self.size.div_ceil(block), "table-entries", 28, 4);
        if self.kind == DIFFERENCING {
            field(!all_zero(&header[40..56]), "parent-id", 40, 16);
            field(id16(&header, 40) != id16(&self.footer, 68), "parent-id", 40, 16);
            field(!all_zero(&header[64..576]), "parent-name", 64, 512);
            self.check_locators(report, &header)?;
        } else {
            field(all_zero(&header[40..60]) && all_zero(&header[64..768]), "parent-fields", 40, 24);
        }
        self.check_table(report, table, entries, block)
    }

    fn check_locators(&self, report: &mut Report, header: &[u8]) -> Outcome<()> {
        let mut windows = 0;
        for (number, row) in header[576..768].chunks_exact(24).enumerate() {
            let (space, used, at) = (u64::from(be32(row, 4)), u64::from(be32(row, 8)), be64(row, 16));
            let mut expect = |holds, what: &str| {
                report.expect(holds, "locator", || format!("locator {number}: {what}: {row:02x?}"));
            };
            if all_zero(&row[..4]) {
                expect(all_zero(row), "an unused row is not zero");
                continue;
            }
            let known = [b"W2ru", b"W2ku", b"Wi2r", b"Wi2k", b"Mac ", b"MacX"];
            expect(known.iter().any(|code| row.starts_with(*code)), "its platform code is unknown");
            expect(all_zero(&row[12..16]), "reserved bytes are in use");
            expect(used > 0 && used <= space, "its data do not fit its space");
            expect(space.is_multiple_of(SECTOR), "its space is no whole sectors in bytes");
            expect(at.is_multiple_of(SECTOR), "its data are not on a sector");
            if row.starts_with(b"W2ru") || row.starts_with(b"W2ku") {
                windows += 1;
                let text = utf16le(&take(self.file, at, used)?);
                let sound = text.as_ref().is_some_and(|text| !text.contains(['\0', '/']));
                expect(sound, "its path is not UTF-16LE with `\\`");
                let relative = text.is_some_and(|text| text.starts_with(".\\") || text.starts_with("..\\"));
                expect(relative == row.starts_with(b"W2ru"), "its path is of the other kind");
            }
            report.own(at, space, format!("parent locator {number}"));
        }
        report.expect(windows > 0, "locator", || "no W2ru and no W2ku path".to_owned());
        Ok(())
    }

    fn check_table(&self, report: &mut Report, at: u64, entries: u64, block: u64) -> Outcome<()> {
        let used = entries * 4;
        let table = take(self.file, at, used.next_multiple_of(SECTOR))?;
        report.own(at, table.len() as u64, "the BAT");
        let padding = &table[used as usize..];
        report.expect(padding.iter().all(|&byte| byte == 0xFF), "table-padding", || "not all FF".to_owned());
        for (number, entry) in table[..used as usize].chunks_exact(4).enumerate() {
            let entry = be32(entry, 0);
            if entry != UNUSED {
                self.check_block(report, number as u64, u64::from(entry) * SECTOR, block)?;
            }
        }
        Ok(())
    }

    fn check_block(&self, report: &mut Report, number: u64, at: u64, size: u64) -> Outcome<()> {
        let bitmap_len = bitmap_bytes(size);
        report.own(at, bitmap_len + size, format!("block {number}"));
        if at + bitmap_len + size > self.len {
            return Ok(());
        }
        report.expect((at + bitmap_len).is_multiple_of(PAGE), "block-alignment", || {
            format!("the data of block {number} lie at {:#x}", at + bitmap_len)
        });
        let bitmap = take(self.file, at, bitmap_len)?;
        let sectors = size / SECTOR;
        let bit = |sector: u64| bitmap[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0;
        let beyond = (sectors..bitmap_len * 8).any(bit);
        report.expect(!beyond, "bitmap-tail", || format!("block {number}: bits past the last sector are set"));
        let data = take(self.file, at + bitmap_len, size)?;
        for sector in 0..sectors {
            let bytes = &data[(sector * SECTOR) as usize..][..SECTOR as usize];
            let outside = number * size + sector * SECTOR >= self.size;
            if (outside || !bit(sector)) && !all_zero(bytes) {
                let rule = if outside { "bytes-past-the-disk" } else { "bytes-under-clear-bit" };
                report.expect(false, rule, || format!("block {number}, sector {sector} of {sectors}"));
                break;
            }
        }
        Ok(())
    }
}

/// What keeps Azure from taking `file` as an upload.
pub fn azure_rules(file: &dyn Bytes) -> Vec<String> {
    let mut found = Vec::new();
    let (len, footer) = match length(file).and_then(|len| Ok((len, find_footer(file)?.0))) {
        Ok(both) => both,
        Err(error) => return vec![error],
    };
    let mut expect = |holds: bool, problem: String| {
        if !holds {
            found.push(problem);
        }
    };
    let size = be64(&footer, 48);
    expect(be32(&footer, 60) == FIXED, format!("type {}, only fixed disks are taken", be32(&footer, 60)));
    expect(size.is_multiple_of(MIB), format!("virtual size {size} is not a whole number of MiB"));
    expect(len.checked_sub(SECTOR) == Some(size), format!("file length {len} is not the size {size} plus 512"));
    expect((20_972_032..=35_183_298_347_520).contains(&len), format!("file length {len} is out of bounds"));
    found
}
