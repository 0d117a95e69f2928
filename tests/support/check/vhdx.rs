//! The rules of a VHDX file as we write it and close it.
//!
//! Owns: identifier, headers, region tables, BAT, sector bitmaps and the tail of the last block.

use super::{Report, vhdx_metadata};
use crate::support::bytes::{Bytes, Outcome, all_zero, le16, le32, le64, length, take};
use crate::support::spec::vhdx::{
    BAT_REGION, CHUNK_SECTORS, KIB, METADATA_REGION, MIB, Region, Vhdx, chunk_ratio, header_is_valid,
    region_table_is_valid, regions,
};

/// How much of the BAT is looked at at once.
const PIECE: u64 = MIB;

pub fn check(report: &mut Report, file: &dyn Bytes) -> Outcome<()> {
    let len = length(file)?;
    report.expect(len.is_multiple_of(MIB), "file-length", || format!("{len:#x} is no whole number of MiB"));
    report.own(0, MIB, "the header section");
    check_identifier(report, file)?;
    check_headers(report, file)?;
    let regions = check_regions(report, file)?;
    // What the second reader refuses is broken too.
    let image = Vhdx::open(Box::new(file))?;
    report.expect(!image.file.is_changed(), "clean-log", || "the log holds updates".to_owned());
    let find = |id: [u8; 16]| regions.iter().find(|row| row.id == id).copied().ok_or("a region is missing");
    vhdx_metadata::check(report, file, find(METADATA_REGION)?)?;
    Table { report, file, image, len, partial: None }.check(find(BAT_REGION)?)?;
    report.judge_owners(len);
    Ok(())
}

fn check_identifier(report: &mut Report, file: &dyn Bytes) -> Outcome<()> {
    let bytes = take(file, 0, 64 * KIB)?;
    report.expect(bytes.starts_with(b"vhdxfile"), "identifier", || format!("{:02x?}", &bytes[..8]));
    report.expect(all_zero(&bytes[520..]), "identifier-reserved", || "bytes past 520 are in use".to_owned());
    let creator: Vec<u16> =
        bytes[8..520].chunks_exact(2).map(|unit| le16(unit, 0)).take_while(|&unit| unit != 0).collect();
    report.expect(!creator.is_empty() && String::from_utf16(&creator).is_ok(), "creator", || format!("{creator:04x?}"));
    let rest = take(file, 320 * KIB, MIB - 320 * KIB)?;
    report.expect(all_zero(&rest), "header-section-reserved", || "bytes from 320 KiB to 1 MiB are in use".to_owned());
    Ok(())
}

fn check_headers(report: &mut Report, file: &dyn Bytes) -> Outcome<()> {
    let slots = [take(file, 64 * KIB, 64 * KIB)?, take(file, 128 * KIB, 64 * KIB)?];
    for (number, slot) in slots.iter().enumerate() {
        let mut expect = |holds, rule, at: usize, len: usize| {
            report.expect(holds, rule, || format!("header {}, bytes {at}..: {:02x?}", number + 1, &slot[at..at + len]));
        };
        expect(header_is_valid(&slot[..4096]), "header-checksum", 0, 8);
        expect(le64(slot, 8) > 0, "header-sequence", 8, 8);
        expect(!all_zero(&slot[16..32]), "file-write-guid", 16, 16);
        expect(!all_zero(&slot[32..48]), "data-write-guid", 32, 16);
        expect(all_zero(&slot[48..64]), "clean-log", 48, 16);
        expect(le16(slot, 64) == 0, "log-version", 64, 2);
        expect(le16(slot, 66) == 1, "version", 66, 2);
        let (log_len, log_at) = (u64::from(le32(slot, 68)), le64(slot, 72));
        expect(log_len > 0 && log_len.is_multiple_of(MIB), "log-length", 68, 4);
        expect(log_at >= MIB && log_at.is_multiple_of(MIB), "log-offset", 72, 8);
        expect(all_zero(&slot[80..]), "header-reserved", 80, 64);
    }
    let [a, b] = &slots;
    report.expect(a[16..80] == b[16..80], "headers-agree", || {
        format!("GUIDs or log place differ: {:02x?} and {:02x?}", &a[16..80], &b[16..80])
    });
    let apart = le64(a, 8).abs_diff(le64(b, 8));
    report.expect(apart == 1, "header-sequence", || format!("sequence numbers {} and {}", le64(a, 8), le64(b, 8)));
    report.own(le64(a, 72), u64::from(le32(a, 68)), "the log");
    Ok(())
}

fn check_regions(report: &mut Report, file: &dyn Bytes) -> Outcome<Vec<Region>> {
    let (first, second) = (take(file, 192 * KIB, 64 * KIB)?, take(file, 256 * KIB, 64 * KIB)?);
    report.expect(region_table_is_valid(&first), "region-checksum", || "copy 1 is not valid".to_owned());
    report.expect(region_table_is_valid(&second), "region-checksum", || "copy 2 is not valid".to_owned());
    report.expect(first == second, "region-copies", || "the copies differ".to_owned());
    let table = if region_table_is_valid(&first) { first } else { second };
    if !region_table_is_valid(&table) {
        return Err("neither region table is valid".to_owned());
    }
    let rows = regions(&table);
    let used = 16 + 32 * rows.len();
    report.expect(all_zero(&table[12..16]) && all_zero(&table[used..]), "region-reserved", || {
        "bytes outside the rows are in use".to_owned()
    });
    for row in &rows {
        let mut expect = |holds, rule| report.expect(holds, rule, || format!("{row:02x?}"));
        expect([BAT_REGION, METADATA_REGION].contains(&row.id), "region-known");
        expect(rows.iter().filter(|other| other.id == row.id).count() == 1, "region-unique");
        expect(row.flags == 1, "region-required");
        expect(row.offset >= MIB && row.offset.is_multiple_of(MIB), "region-place");
        expect(row.len > 0 && row.len.is_multiple_of(MIB), "region-place");
        report.own(row.offset, row.len, format!("region {:02x?}", &row.id[..4]));
    }
    Ok(rows)
}

