//! The dynamic header: where the BAT is, how big blocks are, who the parent is.
//!
//! Owns: every rule about a header's fields, and how a fresh one looks. Must not know: what locator data or the BAT hold.

use super::footer::Footer;
use super::raw::{HEADER_BYTES, HEADER_COOKIE, NOWHERE, RawHeader, RawLocator, Site, VERSION_1};
use crate::error::Result;
use crate::finding::{Findings, Severity};
use crate::link::DiskKind;
use crate::problem::{Fault, Problem};
use crate::units::{KIB, MIB, SECTOR, round_up};
use std::mem::offset_of;
use std::ops::Range;
use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The smallest block read or made; the format has no lower limit, but smaller ones would be mostly bitmap.
pub(crate) const MIN_BLOCK_SIZE: u32 = 4 << 10;
/// The largest block read or made; the format has no upper limit, producers stop at 2 MiB.
pub(crate) const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// The block size every reader handles (VHD 1.0).
pub(crate) const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;

/// A header whose cookie, checksum, version, block size and table have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    raw: RawHeader,
}

/// What a block looks like in the file: a bitmap in whole sectors, then the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockLayout {
    pub(super) block_size: u64,
    pub(super) bitmap_len: u64,
}

impl BlockLayout {
    /// The layout of blocks of `block_size` bytes.
    pub(super) fn of(block_size: u32) -> Self {
        let block_size = u64::from(block_size);
        let bytes = block_size.div_ceil(SECTOR * 8);
        Self { block_size, bitmap_len: round_up(bytes, SECTOR).unwrap_or(bytes) }
    }

    /// Bytes of file a whole block takes.
    pub(super) fn stride(self) -> u64 {
        self.bitmap_len.saturating_add(self.block_size)
    }

    /// How many blocks hold a disk of `size` bytes.
    pub(super) fn blocks(self, size: u64) -> u64 {
        if self.block_size == 0 { 0 } else { size.div_ceil(self.block_size) }
    }

    /// The block `offset` lies in, and how far into it.
    pub(super) fn split(self, offset: u64) -> (u64, u64) {
        (offset.checked_div(self.block_size).unwrap_or(0), offset.checked_rem(self.block_size).unwrap_or(0))
    }

    /// The virtual offset where `block` begins.
    pub(super) fn start(self, block: u64) -> u64 {
        block.saturating_mul(self.block_size)
    }
}

/// Whether blocks may be `block_size` bytes; the words say what is allowed.
pub(super) fn block_size_rule(block_size: u32) -> Result<(), String> {
    if block_size.is_power_of_two() && (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return Ok(());
    }
    let (min, max) = (u64::from(MIN_BLOCK_SIZE) / KIB, u64::from(MAX_BLOCK_SIZE) / MIB);
    Err(format!("a power of two from {min} KiB to {max} MiB"))
}

/// A record with the cookie and the checksum of a dynamic header.
///
/// # Errors
/// What is wrong with it.
pub(super) fn signed(bytes: &[u8; HEADER_BYTES], site: Site) -> Result<RawHeader, Problem> {
    let allowed = "the cookie `cxsparse`";
    let raw = RawHeader::read_from_bytes(bytes).map_err(|_| site.problem(Fault::Missing, 0, "nothing", allowed))?;
    if raw.cookie != HEADER_COOKIE {
        return Err(site.problem(Fault::Signature, 0, format_args!("{:02x?}", raw.cookie), allowed));
    }
    if raw.checksum.get() != raw.sum() {
        let field = offset_of!(RawHeader, checksum);
        let allowed = format_args!("{:#010x}, the sum of its bytes", raw.sum());
        return Err(site.problem(Fault::Checksum, field, format_args!("{:#010x}", raw.checksum), allowed));
    }
    Ok(raw)
}

impl Header {
    /// Believes a signed record, after the rules no reader can do without: for a disk of `size` bytes in a file of
    /// `file_len` bytes.
    ///
    /// # Errors
    /// `Unsupported` for another version, `Corrupt` for a block size or a table that cannot be.
    pub(super) fn trust(
        raw: RawHeader,
        site: Site,
        (size, file_len): (u64, u64),
        findings: &mut Findings,
    ) -> Result<Self> {
        let version = raw.version.get();
        findings.require(version == VERSION_1, || {
            let field = offset_of!(RawHeader, version);
            site.problem(Fault::Unsupported, field, format_args!("version {version:#010x}"), "version 0x00010000")
        })?;
        let block_size = raw.block_size.get();
        if let Err(allowed) = block_size_rule(block_size) {
            let field = offset_of!(RawHeader, block_size);
            let found = format_args!("a block size of {block_size} bytes");
            return Err(findings.fatal(site.problem(Fault::Value, field, found, allowed)));
        }
        let header = Self { raw };
        let (entries, needed) = (u64::from(header.entries()), header.layout().blocks(size));
        let field = offset_of!(RawHeader, max_table_entries);
        findings.require(entries >= needed, || {
            let allowed = format_args!("at least {needed}, for {size} bytes");
            site.problem(Fault::Value, field, format_args!("{entries} table entries"), allowed)
        })?;
        let (table, field) = (header.table(), offset_of!(RawHeader, table_offset));
        let end = table.start.checked_add(entries.saturating_mul(4));
        findings.require(table.start != 0 && end.is_some_and(|end| end <= file_len), || {
            let found = format_args!("a table of {entries} entries at file offset {:#x}", table.start);
            site.problem(Fault::Range, field, found, format_args!("one inside the file, {file_len:#x} bytes long"))
        })?;
        if !table.start.is_multiple_of(SECTOR) {
            let found = format_args!("a table at file offset {:#x}", table.start);
            findings.note(Severity::Error, site.problem(Fault::Alignment, field, found, "a multiple of 512"));
        }
        if entries > needed {
            let field = offset_of!(RawHeader, max_table_entries);
            let found = format_args!("{entries} table entries");
            findings.note(Severity::Warning, site.problem(Fault::Value, field, found, format_args!("{needed}")));
        }
        Ok(header)
    }

