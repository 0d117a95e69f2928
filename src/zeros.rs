//! Is this buffer all zero?
//!
//! Owns: the one fast answer to that question. Must not know: what the bytes are for.

/// Whether every byte of `bytes` is zero; true for an empty slice.
#[must_use]
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Unrolled over wide chunks so that the compiler vectorises the OR; the early exit per chunk keeps data cheap.
    let mut chunks = bytes.chunks_exact(256);
    for chunk in chunks.by_ref() {
        if chunk.iter().fold(0u8, |acc, byte| acc | byte) != 0 {
            return false;
        }
    }
    chunks.remainder().iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_set_byte_anywhere_is_seen() {
        for len in [0usize, 1, 255, 256, 257, 511, 512, 4096] {
            let mut bytes = vec![0u8; len];
            assert!(is_zero(&bytes));
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
