//! The free memory between preserved pages, as a buddy allocator keeps it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::abi::{MAX_PAGE_ORDER, PAGE_SHIFT};
use crate::map::Block;
use crate::memory::len64;
use crate::page_set::{Bits, CHUNK_PAGES, CHUNK_WORDS, Chunk, PageSet, Sink, fill_bits};

/// The free memory of a span in naturally aligned blocks: per 128 MiB and order, a bitmap of the free blocks that are
/// not part of a larger free block. Memory in which nothing is free takes no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeLists {
    /// First page of each part, and its bitmaps.
    parts: Vec<(u64, Part)>,
}

/// 128 MiB in which something is free.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// All of it.
    Whole,
    /// The bitmaps of all orders one after the other: 512 words for order 0, 256 for order 1, and so on to one for
    /// order 9 and half of one for order 10.
    Bitmaps(Box<[u64; PART_WORDS]>),
}

const PART_WORDS: usize = 2 * CHUNK_WORDS;

impl FreeLists {
    /// Everything of the set's span that is not in the set.
    pub fn outside(set: &PageSet) -> Self {
        let (first, end) = set.bounds();
        let mut parts = Vec::new();
        for (start, chunk) in set.chunks() {
            let after = start.saturating_add(CHUNK_PAGES);
            let inside = first <= start && after <= end;
            match chunk {
                Chunk::Full => {}
                Chunk::Empty if inside => parts.push((start, Part::Whole)),
                chunk => {
                    let mut used = chunk.bits();
                    // What is outside the span is not ours to give away.
                    if !inside {
                        fill_bits(&mut used, 0, first.saturating_sub(start).min(CHUNK_PAGES));
                        let last = end.saturating_sub(start).min(CHUNK_PAGES);
                        fill_bits(&mut used, last, CHUNK_PAGES.saturating_sub(last));
                    }
                    let mut all = Box::new([0; PART_WORDS]);
                    fold(&used, &mut all);
                    parts.push((start, Part::Bitmaps(all)));
                }
            }
        }
        Self { parts }
    }

    /// Number of free blocks of an order.
    pub fn count(&self, order: u8) -> u64 {
        let count = |(_, part): &(u64, Part)| match part {
            Part::Whole if order == MAX_PAGE_ORDER => CHUNK_PAGES >> MAX_PAGE_ORDER,
            Part::Whole => 0,
            Part::Bitmaps(words) => of_order(words, order)
                .iter()
                .map(|word| u64::from(word.count_ones()))
                .fold(0, u64::wrapping_add),
        };
        self.parts.iter().map(count).fold(0, u64::wrapping_add)
    }

    /// Number of free pages.
    pub fn pages(&self) -> u64 {
        let pages = |order: u8| self.count(order).wrapping_shl(u32::from(order));
        (0..=MAX_PAGE_ORDER).map(pages).fold(0, u64::wrapping_add)
    }

    /// Hands the free blocks to a sink, by ascending address in steps of 128 MiB and there by order.
    pub fn blocks(&self, sink: &mut dyn Sink) {
        for (start, part) in &self.parts {
            for order in 0..=MAX_PAGE_ORDER {
                match part {
                    Part::Whole if order == MAX_PAGE_ORDER => {
                        sink.bits(start.wrapping_shl(PAGE_SHIFT), order, u64::from(u32::MAX));
                    }
                    Part::Whole => {}
                    Part::Bitmaps(words) => {
                        sink.bitmap(start.wrapping_shl(PAGE_SHIFT), order, of_order(words, order));
                    }
                }
            }
        }
    }

    /// The lowest free block of an order, as an allocator would take it.
    pub fn first(&self, order: u8) -> Option<Block> {
        self.parts.iter().find_map(|(start, part)| {
            let bit = match part {
                Part::Whole => (order == MAX_PAGE_ORDER).then_some(0)?,
                Part::Bitmaps(words) => {
                    let words = of_order(words, order);
                    let index = words.iter().position(|word| *word != 0)?;
                    let bit = words.get(index)?.trailing_zeros();
                    len64(index).saturating_mul(64).saturating_add(u64::from(bit))
                }
            };
            let frame = start.saturating_add(bit.wrapping_shl(u32::from(order)));
            Some(Block::new(frame.wrapping_shl(PAGE_SHIFT), order))
        })
    }
}

/// The bitmap of one order among those of all.
fn of_order(words: &[u64; PART_WORDS], order: u8) -> &[u64] {
    // The bitmaps before it take 512 + 256 + ... words: what is left is twice its own length.
    let length = CHUNK_WORDS.checked_shr(u32::from(order)).unwrap_or(0).max(1);
    let start = match order {
        0..MAX_PAGE_ORDER => PART_WORDS.saturating_sub(length.saturating_mul(2)),
        _ => PART_WORDS.saturating_sub(1),
    };
    words.get(start..start.saturating_add(length)).unwrap_or_default()
}

/// Makes the bitmaps of all orders out of the pages in use: a pair of free buddies moves up an order.
fn fold(used: &Bits, all: &mut [u64; PART_WORDS]) {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    for (free, used) in all.iter_mut().zip(used) {
        *free = !used;
    }
    // Takes the pairs out of a word and returns them.
    let take = |word: &mut u64| {
        let pairs = *word & (*word >> 1) & EVEN;
        *word &= !(pairs | pairs << 1);
        pairs
    };
    let mut rest = all.as_mut_slice();
    let mut length = CHUNK_WORDS;
    while let Some((level, above)) = rest.split_at_mut_checked(length) {
        if let [last] = level {
            // The one word of order 9 has the pairs of order 10 in it.
            if let Some(top) = above.first_mut() {
                *top = compress(take(last));
            }
            return;
        }
        for ([low, high], pairs) in level.as_chunks_mut::<2>().0.iter_mut().zip(above.iter_mut()) {
            *pairs = compress(take(low)) | compress(take(high)) << 32;
        }
        rest = above;
        length /= 2;
    }
}

/// Moves the even bits of a word into its lower half.
fn compress(even: u64) -> u64 {
    let mut word = even;
    word = (word | word >> 1) & 0x3333_3333_3333_3333;
    word = (word | word >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
    word = (word | word >> 4) & 0x00ff_00ff_00ff_00ff;
    word = (word | word >> 8) & 0x0000_ffff_0000_ffff;
    (word | word >> 16) & 0x0000_0000_ffff_ffff
}

// Chunks hold a whole number of the largest blocks, and begin at multiples of them.
const _: () = assert!(CHUNK_PAGES.is_multiple_of(1 << MAX_PAGE_ORDER));