    /// Notes everything that is unusual about the header of the disk of `footer` but keeps nobody from reading it.
    pub(super) fn inspect(&self, site: Site, footer: &Footer, findings: &mut Findings) {
        let raw = &self.raw;
        let data_offset = raw.data_offset.get();
        if data_offset != NOWHERE {
            let field = offset_of!(RawHeader, data_offset);
            let problem = site.problem(Fault::Value, field, format_args!("{data_offset:#x}"), "all ones");
            let editable = site.at.is_multiple_of(SECTOR) && !footer.saved_state();
            if editable && self.with_reserved_fields().is_some() {
                findings.note_repairable(Severity::Error, problem);
            } else {
                findings.note(Severity::Error, problem);
            }
        }
        if raw.reserved1.get() != 0 || raw.reserved2.iter().any(|&byte| byte != 0) {
            let field = offset_of!(RawHeader, reserved2);
            let problem =
                site.problem(Fault::Reserved, field, "bytes that are not zero", "zeros in the reserved bytes");
            findings.note(Severity::Error, problem);
        }
        let orphaned = raw.parent_unique_id != [0; 16]
            || raw.parent_timestamp.get() != 0
            || self.has_name()
            || raw.locators.iter().any(|locator| locator.platform != [0; 4]);
        if footer.kind() != DiskKind::Differencing && orphaned {
            let field = offset_of!(RawHeader, parent_unique_id);
            let problem = site.problem(Fault::Value, field, "fields that name a parent", "zeros on a dynamic disk");
            findings.note(Severity::Warning, problem);
        }
    }

    /// The header of a new disk with its table of `entries` at `table_offset`.
    pub(super) fn fresh(table_offset: u64, entries: u32, block_size: u32) -> Self {
        let mut raw = RawHeader::new_zeroed();
        raw.cookie = HEADER_COOKIE;
        raw.data_offset = NOWHERE.into();
        raw.version = VERSION_1.into();
        raw.block_size = block_size.into();
        Self { raw }.with_table(table_offset, entries)
    }

    /// The same header over another table. Only its first sector differs, so one sector write makes the switch.
    #[must_use]
    pub(super) fn with_table(&self, table_offset: u64, entries: u32) -> Self {
        let mut raw = self.raw;
        raw.table_offset = table_offset.into();
        raw.max_table_entries = entries.into();
        raw.seal();
        Self { raw }
    }

    /// The same header with the field that can hold one value only holding it, in its first sector; `None` when it does.
    #[must_use]
    pub(super) fn with_reserved_fields(&self) -> Option<Self> {
        let mut raw = self.raw;
        raw.data_offset = NOWHERE.into();
        raw.seal();
        (raw.data_offset != self.raw.data_offset).then_some(Self { raw })
    }

    /// The same header under another parent.
    #[must_use]
    pub(super) fn with_parent(&self, id: [u8; 16], timestamp: u32, locators: [RawLocator; 8], name: &[u16]) -> Self {
        let mut raw = self.raw;
        raw.parent_unique_id = id;
        raw.parent_timestamp = timestamp.into();
        raw.locators = locators;
        for (index, unit) in raw.parent_name.iter_mut().enumerate() {
            *unit = name.get(index).copied().unwrap_or(0).into();
        }
        raw.seal();
        Self { raw }
    }

    /// The same header, naming the same parent by another id. Only its first sector differs.
    #[must_use]
    pub(super) fn with_parent_id(&self, id: [u8; 16]) -> Self {
        let mut raw = self.raw;
        raw.parent_unique_id = id;
        raw.seal();
        Self { raw }
    }

