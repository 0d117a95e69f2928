//! `vhdkit chain`.
//!
//! Owns: how a forest is drawn. Must not know: how it was found out.

use crate::args::PlaceArgs;
use crate::commands::info::kind;
use crate::output::{self, Failure};
use crate::size;
use clap::Args;
use std::collections::HashSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use vhdkit::ops::{self, Forest, ForestImage, ForestParent, Help, LinkState};

const EXAMPLES: &str = "\
Regular files below DIR are read, symbolic links are not followed, nothing is locked or changed.
The exit code is 1 when an image does not open or an identity is there twice.

Examples:
    vhdkit chain /srv/vms
    vhdkit chain /srv/vms --map 'D:\\VMs=/srv/vms'     paths in the images that are Windows paths
    vhdkit chain /srv/vms --search /backup            parents that are elsewhere
    vhdkit chain --json /srv/vms | jq '.images[] | select(.opens | not) | .help.command'";

/// The deepest line that is drawn with its own indentation.
const MAX_INDENT: usize = 60;

/// The arguments of `chain`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChainArgs {
    /// The directory
    directory: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

/// Does it.
///
/// # Errors
/// Those of searching the directory; `Found` when something in it does not open.
pub(crate) fn run(args: &ChainArgs) -> Result<(), Failure> {
    let forest = ops::forest(&args.directory, &args.places.options())?;
    if args.json {
        output::print_json(&forest)?;
    } else {
        output::print(&Drawing { forest: &forest, text: String::new(), drawn: HashSet::new() }.text())?;
    }
    if forest.is_sound() { Ok(()) } else { Err(Failure::Found) }
}

struct Drawing<'a> {
    forest: &'a Forest,
    text: String,
    drawn: HashSet<&'a Path>,
}

/// An image that is still to be drawn: what its line begins with, and what the lines below it do.
struct Pending<'a> {
    image: &'a ForestImage,
    first: String,
    below: String,
}

impl<'a> Drawing<'a> {
    fn text(mut self) -> String {
        let forest = self.forest;
        self.line(format_args!("{}", forest.directory.display()));
        for root in forest.roots() {
            self.tree(root);
        }
        for file in &forest.broken {
            self.line(format_args!("{}  does not open", self.name(&file.path)));
            self.line(format_args!("    ! {}", file.error));
            self.help("    ", file.help.as_ref());
        }
        for duplicate in &forest.duplicates {
            self.line(format_args!("{} files have the identity {}:", duplicate.files.len(), duplicate.id));
            for file in &duplicate.files {
                self.line(format_args!("    {}", self.name(file)));
            }
        }
        for directory in &forest.skipped {
            self.line(format_args!("{}  was not searched", self.name(directory)));
        }
        if forest.images.is_empty() && forest.broken.is_empty() {
            self.line(format_args!("no images"));
        }
        self.text
    }

    /// One tree, without recursion: chains may be thousands of images long.
    fn tree(&mut self, root: &'a ForestImage) {
        let mut pending = vec![Pending { image: root, first: String::new(), below: String::new() }];
        while let Some(Pending { image, first, below }) = pending.pop() {
            self.drawn.insert(&image.path);
            self.line(format_args!("{first}{}", self.summary(image)));
            let children: Vec<&ForestImage> =
                image.children.iter().filter_map(|path| self.forest.image(path)).collect();
            let bar = if children.is_empty() { "   " } else { "│  " };
            self.notes(&format!("{below}{bar}"), image);
            let last = children.len().saturating_sub(1);
            for (at, child) in children.into_iter().enumerate().rev() {
                if self.drawn.contains(child.path.as_path()) {
                    continue;
                }
                let (corner, rest) = if at == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                let room = below.chars().count() < MAX_INDENT;
                let under = if room { format!("{below}{rest}") } else { below.clone() };
                pending.push(Pending { image: child, first: format!("{below}{corner}"), below: under });
            }
        }
    }

    fn summary(&self, image: &ForestImage) -> String {
        let mut text = format!("{}  {}, {}", self.name(&image.path), image.format, kind(image.kind));
        let _ = write!(text, ", {}", size::human(image.virtual_size));
        if image.leaf && image.parent.is_some() {
            text.push_str(", leaf");
        }
        text
    }

    /// What is wrong with an image, and the command that would help.
    fn notes(&mut self, indent: &str, image: &ForestImage) {
        if let Some(parent) = &image.parent {
            let note = self.note(parent);
            if !note.is_empty() {
                self.line(format_args!("{indent}! {note}"));
            } else if !image.opens {
                self.line(format_args!("{indent}! does not open: a link below it does not hold"));
            } else if let Some(path) = parent.path.as_ref().filter(|path| self.forest.image(path).is_none()) {
                self.line(format_args!("{indent}on {}", path.display()));
            }
            for candidate in &parent.candidates {
                self.line(format_args!("{indent}    {}", self.name(candidate)));
            }
        }
        self.help(indent, image.help.as_ref());
    }

    fn note(&self, parent: &ForestParent) -> String {
        let named = parent.named.as_deref().unwrap_or("no path");
        let right = parent.path.as_deref().map(|path| self.name(path)).unwrap_or_default();
        let wrong = parent.wrong.as_deref().map(|path| self.name(path)).unwrap_or_default();
        match parent.state {
            LinkState::Linked => String::new(),
            LinkState::Moved => format!("its parent is {right}, but it names {named}"),
            LinkState::WrongPath => format!("its parent is {right}, but its path leads to {wrong}, another image"),
            LinkState::Mismatch => format!("its parent {wrong} was changed or replaced: the identity is another"),
            LinkState::Broken => format!("its parent {wrong} does not open"),
            LinkState::Missing => format!("its parent is missing: it names {named}"),
            LinkState::Ambiguous => format!("several files could be its parent; it names {named}"),
            LinkState::Unstackable => format!("its parent {right} has sectors of another size"),
            LinkState::Circular => "its parents lead back to it".to_owned(),
            LinkState::Raw => format!("it stands on a raw file, which cannot be recognised; it names {named}"),
            _ => "its link to its parent does not hold".to_owned(),
        }
    }

    fn help(&mut self, indent: &str, help: Option<&Help>) {
        if let Some(help) = help {
            self.line(format_args!("{indent}> {}", help.command));
            self.line(format_args!("{indent}  {}", help.when));
        }
    }

    /// A path, from the directory on where it lies below it.
    fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.forest.directory).unwrap_or(path).display().to_string()
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        let text = text.to_string();
        self.text.push_str(&output::shown(text.trim_end()));
        self.text.push('\n');
    }
}
