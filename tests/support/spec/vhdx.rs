//! VHDX, read by the page: headers, region table, metadata, BAT, sector bitmaps.
//!
//! Owns: how a VHDX file answers for a run of its disk. Everything is little-endian; the log is replayed before anything
//! but identifier and headers is looked at.

use super::Answer;
use super::vhdx_log::{LogPlace, Replayed, replay};
use crate::support::bytes::{Bytes, Outcome, id16, le16, le32, le64, take, utf16le, vhdx_checksum};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// Bits of one sector bitmap block.
pub const CHUNK_SECTORS: u64 = 1 << 23;

/// The raw form of a GUID from its text form.
pub const fn guid(text: &str) -> [u8; 16] {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let text = text.as_bytes();
    let mut raw = [0; 16];
    let mut nibble = 0;
    let mut at = 0;
    while at < text.len() {
        let digit = match text[at] {
            c @ b'0'..=b'9' => c - b'0',
            c @ b'a'..=b'f' => c - b'a' + 10,
            c @ b'A'..=b'F' => c - b'A' + 10,
            _ => 16,
        };
        if digit < 16 {
            let place = ORDER[nibble / 2];
            raw[place] = raw[place] << 4 | digit;
            nibble += 1;
        }
        at += 1;
    }
    assert!(nibble == 32, "a GUID has 32 hexadecimal digits");
    raw
}

pub const BAT_REGION: [u8; 16] = guid("2DC27766-F623-4200-9D64-115E9BFD4A08");
pub const METADATA_REGION: [u8; 16] = guid("8B7CA206-4790-4B9A-B8FE-575F050F886E");
pub const FILE_PARAMETERS: [u8; 16] = guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
pub const DISK_SIZE: [u8; 16] = guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
pub const DISK_ID: [u8; 16] = guid("BECA12AB-B2E6-4523-93EF-C309E000C746");
pub const LOGICAL_SECTOR: [u8; 16] = guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
pub const PHYSICAL_SECTOR: [u8; 16] = guid("CDA348C7-445D-4471-9CC9-E9885251C556");
pub const PARENT_LOCATOR: [u8; 16] = guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");
pub const LOCATOR_TYPE: [u8; 16] = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913");
const CHS_PARAMETERS: [u8; 16] = guid("DA02D7BC-3D3A-423C-AC88-2A36AB21479B");
const PMEM_LABELS: [u8; 16] = guid("10E1AE8A-4B7E-4169-A40F-CD70DE928393");

/// An open VHDX file, its log replayed.
pub struct Vhdx<'a> {
    pub file: Replayed<'a>,
    pub size: u64,
    pub has_parent: bool,
    /// LeaveBlockAllocated: a fixed disk.
    pub fixed: bool,
    pub block_size: u64,
    pub logical_sector: u64,
    pub data_write_guid: [u8; 16],
    /// Key and value pairs of the parent locator, in file order.
    pub locator: Vec<(String, String)>,
    pub bat: u64,
}

/// One row of the region table.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub id: [u8; 16],
    pub offset: u64,
    pub len: u64,
    pub flags: u32,
}

/// One row of the metadata table; `offset` counts from the start of the metadata region.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    pub id: [u8; 16],
    pub offset: u64,
    pub len: u64,
    pub flags: u32,
}

/// The 4 KiB of the header in force.
pub fn current_header(file: &dyn Bytes) -> Outcome<Vec<u8>> {
    let read = |at| take(file, at, 4096).ok().filter(|bytes| header_is_valid(bytes));
    match (read(64 * KIB), read(128 * KIB)) {
        (None, None) => Err("neither header is valid".to_owned()),
        (Some(only), None) | (None, Some(only)) => Ok(only),
        (Some(a), Some(b)) => match le64(&a, 8).cmp(&le64(&b, 8)) {
            std::cmp::Ordering::Greater => Ok(a),
            std::cmp::Ordering::Less => Ok(b),
            std::cmp::Ordering::Equal if a == b => Ok(a),
            std::cmp::Ordering::Equal => Err("two different headers with one sequence number".to_owned()),
        },
    }
}

pub fn header_is_valid(bytes: &[u8]) -> bool {
    bytes.starts_with(b"head") && le32(bytes, 4) == vhdx_checksum(bytes, 4)
}

pub fn region_table_is_valid(bytes: &[u8]) -> bool {
    bytes.starts_with(b"regi") && le32(bytes, 4) == vhdx_checksum(bytes, 4) && le32(bytes, 8) <= 2047
}

