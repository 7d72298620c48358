//! Cuts a fixture out of an image of RAM that begins at physical address 0: the pages that the reader touches.
//! `cut IMAGE OUTPUT FDT_ADDRESS FDT_SIZE SCRATCH_ADDRESS SCRATCH_SIZE`, numbers in hexadecimal.

#[path = "../tests/support/mod.rs"]
mod support;

use kho_core::{Handover, KhoData, Region, SliceMemory};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, output, numbers @ ..] = arguments.as_slice() else {
        return Err("expected two files".into());
    };
    let parse = |text: &String| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let numbers: Vec<u64> = numbers.iter().map(parse).collect::<Result<_, _>>()?;
    let [fdt, fdt_size, scratch, scratch_size] = numbers[..] else {
        return Err("expected four numbers".into());
    };
    let entry = KhoData {
        fdt: Region::new(fdt, fdt_size),
        scratch: Region::new(scratch, scratch_size),
    };
    let memory = support::Recorder::new(SliceMemory::new(0, std::fs::read(image)?));
    Handover::read(&memory, entry.fdt, entry.scratch)?;
    std::fs::write(output, memory.fixture(entry))?;
    Ok(())
}
