//! Paths in reports.
//!
//! Owns: how a path is serialised: as text, what is not UTF-8 replaced, because a report must never fail after the work
//! is done. Must not know: any report.

use serde::Serializer;
use std::path::{Path, PathBuf};

/// For a path.
pub(super) fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// For a path that may be missing.
pub(super) fn one<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.collect_str(&path.display()),
        None => serializer.serialize_none(),
    }
}

/// For a list of paths.
pub(super) fn list<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}
