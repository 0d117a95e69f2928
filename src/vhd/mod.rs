//! VHD images.
