//! The images that are damaged, and the list of their fields.
//!
//! Owns: which fields each kind has. Must not know: what is done with them, what errors over them may name.

use crate::blame;
use crate::chains::{self, ChainSpec, Edit, LayerSpec};
use crate::fields::{Field, Seal};
use crate::support::bytes::{Outcome, be32, be64, le16, le32, le64};
use crate::support::{Bytes, SpecDisk, sample};
use std::io;
use std::sync::Arc;
use vhdkit::storage::{MemoryStorage, Storage};
use vhdkit::{Format, Structure};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A file for the second reader.
pub(crate) struct File(MemoryStorage);

impl Bytes for File {
    fn length(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// One image to damage: the leaf, then its parent.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) storages: Vec<MemoryStorage>,
    /// Which of them is damaged.
    pub(crate) damaged: usize,
    pub(crate) fields: Vec<Field>,
    /// What an error over the field of a name may name.
    pub(crate) blame: fn(&str) -> &'static [Structure],
}

impl Subject {
    /// An undamaged copy of the file that is to be damaged.
    pub(crate) fn fresh(&self) -> MemoryStorage {
        self.storages[self.damaged].clone()
    }

    /// The second reader over the chain with `file` in it.
    pub(crate) fn spec(&self, file: MemoryStorage) -> Outcome<SpecDisk<'static>> {
        let mut files = self.storages.clone();
        files[self.damaged] = file;
        SpecDisk::from_bytes(files.into_iter().map(|file| Box::new(File(file)) as Box<dyn Bytes>).collect())
    }

    /// Longer, shorter, cut.
    pub(crate) fn lengths(&self) -> Vec<u64> {
        let len = self.fresh().len().unwrap();
        let mut lengths = vec![0, 1, 511, 512, 1023, 1024, 1536, len / 2, len + 1, len + 511, len + 512, len + MIB];
        lengths.extend([1, 2, 511, 512, 513, 1024, 4096, MIB].into_iter().filter_map(|less| len.checked_sub(less)));
        lengths.extend([64, 128, 192, 256, 320, 1024, 2048, 2112, 3072, 4096].map(|kib| (kib * KIB).min(len + 3)));
        lengths
    }

    /// The file offset of bytes of a VHD's first block.
    pub(crate) fn some_data(&self) -> u64 {
        let file = self.fresh().to_bytes().unwrap();
        u64::from(be32(&file, be64(&file, 512 + 16) as usize)) * 512 + 512
    }
}

fn memory(storages: &[Arc<MemoryStorage>]) -> Vec<MemoryStorage> {
    storages.iter().rev().map(|storage| MemoryStorage::clone(storage)).collect()
}

fn build(spec: &ChainSpec) -> Vec<MemoryStorage> {
    let mut made = Vec::new();
    chains::build(spec, |_| {
        let storage = Arc::new(MemoryStorage::new());
        made.push(Arc::clone(&storage));
        storage
    });
    memory(&made)
}

fn layer(size: u64, block_size: u32, edits: &[(u64, u64)]) -> LayerSpec {
    let edits = edits.iter().map(|&(offset, len)| Edit::Write { offset, len, seed: (offset / 512) as u8 }).collect();
    LayerSpec { size, block_size, edits }
}

fn vhd(base_fixed: bool, child: bool) -> Vec<MemoryStorage> {
    let mut layers = vec![layer(40 << 10, 4096, &[(0, 4096), (8192, 1024), (20_480, 512), (36_864, 4096)])];
    if child {
        layers.push(layer(40 << 10, 4096, &[(512, 1024), (9216, 512), (28_672, 4096)]));
    }
    build(&ChainSpec { format: Format::Vhd, sector: 512, base_fixed, layers })
}

fn vhdx(base_fixed: bool, child: bool) -> Vec<MemoryStorage> {
    let size = 3 * MIB + 256 * KIB;
    let mut layers = vec![layer(size, 1 << 20, &[(0, 8192), (MIB + 4096, 4096), (size - 4096, 4096)])];
    if child {
        layers.push(layer(size, 1 << 20, &[(4096, 4096), (2 * MIB, MIB), (MIB, 512)]));
    }
    build(&ChainSpec { format: Format::Vhdx, sector: 512, base_fixed, layers })
}

/// Name, start and length of fields counted from the start of their structure.
type Layout = &'static [(&'static str, u64, usize)];

