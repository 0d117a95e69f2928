//! Which footer decides.
//!
//! Owns: where footers may lie and which of them is believed. Must not know: what their fields mean beyond that.

use super::footer::{self, COPY_SITE};
use super::header;
use super::raw::{FOOTER_BYTES, FOOTER_LEN, HEADER_BYTES, HEADER_LEN, RawFooter, SECTOR_BYTES, SHORT_FOOTER_LEN, Site};
use super::store;
use crate::error::{Error, Result};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::units::{FileOffset, MIB, SECTOR, round_down};
use crate::zeros;

/// The footer that decides, and how it was found.
pub(super) enum Found {
    /// At the end of the file, where it belongs.
    Tail {
        raw: RawFooter,
        at: u64,
    },
    /// The copy at the start of the file, with a dynamic header to vouch for it; `why` the tail is no use.
    Copy {
        raw: RawFooter,
        why: Problem,
    },
    /// A fixed disk's, with nothing but zeros behind it: the file was being grown.
    Buried {
        raw: RawFooter,
        at: u64,
        why: Problem,
    },
    Nothing(Problem),
}

impl Found {
    /// Whether the file is a VHD, if perhaps a damaged one.
    pub(super) fn is_vhd(&self) -> bool {
        match self {
            Self::Tail { .. } | Self::Copy { .. } | Self::Buried { .. } => true,
            Self::Nothing(problem) => matches!(problem.fault, Fault::Checksum | Fault::Unsupported),
        }
    }
}

/// Looks for the footer: at the end, at the end of a file one byte short, as the copy at the start, behind zeros.
///
/// The end comes first: a guest can write a footer to the first sector of a fixed disk, and that must not win.
///
/// # Errors
/// What the storage answers.
pub(super) fn locate(storage: &dyn Storage, len: u64) -> Result<Found> {
    let mut why = match len.checked_sub(FOOTER_LEN) {
        Some(at) => match read_footer(storage, Site { structure: Structure::VhdFooter, at })? {
            Ok(raw) => return Ok(Found::Tail { raw, at }),
            Err(problem) => problem,
        },
        None => Problem::new(Structure::File, Fault::Truncated, format_args!("{len} bytes"), "at least a footer's 512"),
    };
    if let Some(at) = len.checked_sub(SHORT_FOOTER_LEN)
        && at.is_multiple_of(SECTOR)
    {
        match read_footer(storage, Site { structure: Structure::VhdFooter, at })? {
            Ok(raw) => return Ok(Found::Tail { raw, at }),
            Err(problem) if problem.fault == Fault::Checksum => why = problem,
            Err(_) => {}
        }
    }
    if len < FOOTER_LEN {
        return Ok(Found::Nothing(why));
    }
    match read_footer(storage, COPY_SITE)? {
        Ok(raw) if vouched_for(storage, &raw, len)? => return Ok(Found::Copy { raw, why }),
        Err(poisoned) if poisoned.fault == Fault::Unsupported => return Ok(Found::Nothing(poisoned)),
        _ => {}
    }
    if let Some((raw, at)) = find_buried(storage, len)? {
        return Ok(Found::Buried { raw, at, why });
    }
    Ok(Found::Nothing(why))
}

/// The footer at `site`, one byte short when the file ends there.
fn read_footer(storage: &dyn Storage, site: Site) -> Result<Result<RawFooter, Problem>> {
    let mut bytes = [0; FOOTER_BYTES];
    let there = store::len(storage)?.saturating_sub(site.at);
    if there >= FOOTER_LEN {
        store::read(storage, "the footer", &mut bytes, site.at)?;
    } else if let Some(part) = bytes.get_mut(..FOOTER_BYTES.saturating_sub(1)) {
        store::read(storage, "the footer", part, site.at)?;
    }
    Ok(footer::signed(&bytes, site))
}