/// The walk over the BAT.
struct Table<'a> {
    report: &'a mut Report,
    file: &'a dyn Bytes,
    image: Vhdx<'a>,
    len: u64,
    /// The last chunk met with a partially present block: its bitmap must be there.
    partial: Option<u64>,
}

impl Table<'_> {
    fn check(&mut self, region: Region) -> Outcome<()> {
        let ratio = chunk_ratio(self.image.logical_sector, self.image.block_size);
        let payload = self.image.size.div_ceil(self.image.block_size);
        let chunks = payload.div_ceil(ratio);
        let entries = if self.image.has_parent { chunks * (ratio + 1) } else { payload + (payload - 1) / ratio };
        let fits = entries * 8 <= region.len;
        self.report.expect(fits, "table-size", || format!("{entries} entries in {} bytes", region.len));
        for start in (0..region.len).step_by(PIECE as usize) {
            let piece = take(self.file, region.offset + start, PIECE.min(region.len - start))?;
            let bitmap_owed = self.partial == Some(start / 8 / (ratio + 1));
            if !self.image.fixed && !bitmap_owed && all_zero(&piece) {
                continue;
            }
            for (number, entry) in piece.chunks_exact(8).enumerate() {
                let index = start / 8 + number as u64;
                let entry = le64(entry, 0);
                let (chunk, place) = (index / (ratio + 1), index % (ratio + 1));
                if place == ratio && chunk < chunks {
                    self.check_bitmap_entry(chunk, entry)?;
                } else if chunk * ratio + place < payload && place < ratio {
                    self.check_payload_entry(chunk * ratio + place, chunk, entry)?;
                } else {
                    self.report.expect(entry == 0, "table-padding", || format!("entry {index} is {entry:#x}"));
                }
            }
        }
        Ok(())
    }

    fn check_payload_entry(&mut self, block: u64, chunk: u64, entry: u64) -> Outcome<()> {
        let (state, at, size) = (entry & 7, entry & !(MIB - 1), self.image.block_size);
        let (fixed, has_parent) = (self.image.fixed, self.image.has_parent);
        let mut expect = |holds, rule| self.report.expect(holds, rule, || format!("block {block} is {entry:#x}"));
        expect(entry & 0xF_FFF8 == 0, "entry-reserved");
        expect(matches!(state, 0..=3 | 6) || state == 7 && has_parent, "payload-state");
        expect(!fixed || state == 6, "fixed-state");
        expect(!matches!(state, 0 | 2) || at == 0, "payload-offset");
        expect(!matches!(state, 6 | 7) || at >= MIB, "payload-offset");
        if at == 0 {
            return Ok(());
        }
        self.report.own(at, size, format!("block {block}"));
        if state == 7 {
            self.partial = Some(chunk);
        }
        let disk_end = self.image.size - block * size;
        if disk_end < size && state >= 6 && at + size <= self.len {
            let tail = take(self.file, at + disk_end, size - disk_end)?;
            self.report.expect(all_zero(&tail), "bytes-past-the-disk", || format!("block {block} past {disk_end:#x}"));
        }
        Ok(())
    }

    /// Comes after the chunk's payload entries.
    fn check_bitmap_entry(&mut self, chunk: u64, entry: u64) -> Outcome<()> {
        let (state, at) = (entry & 7, entry & !(MIB - 1));
        let partial = self.partial == Some(chunk);
        let has_parent = self.image.has_parent;
        let mut expect = |holds, rule| self.report.expect(holds, rule, || format!("chunk {chunk} is {entry:#x}"));
        expect(entry & 0xF_FFF8 == 0, "entry-reserved");
        expect(has_parent || entry == 0, "bitmap-without-parent");
        expect(matches!(state, 0 | 6), "bitmap-state");
        expect(state != 0 || at == 0, "bitmap-offset");
        expect(state != 6 || at >= MIB, "bitmap-offset");
        expect(state == 6 || !partial, "bitmap-missing");
        if state != 6 || at + MIB > self.len || at == 0 {
            return Ok(());
        }
        self.report.own(at, MIB, format!("the bitmap of chunk {chunk}"));
        let left = self.image.size / self.image.logical_sector - chunk * CHUNK_SECTORS;
        if left < CHUNK_SECTORS {
            let bytes = take(self.file, at + left / 8, MIB - left / 8)?;
            let sound = bytes[0] >> (left % 8) == 0 && all_zero(&bytes[1..]);
            self.report.expect(sound, "bitmap-tail", || format!("chunk {chunk}: bits past the disk are set"));
        }
        Ok(())
    }
}
