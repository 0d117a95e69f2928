//! The note of a VHD whose unique id is changing.
//!
//! Owns: its bytes, and when it may be believed. Must not know: where it is kept.
//!
//! A child names its parent by one id only, so parent and children cannot change in one step. The note says which id goes
//! and which comes; whatever interrupts the change, running it again reads it there.

use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;

/// The first line, with the version of what follows.
const TITLE: &str = "vhdkit set note ";
const VERSION: u32 = 1;

/// The change of a unique id that has been begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Journal {
    pub(super) old: [u8; 16],
    pub(super) new: [u8; 16],
}

impl Journal {
    pub(super) fn encode(self) -> Vec<u8> {
        let [old, new] = [self.old, self.new].map(Guid::from_bytes);
        let text = format!("{TITLE}{VERSION}\nold {old}\nnew {new}\n");
        let sum = crc32c::crc32c(text.as_bytes());
        format!("{text}crc {sum:08x}\n").into_bytes()
    }

    /// `None` for bytes that are no whole note: one that is not whole was never durable, so nothing else was changed.
    ///
    /// # Errors
    /// `Refused` when a newer version of this program wrote it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(text) = std::str::from_utf8(bytes).ok() else { return Ok(None) };
        let Some((body, sum)) = text.split_once("crc ") else { return Ok(None) };
        if format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) != sum {
            return Ok(None);
        }
        let mut lines = body.lines();
        match lines.next().and_then(|line| line.strip_prefix(TITLE)?.parse::<u32>().ok()) {
            Some(VERSION) => {}
            Some(newer) => {
                let message = format_args!("an interrupted change left a note of version {newer}, known is {VERSION}");
                return Err(Error::new(ErrorKind::Refused, message).with_hint("finish it with the newer program"));
            }
            None => return Ok(None),
        }
        let mut id = |key: &str| Some(lines.next()?.strip_prefix(key)?.parse::<Guid>().ok()?.into_bytes());
        Ok(id("old ").and_then(|old| Some(Self { old, new: id("new ")? })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_not_believed_and_a_newer_version_is_an_error() {
        let note = Journal { old: [1; 16], new: [0xAB; 16] };
        let whole = note.encode();
        assert_eq!(Journal::decode(&whole).unwrap(), Some(note));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(Journal::decode(&bytes).unwrap(), None, "byte {at}");
            assert_eq!(Journal::decode(&whole[..at]).unwrap(), None, "cut at {at}");
        }
        let text = String::from_utf8(whole).unwrap().replace("note 1", "note 2");
        let body = text.split_once("crc ").unwrap().0;
        let newer = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
        assert_eq!(Journal::decode(newer.as_bytes()).unwrap_err().kind(), ErrorKind::Refused);
    }
}
