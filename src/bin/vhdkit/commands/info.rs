//! `vhdkit info`.
//!
//! Owns: how a person reads what an image is. Must not know: how it is found out.

use crate::args::SourceArgs;
use crate::output::{self, Failure};
use crate::size;
use clap::Args;
use std::fmt::{Display, Write};
use std::path::{Path, PathBuf};
use vhdkit::ops::{self, Info, LogState, ParentInfo};
use vhdkit::{DiskKind, Severity};

const EXAMPLES: &str = "\
Examples:
    vhdkit info disk.vhdx
    vhdkit info --chain leaf.vhdx                     every file of the chain, leaf first
    vhdkit info --chain --parents under=/vms leaf.vhdx
    vhdkit info --json disk.vhd | jq .virtual_size";

/// The arguments of `info`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InfoArgs {
    /// The image
    image: PathBuf,
    /// Show every file of its chain, leaf first
    #[arg(long)]
    chain: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// Does it.
///
/// # Errors
/// Those of opening the image, with `--chain` also its parents.
pub(crate) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let info = ops::info(&args.image, &args.source.options(), args.chain)?;
    if args.json { output::print_json(&info) } else { output::print(&text(&info)) }
}

fn text(info: &Info) -> String {
    let mut fields = Fields::default();
    fields.add("file", name(info.path.as_deref()));
    fields.add("format", format_args!("{}, {}", info.format, kind(info.kind)));
    fields.add("virtual size", size::exact(info.virtual_size));
    fields.add("file size", size::exact(info.file_size));
    if let Some(block) = info.block_size {
        fields.add("block size", size::exact(block.into()));
        if let Some(allocated) = info.allocated_blocks {
            let all = info.virtual_size.div_ceil(u64::from(block).max(1));
            fields.add("allocated", format_args!("{allocated} of {all} blocks"));
        }
    }
    let (logical, physical) = (info.logical_sector_size, info.physical_sector_size);
    fields.add("sectors", format_args!("{logical} bytes logical, {physical} bytes physical"));
    fields.add_some("creator", info.creator.as_ref());
    fields.add_some("id", info.id.as_ref());
    fields.add_some("data write guid", info.data_write_guid.as_ref());
    match info.log {
        Some(LogState::Clean) => fields.add("log", "clean"),
        Some(LogState::Dirty) => fields.add("log", "dirty: updates wait in it, and are shown here as applied"),
        None => {}
    }
    if let Some(parent) = &info.parent {
        add_parent(&mut fields, parent);
    }
    if info.findings.is_empty() {
        fields.add("findings", "none");
    }
    for finding in &info.findings {
        let repair = if finding.repairable { " (repairable)" } else { "" };
        fields.add("finding", format_args!("{}: {}{repair}", severity(finding.severity), finding.problem));
    }
    let mut text = fields.text();
    if !info.chain.is_empty() {
        text.push('\n');
        text.push_str(&chain_table(info));
    }
    text
}

fn add_parent(fields: &mut Fields, parent: &ParentInfo) {
    fields.add("parent", parent.path.as_deref().unwrap_or("named by no path"));
    fields.add_some("parent identity", parent.linkage.as_ref());
    match (&parent.found, &parent.error) {
        (Some(found), _) => fields.add("parent found", found.display()),
        (None, Some(error)) => fields.add("parent found", format_args!("no: {error}")),
        (None, None) => fields.add("parent found", "no"),
    }
}

/// The files of the chain, leaf first, and under the table what is odd about each but the leaf, said of above.
fn chain_table(info: &Info) -> String {
    let mut rows = vec![["depth", "type", "virtual size", "file size", "allocated", "file"].map(str::to_owned)];
    let mut notes = String::new();
    for link in &info.chain {
        let info = &link.info;
        let allocated = match (info.allocated_blocks, info.block_size) {
            (Some(blocks), Some(block)) => size::human(blocks.saturating_mul(block.into())),
            _ => "all".to_owned(),
        };
        rows.push([
            link.depth.to_string(),
            kind(info.kind).to_owned(),
            size::human(info.virtual_size),
            size::human(info.file_size),
            allocated,
            name(info.path.as_deref()),
        ]);
        for finding in info.findings.iter().filter(|_| link.depth > 1) {
            let _ = writeln!(notes, "depth {}: {}: {}", link.depth, severity(finding.severity), finding.problem);
        }
    }
    table(&rows) + &notes
}

/// Rows of text in columns, numbers and sizes to the right: all but the second and the last.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = match column {
                _ if column + 1 == N => writeln!(text, "{cell}"),
                1 => write!(text, "{cell:<width$}  "),
                _ => write!(text, "{cell:>width$}  "),
            };
        }
    }
    text
}

/// Names and values, one per line, the values below one another.
#[derive(Default)]
pub(crate) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(crate) fn add(&mut self, name: &'static str, value: impl Display) {
        self.0.push((name, output::shown(&value.to_string())));
    }

    pub(crate) fn add_some(&mut self, name: &'static str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    pub(crate) fn text(&self) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        self.0.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
    }
}

/// A path, or what stands for one that is not there.
pub(crate) fn name(path: Option<&Path>) -> String {
    path.map_or_else(|| "(no file)".to_owned(), |path| path.display().to_string())
}

/// The word for a kind of disk.
pub(crate) fn kind(kind: DiskKind) -> &'static str {
    match kind {
        DiskKind::Fixed => "fixed",
        DiskKind::Dynamic => "dynamic",
        DiskKind::Differencing => "differencing",
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
        Severity::Fatal => "fatal",
    }
}
