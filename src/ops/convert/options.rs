//! What may be asked of a conversion.
//!
//! Owns: the options and which of them go together. Must not know: how the new image is made.

use crate::error::{Error, ErrorKind, Result};
use crate::image::Format;
use crate::link::DiskKind;
use crate::units::{GIB, MIB, SECTOR, round_up};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The smallest and largest disks Azure takes, in bytes; whole MiB in between. Uploads have 512 bytes more, the footer:
/// 20 972 032 to 35 183 298 347 520 (Microsoft Learn, `DiskCreationData.UploadSizeBytes`).
const AZURE_SIZES: Range<u64> = 20 * MIB..32_767 * GIB + 1;

/// What to make of the source.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    pub(super) format: Format,
    kind: Option<DiskKind>,
    pub(super) block_size: Option<u32>,
    size: Option<u64>,
    pub(super) jobs: usize,
    pub(super) scan_zeros: bool,
    pub(super) overwrite: bool,
    pub(super) preallocate: bool,
    pub(super) verify: bool,
    azure: bool,
    from_depth: usize,
    to_depth: Option<usize>,
    stand_in: Option<PathBuf>,
}

impl ConvertOptions {
    /// An image of `format`; dynamic unless said otherwise (raw is always fixed), of the whole chain.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self {
            format,
            kind: None,
            block_size: None,
            size: None,
            jobs: 0,
            scan_zeros: true,
            overwrite: false,
            preallocate: false,
            verify: false,
            azure: false,
            from_depth: 1,
            to_depth: None,
            stand_in: None,
        }
    }

    /// A VHD as Azure takes it: fixed, of a whole number of MiB, from 20 MiB to 32 767 GiB, and a file that is 512 bytes
    /// longer. A disk of another size gets zeros at its end ([`ConvertReport::padded`](super::ConvertReport::padded)), a
    /// larger one is refused.
    #[must_use]
    pub fn azure() -> Self {
        Self { azure: true, ..Self::new(Format::Vhd).kind(DiskKind::Fixed) }
    }

    /// Fixed or dynamic; differencing for a part of a chain, over the file below it or a
    /// [stand-in](Self::stand_in).
    #[must_use]
    pub fn kind(mut self, kind: DiskKind) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Bytes per block, as [`CreateOptions::block_size`](crate::ops::CreateOptions::block_size).
    #[must_use]
    pub fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = Some(bytes);
        self
    }

    /// The new disk's size in bytes, not less than the source's: the rest is zeros. Default: the source's, which VHD and
    /// VHDX round up to whole sectors.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// How many threads copy; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Whether zeros in the source are left out of the target (default true).
    #[must_use]
    pub fn scan_zeros(mut self, scan: bool) -> Self {
        self.scan_zeros = scan;
        self
    }

    /// Whether a file that exists may be replaced (default: no).
    #[must_use]
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Whether the file system reserves the space of the whole file before the first byte is copied (default: no, and
    /// zeros take no space). Raw and fixed images only.
    #[must_use]
    pub fn preallocate(mut self, preallocate: bool) -> Self {
        self.preallocate = preallocate;
        self
    }

    /// Whether the new image is read back and compared before it gets its name (default: no).
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Converts only what the files from depth `from` (the leaf is 1) down to depth `to` hold, both included; `None` is
    /// the base. What they leave to files below reads as zeros in a flat image, and is left to the parent in a
    /// differencing one.
    ///
    /// A part that does not reach the base becomes a differencing image unless its [`kind`](Self::kind) or format says
    /// otherwise.
    #[must_use]
    pub fn depths(mut self, from: usize, to: Option<usize>) -> Self {
        (self.from_depth, self.to_depth) = (from, to);
        self
    }

    /// The parent of the differencing image is a new, empty image at `path` that stands in for the file below, with an
    /// identity of its own. So the part can be opened, and carried elsewhere, without the rest of the chain; what it
    /// leaves to its parent then reads as zeros. `path` must not exist.
    #[must_use]
    pub fn stand_in(mut self, path: impl Into<PathBuf>) -> Self {
        self.stand_in = Some(path.into());
        self
    }

    /// Where the stand-in is to be.
    pub(super) fn stand_in_path(&self) -> Option<&Path> {
        self.stand_in.as_deref()
    }

    /// The part of a chain that is converted.
    pub(super) fn part(&self) -> (usize, Option<usize>) {
        (self.from_depth, self.to_depth)
    }

    /// The kind of the new image; `part` says that files of the chain lie below what is converted.
    pub(super) fn target_kind(&self, part: bool) -> Result<DiskKind> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidInput, message));
        let differencing = part && self.format != Format::Raw;
        let kind = match (self.format, self.kind) {
            (Format::Raw, Some(DiskKind::Dynamic | DiskKind::Differencing)) => {
                return invalid("a raw image is fixed: it has no blocks to leave out");
            }
            (Format::Raw, _) => DiskKind::Fixed,
            (_, None) if differencing || self.stand_in.is_some() => DiskKind::Differencing,
            (_, kind) => kind.unwrap_or(DiskKind::Dynamic),
        };
        if self.azure && (self.format, kind) != (Format::Vhd, DiskKind::Fixed) {
            return invalid("Azure takes fixed VHDs only");
        }
        if self.preallocate && kind != DiskKind::Fixed {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "only raw and fixed images have all their space from the start",
            )
            .with_hint("make it fixed, or leave out the preallocation"));
        }
        match (kind, &self.stand_in) {
            (DiskKind::Differencing, None) if !part => Err(Error::new(
                ErrorKind::InvalidInput,
                "nothing is left below to be the parent of a differencing image",
            )
            .with_hint("end the part above the base with --to-depth, or name a --stand-in")),
            (DiskKind::Differencing, _) | (_, None) => Ok(kind),
            (_, Some(_)) => invalid("only a differencing image has a parent to stand in for"),
        }
    }

    /// The size of a new disk for a source of `shown` bytes with sectors of `sector` bytes.
    pub(super) fn target_size(&self, shown: u64, sector: u32) -> Result<u64> {
        let invalid = |message: String| Error::new(ErrorKind::InvalidInput, message);
        let wanted = self.size.unwrap_or(shown);
        if wanted < shown {
            return Err(invalid(format!("a size of {wanted} bytes is less than the {shown} of the source")));
        }
        if self.azure {
            let size = round_up(wanted.max(AZURE_SIZES.start), MIB).unwrap_or(u64::MAX);
            if !AZURE_SIZES.contains(&size) {
                let (least, most) = (AZURE_SIZES.start / MIB, (AZURE_SIZES.end - 1) / GIB);
                let message =
                    format!("Azure takes disks from {least} MiB to {most} GiB, and this one has {wanted} bytes");
                return Err(invalid(message));
            }
            return Ok(size);
        }
        let unit = match self.format {
            Format::Raw => 1,
            Format::Vhd => SECTOR,
            Format::Vhdx => u64::from(sector),
        };
        round_up(wanted, unit).ok_or_else(|| invalid(format!("no disk has {wanted} bytes")))
    }

    /// The size that was asked for.
    pub(super) fn asked_size(&self) -> Option<u64> {
        self.size
    }
}
