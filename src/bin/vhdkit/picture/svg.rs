//! The picture as SVG.
//!
//! Owns: shapes and colours. Must not know: what is drawn beyond its sums.

use super::{Owner, data, name, owner, shown, summary, title};
use crate::size;
use std::fmt::Write;
use vhdkit::ops::{Strip, Strips};

/// The parts of the disk that are drawn, one pixel each.
pub(crate) const COLUMNS: usize = 960;
/// Pixels left of the strips.
const LEFT: f64 = 200.0;
/// Pixels right of them.
const RIGHT: f64 = 40.0;
/// Pixels above them.
const TOP: f64 = 92.0;
/// A strip, and the room it takes.
const HEIGHT: u32 = 26;
const PITCH: f64 = 54.0;
/// What is there at all is seen.
const LEAST: u32 = 6;
/// As narrow as a shape gets.
const THIN: f64 = 2.5;
/// Colours that people who see few colours tell apart, by depth.
const COLORS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7a00"];

const STYLE: &str = "<style>
text { font: 12px sans-serif; fill: #24292f }
.title { font-size: 16px; font-weight: bold }
.small { font-size: 11px; fill: #57606a }
.page { fill: #ffffff } .strip { fill: #eceff2 } .line { stroke: #8c959f } .mark { fill: #24292f }
.nobody { fill: #eceff2 } .merge { fill: #cf222e }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 }
.page { fill: #0d1117 } .strip, .nobody { fill: #21262d } .line { stroke: #6e7681 } .mark { fill: #e6edf3 }
}
</style>
<defs>
<pattern id=\"zero\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\"><path d=\"M0 6L6 0\" stroke=\"#8c959f\"/></pattern>
<pattern id=\"past\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\"><rect width=\"4\" height=\"4\" class=\"page\"/><circle cx=\"1\" cy=\"1\" r=\"0.7\" fill=\"#8c959f\"/></pattern>
</defs>
";

/// Draws it.
pub(crate) fn draw(strips: &Strips, image: &str) -> String {
    let rows = strips.files.len() + 1 + usize::from(strips.merge.is_some());
    let (width, height) = (LEFT + COLUMNS as f64 + RIGHT, TOP + PITCH * rows as f64 + 74.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
    );
    out += STYLE;
    let _ = writeln!(out, "<rect width=\"{width}\" height=\"{height}\" class=\"page\"/>");
    let _ = writeln!(out, "<text x=\"20\" y=\"30\" class=\"title\">{}</text>", escaped(image));
    let _ = writeln!(out, "<text x=\"20\" y=\"50\" class=\"small\">{}</text>", escaped(&title(strips)));
    axis(&mut out, strips);
    let mut drawing = Drawing { strips, out, y: TOP };
    drawing.disk();
    strips.files.iter().for_each(|file| drawing.file(file));
    drawing.merge();
    drawing.legend();
    drawing.out + "</svg>\n"
}

struct Drawing<'a> {
    strips: &'a Strips,
    out: String,
    /// The top of the next strip.
    y: f64,
}

/// A bar from the bottom of a strip up, or a piece of one.
#[derive(Clone, PartialEq)]
struct Bar {
    from: u32,
    height: u32,
    look: String,
}

impl Drawing<'_> {
    fn disk(&mut self) {
        self.label("what the disk shows", "");
        let strips = self.strips;
        self.bars(|column| {
            let range = strips.range(column);
            let (height, look) = match owner(strips, column) {
                Owner::Data(depth) => {
                    (height(shown(strips, column), range.end - range.start), format!("fill=\"{}\"", color(depth)))
                }
                Owner::Zero => (HEIGHT, "fill=\"url(#zero)\"".to_owned()),
                Owner::Nobody => (0, String::new()),
            };
            vec![Bar { from: 0, height, look }]
        });
        self.y += PITCH;
    }

    fn file(&mut self, file: &Strip) {
        self.label(&format!("{}  {}", file.depth, name(file.path.as_deref())), &summary(file));
        let (strips, color) = (self.strips, color(file.depth));
        self.bars(|column| {
            let range = strips.range(column);
            let (cell, len) = (file.cells.get(column).copied().unwrap_or_default(), range.end - range.start);
            if data(&cell) == 0 && cell.zero == 0 && range.start >= file.virtual_size {
                return vec![Bar { from: 0, height: HEIGHT, look: "fill=\"url(#past)\"".to_owned() }];
            }
            let shown = height(cell.shown, len);
            // Both are seen when both are there.
            let shown = if cell.hidden > 0 { shown.min(HEIGHT - LEAST) } else { shown };
            let hidden = height(cell.hidden, len).min(HEIGHT - shown);
            let zero = height(cell.zero, len).min(HEIGHT - shown - hidden);
            let mut bars = vec![
                Bar { from: 0, height: shown, look: format!("fill=\"{color}\"") },
                Bar { from: shown, height: hidden, look: format!("fill=\"{color}\" fill-opacity=\"0.35\"") },
                Bar { from: shown + hidden, height: zero, look: "fill=\"url(#zero)\"".to_owned() },
            ];
            if cell.partial {
                bars.push(Bar { from: HEIGHT + 1, height: 4, look: "class=\"mark\"".to_owned() });
            }
            bars
        });
        self.y += PITCH;
    }

    fn merge(&mut self) {
        let Some(merge) = &self.strips.merge else { return };
        let moves = format!("{} moves", size::human(merge.moved));
        self.label(&format!("a merge of {} into {}", merge.from, merge.to), &moves);
        let strips = self.strips;
        self.bars(|column| {
            let range = strips.range(column);
            let moved = merge.cells.get(column).copied().unwrap_or(0);
            vec![Bar { from: 0, height: height(moved, range.end - range.start), look: "class=\"merge\"".to_owned() }]
        });
        self.y += PITCH;
    }

    fn label(&mut self, name: &str, below: &str) {
        let (y, below_y) = (self.y + 12.0, self.y + 26.0);
        let mut short: String = name.chars().take(26).collect();
        if short.len() < name.len() {
            short.push('\u{2026}');
        }
        let _ = writeln!(self.out, "<text x=\"20\" y=\"{y}\">{}</text>", escaped(&short));
        let _ = writeln!(self.out, "<text x=\"20\" y=\"{below_y}\" class=\"small\">{}</text>", escaped(below));
        let (width, y) = (COLUMNS, self.y);
        let _ =
            writeln!(self.out, "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width}\" height=\"{HEIGHT}\" class=\"strip\"/>");
    }

    /// One strip's bars; neighbours that look the same are one shape.
    fn bars(&mut self, bars: impl Fn(usize) -> Vec<Bar>) {
        let columns = self.strips.columns;
        let mut first = 0;
        let mut current = bars(0);
        for column in 1..=columns {
            let next = if column < columns { bars(column) } else { Vec::new() };
            if column < columns && next == current {
                continue;
            }
            let (from, to) = (x(first, columns), x(column, columns));
            for bar in current.iter().filter(|bar| bar.height > 0) {
                let (y, width) = (self.y + f64::from(HEIGHT) - f64::from(bar.from + bar.height), (to - from).max(THIN));
                let (height, look) = (bar.height, &bar.look);
                let _ = writeln!(
                    self.out,
                    "<rect x=\"{from:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{height}\" {look}/>"
                );
            }
            (first, current) = (column, next);
        }
    }

    fn legend(&mut self) {
        let y = self.y + 8.0;
        let color = COLORS[0];
        let entries = [
            (format!("fill=\"{color}\""), "data the disk shows, in the colour of its file"),
            (format!("fill=\"{color}\" fill-opacity=\"0.35\""), "data that files above cover"),
            ("fill=\"url(#zero)\"".to_owned(), "zeros a file holds"),
            ("fill=\"url(#past)\"".to_owned(), "past the end of the file's disk"),
            ("class=\"mark\"".to_owned(), "blocks held in part"),
        ];
        let mut at = 20.0;
        for (look, words) in entries {
            let (height, down) = if look.contains("mark") { (4, 4.0) } else { (12, 0.0) };
            let (top, text, base) = (y + down, at + 20.0, y + 10.0);
            let _ = writeln!(self.out, "<rect x=\"{at}\" y=\"{top}\" width=\"14\" height=\"{height}\" {look}/>");
            let _ = writeln!(self.out, "<text x=\"{text}\" y=\"{base}\" class=\"small\">{words}</text>");
            at += 46.0 + 6.2 * words.len() as f64;
        }
        let base = y + 34.0;
        let words = "The height of a bar is how much of its part of the disk is held; little is drawn as a thin line.";
        let _ = writeln!(self.out, "<text x=\"20\" y=\"{base}\" class=\"small\">{words}</text>");
    }
}

fn axis(out: &mut String, strips: &Strips) {
    let y = TOP - 14.0;
    let end = LEFT + COLUMNS as f64;
    let _ = writeln!(out, "<path d=\"M{LEFT} {y}H{end}\" class=\"line\"/>");
    let steps = strips.columns.min(8);
    for step in 0..=steps {
        let column = strips.columns * step / steps;
        let at = if column == strips.columns { strips.virtual_size } else { strips.range(column).start };
        let label = if at == 0 { "0".to_owned() } else { size::human(at) };
        let (x, low, base) = (x(column, strips.columns), y + 5.0, y - 6.0);
        let anchor = match step {
            0 => "start",
            step if step == steps => "end",
            _ => "middle",
        };
        let _ = writeln!(out, "<path d=\"M{x:.2} {y}V{low}\" class=\"line\"/>");
        let _ =
            writeln!(out, "<text x=\"{x:.2}\" y=\"{base}\" text-anchor=\"{anchor}\" class=\"small\">{label}</text>");
    }
}

/// Where part `column` starts.
fn x(column: usize, columns: usize) -> f64 {
    LEFT + COLUMNS as f64 * column as f64 / columns as f64
}

/// The height of `bytes` of `len`.
fn height(bytes: u64, len: u64) -> u32 {
    let full = u128::from(bytes) * u128::from(HEIGHT) / u128::from(len.max(1));
    if bytes == 0 { 0 } else { u32::try_from(full).unwrap_or(HEIGHT).clamp(LEAST, HEIGHT) }
}

fn color(depth: usize) -> &'static str {
    COLORS[(depth - 1) % COLORS.len()]
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other if other.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}
