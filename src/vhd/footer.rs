//! The footer: what a VHD says it is.
//!
//! Owns: every rule about a footer's fields, and how a fresh one looks. Must not know: where footers lie in a file, or
//! which of two decides.

use super::geometry::Geometry;
use super::raw::{FOOTER_BYTES, FOOTER_COOKIE, FOOTER_LEN, NOWHERE, POISON_COOKIE, RawFooter, Site, VERSION_1};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::{Findings, Severity};
use crate::link::DiskKind;
use crate::problem::{Fault, Problem, Structure};
use crate::units::{GIB, SECTOR};
use std::mem::offset_of;
use std::time::{SystemTime, UNIX_EPOCH};
use zerocopy::{FromBytes, IntoBytes};

/// The largest dynamic or differencing disk: what Windows makes, and what leaves a BAT of 32-bit sector numbers room for
/// bitmaps and metadata.
pub(crate) const MAX_SPARSE_SIZE: u64 = 2040 * GIB;
/// The largest fixed disk: file positions are signed 64-bit numbers on every system.
pub(crate) const MAX_FIXED_SIZE: u64 = (i64::MAX as u64) & !(SECTOR - 1);
/// Our tag in files we make: not one whose disk size some readers take from the geometry.
const CREATOR: [u8; 4] = *b"vkit";
/// Version 1.0 of that tag's writer.
const CREATOR_VERSION: u32 = 0x0001_0000;
/// Windows, as the file's home: FreeBSD found other values refused.
const CREATOR_OS: [u8; 4] = *b"Wi2k";
/// 2000-01-01T00:00:00Z in Unix seconds: where VHD time begins.
const EPOCH: u64 = 946_684_800;
/// How far a clock may be ahead before its timestamps are worth a word, in seconds.
const CLOCK_SKEW: u32 = 30 * 60;
/// Feature bit 0: the disk may be deleted at shutdown.
const FEATURE_TEMPORARY: u32 = 1;
/// Feature bit 1: reserved, always set.
const FEATURE_RESERVED: u32 = 2;
/// Versions of the tap family that summed their footers as if the hidden byte were zero.
const HIDDEN_UNSUMMED: [u32; 2] = [0x0000_0001, 0x0001_0001];

/// A footer whose cookie, checksum, version, type and size have been checked. Everything else is as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    raw: RawFooter,
    kind: DiskKind,
}

/// A record with the cookie and the checksum of a footer.
///
/// # Errors
/// What is wrong with it: `Missing`, `Checksum`, `Dirty` (the tap family's mark of an image in use) or `Unsupported`
/// (poisoned by an interrupted journaled operation).
pub(super) fn signed(bytes: &[u8; FOOTER_BYTES], site: Site) -> Result<RawFooter, Problem> {
    let allowed = "the cookie `conectix`";
    let raw = RawFooter::read_from_bytes(bytes).map_err(|_| site.problem(Fault::Missing, 0, "nothing", allowed))?;
    if raw.cookie == POISON_COOKIE {
        let found = "the cookie `v_poison` of an interrupted journaled operation";
        return Err(site.problem(Fault::Unsupported, 0, found, allowed));
    }
    if bytes.iter().all(|&byte| byte == 0xC7) {
        let found = "0xC7 in every byte, the mark of a tap image that was in use when its host stopped";
        return Err(site.problem(Fault::Dirty, 0, found, allowed));
    }
    if raw.cookie != FOOTER_COOKIE {
        return Err(site.problem(Fault::Missing, 0, format_args!("{:02x?}", raw.cookie), allowed));
    }
    let mut plain = raw;
    if raw.creator == *b"tap\0" && HIDDEN_UNSUMMED.contains(&raw.creator_version.get()) {
        plain.hidden = 0;
    }
    let stored = raw.checksum.get();
    if stored != raw.sum() && stored != plain.sum() {
        let field = offset_of!(RawFooter, checksum);
        let allowed = format_args!("{:#010x}, the sum of its bytes", raw.sum());
        return Err(site.problem(Fault::Checksum, field, format_args!("{stored:#010x}"), allowed));
    }
    Ok(raw)
}

/// Whether `size` can be the size of a disk of `kind`; the words say what is allowed.
pub(super) fn size_rule(size: u64, kind: DiskKind) -> Result<(), String> {
    let max = if kind == DiskKind::Fixed { MAX_FIXED_SIZE } else { MAX_SPARSE_SIZE };
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err("a positive multiple of 512 bytes".to_owned());
    }
    if size > max { Err(format!("at most {max} bytes ({} GiB)", max / GIB)) } else { Ok(()) }
}

