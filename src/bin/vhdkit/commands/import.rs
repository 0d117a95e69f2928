//! `vhdkit export`, `import`, `adopt` and `imports`.
//!
//! Owns: their options, and how what was found and what is missing reads. Must not know: how a file is found or linked.

use crate::Session;
use crate::args::PlaceArgs;
use crate::output::{self, Failure};
use clap::{Args, Subcommand, ValueEnum};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use vhdkit::ops::{self, ExportOptions, FoundBy, ImportOptions, ImportOutcome, ImportReport, Manifest, NotImported};
use vhdkit::{Error, ErrorKind, Watch};

const EXPORT_EXAMPLES: &str = "\
The manifest describes every file of the chains: its name, its Windows path or its path here, its identity, its parent.
It goes with the files to another machine, where `vhdkit import` finds them again by it.

Examples:
    vhdkit export leaf.vhdx -o chain.json
    vhdkit export c.vhdx d.vhdx --hash --map 'D:\\VMs=/srv/vms' -o machine.json
    vhdkit export --schema                                  the JSON Schema of a manifest";

const IMPORT_EXAMPLES: &str = "\
Each file is looked for where --map says that its Windows path leads, by its name, and by identity below DIR and
--search. Its identity must fit wherever it is; of several files that have it none is taken unless --file says which.
Links that do not lead to their parents are written anew; `vhdkit imports cleanup` puts them back as they were.
Exit code 1: some files are missing. Exit code 5: all are.

Examples:
    vhdkit import machine.json /srv/vms
    vhdkit import machine.json /srv/vms --verify hash --map 'D:\\VMs=/srv/vms'
    vhdkit import machine.json /srv/vms --read-only --json  what is there; nothing is written
    vhdkit adopt /srv/vms                                   without a manifest: whatever images lie there";

const IMPORTS_EXAMPLES: &str = "\
Examples:
    vhdkit imports list --registry /srv/vms/.vhdkit
    vhdkit imports cleanup 0d3c6b... --registry /srv/vms/.vhdkit";

/// The arguments of `export`.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct ExportArgs {
    /// The leaves of the chains
    #[arg(required_unless_present = "schema")]
    leaves: Vec<PathBuf>,
    /// Write the manifest to FILE instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Take the SHA-256 of every file too, which reads all of them
    #[arg(long)]
    hash: bool,
    /// Replace a FILE that exists
    #[arg(long)]
    force: bool,
    /// Print the JSON Schema of a manifest instead
    #[arg(long, conflicts_with_all = ["leaves", "output"])]
    schema: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

/// The arguments of `import`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(crate) struct ImportArgs {
    /// The manifest
    manifest: PathBuf,
    /// The directory the files lie in
    directory: PathBuf,
    /// What to compare besides identities
    #[arg(long, value_enum, value_name = "WHAT")]
    verify: Option<Verify>,
    #[command(flatten)]
    common: Common,
}

/// The arguments of `adopt`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(crate) struct AdoptArgs {
    /// The directory the files lie in
    directory: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Verify {
    /// The SHA-256 of each file that the manifest has one of
    Hash,
}

#[derive(Debug, Args)]
struct Common {
    /// Of several files that have one identity, this one is meant; repeatable
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Write nothing: say what is there, and with which parents named each chain opens
    #[arg(long)]
    read_only: bool,
    /// Give every disk an identity of its own once all files are there; this cannot be taken back
    #[arg(long, conflicts_with = "read_only")]
    fresh_ids: bool,
    /// Where the record of what was written is kept [default: .vhdkit in the directory]
    #[arg(long, value_name = "DIR")]
    registry: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

impl Common {
    fn options(&self) -> ImportOptions {
        let options =
            ImportOptions::new().read_only(self.read_only).fresh_ids(self.fresh_ids).chain(self.places.options());
        let options = self.places.search.iter().fold(options, ImportOptions::search);
        let options = self.files.iter().fold(options, ImportOptions::file);
        match &self.registry {
            Some(directory) => options.registry(directory),
            None => options,
        }
    }

    fn answer(&self, report: &ImportReport, directory: &Path, session: &Session) -> Result<(), Failure> {
        if self.json {
            output::print_json(report)?;
        } else {
            output::say(session.display, &text(report))?;
        }
        match report.outcome {
            ImportOutcome::Complete => Ok(()),
            ImportOutcome::SomeNotImported => Err(Failure::Found),
            ImportOutcome::NoneImported => {
                let error = Error::new(ErrorKind::ParentNotFound, "none of the files could be imported");
                let hint = "look further down with --search DIR, say where Windows directories are with --map, or \
                            name files with --file";
                Err(error.with_path(directory).with_hint(hint).into())
            }
        }
    }
}

/// The arguments of `imports`.
#[derive(Debug, Args)]
#[command(after_help = IMPORTS_EXAMPLES)]
pub(crate) struct ImportsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the imports whose writes can be taken back
    List(Where),
    /// Put every link that an import wrote back as it was
    Cleanup {
        /// Which import
        id: String,
        #[command(flatten)]
        at: Where,
    },
}

