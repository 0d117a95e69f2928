//! The parent locator: key-value pairs by which a child names its parent ([MS-VHDX] 2.6.2.6).
//!
//! Owns: parsing and building the item, the keys, what makes a linkage readable.
//! Must not know: how a path is resolved; where the item lies in the file.

use super::raw::{LOCATOR_TYPE_VHDX, MAX_LOCATOR_PAIRS, MAX_METADATA_ITEM_LEN, RawLocatorEntry, RawLocatorHeader};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Findings, Severity};
use crate::guid::Guid;
use crate::link::{HintKind, ImageId, NewParent, ParentLink, PathHint};
use crate::problem::{Fault, Problem, Structure};
use crate::units::FileOffset;
use std::borrow::Cow;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// The parent's DataWriteGuid.
pub(crate) const PARENT_LINKAGE: &str = "parent_linkage";
/// The parent's next DataWriteGuid, while a merge is under way.
pub(crate) const PARENT_LINKAGE2: &str = "parent_linkage2";
/// Path relative to the child's directory.
pub(crate) const RELATIVE_PATH: &str = "relative_path";
/// Path that starts at a volume id.
pub(crate) const VOLUME_PATH: &str = "volume_path";
/// Path with a drive letter or a network share.
pub(crate) const ABSOLUTE_PATH: &str = "absolute_win32_path";

/// The order in which [MS-VHDX] 2.6.2.6.3 resolves paths.
const PATH_KEYS: [(&str, HintKind); 3] =
    [(RELATIVE_PATH, HintKind::Relative), (VOLUME_PATH, HintKind::Volume), (ABSOLUTE_PATH, HintKind::Absolute)];

/// A parent locator's pairs, in file order, as UTF-16 so that rewriting keeps what is not valid Unicode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locator {
    pairs: Vec<(Vec<u16>, Vec<u16>)>,
}

impl Locator {
    /// The locator of a new child.
    ///
    /// # Errors
    /// `InvalidInput` when no path is given or the parent is no VHDX.
    pub(crate) fn for_parent(parent: &NewParent) -> Result<Self> {
        let mut locator = Self::default();
        locator.relink(parent)?;
        Ok(locator)
    }

