//! See `vmm_fuzz::registers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Err(fault) = vmm_fuzz::registers::run(input) {
        panic!("{fault}");
    }
});
