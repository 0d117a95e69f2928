//! The words formats and the chain share about parents: who a file is, whom it names as its parent, and where it looks.
//!
//! Owns: identities and path hints as plain data. Must not know: how a format stores them, how a path is resolved.

use crate::guid::Guid;
use std::fmt;

/// The three kinds of virtual disk both formats know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum DiskKind {
    /// All space allocated from the start.
    Fixed,
    /// Blocks allocated when written; the rest reads as zeros.
    Dynamic,
    /// Blocks or sectors that differ from a parent image.
    Differencing,
}

/// How the new range of a grown disk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrowAs {
    /// Zeros, explicitly, whatever a longer parent holds there.
    Zero,
    /// Zeros, explicitly, below this offset of the disk (the size of a longer parent, say), and as the parent from there
    /// on. Formats may round the offset up to a block.
    ZeroBelow(u64),
    /// As the parent (zeros where there is none, or where it ends earlier).
    Parent,
}

impl GrowAs {
    /// The offset up to which the parent must not show.
    pub(crate) const fn zero_end(self) -> u64 {
        match self {
            Self::Zero => u64::MAX,
            Self::ZeroBelow(end) => end,
            Self::Parent => 0,
        }
    }
}

/// Who an image is, as its children know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum ImageId {
    /// The Unique ID of a VHD footer: sixteen opaque bytes (VHD 1.0; producers disagree on their order).
    Vhd([u8; 16]),
    /// The DataWriteGuid of a VHDX header ([MS-VHDX] 2.2.2).
    Vhdx(Guid),
}

impl fmt::Display for ImageId {
    /// VHD ids are shown in big-endian order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vhd(bytes) => write!(f, "{}", Guid::from_bytes(*bytes)),
            Self::Vhdx(guid) => write!(f, "{guid}"),
        }
    }
}

/// Where a child says its parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum HintKind {
    /// Relative to the child's directory.
    Relative,
    /// `\\?\Volume{...}\...`.
    Volume,
    /// A drive letter or UNC path.
    Absolute,
    /// A bare name or an old path of which only the last part is of use.
    Name,
}

/// One path a child holds for its parent, as written (Windows separators, lossy where it was not valid UTF-16).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PathHint {
    /// What kind of path it is.
    pub kind: HintKind,
    /// The path as the file spells it.
    pub path: String,
}

/// A child's link to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// Any of these identities is the right parent. Empty only for a VHD whose parent id is null (a raw parent).
    pub ids: Vec<ImageId>,
    /// Where to look, in the order the format asks for.
    pub hints: Vec<PathHint>,
}

impl ParentLink {
    /// Whether an image that is `id` is the parent this link names.
    #[must_use]
    pub fn accepts(&self, id: ImageId) -> bool {
        self.ids.contains(&id)
    }
}

/// The paths to write into a child for its parent. At least one must be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentPaths {
    /// Relative to the child's directory, Windows separators: `.\parent.vhdx`.
    pub relative: Option<String>,
    /// Absolute Windows path: `D:\VMs\parent.vhdx`, with or without the prefix `\\?\`.
    pub absolute: Option<String>,
}

/// Everything a child needs to name its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewParent {
    /// The parent's identity now.
    pub id: ImageId,
    /// Where it is.
    pub paths: ParentPaths,
    /// The parent file's modification time in seconds since 2000-01-01 UTC, or 0 (VHD only).
    pub timestamp: u32,
}

/// A child's link as its file holds it, kept to be put back: identities, every path in its own encoding, their order.
/// Opaque; it fits images of the format it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedLink(pub(crate) Vec<u8>);
