//! The two headers: which one is current, and the only way to change them.
//!
//! Owns: decoding and encoding a header, the choice between the slots ([MS-VHDX] 2.2.2), the update procedure
//! ([MS-VHDX] 2.2.2.1). Must not know: why a field changes, what the log holds.

use super::raw::{
    ALIGNMENT, HEADER_AT, HEADER_LEN, HEADER_SIGNATURE, LOG_VERSION, MAX_FILE_OFFSET, MAX_LOG_LEN, RawHeader, VERSION,
    checksum,
};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Findings, Severity};
use crate::guid::Guid;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::units::FileOffset;
use std::io;
use std::ops::Range;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// How many sequence numbers there must be for a log to be taken into use: for what an open does to the headers until the
/// log is empty again.
const NUMBERS_OF_A_SESSION: u64 = 64;

/// One header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The greater of the two wins.
    pub(crate) sequence: u64,
    /// Changes once per writable open, before anything else in the file does.
    pub(crate) file_write_guid: Guid,
    /// Changes before the first change a guest can see; children name their parent by it.
    pub(crate) data_write_guid: Guid,
    /// Nil when the log holds nothing to replay.
    pub(crate) log_guid: Guid,
    /// 0; read only while `log_guid` is not nil.
    pub(crate) log_version: u16,
    /// 1.
    pub(crate) version: u16,
    /// Bytes.
    pub(crate) log_length: u32,
    /// Bytes from the start of the file.
    pub(crate) log_offset: u64,
}

impl Header {
    /// Decodes a slot's 4 KiB; the problem when signature or checksum is wrong. `at` is where the slot is.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN], at: FileOffset) -> Result<Self, Problem> {
        let raw = RawHeader::read_from_bytes(bytes)
            .map_err(|_| Problem::new(Structure::VhdxHeader, Fault::Truncated, "a cut structure", HEADER_LEN).at(at))?;
        let problem = |fault, found: String, allowed: String| {
            Err(Problem::new(Structure::VhdxHeader, fault, found, allowed).at(at))
        };
        if raw.signature != HEADER_SIGNATURE {
            return problem(Fault::Signature, format!("signature {:02x?}", raw.signature), "\"head\"".into());
        }
        let sum = checksum(bytes);
        if raw.checksum.get() != sum {
            return problem(Fault::Checksum, format!("checksum {:#010x}", raw.checksum), format!("{sum:#010x}"));
        }
        Ok(Self {
            sequence: raw.sequence.get(),
            file_write_guid: raw.file_write_guid.get(),
            data_write_guid: raw.data_write_guid.get(),
            log_guid: raw.log_guid.get(),
            log_version: raw.log_version.get(),
            version: raw.version.get(),
            log_length: raw.log_length.get(),
            log_offset: raw.log_offset.get(),
        })
    }

    /// The 4 KiB of a slot, checksum included.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = RawHeader {
            signature: HEADER_SIGNATURE,
            checksum: U32::ZERO,
            sequence: U64::new(self.sequence),
            file_write_guid: self.file_write_guid.into(),
            data_write_guid: self.data_write_guid.into(),
            log_guid: self.log_guid.into(),
            log_version: U16::new(self.log_version),
            version: U16::new(self.version),
            log_length: U32::new(self.log_length),
            log_offset: U64::new(self.log_offset),
            reserved: [0; 4016],
        };
        raw.checksum = U32::new(checksum(raw.as_bytes()));
        zerocopy::transmute!(raw)
    }

    /// The rules a current header must keep, beyond signature and checksum; `at` is where it is.
    fn validate(&self, at: FileOffset, findings: &mut Findings) -> Result<()> {
        let problem =
            |fault, found: String, allowed: &str| Problem::new(Structure::VhdxHeader, fault, found, allowed).at(at);
        findings.require(self.version == VERSION, || {
            problem(Fault::Unsupported, format!("version {}", self.version), "version 1")
        })?;
        let live = !self.log_guid.is_nil();
        findings.require(!live || self.log_version == LOG_VERSION, || {
            problem(Fault::Unsupported, format!("log version {} with a log in use", self.log_version), "log version 0")
        })?;
        if self.log_length == 0 && !live {
            let found = "log length 0".to_owned();
            findings.note(Severity::Warning, problem(Fault::Value, found, "a multiple of 1 MiB above 0"));
            return Ok(());
        }
        if !self.log_is_placed() {
            let found = format!("log offset {:#x}, length {:#x}", self.log_offset, self.log_length);
            let placed = problem(Fault::Value, found, "multiples of 1 MiB, offset from 1 MiB, length up to 1 GiB");
            if live {
                return Err(findings.fatal(placed));
            }
            findings.note(Severity::Error, placed);
        }
        Ok(())
    }

    /// Whether the log has a length and a place that the format allows.
    pub(crate) fn log_is_placed(&self) -> bool {
        let aligned = self.log_offset.is_multiple_of(ALIGNMENT) && u64::from(self.log_length).is_multiple_of(ALIGNMENT);
        let inside = self.log_offset >= ALIGNMENT && self.log_offset < MAX_FILE_OFFSET;
        aligned && inside && self.log_length > 0 && self.log_length <= MAX_LOG_LEN
    }

    /// Where the log is; empty when its length or place is none that the format allows: then the header is wrong, and
    /// not what lies there.
    pub(crate) fn log_range(&self) -> Range<u64> {
        if self.log_is_placed() {
            self.log_offset..self.log_offset.saturating_add(u64::from(self.log_length))
        } else {
            0..0
        }
    }
}

