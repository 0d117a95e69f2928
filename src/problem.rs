//! What can be wrong in an image, as data.
//!
//! Owns: the closed lists of structures and faults, and the Windows error name of each pair that has one.
//! Must not know: how a problem is found, how bad it is, or what to do about it.

use crate::units::FileOffset;
use std::fmt;

/// The on-disk structure a problem lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Structure {
    /// The file as a whole: its length, its kind.
    File,
    /// VHD footer at the end of the file.
    VhdFooter,
    /// VHD footer copy at the start of a dynamic or differencing file.
    VhdFooterCopy,
    /// VHD dynamic disk header.
    VhdHeader,
    /// VHD block allocation table.
    VhdBat,
    /// VHD data block.
    VhdBlock,
    /// VHD sector bitmap.
    VhdBitmap,
    /// VHD parent locator.
    VhdLocator,
    /// XenServer block map behind the BAT.
    VhdBatmap,
    /// VHDX file type identifier.
    VhdxIdentifier,
    /// VHDX header.
    VhdxHeader,
    /// VHDX region table.
    VhdxRegionTable,
    /// VHDX log.
    VhdxLog,
    /// VHDX metadata table.
    VhdxMetadata,
    /// VHDX parent locator item.
    VhdxLocator,
    /// VHDX block allocation table.
    VhdxBat,
    /// VHDX payload block.
    VhdxBlock,
    /// VHDX sector bitmap block.
    VhdxBitmap,
    /// The link between a child and its parent.
    ParentLink,
}

impl Structure {
    /// The name used in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::VhdFooter => "VHD footer",
            Self::VhdFooterCopy => "VHD footer copy",
            Self::VhdHeader => "VHD dynamic header",
            Self::VhdBat => "VHD block allocation table",
            Self::VhdBlock => "VHD block",
            Self::VhdBitmap => "VHD sector bitmap",
            Self::VhdLocator => "VHD parent locator",
            Self::VhdBatmap => "VHD batmap",
            Self::VhdxIdentifier => "VHDX file identifier",
            Self::VhdxHeader => "VHDX header",
            Self::VhdxRegionTable => "VHDX region table",
            Self::VhdxLog => "VHDX log",
            Self::VhdxMetadata => "VHDX metadata",
            Self::VhdxLocator => "VHDX parent locator",
            Self::VhdxBat => "VHDX block allocation table",
            Self::VhdxBlock => "VHDX payload block",
            Self::VhdxBitmap => "VHDX sector bitmap block",
            Self::ParentLink => "parent link",
        }
    }
}

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Fault {
    /// It should be there and is not.
    Missing,
    /// The signature or cookie is not the right one.
    Signature,
    /// The checksum does not match the bytes.
    Checksum,
    /// A version or feature this crate must not guess at.
    Unsupported,
    /// A field holds a value outside what is allowed.
    Value,
    /// A block state that is not allowed here.
    State,
    /// Not on the boundary it must be on.
    Alignment,
    /// Reaches outside the file or the structure that holds it.
    Range,
    /// Shares bytes with another object.
    Overlap,
    /// The same thing twice.
    Duplicate,
    /// Reserved bits or bytes are in use.
    Reserved,
    /// The file ends inside it.
    Truncated,
    /// Two copies, or two ends of a link, disagree.
    Mismatch,
    /// More than a named limit of this crate.
    Limit,
    /// Space that nothing owns.
    Leaked,
    /// Updates that were logged but not yet applied.
    Dirty,
}

/// One thing that is wrong with an image: where, what was found, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[error("{}{}: found {found}, allowed {allowed}", structure.name(), At(*offset))]
pub struct Problem {
    /// The structure it lies in.
    pub structure: Structure,
    /// The kind of fault.
    pub fault: Fault,
    /// Where in the file, when it has a place.
    pub offset: Option<FileOffset>,
    /// What the file holds.
    pub found: String,
    /// What it may hold.
    pub allowed: String,
}

struct At(Option<FileOffset>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |offset| write!(f, " at file offset {offset}"))
    }
}

impl Problem {
    /// A problem with its two sides in words.
    #[must_use]
    pub fn new(structure: Structure, fault: Fault, found: impl fmt::Display, allowed: impl fmt::Display) -> Self {
        Self { structure, fault, offset: None, found: found.to_string(), allowed: allowed.to_string() }
    }

    /// The same problem, at `offset` of the file.
    #[must_use]
    pub fn at(mut self, offset: FileOffset) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The name Windows gives this condition, where it has one.
    #[must_use]
    pub const fn windows_name(&self) -> Option<&'static str> {
        windows_name(self.structure, self.fault)
    }
}

const fn windows_name(structure: Structure, fault: Fault) -> Option<&'static str> {
    use Fault as F;
    use Structure as S;
    Some(match (structure, fault) {
        (S::VhdFooter, F::Missing | F::Signature) => "ERROR_VHD_DRIVE_FOOTER_MISSING",
        (S::VhdFooter | S::VhdFooterCopy, F::Checksum) => "ERROR_VHD_DRIVE_FOOTER_CHECKSUM_MISMATCH",
        (S::VhdFooter | S::VhdFooterCopy | S::VhdxHeader, F::Unsupported) => "ERROR_VHD_FORMAT_UNSUPPORTED_VERSION",
        (S::VhdFooter | S::VhdFooterCopy, _) => "ERROR_VHD_DRIVE_FOOTER_CORRUPT",
        (S::File, F::Signature) | (S::VhdxIdentifier, _) => "ERROR_VHD_FORMAT_UNKNOWN",
        (S::File, F::Truncated | F::Value) => "ERROR_VHD_INVALID_FILE_SIZE",
        (S::VhdHeader, F::Checksum) => "ERROR_VHD_SPARSE_HEADER_CHECKSUM_MISMATCH",
        (S::VhdHeader, F::Unsupported) => "ERROR_VHD_SPARSE_HEADER_UNSUPPORTED_VERSION",
        (S::VhdHeader, _) => "ERROR_VHD_SPARSE_HEADER_CORRUPT",
        (S::VhdBat | S::VhdxBat | S::VhdBlock | S::VhdxBlock, F::Leaked) => return None,
        (S::VhdBat | S::VhdxBat | S::VhdBlock | S::VhdxBlock, _) => "ERROR_VHD_BLOCK_ALLOCATION_TABLE_CORRUPT",
        (S::VhdBitmap | S::VhdxBitmap | S::VhdBatmap, _) => "ERROR_VHD_BITMAP_MISMATCH",
        (S::VhdxMetadata, _) => "ERROR_VHD_METADATA_READ_FAILURE",
        (S::ParentLink, F::Missing) => "ERROR_VHD_PARENT_VHD_NOT_FOUND",
        (S::ParentLink, F::Mismatch) => "ERROR_VHD_CHILD_PARENT_ID_MISMATCH",
        (S::ParentLink, F::Value) => "ERROR_VHD_CHILD_PARENT_SIZE_MISMATCH",
        (S::ParentLink, F::Duplicate) => "ERROR_VHD_DIFFERENCING_CHAIN_CYCLE_DETECTED",
        (S::ParentLink, _) => "ERROR_VHD_DIFFERENCING_CHAIN_ERROR_IN_PARENT",
        _ => return None,
    })
}
