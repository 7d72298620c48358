//! Inputs as memory: a capture, read leniently.

use kho_core::{KhoData, Region, SparseMemory};

/// First bytes of a capture.
const MAGIC: &[u8] = b"KHOPAGES";

/// Largest RAM that an input may claim, in bytes: what walks over RAM has to come to an end.
const RAM: u64 = 4 << 30;

/// Makes memory of an input. Anything that is missing is left out.
pub fn capture(input: &[u8]) -> Option<(SparseMemory, KhoData)> {
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
