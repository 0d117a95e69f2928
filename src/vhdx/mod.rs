//! VHDX images ([MS-VHDX], version 2 of the virtual hard disk format).
//!
//! Owns: everything about the format. Must not know: other formats, chains, paths.
//!
//! | module | what it owns |
//! |---|---|
//! | `raw` | the bytes of every structure |
//! | `header` | which of the two headers is current, and changing them |
//! | `region` | where BAT, metadata and foreign regions lie |
//! | `metadata`, `locator` | the disk's properties, and the link to its parent |
//! | `bat` | the arithmetic of the block allocation table |
//! | `image` | opening a file; what an open image knows |
//! | `extents` | which bytes of the file hold a virtual range |
//! | `create` | new files |
//! | `log` | the ring of logged metadata updates: entries, search, replay |
//! | `txn` | transactions: the one way metadata changes after creation |
//! | `session` | first change to clean close: ids, log session, stock of space |
//! | `space` | which MiB of the file are free |
//! | `write` | new contents: reserve and publish |
//! | `survey` | what every entry of the table breaks, and who owns which MiB |
//! | `check`, `repair` | the rules that take reading every map; what would mend a file |
//! | `salvage` | making up what a damaged file lacks, to read what is left |
//! | `saved` | links kept to be put back |
//! | `items`, `edit` | what may be changed in the metadata; where its bytes go |
//! | `resize` | the virtual size |
//! | `pack` | a file no longer than its blocks |

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod bat;
mod check;
mod create;
mod edit;
mod extents;
mod header;
mod image;
mod items;
mod locator;
mod log;
mod metadata;
mod pack;
mod raw;
mod region;
mod repair;
mod resize;
mod salvage;
mod saved;
mod session;
mod space;
mod survey;
mod sweep;
mod txn;
mod write;

pub use create::VhdxCreate;
pub use image::Vhdx;
pub use items::MetadataEntry;

use crate::error::{Error, Result};
use crate::finding::Findings;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::Storage;
use crate::units::FileOffset;
use std::io;

/// Fills `bytes` from a structure of the file; a file that ends too early is a fatal finding about that structure.
fn read_structure(
    storage: &dyn Storage,
    bytes: &mut [u8],
    (structure, at): (Structure, FileOffset),
    findings: &mut Findings,
) -> Result<()> {
    storage.read_exact_at(bytes, at.get()).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let allowed = format!("{} bytes", bytes.len());
            findings.fatal(Problem::new(structure, Fault::Truncated, "end of file", allowed).at(at))
        } else {
            Error::io(format_args!("read the {}", structure.name()), error).with_offset(at)
        }
    })
}
