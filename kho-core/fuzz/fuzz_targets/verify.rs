//! The verifier.
#![no_main]

use kho_core::{Handover, verify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((memory, entry)) = kho_core_fuzz::capture(input) else {
        return;
    };
    let Ok(handover) = Handover::read(&memory, entry.fdt, entry.scratch) else {
        return;
    };
    let verdict = verify(&handover, &memory);
    assert!(verdict.findings.count() >= handover.findings.count());
});
