//! The `mem` property: {address, size} of everything, in the order in which it was preserved.

use alloc::vec;
use alloc::vec::Vec;

use super::{DecodeError, Encoded, Scheme};
use crate::abi::{PAGE_BYTES, PAGE_SHIFT};
use crate::map::Block;
use crate::memory::{Region, clamp, len64};
use crate::page_set::{CHUNK_PAGES, CHUNK_WORDS, PageSet, Sink};

/// `mem` of version 4 of the KHO patches: 16 bytes for each preserved block.
#[derive(Debug, Clone, Copy)]
pub struct MemProperty;

impl Scheme for MemProperty {
    fn name(&self) -> &'static str {
        "mem property"
    }

    fn encode(&self, blocks: &[Block]) -> Encoded {
        let words = blocks
            .iter()
            .flat_map(|block| [block.address, block.size()])
            .collect();
        Encoded {
            words,
            root: Encoded::BASE,
        }
    }

    fn decode(&self, encoded: &Encoded, sink: &mut dyn Sink) -> Result<(), DecodeError> {
        for [address, size] in encoded.words.as_chunks::<2>().0 {
            let pages = size >> PAGE_SHIFT;
            match u8::try_from(pages.trailing_zeros()) {
                Ok(order) if pages.is_power_of_two() => sink.block(Block::new(*address, order)),
                _ => sink.pages(*address, pages),
            }
        }
        Ok(())
    }
}

/// The pages of the entries inside a span. A set of pages needs no order, so nothing is sorted. In the worst case the
/// property consists of single pages; these go straight into one flat bitmap.
pub fn pages(encoded: &Encoded, span: Region) -> PageSet {
    let mut set = PageSet::new(span);
    let base = (span.start >> PAGE_SHIFT) & !CHUNK_PAGES.wrapping_sub(1);
    let words = (span.end() >> PAGE_SHIFT).saturating_sub(base).div_ceil(64);
    let mut bits = vec![0_u64; clamp(words)];
    for [address, size] in encoded.words.as_chunks::<2>().0 {
        let frame = (address >> PAGE_SHIFT).wrapping_sub(base);
        match bits.get_mut(clamp(frame >> 6)) {
            Some(word) if *size == PAGE_BYTES => *word |= 1 << (frame & 63),
            _ => set.pages(*address, size >> PAGE_SHIFT),
        }
    }
    for (index, leaf) in bits.chunks(CHUNK_WORDS).enumerate() {
        let chunk = base.saturating_add(len64(index).saturating_mul(CHUNK_PAGES));
        set.bitmap(chunk.wrapping_shl(PAGE_SHIFT), 0, leaf);
    }
    set
}

/// The entries sorted by address, for a consumer that needs them in order.
pub fn sort(encoded: &Encoded) -> Vec<[u64; 2]> {
    let mut entries = encoded.words.as_chunks::<2>().0.to_vec();
    entries.sort_unstable();
    entries
}
