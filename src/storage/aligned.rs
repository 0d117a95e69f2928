//! Memory that bytes lie in on their way into a file.
//!
//! Owns: where in memory they lie, and whether a write can be cut inside a sector. Must not know: what is written.
//!
//! Linux copies what is written page by page of the process's memory. A page that is not there (it was never touched, or
//! was taken away for want of memory) has to be fetched first, and a process that is killed then leaves a write that
//! ends where the page before it ends. Is that inside a sector of the file, the sector holds new bytes and old ones. It
//! never is when the bytes lie in their page of memory as they will in the file's.

use super::PAGE;
use crate::units::SECTOR;

/// Whether a write of `bytes` at `offset` that is cut short is cut between two sectors.
pub(super) fn keeps_sectors_whole(bytes: &[u8], offset: u64) -> bool {
    bytes.as_ptr().addr() as u64 % SECTOR == offset % SECTOR
}

/// Memory whose bytes lie in their page as they will in the file's.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// `len` bytes bound for `offset` of a file; what they are is left from before.
    pub(crate) fn bound_for(&mut self, offset: u64, len: usize) -> &mut [u8] {
        if self.0.len() < len + 2 * PAGE {
            self.0.resize(len + 2 * PAGE, 0);
        }
        let start = self.0.as_ptr().align_offset(PAGE).min(PAGE) + (offset % PAGE as u64) as usize;
        &mut self.0[start..start + len]
    }

    /// The first `len` bytes, from the start of a page: the kernel copies to memory that starts elsewhere at half the
    /// speed. Callers hold at most a chunk, which fits any usize.
    pub(crate) fn of_len(&mut self, len: u64) -> &mut [u8] {
        self.bound_for(0, len as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_lie_in_their_page_as_in_the_file() {
        let mut buffer = Buffer::default();
        for (offset, len) in [(0, 1), (512, 4096), (4095, 1 << 20), (1 << 40, 0), ((1 << 33) + 513, 70_000), (3, 5)] {
            let bytes = buffer.bound_for(offset, len);
            assert_eq!(bytes.len(), len);
            assert_eq!(bytes.as_ptr().addr() as u64 % 4096, offset % 4096, "{len} bytes for {offset}");
            assert!(keeps_sectors_whole(bytes, offset));
            assert!(!keeps_sectors_whole(bytes, offset + 16));
        }
    }
}
