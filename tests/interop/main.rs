//! What other programs say of the files we write.

mod qemu_locks;
mod vhdx;
