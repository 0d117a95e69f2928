//! Parents that were moved, renamed, copied or changed: found, refused, pointed at anew, drawn.

mod finding;
mod forest;
mod lab;
mod reparent;
#[path = "../support/mod.rs"]
mod support;
