//! The radix map of kho-v2 and later.

use alloc::vec;
use alloc::vec::Vec;

use super::Context;
use crate::abi::PAGE_SIZE;
use crate::abi::kexec_handover::{
    RADIX_DEPTH, RADIX_KEY_WIDTH, RADIX_LEAF_BITS, RADIX_TABLE_BITS, RADIX_TABLE_ENTRIES,
};
use crate::bytes::word;
use crate::finding::Rule;
use crate::map::{Bitmap, MapFormat, MapNode, PreservedMap};
use crate::memory::{Page, len64};
use crate::owners::Owner;
use crate::radix_key::decode_key;
use crate::read::context::Hex;

/// Reads the map whose root table is at an address.
pub(super) fn read(context: &mut Context<'_>, root: u64) -> PreservedMap {
    let mut nodes = Vec::new();
    let mut bitmaps = Vec::new();
    let top = RADIX_DEPTH.saturating_sub(1);
    // (address, level, key bits above). Depth first with siblings in order; at most one table's entries per level
    // wait here.
    let mut page = [0; PAGE_SIZE];
    let mut pending = vec![(root, top, 0_u64)];
    while let Some((at, level, key)) = pending.pop() {
        let what = usize::try_from(level)
            .ok()
            .and_then(|level| LEVELS.get(level))
            .unwrap_or(&"");
        if !context.page_into(&mut page, at, Owner::KhoMap, what) {
            continue;
        }
        if level == 0 {
            bitmaps.extend(leaf(context, at, key, &page));
            continue;
        }
        nodes.push(MapNode {
            at,
            level: u8::try_from(level).unwrap_or(u8::MAX),
        });
        let shift = RADIX_LEAF_BITS.saturating_add(RADIX_TABLE_BITS.saturating_mul(level.saturating_sub(1)));
        for index in (0..RADIX_TABLE_ENTRIES).rev() {
            let child = word(&page, index);
            if child == 0 {
                continue;
            }
            let key = key | len64(index).checked_shl(shift).unwrap_or(0);
            if key >> RADIX_KEY_WIDTH == 0 {
                pending.push((child, level.saturating_sub(1), key));
            } else {
                let entry = at.saturating_add(len64(index).saturating_mul(8));
                context.finding(Rule::MapKey, entry, what, "keys of at most 53 bits", Hex(key));
            }
        }
    }
    PreservedMap::new(MapFormat::Radix, root, nodes, bitmaps)
}

/// What the pages of each level are, in words.
const LEVELS: [&str; RADIX_DEPTH as usize] = [
    "level 0 of the preserved-memory map",
    "level 1 of the preserved-memory map",
    "level 2 of the preserved-memory map",
    "level 3 of the preserved-memory map",
    "level 4 of the preserved-memory map",
    "level 5 of the preserved-memory map",
];

/// A leaf holds blocks of one order, unless its keys are so small that the order bit is among the leaf's own bits.
/// Blocks of those orders are larger than any memory, so such bits are findings.
fn leaf(context: &mut Context<'_>, at: u64, key: u64, page: &Page) -> Option<Bitmap> {
    let words: Vec<u64> = page
        .as_chunks()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .collect();
    match decode_key(key) {
        Some(first) => Some(Bitmap {
            at,
            order: first.order,
            start: first.address,
            words,
        }),
        None => {
            if let Some(index) = words.iter().position(|&word| word != 0) {
                let at = at.saturating_add(len64(index).saturating_mul(8));
                let found = "blocks of 2^38 pages and more, or of no order at all";
                context.finding(
                    Rule::MapKey,
                    at,
                    "leaf of the preserved-memory map",
                    "blocks that memory can hold",
                    found,
                );
            }
            None
        }
    }
}