    /// Names another parent: its id and the paths given. Old paths that are not given, and a second linkage, go.
    ///
    /// # Errors
    /// As [`for_parent`](Self::for_parent).
    pub(crate) fn relink(&mut self, parent: &NewParent) -> Result<()> {
        let ImageId::Vhdx(id) = parent.id else {
            return Err(Error::new(ErrorKind::InvalidInput, "the parent of a VHDX must be a VHDX")
                .with_hint("convert the parent to VHDX first"));
        };
        if parent.paths.relative.is_none() && parent.paths.absolute.is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, "no path is given for the parent"));
        }
        self.set(PARENT_LINKAGE, &linkage_text(id));
        self.remove(PARENT_LINKAGE2);
        self.remove(VOLUME_PATH);
        let absolute = parent.paths.absolute.as_deref().map(verbatim_path);
        for (key, path) in [(RELATIVE_PATH, parent.paths.relative.as_deref()), (ABSOLUTE_PATH, absolute.as_deref())] {
            match path {
                Some(path) => self.set(key, path),
                None => self.remove(key),
            }
        }
        Ok(())
    }

    /// Parses the item's bytes; `at` is where it lies in the file.
    ///
    /// # Errors
    /// `Corrupt` when a pair reaches outside the item or there is no readable `parent_linkage`; `Unsupported` for
    /// another locator type.
    pub(crate) fn parse(bytes: &[u8], at: FileOffset, findings: &mut Findings) -> Result<Self> {
        let problem =
            |fault, found: String, allowed: &str| Problem::new(Structure::VhdxLocator, fault, found, allowed).at(at);
        let (header, rest) = RawLocatorHeader::read_from_prefix(bytes).map_err(|_| {
            findings.fatal(problem(Fault::Truncated, format!("{} bytes", bytes.len()), "at least 20 bytes"))
        })?;
        let kind = header.locator_type.get();
        findings.require(kind == LOCATOR_TYPE_VHDX, || {
            problem(Fault::Unsupported, format!("locator type {kind}"), "the VHDX locator type")
        })?;
        let count = header.pair_count.get();
        findings.require(count <= MAX_LOCATOR_PAIRS, || {
            problem(Fault::Limit, format!("{count} key-value pairs"), "up to 256 pairs")
        })?;
        let mut locator = Self::default();
        let mut entries = rest.chunks_exact(size_of::<RawLocatorEntry>());
        let mut total = 0usize;
        for index in 0..count {
            let pair = entries
                .next()
                .and_then(|entry| RawLocatorEntry::read_from_bytes(entry).ok())
                .and_then(|entry| read_pair(bytes, &entry));
            let Some((key, value)) = pair else {
                let found = format!("pair {index} of {count} outside the item's {} bytes", bytes.len());
                return Err(findings.fatal(problem(Fault::Range, found, "keys and values inside the item")));
            };
            total = total.saturating_add(key.len()).saturating_add(value.len());
            // Pairs that share bytes could otherwise multiply a small item into a large allocation.
            findings.require(total <= bytes.len(), || {
                problem(Fault::Overlap, "keys and values that share bytes".into(), "each its own bytes")
            })?;
            if locator.pairs.iter().any(|(other, _)| *other == key) {
                let found = format!("key {:?} twice", String::from_utf16_lossy(&key));
                findings.note(Severity::Error, problem(Fault::Duplicate, found, "each key once"));
            } else {
                locator.pairs.push((key, value));
            }
        }
        locator.check(at, findings)?;
        Ok(locator)
    }

    fn check(&self, at: FileOffset, findings: &mut Findings) -> Result<()> {
        let problem =
            |fault, found: String, allowed: &str| Problem::new(Structure::VhdxLocator, fault, found, allowed).at(at);
        let text = self.get(PARENT_LINKAGE);
        let Some(id) = self.linkage() else {
            return Err(findings.fatal(match text {
                None => problem(Fault::Missing, "no parent_linkage".into(), "the parent's id"),
                Some(text) => problem(Fault::Value, format!("parent_linkage {text:?}"), "a GUID in braces"),
            }));
        };
        if let Some(text) = text.filter(|text| *text != linkage_text(id)) {
            let found = format!("parent_linkage {text:?}");
            findings.note(Severity::Warning, problem(Fault::Value, found, "a lower-case GUID in braces"));
        }
        if let Some(text) = self.get(PARENT_LINKAGE2)
            && parse_linkage(&text).is_none()
        {
            let found = format!("parent_linkage2 {text:?}");
            findings.note(Severity::Error, problem(Fault::Value, found, "a GUID in braces"));
        }
        if self.get(RELATIVE_PATH).is_none() {
            let fault = problem(Fault::Missing, "no relative_path".into(), "the parent's path from the child");
            findings.note(Severity::Warning, fault);
        }
        Ok(())
    }

    /// The item's bytes.
    ///
    /// # Errors
    /// `InvalidInput` when a path is longer than 32 767 UTF-16 units or all pairs are longer than an item may be.
    pub(crate) fn build(&self) -> Result<Vec<u8>> {
        let too_long =
            || Error::new(ErrorKind::InvalidInput, "the parent's paths are too long for a VHDX parent locator");
        let count = u16::try_from(self.pairs.len()).map_err(|_| too_long())?;
        let header = RawLocatorHeader {
            locator_type: LOCATOR_TYPE_VHDX.into(),
            reserved: U16::ZERO,
            pair_count: U16::new(count),
        };
        let strings_at =
            size_of::<RawLocatorHeader>().saturating_add(self.pairs.len().saturating_mul(size_of::<RawLocatorEntry>()));
        let mut table = header.as_bytes().to_vec();
        let mut strings = Vec::new();
        for (key, value) in &self.pairs {
            let mut place = |text: &[u16]| -> Result<(u32, u16)> {
                let at = u32::try_from(strings_at.saturating_add(strings.len())).map_err(|_| too_long())?;
                strings.extend(text.iter().flat_map(|unit| unit.to_le_bytes()));
                Ok((at, u16::try_from(text.len().saturating_mul(2)).map_err(|_| too_long())?))
            };
            let (key_offset, key_length) = place(key)?;
            let (value_offset, value_length) = place(value)?;
            let entry = RawLocatorEntry {
                key_offset: U32::new(key_offset),
                value_offset: U32::new(value_offset),
                key_length: U16::new(key_length),
                value_length: U16::new(value_length),
            };
            table.extend_from_slice(entry.as_bytes());
        }
        table.extend(strings);
        let fits = u32::try_from(table.len()).is_ok_and(|len| len <= MAX_METADATA_ITEM_LEN);
        if fits { Ok(table) } else { Err(too_long()) }
    }

    /// The value of `key`, with what is not valid Unicode replaced.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        let (_, value) = self.pairs.iter().find(|(have, _)| key.encode_utf16().eq(have.iter().copied()))?;
        Some(String::from_utf16_lossy(value))
    }

    /// Gives `key` the value `value`, in its old place or as the last pair.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        let key: Vec<u16> = key.encode_utf16().collect();
        let value = value.encode_utf16().collect();
        match self.pairs.iter_mut().find(|(have, _)| *have == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((key, value)),
        }
    }

    /// Removes `key` when it is there.
    pub(crate) fn remove(&mut self, key: &str) {
        self.pairs.retain(|(have, _)| !key.encode_utf16().eq(have.iter().copied()));
    }

    /// The parent's id. A locator that was parsed has one.
    pub(crate) fn linkage(&self) -> Option<Guid> {
        self.get(PARENT_LINKAGE).and_then(|text| parse_linkage(&text))
    }

    /// The parent's id after an unfinished merge; nil, which Windows writes, counts as absent.
    pub(crate) fn linkage2(&self) -> Option<Guid> {
        self.get(PARENT_LINKAGE2).and_then(|text| parse_linkage(&text)).filter(|id| !id.is_nil())
    }

    /// Sets the second linkage (`None` removes it).
    pub(crate) fn set_linkage2(&mut self, id: Option<Guid>) {
        match id {
            Some(id) => self.set(PARENT_LINKAGE2, &linkage_text(id)),
            None => self.remove(PARENT_LINKAGE2),
        }
    }

    /// Names the same parent by another id; a second linkage goes.
    pub(crate) fn follow(&mut self, id: Guid) {
        self.set(PARENT_LINKAGE, &linkage_text(id));
        self.remove(PARENT_LINKAGE2);
    }

    /// The link in the words every format shares.
    pub(crate) fn link(&self) -> ParentLink {
        let ids = self.linkage().into_iter().chain(self.linkage2()).map(ImageId::Vhdx).collect();
        let hint = |(key, kind)| self.get(key).map(|path| PathHint { kind, path });
        ParentLink { ids, hints: PATH_KEYS.into_iter().filter_map(hint).collect() }
    }
}

