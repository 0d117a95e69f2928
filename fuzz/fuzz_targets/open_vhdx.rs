//! libFuzzer's entry to the body `open_vhdx`.
//!
//! Owns: nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_fuzz::body("open_vhdx")(data));
