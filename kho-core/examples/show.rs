//! Shows the handover in an image of RAM that begins at physical address 0:
//! `show IMAGE FDT_ADDRESS FDT_SIZE SCRATCH_ADDRESS SCRATCH_SIZE`, numbers in hexadecimal.

use kho_core::{Handover, Region, SliceMemory};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, numbers @ ..] = arguments.as_slice() else {
        return Err("expected an image".into());
    };
    let parse = |text: &String| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let numbers: Vec<u64> = numbers.iter().map(parse).collect::<Result<_, _>>()?;
    let [fdt, fdt_size, scratch, scratch_size] = numbers[..] else {
        return Err("expected four numbers".into());
    };
    let memory = SliceMemory::new(0, std::fs::read(image)?);
    let handover = Handover::read(
        &memory,
        Region::new(fdt, fdt_size),
        Region::new(scratch, scratch_size),
    )?;
    println!("{}", kho_core::tree::tree(&handover, kho_core::tree::LIST_LIMIT));
    Ok(())
}
