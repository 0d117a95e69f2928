//! Operations over chains.
