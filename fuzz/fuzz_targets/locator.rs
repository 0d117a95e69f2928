//! libFuzzer's entry to the body `locator`.
//!
//! Owns: nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_fuzz::body("locator")(data));
