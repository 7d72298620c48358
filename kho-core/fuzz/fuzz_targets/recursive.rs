//! Recursive FDTs, entered by a page and by an anchor.
#![no_main]

use kho_core::recursive::{Entry, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((memory, entry)) = kho_core_fuzz::capture(input) else {
        return;
    };
    let _ = read(&memory, Entry::Page(entry.fdt.start));
    let _ = read(&memory, Entry::Anchor(entry.fdt.start));
});
