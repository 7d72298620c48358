//! See `target::snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| harness_fuzz::target::snapshot(input));
