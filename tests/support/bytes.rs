//! Bytes at offsets and the fields in them.
//!
//! Owns: the input trait of this crate, integers of both endiannesses, the two checksums, the digest of a disk.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// An answer, or why there is none, in words.
pub type Outcome<T> = Result<T, String>;

/// A file to be read: a real one, bytes in memory, or a test's own storage.
pub trait Bytes {
    /// The length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`; an error when that reaches past the end.
    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl Bytes for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

impl Bytes for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.saturating_add(buf.len() as u64);
        if end > self.len() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buf.copy_from_slice(&self[offset as usize..end as usize]);
        Ok(())
    }
}

impl<B: Bytes + ?Sized> Bytes for &B {
    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).fill(offset, buf)
    }
}

impl<B: Bytes + ?Sized> Bytes for Box<B> {
    fn length(&self) -> io::Result<u64> {
        (**self).length()
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).fill(offset, buf)
    }
}

/// The length of `file`, with the failure in words.
pub fn length(file: &dyn Bytes) -> Outcome<u64> {
    file.length().map_err(|error| format!("the file's length: {error}"))
}

/// `len` bytes of `file` from `offset`; refuses what does not lie inside the file before it allocates.
pub fn take(file: &dyn Bytes, offset: u64, len: u64) -> Outcome<Vec<u8>> {
    let end = length(file)?;
    if offset.checked_add(len).is_none_or(|last| last > end) {
        return Err(format!("{len} bytes at {offset:#x} reach past the end of the file at {end:#x}"));
    }
    let mut buf = vec![0; len as usize];
    file.fill(offset, &mut buf).map_err(|error| format!("{len} bytes at {offset:#x}: {error}"))?;
    Ok(buf)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub fn id16(bytes: &[u8], at: usize) -> [u8; 16] {
    array(bytes, at)
}

pub fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// UTF-16LE to text; `None` when it is not valid.
pub fn utf16le(bytes: &[u8]) -> Option<String> {
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| le16(pair, 0)).collect();
    if bytes.len().is_multiple_of(2) { String::from_utf16(&units).ok() } else { None }
}

/// The one's complement of the byte sum, the four checksum bytes at `field` taken as zero (VHD).
pub fn vhd_checksum(bytes: &[u8], field: usize) -> u32 {
    let counted = bytes.iter().enumerate().filter(|(at, _)| !(field..field + 4).contains(at));
    !counted.fold(0u32, |sum, (_, &byte)| sum.wrapping_add(u32::from(byte)))
}

/// CRC-32C with the four checksum bytes at `field` taken as zero (VHDX).
pub fn vhdx_checksum(bytes: &[u8], field: usize) -> u32 {
    let state = crc32c_step(u32::MAX, &bytes[..field]);
    let state = crc32c_step(state, &[0; 4]);
    !crc32c_step(state, &bytes[field + 4..])
}

fn crc32c_step(state: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut at = 0;
        while at < 256 {
            let mut value = at as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { (value >> 1) ^ 0x82F6_3B78 } else { value >> 1 };
                bit += 1;
            }
            table[at] = value;
            at += 1;
        }
        table
    };
    bytes.iter().fold(state, |state, &byte| (state >> 8) ^ TABLE[((state ^ u32::from(byte)) & 0xFF) as usize])
}

/// A whole virtual disk in two numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Its length in bytes.
    pub len: u64,
    /// The SHA-256 of its bytes in lower-case hexadecimal.
    pub sha256: String,
}

impl Contents {
    /// The contents of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = Digesting::default();
        digest.update(bytes);
        digest.finish()
    }
}

/// Builds [`Contents`] piece by piece.
#[derive(Default)]
pub struct Digesting {
    sha256: Sha256,
    len: u64,
}

impl Digesting {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// The answer.
    pub fn finish(self) -> Contents {
        let sha256 = self.sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Contents { len: self.len, sha256 }
    }
}
