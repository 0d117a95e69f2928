//! NTFS.
//!
//! Owns: the boot sector, file records with their attributes and runs, the cluster bitmap, and every sign that a volume is
//! in use: the dirty flag, an open log, hibernation, shadow copies. Must not know: any file but those.
//!
//! Facts: the NTFS documentation of the Linux-NTFS project (file records, attributes, $LogFile, $Volume, $Bitmap), and
//! libvshadow's description of volume shadow copies.

use super::part::{Bytes, Part, Runs, Stop, doubt, require};

const LOG_FILE: u64 = 2;
const VOLUME: u64 = 3;
const ROOT: u64 = 5;
const BITMAP: u64 = 6;
const NAME_VOLUME_INFORMATION: u32 = 0x70;
const DATA: u32 = 0x80;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xA0;
const END: u32 = u32::MAX;
/// The files every volume has; their records lie together at the start of the table of files.
const SYSTEM_RECORDS: u64 = 16;
/// The unit in which records are guarded against torn writes.
const STRIDE: usize = 512;
/// The most runs an attribute is read in.
const MAX_RUNS: usize = 1 << 20;
/// The most bytes of the root directory that are looked through.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Bytes of the bitmap read at a time.
const STEP: u64 = 64 << 10;
/// Flags of a volume that has to be looked after: dirty, its log to be resized, an upgrade, deleted journals, `chkdsk`
/// at work.
const BUSY: u16 = 0x4037;
/// Where a volume with shadow copies has their header, what it starts with, and the field that is zero without any.
const SHADOW_AT: u64 = 0x1E00;
const SHADOW_ID: [u8; 16] =
    [0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52];
const SHADOW_CATALOG: u64 = SHADOW_AT + 48;
const HIBERNATION: &str = "hiberfil.sys";

struct Ntfs<'a> {
    part: &'a Part<'a>,
    cluster: u64,
    clusters: u64,
    record: u64,
    /// The runs of the table of files.
    files: Vec<Run>,
    files_at: u64,
}

/// Clusters of an attribute that lie together.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where they are, in clusters; `None` when they are not there and read as zeros.
    at: Option<u64>,
    count: u64,
}

/// The value of an attribute.
enum Value {
    Inside(Vec<u8>),
    Outside { runs: Vec<Run>, len: u64, written: u64 },
}

/// Shows the free clusters.
pub(super) fn free(part: &Part<'_>, runs: &mut Runs<'_>) -> Result<(), Stop> {
    let ntfs = Ntfs::open(part)?;
    ntfs.require_idle()?;
    let Value::Outside { runs: bitmap, len, written } = ntfs.only_value(BITMAP, DATA)? else {
        return doubt("a cluster bitmap inside its record");
    };
    let wanted = ntfs.clusters.div_ceil(8);
    require(len >= wanted && written >= wanted, "a cluster bitmap too short for the volume")?;
    let mut bit = 0u64;
    let mut used = [false; 2];
    while bit < ntfs.clusters {
        let at = bit / 8;
        let bytes = ntfs.read(&bitmap, at, STEP.min(wanted.saturating_sub(at)))?;
        let here = (bytes.0.len() as u64).saturating_mul(8).min(ntfs.clusters.saturating_sub(bit));
        for (own, used) in [0, ntfs.files_at.checked_div(ntfs.cluster).unwrap_or(0)].into_iter().zip(&mut used) {
            if let Some(inside) = own.checked_sub(bit).filter(|inside| *inside < here) {
                let byte = bytes.u8(usize::try_from(inside / 8).unwrap_or(usize::MAX))?;
                *used = byte >> (inside % 8) & 1 != 0;
            }
        }
        runs.push_clear(&bytes.0, here, bit.saturating_mul(ntfs.cluster), ntfs.cluster)?;
        bit = bit.saturating_add(here);
    }
    require(used == [true; 2], "a cluster bitmap that says the table of files is free")
}

