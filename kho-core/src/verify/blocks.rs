//! The preserved blocks themselves.

use super::Verifier;
use crate::finding::Rule;
use crate::map::{Block, order_size};

/// Bitmaps cover aligned windows that do not overlap. Only the format of kho-v1 allows others.
pub(super) fn windows(verifier: &mut Verifier<'_>) {
    let bitmaps = verifier.handover.map.bitmaps();
    for bitmap in bitmaps {
        verifier.judge(Rule::BlockAligned);
        if !bitmap.start.is_multiple_of(order_size(bitmap.order)) && bitmap.count() != 0 {
            let expected = alloc::format!("a multiple of {:#x}", order_size(bitmap.order));
            let found = alloc::format!("blocks from {:#x} on", bitmap.start);
            verifier.finding(Rule::BlockAligned, bitmap.at, "bitmap", expected, found);
        }
    }
    for pair in bitmaps.windows(2) {
        if let [one, other] = pair
            && one.order == other.order
            && one.window().overlaps(&other.window())
        {
            let found = alloc::format!("{} and {}", one.window(), other.window());
            let what = alloc::format!("bitmaps of order {}", one.order);
            verifier.finding(
                Rule::BlockOverlap,
                other.at,
                what,
                "bitmaps of different memory",
                found,
            );
        }
    }
}

/// Blocks lie in RAM and outside scratch, and do not overlap.
pub(super) fn blocks(verifier: &mut Verifier<'_>) {
    let handover = verifier.handover;
    let mut last: Option<Block> = None;
    for block in handover.map.blocks_by_address() {
        verifier.judge(Rule::BlockInRam);
        let region = block.region();
        if !verifier.is_ram(&region) {
            verifier.finding(
                Rule::BlockInRam,
                block.address,
                "preserved block",
                "memory in RAM",
                block,
            );
        }
        if let Some(scratch) = verifier.scratch_under(&region) {
            let expected = "memory outside scratch";
            let found = format_args!("{block} in {scratch}");
            verifier.finding(
                Rule::ScratchOverlap,
                block.address,
                "preserved block",
                expected,
                found,
            );
        }
        match last {
            Some(other) if other.region().end() > block.address => {
                let found = format_args!("{block} inside {other}");
                verifier.finding(
                    Rule::BlockOverlap,
                    block.address,
                    "preserved block",
                    "memory of its own",
                    found,
                );
                // Keep the block that reaches further: later blocks may lie inside it.
                if region.end() > other.region().end() {
                    last = Some(block);
                }
            }
            _ => last = Some(block),
        }
    }
}
