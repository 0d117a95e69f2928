//! One image of any format.
//!
//! Owns: the closed list of formats, telling them apart, and the questions every format answers.
//! Must not know: paths, parents' files, or what an operation does with an image.

use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::link::{DiskKind, GrowAs, ImageId, NewParent, ParentLink, SavedLink};
use crate::map::{BlockMap, BlockSink};
use crate::mend::{CheckSummary, RepairKind, Salvaged, Step};
use crate::pack::Pack;
use crate::raw::Raw;
use crate::storage::{Access, Storage};
use crate::units::SECTOR;
use crate::vhd::Vhd;
use crate::vhdx::Vhdx;
use std::fmt;
use std::sync::Arc;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Format {
    /// A flat file.
    Raw,
    /// VHD 1.0.
    Vhd,
    /// VHDX ([MS-VHDX]).
    Vhdx,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        })
    }
}

/// An open image. Dropping one that was written closes it as well as it can; [`close`](Self::close) says whether that
/// worked.
#[derive(Debug)]
#[non_exhaustive]
pub enum Image {
    /// A VHD.
    Vhd(Box<Vhd>),
    /// A VHDX.
    Vhdx(Box<Vhdx>),
    /// A flat file that the caller called raw.
    Raw(Raw),
}

impl Image {
    /// Which format `storage` holds, by its own marks; `None` when it is neither VHD nor VHDX. Never answers `Raw`.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn probe(storage: &dyn Storage) -> Result<Option<Format>> {
        if Vhdx::probe(storage)? {
            Ok(Some(Format::Vhdx))
        } else if Vhd::probe(storage)? {
            Ok(Some(Format::Vhd))
        } else {
            Ok(None)
        }
    }

    /// Opens the VHD or VHDX in `storage`; what is odd about it is added to `findings`.
    ///
    /// # Errors
    /// `UnknownFormat` when it is neither (a raw file is opened by [`open_raw`](Self::open_raw), never guessed);
    /// `Corrupt`, `Unsupported`, `Refused`; what the storage answers.
    pub fn open(storage: Arc<dyn Storage>, access: Access, findings: &mut Findings) -> Result<Self> {
        match Self::probe(&*storage)? {
            Some(Format::Vhdx) => Ok(Self::Vhdx(Box::new(Vhdx::open(storage, access, findings)?))),
            Some(Format::Vhd) => Ok(Self::Vhd(Box::new(Vhd::open(storage, access, findings)?))),
            Some(Format::Raw) | None => Err(unknown_format()),
        }
    }

    /// As [`probe`](Self::probe), but an image too damaged to be opened is recognised as well.
    fn probe_damaged(storage: &dyn Storage) -> Result<Format> {
        match Self::probe(storage)? {
            Some(format) => Ok(format),
            None if Vhd::probe_damaged(storage)? => Ok(Format::Vhd),
            None => Err(unknown_format()),
        }
    }

    /// Checks the whole image in `storage`, of which nothing is believed or changed: `findings` gets all that opening it
    /// would find and all that takes reading every map. With `deep` the data is looked at too, where it can contradict
    /// the maps.
    ///
    /// # Errors
    /// `UnknownFormat`; the problem, when it keeps the image from opening: it is then among the findings as `Fatal`; what
    /// the storage answers.
    pub(crate) fn check(storage: Arc<dyn Storage>, deep: bool, findings: &mut Findings) -> Result<CheckSummary> {
        match Self::probe_damaged(&*storage)? {
            Format::Vhdx => Vhdx::check(storage, deep, findings),
            Format::Vhd | Format::Raw => Vhd::check(storage, deep, findings),
        }
    }

    /// What a repair of the image in `storage` would write, in order; nothing is written. Safe repairs always, the others
    /// when `allow` lists them.
    ///
    /// # Errors
    /// `UnknownFormat`; the problem, when the image is damaged beyond what can be repaired; what the storage answers.
    pub(crate) fn plan_repair(storage: Arc<dyn Storage>, allow: &[RepairKind]) -> Result<Vec<Step>> {
        match Self::probe_damaged(&*storage)? {
            Format::Vhdx => Vhdx::plan_repair(storage, allow),
            Format::Vhd | Format::Raw => Vhd::plan_repair(storage, allow),
        }
    }

    /// The image in `storage` with what it lacks to be opened made up in memory; `storage` is never written. Recognised by
    /// any trace of either format that is left.
    ///
    /// # Errors
    /// `UnknownFormat`; the problem, when too little is left; what the storage answers when asked for its length.
    pub(crate) fn salvage(storage: &Arc<dyn Storage>) -> Result<Salvaged> {
        let is = |answer: Result<bool>| answer.unwrap_or(false);
        if is(Vhdx::probe(&**storage)) {
            Vhdx::salvage(storage)
        } else if is(Vhd::probe(&**storage)) {
            Vhd::salvage(storage)
        } else if Vhdx::leaves_traces(&**storage) {
            Vhdx::salvage(storage)
        } else if Vhd::leaves_traces(&**storage)? {
            Vhd::salvage(storage)
        } else {
            Err(unknown_format())
        }
    }

    /// Takes `storage` as a flat disk because the caller says it is one.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn open_raw(storage: Arc<dyn Storage>, access: Access) -> Result<Self> {
        Raw::open(storage, access).map(Self::Raw)
    }

    /// Its format.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Vhd(_) => Format::Vhd,
            Self::Vhdx(_) => Format::Vhdx,
            Self::Raw(_) => Format::Raw,
        }
    }

    /// Fixed, dynamic or differencing; raw counts as fixed.
    #[must_use]
    pub fn kind(&self) -> DiskKind {
        match self {
            Self::Vhd(image) => image.kind(),
            Self::Vhdx(image) => image.kind(),
            Self::Raw(_) => DiskKind::Fixed,
        }
    }

    /// Who it is to its children; a raw file is nobody.
    #[must_use]
    pub fn id(&self) -> Option<ImageId> {
        match self {
            Self::Vhd(image) => Some(image.id()),
            Self::Vhdx(image) => Some(image.id()),
            Self::Raw(_) => None,
        }
    }

    /// Whom it names as its parent, when it is a differencing image.
    #[must_use]
    pub fn parent_link(&self) -> Option<ParentLink> {
        match self {
            Self::Vhd(image) => image.parent_link(),
            Self::Vhdx(image) => image.parent_link(),
            Self::Raw(_) => None,
        }
    }

    /// The virtual size in bytes.
    #[must_use]
    pub fn virtual_size(&self) -> u64 {
        self.map().virtual_size()
    }

    /// The logical sector size in bytes: 512 or 4096.
    #[must_use]
    pub fn logical_sector_size(&self) -> u32 {
        match self {
            Self::Vhd(_) | Self::Raw(_) => 512,
            Self::Vhdx(image) => image.logical_sector_size(),
        }
    }

    /// Bytes per block, where the image has blocks.
    #[must_use]
    pub fn block_size(&self) -> Option<u32> {
        match self {
            Self::Vhd(image) => image.block_size(),
            Self::Vhdx(image) => Some(image.block_size()),
            Self::Raw(_) => None,
        }
    }

    /// Its map.
    #[must_use]
    pub fn map(&self) -> &dyn BlockMap {
        match self {
            Self::Vhd(image) => &**image,
            Self::Vhdx(image) => &**image,
            Self::Raw(image) => image,
        }
    }

    /// Its map with the questions a writer asks.
    #[must_use]
    pub fn sink_view(&self) -> &dyn BlockSink {
        match self {
            Self::Vhd(image) => &**image,
            Self::Vhdx(image) => &**image,
            Self::Raw(image) => image,
        }
    }

    /// Its map, to be written through.
    #[must_use]
    pub fn sink(&mut self) -> &mut dyn BlockSink {
        match self {
            Self::Vhd(image) => &mut **image,
            Self::Vhdx(image) => &mut **image,
            Self::Raw(image) => image,
        }
    }

    /// Whether a disk of this image's format, type and sectors can have `size` bytes.
    ///
    /// # Errors
    /// `InvalidInput`, saying what is allowed.
    pub(crate) fn check_virtual_size(&self, size: u64) -> Result<()> {
        match self {
            Self::Vhd(image) => image.check_virtual_size(size),
            Self::Vhdx(image) => image.check_virtual_size(size),
            Self::Raw(_) if size == 0 || !size.is_multiple_of(SECTOR) => {
                let message = format_args!("a size of {size} bytes is not a positive multiple of 512 bytes");
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
            Self::Raw(_) => Ok(()),
        }
        .map_err(|error| error.with_windows_name("ERROR_VHD_INVALID_SIZE"))
    }

    /// Its file as something to be made shorter; `None` for an image without blocks.
    pub(crate) fn pack(&mut self) -> Option<&mut dyn Pack> {
        match self {
            _ if self.kind() == DiskKind::Fixed => None,
            Self::Vhd(image) => Some(&mut **image),
            Self::Vhdx(image) => Some(&mut **image),
            Self::Raw(_) => None,
        }
    }

    /// Makes the disk `size` bytes long. Data past a smaller size is gone, and growing again shows `grow` there.
    /// Durable on return; after a crash the disk has the old size or the new one.
    ///
    /// # Errors
    /// `InvalidInput` for a size the format cannot hold, `ReadOnly`, `NoSpace`, what the storage answers.
    pub fn set_virtual_size(&mut self, size: u64, grow: GrowAs) -> Result<()> {
        match self {
            Self::Vhd(image) => image.set_virtual_size(size, grow),
            Self::Vhdx(image) => image.set_virtual_size(size, grow),
            Self::Raw(image) => image.set_virtual_size(size),
        }
    }

    /// Points a differencing image at `parent`. Durable on return; after a crash the old link stands or the new one.
    ///
    /// # Errors
    /// `InvalidInput` when the image is not differencing or the parent is of another format; what the storage answers.
    pub fn set_parent(&mut self, parent: &NewParent) -> Result<()> {
        match self {
            Self::Vhd(image) => image.set_parent(parent),
            Self::Vhdx(image) => image.set_parent(parent),
            Self::Raw(_) => Err(Error::new(ErrorKind::InvalidInput, "a raw image has no parent")),
        }
    }

    /// Makes a differencing image name its parent by the id that has now; its paths stay. Durable on return; after a crash
    /// the old id stands or the new one.
    ///
    /// # Errors
    /// As [`set_parent`](Self::set_parent).
    pub fn follow_parent(&mut self, id: ImageId) -> Result<()> {
        match (self, id) {
            (Self::Vhd(image), ImageId::Vhd(id)) => image.follow_parent(id),
            (Self::Vhdx(image), ImageId::Vhdx(id)) => image.follow_parent(id),
            _ => Err(Error::new(ErrorKind::InvalidInput, "the parent is of another format")),
        }
    }

    /// As [`close`](Self::close), the image staying open: a later opening of the same storage finds all that it did.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn finish(&mut self) -> Result<()> {
        match self {
            Self::Vhdx(image) => image.end_session(),
            Self::Vhd(image) => image.end_session(),
            Self::Raw(image) => image.end_session(),
        }
    }

    /// The link of a differencing image as it is, to be put back later; `None` when it has none.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn saved_link(&self) -> Result<Option<SavedLink>> {
        match self {
            Self::Vhd(image) => image.saved_link(),
            Self::Vhdx(image) => image.saved_link(),
            Self::Raw(_) => Ok(None),
        }
    }

    /// Puts back a link that [`saved_link`](Self::saved_link) kept. Durable on return; after a crash the link there was
    /// stands or the one that was kept.
    ///
    /// # Errors
    /// `InvalidInput` when the image is not differencing or the link is of another format; what the storage answers.
    pub fn restore_link(&mut self, link: &SavedLink) -> Result<()> {
        match self {
            Self::Vhd(image) => image.restore_link(link),
            Self::Vhdx(image) => image.restore_link(link),
            Self::Raw(_) => Err(Error::new(ErrorKind::InvalidInput, "a raw image has no parent")),
        }
    }

    /// Ends a writing session cleanly: everything durable, the log empty, the footer in place.
    ///
    /// # Errors
    /// What the storage answers; the file is then as after a crash.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Vhd(image) => image.close(),
            Self::Vhdx(image) => image.close(),
            Self::Raw(image) => image.close(),
        }
    }
}

fn unknown_format() -> Error {
    Error::new(ErrorKind::UnknownFormat, "neither a VHD nor a VHDX file").with_windows_name("ERROR_VHD_FORMAT_UNKNOWN")
}
