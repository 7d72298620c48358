//! The reader, and everything that is made of its result.
#![no_main]

use kho_core::diff::{Side, diff};
use kho_core::{Handover, Owners, PageSet, Region};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((memory, entry)) = kho_core_fuzz::capture(input) else {
        return;
    };
    let Ok(handover) = Handover::read(&memory, entry.fdt, entry.scratch) else {
        return;
    };
    let owners = Owners::of(&handover);
    assert!(owners.iter().is_sorted_by_key(|record| record.region.start));
    let set = PageSet::of(&handover.map, Region::new(0, 4 << 30));
    assert!(set.len() <= 1 << 20);
    let _ = kho_core::tree::tree(&handover, 8).to_string();
    let side = Side {
        handover: &handover,
        memory: Some(&memory),
    };
    let _ = diff(side, side);
    let _ = handover.blueprint(&memory);
});
