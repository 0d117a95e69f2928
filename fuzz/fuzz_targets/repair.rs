//! libFuzzer's entry to the body `repair`.
//!
//! Owns: nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_fuzz::body("repair")(data));