/// An absolute Windows path as `absolute_win32_path` holds it, with the prefix `\\?\` ([MS-VHDX] 2.6.2.6.3). What has
/// it, or is no such path, stays as it is. So does a path with components `.` or `..`: behind the prefix Windows would
/// take them for names, without it Windows reads the path all the same.
fn verbatim_path(path: &str) -> Cow<'_, str> {
    let windows = path.replace('/', r"\");
    let has_prefix = windows.starts_with(r"\\?\") || windows.starts_with(r"\\.\");
    if has_prefix || windows.split('\\').any(|part| matches!(part, "." | "..")) {
        return Cow::Borrowed(path);
    }
    match windows.as_bytes() {
        [drive, b':', b'\\', ..] if drive.is_ascii_alphabetic() => Cow::Owned(format!(r"\\?\{windows}")),
        [b'\\', b'\\', ..] => Cow::Owned(format!(r"\\?\UNC\{}", windows.trim_start_matches('\\'))),
        _ => Cow::Borrowed(path),
    }
}

/// How a linkage is written: lower case, in braces.
fn linkage_text(id: Guid) -> String {
    id.braced().to_string()
}

/// Reads a linkage in any case, with or without braces.
fn parse_linkage(text: &str) -> Option<Guid> {
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    Guid::try_parse(inner).ok().filter(|_| inner.len() == 36)
}

fn read_pair(bytes: &[u8], entry: &RawLocatorEntry) -> Option<(Vec<u16>, Vec<u16>)> {
    let text = |offset: U32, length: U16| -> Option<Vec<u16>> {
        let start = usize::try_from(offset.get()).ok().filter(|&start| start > 0)?;
        let end = start.checked_add(usize::from(length.get()))?;
        let units = bytes.get(start..end).filter(|units| units.len().is_multiple_of(2))?;
        Some(units.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect())
    };
    let key = text(entry.key_offset, entry.key_length).filter(|key| !key.is_empty())?;
    Some((key, text(entry.value_offset, entry.value_length)?))
}

#[cfg(test)]
mod tests;
