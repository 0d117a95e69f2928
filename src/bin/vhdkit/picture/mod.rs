//! A chain as a picture: its files as strips over the disk.
//!
//! Owns: what both drawings share. Must not know: how the sums are made (the library does).

pub(crate) mod svg;
pub(crate) mod terminal;

use crate::output;
use crate::size;
use std::path::Path;
use vhdkit::ops::{Cell, Strip, Strips};

/// Who shows most of one part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The file at this depth, with its data.
    Data(usize),
    /// Nobody's data; a file says that it is zero.
    Zero,
    /// No file says anything.
    Nobody,
}

fn owner(strips: &Strips, column: usize) -> Owner {
    let cells = || strips.files.iter().filter_map(|file| Some((file.depth, file.cells.get(column)?)));
    // Of equals the one nearer the leaf.
    let most = cells().filter(|(_, cell)| cell.shown > 0).min_by_key(|(_, cell)| u64::MAX - cell.shown);
    match most {
        Some((depth, _)) => Owner::Data(depth),
        None if cells().any(|(_, cell)| cell.zero > 0) => Owner::Zero,
        None => Owner::Nobody,
    }
}

/// Data that the disk shows in one part, of all files.
fn shown(strips: &Strips, column: usize) -> u64 {
    strips.files.iter().filter_map(|file| file.cells.get(column)).map(|cell| cell.shown).sum()
}

fn data(cell: &Cell) -> u64 {
    cell.shown + cell.hidden
}

fn name(path: Option<&Path>) -> String {
    let name = path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    output::shown(&name.unwrap_or_default())
}

/// `held`, and how much of it is in blocks that leave the rest to the parent.
fn summary(file: &Strip) -> String {
    let mut text = size::human(file.held);
    match file.partial_blocks {
        0 => {}
        1 => text += ", 1 block in part",
        count => text += &format!(", {count} blocks in part"),
    }
    text
}

fn title(strips: &Strips) -> String {
    let part = strips.range(0);
    let parts = if strips.columns == 1 { "one part".to_owned() } else { format!("{} parts", strips.columns) };
    format!("a disk of {}, in {parts} of {}", size::human(strips.virtual_size), size::human(part.end - part.start))
}
