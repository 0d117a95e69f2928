//! From bytes to a trusted image.
//!
//! Owns: the order in which structures are believed, and mending what an interrupted writer left. Must not know: single
//! fields.

use super::bat::Bat;
use super::batmap::Batmap;
use super::footer::{COPY_SITE, Footer};
use super::header::{self, Header};
use super::image::{Sparse, Vhd};
use super::locate::{self, Found};
use super::locator::Locators;
use super::raw::{FOOTER_BYTES, FOOTER_LEN, HEADER_BYTES, HEADER_LEN, RawFooter, Site};
use super::space;
use super::store::{self, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Findings, Severity};
use crate::link::DiskKind;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, Storage};
use crate::units::FileOffset;
use std::mem::offset_of;
use std::sync::{Arc, Mutex};

/// What has to be written before the image may be written to.
#[derive(Debug)]
pub(super) enum Mend {
    /// The footer copy, from the footer at the end.
    Copy,
    /// The footer at the end, from the copy, and the end of the file with it.
    Tail,
    /// The end of a fixed file, right behind its footer.
    Cut,
}

impl Vhd {
    /// Whether the file is a VHD, if perhaps a damaged one.
    ///
    /// Decided by the footer at the end, of 512 or 511 bytes; failing that by its copy at the start, when a dynamic header
    /// vouches for it; failing that by the footer of a fixed disk that only zeros follow.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn probe(storage: &dyn Storage) -> Result<bool> {
        Ok(locate::locate(storage, store::len(storage)?)?.is_vhd())
    }

    /// Opens the image in `storage`. Everything unusual that shows without reading the whole file goes to `findings`.
    ///
    /// An image whose footer is lost opens for reading from the copy at its start. [`Access::Write`] refuses it;
    /// [`Access::Recover`] first writes the footer behind the last block, cuts the file there, and makes both footers say
    /// the same.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported` when the image cannot be read; `Refused` when it must be repaired before it is written
    /// to; what the storage answers.
    pub fn open(storage: Arc<dyn Storage>, access: Access, findings: &mut Findings) -> Result<Self> {
        let (mut vhd, mend) = Self::read_by_best_footer(storage, access, findings)?;
        match (access, mend) {
            (Access::Write, Some((_, why))) => Err(Error::from_problem(ErrorKind::Refused, why)
                .with_hint("the image must be mended before it is written to: run `vhdkit repair` on it")),
            (Access::Recover, Some((mend, _))) => vhd.mend(&mend).map(|()| vhd),
            _ => Ok(vhd),
        }
    }

    /// The image as its best footer tells it, and what would have to be written before anything else is, and why.
    pub(super) fn read_by_best_footer(
        storage: Arc<dyn Storage>,
        access: Access,
        findings: &mut Findings,
    ) -> Result<Opened> {
        let store = Store::new(storage, access);
        let len = store.len()?;
        Ok(match locate::locate(store.storage(), len)? {
            Found::Nothing(problem) => return Err(findings.fatal(problem)),
            Found::Tail { raw, at } => open_by_tail(store, access, (raw, at, len), findings)?,
            Found::Copy { raw, why } => {
                let vhd = assemble(store, access, Decided { raw, site: COPY_SITE, tail_at: len, len }, findings)?;
                findings.note_repairable(Severity::Error, why.clone());
                (vhd, Some((Mend::Tail, why)))
            }
            Found::Buried { raw, at, why } => {
                let site = Site { structure: Structure::VhdFooter, at };
                let vhd = assemble(store, access, Decided { raw, site, tail_at: at, len }, findings)?;
                findings.note_repairable(Severity::Error, why.clone());
                (vhd, Some((Mend::Cut, why)))
            }
        })
    }

    /// Makes the file what a clean close would have left.
    fn mend(&mut self, mend: &Mend) -> Result<()> {
        match mend {
            Mend::Copy => {
                self.store.write("the footer copy", self.footer.bytes(), 0)?;
                self.store.sync()
            }
            Mend::Tail => {
                let tail_at = space::tail_position(self.data_end()?);
                // The copy at the start leads until both are durable, in whatever order they become so.
                self.store.write("the footer", self.footer.bytes(), tail_at)?;
                self.cut_behind(tail_at)
            }
            Mend::Cut => self.cut_behind(self.tail_at),
        }
    }

    /// Ends the file behind the footer at `tail_at`, which is durable.
    pub(super) fn cut_behind(&mut self, tail_at: u64) -> Result<()> {
        self.store.set_len(tail_at.saturating_add(FOOTER_LEN))?;
        self.store.sync()?;
        self.set_tail(tail_at);
        Ok(())
    }
}

