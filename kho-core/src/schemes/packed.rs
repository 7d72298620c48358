//! Packed ranges: eight bytes each, sorted.

use alloc::vec::Vec;

use super::{DecodeError, Encoded, Scheme};
use crate::abi::PAGE_SHIFT;
use crate::map::{Block, merge};
use crate::page_set::Sink;

/// One range in eight bytes: 52 bits of page number, 12 bits of length in pages, less one.
#[derive(Debug, Clone, Copy)]
pub struct PackedRanges;

/// Pages that one range can have.
const LONGEST: u64 = 1 << 12;

/// Cuts blocks into packed ranges, ascending.
pub(super) fn pack(blocks: &[Block]) -> Vec<u64> {
    let mut packed = Vec::new();
    for region in merge(blocks.iter().map(Block::region)) {
        let mut frame = region.start >> PAGE_SHIFT;
        let end = region.end() >> PAGE_SHIFT;
        while frame < end {
            let pages = end.saturating_sub(frame).min(LONGEST);
            packed.push(frame << 12 | pages.saturating_sub(1));
            frame = frame.saturating_add(pages);
        }
    }
    packed
}

/// Hands one packed range to a sink.
pub(super) fn unpack(range: u64, sink: &mut dyn Sink) {
    sink.pages(
        (range >> 12).wrapping_shl(PAGE_SHIFT),
        (range & 0xfff).saturating_add(1),
    );
}

impl Scheme for PackedRanges {
    fn name(&self) -> &'static str {
        "packed ranges"
    }

    fn keeps_orders(&self) -> bool {
        false
    }

    fn encode(&self, blocks: &[Block]) -> Encoded {
        Encoded {
            words: pack(blocks),
            root: Encoded::BASE,
        }
    }

    fn decode(&self, encoded: &Encoded, sink: &mut dyn Sink) -> Result<(), DecodeError> {
        encoded.words.iter().for_each(|range| unpack(*range, sink));
        Ok(())
    }
}
