//! The writes of one resync.
//!
//! Owns: their order inside the target: it grows, the differences, it is cut, its identity. Must not know: names of files,
//! what is remembered beside them.

use super::find;
use super::options::{ResyncIdentity, ResyncOptions, ResyncedPair, WhatDiffers};
use crate::chain::{Chain, Layer};
use crate::copy::{Copier, Meter};
use crate::error::{Error, ErrorKind, Result};
use crate::guid;
use crate::image::Image;
use crate::link::{DiskKind, GrowAs, ImageId};
use crate::ops::transfer::{Milestones, Transfer};
use crate::storage::Access;
use crate::watch::Watch;
use std::path::PathBuf;

/// Makes the leaf of `target` show what `source` shows, over storages of any kind, moving only what differs. Where the
/// target is known to hold what `source` shows without its first so many layers, `newer`, exactly what those hold moves.
/// Nobody is told that the target holds parts of two disks meanwhile: that is for files, as [`resync`](super::resync)
/// treats them. The target is written to until it is [closed](Chain::close).
///
/// # Errors
/// `Chain` when sector sizes differ; `NoSpace` when the target is smaller and may not grow; `Refused` for a saved state;
/// then those of reading and writing, and `Cancelled`: running it again, without `newer`, finishes.
pub fn resync_chain(
    (source, newer): (&Chain, Option<usize>),
    target: &mut Chain,
    options: &ResyncOptions,
    watch: &Watch<'_>,
) -> Result<ResyncedPair> {
    require_fits(source, target, options)?;
    let mut report = ResyncedPair::between(source, target);
    let total = source.virtual_size();
    let (meter, quiet) = (Meter::new(watch, total), watch.unobserved());
    let mut pass = Pass { source, target, options };
    pass.run(newer, (&meter, &Meter::new(&quiet, total)), &mut report)?;
    (report.moved, report.offloaded, report.shared) = (meter.moved(), meter.offloaded(), meter.shared());
    report.zeroed = meter.zeroed();
    Ok(report)
}

/// What both are lets one be made what the other is.
pub(super) fn require_fits(from: &Chain, to: &Chain, options: &ResyncOptions) -> Result<()> {
    if from.logical_sector_size() != to.logical_sector_size() {
        let (one, two) = (from.logical_sector_size(), to.logical_sector_size());
        let message = format_args!("the source has sectors of {one} bytes, the target of {two}").to_string();
        return Err(Error::new(ErrorKind::Chain, message).with_hint("convert the source instead"));
    }
    if from.virtual_size() > to.virtual_size() && !options.grow {
        let (one, two) = (from.virtual_size(), to.virtual_size());
        let message = format_args!("the source has {one} bytes and the target {two}").to_string();
        return Err(Error::new(ErrorKind::NoSpace, message).with_hint("let the target grow with --grow"));
    }
    if matches!(to.leaf().image(), Image::Vhd(image) if image.saved_state()) {
        let message = "a saved state of a virtual machine depends on this disk";
        return Err(Error::new(ErrorKind::Refused, message)
            .with_hint("start the machine and shut it down, or discard its saved state"));
    }
    Ok(())
}

impl ResyncedPair {
    /// Nothing done yet.
    pub(super) fn between(source: &Chain, target: &Chain) -> Self {
        let (old, new) = (target.virtual_size(), source.virtual_size());
        Self {
            source: PathBuf::new(),
            target: PathBuf::new(),
            by: WhatDiffers::Compared,
            resumed: false,
            known_equal: 0,
            compared: 0,
            differing: 0,
            moved: 0,
            offloaded: 0,
            shared: 0,
            zeroed: 0,
            resized_from: (old != new).then_some(old),
        }
    }
}

/// One source and one target, both open.
pub(super) struct Pass<'a> {
    pub(super) source: &'a Chain,
    pub(super) target: &'a mut Chain,
    pub(super) options: &'a ResyncOptions,
}

impl Pass<'_> {
    /// Writes it; `newer` is how many layers the source has above those that the target has the contents of.
    ///
    /// # Errors
    /// Of reading and writing; `Cancelled`. What was written stays.
    pub(super) fn run(
        &mut self,
        newer: Option<usize>,
        (meter, compared): (&Meter<'_>, &Meter<'_>),
        report: &mut ResyncedPair,
    ) -> Result<()> {
        self.target.reopen(0, Access::Recover)?;
        let (old, new) = (self.target.virtual_size(), self.source.virtual_size());
        if new > old {
            self.target.layer_mut(0)?.image_mut().set_virtual_size(new, GrowAs::Zero)?;
        }
        let copier = Copier::new(self.options.jobs)?;
        match newer {
            Some(layers) => {
                report.by = WhatDiffers::Recorded;
                let transfer =
                    transfer(self.source.layers().get(..layers).unwrap_or_default(), self.target, self.options);
                let milestones = Milestones { every: u64::MAX, reached: &|_| Ok(()) };
                let sink = self.target.layer_mut(0)?.image_mut().sink();
                transfer.run(sink, &copier, meter, &milestones)?;
            }
            None => self.write_differences(&copier, (meter, compared), report)?,
        }
        if new < old {
            self.target.layer_mut(0)?.image_mut().set_virtual_size(new, GrowAs::Zero)?;
        }
        self.identify()
    }

    fn write_differences(
        &mut self,
        copier: &Copier,
        (meter, compared): (&Meter<'_>, &Meter<'_>),
        report: &mut ResyncedPair,
    ) -> Result<()> {
        let mut at = 0;
        while let Some(found) = find::next(self.source, self.target, at, (copier, compared, meter))? {
            at = found.end;
            found.count(report);
            let transfer = transfer(self.source.layers(), self.target, self.options);
            transfer.run_ranges(&found.ranges, self.target.layer_mut(0)?.image_mut().sink(), copier, meter)?;
        }
        self.target.layer_mut(0)?.image_mut().sink().flush()
    }

    fn identify(&mut self) -> Result<()> {
        let target = self.target.layer_mut(0)?.image_mut();
        match (self.options.identity, self.source.leaf().image(), target) {
            (ResyncIdentity::TakeSource, Image::Vhdx(source), Image::Vhdx(target)) => {
                target.set_disk_id(source.disk_id())
            }
            (ResyncIdentity::TakeSource, Image::Vhd(source), Image::Vhd(target)) => match source.id() {
                ImageId::Vhd(id) => target.set_unique_id(id),
                ImageId::Vhdx(_) => Ok(()),
            },
            (ResyncIdentity::Fresh, _, Image::Vhdx(target)) => target.set_disk_id(guid::fresh()),
            (ResyncIdentity::Fresh, _, Image::Vhd(target)) => target.set_unique_id(*guid::fresh().as_bytes()),
            // Formats do not share identities, and a raw disk has none.
            _ => Ok(()),
        }
    }
}

fn transfer<'a>(layers: &'a [Layer], target: &Chain, options: &ResyncOptions) -> Transfer<'a> {
    Transfer {
        layers,
        root: target.leaf().image().kind() != DiskKind::Differencing,
        fresh: false,
        scan_zeros: true,
        skip: 0,
        compare: 0,
        inside: options.require_offload,
    }
}
