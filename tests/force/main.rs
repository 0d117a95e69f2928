//! Interruption by force: the real program and the real library on real files, stopped, killed, starved of space and
//! started twice.

mod changes;
mod compact;
mod copies;
mod endings;
mod faults;
mod full;
mod jobs;
mod kills;
mod lab;
mod locks;
mod program;
mod readme;
mod relations;
mod replicas;
mod signals;
#[path = "../support/mod.rs"]
mod support;