    /// The parent's id, its time and its name, as they are.
    pub(super) fn parent_fields(&self) -> ([u8; 16], u32, &[U16; 256]) {
        (self.raw.parent_unique_id, self.raw.parent_timestamp.get(), &self.raw.parent_name)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    pub(super) fn layout(&self) -> BlockLayout {
        BlockLayout::of(self.raw.block_size.get())
    }

    pub(super) fn block_size(&self) -> u32 {
        self.raw.block_size.get()
    }

    pub(super) fn entries(&self) -> u32 {
        self.raw.max_table_entries.get()
    }

    /// The file range of the BAT with its padding to whole sectors.
    pub(super) fn table(&self) -> Range<u64> {
        let start = self.raw.table_offset.get();
        start..start.saturating_add(table_len(self.entries()))
    }

    /// The parent's unique id; all zero when the parent is a raw file.
    pub(super) fn parent_id(&self) -> [u8; 16] {
        self.raw.parent_unique_id
    }

    pub(super) fn parent_timestamp(&self) -> u32 {
        self.raw.parent_timestamp.get()
    }

    pub(super) fn locators(&self) -> &[RawLocator; 8] {
        &self.raw.locators
    }

    fn has_name(&self) -> bool {
        self.raw.parent_name.iter().any(|unit| unit.get() != 0)
    }

    /// The parent's name up to its first NUL, when there is one; what is not valid UTF-16 is replaced.
    pub(super) fn parent_name(&self) -> Option<String> {
        let units: Vec<u16> =
            self.raw.parent_name.iter().map(|unit| unit.get()).take_while(|&unit| unit != 0).collect();
        (!units.is_empty()).then(|| String::from_utf16_lossy(&units))
    }
}

/// Bytes a BAT of `entries` takes, padding included.
pub(super) fn table_len(entries: u32) -> u64 {
    let bytes = u64::from(entries).saturating_mul(4);
    round_up(bytes, SECTOR).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::problem::Structure;

    const SITE: Site = Site { structure: Structure::VhdHeader, at: 512 };

    fn signed_bytes(raw: &RawHeader) -> RawHeader {
        let mut raw = *raw;
        raw.seal();
        signed(raw.as_bytes().try_into().unwrap(), SITE).unwrap()
    }

    #[test]
    fn checksum_is_that_of_the_format() {
        assert_eq!(Header::fresh(1536, 2, 0x20_0000).raw.checksum.get(), 0xFFFF_F475);
    }

    #[test]
    fn layouts() {
        for (block, bitmap) in [(4 << 10, 512), (512 << 10, 512), (2 << 20, 512), (4 << 20, 1024), (256 << 20, 65536)] {
            assert_eq!(BlockLayout::of(block).bitmap_len, bitmap);
        }
        assert_eq!(BlockLayout::of(4096).blocks(4097), 2);
        assert_eq!(BlockLayout::of(4096).split(4097), (1, 1));
    }

    #[test]
    fn rules_without_which_nothing_can_be_read() {
        type Damage = (fn(&mut RawHeader), ErrorKind);
        let cases: [Damage; 9] = [
            (|raw| raw.version = 2.into(), ErrorKind::Unsupported),
            (|raw| raw.block_size = 0.into(), ErrorKind::Corrupt),
            (|raw| raw.block_size = 0x30_0000.into(), ErrorKind::Corrupt),
            (|raw| raw.block_size = 512.into(), ErrorKind::Corrupt),
            (|raw| raw.block_size = 0x2000_0000.into(), ErrorKind::Corrupt),
            (|raw| raw.max_table_entries = 1.into(), ErrorKind::Corrupt),
            (|raw| raw.max_table_entries = u32::MAX.into(), ErrorKind::Corrupt),
            (|raw| raw.table_offset = 0.into(), ErrorKind::Corrupt),
            (|raw| raw.table_offset = u64::MAX.into(), ErrorKind::Corrupt),
        ];
        for (index, (damage, kind)) in cases.into_iter().enumerate() {
            let mut raw = Header::fresh(1536, 2, 0x20_0000).raw;
            damage(&mut raw);
            let error = Header::trust(signed_bytes(&raw), SITE, (4 << 20, 4096), &mut Findings::new()).unwrap_err();
            assert_eq!(error.kind(), kind, "case {index}: {error}");
        }
    }

    #[test]
    fn oddities_are_noted() {
        let mut raw = Header::fresh(1536, 3, 0x20_0000).raw;
        raw.data_offset = 0xFFFF_FFFF.into();
        raw.reserved2[255] = 1;
        raw.parent_timestamp = 1.into();
        raw.table_offset = 1538.into();
        let mut findings = Findings::new();
        let header = Header::trust(signed_bytes(&raw), SITE, (4 << 20, 4096), &mut findings).unwrap();
        let footer = Footer::fresh(DiskKind::Dynamic, 4 << 20, [1; 16], 0);
        header.inspect(SITE, &footer, &mut findings);
        let faults: Vec<_> = findings.list().iter().map(|f| f.problem.fault).collect();
        assert_eq!(faults, [Fault::Alignment, Fault::Value, Fault::Value, Fault::Reserved, Fault::Value]);
    }

    /// A torn header write has no second copy to fall back on.
    #[test]
    fn switching_tables_changes_only_the_first_sector() {
        let old = Header::fresh(1536, 2, 0x20_0000);
        let new = old.with_table(0x40_0000, 70_000);
        assert_eq!(old.bytes()[512..], new.bytes()[512..]);
        assert_ne!(old.bytes()[..512], new.bytes()[..512]);
    }
}
