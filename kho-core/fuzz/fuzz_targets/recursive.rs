//! See `targets::recursive`.
#![no_main]

use kho_core_fuzz::{budget, targets};

libfuzzer_sys::fuzz_target!(|input: &[u8]| budget::run(targets::recursive, input));
