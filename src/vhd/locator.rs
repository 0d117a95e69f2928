//! Parent locators: the paths a child holds for its parent.
//!
//! Owns: platform codes, text encodings, and where locator data may lie. Must not know: how a path is resolved.

mod kept;

pub(super) use kept::{Kept, keep};

use super::header::Header;
use super::raw::{RawHeader, RawLocator, SECTOR_BYTES, Site};
use super::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Findings, Severity};
use crate::link::{HintKind, ParentPaths, PathHint};
use crate::problem::{Fault, Structure};
use crate::units::{KIB, SECTOR, round_up};
use std::mem::offset_of;
use std::ops::Range;

/// The longest locator data believed: Windows paths end at 32 767 UTF-16 units.
const MAX_LOCATOR_LEN: u64 = 64 * KIB;
/// Units of the parent name field.
const NAME_UNITS: usize = 256;

const W2RU: [u8; 4] = *b"W2ru";
const W2KU: [u8; 4] = *b"W2ku";
const WI2R: [u8; 4] = *b"Wi2r";
const WI2K: [u8; 4] = *b"Wi2k";
const MACX: [u8; 4] = *b"MacX";
/// The order in which paths are tried: relative first, so that a copied folder finds its own parents.
const ORDER: [[u8; 4]; 5] = [W2RU, W2KU, MACX, WI2R, WI2K];

/// What a header's locators say.
#[derive(Debug, Default)]
pub(super) struct Locators {
    pub(super) hints: Vec<PathHint>,
    /// Where their data lies, the room kept for it included where that is plausible.
    pub(super) areas: Vec<Range<u64>>,
}

impl Locators {
    /// Reads the locators of the header at `site`, in a file of `file_len` bytes.
    ///
    /// # Errors
    /// What the storage answers; a locator that is broken is noted and left out.
    pub(super) fn read(
        store: &Store,
        header: &Header,
        (site, file_len): (Site, u64),
        findings: &mut Findings,
    ) -> Result<Self> {
        let mut ranked = Vec::new();
        let mut areas = Vec::new();
        for (index, locator) in header.locators().iter().enumerate() {
            if locator.platform == [0; 4] {
                continue;
            }
            let field = offset_of!(RawHeader, locators).saturating_add(index.saturating_mul(size_of::<RawLocator>()));
            let (at, len) = (locator.data_offset.get(), u64::from(locator.data_length.get()));
            let end = at.checked_add(len).filter(|&end| end <= file_len && len <= MAX_LOCATOR_LEN && at >= SECTOR);
            let Some(end) = end else {
                let found = format_args!("{len} bytes at file offset {at:#x}");
                let allowed = format_args!("at most 64 KiB inside the file, {file_len:#x} bytes long");
                let site = Site { structure: Structure::VhdLocator, ..site };
                findings.note(Severity::Error, site.problem(Fault::Range, field, found, allowed));
                continue;
            };
            areas.push(at..claimed_end(locator, end, file_len));
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            store.read("a parent locator", &mut bytes, at)?;
            let rank = ORDER.iter().position(|platform| *platform == locator.platform);
            if let (Some(rank), Some(hint)) = (rank, decode(locator.platform, &bytes)) {
                ranked.push((rank, hint));
            }
        }
        ranked.sort_by_key(|&(rank, _)| rank);
        let mut hints: Vec<PathHint> = ranked.into_iter().map(|(_, hint)| hint).collect();
        hints.extend(header.parent_name().map(|path| PathHint { kind: HintKind::Name, path }));
        if hints.is_empty() {
            let site = Site { structure: Structure::VhdLocator, ..site };
            let field = offset_of!(RawHeader, locators);
            findings.note(Severity::Error, site.problem(Fault::Missing, field, "no path of a parent", "one at least"));
        }
        Ok(Self { hints, areas })
    }
}

/// Where the room of a locator whose data ends at `data_end` ends. Below 512 the room counts sectors (VHD 1.0), from 512
/// on bytes (every producer since); room that makes no sense is not believed.
fn claimed_end(locator: &RawLocator, data_end: u64, file_len: u64) -> u64 {
    let space = u64::from(locator.data_space.get());
    let space = match space {
        0..SECTOR => space.saturating_mul(SECTOR),
        _ if space.is_multiple_of(SECTOR) => space,
        _ => 0,
    };
    let padded = round_up(data_end, SECTOR).unwrap_or(data_end);
    let end = locator.data_offset.get().saturating_add(space);
    if space <= MAX_LOCATOR_LEN && end <= file_len { end.max(padded) } else { padded }
}

