//! VHD, read by the page: footer, dynamic header, BAT, bitmaps.
//!
//! Owns: how a VHD file answers for a run of its disk. Everything is big-endian; a sector is 512 bytes.

use super::Answer;
use crate::support::bytes::{Bytes, Outcome, be16, be32, be64, id16, length, take, utf16le, vhd_checksum};

pub const SECTOR: u64 = 512;
pub const UNUSED: u32 = u32::MAX;
pub const FIXED: u32 = 2;
pub const DYNAMIC: u32 = 3;
pub const DIFFERENCING: u32 = 4;

/// An open VHD file.
pub struct Vhd<'a> {
    pub file: Box<dyn Bytes + 'a>,
    pub size: u64,
    pub kind: u32,
    pub id: [u8; 16],
    pub parent_id: [u8; 16],
    /// The parent's name in the header.
    pub parent_name: String,
    /// Platform code and path of each locator in use, in file order; only the codes whose data is UTF-16.
    pub locators: Vec<([u8; 4], String)>,
    /// The tail footer was lost; the copy at the start was used.
    pub from_head_copy: bool,
    block_size: u64,
    bat: Vec<u32>,
}

/// The 512 bytes of the footer in force, and whether they come from the head copy.
pub fn find_footer(file: &dyn Bytes) -> Outcome<(Vec<u8>, bool)> {
    let good = |bytes: &[u8]| bytes.starts_with(b"conectix") && be32(bytes, 64) == vhd_checksum(bytes, 64);
    let end = length(file)?;
    for short in [0, 1] {
        let stored = SECTOR - short;
        if end >= stored && (end - stored).is_multiple_of(SECTOR) {
            let mut tail = take(file, end - stored, stored)?;
            tail.resize(SECTOR as usize, 0);
            if good(&tail) {
                return Ok((tail, false));
            }
        }
    }
    let head = take(file, 0, SECTOR)?;
    if good(&head) && [DYNAMIC, DIFFERENCING].contains(&be32(&head, 60)) {
        return Ok((head, true));
    }
    Err("no valid footer at either end".to_owned())
}

/// Bytes of the sector bitmap before each block's data.
pub fn bitmap_bytes(block_size: u64) -> u64 {
    (block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
}

impl<'a> Vhd<'a> {
    /// Reads the structures of `file`.
    pub fn open(file: Box<dyn Bytes + 'a>) -> Outcome<Self> {
        let (footer, from_head_copy) = find_footer(&*file)?;
        let size = be64(&footer, 48);
        let kind = be32(&footer, 60);
        if be32(&footer, 12) >> 16 != 1 {
            return Err(format!("footer version {:#x}", be32(&footer, 12)));
        }
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(format!("current size {size}"));
        }
        let id = id16(&footer, 68);
        let mut image = Self {
            file,
            size,
            kind,
            id,
            parent_id: [0; 16],
            parent_name: String::new(),
            locators: Vec::new(),
            from_head_copy,
            block_size: 0,
            bat: Vec::new(),
        };
        match kind {
            FIXED => Ok(image),
            DYNAMIC | DIFFERENCING => {
                image.read_header(be64(&footer, 16))?;
                Ok(image)
            }
            other => Err(format!("disk type {other}")),
        }
    }

    fn read_header(&mut self, at: u64) -> Outcome<()> {
        let header = take(&*self.file, at, 1024)?;
        if !header.starts_with(b"cxsparse") || be32(&header, 36) != vhd_checksum(&header, 36) {
            return Err(format!("no valid dynamic header at {at:#x}"));
        }
        let block_size = u64::from(be32(&header, 32));
        if block_size < SECTOR || !block_size.is_power_of_two() {
            return Err(format!("block size {block_size}"));
        }
        let entries = u64::from(be32(&header, 28));
        if entries < self.size.div_ceil(block_size) {
            return Err(format!("{entries} BAT entries for {} blocks", self.size.div_ceil(block_size)));
        }
        let bat = take(&*self.file, be64(&header, 16), entries * 4)?;
        self.bat = bat.chunks_exact(4).map(|entry| be32(entry, 0)).collect();
        self.block_size = block_size;
        self.parent_id = id16(&header, 40);
        let name: Vec<u16> = (64..576).step_by(2).map(|at| be16(&header, at)).take_while(|&unit| unit != 0).collect();
        self.parent_name = String::from_utf16_lossy(&name);
        for entry in header[576..768].chunks_exact(24).filter(|entry| entry.starts_with(b"W2")) {
            let data = take(&*self.file, be64(entry, 16), u64::from(be32(entry, 8)))?;
            let path = utf16le(&data).ok_or("a locator that is no UTF-16")?;
            self.locators.push(([entry[0], entry[1], entry[2], entry[3]], path));
        }
        Ok(())
    }

    /// The path in the locator of this platform code.
    pub fn locator(&self, platform: &[u8; 4]) -> Option<&str> {
        self.locators.iter().find(|(code, _)| code == platform).map(|(_, path)| path.as_str())
    }

    /// Whether sectors it does not hold are its parent's.
    pub fn is_differencing(&self) -> bool {
        self.kind == DIFFERENCING
    }

    /// The answer for the bytes from `offset` on, and for how many of `limit` it holds.
    pub fn run(&self, offset: u64, limit: u64) -> Outcome<(u64, Answer)> {
        if self.kind == FIXED {
            return Ok((limit, Answer::Data(offset)));
        }
        let hole = if self.is_differencing() { Answer::Parent } else { Answer::Zero };
        let block = offset / self.block_size;
        let inside = offset % self.block_size;
        let limit = limit.min(self.block_size - inside);
        let entry = self.bat[block as usize];
        if entry == UNUSED {
            return Ok((limit, hole));
        }
        let at = u64::from(entry) * SECTOR;
        let bitmap_len = bitmap_bytes(self.block_size);
        let bitmap = take(&*self.file, at, bitmap_len).map_err(|error| format!("bitmap of block {block}: {error}"))?;
        // Most significant bit first.
        let bit = |sector: u64| bitmap[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0;
        let first = inside / SECTOR;
        let present = bit(first);
        let mut end = first + 1;
        while end * SECTOR < inside + limit && bit(end) == present {
            end += 1;
        }
        let answer = if present { Answer::Data(at + bitmap_len + inside) } else { hole };
        Ok((limit.min(end * SECTOR - inside), answer))
    }
}
