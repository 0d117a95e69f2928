//! The parts of a file that a survey of its blocks looks at by themselves.
//!
//! Owns: how a file is cut. Must not know: what is looked for.

use super::Owned;
use std::ops::Range;

/// The longest part of the first `limit` bytes between `owned`, which are sorted by their start.
pub(super) fn clear_of(owned: &[Owned], limit: u64) -> Range<u64> {
    let mut longest = 0..0u64;
    let mut reach = 0u64;
    let ends = owned.iter().map(|owned| owned.range.clone()).chain(std::iter::once(limit..limit));
    for range in ends {
        let between = reach..range.start.min(limit).max(reach);
        if between.end.saturating_sub(between.start) > longest.end.saturating_sub(longest.start) {
            longest = between;
        }
        reach = reach.max(range.end);
    }
    longest
}

/// Runs of parts with as many blocks as can be kept, or single parts with more.
pub(super) fn windows(parts: &[u32], keep: usize) -> Vec<Range<u32>> {
    let mut windows: Vec<Range<u32>> = Vec::new();
    let mut held = 0usize;
    for (part, &count) in (0u32..).zip(parts) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match windows.last_mut() {
            Some(window) if held.saturating_add(count) <= keep => window.end = part.saturating_add(1),
            _ => {
                windows.push(part..part.saturating_add(1));
                held = 0;
            }
        }
        held = held.saturating_add(count);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_all_parts_and_hold_what_fits() {
        let parts = [9, 1, 8, 1, 0, 14, 0];
        assert_eq!(windows(&parts, 9), [0..1, 1..3, 3..5, 5..6, 6..7]);
        assert_eq!(windows(&[0; 65_536], 9).first(), Some(&(0..65_536)));
    }
}
