//! The vhdkit program.
fn main() {}