/// Both slots of a file: the current header, and the slot the next one goes to.
#[derive(Clone, Debug)]
pub(crate) struct HeaderPair {
    current: Header,
    /// 0 or 1: the slot `current` was read from or written to.
    slot: usize,
    ambiguous: bool,
    /// `current` was written and not waited for; the other slot holds the same fields and is durable.
    unfinished: bool,
}

impl HeaderPair {
    /// Reads both slots and picks the current header.
    ///
    /// Signature and checksum alone decide whether a slot is valid. Two valid slots with one sequence number have no
    /// current header by the letter of the format; Disk2vhd writes two identical ones, which is harmless, and for
    /// reading the first is taken when they differ (see [`is_ambiguous`](Self::is_ambiguous)).
    ///
    /// # Errors
    /// `Corrupt` when no slot is valid or the current one has a live log at an impossible place; `Unsupported` for
    /// another version; what the storage answers.
    pub(crate) fn read(storage: &dyn Storage, findings: &mut Findings) -> Result<Self> {
        let [first_at, second_at] = HEADER_AT.map(FileOffset);
        let first = read_slot(storage, first_at)?;
        let second = read_slot(storage, second_at)?;
        let pair = match (first, second) {
            (Err(first), Err(second)) => {
                findings.note(Severity::Error, second);
                return Err(findings.fatal(first));
            }
            (Ok(header), Err(bad)) => {
                findings.note_repairable(Severity::Warning, bad);
                Self { current: header, slot: 0, ambiguous: false, unfinished: false }
            }
            (Err(bad), Ok(header)) => {
                findings.note_repairable(Severity::Warning, bad);
                Self { current: header, slot: 1, ambiguous: false, unfinished: false }
            }
            (Ok(first), Ok(second)) => Self::choose(first, second, findings),
        };
        pair.current.validate(if pair.slot == 0 { first_at } else { second_at }, findings)?;
        Ok(pair)
    }