impl<'a> Ntfs<'a> {
    fn open(part: &'a Part<'a>) -> Result<Self, Stop> {
        let raw = part.bytes(0, 512)?;
        let sector = u64::from(raw.le16(11)?);
        // Large clusters are a negative power of two.
        let per_cluster = match raw.u8(13)? {
            count if count <= 128 => u64::from(count),
            power => 1u64.checked_shl(u32::from(power.wrapping_neg())).unwrap_or(0),
        };
        let cluster = sector.saturating_mul(per_cluster);
        let record = match raw.u8(64)? {
            count if count < 128 => u64::from(count).saturating_mul(cluster),
            power => 1u64.checked_shl(u32::from(power.wrapping_neg())).unwrap_or(0),
        };
        let volume = raw.le64(40)?.saturating_mul(sector);
        let sound = raw.le16(510)? == 0xAA55
            && sector.is_power_of_two()
            && (256..=4096).contains(&sector)
            && cluster.is_power_of_two()
            && cluster <= 2 << 20
            && record.is_power_of_two()
            && (512..=65536).contains(&record)
            && volume <= part.size();
        require(sound, "a boot sector whose numbers do not fit each other or the volume")?;
        let files_at = raw.le64(48)?.saturating_mul(cluster);
        let clusters = volume.checked_div(cluster).unwrap_or(0);
        let mut ntfs = Self { part, cluster, clusters, record, files: Vec::new(), files_at };
        let first = ntfs.guarded(part.bytes(files_at, record)?, b"FILE")?;
        let Some(Value::Outside { runs, .. }) = ntfs.value(&first, DATA)? else {
            return doubt("a table of files inside its record");
        };
        let start = runs.first().copied().unwrap_or(Run { at: None, count: 0 });
        let together = start.count.saturating_mul(cluster) >= record.saturating_mul(SYSTEM_RECORDS);
        require(
            start.at.map(|at| at.saturating_mul(cluster)) == Some(files_at) && together,
            "a table of files in pieces at its start",
        )?;
        ntfs.files = runs;
        Ok(ntfs)
    }

    /// Nothing may be waiting in its log, nobody may have it open, asleep or in a shadow copy.
    fn require_idle(&self) -> Result<(), Stop> {
        let Value::Inside(information) = self.only_value(VOLUME, NAME_VOLUME_INFORMATION)? else {
            return doubt("volume information outside its record");
        };
        let information = Bytes(information);
        require(information.u8(8)? == 3, format_args!("version {}.{}", information.u8(8)?, information.u8(9)?))?;
        require(information.le16(10)? & BUSY == 0, "it is marked dirty: it was not unmounted, or has errors")?;
        self.require_clean_log()?;
        if self.part.has(SHADOW_AT, &SHADOW_ID)? {
            require(self.part.has(SHADOW_CATALOG, &[0; 8])?, "it has shadow copies, which need what is free now")?;
        }
        self.require_awake()
    }

    fn require_clean_log(&self) -> Result<(), Stop> {
        let Value::Outside { runs, len, .. } = self.only_value(LOG_FILE, DATA)? else {
            return doubt("a log inside its record");
        };
        let head = self.read(&runs, 0, len.min(4096))?;
        if head.0.iter().all(|byte| *byte == 0xFF) {
            return Ok(());
        }
        let mut newest: Option<(u64, bool)> = None;
        let page = u64::from(head.le32(16)?);
        require(page.is_power_of_two() && (512..=65536).contains(&page), "a log that cannot be read")?;
        for at in [0, page] {
            let Ok(raw) = self.read(&runs, at, page).and_then(|raw| self.guarded(raw, b"RSTR")) else { continue };
            let area = usize::from(raw.le16(24)?);
            let field = |at: usize| area.saturating_add(at);
            let clean = raw.le16(field(12))? == u16::MAX || raw.le16(field(14))? & 2 != 0;
            let sequence = raw.le64(area)?;
            if newest.is_none_or(|(before, _)| before < sequence) {
                newest = Some((sequence, clean));
            }
        }
        match newest {
            Some((_, true)) => Ok(()),
            Some((_, false)) => doubt("its log is open: it was not unmounted"),
            None => doubt("a log that cannot be read"),
        }
    }

