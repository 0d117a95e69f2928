#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

use super::*;

fn sample() -> Header {
    let id = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
    Header {
        sequence: 1,
        file_write_guid: id,
        data_write_guid: id,
        log_guid: Guid::nil(),
        log_version: 0,
        version: 1,
        log_length: 0x10_0000,
        log_offset: 0x10_0000,
    }
}

#[test]
fn checksum_vector() {
    let bytes = sample().encode();
    assert_eq!(bytes[4..8], 0x26C5_251Au32.to_le_bytes());
    assert_eq!(Header::decode(&bytes, FileOffset(0)).unwrap(), sample());
}

#[test]
fn one_flipped_bit_is_a_checksum_fault_that_says_where() {
    let mut bytes = sample().encode();
    bytes[4095] ^= 1;
    let problem = Header::decode(&bytes, FileOffset(0x2_0000)).unwrap_err();
    assert_eq!((problem.fault, problem.offset), (Fault::Checksum, Some(FileOffset(0x2_0000))));
    bytes[0] = b'H';
    assert_eq!(Header::decode(&bytes, FileOffset(0)).unwrap_err().fault, Fault::Signature);
}