/// Seconds since 2000-01-01 UTC; 0 before then and the end of the field's range after 2136.
#[must_use]
pub(super) fn now() -> u32 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    u32::try_from(unix.saturating_sub(EPOCH)).unwrap_or(u32::MAX)
}

impl Footer {
    /// Believes a signed record, after the rules no reader can do without.
    ///
    /// # Errors
    /// `Unsupported` for another version or type, `Corrupt` for a size no disk can have.
    pub(super) fn trust(raw: RawFooter, site: Site, findings: &mut Findings) -> Result<Self> {
        let version = raw.version.get();
        findings.require(version == VERSION_1, || {
            let field = offset_of!(RawFooter, version);
            site.problem(Fault::Unsupported, field, format_args!("version {version:#010x}"), "version 0x00010000")
        })?;
        let kind = match raw.kind.get() {
            2 => DiskKind::Fixed,
            3 => DiskKind::Dynamic,
            4 => DiskKind::Differencing,
            other => {
                let allowed = "2 (fixed), 3 (dynamic) or 4 (differencing)";
                let found = format_args!("disk type {other}");
                let problem = site.problem(Fault::Unsupported, offset_of!(RawFooter, kind), found, allowed);
                return Err(findings.fatal(problem));
            }
        };
        let size = raw.current_size.get();
        if let Err(allowed) = size_rule(size, kind) {
            let found = format_args!("a current size of {size} bytes");
            let problem = site.problem(Fault::Value, offset_of!(RawFooter, current_size), found, allowed);
            if size == 0 || !size.is_multiple_of(SECTOR) || kind == DiskKind::Fixed {
                return Err(findings.fatal(problem));
            }
            findings.note(Severity::Error, problem);
        }
        Ok(Self { raw, kind })
    }

    /// Notes everything that is unusual about the footer but keeps nobody from reading the disk.
    pub(super) fn inspect(&self, site: Site, findings: &mut Findings) {
        let raw = &self.raw;
        let features = raw.features.get();
        let editable = !self.saved_state();
        let mut error = |fault, field, found: String, allowed: &str| {
            let problem = site.problem(fault, field, found, allowed);
            // Other fields might mean something to whoever wrote them.
            let one_value = field == offset_of!(RawFooter, data_offset)
                || (field == offset_of!(RawFooter, features) && features & FEATURE_RESERVED == 0);
            if one_value && editable {
                findings.note_repairable(Severity::Error, problem);
            } else {
                findings.note(Severity::Error, problem);
            }
        };
        let field = offset_of!(RawFooter, features);
        if features & FEATURE_RESERVED == 0 {
            error(Fault::Reserved, field, format!("features {features:#x}"), "bit 1 set");
        }
        if features & !(FEATURE_RESERVED | FEATURE_TEMPORARY) != 0 {
            error(Fault::Reserved, field, format!("features {features:#x}"), "no bits but 0 and 1");
        }
        if self.kind == DiskKind::Fixed && raw.data_offset.get() != NOWHERE {
            let found = format!("{:#x}", raw.data_offset.get());
            error(Fault::Value, offset_of!(RawFooter, data_offset), found, "all ones on a fixed disk");
        }
        if raw.saved_state > 1 {
            let found = format!("saved state {}", raw.saved_state);
            error(Fault::Value, offset_of!(RawFooter, saved_state), found, "0 or 1");
        }
        if raw.unique_id == [0; 16] {
            let found = "a null unique id".to_owned();
            error(Fault::Value, offset_of!(RawFooter, unique_id), found, "sixteen bytes, not all zero");
        }
        if raw.reserved.iter().any(|&byte| byte != 0) || (raw.hidden != 0 && !self.made_by_tap()) {
            let found = "bytes that are not zero".to_owned();
            error(Fault::Reserved, offset_of!(RawFooter, hidden), found, "zeros in the reserved bytes");
        }
        self.inspect_geometry(site, findings);
        if raw.timestamp.get() > now().saturating_add(CLOCK_SKEW) {
            let found = format_args!("a timestamp of {} s, in the future", raw.timestamp);
            let field = offset_of!(RawFooter, timestamp);
            findings.note(Severity::Warning, site.problem(Fault::Value, field, found, "a time that has been"));
        }
    }

