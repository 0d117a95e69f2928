//! VHDX images.
