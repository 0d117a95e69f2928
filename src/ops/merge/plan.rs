//! What a merge would do.
//!
//! Owns: the plan and the refusals that rest on it. Must not know: how the merge is carried out.

use super::{MergeOptions, Siblings, Span, siblings};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image};
use crate::link::DiskKind;
use crate::ops::transfer::Transfer;
use crate::units::MIB;
use std::path::PathBuf;

/// File space kept free beyond what the plan counts: tables, footers, logs.
const SPACE_MARGIN: u64 = 4 * MIB;

/// One file of a plan.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PlannedFile {
    /// Its depth; the leaf is 1.
    pub depth: usize,
    /// Its path, where it has one.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub path: Option<PathBuf>,
    /// Its virtual size in bytes.
    pub virtual_size: u64,
}

/// What a merge would do; sizes in bytes.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MergePlan {
    /// The format of the chain.
    pub format: Format,
    /// The files whose contents move, nearest the leaf first.
    pub merged: Vec<PlannedFile>,
    /// The file that takes them.
    pub target: PlannedFile,
    /// Whether the target is fixed, dynamic or differencing.
    pub target_kind: DiskKind,
    /// The file that will be pointed at the target.
    pub relinked: Option<PlannedFile>,
    /// The target's virtual size afterwards.
    pub new_virtual_size: u64,
    /// Data to copy.
    pub data_bytes: u64,
    /// Of that, data that lies elsewhere in the file system's blocks than it will in the target: it is copied even where
    /// the file system could share its blocks (a reflink).
    pub shifted_bytes: u64,
    /// Ranges to make zero.
    pub zero_bytes: u64,
    /// The most the target file may grow.
    pub space_needed: u64,
    /// What its file system has free; unknown for storages that are not files.
    pub space_available: Option<u64>,
    /// Other images that stand on a file that changes.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub siblings: Vec<PathBuf>,
    /// The merged files will be deleted.
    pub delete: bool,
}

impl MergePlan {
    /// Whether the merge would start, as far as the plan can tell.
    ///
    /// # Errors
    /// `Refused` for siblings under [`Siblings::Refuse`]; `NoSpace`.
    pub fn require_startable(&self, policy: Siblings) -> Result<()> {
        siblings::require_none(&self.siblings, policy).map_err(|error| self.blame(error))?;
        match self.space_available {
            Some(free) if free < self.space_needed.saturating_add(SPACE_MARGIN) => Err(self
                .blame(Error::new(
                    ErrorKind::NoSpace,
                    format_args!(
                        "not enough space: the merge may need {} bytes and the file system has {free} free",
                        self.space_needed.saturating_add(SPACE_MARGIN)
                    ),
                ))
                .with_hint("free some space, or move the target to a larger file system; nothing was written")),
            _ => Ok(()),
        }
    }

    fn blame(&self, error: Error) -> Error {
        match &self.target.path {
            Some(path) => error.with_path(path),
            None => error,
        }
    }
}

/// A virtual machine that was saved expects its disk as it left it (VHD 1.0 forbids changes meanwhile).
fn refuse_saved_states(chain: &Chain, span: Span) -> Result<()> {
    for layer in chain.layers().get(span.affected()).unwrap_or_default() {
        if matches!(layer.image(), Image::Vhd(image) if image.saved_state()) {
            return Err(layer
                .blame(Error::new(ErrorKind::Refused, "a saved state of a virtual machine depends on this disk"))
                .with_hint("start that machine and shut it down, or discard its saved state, and merge then"));
        }
    }
    Ok(())
}

/// The plan for `span` of `chain`.
pub(super) fn make(chain: &Chain, span: Span, options: &MergeOptions) -> Result<MergePlan> {
    let layers = chain.layers();
    refuse_saved_states(chain, span)?;
    let describe = |index: usize| PlannedFile {
        depth: index + 1,
        path: layers[index].path().map(PathBuf::from),
        virtual_size: layers[index].image().virtual_size(),
    };
    let target = &layers[span.target];
    let image = target.image();
    let transfer = Transfer {
        layers: &layers[span.source..span.target],
        root: image.kind() != DiskKind::Differencing,
        fresh: false,
        scan_zeros: false,
        skip: 0,
        compare: 0,
        inside: false,
    };
    let new_size = layers[span.source].image().virtual_size();
    let cost = transfer.cost(image.sink_view()).map_err(|error| target.blame(error))?;
    let growth = new_size.saturating_sub(image.virtual_size());
    let table = match image.kind() {
        DiskKind::Fixed => growth,
        // A table entry of at most eight bytes per block of at least 4 KiB, doubled while it moves.
        DiskKind::Dynamic | DiskKind::Differencing => growth / image.block_size().map_or(4096, u64::from).max(1) * 16,
    };
    let space_available = target.file().and_then(|file| file.available_space().ok());
    Ok(MergePlan {
        format: image.format(),
        merged: (span.source..span.target).map(describe).collect(),
        target: describe(span.target),
        target_kind: image.kind(),
        relinked: span.relink.then(|| describe(span.source - 1)),
        new_virtual_size: new_size,
        data_bytes: cost.data,
        shifted_bytes: cost.shifted,
        zero_bytes: cost.zeros,
        space_needed: cost.space.saturating_add(table),
        space_available,
        siblings: siblings::find(chain, span, options)?,
        delete: options.delete,
    })
}