    fn choose(first: Header, second: Header, findings: &mut Findings) -> Self {
        let at = FileOffset(HEADER_AT[1]);
        let mismatch =
            |found: String, allowed: &str| Problem::new(Structure::VhdxHeader, Fault::Mismatch, found, allowed).at(at);
        let ambiguous = first.sequence == second.sequence && first != second;
        if ambiguous {
            let found = format!("two different headers with sequence number {}", first.sequence);
            findings.note(Severity::Error, mismatch(found, "one header with the greater sequence number"));
        } else if (first.file_write_guid, first.data_write_guid, first.log_guid)
            != (second.file_write_guid, second.data_write_guid, second.log_guid)
        {
            let found = format!("header sequence {} and {} with different ids", first.sequence, second.sequence);
            findings.note_repairable(Severity::Warning, mismatch(found, "the same ids in both headers"));
        }
        if second.sequence > first.sequence {
            Self { current: second, slot: 1, ambiguous, unfinished: false }
        } else {
            Self { current: first, slot: 0, ambiguous, unfinished: false }
        }
    }

    /// The header in force.
    pub(crate) fn current(&self) -> &Header {
        &self.current
    }

    /// Whether two different headers claim the same sequence number, so that a writer must not trust either.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// The whole update procedure, twice, so that both slots end up with the changed fields: write the slot that is not
    /// current, sync, then the other, sync. The sequence number grows by two; `change` has no say in it.
    ///
    /// # Errors
    /// `Unsupported` when the sequence number would overflow; what the storage answers, and then either the old or the
    /// new header is the current one on disk.
    pub(crate) fn update(&mut self, storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
        self.number_after(2)?;
        self.update_once(storage, change)?;
        self.update_once(storage, |_| ())
    }

    /// As [`update`](Self::update), but the second slot is not waited for: the first one leads to the same until it is
    /// there. Some later sync finishes it; before a slot is written again there is one.
    ///
    /// # Errors
    /// As [`update`](Self::update), and `Unsupported` too when little is left of the sequence numbers: what is begun by
    /// this has to be ended by another.
    pub(crate) fn update_unfinished(&mut self, storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
        self.number_after(NUMBERS_OF_A_SESSION)?;
        self.update_once(storage, change)?;
        self.write_next(storage, |_| ())?;
        self.unfinished = true;
        Ok(())
    }

    /// One round of the update procedure: the slot that is not current is overwritten, synced, and becomes current. The
    /// other slot keeps the old fields.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub(crate) fn update_once(&mut self, storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
        self.finish(storage)?;
        self.write_next(storage, change)?;
        storage.sync().map_err(|error| Error::io("sync the VHDX header", error))
    }

    /// Waits for the header that was not waited for.
    fn finish(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.unfinished {
            storage.sync().map_err(|error| Error::io("sync the VHDX header", error))?;
            self.unfinished = false;
        }
        Ok(())
    }

    /// The sequence number after so many updates of one slot.
    fn number_after(&self, updates: u64) -> Result<u64> {
        self.current.sequence.checked_add(updates).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "the VHDX header's sequence number is at its end")
                .with_hint("convert the image to a new file")
        })
    }

    /// Writes the next header to the slot that is not current.
    fn write_next(&mut self, storage: &dyn Storage, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut next = self.current;
        change(&mut next);
        next.sequence = self.number_after(1)?;
        let (slot, at) = if self.slot == 0 { (1, HEADER_AT[1]) } else { (0, HEADER_AT[0]) };
        let failed = |error| Error::io("write the VHDX header", error).with_offset(FileOffset(at));
        storage.write_all_at(&next.encode(), at).map_err(failed)?;
        *self = Self { current: next, slot, ambiguous: false, unfinished: self.unfinished };
        Ok(())
    }
}

/// Reads one slot: the header, or why it is not valid.
fn read_slot(storage: &dyn Storage, at: FileOffset) -> Result<Result<Header, Problem>> {
    let mut bytes = [0; HEADER_LEN];
    match storage.read_exact_at(&mut bytes, at.get()) {
        Ok(()) => Ok(Header::decode(&bytes, at)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Err(Problem::new(Structure::VhdxHeader, Fault::Truncated, "end of file", "a header of 4 KiB").at(at)))
        }
        Err(error) => Err(Error::io("read the VHDX header", error).with_offset(at)),
    }
}

#[cfg(test)]
mod tests;
