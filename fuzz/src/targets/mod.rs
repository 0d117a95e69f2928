//! The bodies of the fuzz targets.
//!
//! Owns: their names.

mod chain;
mod crash;
mod locator;
mod log;
mod map;
mod merge;
mod open;
mod repair;
mod write;

/// What is done with one input; a panic is a finding.
pub type Body = fn(&[u8]);

/// Every target: its name, as in `fuzz_targets/` and `seeds/`, and its body.
pub const TARGETS: [(&str, Body); 10] = [
    ("open_vhd", open::vhd),
    ("open_vhdx", open::vhdx),
    ("log_replay", log::replay),
    ("locator", locator::body),
    ("chain", chain::body),
    ("map_vs_model", map::body),
    ("write_vs_model", write::body),
    ("merge_vs_model", merge::body),
    ("crash_schedule", crash::body),
    ("repair", repair::body),
];

/// The body of the target `name`.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn body(name: &str) -> Body {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, body)| *body).expect("a known target")
}
