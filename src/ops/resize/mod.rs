//! Giving a disk another size.
//!
//! Owns: the request, its refusals, the report. Must not know: how a format grows or shrinks, what a partition table
//! looks like.

mod plan;

use super::children;
use crate::chain::{Chain, ChainOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{GptMove, TableKind};
use crate::image::Format;
use crate::link::{DiskKind, GrowAs};
use crate::storage::Access;
use crate::watch::Watch;
use plan::{MINIMUM_UNIT, Plan};
use std::path::{Path, PathBuf};

/// The size a disk is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Size(u64),
    Grow(u64),
    Shrink(u64),
    Minimum,
}

/// How to resize. A size is in bytes, a multiple of the logical sector size, within what the format can hold.
#[derive(Clone, Debug)]
pub struct ResizeOptions {
    target: Target,
    allow_data_loss: bool,
    fix_gpt: bool,
    dry_run: bool,
    search: Vec<PathBuf>,
    chain: ChainOptions,
}

impl ResizeOptions {
    fn with(target: Target) -> Self {
        Self {
            target,
            allow_data_loss: false,
            fix_gpt: false,
            dry_run: false,
            search: Vec::new(),
            chain: ChainOptions::default(),
        }
    }

    /// To exactly `bytes`.
    #[must_use]
    pub fn size(bytes: u64) -> Self {
        Self::with(Target::Size(bytes))
    }

    /// By `bytes` more than it has when it is resized. 0 only [fixes](Self::fix_gpt) what is on it.
    #[must_use]
    pub fn grow_by(bytes: u64) -> Self {
        Self::with(Target::Grow(bytes))
    }

    /// By `bytes` less.
    #[must_use]
    pub fn shrink_by(bytes: u64) -> Self {
        Self::with(Target::Shrink(bytes))
    }

    /// To the end of the last partition, and room for the backup of a GUID partition table behind it, rounded up to 4 KiB.
    #[must_use]
    pub fn to_minimum() -> Self {
        Self::with(Target::Minimum)
    }

    /// Whether partitions and data past the new end may go (default: the request is refused).
    #[must_use]
    pub fn allow_data_loss(mut self, allow: bool) -> Self {
        self.allow_data_loss = allow;
        self
    }

    /// Whether a GUID partition table is made to fit the new size: its backup moves to the new end (default: nothing on
    /// the disk changes).
    #[must_use]
    pub fn fix_gpt(mut self, fix: bool) -> Self {
        self.fix_gpt = fix;
        self
    }

    /// Check everything and write nothing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// A further directory to look for children in, and below it; the image's own always is.
    #[must_use]
    pub fn search(mut self, directory: impl Into<PathBuf>) -> Self {
        self.search.push(directory.into());
        self
    }

    /// How the chain is opened.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }
}

/// Something that lies past the new end of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Truncated {
    /// What it is: "partition 2".
    pub what: String,
    /// Where it starts, in bytes.
    pub start: u64,
    /// Where it ends; what is past the new end is cut off.
    pub end: u64,
}

/// How a GUID partition table stands after a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum GptState {
    /// It fits the disk.
    Fits,
    /// It was, or would be, made to fit.
    Fixed,
    /// It does not fit: its backup is not at the end of the disk, or cut off.
    Stale,
}

/// What [`resize`] did, or with [`dry_run`](ResizeOptions::dry_run) would do; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ResizeReport {
    /// The image.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub path: Option<PathBuf>,
    /// Its format.
    pub format: Format,
    /// Fixed, dynamic or differencing.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub kind: DiskKind,
    /// The disk's size before.
    pub old_size: u64,
    /// The disk's size afterwards.
    pub new_size: u64,
    /// The file's length before.
    pub old_file_size: u64,
    /// The file's length afterwards; before, when nothing was written.
    pub new_file_size: u64,
    /// What divides the disk.
    pub partition_table: TableKind,
    /// The smallest size that cuts off no partition, in whole 4 KiB; none without a table that says.
    pub minimum_size: Option<u64>,
    /// What is cut off.
    pub truncated: Vec<Truncated>,
    /// How the GUID partition table stands, when there is one.
    pub gpt: Option<GptState>,
    /// What is odd about the partition table.
    pub notes: Vec<String>,
    /// Whether it was written.
    pub written: bool,
}