/// The rows of a region table of 64 KiB.
pub fn regions(table: &[u8]) -> Vec<Region> {
    let rows = table[16..].chunks_exact(32).take(le32(table, 8) as usize);
    rows.map(|row| Region {
        id: id16(row, 0),
        offset: le64(row, 16),
        len: u64::from(le32(row, 24)),
        flags: le32(row, 28),
    })
    .collect()
}

/// The rows of a metadata table of 64 KiB.
pub fn items(table: &[u8]) -> Outcome<Vec<Item>> {
    let count = le16(table, 10) as usize;
    if !table.starts_with(b"metadata") || count > 2047 {
        return Err("no valid metadata table".to_owned());
    }
    let rows = table[32..].chunks_exact(32).take(count);
    Ok(rows
        .map(|row| Item {
            id: id16(row, 0),
            offset: u64::from(le32(row, 16)),
            len: u64::from(le32(row, 20)),
            flags: le32(row, 24),
        })
        .collect())
}

/// The pairs of a parent locator item.
pub fn locator_pairs(item: &[u8]) -> Outcome<Vec<(String, String)>> {
    if item.len() < 20 || id16(item, 0) != LOCATOR_TYPE {
        return Err("an unknown type of parent locator".to_owned());
    }
    let text = |offset: u32, len: u16| -> Outcome<String> {
        let range = offset as usize..offset as usize + len as usize;
        let bytes = item.get(range.clone()).ok_or_else(|| format!("locator text {range:?} outside the item"))?;
        utf16le(bytes).ok_or_else(|| format!("locator text {range:?} is no UTF-16"))
    };
    let count = le16(item, 18) as usize;
    let rows = item.get(20..20 + 12 * count).ok_or("locator rows outside the item")?;
    let pair = |row: &[u8]| Ok((text(le32(row, 0), le16(row, 8))?, text(le32(row, 4), le16(row, 10))?));
    rows.chunks_exact(12).map(pair).collect()
}

/// Payload blocks per sector bitmap block.
pub fn chunk_ratio(logical_sector: u64, block_size: u64) -> u64 {
    CHUNK_SECTORS * logical_sector / block_size
}

impl<'a> Vhdx<'a> {
    /// Replays the log in memory and reads the structures of `file`.
    pub fn open(file: Box<dyn Bytes + 'a>) -> Outcome<Self> {
        let header = current_header(&*file)?;
        if le16(&header, 66) != 1 {
            return Err(format!("version {}", le16(&header, 66)));
        }
        let log = LogPlace { offset: le64(&header, 72), len: u64::from(le32(&header, 68)), guid: id16(&header, 48) };
        let file = if log.guid == [0; 16] { Replayed::nothing_over(file)? } else { replay(file, log)? };
        let table = [192, 256]
            .iter()
            .filter_map(|kib| take(&file, kib * KIB, 64 * KIB).ok())
            .find(|table| region_table_is_valid(table))
            .ok_or("neither region table is valid")?;
        let regions = regions(&table);
        let find = |id, name| regions.iter().find(|row| row.id == id).copied().ok_or(format!("no {name} region"));
        let bat = find(BAT_REGION, "BAT")?;
        let metadata = find(METADATA_REGION, "metadata")?;
        let known = [BAT_REGION, METADATA_REGION];
        if regions.iter().any(|row| row.flags & 1 != 0 && !known.contains(&row.id)) {
            return Err("an unknown required region".to_owned());
        }
        let mut image = Self {
            file,
            size: 0,
            has_parent: false,
            fixed: false,
            block_size: 0,
            logical_sector: 0,
            data_write_guid: id16(&header, 32),
            locator: Vec::new(),
            bat: bat.offset,
        };
        image.read_metadata(metadata)?;
        let payload = image.size.div_ceil(image.block_size);
        let entries = payload + (payload - 1) / chunk_ratio(image.logical_sector, image.block_size);
        if bat.len < entries * 8 {
            return Err(format!("a BAT region of {} bytes for {entries} entries", bat.len));
        }
        Ok(image)
    }

