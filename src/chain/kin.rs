//! Files of Hyper-V that lie beside disks and are none.
//!
//! Owns: what is said to somebody who takes one for a disk. Must not know: what is in them, which is not published.

use crate::error::{Error, ErrorKind};
use std::path::Path;

/// The failure to open the file at `path`, with what it probably is, by its name.
pub(super) fn explain(path: &Path, error: Error) -> Error {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
    let hint = match extension.as_str() {
        _ if error.kind() != ErrorKind::UnknownFormat => return error,
        "vhds" => {
            "a VHD Set tells which .avhdx files beside it are its disk, in a form that is not published: name those"
        }
        "rct" | "mrt" => {
            "this file tracks changes of the disk beside it, in a form that is not published: name the disk"
        }
        _ => return error,
    };
    error.with_hint(hint)
}
