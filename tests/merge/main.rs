//! Merges of random chains against a plain model.

#[path = "../support/chains.rs"]
mod chains;
mod property;
mod rules;