/// The copy at the start of the file.
///
/// # Errors
/// What the storage answers.
pub(super) fn read_copy(storage: &dyn Storage) -> Result<Result<RawFooter, Problem>> {
    read_footer(storage, COPY_SITE)
}

/// Whether a dynamic header lies where `raw` says.
fn vouched_for(storage: &dyn Storage, raw: &RawFooter, len: u64) -> Result<bool> {
    let at = raw.data_offset.get();
    if !matches!(raw.kind.get(), 3 | 4) || at.checked_add(HEADER_LEN).is_none_or(|end| end > len) {
        return Ok(false);
    }
    let mut bytes = [0; HEADER_BYTES];
    store::read(storage, "the dynamic header", &mut bytes, at)?;
    Ok(header::signed(&bytes, Site { structure: Structure::VhdHeader, at }).is_ok())
}

/// A fixed disk's footer that is the last thing in the file that is not zero, and lies where the disk ends.
fn find_buried(storage: &dyn Storage, len: u64) -> Result<Option<(RawFooter, u64)>> {
    // What does not end inside the file is no footer, but the odd end of a file of another kind.
    let inside = |at: &u64| at.checked_add(FOOTER_LEN).is_some_and(|end| end <= len);
    let Some(at) = last_data_sector(storage, len)?.filter(inside) else { return Ok(None) };
    let site = Site { structure: Structure::VhdFooter, at };
    Ok(read_footer(storage, site)?
        .ok()
        .filter(|raw| raw.kind.get() == 2 && raw.current_size.get() == at)
        .map(|raw| (raw, at)))
}

/// The last sector that holds anything but zeros, looked for within bounds. Holes are stepped over without being read.
fn last_data_sector(storage: &dyn Storage, len: u64) -> Result<Option<u64>> {
    /// Read at a time.
    const WINDOW_BYTES: usize = 1 << 20;
    const WINDOW: u64 = WINDOW_BYTES as u64;
    /// Asked about at a time; wide, so that a hole of terabytes takes thousands of questions, not millions.
    const STRIDE: u64 = 1024 * MIB;
    /// The most zeros that are read. What a growing disk adds is a hole, so a footer buried deeper is not one of ours,
    /// and any file at all may be asked whether it is a VHD.
    const MAX_READ: u64 = 64 * MIB;
    /// The most questions about holes: those of a file of 64 TiB.
    const MAX_QUESTIONS: u32 = 1 << 17;
    let mut unread = MAX_READ;
    let mut questions = MAX_QUESTIONS;
    let hint = |at: u64| {
        let asked = storage.next_data(at);
        asked.map_err(|error| Error::io("look for data in the file", error))
    };
    let mut buffer = vec![0; WINDOW_BYTES];
    let mut end = len;
    while end > 0 && unread > 0 && questions > 0 {
        questions = questions.saturating_sub(1);
        let wide = round_down(end.saturating_sub(1), STRIDE);
        if hint(wide)?.is_none_or(|data| data >= end) {
            end = wide;
            continue;
        }
        let start = round_down(end.saturating_sub(1), WINDOW);
        if hint(start)?.is_none_or(|data| data >= end) {
            end = start;
            continue;
        }
        let part = usize::try_from(end.saturating_sub(start)).ok().and_then(|len| buffer.get_mut(..len));
        let Some(part) = part else { return Ok(None) };
        unread = unread.saturating_sub(part.len() as u64);
        store::read(storage, "the end of the file", part, start)?;
        if let Some(index) = part.chunks(SECTOR_BYTES).rposition(|sector| !zeros::is_zero(sector)) {
            return Ok(Some(start.saturating_add((index as u64).saturating_mul(SECTOR))));
        }
        end = start;
    }
    Ok(None)
}

/// The problem of a copy that says something else than the footer that decides.
pub(super) fn copy_differs() -> Problem {
    let found = "other bytes than the footer at the end of the file";
    Problem::new(Structure::VhdFooterCopy, Fault::Mismatch, found, "the same bytes").at(FileOffset(0))
}
