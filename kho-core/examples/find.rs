//! Finds the handovers in an image of RAM that begins at physical address 0: `find IMAGE`.

use kho_core::SliceMemory;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("expected an image")?;
    for found in kho_core::find::find(&SliceMemory::new(0, std::fs::read(image)?)) {
        let by = found
            .setup_data
            .map_or("by its magic".into(), |at| format!("by setup_data at {at:#x}"));
        println!(
            "{} at {}, found {by}, {} findings",
            found.handover.version,
            found.entry.fdt,
            found.handover.findings.count()
        );
    }
    Ok(())
}
