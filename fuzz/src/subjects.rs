//! The sound images that inputs damage.
//!
//! Owns: making each of them once.

use crate::images::{self, Subject};
use std::sync::LazyLock;

/// Fixed, dynamic, and differencing over a dynamic one.
pub(crate) static VHD: LazyLock<Vec<Subject>> =
    LazyLock::new(|| vec![images::vhd_dynamic(), images::vhd_differencing(), images::vhd_fixed()]);

/// Dynamic, differencing over a dynamic one, fixed, and one whose log waits to be replayed.
pub(crate) static VHDX: LazyLock<Vec<Subject>> = LazyLock::new(|| {
    vec![images::vhdx_dynamic(), images::vhdx_differencing(), images::vhdx_fixed(), images::vhdx_dirty_log()]
});
