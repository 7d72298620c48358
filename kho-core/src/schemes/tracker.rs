//! Per-order sparse arrays of bitmaps, listed in chunks: the map of kho-v1.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::{DecodeError, Encoded, Scheme};
use crate::abi::PAGE_SIZE;
use crate::abi::kexec_handover::{BITMAP_SIZE_6_17, BITMAP_SIZE_6_18, CHUNK_ELEMENTS};
use crate::map::{Block, order_size};
use crate::memory::{clamp, len64};
use crate::page_set::Sink;

/// The bitmap tracker, with bitmaps of either size.
#[derive(Debug, Clone, Copy)]
pub struct Tracker {
    bitmap_words: usize,
    name: &'static str,
}

impl Tracker {
    /// As 6.17 has it.
    pub const BITMAPS_OF_512: Self = Self {
        bitmap_words: BITMAP_SIZE_6_17 / 8,
        name: "bitmap tracker, 512 B",
    };
    /// As 6.18 and 6.19 have it.
    pub const BITMAPS_OF_A_PAGE: Self = Self {
        bitmap_words: BITMAP_SIZE_6_18 / 8,
        name: "bitmap tracker, page",
    };
}

const PAGE_WORDS: usize = PAGE_SIZE / 8;

impl Scheme for Tracker {
    fn name(&self) -> &'static str {
        self.name
    }

    fn encode(&self, blocks: &[Block]) -> Encoded {
        let bits = len64(self.bitmap_words).saturating_mul(64);
        let shift = bits.trailing_zeros();
        // Like the kernel, find a bitmap by order and number in a sparse array; also remember the last one used.
        let mut numbers: BTreeMap<(u8, u64), usize> = BTreeMap::new();
        let mut bitmaps: Vec<u64> = Vec::new();
        let mut last = ((u8::MAX, 0), 0);
        for block in blocks {
            let number = block.address >> order_size(block.order).trailing_zeros();
            let key = (block.order, number >> shift);
            if last.0 != key {
                let fresh = bitmaps.len();
                last = (key, *numbers.entry(key).or_insert(fresh));
                if last.1 == fresh {
                    bitmaps.resize(fresh.saturating_add(self.bitmap_words), 0);
                }
            }
            let bit = number & bits.wrapping_sub(1);
            if let Some(word) = bitmaps.get_mut(last.1.saturating_add(clamp(bit >> 6))) {
                *word |= 1_u64.wrapping_shl(u32::from(bit.to_le_bytes()[0]));
            }
        }
        // Chunks come first, a page each, then the bitmaps.
        let mut by_order: BTreeMap<u8, Vec<(u64, usize)>> = BTreeMap::new();
        for ((order, index), place) in numbers {
            by_order.entry(order).or_default().push((index, place));
        }
        let chunks: usize = by_order
            .values()
            .map(|elements| elements.len().div_ceil(CHUNK_ELEMENTS))
            .sum();
        let bitmaps_at = Encoded::BASE.saturating_add(len64(chunks.saturating_mul(PAGE_SIZE)));
        let mut encoded = Encoded {
            words: Vec::new(),
            root: if chunks == 0 { 0 } else { Encoded::BASE },
        };
        let mut left = chunks;
        for (order, elements) in by_order {
            for elements in elements.chunks(CHUNK_ELEMENTS) {
                left = left.saturating_sub(1);
                let next = encoded.next().saturating_add(len64(PAGE_SIZE));
                let mut chunk = vec![if left == 0 { 0 } else { next }];
                chunk.push(u64::from(order) | len64(elements.len()) << 32);
                for (index, place) in elements {
                    let start = (index << shift).saturating_mul(order_size(order));
                    chunk.extend([start, bitmaps_at.saturating_add(len64(place.saturating_mul(8)))]);
                }
                chunk.resize(PAGE_WORDS, 0);
                encoded.append(&chunk);
            }
        }
        encoded.append(&bitmaps);
        encoded
    }

    fn decode(&self, encoded: &Encoded, sink: &mut dyn Sink) -> Result<(), DecodeError> {
        let mut next = encoded.root;
        // A list cannot have more chunks than there are pages; if it does, it has a cycle.
        for _ in 0..encoded.pages() {
            if next == 0 {
                return Ok(());
            }
            let [after, header, elements @ ..] = encoded.at(next, PAGE_WORDS)? else {
                break;
            };
            let damaged = DecodeError { address: next };
            let order = u8::try_from(header & 0xffff_ffff).map_err(|_| damaged)?;
            next = *after;
            for [start, bitmap] in elements.as_chunks::<2>().0.iter().take(clamp(header >> 32)) {
                sink.bitmap(*start, order, encoded.at(*bitmap, self.bitmap_words)?);
            }
        }
        if next == 0 {
            Ok(())
        } else {
            Err(DecodeError { address: next })
        }
    }
}
