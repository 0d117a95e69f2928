//! What other programs say of the files we write.

mod vhdx;
