//! The copier.
