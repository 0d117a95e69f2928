//! Writing, zeroing, discarding, resizing and reopening a disk, against a vector of bytes.
//!
//! Owns: the sequence of steps, and the model of a resize.

use crate::chains::{self, apply};
use crate::damage::damaged;
use crate::guarded::Guarded;
use crate::input::Input;
use crate::second::{Second, says_by_copy};
use crate::subjects::{VHD, VHDX};
use crate::views::{self, assert_typed, first_difference};
use crate::workload::{self, assert_shows, assert_view, assert_well_formed};
use std::sync::Arc;
use vhdkit::chain::Chain;
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{ErrorKind, Findings, Format, GrowAs, Image};

/// The most steps of one input.
const STEPS: usize = 12;

/// A sound chain of ours, or an odd image that both readers read.
pub(super) fn body(data: &[u8]) {
    let mut input = Input::new(data);
    if input.one_in(4) { odd_image(&mut input) } else { own_chain(&mut input) }
}

/// Files of ours: after any steps they show what the model shows and keep every rule.
fn own_chain(input: &mut Input<'_>) {
    let spec = workload::chain(input, (1, 3));
    let built = chains::build(&spec, workload::memory);
    let (storages, mut view) = (built.storages, built.views[0].clone());
    let below = built.views.get(1).map_or(&[][..], Vec::as_slice);
    let mut chain = chains::open(&storages, Access::Write).expect("what was just made opens");
    for step in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let when = format!("after step {step}");
        match input.byte() % 8 {
            0 => chain.flush().expect("memory takes syncs"),
            1 => {
                chain.close().expect("memory takes writes");
                assert_shows(&storages, &view, &when);
                chain = chains::open(&storages, Access::Write).expect("what was closed opens");
            }
            // Dropped as a process is that ends early; a VHDX then has a log to replay.
            2 => {
                drop(chain);
                chain = chains::open(&storages, Access::Recover).expect("what was dropped opens");
            }
            3 => {
                chain.close().expect("memory takes writes");
                resize(input, (spec.format, &storages[0]), &mut view, below);
                assert_shows(&storages, &view, &when);
                chain = chains::open(&storages, Access::Write).expect("what was resized opens");
            }
            _ => {
                let edit = workload::edit(input, spec.format, view.len() as u64);
                apply(&mut chain, &mut view, &edit);
            }
        }
        assert_view(&chain, &view, &when);
    }
    chain.close().expect("memory takes writes");
    assert_shows(&storages, &view, "at the end");
    assert_well_formed(spec.format, &storages, "at the end");
}

/// Another size for the leaf, whose parent shows `below`.
fn resize(input: &mut Input<'_>, (format, leaf): (Format, &Arc<dyn Storage>), view: &mut Vec<u8>, below: &[u8]) {
    let unit = if format == Format::Vhd { 512 } else { 4096 };
    let most = if format == Format::Vhd { 160 << 10 } else { 5 << 20 };
    let size = match input.byte() % 4 {
        0 => u64::from(input.word()) % most,
        1 => view.len() as u64,
        _ => (1 + u64::from(input.short()) % (most / unit)) * unit,
    };
    let grow = if input.flag() { GrowAs::Zero } else { GrowAs::Parent };
    let mut findings = Findings::new();
    let mut image = Image::open(Arc::clone(leaf), Access::Write, &mut findings).expect("the leaf opens");
    match image.set_virtual_size(size, grow) {
        Ok(()) => {
            let old = view.len().min(size as usize);
            view.resize(size as usize, 0);
            if grow == GrowAs::Parent && below.len() > old {
                let end = below.len().min(view.len());
                view[old..end.max(old)].copy_from_slice(&below[old..end.max(old)]);
            }
        }
        Err(error) => {
            let sector = u64::from(image.logical_sector_size());
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(size == 0 || !size.is_multiple_of(sector), "refused to be {size} bytes: {error}");
        }
    }
    image.close().expect("memory takes writes");
}

/// An image that others may have made, if both readers read all of it: after writes it shows the same model to both.
fn odd_image(input: &mut Input<'_>) {
    let subjects = [&**VHD, &**VHDX][input.below(2)];
    let subject = &subjects[input.below(subjects.len())];
    let edits: Vec<u8> = (0..input.below(16) * 4).map(|_| input.byte()).collect();
    let file = damaged(&mut Input::new(&edits), subject);
    let parents = &subject.storages[1..];
    let files: Vec<MemoryStorage> = std::iter::once(&file).chain(parents).cloned().collect();
    let Ok(second) = Second::open(&files) else { return };
    if second.size() > 8 << 20 {
        return;
    }
    let Ok(mut view) = second.read(0, second.size() as usize) else { return };
    let guarded = Guarded::for_writing(&file);
    let Ok(mut chain) = views::open(guarded.clone(), parents, Access::Recover) else { return };
    if chain.layers()[0].findings().list().iter().any(|one| says_by_copy(&one.problem)) {
        return;
    }
    let mut all = vec![0; view.len()];
    if let Err(error) = chain.read_at(&mut all, 0) {
        return assert_typed(&error);
    }
    assert!(all == view, "before a write: {}", first_difference(&all, &view));
    let format = chain.leaf().image().format();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let edit = workload::edit(input, format, view.len() as u64);
        // A refused write may have been made in part; which part is not told, so the model ends here.
        if !applied(&mut chain, &mut view, &edit) {
            return;
        }
    }
    chain.close().unwrap_or_else(|error| panic!("does not close: {error}"));
    let after: Vec<MemoryStorage> = std::iter::once(guarded.contents()).chain(parents.iter().cloned()).collect();
    let storages: Vec<Arc<dyn Storage>> = after.into_iter().map(|file| Arc::new(file) as Arc<dyn Storage>).collect();
    assert_shows(&storages, &view, "after writes to an odd image");
}

/// Applies `edit` to both, if the image takes it.
fn applied(chain: &mut Chain, view: &mut [u8], edit: &chains::Edit) -> bool {
    use chains::{Edit, pattern};
    let size = view.len() as u64;
    let cut = |offset: u64, len: u64| offset.min(size)..offset.min(size).saturating_add(len).min(size);
    let (range, outcome) = match *edit {
        Edit::Write { offset, len, seed } => {
            let range = cut(offset, len);
            let bytes = pattern(range.start, range.end - range.start, seed);
            let outcome = chain.write_at(&bytes, range.start);
            view[range.start as usize..range.end as usize].copy_from_slice(&bytes);
            (range, outcome)
        }
        Edit::Zero { offset, len } | Edit::Discard { offset, len } => {
            let range = cut(offset, len);
            view[range.start as usize..range.end as usize].fill(0);
            (range.clone(), chain.zero(range))
        }
    };
    outcome.as_ref().err().into_iter().for_each(assert_typed);
    outcome.is_ok() || range.is_empty()
}