#[derive(Debug, Args)]
struct Where {
    /// Where the records are
    #[arg(long, value_name = "DIR", default_value = ".vhdkit")]
    registry: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Does `export`.
///
/// # Errors
/// Those of opening the chains and of writing the manifest.
pub(crate) fn export(args: &ExportArgs, session: &Session) -> Result<(), Failure> {
    if args.schema {
        return output::print(Manifest::SCHEMA);
    }
    let options = ExportOptions::new().hash(args.hash).chain(args.places.options());
    let manifest = ops::export(&args.leaves, &options, &Watch::none().cancel(&session.cancel))?;
    match &args.output {
        None => output::print(&(manifest.to_json() + "\n")),
        Some(path) => {
            manifest.write(path, args.force)?;
            let count = manifest.files.len();
            output::say(session.display, &format!("wrote {}: {count} files\n", path.display()))
        }
    }
}

/// Does `import`.
///
/// # Errors
/// Those of reading the manifest and the directory; that nothing was found.
pub(crate) fn import(args: &ImportArgs, session: &Session) -> Result<(), Failure> {
    let manifest = Manifest::read(&args.manifest)?;
    let options = args.common.options().verify_hash(args.verify.is_some());
    let report = ops::import(&manifest, &args.directory, &options, &Watch::none().cancel(&session.cancel))?;
    args.common.answer(&report, &args.directory, session)
}

/// Does `adopt`.
///
/// # Errors
/// Those of reading the directory; that nothing was found.
pub(crate) fn adopt(args: &AdoptArgs, session: &Session) -> Result<(), Failure> {
    let watch = Watch::none().cancel(&session.cancel);
    let report = ops::adopt(&args.directory, &args.common.options(), &watch)?;
    args.common.answer(&report, &args.directory, session)
}

/// Does `imports`.
///
/// # Errors
/// Those of reading records and of writing links.
pub(crate) fn imports(args: &ImportsArgs, session: &Session) -> Result<(), Failure> {
    match &args.action {
        Action::List(at) => {
            let ids = ops::imports(&at.registry)?;
            if at.json {
                return output::print_json(&ids);
            }
            output::print(&if ids.is_empty() { "no imports\n".to_owned() } else { ids.join("\n") + "\n" })
        }
        Action::Cleanup { id, at } => {
            let report = ops::cleanup_import(&at.registry, id)?;
            if at.json {
                return output::print_json(&report);
            }
            let mut text = format!("{} links are as they were\n", report.restored.len());
            for path in &report.left {
                let path = path.display().to_string();
                let _ = writeln!(text, "left alone, gone or written again since: {}", output::shown(&path));
            }
            output::say(session.display, &text)
        }
    }
}

fn text(report: &ImportReport) -> String {
    let mut text = String::new();
    let shown = |path: &Path| output::shown(&path.display().to_string());
    for one in &report.imported {
        let how = match one.found_by {
            FoundBy::Given => "named",
            FoundBy::Path => "in its place",
            FoundBy::Name => "by name",
            FoundBy::Identity => "by identity",
        };
        let linked = if one.relinked { ", linked anew" } else { "" };
        let _ = writeln!(text, "{}: {} ({how}{linked})", output::shown(&one.name), shown(&one.path));
    }
    for missing in &report.not_imported {
        let _ = writeln!(text, "{}: {}", output::shown(&missing.name), output::shown(&why(&missing.why)));
    }
    for chain in &report.chains {
        let _ = writeln!(text, "opens: {} with {} below it", shown(&chain.leaf), chain.parents.len());
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {}", output::shown(warning));
    }
    if let Some(id) = &report.id {
        let _ = writeln!(text, "`vhdkit imports cleanup {id}` puts the links back as they were");
    }
    text
}

fn why(reason: &NotImported) -> String {
    let list = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    match reason {
        NotImported::Missing => "missing".to_owned(),
        NotImported::Ambiguous { candidates } => format!("several files have its identity: {}", list(candidates)),
        NotImported::OtherIdentity { path, .. } => {
            format!("{} is another image, or was written to since", path.display())
        }
        NotImported::OtherBytes { path } => format!("{} has other bytes than when it was exported", path.display()),
        NotImported::Broken { path, error } => format!("{} does not open: {error}", path.display()),
        NotImported::ParentNotImported { candidates, .. } if candidates.is_empty() => {
            "there, but its parent is not".to_owned()
        }
        NotImported::ParentNotImported { candidates, .. } => {
            format!("there, but several files have its parent's identity: {}", list(candidates))
        }
        NotImported::NotRelinked { path, error } => format!("{} could not be linked: {error}", path.display()),
    }
}
