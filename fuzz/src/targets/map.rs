//! What the map of one image says against what the second reader says, run by run, for asks of any offset and limit.
//!
//! Owns: when two answers are the same.

use crate::damage::damaged;
use crate::guarded::Guarded;
use crate::input::Input;
use crate::second::{SecondMap, by_copy, says_by_copy};
use crate::subjects::{VHD, VHDX};
use crate::support::spec::Answer;
use crate::views::assert_typed;
use vhdkit::chain::Layer;
use vhdkit::storage::{Access, MemoryStorage};
use vhdkit::{BlockMap, DiskKind, Extent, Source};

/// Asks at places that the input chooses.
const ASKS: usize = 16;
/// The most of a disk that is walked from its start.
const WALKED: u64 = 16 << 20;
/// The most steps of one walk.
const STEPS: usize = 20_000;

/// One of all images, damaged, its parents not looked at.
pub(super) fn body(data: &[u8]) {
    let mut input = Input::new(data);
    let subjects = [&**VHD, &**VHDX];
    let subject = subjects[input.below(2)];
    let subject = &subject[input.below(subject.len())];
    let asks: Vec<(u32, u32)> = (0..input.below(ASKS)).map(|_| (input.word(), input.word())).collect();
    let file = damaged(&mut input, subject);
    let layer = match Layer::open(Guarded::for_reading(&file), Access::Read) {
        Ok(layer) => layer,
        Err(error) => return assert_typed(&error),
    };
    let copied = layer.findings().list().iter().any(|one| says_by_copy(&one.problem));
    let read = if copied { by_copy(&file) } else { file.clone() };
    let Ok(second) = SecondMap::open(&read) else { return };
    let map = layer.image().map();
    let size = map.virtual_size();
    assert_eq!(size, second.size(), "the size of the disk");
    let differencing = layer.image().kind() == DiskKind::Differencing;
    let mut at = 0;
    for _ in 0..STEPS {
        if at >= size.min(WALKED) {
            break;
        }
        at += ask(map, &second, (at, size - at), differencing);
    }
    for (place, limit) in asks {
        let at = u64::from(place) * (size / u64::from(u32::MAX)).max(1) % size;
        ask(map, &second, (at, u64::from(limit).max(1)), differencing);
    }
    assert!(map.extent_at(size, 1).is_err(), "an answer past the end");
    parents_agree(&layer, &second, &file);
}

/// Asks both for the run at `offset`; how far the answer reaches, or past a broken block.
fn ask(map: &dyn BlockMap, second: &SecondMap, (offset, limit): (u64, u64), differencing: bool) -> u64 {
    let size = map.virtual_size();
    let extent = match map.extent_at(offset, limit) {
        Ok(extent) => extent,
        Err(error) => {
            assert_typed(&error);
            return 4096 - offset % 4096;
        }
    };
    let Extent { len, source } = extent;
    assert!(len > 0 && len <= limit && offset + len <= size, "{extent:?} at {offset:#x}, asked for {limit:#x}");
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let run = second.run(at, len - done).unwrap_or_else(|why| panic!("{source:?} at {at:#x}; the second: {why}"));
        let same = match (source, run.1) {
            (Source::Data(place), Answer::Data(other)) => place.get() + done == other,
            (Source::Zero, Answer::Zero) => true,
            (Source::Absent, Answer::Parent) => differencing,
            (Source::Absent, Answer::Zero) => !differencing,
            _ => false,
        };
        assert!(same, "{source:?} at {offset:#x} + {done:#x}; the second: {:x?}", run.1);
        done += run.0.max(1);
    }
    len
}

/// The identities a child names, held against the bytes of its file.
fn parents_agree(layer: &Layer, second: &SecondMap, file: &MemoryStorage) {
    use crate::support::spec::Layer as Spec;
    use vhdkit::ImageId;
    let link = layer.image().parent_link();
    match second.layer() {
        Spec::Vhd(image) => {
            assert_eq!(link.is_some(), image.is_differencing());
            let named = link.map_or_else(Vec::new, |link| link.ids);
            let wanted = ImageId::Vhd(image.parent_id);
            let null = image.parent_id == [0; 16];
            assert!(named.iter().all(|id| *id == wanted) && (named.is_empty() || !null), "{named:?} {wanted:?}");
        }
        Spec::Vhdx(image) => assert_eq!(link.is_some(), image.has_parent, "{:?}", file.allocated()),
        Spec::Raw(_) => {}
    }
}
