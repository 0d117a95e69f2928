//! `vhdkit check`.
//!
//! Owns: how findings read, and that serious ones end the program with 1. Must not know: what makes a finding.

use crate::args::ParentArgs;
use crate::commands::info::Fields;
use crate::output::{self, Failure};
use crate::size;
use clap::Args;
use std::fmt::Write;
use std::path::PathBuf;
use vhdkit::Severity;
use vhdkit::ops::{self, CheckOptions, CheckReport, CheckedFile, CheckedFinding};

const EXAMPLES: &str = "\
Nothing is changed. A finding is a warning (legal but worth knowing), an error (broken, the image opens) or fatal (it
cannot be opened); what `vhdkit repair` mends without losing anything is marked as repairable.

Exit codes:
    0  nothing was found, or warnings only
    1  errors or fatal findings
  and the ones of every verb when the file cannot be looked at; 4 when it is no image at all.

Examples:
    vhdkit check disk.vhd
    vhdkit check --chain leaf.vhdx                    every file of the chain and each link
    vhdkit check --deep disk.vhd                      data too, where the maps say there is none
    vhdkit check --json disk.vhd | jq '.files[].findings'";

/// The arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// The image
    image: PathBuf,
    /// Check its parents and the links between them too, and look for other images that stand on them
    #[arg(long)]
    chain: bool,
    /// Read data as well, where it can contradict the maps
    #[arg(long)]
    deep: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    /// Do not lock the files: what is found may then be a writer's work in progress
    #[arg(long)]
    no_lock: bool,
    #[command(flatten)]
    parents: ParentArgs,
}

/// Does it.
///
/// # Errors
/// Those of the check; `Found` when something serious was found.
pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let open = args.parents.options().locked(!args.no_lock);
    let report = ops::check(&args.image, &CheckOptions::new().chain(args.chain).deep(args.deep).open(open))?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    if report.worst() >= Some(Severity::Error) { Err(Failure::Found) } else { Ok(()) }
}

fn text(report: &CheckReport) -> String {
    let mut text: String = report.files.iter().map(file).collect::<Vec<_>>().join("\n");
    for sibling in &report.siblings {
        let name = output::shown(&sibling.display().to_string());
        let _ = writeln!(text, "{name} stands on a parent of this chain too");
    }
    text
}

fn file(file: &CheckedFile) -> String {
    let mut fields = Fields::default();
    fields.add("file", file.path.display());
    if let Some(summary) = file.summary {
        fields.add("virtual size", size::exact(summary.virtual_size));
        fields.add("file size", size::exact(summary.file_size));
        fields.add("allocated blocks", summary.allocated_blocks);
        fields.add("leaked space", size::exact(summary.leaked_bytes));
    } else {
        fields.add("opens", "no");
    }
    if file.findings.is_empty() {
        fields.add("findings", "none");
    }
    fields.text() + &findings(&file.findings, file.not_listed)
}

/// One finding per line, and how many more there are.
pub(crate) fn findings(list: &[CheckedFinding], not_listed: u64) -> String {
    let mut text = String::new();
    for CheckedFinding { finding, windows_name } in list {
        let severity = match finding.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Fatal => "fatal",
        };
        let _ = write!(text, "{severity}: {}", output::shown(&finding.problem.to_string()));
        if let Some(name) = windows_name {
            let _ = write!(text, " ({name})");
        }
        text.push_str(if finding.repairable { " [repairable]\n" } else { "\n" });
    }
    if not_listed > 0 {
        let _ = writeln!(text, "and {not_listed} more");
    }
    text
}
