//! `vhdkit metadata`.
//!
//! Owns: its four verbs, where an item's bytes come from and go to, how the list reads. Must not know: how a file keeps
//! items.

use crate::Session;
use crate::commands::set::{ChildArgs, guid, show};
use crate::output::{self, Failure};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use vhdkit::chain::ChainOptions;
use vhdkit::ops::{self, SetOptions};
use vhdkit::vhdx::MetadataEntry;
use vhdkit::{Error, ErrorKind, Guid};

/// One byte more than an item may have is enough to know that there are too many.
const MAX_INPUT: u64 = (1 << 20) + 1;

const EXAMPLES: &str = "\
A VHDX holds up to 1024 items of users, each up to 1 MiB, by GUID. An item that belongs to the virtual disk
(--virtual-disk) is copied to children and merged with them; changing one gives the file a new id, so that children
would lose it: such a change is refused when there are any, or --relink points them at the image again.

Examples:
    vhdkit metadata list disk.vhdx
    vhdkit metadata set disk.vhdx 7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4 --text 'owner: alice'
    vhdkit metadata set disk.vhdx 7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4 < item.bin
    vhdkit metadata get disk.vhdx 7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4 > item.bin
    vhdkit metadata delete disk.vhdx 7a3c9f10-0c1e-4b6e-9d25-2f1f7f0a51c4";

/// The arguments of `metadata`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MetadataArgs {
    #[command(subcommand)]
    verb: MetadataVerb,
}

#[derive(Debug, Subcommand)]
enum MetadataVerb {
    /// Show every item: users' and the format's own
    #[command(after_help = EXAMPLES)]
    List(ListArgs),
    /// Write an item's bytes to standard output
    #[command(after_help = EXAMPLES)]
    Get(GetArgs),
    /// Make a user's item, or give it other bytes: from --text, from --from, or from standard input
    #[command(after_help = EXAMPLES)]
    Set(SetItemArgs),
    /// Remove a user's item
    #[command(after_help = EXAMPLES)]
    Delete(DeleteArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// The VHDX image
    image: PathBuf,
    /// Do not lock the file
    #[arg(long)]
    no_lock: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The VHDX image
    image: PathBuf,
    /// The item
    #[arg(value_parser = guid)]
    id: Guid,
    /// One of the format's own items, not a user's
    #[arg(long)]
    system: bool,
    /// Do not lock the file
    #[arg(long)]
    no_lock: bool,
    /// Answer in JSON, the bytes in hexadecimal
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct SetItemArgs {
    /// The VHDX image
    image: PathBuf,
    /// The item
    #[arg(value_parser = guid)]
    id: Guid,
    /// These bytes
    #[arg(long, conflicts_with = "from")]
    text: Option<String>,
    /// The bytes of this file
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The item belongs to the virtual disk, not to the file
    #[arg(long)]
    virtual_disk: bool,
    #[command(flatten)]
    edit: EditArgs,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// The VHDX image
    image: PathBuf,
    /// The item
    #[arg(value_parser = guid)]
    id: Guid,
    #[command(flatten)]
    edit: EditArgs,
}

#[derive(Debug, Args)]
struct EditArgs {
    #[command(flatten)]
    children: ChildArgs,
    /// Show what would be changed and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl MetadataArgs {
    /// Whether it only reads.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.verb, MetadataVerb::List(_) | MetadataVerb::Get(_))
    }
}

/// Does it.
///
/// # Errors
/// Those of reading and changing the image, of the input and of standard output.
pub(crate) fn run(args: &MetadataArgs, session: &Session) -> Result<(), Failure> {
    match &args.verb {
        MetadataVerb::List(args) => list(args),
        MetadataVerb::Get(args) => get(args),
        MetadataVerb::Set(args) => {
            let bytes = input(args)?;
            edit(&args.image, &args.edit, SetOptions::new().item(args.id, bytes, args.virtual_disk), session)
        }
        MetadataVerb::Delete(args) => {
            let there = ops::metadata_item(&args.image, (args.id, true), &ChainOptions::new())?;
            if there.is_none() {
                return Err(none(&args.image, args.id, false).into());
            }
            edit(&args.image, &args.edit, SetOptions::new().delete_item(args.id), session)
        }
    }
}

fn edit(image: &Path, args: &EditArgs, options: SetOptions, session: &Session) -> Result<(), Failure> {
    let report = ops::set(image, &args.children.apply(options).dry_run(args.dry_run))?;
    show(&report, (args.json, args.dry_run), session)
}

/// The bytes of the new item, one more than it may have at most.
fn input(args: &SetItemArgs) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    match (&args.text, &args.from) {
        (Some(text), _) => bytes.extend_from_slice(text.as_bytes()),
        (None, Some(path)) => {
            let failed = |error| Error::io("read the item", error).with_path(path);
            let file = File::open(path).map_err(failed)?;
            file.take(MAX_INPUT).read_to_end(&mut bytes).map_err(failed)?;
        }
        (None, None) => {
            let failed = |error| Error::io("read the item from standard input", error);
            io::stdin().lock().take(MAX_INPUT).read_to_end(&mut bytes).map_err(failed)?;
        }
    }
    Ok(bytes)
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let items = ops::metadata_items(&args.image, &ChainOptions::new().locked(!args.no_lock))?;
    if args.json {
        return output::print_json(&items);
    }
    let mut text = format!("{:<36}  {:<6}  {:<12}  {:>7}  NAME\n", "ID", "OWNER", "BELONGS TO", "BYTES");
    for item in &items {
        let owner = if item.user { "user" } else { "format" };
        let belongs = if item.virtual_disk { "virtual disk" } else { "file" };
        let line = format!("{}  {owner:<6}  {belongs:<12}  {:>7}  {}", item.id, item.length, item.name.unwrap_or(""));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    output::print(&text)
}

/// An item with its bytes, for programs.
#[derive(Serialize)]
struct WithBytes<'a> {
    #[serde(flatten)]
    entry: &'a MetadataEntry,
    hex: String,
}

fn get(args: &GetArgs) -> Result<(), Failure> {
    let options = ChainOptions::new().locked(!args.no_lock);
    let bytes = ops::metadata_item(&args.image, (args.id, !args.system), &options)?;
    let bytes = bytes.ok_or_else(|| none(&args.image, args.id, args.system))?;
    if !args.json {
        let mut out = output::raw_stdout()?;
        return Ok(out.write_all(&bytes)?);
    }
    let items = ops::metadata_items(&args.image, &options)?;
    let entry = items.iter().find(|item| item.id == args.id && item.user != args.system);
    let entry = entry.ok_or_else(|| none(&args.image, args.id, args.system))?;
    output::print_json(&WithBytes { entry, hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() })
}

fn none(image: &Path, id: Guid, system: bool) -> Error {
    let whose = if system { "of the format" } else { "of a user" };
    Error::new(ErrorKind::NotFound, format_args!("there is no item {id} {whose}"))
        .with_path(image)
        .with_hint("`vhdkit metadata list` shows them; the format's own are read with --system")
}
