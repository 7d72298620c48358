//! The search for handovers in memory.
#![no_main]

use kho_core::SliceMemory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = kho_core::find::find(&SliceMemory::new(0, input));
});
