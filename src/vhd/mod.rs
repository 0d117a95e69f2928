//! VHD images ("conectix", VHD 1.0): where their bytes are, and where new ones may go.
//!
//! Owns: everything between a VHD's first and last byte. Must not know: other formats, paths, chains; it copies no
//! payload.
//!
//! ```text
//! raw        records as they lie in the file, the checksum
//! geometry   C/H/S
//! footer     what the disk is            locate   which footer decides
//! header     where the BAT is            locator  what a child writes down about its parent
//! bat        where blocks are            batmap   XenServer's shortcut to the bitmaps
//! store      the file, guarded, with pages cached
//! open       from bytes to a trusted image, and mending what a crash left
//! image      the open image: what it says of itself, and its block map
//! space      the end of the data, and the footers that follow it
//! create     new images
//! write      reserve and publish
//! resize     another virtual size        parent   another parent
//! check      rules over the whole file   repair   what would mend it
//! salvage    making up what a damaged file lacks, to read what is left
//! ```
//!
//! # After a crash
//!
//! A VHD has no log; the order of writes takes its place. Every change is made where nothing points yet, made durable, and
//! then shown by writing one sector (a footer, the first sector of the header, a sector of the BAT or of a bitmap). Before
//! anything overwrites the footer at the end of the file, another one is durable further out; should that be lost, the
//! copy at the start of the file leads to the same contents.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod bat;
mod batmap;
mod check;
mod create;
mod footer;
mod geometry;
mod header;
mod image;
mod locate;
mod locator;
mod open;
mod pack;
mod parent;
mod raw;
mod repair;
mod resize;
mod salvage;
mod space;
mod store;
mod write;

#[cfg(test)]
mod tests;

pub use create::VhdCreate;
pub use image::Vhd;
