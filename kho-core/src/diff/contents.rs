//! Compares the bytes of items that are in both handovers.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{Diff, Kind};
use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::memory::{MemoryError, PhysicalMemory, Region};
use crate::model::{Content, Handover};

type Side<'a> = (&'a Handover, &'a dyn PhysicalMemory);

/// Compares all memory that both handovers have under the same key, page by page.
pub(super) fn contents(diff: &mut Diff, before: Side<'_>, after: Side<'_>) {
    let (one, other) = (named(before.0), named(after.0));
    // Regions from broken records can each cover all of RAM, so the work is bounded by the size of RAM, not by
    // theirs.
    let ram = |memory: &dyn PhysicalMemory| {
        memory
            .ranges()
            .iter()
            .fold(0_u64, |sum, range| sum.saturating_add(range.size))
    };
    let mut left = ram(before.1).max(ram(after.1));
    for (name, region) in &one {
        let Some(now) = other.get(name) else { continue };
        let size = region.size.min(now.size);
        if size > left {
            let (before, after) = ("more memory than there is RAM".into(), "not compared".into());
            diff.push(name, Kind::Changed { before, after });
            continue;
        }
        left = left.saturating_sub(size);
        compare(diff, name, (before.1, *region), (after.1, *now));
    }
}

/// The memory to compare, by key. Decoded blobs are left out: their records were compared, and the addresses in them
/// change without meaning anything.
fn named(handover: &Handover) -> BTreeMap<String, Region> {
    let mut named = BTreeMap::new();
    for session in handover.sessions() {
        for file in &session.files {
            let Some(memfd) = file.memfd() else { continue };
            for (page, region) in handover.file_pages(memfd) {
                let name = format!(
                    "session \"{}\" / token {:#x} / page {page}",
                    session.name, file.token
                );
                named.insert(name, region);
            }
        }
    }
    for region in handover.reserve_mem() {
        named.insert(format!("reserve_mem \"{}\"", region.name), region.region);
    }
    for blob in &handover.sub_blobs {
        if let (Content::Fdt { .. } | Content::Opaque, Some(size)) = (&blob.content, blob.size) {
            named.insert(
                format!("sub-blob \"{}\"", blob.name),
                Region::new(blob.address, size),
            );
        }
    }
    named
}

type Place<'a> = (&'a dyn PhysicalMemory, Region);

fn compare(diff: &mut Diff, name: &str, (old, before): Place<'_>, (new, after): Place<'_>) {
    // Only RAM can be read, and a size from a broken record must not keep us reading for years.
    if !old.is_ram(&before) || !new.is_ram(&after) {
        return;
    }
    let mut offset = 0_u64;
    let size = before.size.min(after.size);
    while offset < size {
        let length = crate::memory::clamp(size.saturating_sub(offset).min(PAGE_BYTES)).min(PAGE_SIZE);
        let read = |memory: &dyn PhysicalMemory, region: Region| -> Result<Vec<u8>, MemoryError> {
            let mut bytes = vec![0; length];
            memory.read(region.start.saturating_add(offset), &mut bytes)?;
            Ok(bytes)
        };
        match (read(old, before), read(new, after)) {
            (Ok(one), Ok(other)) => {
                if let Some(byte) = one.iter().zip(&other).position(|(one, other)| one != other) {
                    let at = offset.saturating_add(crate::memory::len64(byte));
                    let show = |bytes: &[u8]| crate::fdt::preview(bytes.get(byte..).unwrap_or_default());
                    let (before, after) = (show(&one), show(&other));
                    diff.push(format!("{name} at byte {at:#x}"), Kind::Changed { before, after });
                }
            }
            // A capture may lack the files' data; compare what it has.
            (Err(_), _) | (_, Err(_)) => {}
        }
        offset = offset.saturating_add(PAGE_BYTES);
    }
}
