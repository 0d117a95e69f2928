//! libFuzzer's entry to the body `write_vs_model`.
//!
//! Owns: nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_fuzz::body("write_vs_model")(data));
