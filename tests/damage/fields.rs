//! Fields and the values that are put into them.
//!
//! Owns: where a field lies, its nasty values, and how the checksum over it is made right. Must not know: images.

use crate::support::bytes::{vhd_checksum, vhdx_checksum};
use vhdkit::storage::{MemoryStorage, Storage};

const PAGE: u64 = 4096;

/// A checksum to be made right.
#[derive(Clone, Debug)]
pub(crate) enum Seal {
    /// The VHD footer at this offset.
    VhdFooter(u64),
    /// The VHD dynamic header at this offset.
    VhdHeader(u64),
    /// The VHDX structure at this offset, of this length.
    Vhdx(u64, u64),
    /// The entry at this position of the log at this offset, of this length, wherever it wraps.
    Entry { log: u64, len: u64, at: u64 },
}

fn get(file: &MemoryStorage, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, at).expect("inside the file");
    bytes
}

impl Seal {
    pub(crate) fn mend(&self, file: &MemoryStorage) {
        let put = |at: u64, bytes: [u8; 4]| file.write_all_at(&bytes, at).expect("memory takes writes");
        match *self {
            Self::VhdFooter(at) => put(at + 64, vhd_checksum(&get(file, at, 512), 64).to_be_bytes()),
            Self::VhdHeader(at) => put(at + 36, vhd_checksum(&get(file, at, 1024), 36).to_be_bytes()),
            Self::Vhdx(at, len) => put(at + 4, vhdx_checksum(&get(file, at, len), 4).to_le_bytes()),
            Self::Entry { log, len, at } => {
                let pages = (0..len / PAGE).map(|page| get(file, log + (at + page * PAGE) % (1 << 20), PAGE));
                put(log + at + 4, vhdx_checksum(&pages.collect::<Vec<_>>().concat(), 4).to_le_bytes());
            }
        }
    }
}

/// Bytes that mean something, in every place where they lie.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    /// The first byte of each copy.
    pub(crate) at: Vec<u64>,
    pub(crate) len: usize,
    pub(crate) big_endian: bool,
    pub(crate) seals: Vec<Seal>,
}

impl Field {
    /// A field under no checksum.
    pub(crate) fn plain(name: &str, (at, len): (u64, usize)) -> Self {
        Self { name: name.to_owned(), at: vec![at], len, big_endian: false, seals: Vec::new() }
    }

    pub(crate) fn put(&self, file: &MemoryStorage, bytes: &[u8]) {
        self.at.iter().for_each(|&at| file.write_all_at(bytes, at).expect("memory takes writes"));
    }

    /// Every nasty value, with a name, that differs from what `file` has.
    pub(crate) fn values(&self, file: &MemoryStorage) -> Vec<(String, Vec<u8>)> {
        let old = get(file, self.at[0], self.len as u64);
        let mut values = if self.len <= 8 { self.numbers(&old) } else { texts(&old) };
        values.retain(|(_, bytes)| *bytes != old);
        values.sort();
        values.dedup_by(|one, other| one.1 == other.1);
        values
    }

    fn numbers(&self, old: &[u8]) -> Vec<(String, Vec<u8>)> {
        let bits = 8 * self.len as u32;
        let max = u64::MAX >> (64 - bits);
        let mut wide = [0; 8];
        let value = if self.big_endian {
            wide[8 - self.len..].copy_from_slice(old);
            u64::from_be_bytes(wide)
        } else {
            wide[..self.len].copy_from_slice(old);
            u64::from_le_bytes(wide)
        };
        let mut swapped = old.to_vec();
        swapped.reverse();
        let mut list =
            vec![0, 1, 2, 3, max, max - 1, max / 2, max / 2 + 1, value.wrapping_add(1), value.wrapping_sub(1)];
        list.extend([value.wrapping_mul(2), value / 2, value ^ 1 << (bits - 1), value ^ 0x10, max >> (bits / 4)]);
        list.extend([value.wrapping_add(1 << 20), value.wrapping_sub(1 << 20), value.wrapping_add(4096)]);
        // States of block allocation tables, and reserved bits beside them.
        list.extend((0..8).map(|state| value & !7 | state));
        list.push(value ^ 1 << (bits / 2));
        // The largest in whole sectors, pages and megabytes: rounded up, they overflow.
        list.extend([max & !511, max & !4095, max & !((1 << 20) - 1)]);
        let mut values: Vec<(String, Vec<u8>)> = list
            .into_iter()
            .map(|value| {
                let value = value & max;
                let bytes = if self.big_endian {
                    value.to_be_bytes()[8 - self.len..].to_vec()
                } else {
                    value.to_le_bytes()[..self.len].to_vec()
                };
                (format!("{value:#x}"), bytes)
            })
            .collect();
        values.push(("swapped".to_owned(), swapped));
        values
    }
}

fn texts(old: &[u8]) -> Vec<(String, Vec<u8>)> {
    let with = |at: usize, add: u8| {
        let mut bytes = old.to_vec();
        bytes[at] = bytes[at].wrapping_add(add);
        bytes
    };
    let mut reversed = old.to_vec();
    reversed.reverse();
    vec![
        ("zeros".to_owned(), vec![0; old.len()]),
        ("ones".to_owned(), vec![0xFF; old.len()]),
        // Half of a surrogate pair, over and over.
        ("surrogates".to_owned(), [0x00, 0xD8].repeat(old.len().div_ceil(2))[..old.len()].to_vec()),
        ("another first byte".to_owned(), with(0, 1)),
        ("another last byte".to_owned(), with(old.len() - 1, 0x80)),
        ("reversed".to_owned(), reversed),
    ]
}
