//! Files beside an image that say that it is not whole.
//!
//! Owns: their names, and that whoever opens such an image hears of it. Must not know: who writes them, or why.

use crate::finding::{Findings, Severity};
use crate::problem::{Fault, Problem, Structure};
use std::path::{Path, PathBuf};

/// The file that stands beside the image at `path` while another disk's contents are copied into it:
/// `.NAME.vhdkit-resync`.
pub(crate) fn resync_mark(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    Some(path.with_file_name(format!(".{name}.vhdkit-resync")))
}

/// Notes that the image at `path` is the target of a resync that has not ended.
pub(crate) fn note(path: &Path, findings: &mut Findings) {
    if resync_mark(path).is_some_and(|mark| mark.exists()) {
        let found = "the target of a resync that is at work or was interrupted: it holds parts of two disks";
        let allowed = "an image that is whole; run the same `vhdkit resync` again to finish it";
        findings.note(Severity::Error, Problem::new(Structure::File, Fault::Mismatch, found, allowed));
    }
}
