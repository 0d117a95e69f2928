//! Does this parent belong to this child?
//!
//! Owns: identity, format and sector size rules between two neighbours of a chain. Must not know: where files are.

use super::Layer;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Format, Image};
use crate::link::ParentLink;
use crate::problem::{Fault, Problem, Structure};

/// Checks that `child` may be read over `parent`.
///
/// # Errors
/// `ParentMismatch` when the identity is another, `Chain` when the two formats or sector sizes cannot be stacked.
pub(crate) fn check(child: &Layer, parent: &Layer) -> Result<()> {
    let Some(link) = child.image().parent_link() else {
        return Err(child.blame(Error::new(ErrorKind::Chain, "not a differencing image: it has no parent")));
    };
    stackable(child, parent)?;
    identity(&link, parent.image(), &parent.name()).map_err(|error| child.blame(error))
}

/// Checks that `child` could be read over `parent`, whoever it is.
///
/// # Errors
/// `Chain` when the two formats or sector sizes cannot be stacked.
pub(crate) fn stackable(child: &Layer, parent: &Layer) -> Result<()> {
    let (parent, parent_name) = (parent.image(), parent.name());
    let (above, below) = (child.image().format(), parent.format());
    if above != below && !(above == Format::Vhd && below == Format::Raw) {
        let message = format_args!("a {above} child cannot stand on the {below} parent {parent_name}").to_string();
        return Err(child
            .blame(Error::new(ErrorKind::Chain, message))
            .with_hint("convert one of them with `vhdkit convert`, so that both have the same format"));
    }
    let (above, below) = (child.image().logical_sector_size(), parent.logical_sector_size());
    if above != below {
        let message =
            format_args!("logical sectors of {above} bytes over a parent {parent_name} with {below}").to_string();
        return Err(child
            .blame(Error::new(ErrorKind::Chain, message))
            .with_windows_name("ERROR_VIRTDISK_UNSUPPORTED_DISK_SECTOR_SIZE")
            .with_hint("a child and its parent must have the same logical sector size"));
    }
    Ok(())
}

fn identity(link: &ParentLink, parent: &Image, parent_name: &str) -> Result<()> {
    match parent.id() {
        Some(id) if link.accepts(id) => Ok(()),
        // A VHD with a null parent id stands on a raw file (tapdisk); whoever opened a raw layer said it is the one.
        None if link.ids.is_empty() => Ok(()),
        id => Err(mismatch(link, &id.map_or_else(|| "no id (raw)".to_owned(), |id| id.to_string()), parent_name)),
    }
}

/// The error for a parent that is not the one `link` names.
pub(super) fn mismatch(link: &ParentLink, found: &str, parent_name: &str) -> Error {
    let wanted: Vec<String> = link.ids.iter().map(ToString::to_string).collect();
    let wanted = if wanted.is_empty() { "a raw file".to_owned() } else { wanted.join(" or ") };
    let problem = Problem::new(
        Structure::ParentLink,
        Fault::Mismatch,
        format_args!("identity {found} in {parent_name}"),
        format_args!("{wanted}, the parent this image was made over"),
    );
    Error::from_problem(ErrorKind::ParentMismatch, problem).with_hint(
        "the parent was changed or replaced after the child was made: give the right file with --parent, look for it with \
         --search DIR, or restore it; if you know that this one holds what the child was made over, `vhdkit reparent \
         --ignore-id-mismatch` takes it",
    )
}