/// Gives the disk of the image at `path` another size. A new range reads as zeros, also over a longer parent; what is cut
/// off is gone and never shows again. After a crash the disk has the old size or the new one; running it again finishes,
/// where the size was not given as a difference.
///
/// # Errors
/// `Refused` when partitions, or without a partition table any data, lie past the new end and that is not allowed
/// (ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA); when no minimum can be told (ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE) or
/// the disk is not larger (ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE); when other images stand on this one; for a
/// saved state. `InvalidInput` for a size the format does not have; `InUse`; those of opening the chain. Nothing was written
/// then. What the storage answers while it is written; `Cancelled`.
pub fn resize(path: impl AsRef<Path>, options: &ResizeOptions, watch: &Watch<'_>) -> Result<ResizeReport> {
    let path = path.as_ref();
    let opening = options.chain.clone();
    let mut chain = Chain::open(path, &if options.dry_run { opening } else { opening.hold(0..1) })?;
    if let Some(id) = chain.leaf().image().id() {
        let children = children::of_file(path, &[id], &options.search)?;
        let hint = "resize the leaf of the chain, or merge the children first";
        children::refuse(&children, hint).map_err(|error| chain.leaf().blame(error))?;
    }
    let report = resize_chain(&mut chain, options, watch)?;
    chain.close()?;
    Ok(report)
}

/// As [`resize`], of the leaf of a chain that is open already, over storages of the caller's own. Nobody looks for children.
/// The leaf's storage must take writes though its image was opened for reading; it is closed when the chain is
/// [closed](Chain::close).
///
/// # Errors
/// As [`resize`].
pub fn resize_chain(chain: &mut Chain, options: &ResizeOptions, watch: &Watch<'_>) -> Result<ResizeReport> {
    let leaf = chain.leaf();
    let plan = Plan::make(chain, options, watch).map_err(|error| leaf.blame(error))?;
    let mut report = ResizeReport {
        path: leaf.path().map(Path::to_path_buf),
        format: leaf.image().format(),
        kind: leaf.image().kind(),
        old_size: plan.old,
        new_size: plan.new,
        old_file_size: leaf.file_size()?,
        new_file_size: leaf.file_size()?,
        partition_table: plan.table,
        minimum_size: plan.minimum,
        truncated: plan.truncated.clone(),
        gpt: plan.gpt_state(options.fix_gpt),
        notes: plan.notes.clone(),
        written: false,
    };
    let refused = plan.require_smaller().map_err(|error| leaf.blame(error));
    if options.dry_run {
        return refused.map(|()| report);
    }
    watch.check()?;
    if plan.new <= plan.old || refused.is_ok() {
        // The same size too: a run that was interrupted may have left something to finish.
        carry_out(chain, &plan)?;
    }
    refused?;
    report.new_file_size = chain.leaf().file_size()?;
    report.written = true;
    Ok(report)
}

/// A table moves while the disk has both places: after growing, before shrinking.
fn carry_out(chain: &mut Chain, plan: &Plan) -> Result<()> {
    let parent = chain.layers().get(1).map(|parent| parent.image().virtual_size());
    // Past the end of its parent a disk reads as zeros anyway.
    let grow = match parent {
        Some(size) if size > plan.old => GrowAs::ZeroBelow(size),
        _ => GrowAs::Parent,
    };
    chain.reopen(0, Access::Recover)?;
    if plan.new <= plan.old {
        move_table(chain, &plan.moved)?;
    }
    let layer = chain.layer_mut(0)?;
    let done = layer.image_mut().set_virtual_size(plan.new, grow);
    done.map_err(|error| layer.blame(error))?;
    if plan.new > plan.old {
        move_table(chain, &plan.moved)?;
        zero(chain, plan)?;
    }
    Ok(())
}

/// Writes a table that fits, each step durable before the next.
fn move_table(chain: &mut Chain, moved: &GptMove) -> Result<()> {
    let steps: [&[(u64, Vec<u8>)]; 4] =
        [&moved.backup, moved.entries.as_slice(), moved.header.as_slice(), moved.protective.as_slice()];
    for patches in steps {
        for (offset, bytes) in patches {
            chain.write_at(bytes, *offset)?;
        }
        if !patches.is_empty() {
            chain.flush()?;
        }
    }
    Ok(())
}

/// Takes the former backup away: it lies in the middle of the disk now.
fn zero(chain: &mut Chain, plan: &Plan) -> Result<()> {
    let former = plan.moved.former.clone();
    if plan.moved.is_empty() || former.is_empty() {
        return Ok(());
    }
    chain.zero(former)?;
    chain.flush()
}

/// The size that `target` means for a disk of `old` bytes of which `minimum` are needed.
fn wanted(target: Target, old: u64, minimum: Option<u64>) -> Result<u64> {
    let no_such = |message: &str| Error::new(ErrorKind::InvalidInput, message);
    match target {
        Target::Size(size) => Ok(size),
        Target::Grow(bytes) => old.checked_add(bytes).ok_or_else(|| no_such("no disk can be as large")),
        Target::Shrink(bytes) => {
            old.checked_sub(bytes).ok_or_else(|| no_such("the disk is smaller than what is to be taken away"))
        }
        Target::Minimum => minimum.map(|size| size.max(MINIMUM_UNIT)).ok_or_else(|| {
            Error::new(ErrorKind::Refused, "no partition table says how much of the disk is needed")
                .with_windows_name("ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE")
                .with_hint("name the size; data past it is looked for before anything is cut off")
        }),
    }
}
