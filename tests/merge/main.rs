//! Random chains against a plain model: merged, mapped, compared, compacted.

#[path = "../support/chains.rs"]
mod chains;
mod compact;
mod points;
mod property;
mod rules;
#[path = "../support/mod.rs"]
mod support;