/// The footer that was found to decide.
#[derive(Clone, Copy)]
struct Decided {
    raw: RawFooter,
    site: Site,
    tail_at: u64,
    len: u64,
}

pub(super) type Opened = (Vhd, Option<(Mend, Problem)>);

/// Opens by the footer at the end, unless what it says does not fit the file while its copy's word does.
fn open_by_tail(
    store: Store,
    access: Access,
    (raw, at, len): (RawFooter, u64, u64),
    findings: &mut Findings,
) -> Result<Opened> {
    let site = Site { structure: Structure::VhdFooter, at };
    let decided = Decided { raw, site, tail_at: at, len };
    if !matches!(raw.kind.get(), 3 | 4) {
        return Ok((assemble(store, access, decided, findings)?, None));
    }
    let copy = locate::read_copy(store.storage())?;
    if let Ok(other) = copy
        && other != raw
        && !fits(&store, raw, site, (at, len))
        && fits(&store, other, COPY_SITE, (len, len))
    {
        let found = "a footer that does not fit the dynamic header";
        let why =
            Problem::new(Structure::VhdFooter, Fault::Mismatch, found, "what the copy at the start of the file says");
        let why = why.at(FileOffset(at));
        findings.note_repairable(Severity::Error, why.clone());
        let by_copy = Decided { raw: other, site: COPY_SITE, tail_at: len, len };
        return Ok((assemble(store, access, by_copy, findings)?, Some((Mend::Tail, why))));
    }
    let vhd = assemble(store, access, decided, findings)?;
    let why = match copy {
        Ok(copy) if copy == raw => return Ok((vhd, None)),
        Ok(_) => locate::copy_differs(),
        Err(problem) => problem,
    };
    findings.note_repairable(Severity::Error, why.clone());
    Ok((vhd, Some((Mend::Copy, why))))
}

/// Whether the file can be read by the word of the footer `raw`.
fn fits(store: &Store, raw: RawFooter, site: Site, limits: (u64, u64)) -> bool {
    let mut unheard = Findings::new();
    Footer::trust(raw, site, &mut unheard).and_then(|footer| read_sparse(store, &footer, limits, &mut unheard)).is_ok()
}

fn assemble(store: Store, access: Access, decided: Decided, findings: &mut Findings) -> Result<Vhd> {
    let Decided { raw, site, tail_at, len } = decided;
    let footer = Footer::trust(raw, site, findings)?;
    footer.inspect(site, findings);
    let sparse = match footer.kind() {
        DiskKind::Fixed => {
            inspect_fixed(&footer, site, tail_at, findings);
            None
        }
        _ => Some(read_sparse(&store, &footer, (tail_at, len), findings)?),
    };
    if tail_at < len && len.saturating_sub(tail_at) < FOOTER_LEN {
        let found = "a footer of 511 bytes, as before Virtual PC 2004";
        findings.note(Severity::Warning, site.problem(Fault::Truncated, 0, found, "512 bytes"));
    }
    Ok(Vhd {
        store,
        access,
        footer,
        tail_at,
        sparse,
        data_end: Mutex::new(None),
        pending: None,
        tickets: 0,
        grown: false,
    })
}