const FOOTER_FIELDS: Layout = &[
    ("cookie", 0, 8),
    ("features", 8, 4),
    ("version", 12, 4),
    ("data offset", 16, 8),
    ("timestamp", 24, 4),
    ("creator", 28, 4),
    ("creator version", 32, 4),
    ("creator OS", 36, 4),
    ("original size", 40, 8),
    ("current size", 48, 8),
    ("cylinders", 56, 2),
    ("heads", 58, 1),
    ("sectors", 59, 1),
    ("type", 60, 4),
    ("checksum", 64, 4),
    ("unique id", 68, 16),
    ("saved state", 84, 1),
    ("reserved", 85, 427),
];
const HEADER_FIELDS: Layout = &[
    ("cookie", 0, 8),
    ("data offset", 8, 8),
    ("table offset", 16, 8),
    ("version", 24, 4),
    ("entries", 28, 4),
    ("block size", 32, 4),
    ("checksum", 36, 4),
    ("parent id", 40, 16),
    ("parent time", 56, 4),
    ("reserved", 60, 4),
    ("parent name", 64, 512),
    ("padding", 768, 256),
];
const VHDX_HEADER_FIELDS: Layout = &[
    ("signature", 0, 4),
    ("checksum", 4, 4),
    ("sequence", 8, 8),
    ("file write guid", 16, 16),
    ("data write guid", 32, 16),
    ("log guid", 48, 16),
    ("log version", 64, 2),
    ("version", 66, 2),
    ("log length", 68, 4),
    ("log offset", 72, 8),
    ("reserved", 80, 4016),
];
const ENTRY_FIELDS: Layout = &[
    ("signature", 0, 4),
    ("checksum", 4, 4),
    ("length", 8, 4),
    ("tail", 12, 4),
    ("sequence", 16, 8),
    ("count", 24, 4),
    ("reserved", 28, 4),
    ("guid", 32, 16),
    ("flushed offset", 48, 8),
    ("last offset", 56, 8),
];

/// The fields of `layout` at each of `copies`, all big-endian or all little-endian.
fn fields(name: &str, copies: &[u64], layout: Layout, like: &Field) -> Vec<Field> {
    let field = |&(field, at, len): &(&str, u64, usize)| Field {
        name: format!("{name}, {field}"),
        at: copies.iter().map(|copy| copy + at).collect(),
        len,
        ..like.clone()
    };
    layout.iter().map(field).collect()
}

fn like(big_endian: bool, seals: Vec<Seal>) -> Field {
    Field { big_endian, seals, ..Field::plain("", (0, 0)) }
}

fn plain(fields: &mut Vec<Field>, name: &str, place: (u64, usize), like: &Field) {
    fields.push(Field { name: name.to_owned(), at: vec![place.0], len: place.1, ..like.clone() });
}

fn vhd_subject(name: &'static str, storages: Vec<MemoryStorage>, damaged: usize) -> Subject {
    let file = storages[damaged].to_bytes().unwrap();
    let tail = file.len() as u64 - 512;
    let mut list = Vec::new();
    let mut footer = |name: &str, copies: &[u64]| {
        let seals = copies.iter().map(|&at| Seal::VhdFooter(at)).collect();
        list.extend(fields(name, copies, FOOTER_FIELDS, &like(true, seals)));
    };
    if be32(&file, tail as usize + 60) == 2 {
        footer("only footer", &[tail]);
        return Subject { name, storages, damaged, fields: list, blame: blame::vhd };
    }
    footer("tail footer", &[tail]);
    footer("footer copy", &[0]);
    footer("both footers", &[tail, 0]);
    let sealed = like(true, vec![Seal::VhdHeader(512)]);
    list.extend(fields("header", &[512], HEADER_FIELDS, &sealed));
    for number in 0..8 {
        const LOCATOR_FIELDS: Layout =
            &[("code", 0, 4), ("space", 4, 4), ("length", 8, 4), ("reserved", 12, 4), ("offset", 16, 8)];
        let at = 512 + 576 + 24 * number;
        list.extend(fields(&format!("locator {number}"), &[at], LOCATOR_FIELDS, &sealed));
        let (len, data) = (be32(&file, at as usize + 8), be64(&file, at as usize + 16));
        if len > 0 {
            plain(&mut list, &format!("locator {number}, path"), (data, len as usize), &like(true, vec![]));
        }
    }
    let table = be64(&file, 512 + 16);
    let unsealed = like(true, vec![]);
    for entry in 0..u64::from(be32(&file, 512 + 28)) {
        plain(&mut list, &format!("BAT entry {entry}"), (table + 4 * entry, 4), &unsealed);
        let sector = be32(&file, (table + 4 * entry) as usize);
        if sector != u32::MAX {
            let at = u64::from(sector) * 512;
            plain(&mut list, &format!("bitmap of block {entry}"), (at, 1), &unsealed);
            plain(&mut list, &format!("bitmap of block {entry}, behind the block"), (at + 1, 511), &unsealed);
        }
    }
    plain(&mut list, "BAT, behind the entries", (table + 4 * u64::from(be32(&file, 512 + 28)), 16), &unsealed);
    Subject { name, storages, damaged, fields: list, blame: blame::vhd }
}

