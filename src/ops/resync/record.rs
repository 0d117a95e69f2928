//! What is remembered of a resync beside its target: that one is under way, and what both were when it ended.
//!
//! Owns: the two files, and when they may be believed. Must not know: what differs, how it is moved.
//!
//! A VHDX has an id that changes with its data, so what a resync left can be recognised later. A VHD has none; its
//! record would have to be believed, so there is none.

use crate::chain::Chain;
use crate::error::Result;
use crate::image::Image;
use crate::ops::registry::{read_record, write_record};
use crate::storage::atomic::{remove_if_there, remove_leftovers};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// That a resync is under way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Mark {
    source: Vec<PathBuf>,
}

impl Mark {
    pub(super) fn new(source: &Chain) -> Self {
        Self { source: source.layers().iter().filter_map(|layer| layer.path().map(Path::to_path_buf)).collect() }
    }

    /// Writes the mark; durable on return.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        write_record(path, self, true)
    }

    /// Takes it away; durable on return.
    pub(super) fn remove(path: &Path) -> Result<()> {
        remove(path)
    }
}

/// What both were when they were the same.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    size: u64,
    /// DataWriteGuid of each file of the source, leaf first.
    source: Vec<String>,
    /// DataWriteGuid of each file of the target, leaf first.
    target: Vec<String>,
}

impl Record {
    fn of(source: &Chain, target: &Chain) -> Option<Self> {
        Some(Self { size: source.virtual_size(), source: ids(source)?, target: ids(target)? })
    }

    /// How many layers the source has above those that the target has the contents of already; `None` when that is not
    /// known.
    pub(super) fn newer(path: &Path, source: &Chain, target: &Chain, interrupted: bool) -> Option<usize> {
        if interrupted {
            return None;
        }
        // A record that cannot be read saves nothing and decides nothing.
        let old: Self = read_record(&place(path)?).ok()?;
        let now = Self::of(source, target)?;
        let above = now.source.len().checked_sub(old.source.len())?;
        let same = now.source.get(above..) == Some(&old.source) && now.target == old.target;
        // A disk that was resized in between shows zeros, or less, where its maps say nothing.
        let sized = source.layers().iter().take(above + 1).all(|layer| layer.image().virtual_size() == old.size);
        (same && sized && target.virtual_size() == old.size).then_some(above)
    }

    /// Remembers that the image at `path`, closed now, has the contents of `source`.
    pub(super) fn write(path: &Path, source: &Chain, target: &Chain) -> Result<()> {
        match (place(path), Self::of(source, target)) {
            (Some(place), Some(record)) => {
                // As when one is removed.
                remove_leftovers(&place);
                write_record(&place, &record, true)
            }
            _ => Ok(()),
        }
    }

    /// Forgets; durable on return.
    pub(super) fn forget(path: &Path) -> Result<()> {
        place(path).map_or(Ok(()), |place| remove(&place))
    }
}

fn ids(chain: &Chain) -> Option<Vec<String>> {
    let id = |image: &Image| match image {
        Image::Vhdx(image) => Some(image.data_write_guid().to_string()),
        _ => None,
    };
    chain.layers().iter().map(|layer| id(layer.image())).collect()
}

fn place(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    Some(path.with_file_name(format!(".{name}.vhdkit-resynced")))
}

fn remove(path: &Path) -> Result<()> {
    // Whoever resyncs into the target holds it, so what others left here is from the dead.
    remove_leftovers(path);
    remove_if_there(path, "remove the record of a resync").map(drop)
}