fn inspect_fixed(footer: &Footer, site: Site, tail_at: u64, findings: &mut Findings) {
    let (size, field) = (footer.size(), offset_of!(RawFooter, current_size));
    if size > tail_at {
        let found = format_args!("a fixed disk of {size} bytes");
        let allowed = format_args!("at most {tail_at}, where the footer lies");
        findings.note(Severity::Error, site.problem(Fault::Value, field, found, allowed));
    } else if size < tail_at {
        let found = format_args!("{} bytes between the disk and its footer", tail_at.saturating_sub(size));
        findings.note(Severity::Warning, site.problem(Fault::Leaked, field, found, "none"));
    }
}

fn read_sparse(store: &Store, footer: &Footer, (limit, len): (u64, u64), findings: &mut Findings) -> Result<Sparse> {
    let at = footer.data_offset();
    let site = Site { structure: Structure::VhdHeader, at };
    findings.require(at.checked_add(HEADER_LEN).is_some_and(|end| at >= FOOTER_LEN && end <= len), || {
        let allowed = format_args!("1024 bytes between the footer copy and the end of the file at {len:#x}");
        site.problem(Fault::Range, 0, format_args!("a dynamic header at file offset {at:#x}"), allowed)
    })?;
    let mut bytes = [0; HEADER_BYTES];
    store.read("the dynamic header", &mut bytes, at)?;
    let raw = header::signed(&bytes, site).map_err(|problem| findings.fatal(problem))?;
    let header = Header::trust(raw, site, (footer.size(), len), findings)?;
    header.inspect(site, footer, findings);
    findings.require(!footer.has_reversed_bitmaps(), || {
        let found = "version 0.1 of the tap family, whose bitmaps count bits the other way";
        Problem::new(Structure::VhdBitmap, Fault::Unsupported, found, "a later version")
    })?;
    inspect_layout(store, &header, (at, len), findings)?;
    let locators = match footer.kind() {
        DiskKind::Differencing => Locators::read(store, &header, (site, len), findings)?,
        DiskKind::Fixed | DiskKind::Dynamic => Locators::default(),
    };
    let batmap = if footer.has_batmap() { Batmap::read(store, header.table().end, len, findings)? } else { None };
    let bat = Bat::new(&header, at, (footer.size(), limit));
    Ok(Sparse { header, header_at: at, bat, locators, batmap })
}

/// Notes padding and lengths other producers differ in.
fn inspect_layout(store: &Store, header: &Header, (at, len): (u64, u64), findings: &mut Findings) -> Result<()> {
    let table = header.table();
    let taken = [0..FOOTER_LEN, at..at.saturating_add(HEADER_LEN)];
    if taken.iter().any(|taken| space::overlap(taken, &table)) {
        let found = format_args!("a table at file offset {:#x} to {:#x}", table.start, table.end);
        let allowed = format_args!("one clear of the footer copy and of the header at {at:#x}");
        let problem = Problem::new(Structure::VhdBat, Fault::Overlap, found, allowed);
        findings.note(Severity::Error, problem.at(FileOffset(table.start)));
    }
    let entries_end = table.start.saturating_add(u64::from(header.entries()).saturating_mul(4));
    let mut buffer = [0; FOOTER_BYTES];
    let padding = table.end.min(len).saturating_sub(entries_end);
    if let Some(part) = usize::try_from(padding).ok().and_then(|len| buffer.get_mut(..len)) {
        store.read("the padding of the block allocation table", part, entries_end)?;
        if part.iter().any(|&byte| byte != 0xFF) {
            let problem = Problem::new(Structure::VhdBat, Fault::Reserved, "padding that is not 0xFF", "0xFF");
            findings.note(Severity::Warning, problem.at(FileOffset(entries_end)));
        }
    }
    if !len.is_multiple_of(space::FILE_UNIT) {
        let problem =
            Problem::new(Structure::File, Fault::Alignment, format_args!("{len} bytes"), "a multiple of 4096");
        findings.note(Severity::Warning, problem);
    }
    Ok(())
}
