//! What an import came to.
//!
//! Owns: its results. Must not know: how they come about.

use serde::Serialize;
use std::path::PathBuf;

/// The result in a word. A failed import takes nothing back by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportOutcome {
    /// Every file is there, and every chain opens.
    Complete,
    /// Some are.
    SomeNotImported,
    /// None is.
    NoneImported,
}

/// How a file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// The caller named it.
    Given,
    /// Its path led there: a mapped one, or its name in the directory.
    Path,
    /// It has its name, in another place.
    Name,
    /// Only its identity told.
    Identity,
}

/// A file that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// What it was called.
    pub name: String,
    /// Where it is.
    #[serde(serialize_with = "crate::ops::paths::path")]
    pub path: PathBuf,
    /// How it was found.
    pub found_by: FoundBy,
    /// Its parent.
    #[serde(serialize_with = "crate::ops::paths::one")]
    pub parent: Option<PathBuf>,
    /// Whether its link did not lead to its parent, and was written anew.
    pub relinked: bool,
}

/// Why a file is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum NotImported {
    /// No file has its identity.
    Missing,
    /// Several files have it.
    Ambiguous {
        /// All of them.
        #[serde(serialize_with = "crate::ops::paths::list")]
        candidates: Vec<PathBuf>,
    },
    /// The file in its place is another one, or was written to.
    OtherIdentity {
        /// That file.
        #[serde(serialize_with = "crate::ops::paths::path")]
        path: PathBuf,
        /// Its identity.
        found: Option<String>,
    },
    /// The right file has other bytes than when it was exported.
    OtherBytes {
        /// That file.
        #[serde(serialize_with = "crate::ops::paths::path")]
        path: PathBuf,
    },
    /// The file by its name does not open.
    Broken {
        /// That file.
        #[serde(serialize_with = "crate::ops::paths::path")]
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// It is there, and its parent is not.
    ParentNotImported {
        /// The file.
        #[serde(serialize_with = "crate::ops::paths::path")]
        path: PathBuf,
        /// The identity of the parent, as the child names it.
        parent: Option<String>,
        /// The files that have that identity, where there are several.
        #[serde(serialize_with = "crate::ops::paths::list")]
        candidates: Vec<PathBuf>,
    },
    /// It and its parent are there, and its link could not be written.
    NotRelinked {
        /// The file.
        #[serde(serialize_with = "crate::ops::paths::path")]
        path: PathBuf,
        /// Why.
        error: String,
    },
}

/// A file that was wanted and is not imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingFile {
    /// What it was called.
    pub name: String,
    /// Where it was.
    pub original: Option<String>,
    /// Its identity.
    pub id: String,
    /// Why not.
    #[serde(flatten)]
    pub why: NotImported,
}

/// A chain that opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportedChain {
    /// Its leaf.
    #[serde(serialize_with = "crate::ops::paths::path")]
    pub leaf: PathBuf,
    /// The files below it, nearest the leaf first.
    #[serde(serialize_with = "crate::ops::paths::list")]
    pub parents: Vec<PathBuf>,
}

/// What an import came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// By which what it wrote can be taken back; `None` when it wrote nothing.
    pub id: Option<String>,
    /// The result in a word.
    pub outcome: ImportOutcome,
    /// The files that are there.
    pub imported: Vec<Imported>,
    /// Those that are not.
    pub not_imported: Vec<MissingFile>,
    /// The chains that open now, or with their parents named.
    pub chains: Vec<ImportedChain>,
    /// What to look at.
    pub warnings: Vec<String>,
}
