//! VHDX images ([MS-VHDX], version 2 of the virtual hard disk format).
//!
//! Owns: everything about the format. Must not know: other formats, chains, paths.
//!
//! | module | what it owns |
//! |---|---|
//! | `raw` | the bytes of every structure |
//! | `header` | which of the two headers is current, and changing them |
//! | `log` | the ring of logged metadata updates: entries, search, replay |

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod header;
mod log;
mod raw;
