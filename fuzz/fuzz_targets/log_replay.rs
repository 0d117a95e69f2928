//! libFuzzer's entry to the body `log_replay`.
//!
//! Owns: nothing.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhdkit_fuzz::body("log_replay")(data));
