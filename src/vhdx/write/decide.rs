//! What a write does to a block ([MS-VHDX] 2.5.1.1, the transitions).
//!
//! Owns: that decision, as a function. Must not know: how it is carried out.

use crate::link::DiskKind;
use crate::vhdx::bat::PayloadState;

/// What is wanted of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The caller has bytes for some of it; else all that is wanted is zeros.
    pub(super) data: bool,
    /// All of the block that belongs to the disk.
    pub(super) whole: bool,
}

/// What to do with the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It reads as wanted already.
    Nothing,
    /// State ZERO; its space, if it has any, becomes free.
    MakeZero,
    /// The bytes go where the block is.
    InPlace,
    /// It gets new space; `partial` when the parent still has some of its sectors.
    Allocate {
        /// PARTIALLY_PRESENT, with a bitmap.
        partial: bool,
    },
}

/// The step for a block in `state`.
///
/// Fixed disks keep their blocks: they are zeroed in place, and one that has no space gets some. UNDEFINED and UNMAPPED
/// read as zeros here, but other readers may show old contents; a block of which zeros are wanted leaves those states.
pub(super) fn decide(state: PayloadState, kind: DiskKind, asked: Asked) -> Step {
    let differencing = kind == DiskKind::Differencing;
    match state {
        PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
            let frees = asked.whole && !asked.data && kind != DiskKind::Fixed;
            if frees { Step::MakeZero } else { Step::InPlace }
        }
        PayloadState::NotPresent if differencing && asked.whole && !asked.data => Step::MakeZero,
        PayloadState::NotPresent if differencing => Step::Allocate { partial: !asked.whole },
        PayloadState::NotPresent | PayloadState::Zero if !asked.data => Step::Nothing,
        PayloadState::Undefined | PayloadState::Unmapped if !asked.data && kind != DiskKind::Fixed => Step::MakeZero,
        _ => Step::Allocate { partial: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DiskKind::{Differencing, Dynamic, Fixed};
    use PayloadState::{FullyPresent, NotPresent, PartiallyPresent, Undefined, Unmapped, Zero};

    const NEW: Step = Step::Allocate { partial: false };
    const PART: Step = Step::Allocate { partial: true };

    fn steps(state: PayloadState, kind: DiskKind) -> [Step; 4] {
        [(true, true), (true, false), (false, true), (false, false)]
            .map(|(data, whole)| decide(state, kind, Asked { data, whole }))
    }

    /// Columns: data for all of the block, data for a part, zeros for all, zeros for a part.
    #[test]
    fn the_table() {
        use Step::{InPlace, MakeZero, Nothing};
        assert_eq!(steps(NotPresent, Dynamic), [NEW, NEW, Nothing, Nothing]);
        assert_eq!(steps(NotPresent, Differencing), [NEW, PART, MakeZero, PART]);
        assert_eq!(steps(NotPresent, Fixed), [NEW, NEW, Nothing, Nothing]);
        for kind in [Dynamic, Differencing, Fixed] {
            assert_eq!(steps(Zero, kind), [NEW, NEW, Nothing, Nothing]);
        }
        for state in [Undefined, Unmapped] {
            assert_eq!(steps(state, Dynamic), [NEW, NEW, MakeZero, MakeZero]);
            assert_eq!(steps(state, Differencing), [NEW, NEW, MakeZero, MakeZero]);
            assert_eq!(steps(state, Fixed), [NEW, NEW, NEW, NEW]);
        }
        assert_eq!(steps(FullyPresent, Dynamic), [InPlace, InPlace, MakeZero, InPlace]);
        assert_eq!(steps(FullyPresent, Fixed), [InPlace; 4]);
        assert_eq!(steps(PartiallyPresent, Differencing), [InPlace, InPlace, MakeZero, InPlace]);
    }
}
