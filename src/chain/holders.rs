//! Which layers of a long chain can decide a part of the disk.
//!
//! Owns: that answer for parts of the disk, found when first asked for and kept within bounds. Must not know: what is
//! read, or why.

use super::Layer;
use crate::map::Source;
use crate::units::MIB;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

/// How long a part is: a block of the usual size.
pub(super) const PART_LEN: u64 = 2 * MIB;
/// Chains of up to this many layers are asked layer by layer.
pub(super) const SHORT_CHAIN: usize = 8;
/// Readers of different parts mostly meet in different shards.
const SHARDS: usize = 16;
/// How many layers a shard names in all its answers, at four bytes each: 4 MiB for a chain.
const MAX_NAMED: usize = 1 << 16;

/// The layers that can decide a part, nearest the leaf first.
pub(super) type Holders = Arc<[u32]>;

/// What was found out, by number of part.
#[derive(Debug, Default)]
pub(super) struct Known {
    shards: [RwLock<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    parts: HashMap<u64, Holders>,
    /// Over all of `parts`, each counted as one more.
    named: usize,
}

impl Known {
    /// The layers among `layers` that can decide something of `part`.
    pub(super) fn holders(&self, layers: &[Layer], part: u64) -> Holders {
        let shard = part.checked_rem(SHARDS as u64).and_then(|shard| self.shards.get(usize::try_from(shard).ok()?));
        let read = |shard: &RwLock<Shard>| {
            shard.read().unwrap_or_else(PoisonError::into_inner).parts.get(&part).map(Arc::clone)
        };
        if let Some(found) = shard.and_then(read) {
            return found;
        }
        let start = part.saturating_mul(PART_LEN);
        let found: Holders = find(layers, start..start.saturating_add(PART_LEN)).into();
        if let Some(shard) = shard {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            let cost = found.len().saturating_add(1);
            if shard.named.saturating_add(cost) > MAX_NAMED {
                *shard = Shard::default();
            }
            if shard.parts.insert(part, Arc::clone(&found)).is_none() {
                shard.named = shard.named.saturating_add(cost);
            }
        }
        found
    }

    /// Forgets everything: a layer is about to change.
    pub(super) fn clear(&mut self) {
        for shard in &mut self.shards {
            *shard.get_mut().unwrap_or_else(PoisonError::into_inner) = Shard::default();
        }
    }
}

/// The layers that do not leave all of `range` to the one below, down to the first that leaves nothing of it. One that
/// cannot be asked is among them: who reads what it decides is told.
fn find(layers: &[Layer], range: Range<u64>) -> Vec<u32> {
    let mut found = Vec::new();
    let len = range.end.saturating_sub(range.start);
    for (layer, index) in layers.iter().zip(0u32..) {
        let map = layer.image().map();
        // The part may reach past the end of a layer, and behind its end a layer decides.
        let whole = map.virtual_size() >= range.end;
        let extent = if whole { map.extent_at(range.start, len).ok() } else { None };
        match extent {
            Some(extent) if extent.len >= len && extent.source == Source::Absent => {}
            Some(extent) if extent.len >= len => {
                found.push(index);
                break;
            }
            _ => found.push(index),
        }
    }
    found
}
