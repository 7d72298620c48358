//! See `softcpu_fuzz::program`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    softcpu_fuzz::program::run(input);
});
