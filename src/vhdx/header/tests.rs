//! The wrong header of the pair taken as current, updates that a power cut could leave without a valid one.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

use super::*;
use crate::storage::MemoryStorage;
use std::sync::Mutex;

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

/// A file with these two headers; `None` leaves the slot zero.
fn file(slots: [Option<Header>; 2]) -> MemoryStorage {
    let storage = MemoryStorage::new();
    storage.set_len(1 << 20).unwrap();
    for (header, at) in slots.iter().zip(HEADER_AT) {
        if let Some(header) = header {
            storage.write_all_at(&header.encode(), at).unwrap();
        }
    }
    storage
}

fn read(storage: &dyn Storage) -> (Result<HeaderPair>, Findings) {
    let mut findings = Findings::new();
    let pair = HeaderPair::read(storage, &mut findings);
    (pair, findings)
}

fn faults(findings: &Findings) -> Vec<(Severity, Fault)> {
    findings.list().iter().map(|finding| (finding.severity, finding.problem.fault)).collect()
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

#[test]
fn greater_sequence_number_wins_in_either_slot() {
    let newer = Header { sequence: 2, ..sample() };
    for slots in [[Some(sample()), Some(newer)], [Some(newer), Some(sample())]] {
        let (pair, findings) = read(&file(slots));
        assert_eq!(*pair.unwrap().current(), newer);
        assert!(findings.list().is_empty());
    }
}

#[test]
fn one_bad_slot_is_a_repairable_warning_and_two_are_fatal() {
    for slots in [[None, Some(sample())], [Some(sample()), None]] {
        let (pair, findings) = read(&file(slots));
        assert_eq!(*pair.unwrap().current(), sample());
        assert_eq!(faults(&findings), [(Severity::Warning, Fault::Signature)]);
        assert!(findings.list()[0].repairable);
    }
    let (pair, findings) = read(&file([None, None]));
    assert_eq!(pair.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(faults(&findings), [(Severity::Error, Fault::Signature), (Severity::Fatal, Fault::Signature)]);
}

#[test]
fn file_that_ends_before_the_second_slot_still_has_the_first() {
    let storage = file([Some(sample()), None]);
    storage.set_len(HEADER_AT[1]).unwrap();
    let (pair, findings) = read(&storage);
    assert_eq!(*pair.unwrap().current(), sample());
    assert_eq!(faults(&findings), [(Severity::Warning, Fault::Truncated)]);
}

/// Disk2vhd writes two identical headers.
#[test]
fn equal_sequence_numbers_are_harmless_only_when_the_headers_are_equal() {
    let (pair, findings) = read(&file([Some(sample()), Some(sample())]));
    assert!(!pair.unwrap().is_ambiguous());
    assert!(findings.list().is_empty());

    let other = Header { data_write_guid: Guid::nil(), ..sample() };
    let (pair, findings) = read(&file([Some(sample()), Some(other)]));
    let pair = pair.unwrap();
    assert!(pair.is_ambiguous());
    assert_eq!(*pair.current(), sample());
    assert_eq!(faults(&findings), [(Severity::Error, Fault::Mismatch)]);
}

#[test]
fn headers_with_different_ids_are_noted() {
    let newer = Header { sequence: 2, data_write_guid: Guid::nil(), ..sample() };
    let (_, findings) = read(&file([Some(sample()), Some(newer)]));
    assert_eq!(faults(&findings), [(Severity::Warning, Fault::Mismatch)]);
}

#[test]
fn other_version_in_the_current_header_does_not_fall_back_to_the_other_slot() {
    let newer = Header { sequence: 2, version: 2, ..sample() };
    let (pair, _) = read(&file([Some(sample()), Some(newer)]));
    let error = pair.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.offset(), Some(FileOffset(HEADER_AT[1])));
}

#[test]
fn log_version_counts_only_while_the_log_is_in_use() {
    let unused = Header { log_version: 7, ..sample() };
    assert!(read(&file([Some(unused), None])).0.is_ok());
    let used = Header { log_guid: sample().file_write_guid, ..unused };
    assert_eq!(read(&file([Some(used), None])).0.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn log_must_be_placed_when_it_is_in_use() {
    let id = sample().file_write_guid;
    for (log_offset, log_length) in [
        (0, 0x10_0000),
        (0x10_0001, 0x10_0000),
        (0x10_0000, 0x10_0001),
        (0x10_0000, 0),
        (0x10_0000, 0x8000_0000),
        (u64::MAX - 0xF_FFFF, 0x10_0000),
    ] {
        let header = Header { log_length, log_offset, ..sample() };
        assert!(header.log_range().is_empty(), "it lies over nothing");
        let (pair, findings) = read(&file([Some(header), Some(header)]));
        assert!(pair.is_ok());
        let expected = if log_length == 0 { Severity::Warning } else { Severity::Error };
        assert_eq!(faults(&findings), [(expected, Fault::Value)]);
        let used = Header { log_guid: id, ..header };
        assert_eq!(read(&file([Some(used), Some(used)])).0.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

/// Records writes and syncs in order.
#[derive(Debug)]
struct Journal {
    inner: MemoryStorage,
    calls: Mutex<Vec<Option<u64>>>,
}

impl Storage for Journal {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.calls.lock().unwrap().push(Some(offset));
        self.inner.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.calls.lock().unwrap().push(None);
        self.inner.sync()
    }
}

#[test]
fn update_writes_the_other_slot_first_and_syncs_after_each() {
    for current in [0, 1] {
        let mut slots = [Some(sample()), Some(sample())];
        slots[current].as_mut().unwrap().sequence = 9;
        let storage = Journal { inner: file(slots), calls: Mutex::default() };
        let mut pair = read(&storage).0.unwrap();
        let fresh = Guid::from_u128(5);
        pair.update(&storage, |header| {
            header.data_write_guid = fresh;
            header.sequence = 1000;
        })
        .unwrap();
        assert_eq!(
            *storage.calls.lock().unwrap(),
            [Some(HEADER_AT[1 - current]), None, Some(HEADER_AT[current]), None]
        );
        let expected = Header { sequence: 11, data_write_guid: fresh, ..sample() };
        assert_eq!(*pair.current(), expected);
        let (again, findings) = read(&storage);
        assert_eq!(*again.unwrap().current(), expected);
        assert!(findings.list().is_empty(), "both slots hold the same ids: {findings:?}");
    }
}

#[test]
fn update_once_leaves_the_old_header_in_its_slot() {
    let storage = file([Some(sample()), None]);
    let mut pair = read(&storage).0.unwrap();
    pair.update_once(&storage, |header| header.log_guid = Guid::from_u128(1)).unwrap();
    let mut bytes = [0; HEADER_LEN];
    storage.read_exact_at(&mut bytes, HEADER_AT[0]).unwrap();
    assert_eq!(Header::decode(&bytes, FileOffset(0)).unwrap(), sample());
    assert_eq!(*read(&storage).0.unwrap().current(), *pair.current());
}

#[test]
fn sequence_number_at_its_end_is_refused_before_anything_is_written() {
    for sequence in [u64::MAX, u64::MAX - 1, u64::MAX - 10] {
        let storage = file([Some(Header { sequence, ..sample() }), None]);
        let before = storage.to_bytes().unwrap();
        let mut pair = read(&storage).0.unwrap();
        if sequence > u64::MAX - 2 {
            assert_eq!(pair.update(&storage, |_| ()).unwrap_err().kind(), ErrorKind::Unsupported);
        }
        // What is begun could not be ended.
        assert_eq!(pair.update_unfinished(&storage, |_| ()).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(storage.to_bytes().unwrap() == before);
        assert_eq!(pair.current().sequence, sequence);
    }
}
