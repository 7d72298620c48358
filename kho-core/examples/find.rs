//! Finds and verifies the handovers in an image of RAM that begins at physical address 0: `find IMAGE`.

use kho_core::SliceMemory;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("expected an image")?;
    let memory = SliceMemory::new(0, std::fs::read(image)?);
    let search = kho_core::find::find(&memory);
    for unread in search.unread {
        println!("unreadable: {}", unread.error);
    }
    for found in search.found {
        let by = found
            .setup_data
            .map_or("by its magic".into(), |at| format!("by setup_data at {at:#x}"));
        println!("{} at {}, found {by}", found.handover.version, found.entry.fdt);
        let verdict = kho_core::verify(&found.handover, &memory);
        for finding in &verdict.findings {
            println!("  {} {finding}", finding.severity());
        }
        println!("  {}", if verdict.is_sound() { "sound" } else { "not sound" });
    }
    Ok(())
}