    fn inspect_geometry(&self, site: Site, findings: &mut Findings) {
        let field = offset_of!(RawFooter, cylinders);
        let (geometry, right, size) = (self.geometry(), Geometry::of(self.size()), self.size());
        let words = |g: Geometry| format!("C/H/S {}/{}/{}", g.cylinders, g.heads, g.sectors);
        if self.sized_by_geometry() && !geometry.is_largest() && geometry.bytes() != size {
            let found = format!("{}, which is {} bytes", words(geometry), geometry.bytes());
            let allowed = format!("the current size, {size} bytes, which is what counts here; some readers use C/H/S");
            findings.note(Severity::Warning, site.problem(Fault::Mismatch, field, found, allowed));
        } else if geometry != right && !geometry.is_largest() {
            let problem = site.problem(Fault::Value, field, words(geometry), words(right));
            if self.with_right_geometry().is_some() {
                findings.note_repairable(Severity::Warning, problem);
            } else {
                findings.note(Severity::Warning, problem);
            }
        }
    }

    /// The footer of a new disk.
    #[must_use]
    pub(super) fn fresh(kind: DiskKind, size: u64, unique_id: [u8; 16], timestamp: u32) -> Self {
        let mut raw = RawFooter::new_zeroed_for(kind);
        raw.timestamp = timestamp.into();
        raw.original_size = size.into();
        raw.unique_id = unique_id;
        let mut footer = Self { raw, kind };
        footer.sign_as_ours();
        footer.with_size(size)
    }

    /// The same footer with another creator: ours.
    fn sign_as_ours(&mut self) {
        self.raw.creator = CREATOR;
        self.raw.creator_version = CREATOR_VERSION.into();
        self.raw.creator_os = CREATOR_OS;
    }

    /// The same disk, said to be made by this crate: readers then take the size from the size field, and nobody expects
    /// a batmap.
    #[must_use]
    pub(super) fn as_ours(&self) -> Self {
        let mut changed = self.clone();
        changed.sign_as_ours();
        changed.raw.seal();
        changed
    }

    /// The same disk at another size. Where a creator's name makes readers take the size from a geometry that cannot
    /// express it, the creator becomes ours.
    #[must_use]
    pub(super) fn with_size(&self, size: u64) -> Self {
        let mut changed = self.clone();
        if self.sized_by_geometry() && Geometry::of(size).bytes() != size {
            changed.sign_as_ours();
        }
        let geometry = Geometry::of(size);
        changed.raw.current_size = size.into();
        changed.raw.cylinders = geometry.cylinders.into();
        changed.raw.heads = geometry.heads;
        changed.raw.sectors_per_track = geometry.sectors;
        changed.raw.seal();
        changed
    }

    /// The same footer with the fields that can hold one value only holding it; `None` when they do, or when a saved
    /// state forbids changes.
    #[must_use]
    pub(super) fn with_reserved_fields(&self) -> Option<Self> {
        let mut changed = self.clone();
        changed.raw.features = (self.raw.features.get() | FEATURE_RESERVED).into();
        if self.kind == DiskKind::Fixed {
            changed.raw.data_offset = NOWHERE.into();
        }
        changed.sealed_change_of(self)
    }

    /// The same footer with the geometry of its size; `None` when it has that or the largest one, when readers take the
    /// size of its creator's disks from the geometry, or when a saved state forbids changes.
    #[must_use]
    pub(super) fn with_right_geometry(&self) -> Option<Self> {
        if self.sized_by_geometry() || self.geometry().is_largest() {
            return None;
        }
        let mut changed = self.clone();
        let geometry = Geometry::of(self.size());
        changed.raw.cylinders = geometry.cylinders.into();
        changed.raw.heads = geometry.heads;
        changed.raw.sectors_per_track = geometry.sectors;
        changed.sealed_change_of(self)
    }

    fn sealed_change_of(mut self, before: &Self) -> Option<Self> {
        if self.raw == before.raw || before.saved_state() {
            return None;
        }
        self.raw.seal();
        Some(self)
    }

    /// The same disk under another identity.
    #[must_use]
    pub(super) fn with_unique_id(&self, unique_id: [u8; 16]) -> Self {
        let mut changed = self.clone();
        changed.raw.unique_id = unique_id;
        changed.raw.seal();
        changed
    }

    /// The same disk with its dynamic header at `offset`.
    #[must_use]
    pub(super) fn with_data_offset(&self, offset: u64) -> Self {
        let mut changed = self.clone();
        changed.raw.data_offset = offset.into();
        changed.raw.seal();
        changed
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.raw.as_bytes()
    }

