//! `vhdkit set`.
//!
//! Owns: how ids are written, and how the result reads. Must not know: how an image or its children are changed.

use crate::Session;
use crate::commands::info::{Fields, name};
use crate::output::{self, Failure};
use crate::size;
use clap::{ArgGroup, Args};
use std::path::PathBuf;
use vhdkit::Guid;
use vhdkit::ops::{self, SetOptions, SetReport};

const EXAMPLES: &str = "\
Children know a VHD by its unique id, and a VHDX by an id that changes with everything that belongs to its disk. When
there are children beside the image or in --search DIR the change is refused; --relink points them at the image again.
Interrupted, run it again with --relink: it finishes, by a note .NAME.vhdkit-set beside a VHD. The name of the program
that made the file stays.

Examples:
    vhdkit set copy.vhdx --disk-id new                      so that a copy can be attached beside the original
    vhdkit set disk.vhdx --physical-sector-size 512
    vhdkit set base.vhdx --disk-id new --relink --search /srv/vms
    vhdkit set copy.vhd --unique-id new --dry-run
    vhdkit set disk.vhd --unique-id 7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4";

/// The arguments of `set`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("what").required(true).multiple(true).args(["disk_id", "physical_sector_size", "unique_id", "relink"])))]
pub(crate) struct SetArgs {
    /// The image
    image: PathBuf,
    /// VHDX: the virtual disk's id ("page 83 data"), or `new` for a random one
    #[arg(long, value_name = "GUID|new", value_parser = id)]
    disk_id: Option<NewId>,
    /// VHDX: 512 or 4096, at least the logical sector size
    #[arg(long, value_name = "SIZE", value_parser = size::parse_u32)]
    physical_sector_size: Option<u32>,
    /// VHD: the unique id (its bytes in the order they are shown), or `new` for a random one
    #[arg(long, value_name = "GUID|new", value_parser = id)]
    unique_id: Option<NewId>,
    #[command(flatten)]
    children: ChildArgs,
    /// Show what would be changed and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// What becomes of the images that stand on one that changes.
#[derive(Clone, Debug, Args)]
pub(crate) struct ChildArgs {
    /// Point children at the image again when they would lose it; also finishes an interrupted change
    #[arg(long)]
    relink: bool,
    /// Look for children in DIR and everything below it too; repeatable
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
}

impl ChildArgs {
    /// The options with these.
    pub(crate) fn apply(&self, options: SetOptions) -> SetOptions {
        self.search.iter().fold(options.relink(self.relink), SetOptions::search)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewId {
    Fresh,
    Is(Guid),
}

fn id(text: &str) -> Result<NewId, String> {
    if text == "new" { Ok(NewId::Fresh) } else { guid(text).map(NewId::Is) }
}

/// A GUID as people write it, with or without braces.
pub(crate) fn guid(text: &str) -> Result<Guid, String> {
    text.parse().map_err(|_| "not a GUID: write it like 7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4".to_owned())
}

/// Does it.
///
/// # Errors
/// Those of changing the image.
pub(crate) fn run(args: &SetArgs, session: &Session) -> Result<(), Failure> {
    let mut options = args.children.apply(SetOptions::new()).dry_run(args.dry_run);
    options = match args.disk_id {
        Some(NewId::Fresh) => options.fresh_disk_id(),
        Some(NewId::Is(id)) => options.disk_id(id),
        None => options,
    };
    options = match args.unique_id {
        Some(NewId::Fresh) => options.fresh_unique_id(),
        Some(NewId::Is(id)) => options.unique_id(id.into_bytes()),
        None => options,
    };
    if let Some(bytes) = args.physical_sector_size {
        options = options.physical_sector_size(bytes);
    }
    let report = ops::set(&args.image, &options)?;
    show(&report, (args.json, args.dry_run), session)
}

/// Prints what was changed.
///
/// # Errors
/// Of standard output.
pub(crate) fn show(report: &SetReport, (json, dry_run): (bool, bool), session: &Session) -> Result<(), Failure> {
    if json {
        return output::print_json(report);
    }
    let mut fields = Fields::default();
    fields.add("image", name(report.path.as_deref()));
    for change in &report.changes {
        fields.add("changed", format_args!("{}: {change}", change.what));
    }
    for child in &report.relinked {
        fields.add("relinked", child.display());
    }
    for child in &report.of_copies {
        fields.add("left alone", format_args!("{}, which stands on a copy", child.display()));
    }
    match (dry_run, report.written, report.changes.is_empty()) {
        (true, ..) => fields.add("written", "no, this was a dry run"),
        (false, false, _) => fields.add("written", "no, it is like that already"),
        _ => {}
    }
    if dry_run { output::print(&fields.text()) } else { output::say(session.display, &fields.text()) }
}
