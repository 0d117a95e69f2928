//! Chains of images.