fn decode(platform: [u8; 4], bytes: &[u8]) -> Option<PathHint> {
    let text = match platform {
        W2RU | W2KU => {
            let units: Vec<u16> = bytes
                .chunks_exact(2)
                .map(|unit| unit.iter().rev().fold(0, |sum, &b| sum << 8 | u16::from(b)))
                .collect();
            String::from_utf16_lossy(&units)
        }
        MACX => return decode_url(bytes),
        // The code page is not recorded: Latin-1 keeps every byte apart.
        _ => bytes.iter().map(|&byte| char::from(byte)).collect(),
    };
    let path = text.trim_end_matches('\0');
    (!path.is_empty()).then(|| PathHint { kind: kind_of(path), path: path.to_owned() })
}

/// What kind of path `path` is, whatever locator it came from: the tap family writes relative paths everywhere.
fn kind_of(path: &str) -> HintKind {
    let slashed = path.replace('/', "\\");
    let has_drive = slashed.chars().nth(1) == Some(':') && slashed.starts_with(|c: char| c.is_ascii_alphabetic());
    if slashed.to_ascii_lowercase().starts_with("\\\\?\\volume{") {
        HintKind::Volume
    } else if has_drive || slashed.starts_with('\\') {
        HintKind::Absolute
    } else {
        HintKind::Relative
    }
}

/// `file://host/path` or `file://./path`, percent-encoded UTF-8.
fn decode_url(bytes: &[u8]) -> Option<PathHint> {
    let text = String::from_utf8_lossy(bytes);
    let rest = text.trim_end_matches('\0').strip_prefix("file://")?;
    let path = match rest.find('/') {
        Some(slash) if !rest.starts_with('.') => rest.get(slash..)?,
        _ => rest,
    };
    let path = percent_decode(path);
    (!path.is_empty()).then(|| PathHint { kind: kind_of(&path), path })
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|two| first == b'%' && two.iter().all(u8::is_ascii_hexdigit));
        let escaped = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Locators ready to be written: the header's entries, and the data that goes where they point.
#[derive(Debug)]
pub(super) struct Composed {
    pub(super) entries: [RawLocator; 8],
    pub(super) name: Vec<u16>,
    /// Data and where it goes, each padded with zeros to whole sectors.
    pub(super) areas: Vec<(u64, Vec<u8>)>,
    pub(super) end: u64,
}

