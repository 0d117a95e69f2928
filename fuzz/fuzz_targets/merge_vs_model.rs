//! libFuzzer's entry to the body `merge_vs_model`.
//!
//! Owns: nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_fuzz::body("merge_vs_model")(data));
