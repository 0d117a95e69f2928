//! libFuzzer's entry to the body `crash_schedule`.
//!
//! Owns: nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_fuzz::body("crash_schedule")(data));