fn vhdx_subject(name: &'static str, storages: Vec<MemoryStorage>, damaged: usize) -> Subject {
    let file = storages[damaged].to_bytes().unwrap();
    let mut list = fields("identifier", &[0], &[("signature", 0, 8), ("creator", 8, 512)], &like(false, vec![]));
    let [first, second] = [64 * KIB, 128 * KIB];
    for (name, copies) in [("header 1", vec![first]), ("header 2", vec![second]), ("both headers", vec![first, second])]
    {
        let seals = copies.iter().map(|&at| Seal::Vhdx(at, 4096)).collect();
        list.extend(fields(name, &copies, VHDX_HEADER_FIELDS, &like(false, seals)));
    }
    let [first, second] = [192 * KIB, 256 * KIB];
    for (name, copies) in
        [("region table 1", vec![first]), ("region table 2", vec![second]), ("both region tables", vec![first, second])]
    {
        let seals = copies.iter().map(|&at| Seal::Vhdx(at, 64 * KIB)).collect();
        let like = like(false, seals);
        list.extend(fields(
            name,
            &copies,
            &[("signature", 0, 4), ("checksum", 4, 4), ("count", 8, 4), ("reserved", 12, 4)],
            &like,
        ));
        for row in 0..2 {
            const ROW: Layout = &[("guid", 16, 16), ("offset", 32, 8), ("length", 40, 4), ("required", 44, 4)];
            let at: Vec<u64> = copies.iter().map(|at| at + 32 * row).collect();
            list.extend(fields(&format!("{name}, row {row}"), &at, ROW, &like));
        }
    }
    let row = |index: usize| le64(&file, (192 << 10) + 32 * index + 32);
    let is_metadata = |at: u64| file[at as usize..].starts_with(b"metadata");
    let (metadata, bat) = if is_metadata(row(0)) { (row(0), row(1)) } else { (row(1), row(0)) };
    metadata_fields(&file, metadata, &mut list);
    let unsealed = like(false, vec![]);
    let blocks = [0, 1, 2, 3].map(|block| (format!("BAT entry {block}"), bat + 8 * block));
    // 512 byte sectors in blocks of 1 MiB: 4096 payload blocks, then the entry of their bitmap.
    let bitmap = bat + 8 * 4096;
    for (name, at) in blocks.into_iter().chain([("BAT entry of the bitmap".to_owned(), bitmap)]) {
        plain(&mut list, &name, (at, 8), &unsealed);
    }
    let place = le64(&file, bitmap as usize);
    if place & 7 == 6 {
        for at in [0, 1, 255, 256, 511, 512, 1024] {
            plain(&mut list, &format!("bitmap byte {at}"), ((place & !(MIB - 1)) + at, 1), &unsealed);
        }
    }
    Subject { name, storages, damaged, fields: list, blame: blame::vhdx }
}

fn metadata_fields(file: &[u8], region: u64, list: &mut Vec<Field>) {
    const TABLE_FIELDS: Layout = &[("signature", 0, 8), ("reserved", 8, 2), ("count", 10, 2), ("reserved 2", 12, 20)];
    const ROW: Layout = &[("id", 0, 16), ("offset", 16, 4), ("length", 20, 4), ("flags", 24, 4), ("reserved", 28, 4)];
    let unsealed = like(false, vec![]);
    list.extend(fields("metadata table", &[region], TABLE_FIELDS, &unsealed));
    for row in 0..u64::from(le16(file, region as usize + 10)) {
        let at = region + 32 + 32 * row;
        list.extend(fields(&format!("metadata row {row}"), &[at], ROW, &unsealed));
        let item = region + u64::from(le32(file, at as usize + 16));
        match le32(file, at as usize + 20) {
            len @ (4 | 16) => plain(list, &format!("item {row}"), (item, len as usize), &unsealed),
            8 => {
                plain(list, &format!("item {row}"), (item, 8), &unsealed);
                plain(list, &format!("item {row}, first half"), (item, 4), &unsealed);
                plain(list, &format!("item {row}, second half"), (item + 4, 4), &unsealed);
            }
            _ => locator_fields(file, item, list),
        }
    }
}