/// Locators for `paths` with their data from `at` (a multiple of 512) on: absolute, then relative, as Windows writes them.
///
/// # Errors
/// `InvalidInput` when no path is given, or one is empty, too long, or holds a NUL.
pub(super) fn compose(paths: &ParentPaths, at: u64) -> Result<Composed> {
    let given = [(W2KU, paths.absolute.as_deref()), (W2RU, paths.relative.as_deref())];
    let mut composed = Composed { entries: [RawLocator::default(); 8], name: Vec::new(), areas: Vec::new(), end: at };
    let mut slots = composed.entries.iter_mut();
    for (platform, path) in given.into_iter().filter_map(|(platform, path)| Some((platform, path?))) {
        let mut bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let data_length = u32::try_from(bytes.len()).ok().filter(|&len| u64::from(len) <= MAX_LOCATOR_LEN);
        let usable = data_length.filter(|_| !path.is_empty() && !path.contains('\0'));
        let (Some(data_length), Some(slot)) = (usable, slots.next()) else {
            let message = "a parent's path must have 1 to 32768 UTF-16 units and no NUL";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        bytes.resize(bytes.len().next_multiple_of(SECTOR_BYTES), 0);
        *slot = RawLocator {
            platform,
            data_space: u32::try_from(bytes.len()).unwrap_or(0).into(),
            data_length: data_length.into(),
            reserved: 0.into(),
            data_offset: composed.end.into(),
        };
        let start = composed.end;
        composed.end = start.saturating_add(bytes.len() as u64);
        composed.areas.push((start, bytes));
    }
    let longest = paths.absolute.as_deref().or(paths.relative.as_deref());
    let Some(longest) = longest else {
        return Err(Error::new(ErrorKind::InvalidInput, "a parent needs a relative or an absolute path"));
    };
    composed.name = name_field(longest);
    Ok(composed)
}

/// The whole path, as Windows writes it, or its last part when that is too long for the field; nothing rather than a
/// name cut short.
fn name_field(path: &str) -> Vec<u16> {
    let last = path.rsplit(['\\', '/']).next().unwrap_or(path);
    [path, last]
        .into_iter()
        .map(|text| text.encode_utf16().collect::<Vec<u16>>())
        .find(|units| units.len() <= NAME_UNITS)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(platform: &[u8; 4], bytes: &[u8]) -> Option<(HintKind, String)> {
        decode(*platform, bytes).map(|hint| (hint.kind, hint.path))
    }

    fn le(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn every_platform_code_is_read_in_its_own_encoding() {
        use HintKind as H;
        let mut padded = le(".\\p\u{e4}rent.vhd");
        padded.extend([0, 0, 0, 0, 7]);
        assert_eq!(hint(b"W2ru", &padded), Some((H::Relative, ".\\p\u{e4}rent.vhd".to_owned())));
        assert_eq!(hint(b"W2ku", &le("C:\\a\\b.vhd")), Some((H::Absolute, "C:\\a\\b.vhd".to_owned())));
        assert_eq!(
            hint(b"W2ku", &le("\\\\?\\Volume{1}\\b.vhd")),
            Some((H::Volume, "\\\\?\\Volume{1}\\b.vhd".to_owned()))
        );
        assert_eq!(hint(b"W2ku", &le("dyn.vhd")), Some((H::Relative, "dyn.vhd".to_owned())));
        assert_eq!(hint(b"Wi2r", b"..\\x\xe4.vhd"), Some((H::Relative, "..\\x\u{e4}.vhd".to_owned())));
        let url = hint(b"MacX", b"file://localhost/a%20b/p%C3%A4.vhd%");
        assert_eq!(url, Some((H::Absolute, "/a b/p\u{e4}.vhd%".to_owned())));
        assert_eq!(hint(b"MacX", b"file://./p.vhd\0"), Some((H::Relative, "./p.vhd".to_owned())));
        let no_digits = hint(b"MacX", b"file:///p%+1%-1%2.vhd");
        assert_eq!(no_digits, Some((H::Absolute, "/p%+1%-1%2.vhd".to_owned())), "a sign is no hexadecimal digit");
        assert_eq!(hint(b"MacX", b"http://x/p.vhd"), None);
        assert_eq!(hint(b"W2ru", b""), None);
    }

    #[test]
    fn room_counts_sectors_below_512_and_bytes_above() {
        let locator =
            |space: u32| RawLocator { data_space: space.into(), data_offset: 4096.into(), ..Default::default() };
        for (space, end) in
            [(0, 4608), (1, 4608), (3, 4096 + 1536), (512, 4608), (4096, 8192), (777, 4608), (1 << 20, 4608)]
        {
            assert_eq!(claimed_end(&locator(space), 4100, 1 << 30), end, "space {space}");
        }
        assert_eq!(claimed_end(&locator(65536), 4100, 8192), 4608, "room past the end of the file");
    }

    #[test]
    fn composed_locators_are_laid_out_one_behind_the_other() {
        let paths = ParentPaths { relative: Some(".\\p.vhd".into()), absolute: Some("C:\\vm\\p.vhd".into()) };
        let composed = compose(&paths, 4096).unwrap();
        let entries: Vec<_> = composed.entries[..3]
            .iter()
            .map(|e| (e.platform, e.data_space.get(), e.data_length.get(), e.data_offset.get()))
            .collect();
        assert_eq!(entries, [(*b"W2ku", 512, 22, 4096), (*b"W2ru", 512, 14, 4608), ([0; 4], 0, 0, 0)]);
        assert_eq!(composed.end, 5120);
        assert_eq!(composed.areas[1].1[..14], le(".\\p.vhd"));
        assert_eq!(String::from_utf16_lossy(&composed.name), "C:\\vm\\p.vhd");
        let long = format!("C:\\{}\\p.vhd", "x".repeat(300));
        assert_eq!(String::from_utf16_lossy(&name_field(&long)), "p.vhd");
        for paths in [
            ParentPaths::default(),
            ParentPaths { relative: Some(String::new()), absolute: None },
            ParentPaths { relative: Some("a\0b".into()), absolute: None },
            ParentPaths { relative: Some("x".repeat(40_000)), absolute: None },
        ] {
            assert_eq!(compose(&paths, 0).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