    /// Whether Windows sleeps in it: a file for that in the root directory that holds more than zeros.
    fn require_awake(&self) -> Result<(), Stop> {
        let root = self.file(ROOT)?;
        let mut numbers = Vec::new();
        match self.value(&root, INDEX_ROOT)? {
            Some(Value::Inside(index)) => self.entries(&Bytes(index), 16, &mut numbers)?,
            _ => return doubt("a root directory that cannot be read"),
        }
        if let Some(Value::Outside { runs, len, .. }) = self.value(&root, INDEX_ALLOCATION)? {
            require(len <= MAX_DIRECTORY, format_args!("a root directory of {len} bytes"))?;
            let Some(Value::Inside(index)) = self.value(&root, INDEX_ROOT)? else {
                return doubt("a root directory that cannot be read");
            };
            let block = u64::from(Bytes(index).le32(8)?);
            require(block.is_power_of_two() && (512..=65536).contains(&block), "a root directory that cannot be read")?;
            for at in (0..len).step_by(usize::try_from(block).unwrap_or(4096)) {
                // Blocks that are not in use need not be any.
                if let Ok(raw) = self.read(&runs, at, block).and_then(|raw| self.guarded(raw, b"INDX")) {
                    self.entries(&raw, 24, &mut numbers)?;
                }
            }
        }
        for number in numbers {
            let file = self.file(number)?;
            let head = match self.value(&file, DATA)? {
                Some(Value::Inside(bytes)) => Bytes(bytes),
                Some(Value::Outside { runs, len, .. }) => self.read(&runs, 0, len.min(4096))?,
                None => return doubt("hiberfil.sys cannot be read"),
            };
            let awake = head.0.iter().all(|byte| *byte == 0) || matches!(head.0.get(..4), Some(b"wake" | b"WAKE"));
            require(awake, "Windows is hibernated in it, or shut down for a fast start")?;
        }
        Ok(())
    }

    /// The records of files with the name of the hibernation file among the entries whose header is at `header`.
    fn entries(&self, index: &Bytes, header: usize, numbers: &mut Vec<u64>) -> Result<(), Stop> {
        let offset = |at: usize| {
            Ok::<usize, Stop>(usize::try_from(index.le32(header.saturating_add(at))?).unwrap_or(usize::MAX))
        };
        let end = header.saturating_add(offset(4)?);
        let mut at = header.saturating_add(offset(0)?);
        while at < end {
            let len = usize::from(index.le16(at.saturating_add(8))?);
            let flags = index.le16(at.saturating_add(12))?;
            if flags & 2 != 0 {
                break;
            }
            require(len >= 16, "a root directory that cannot be read")?;
            if index.le16(at.saturating_add(10))? >= 66 {
                let name = at.saturating_add(16).saturating_add(66);
                let chars = usize::from(index.u8(at.saturating_add(16).saturating_add(64))?);
                let bytes = index.part(name..name.saturating_add(chars.saturating_mul(2)))?;
                let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
                if String::from_utf16_lossy(&units).eq_ignore_ascii_case(HIBERNATION) {
                    numbers.push(index.le64(at)? & 0xFFFF_FFFF_FFFF);
                }
            }
            at = at.saturating_add(len);
        }
        Ok(())
    }

    /// File record `number`.
    fn file(&self, number: u64) -> Result<Bytes, Stop> {
        let raw = self.read(&self.files, number.saturating_mul(self.record), self.record)?;
        self.guarded(raw, b"FILE")
    }

    /// The value of the attribute `kind` of file `number`, which must have it.
    fn only_value(&self, number: u64, kind: u32) -> Result<Value, Stop> {
        let value = self.value(&self.file(number)?, kind)?;
        value.ok_or_else(|| Stop::Doubt(format!("file {number} without attribute {kind:#x}")))
    }

