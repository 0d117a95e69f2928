//! Carrying a change out.
//!
//! Owns: the order of its writes. Must not know: how the image and its children were found.
//!
//! VHDX, when children would see the change: the id that the image is going to have goes into each child as
//! `parent_linkage2`; the image gets it, then what was asked for; each child names that id alone. A child accepts the image
//! before, between and after, and a run that finds any of this half done goes on with it.
//!
//! VHD: a child has one id for its parent. So a note of the old and the new one is made durable first, then the image
//! changes, then its children one by one, then the note goes. While the note is there the next run finishes.

use super::journal::Journal;
use super::{SetChange, SetOptions, SetReport, begun};
use crate::chain::Layer;
use crate::error::{Error, ErrorKind, Result};
use crate::guid;
use crate::image::Image;
use crate::link::ImageId;
use crate::ops::merge::CheckpointStore;
use crate::storage::Access;
use std::path::Path;

/// As [`set`](super::set), with an image and its children that are open already, over storages of the caller's own, which
/// take writes though the images were opened for reading. All of `children` must stand on the image; those that there are
/// beside them lose their parent when the change is one they see. They are closed when the layers are dropped.
///
/// # Errors
/// As [`set`](super::set); `InvalidInput` for a VHD with children when there is no [`store`](SetOptions::store).
pub fn set_image(image: &mut Layer, children: &mut [Layer], options: &SetOptions) -> Result<SetReport> {
    run(image, children, options, options.store.as_deref())
}

pub(super) fn run(
    image: &mut Layer,
    children: &mut [Layer],
    options: &SetOptions,
    store: Option<&dyn CheckpointStore>,
) -> Result<SetReport> {
    let changes = options.changes(image.image()).map_err(|error| image.blame(error))?;
    let mut report = SetReport { path: image.path().map(Path::to_path_buf), changes, ..SetReport::default() };
    for child in children.iter() {
        require_editable(child)?;
    }
    match image.image() {
        Image::Vhd(_) => vhd(image, children, (options, store), &mut report)?,
        Image::Vhdx(_) => vhdx(image, children, options, &mut report)?,
        Image::Raw(_) => {}
    }
    Ok(report)
}

/// Refuses a child that must not be written to before anything is.
fn require_editable(child: &Layer) -> Result<()> {
    match child.image() {
        Image::Vhd(image) if image.saved_state() => {
            let message = "a saved state of a virtual machine depends on this child";
            Err(child.blame(Error::new(ErrorKind::Refused, message)).with_hint("discard the saved state first"))
        }
        _ => Ok(()),
    }
}

fn vhdx(image: &mut Layer, children: &mut [Layer], options: &SetOptions, report: &mut SetReport) -> Result<()> {
    let seen = options.is_seen_by_children(image.image()).map_err(|error| image.blame(error))?;
    if report.changes.is_empty() && !children.iter().any(|child| is_half_linked(child, image)) {
        return Ok(());
    }
    let next = (seen && !children.is_empty()).then(guid::fresh);
    if let Some(next) = next {
        for child in children.iter_mut() {
            let current = image.image().id();
            edit(child, |child| match (child, current) {
                (Image::Vhdx(child), Some(ImageId::Vhdx(current))) => {
                    // One that accepts the image by its second linkage only must not lose that.
                    child.follow_parent(current)?;
                    child.set_linkage2(Some(next))
                }
                _ => Ok(()),
            })?;
        }
    }
    if !report.changes.is_empty() {
        edit(image, |image| {
            let Image::Vhdx(image) = image else { return Ok(()) };
            if let Some(next) = next {
                image.set_data_write_guid(next)?;
            }
            image.set_identity(options.disk_id, options.physical_sector_size)?;
            for item in &options.items {
                match &item.bytes {
                    Some(bytes) => image.set_metadata_item(item.id, bytes, item.virtual_disk)?,
                    None => drop(image.delete_metadata_item(item.id)?),
                }
            }
            Ok(())
        })?;
        report.written = true;
    }
    relink(image, children, report)
}

/// Whether a child waits for its link to be finished.
fn is_half_linked(child: &Layer, image: &Layer) -> bool {
    let ids = child.image().parent_link().map(|link| link.ids).unwrap_or_default();
    image.image().id().is_some_and(|id| ids != [id])
}

fn vhd(
    image: &mut Layer,
    children: &mut [Layer],
    (options, store): (&SetOptions, Option<&dyn CheckpointStore>),
    report: &mut SetReport,
) -> Result<()> {
    if let (Some(journal), Some(store)) = (begun(image, store)?, store)
        && image.image().id() == Some(ImageId::Vhd(journal.new))
    {
        relink(image, children, report)?;
        store.clear()?;
        report.written = true;
    }
    if let (Some(new), Some(ImageId::Vhd(old))) = (options.unique_id, image.image().id())
        && new != old
    {
        if !children.is_empty() {
            let none = || Error::new(ErrorKind::InvalidInput, "there is no place for the note of the change");
            let store = store.ok_or_else(|| image.blame(none()))?;
            store.save(&Journal { old, new }.encode())?;
        }
        edit(image, |image| if let Image::Vhd(image) = image { image.set_unique_id(new) } else { Ok(()) })?;
        report.written = true;
        relink(image, children, report)?;
    }
    match store {
        Some(store) if store.load()?.is_some() => store.clear(),
        _ => Ok(()),
    }
}

/// Makes every child name the image by its id and no other.
fn relink(image: &Layer, children: &mut [Layer], report: &mut SetReport) -> Result<()> {
    let Some(id) = image.image().id() else { return Ok(()) };
    for child in children {
        if is_half_linked(child, image) {
            edit(child, |child| child.follow_parent(id))?;
            report.written = true;
            report.relinked.extend(child.path().map(Path::to_path_buf));
        }
    }
    Ok(())
}

/// Opens the layer's image for writing, which it was not until here, so that a refusal changes nothing.
fn edit(layer: &mut Layer, act: impl FnOnce(&mut Image) -> Result<()>) -> Result<()> {
    layer.reopen(Access::Recover)?;
    let done = act(layer.image_mut());
    done.map_err(|error| layer.blame(error))
}

/// For messages that show a change.
impl std::fmt::Display for SetChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{} becomes {}", side(&self.old), side(&self.new))
    }
}
