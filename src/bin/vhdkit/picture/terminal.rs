//! The picture in a terminal.
//!
//! Owns: characters and colours. Must not know: what is drawn beyond its sums.

use super::{Owner, data, name, owner, summary, title};
use crate::size;
use std::fmt::Write;
use vhdkit::ops::{Strip, Strips};

/// Characters left of the strips.
const LABEL: usize = 20;
/// Characters right of them, at least.
const SUMMARY: usize = 12;
/// The narrowest strips that are drawn, however narrow the terminal.
const LEAST: usize = 16;
/// How many characters of a name are shown.
const NAME: usize = 15;
/// The terminal's own colours, as its theme has them, so that they are legible on light and dark ones.
const COLORS: [u8; 6] = [34, 32, 35, 36, 31, 33];
/// Its colour for what matters less.
const DIM: u8 = 90;

/// How many parts fit a terminal of `width` characters.
pub(crate) fn columns(width: usize) -> usize {
    width.saturating_sub(LABEL + SUMMARY).max(LEAST)
}

/// Draws it.
pub(crate) fn draw(strips: &Strips, colors: bool) -> String {
    let mut text = format!("{}\n\n", title(strips));
    text += &axis(strips);
    let paper = Paper { columns: strips.columns, colors };
    let disk = |column| match owner(strips, column) {
        Owner::Data(depth) => (digit(depth), Some(color(depth))),
        Owner::Zero => ('0', Some(DIM)),
        Owner::Nobody => ('\u{b7}', Some(DIM)),
    };
    paper.row(&mut text, "    disk", disk);
    text.push('\n');
    for file in &strips.files {
        let name: String = name(file.path.as_deref()).chars().take(NAME).collect();
        paper.row(&mut text, &format!("{:>3} {name}", file.depth), |column| glyph(strips, file, column));
        let _ = writeln!(text, "  {}", summary(file));
    }
    if let Some(merge) = &strips.merge {
        let label = format!("    merge {} to {}", merge.from, merge.to);
        paper.row(&mut text, &label, |column| match merge.cells.get(column) {
            Some(1..) => ('^', Some(31)),
            _ => (' ', None),
        });
        let _ = writeln!(text, "  {} moves", size::human(merge.moved));
    }
    text + "\n    disk: the depth whose data it shows most; 0 zeros, \u{b7} in no file\n    \
            \u{2588}\u{2593}\u{2592}\u{2591} data, from all of a part to a little of it; \u{259a} a block of it is held in part\n    \
            \u{2581} data that files above cover; 0 zeros the file holds; - past the end of the file's disk\n"
}

fn color(depth: usize) -> u8 {
    COLORS[(depth - 1) % COLORS.len()]
}

fn digit(depth: usize) -> char {
    u32::try_from(depth).ok().and_then(|depth| char::from_digit(depth, 36)).unwrap_or('+')
}

/// The character for what `file` holds of a part, and its colour.
fn glyph(strips: &Strips, file: &Strip, column: usize) -> (char, Option<u8>) {
    let (range, cell) = (strips.range(column), file.cells.get(column).copied().unwrap_or_default());
    let eighths = u128::from(data(&cell)) * 8 / u128::from((range.end - range.start).max(1));
    let shade = match eighths {
        7.. => '\u{2588}',
        4..=6 => '\u{2593}',
        1..=3 => '\u{2592}',
        0 => '\u{2591}',
    };
    match (cell.shown, cell.hidden, cell.zero) {
        (1.., _, _) => (if cell.partial { '\u{259a}' } else { shade }, Some(color(file.depth))),
        (0, 1.., _) => ('\u{2581}', Some(DIM)),
        (0, 0, 1..) => ('0', Some(DIM)),
        (0, 0, 0) if range.start >= file.virtual_size => ('-', Some(DIM)),
        (0, 0, 0) => (' ', None),
    }
}

/// How strips are drawn.
struct Paper {
    columns: usize,
    colors: bool,
}

impl Paper {
    /// One strip, without the end of the line.
    fn row(&self, text: &mut String, label: &str, cell: impl Fn(usize) -> (char, Option<u8>)) {
        let _ = write!(text, "{label:<LABEL$}");
        let mut current = None;
        for (character, color) in (0..self.columns).map(cell) {
            let color = color.filter(|_| self.colors);
            if color != current {
                match color {
                    Some(code) => {
                        let _ = write!(text, "\u{1b}[{code}m");
                    }
                    None => text.push_str("\u{1b}[0m"),
                }
                current = color;
            }
            text.push(character);
        }
        if current.is_some() {
            text.push_str("\u{1b}[0m");
        }
    }
}

/// Where on the disk the strips start, end, and are in between.
fn axis(strips: &Strips) -> String {
    let columns = strips.columns;
    let (mut labels, mut ticks) = (String::new(), String::new());
    let steps = (columns / 16).clamp(1, 4);
    for column in 0..=columns {
        let step = (0..=steps).find(|step| columns * step / steps == column);
        ticks.push(match step {
            Some(0) => '\u{251c}',
            Some(step) if step == steps => '\u{2524}',
            Some(_) => '\u{253c}',
            None => '\u{2500}',
        });
        if step.is_some() {
            let at = if column == columns { strips.virtual_size } else { strips.range(column).start };
            let label = if at == 0 { "0".to_owned() } else { size::human(at) };
            let pad = column.saturating_sub(labels.chars().count());
            let _ = write!(labels, "{:pad$}{label}", "");
        }
    }
    format!("{:LABEL$}{labels}\n{:LABEL$}{ticks}\n", "", "")
}