    /// A record with the signature `kind`, its guarded bytes put back.
    fn guarded(&self, mut raw: Bytes, kind: &[u8; 4]) -> Result<Bytes, Stop> {
        require(raw.part(0..4)? == kind, "a record without its signature")?;
        let (array, count) = (usize::from(raw.le16(4)?), usize::from(raw.le16(6)?));
        require(count == (raw.0.len() / STRIDE).saturating_add(1), "a record with a wrong number of guards")?;
        let guard = raw.le16(array)?;
        for sector in 1..count {
            let original = raw.le16(array.saturating_add(sector.saturating_mul(2)))?;
            let at = sector.saturating_mul(STRIDE).saturating_sub(2);
            require(raw.le16(at)? == guard, "a record that was written in part")?;
            if let Some(place) = raw.0.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) {
                *place = original.to_le_bytes();
            }
        }
        Ok(raw)
    }

    /// The value of attribute `kind` without a name, or of an index, in a file record.
    fn value(&self, record: &Bytes, kind: u32) -> Result<Option<Value>, Stop> {
        let mut at = usize::from(record.le16(20)?);
        loop {
            let this = record.le32(at)?;
            if this == END {
                return Ok(None);
            }
            let len = usize::try_from(record.le32(at.saturating_add(4))?).unwrap_or(usize::MAX);
            require(len >= 24 && len <= record.0.len(), "an attribute of a wrong length")?;
            let named = record.u8(at.saturating_add(9))? > 0 && matches!(kind, DATA);
            if this == kind && !named {
                let attribute = Bytes(record.part(at..at.saturating_add(len))?.to_vec());
                return self.value_of(&attribute).map(Some);
            }
            at = at.saturating_add(len);
        }
    }

    fn value_of(&self, attribute: &Bytes) -> Result<Value, Stop> {
        if attribute.u8(8)? == 0 {
            let start = usize::from(attribute.le16(20)?);
            let len = usize::try_from(attribute.le32(16)?).unwrap_or(usize::MAX);
            return Ok(Value::Inside(attribute.part(start..start.saturating_add(len))?.to_vec()));
        }
        require(attribute.le16(12)? & 0x4001 == 0, "a compressed or encrypted system file")?;
        require(attribute.le64(16)? == 0, "an attribute that does not start at its beginning")?;
        let runs = self.runs(attribute)?;
        let clusters = attribute.le64(24)?.wrapping_add(1);
        let all = runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.count));
        let len = attribute.le64(48)?;
        let fits = all == clusters && len <= clusters.saturating_mul(self.cluster);
        require(fits, "an attribute in several records, or whose runs do not add up")?;
        Ok(Value::Outside { runs, len, written: attribute.le64(56)? })
    }

    fn runs(&self, attribute: &Bytes) -> Result<Vec<Run>, Stop> {
        let mut runs = Vec::new();
        let mut at = usize::from(attribute.le16(32)?);
        let mut cluster = 0i64;
        loop {
            let sizes = attribute.u8(at)?;
            if sizes == 0 {
                return Ok(runs);
            }
            let (lengths, offsets) = (usize::from(sizes & 0xF), usize::from(sizes >> 4));
            require((1..=8).contains(&lengths) && offsets <= 8 && runs.len() < MAX_RUNS, "runs that cannot be read")?;
            let middle = at.saturating_add(1).saturating_add(lengths);
            let count = number(attribute.part(at.saturating_add(1)..middle)?);
            let offset = number(attribute.part(middle..middle.saturating_add(offsets))?);
            at = middle.saturating_add(offsets);
            cluster = cluster.wrapping_add(offset);
            let place = u64::try_from(cluster).ok().filter(|_| offsets > 0);
            let count = u64::try_from(count).unwrap_or(0);
            let inside = place.is_none_or(|place| place.saturating_add(count) <= self.clusters);
            require(count > 0 && inside && (place.is_some() || offsets == 0), "a run outside the volume")?;
            runs.push(Run { at: place, count });
        }
    }

    /// `len` bytes at `at` of what lies in `runs`.
    fn read(&self, runs: &[Run], at: u64, len: u64) -> Result<Bytes, Stop> {
        let mut bytes = vec![0; usize::try_from(len.min(1 << 20)).unwrap_or(0)];
        let (mut start, mut filled) = (0u64, 0u64);
        for run in runs {
            let end = start.saturating_add(run.count.saturating_mul(self.cluster));
            let from = at.saturating_add(filled);
            if filled < len && (start..end).contains(&from) {
                let here = end.saturating_sub(from).min(len.saturating_sub(filled));
                let target = usize::try_from(filled).ok().zip(usize::try_from(filled.saturating_add(here)).ok());
                let target = target.and_then(|(from, to)| bytes.get_mut(from..to));
                if let (Some(place), Some(target)) = (run.at, target) {
                    let inside = from.saturating_sub(start);
                    self.part.fill(target, place.saturating_mul(self.cluster).saturating_add(inside))?;
                }
                filled = filled.saturating_add(here);
            }
            start = end;
        }
        require(filled == len, "an attribute that is shorter than it should be")?;
        Ok(Bytes(bytes))
    }
}

/// A signed little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
    let mut all = [if negative { 0xFF } else { 0 }; 8];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = *from;
    }
    i64::from_le_bytes(all)
}
