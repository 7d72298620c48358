//! See `targets::verify`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kho_core_fuzz::run(kho_core_fuzz::targets::verify, input));
