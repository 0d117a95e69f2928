//! The program, driven as a person or a script drives it: the real binary, real files, exit codes, both outputs.

mod answers;
mod chains;
mod changing;
mod compact;
mod comparing;
mod converting;
mod landing;
mod mending;
mod merging;
mod parents;
mod real_images;
mod replicas;
mod rescuing;
mod sets;
mod signals;
#[path = "../support/mod.rs"]
mod support;
mod tool;
mod usage;