fn locator_fields(file: &[u8], item: u64, list: &mut Vec<Field>) {
    const PAIR: Layout = &[("key offset", 0, 4), ("value offset", 4, 4), ("key length", 8, 2), ("value length", 10, 2)];
    let unsealed = like(false, vec![]);
    list.extend(fields("locator", &[item], &[("type", 0, 16), ("reserved", 16, 2), ("count", 18, 2)], &unsealed));
    for pair in 0..u64::from(le16(file, item as usize + 18)) {
        let at = item + 20 + 12 * pair;
        list.extend(fields(&format!("locator pair {pair}"), &[at], PAIR, &unsealed));
        let text = |offset: usize, len: usize| {
            (item + u64::from(le32(file, at as usize + offset)), usize::from(le16(file, at as usize + len)))
        };
        plain(list, &format!("locator pair {pair}, key"), text(0, 8), &unsealed);
        plain(list, &format!("locator pair {pair}, value"), text(4, 10), &unsealed);
    }
}

/// The log of the sample `vhdx-dirty-log`: ring positions and lengths of the entries to replay, with their kinds of
/// updates in order (`z` for zeros, `d` for a page).
const ENTRIES: [(u64, u64, &str); 3] = [(0xFC000, 0x3000, "dd"), (0xFF000, 0x2000, "zd"), (0x1000, 0x2000, "d")];

pub(crate) fn vhdx_dirty_log() -> Subject {
    const LOG_AT: u64 = MIB;
    const DESCRIPTOR: Layout =
        &[("signature", 0, 4), ("trailing", 4, 4), ("leading", 8, 8), ("offset", 16, 8), ("sequence", 24, 8)];
    const SECTOR: Layout =
        &[("signature", 0, 4), ("sequence high", 4, 4), ("a table entry", 16, 8), ("sequence low", 4092, 4)];
    let storages = vec![MemoryStorage::from_bytes(&sample::load("vhdx-dirty-log"))];
    let mut subject = vhdx_subject("VHDX with a dirty log", storages, 0);
    // What else the matrix does to a VHDX is done to the others; here it is the log, and what says where it is.
    subject.fields.retain(|field| field.name.contains("header"));
    for (number, &(at, len, updates)) in ENTRIES.iter().enumerate() {
        let like = like(false, vec![Seal::Entry { log: LOG_AT, len, at }]);
        subject.fields.extend(fields(&format!("log entry {number}"), &[LOG_AT + at], ENTRY_FIELDS, &like));
        let mut page = at + 4096;
        for (index, update) in updates.chars().enumerate() {
            let place = LOG_AT + at + 64 + 32 * index as u64;
            subject.fields.extend(fields(
                &format!("log entry {number}, descriptor {index}"),
                &[place],
                DESCRIPTOR,
                &like,
            ));
            if update == 'd' {
                let place = LOG_AT + page % MIB;
                subject.fields.extend(fields(&format!("log entry {number}, data {index}"), &[place], SECTOR, &like));
                page += 4096;
            }
        }
    }
    subject
}

pub(crate) fn vhd_fixed() -> Subject {
    vhd_subject("VHD, fixed", vhd(true, false), 0)
}

pub(crate) fn vhd_dynamic() -> Subject {
    vhd_subject("VHD, dynamic", vhd(false, false), 0)
}

pub(crate) fn vhd_differencing() -> Subject {
    vhd_subject("VHD, differencing", vhd(false, true), 0)
}

pub(crate) fn vhdx_fixed() -> Subject {
    vhdx_subject("VHDX, fixed", vhdx(true, false), 0)
}

pub(crate) fn vhdx_dynamic() -> Subject {
    vhdx_subject("VHDX, dynamic", vhdx(false, false), 0)
}

pub(crate) fn vhdx_differencing() -> Subject {
    vhdx_subject("VHDX, differencing", vhdx(false, true), 0)
}

pub(crate) fn vhd_parent() -> Subject {
    vhd_subject("VHD, the parent of another", vhd(false, true), 1)
}

pub(crate) fn vhdx_parent() -> Subject {
    vhdx_subject("VHDX, the parent of another", vhdx(false, true), 1)
}