    fn read_metadata(&mut self, region: Region) -> Outcome<()> {
        let items = items(&take(&self.file, region.offset, 64 * KIB)?)?;
        let read = |id, len: u64, name: &str| -> Outcome<Vec<u8>> {
            let item = items.iter().find(|item| item.id == id).ok_or(format!("no {name} in the metadata"))?;
            if item.len < len {
                return Err(format!("{name} of {} bytes", item.len));
            }
            take(&self.file, region.offset + item.offset, item.len)
        };
        let parameters = read(FILE_PARAMETERS, 8, "file parameters")?;
        let size = le64(&read(DISK_SIZE, 8, "disk size")?, 0);
        let logical = u64::from(le32(&read(LOGICAL_SECTOR, 4, "logical sector size")?, 0));
        read(PHYSICAL_SECTOR, 4, "physical sector size")?;
        read(DISK_ID, 16, "disk id")?;
        let block_size = u64::from(le32(&parameters, 0));
        let has_parent = le32(&parameters, 4) & 2 != 0;
        let locator =
            if has_parent { locator_pairs(&read(PARENT_LOCATOR, 20, "parent locator")?)? } else { Vec::new() };
        let known = [FILE_PARAMETERS, DISK_SIZE, LOGICAL_SECTOR, PHYSICAL_SECTOR, DISK_ID, PARENT_LOCATOR];
        let tolerated = [CHS_PARAMETERS, PMEM_LABELS];
        if let Some(item) =
            items.iter().find(|item| item.flags & 4 != 0 && !known.contains(&item.id) && !tolerated.contains(&item.id))
        {
            return Err(format!("unknown required item {:02x?}", item.id));
        }
        if !block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&block_size) {
            return Err(format!("block size {block_size}"));
        }
        if ![512, 4096].contains(&logical) {
            return Err(format!("logical sector size {logical}"));
        }
        if size == 0 || !size.is_multiple_of(logical) || size > 64 << 40 {
            return Err(format!("virtual size {size}"));
        }
        self.fixed = le32(&parameters, 4) & 1 != 0 && !has_parent;
        (self.size, self.has_parent, self.block_size) = (size, has_parent, block_size);
        (self.logical_sector, self.locator) = (logical, locator);
        Ok(())
    }

    /// The value of `key` in the parent locator.
    pub fn locator_value(&self, key: &str) -> Option<&str> {
        self.locator.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Whether `parent` is the file this one was made over.
    pub fn check_parent(&self, parent: &Vhdx<'_>) -> Outcome<()> {
        let named = ["parent_linkage", "parent_linkage2"].map(|key| self.locator_value(key).map(guid));
        if !named.iter().flatten().any(|id| *id != [0; 16] && *id == parent.data_write_guid) {
            return Err(format!("the child names {named:02x?}, the parent is {:02x?}", parent.data_write_guid));
        }
        if self.logical_sector != parent.logical_sector {
            return Err(format!("sectors of {} over sectors of {}", self.logical_sector, parent.logical_sector));
        }
        Ok(())
    }

    /// The BAT entry at `index`.
    pub fn entry(&self, index: u64) -> Outcome<u64> {
        Ok(le64(&take(&self.file, self.bat + index * 8, 8)?, 0))
    }

    /// The answer for the bytes from `offset` on, and for how many of `limit` it holds.
    pub fn run(&self, offset: u64, limit: u64) -> Outcome<(u64, Answer)> {
        let ratio = chunk_ratio(self.logical_sector, self.block_size);
        let block = offset / self.block_size;
        let inside = offset % self.block_size;
        let limit = limit.min(self.block_size - inside);
        let entry = self.entry(block + block / ratio)?;
        let at = entry & !(MIB - 1);
        match entry & 7 {
            0 if self.has_parent => Ok((limit, Answer::Parent)),
            0..=3 => Ok((limit, Answer::Zero)),
            6 | 7 if at == 0 => Err(format!("block {block} is present at offset 0")),
            6 => Ok((limit, Answer::Data(at + inside))),
            7 if self.has_parent => {
                let chunk = block / ratio;
                let bitmap = self.entry((chunk + 1) * ratio + chunk)?;
                if bitmap & 7 != 6 || bitmap < MIB {
                    return Err(format!("block {block} is partial and chunk {chunk} has no bitmap"));
                }
                let first = offset / self.logical_sector % CHUNK_SECTORS;
                let last = (offset + limit - 1) / self.logical_sector % CHUNK_SECTORS;
                let bytes = take(&self.file, (bitmap & !(MIB - 1)) + first / 8, last / 8 - first / 8 + 1)?;
                // Least significant bit first.
                let bit = |sector: u64| bytes[(sector / 8 - first / 8) as usize] & (1 << (sector % 8)) != 0;
                let sectors = (first..=last).take_while(|&sector| bit(sector) == bit(first)).count() as u64;
                let len = sectors * self.logical_sector - offset % self.logical_sector;
                Ok((len.min(limit), if bit(first) { Answer::Data(at + inside) } else { Answer::Parent }))
            }
            state => Err(format!("block {block} is in state {state}")),
        }
    }
}
