//! `vhdkit map`.
//!
//! Owns: how a person reads where the bytes of a disk come from. Must not know: how it is found out.

use crate::Session;
use crate::args::SourceArgs;
use crate::output::{self, Failure, JsonList};
use crate::picture::{svg, terminal};
use crate::progress::Reporter;
use crate::size;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use terminal_size::terminal_size;
use vhdkit::chain::Chain;
use vhdkit::ops::{self, ExtentState, StripOptions};
use vhdkit::{Error, ErrorKind, Watch};

/// Characters per line where there is no terminal.
const WIDTH: usize = 100;

const EXAMPLES: &str = "\
Says of each run of the disk which file of the chain decides it and why it reads as it does:
    data         the file at that depth holds its bytes, from the file offset on
    zero         the file at that depth says that it is zero
    past-end     the file at that depth ends before it, so it is zero
    unallocated  no file holds it, so it is zero

--picture draws the files of the chain as strips over the disk, and what a merge would move; --svg draws the same, finer,
for a browser.

Examples:
    vhdkit map leaf.vhdx
    vhdkit map leaf.vhdx --picture --merge 2
    vhdkit map leaf.vhdx --svg chain.svg
    vhdkit map leaf.vhdx --offset 1M --length 64K
    vhdkit map --json leaf.vhdx | jq '.extents[] | select(.depth == 1)'";

/// The arguments of `map`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MapArgs {
    /// The image; its parents are mapped too
    image: PathBuf,
    /// Where to start, in bytes of the virtual disk
    #[arg(long, default_value = "0", value_parser = size::parse)]
    offset: u64,
    /// How many bytes [default: up to the end of the disk]
    #[arg(long, value_parser = size::parse)]
    length: Option<u64>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Draw the files of the chain as strips over the disk
    #[arg(long, conflicts_with_all = ["json", "offset", "length"])]
    picture: bool,
    /// Draw them as SVG into a new file, or - for standard output
    #[arg(long, value_name = "OUT", conflicts_with_all = ["json", "offset", "length", "picture"])]
    svg: Option<PathBuf>,
    /// Draw what a merge would move: of the files down to depth N into the one below, or FROM-TO as `merge` has it
    /// [default: 1, where there is a parent]
    #[arg(long, value_name = "N|FROM-TO", value_parser = merge)]
    merge: Option<(usize, usize)>,
    /// Characters per line of the picture [default: the terminal's, or 100]
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// Whether the picture is coloured
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
    /// Replace a file that exists
    #[arg(long, requires = "svg")]
    force: bool,
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

fn merge(text: &str) -> Result<(usize, usize), String> {
    let depth = |text: &str| text.parse::<usize>().ok().filter(|&depth| (1..usize::MAX).contains(&depth));
    let depths = match text.split_once('-') {
        Some((from, to)) => depth(from).zip(depth(to)),
        None => depth(text).map(|depth| (1, depth + 1)),
    };
    depths.ok_or_else(|| "use the depth the merge ends above, as 1, or from and to, as 2-3".to_owned())
}

/// Does it.
///
/// # Errors
/// Those of opening the chain; maps that cannot be read; those of writing the picture.
pub(crate) fn run(args: &MapArgs, session: &Session) -> Result<(), Failure> {
    let chain = Chain::open(&args.image, &args.source.options())?;
    if args.picture || args.svg.is_some() {
        return draw(args, &chain, session);
    }
    let end = args.length.map_or(u64::MAX, |length| args.offset.saturating_add(length));
    if args.json { json(&chain, args.offset..end) } else { text(&chain, args.offset..end) }
}

fn draw(args: &MapArgs, chain: &Chain, session: &Session) -> Result<(), Failure> {
    let terminal = || terminal_size().map(|(width, _)| usize::from(width.0));
    let columns = match &args.svg {
        Some(_) => svg::COLUMNS,
        None => terminal::columns(args.width.or_else(terminal).unwrap_or(WIDTH)).min(ops::MAX_COLUMNS),
    };
    let depths = args.merge.or_else(|| (chain.layers().len() > 1).then_some((1, 2)));
    let options = depths.into_iter().fold(StripOptions::new(columns), |options, (from, to)| options.merge(from, to));
    let reporter = Reporter::new(session.display, false);
    let drawn = ops::strips(chain, &options, &Watch::none().observer(&reporter).cancel(&session.cancel));
    drop(reporter);
    let drawn = drawn?;
    let Some(path) = &args.svg else {
        let colors = match args.color {
            Color::Auto => {
                io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
            Color::Always => true,
            Color::Never => false,
        };
        return output::print(&terminal::draw(&drawn, colors));
    };
    let text = svg::draw(&drawn, &args.image.display().to_string());
    if path == Path::new("-") {
        return output::print(&text);
    }
    let mut open = OpenOptions::new();
    open.write(true);
    if args.force {
        open.create(true).truncate(true)
    } else {
        open.create_new(true)
    };
    let written = open.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::new(ErrorKind::Refused, "the file already exists")
            .with_path(path)
            .with_hint("choose another name, or overwrite it with --force"),
        _ => Error::io("write the picture", error).with_path(path),
    })?;
    output::say(session.display, &format!("drew {}\n", output::shown(&path.display().to_string())))
}

fn text(chain: &Chain, range: Range<u64>) -> Result<(), Failure> {
    let mut out = output::answer();
    for (layer, depth) in chain.layers().iter().zip(1..) {
        let name = layer.path().map(|path| path.display().to_string()).unwrap_or_default();
        writeln!(out, "depth {depth}  {}", output::shown(&name))?;
    }
    writeln!(out, "{:>18} {:>18}  {:<11} {:>5} {:>18}", "offset", "length", "state", "depth", "file offset")?;
    for extent in ops::map(chain, range) {
        let extent = extent?;
        let state = state(extent.state);
        let depth = extent.depth.map(|depth| depth.to_string()).unwrap_or_default();
        let at = extent.file_offset.map(|at| at.get().to_string()).unwrap_or_default();
        let line = format!("{:>18} {:>18}  {state:<11} {depth:>5} {at:>18}", extent.offset, extent.length);
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(out.flush()?)
}

fn state(state: ExtentState) -> &'static str {
    match state {
        ExtentState::Data => "data",
        ExtentState::Zero => "zero",
        ExtentState::PastEnd => "past-end",
        ExtentState::Unallocated => "unallocated",
        _ => "other",
    }
}

#[derive(Serialize)]
struct Head {
    virtual_size: u64,
    files: Vec<MappedFile>,
}

#[derive(Serialize)]
struct MappedFile {
    depth: usize,
    path: Option<String>,
    virtual_size: u64,
}

fn json(chain: &Chain, range: Range<u64>) -> Result<(), Failure> {
    let file = |(layer, depth): (&vhdkit::chain::Layer, usize)| MappedFile {
        depth,
        path: layer.path().map(|path| path.display().to_string()),
        virtual_size: layer.image().virtual_size(),
    };
    let files = chain.layers().iter().zip(1..).map(file).collect();
    let mut out = output::answer();
    let head = Head { virtual_size: chain.virtual_size(), files };
    let mut list = JsonList::start(&mut out, &head, "extents")?;
    for extent in ops::map(chain, range) {
        list.add(&extent?)?;
    }
    list.end()
}