    pub(super) fn raw(&self) -> &RawFooter {
        &self.raw
    }

    pub(super) fn kind(&self) -> DiskKind {
        self.kind
    }

    /// The disk's size: the current size field, for every creator.
    pub(super) fn size(&self) -> u64 {
        self.raw.current_size.get()
    }

    pub(super) fn geometry(&self) -> Geometry {
        let raw = &self.raw;
        Geometry { cylinders: raw.cylinders.get(), heads: raw.heads, sectors: raw.sectors_per_track }
    }

    pub(super) fn data_offset(&self) -> u64 {
        self.raw.data_offset.get()
    }

    pub(super) fn unique_id(&self) -> [u8; 16] {
        self.raw.unique_id
    }

    pub(super) fn timestamp(&self) -> u32 {
        self.raw.timestamp.get()
    }

    pub(super) fn saved_state(&self) -> bool {
        self.raw.saved_state != 0
    }

    fn made_by_tap(&self) -> bool {
        self.raw.creator == *b"tap\0"
    }

    /// Whether QEMU takes the size of its creator's disks from the geometry.
    fn sized_by_geometry(&self) -> bool {
        matches!(&self.raw.creator, b"vpc " | b"qemu")
    }

    /// Whether its creator keeps a batmap behind the BAT.
    pub(super) fn has_batmap(&self) -> bool {
        self.made_by_tap() && self.raw.creator_version.get() > 0x0001_0001
    }

    /// Whether its bitmaps count from the least significant bit, as only version 0.1 of the tap family did.
    pub(super) fn has_reversed_bitmaps(&self) -> bool {
        self.made_by_tap() && self.raw.creator_version.get() == 0x0000_0001
    }

    /// Creator and its version in words.
    pub(super) fn creator(&self) -> String {
        let name: String =
            self.raw.creator.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { ' ' }).collect();
        let version = self.raw.creator_version.get();
        let name = name.trim();
        format!("{} {}.{}", if name.is_empty() { "unknown" } else { name }, version >> 16, version & 0xFFFF)
    }

    /// The refusal every change of an image with a saved state meets (VHD 1.0: such a disk must not be edited offline).
    ///
    /// # Errors
    /// `Refused` when the saved state byte is set.
    pub(super) fn require_editable(&self) -> Result<()> {
        if !self.saved_state() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Refused, "a saved state of a virtual machine depends on this disk's contents")
            .with_hint("start the machine and shut it down, or discard its saved state"))
    }
}

impl RawFooter {
    fn new_zeroed_for(kind: DiskKind) -> Self {
        let mut raw: Self = zerocopy::FromZeros::new_zeroed();
        raw.cookie = FOOTER_COOKIE;
        raw.features = FEATURE_RESERVED.into();
        raw.version = VERSION_1.into();
        raw.data_offset = if kind == DiskKind::Fixed { NOWHERE } else { FOOTER_LEN }.into();
        raw.kind = match kind {
            DiskKind::Fixed => 2,
            DiskKind::Dynamic => 3,
            DiskKind::Differencing => 4,
        }
        .into();
        raw
    }
}

