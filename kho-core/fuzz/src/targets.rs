//! What each target does with an input. Inputs of `fdt`, `find` and `schemes` are raw bytes. Inputs of the others are
//! captures; missing parts are tolerated.

use kho_core::diff::{Side, diff};
use kho_core::fdt::{Fdt, Node};
use kho_core::recursive::{self, Entry};
use kho_core::schemes::{Encoded, all};
use kho_core::{
    FreeLists, Handover, KhoData, Owners, PageSet, Region, SliceMemory, SparseMemory, verify as judge,
};

/// A target: its name and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: [Target; 6] = [
    ("fdt", fdt),
    ("find", find),
    ("handover", handover),
    ("recursive", recursive),
    ("schemes", schemes),
    ("verify", verify),
];

/// First bytes of a capture.
const MAGIC: &[u8] = b"KHOPAGES";

/// Largest RAM that an input may claim, in bytes, so that code that walks over RAM ends.
const RAM: u64 = 4 << 30;

/// The FDT reader, and a walk over each FDT that it accepts.
pub fn fdt(input: &[u8]) {
    fn walk(node: &Node<'_, '_>) -> usize {
        node.compatible();
        node.properties().len() + node.children().map(|child| walk(&child)).sum::<usize>()
    }
    if let Ok(fdt) = Fdt::parse(input) {
        walk(&fdt.root());
    }
}

/// The search for handovers in memory.
pub fn find(input: &[u8]) {
    let _ = kho_core::find::find(&SliceMemory::new(0, input));
}

/// The reader, and everything that uses its result.
pub fn handover(input: &[u8]) {
    let Some((memory, handover)) = read(input) else {
        return;
    };
    let owners = Owners::of(&handover);
    assert!(owners.iter().is_sorted_by_key(|record| record.region.start));
    let set = PageSet::of(&handover.map, Region::new(0, RAM));
    assert!(set.len() <= RAM >> 12);
    let free = FreeLists::outside(&set);
    assert_eq!(free.pages() + set.len(), RAM >> 12);
    let _ = kho_core::tree::tree(&handover, 8).to_string();
    let side = Side {
        handover: &handover,
        memory: Some(&memory),
    };
    let _ = diff(side, side);
    let records = Side { memory: None, ..side };
    assert!(diff(records, records).differences.is_empty());
    let _ = handover.blueprint(&memory);
}

/// Recursive FDTs, starting from a page and from an anchor.
pub fn recursive(input: &[u8]) {
    let Some((memory, entry)) = capture(input) else {
        return;
    };
    let _ = recursive::read(&memory, Entry::Page(entry.fdt.start));
    let _ = recursive::read(&memory, Entry::Anchor(entry.fdt.start));
}

/// The decoders of all schemes.
pub fn schemes(input: &[u8]) {
    let words = input.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    let mut words: Vec<u64> = words.collect();
    let Some(root) = words.pop() else { return };
    let encoded = Encoded::from_words(words, root);
    for scheme in all() {
        let mut set = PageSet::new(Region::new(0, 1 << 30));
        let _ = scheme.decode(&encoded, &mut set);
        let free = FreeLists::outside(&set);
        assert_eq!(free.pages() + set.len(), 1 << 18);
    }
}

/// The verifier.
pub fn verify(input: &[u8]) {
    let Some((memory, handover)) = read(input) else {
        return;
    };
    let verdict = judge(&handover, &memory);
    assert!(verdict.findings.count() >= handover.findings.count());
}

/// The handover of a capture, if it has one.
fn read(input: &[u8]) -> Option<(SparseMemory, Handover)> {
    let (memory, entry) = capture(input)?;
    let handover = Handover::read(&memory, entry.fdt, entry.scratch).ok()?;
    Some((memory, handover))
}

/// Turns an input in the (unpacked) format of `tests/support/mod.rs` into memory. Missing parts are left out.
fn capture(input: &[u8]) -> Option<(SparseMemory, KhoData)> {
    let mut rest = input.strip_prefix(MAGIC)?;
    let entry = KhoData {
        fdt: region(&mut rest)?,
        scratch: region(&mut rest)?,
    };
    let mut ram = Vec::new();
    for _ in 0..number(&mut rest)?.min(16) {
        let range = region(&mut rest)?;
        let start = range.start.min(RAM);
        ram.push(Region::new(start, range.size.min(RAM - start)));
    }
    let mut memory = SparseMemory::new(ram);
    number(&mut rest)?;
    while let (Some(address), Some((page, after))) = (number(&mut rest), rest.split_first_chunk()) {
        memory.insert(address, *page);
        rest = after;
    }
    Some((memory, entry))
}

fn region(rest: &mut &[u8]) -> Option<Region> {
    Some(Region::new(number(rest)?, number(rest)?))
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}
