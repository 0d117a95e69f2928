//! What a disk shows, in windows, and how two of those are compared.
//!
//! Owns: where a disk is looked at, and what an error of vhdkit must say.

use crate::second::Second;
use std::ops::Range;
use std::sync::Arc;
use vhdkit::chain::{Chain, Layer};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{Error, ErrorKind};

/// What is read at once.
const WINDOW: u64 = 4096;
/// Disks up to this size are looked at everywhere, one window of each step.
const WHOLE: u64 = 8 << 20;
/// How many windows a larger disk gets.
const SPREAD: u64 = 40;

/// The answer to each window of a disk: its bytes, or why there are none.
pub(crate) type Windows = Vec<(u64, vhdkit::Result<Vec<u8>>)>;

/// Where a disk of `size` bytes is looked at: all of a small one; both ends and the middle of each 256 KiB of one of a
/// few MiB; a spread of the others.
fn windows(size: u64) -> Vec<Range<u64>> {
    let mut starts: Vec<u64> = if size <= 256 << 10 {
        (0..size).step_by(WINDOW as usize).collect()
    } else if size <= WHOLE {
        let step = 256 << 10;
        (0..size).step_by(step).flat_map(|at| [at, at + 132 * 1024, at + step as u64 - WINDOW]).collect()
    } else {
        (0..SPREAD).map(|part| size / SPREAD / WINDOW * WINDOW * part).collect()
    };
    starts.extend([size.saturating_sub(WINDOW), size.saturating_sub(size.min(512))]);
    starts.retain(|&at| at < size);
    starts.sort_unstable();
    starts.dedup();
    starts.into_iter().map(|start| start..size.min(start + WINDOW)).collect()
}

/// The chain of `leaf` over `parents`.
pub(crate) fn open(leaf: Arc<dyn Storage>, parents: &[MemoryStorage], access: Access) -> vhdkit::Result<Chain> {
    let mut layers = vec![Layer::open(leaf, access)?];
    for parent in parents {
        layers.push(Layer::open(Arc::new(parent.clone()), Access::Read)?);
    }
    Chain::from_layers(layers)
}

/// What `chain` shows.
pub(crate) fn read(chain: &Chain) -> Windows {
    let read = |window: Range<u64>| {
        let mut bytes = vec![0xEE; (window.end - window.start) as usize];
        (window.start, chain.read_at(&mut bytes, window.start).map(|()| bytes))
    };
    windows(chain.virtual_size()).into_iter().map(read).collect()
}

/// Holds `seen` against the second reader over the same files: where both have an answer it is the same one, and what
/// vhdkit reads the other does not call damaged.
pub(crate) fn compare(seen: &Windows, size: u64, second: &Second) {
    assert_eq!(size, second.size(), "the size of the disk");
    for (at, answer) in seen {
        let Ok(bytes) = answer else { continue };
        match second.read(*at, bytes.len()) {
            Ok(other) => assert!(other == *bytes, "other bytes at {at:#x}: {}", first_difference(bytes, &other)),
            Err(why) => panic!("bytes at {at:#x}, where the second reader finds: {why}"),
        }
    }
}

/// In words, where two runs of bytes part.
pub(crate) fn first_difference(one: &[u8], other: &[u8]) -> String {
    let at = one.iter().zip(other).position(|(a, b)| a != b).unwrap_or(one.len().min(other.len()));
    format!(
        "{} and {} bytes, different from {at:#x} on: {:x?}, {:x?}",
        one.len(),
        other.len(),
        one.get(at),
        other.get(at)
    )
}

/// An error over a damaged image says what is wrong, and where. Nothing here can fail in the system below.
pub(crate) fn assert_typed(error: &Error) {
    let says = error.problem().is_some()
        || matches!(
            error.kind(),
            ErrorKind::UnknownFormat
                | ErrorKind::Unsupported
                | ErrorKind::Refused
                | ErrorKind::Chain
                | ErrorKind::ParentNotFound
                | ErrorKind::ParentMismatch
        );
    assert!(says, "an error that names no structure: {error:?}");
}
