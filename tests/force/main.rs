//! Interruption by force: the real program and the real library on real files, stopped, killed, starved of space and
//! started twice.

mod jobs;
mod lab;
#[path = "../support/mod.rs"]
mod support;
