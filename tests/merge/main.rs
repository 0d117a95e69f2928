//! Random chains against a plain model: merged, mapped, compared.

#[path = "../support/chains.rs"]
mod chains;
mod points;
mod property;
mod rules;
