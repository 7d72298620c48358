//! The FDT reader, and the walk over what it accepts.
#![no_main]

use kho_core::fdt::{Fdt, Node};
use libfuzzer_sys::fuzz_target;

fn walk(node: &Node<'_, '_>) -> usize {
    node.compatible();
    node.properties().len() + node.children().map(|child| walk(&child)).sum::<usize>()
}

fuzz_target!(|input: &[u8]| {
    if let Ok(fdt) = Fdt::parse(input) {
        walk(&fdt.root());
    }
});
