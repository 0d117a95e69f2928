//! What other programs say of the files we write.

mod qemu_locks;
#[path = "../support/mod.rs"]
mod support;
mod vhd;
mod vhdx;
mod vhdx_repair;
mod vhdx_write;