/// Where the footer copy lies: the first 512 bytes.
pub(super) const COPY_SITE: Site = Site { structure: Structure::VhdFooterCopy, at: 0 };

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(kind: DiskKind) -> RawFooter {
        let mut raw = RawFooter::new_zeroed_for(kind);
        raw.creator = *b"test";
        raw.creator_version = 0x0001_0000.into();
        raw.creator_os = CREATOR_OS;
        raw.original_size = 0x40_0000.into();
        raw.current_size = 0x40_0000.into();
        (raw.cylinders, raw.heads, raw.sectors_per_track) = (120.into(), 4, 17);
        raw.unique_id = std::array::from_fn(|i| i as u8);
        raw.seal();
        raw
    }

    fn bytes(raw: &RawFooter) -> [u8; 512] {
        raw.as_bytes().try_into().unwrap()
    }

    /// A checksum over the wrong span, or with its own field counted, makes every other reader refuse our files.
    #[test]
    fn checksums_are_those_of_the_format() {
        assert_eq!(vector(DiskKind::Fixed).checksum.get(), 0xFFFF_F002);
        assert_eq!(vector(DiskKind::Dynamic).checksum.get(), 0xFFFF_F7F7);
    }

    #[test]
    fn every_single_bit_of_damage_is_noticed() {
        let good = bytes(&vector(DiskKind::Dynamic));
        assert!(signed(&good, COPY_SITE).is_ok());
        for at in 0..512 {
            let mut bad = good;
            bad[at] ^= 0x10;
            let problem = signed(&bad, COPY_SITE).unwrap_err();
            let fault = if at < 8 { Fault::Missing } else { Fault::Checksum };
            assert_eq!(problem.fault, fault, "byte {at}");
        }
        assert_eq!(signed(&[0xC7; 512], COPY_SITE).unwrap_err().fault, Fault::Dirty);
        let mut poisoned = good;
        poisoned[..8].copy_from_slice(b"v_poison");
        assert_eq!(signed(&poisoned, COPY_SITE).unwrap_err().fault, Fault::Unsupported);
    }

    /// XenServer's first versions set the hidden byte without renewing the checksum.
    #[test]
    fn old_tap_footers_are_summed_without_the_hidden_byte() {
        let mut raw = vector(DiskKind::Dynamic);
        raw.creator = *b"tap\0";
        raw.creator_version = 0x0001_0001.into();
        raw.seal();
        raw.hidden = 1;
        assert!(signed(&bytes(&raw), COPY_SITE).is_ok());
        raw.creator_version = 0x0001_0003.into();
        assert!(signed(&bytes(&raw), COPY_SITE).is_err());
        raw.seal();
        assert!(signed(&bytes(&raw), COPY_SITE).is_ok());
    }

    #[test]
    fn rules_without_which_nothing_can_be_read() {
        type Damage = (fn(&mut RawFooter), ErrorKind);
        let cases: [Damage; 5] = [
            (|raw| raw.version = 0x0002_0000.into(), ErrorKind::Unsupported),
            (|raw| raw.kind = 5.into(), ErrorKind::Unsupported),
            (|raw| raw.kind = 0.into(), ErrorKind::Unsupported),
            (|raw| raw.current_size = 0.into(), ErrorKind::Corrupt),
            (|raw| raw.current_size = 513.into(), ErrorKind::Corrupt),
        ];
        for (damage, kind) in cases {
            let mut raw = vector(DiskKind::Dynamic);
            damage(&mut raw);
            let mut findings = Findings::new();
            assert_eq!(Footer::trust(raw, COPY_SITE, &mut findings).unwrap_err().kind(), kind);
            assert_eq!(findings.list()[0].severity, Severity::Fatal);
        }
    }

    #[test]
    fn oddities_are_noted_and_do_no_harm() {
        type Oddity = (fn(&mut RawFooter), Severity, Fault);
        let cases: [Oddity; 9] = [
            (|raw| raw.features = 0.into(), Severity::Error, Fault::Reserved),
            (|raw| raw.features = 6.into(), Severity::Error, Fault::Reserved),
            (|raw| raw.saved_state = 2, Severity::Error, Fault::Value),
            (|raw| raw.unique_id = [0; 16], Severity::Error, Fault::Value),
            (|raw| raw.reserved[425] = 1, Severity::Error, Fault::Reserved),
            (|raw| raw.hidden = 1, Severity::Error, Fault::Reserved),
            (|raw| raw.heads = 5, Severity::Warning, Fault::Value),
            (|raw| raw.creator = *b"qemu", Severity::Warning, Fault::Mismatch),
            (|raw| raw.timestamp = u32::MAX.into(), Severity::Warning, Fault::Value),
        ];
        for (index, (change, severity, fault)) in cases.into_iter().enumerate() {
            let mut raw = vector(DiskKind::Dynamic);
            change(&mut raw);
            let mut findings = Findings::new();
            Footer::trust(raw, COPY_SITE, &mut findings).unwrap().inspect(COPY_SITE, &mut findings);
            let found: Vec<_> = findings.list().iter().map(|f| (f.severity, f.problem.fault)).collect();
            assert_eq!(found, [(severity, fault)], "case {index}");
        }
    }

    #[test]
    fn a_fresh_footer_has_nothing_to_find() {
        for kind in [DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing] {
            let footer = Footer::fresh(kind, 3 << 20, [7; 16], now());
            let raw = signed(&bytes(footer.raw()), COPY_SITE).unwrap();
            let mut findings = Findings::new();
            Footer::trust(raw, COPY_SITE, &mut findings).unwrap().inspect(COPY_SITE, &mut findings);
            assert!(findings.list().is_empty(), "{:?}", findings.list());
            assert_eq!(footer.creator(), "vkit 1.0");
        }
    }
}
