//! One linear list, sorted by address, of slices of bitmaps of different orders.

use alloc::vec::Vec;

use super::{DecodeError, Encoded, Scheme};
use crate::abi::PAGE_SHIFT;
use crate::map::{Block, order_size};
use crate::memory::{clamp, len64};
use crate::page_set::Sink;

/// The sorted instruction list: walked once, from the lowest address to the highest, while the free list is built.
///
/// An instruction is a word {46 bits: page number of its first block, 6 bits: order, 12 bits: words that follow, less
/// one} and then the words, a bit per block. A slice ends where another order begins, or at a gap that would cost
/// more words than a new instruction.
#[derive(Debug, Clone, Copy)]
pub struct Instructions;

/// Words of bits that one instruction can have.
const MOST_WORDS: u64 = 1 << 12;
/// Length of a gap, in blocks, that costs as much as a new instruction.
const WORTH_A_HEADER: u64 = 128;

impl Scheme for Instructions {
    fn name(&self) -> &'static str {
        "sorted instructions"
    }

    fn encode(&self, blocks: &[Block]) -> Encoded {
        let mut sorted = blocks.to_vec();
        sorted.sort_unstable();
        let mut words: Vec<u64> = Vec::new();
        // Of the open slice: index of its header, its first block, and the last bit set.
        let mut open: Option<(usize, Block, u64)> = None;
        for block in sorted {
            let fits = open.and_then(|(header, first, last)| {
                let offset = block.address.checked_sub(first.address)?;
                let bit = offset >> order_size(block.order).trailing_zeros();
                let same = first.order == block.order && bit < MOST_WORDS << 6;
                (same && bit.saturating_sub(last) < WORTH_A_HEADER).then_some((header, first, bit))
            });
            let (header, first, bit) = match fits {
                Some(slice) => slice,
                None => {
                    words.push(block.address >> PAGE_SHIFT << 18 | u64::from(block.order) << 12);
                    (words.len().saturating_sub(1), block, 0)
                }
            };
            let place = header.saturating_add(1).saturating_add(clamp(bit >> 6));
            if words.len() <= place {
                words.resize(place.saturating_add(1), 0);
            }
            if let Some(word) = words.get_mut(place) {
                *word |= 1_u64.wrapping_shl(u32::from(bit.to_le_bytes()[0]));
            }
            if let Some(word) = words.get_mut(header) {
                *word = (*word & !0xfff) | bit >> 6;
            }
            open = Some((header, first, bit));
        }
        Encoded {
            words,
            root: Encoded::BASE,
        }
    }

    fn decode(&self, encoded: &Encoded, sink: &mut dyn Sink) -> Result<(), DecodeError> {
        let mut rest = encoded.words.as_slice();
        while let Some((header, after)) = rest.split_first() {
            let count = clamp(header & 0xfff).saturating_add(1);
            let address = encoded
                .bytes()
                .saturating_sub(len64(rest.len()).saturating_mul(8));
            let (bits, after) = after.split_at_checked(count).ok_or(DecodeError { address })?;
            rest = after;
            let order = (header >> 12).to_le_bytes()[0] & 63;
            sink.bitmap(header >> 18 << PAGE_SHIFT, order, bits);
        }
        Ok(())
    }
}
