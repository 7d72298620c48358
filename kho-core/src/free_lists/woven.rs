//! The free blocks of 128 MiB: a bitmap for each order, made a word at a time.
//!
//! A pair of free buddies is a free block of the next order, so each bitmap comes from every second bit of the one
//! below. Packing those bits side by side would take most of the time (five shifts and masks per word), so they are
//! not packed. Instead, the pairs of the next word go into the bits that the pairs of one word leave unused. A word
//! of order *n* then has the bits of `2^n` words of pages *woven*: block *j* of the *w*-th of these words is bit
//! `j << n | w`. At order 6 a block is a whole word of pages, *j* is always 0, the bits are in ascending order again,
//! and eight words are left.

use alloc::boxed::Box;

use crate::abi::{MAX_PAGE_ORDER, PAGE_SHIFT};
use crate::map::Block;
use crate::memory::len64;
use crate::page_set::{Bits, CHUNK_WORDS, Sink};

/// The order of a block whose pages fill one word.
const WORD_ORDER: u8 = 6;

/// The words of all orders: 512 for order 0, 256 for order 1, and so on to one for order 9 and half of one for order 10.
const WORDS: usize = 2 * CHUNK_WORDS;

/// The bitmaps of all orders one after the other. A block that is part of a free block of a higher order is not in
/// the bitmap of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Woven(Box<[u64; WORDS]>);

impl Woven {
    /// Everything that is not in use.
    pub(super) fn outside(used: &Bits) -> Self {
        let mut all = Box::new([0; WORDS]);
        for (free, used) in all.iter_mut().zip(used) {
            *free = !used;
        }
        let mut rest = all.as_mut_slice();
        for order in 0..MAX_PAGE_ORDER {
            let Some((level, above)) = rest.split_at_mut_checked(length(order)) else {
                break;
            };
            let found = if order < WORD_ORDER {
                weave(level, above, order)
            } else {
                pack(level, above)
            };
            // If single pages are scattered everywhere, there are no blocks of the higher orders.
            if !found {
                break;
            }
            rest = above;
        }
        Self(all)
    }

    /// Number of free blocks of an order.
    pub(super) fn count(&self, order: u8) -> u64 {
        self.of_order(order)
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .fold(0, u64::wrapping_add)
    }

    /// Hands the free blocks of an order to a sink, ascending; `start` is the first page of all.
    pub(super) fn blocks(&self, start: u64, order: u8, sink: &mut dyn Sink) {
        let mut ascending = [0; CHUNK_WORDS];
        let words = self.of_order(order);
        for (ascending, word) in ascending.iter_mut().zip(words) {
            *ascending = unweave(*word, order);
        }
        let ascending = ascending.get(..words.len()).unwrap_or_default();
        sink.bitmap(start.wrapping_shl(PAGE_SHIFT), order, ascending);
    }

    /// The lowest free block of an order; `start` is the first page of all.
    pub(super) fn first(&self, start: u64, order: u8) -> Option<Block> {
        let mut words = self.of_order(order).iter().enumerate();
        let (index, word) = words.find(|(_, word)| **word != 0)?;
        let bit = u64::from(unweave(*word, order).trailing_zeros());
        let number = len64(index).saturating_mul(64).saturating_add(bit);
        let frame = start.saturating_add(number.wrapping_shl(order.into()));
        Some(Block::new(frame.wrapping_shl(PAGE_SHIFT), order))
    }

    /// The bitmap of one order.
    fn of_order(&self, order: u8) -> &[u64] {
        let length = length(order);
        // The bitmaps before it take 512 + 256 + ... words; the rest of the 1,024 is twice its own length.
        let start = match order {
            0..MAX_PAGE_ORDER => WORDS.saturating_sub(length.saturating_mul(2)),
            _ => WORDS.saturating_sub(1),
        };
        self.0
            .get(start..start.saturating_add(length))
            .unwrap_or_default()
    }
}

/// Words of the bitmap of an order.
fn length(order: u8) -> usize {
    CHUNK_WORDS.checked_shr(order.into()).unwrap_or(0).max(1)
}

/// Moves the pairs of an order below [`WORD_ORDER`] up one order. Returns whether there were any.
fn weave(level: &mut [u64], above: &mut [u64], order: u8) -> bool {
    // Distance of buddies in bits, and a mask of the lower buddy of each pair.
    let apart = 1_u32.wrapping_shl(order.into());
    let lower = LOWER.get(usize::from(order)).copied().unwrap_or(0);
    let take = |word: &mut u64| {
        let pairs = *word & word.wrapping_shr(apart) & lower;
        *word &= !(pairs | pairs.wrapping_shl(apart));
        pairs
    };
    let mut found = 0;
    for ([low, high], pairs) in level.as_chunks_mut::<2>().0.iter_mut().zip(above) {
        *pairs = take(low) | take(high).wrapping_shl(apart);
        found |= *pairs;
    }
    found != 0
}

/// For each order below [`WORD_ORDER`], the bits of a word that stand for the lower of two buddies.
const LOWER: [u64; WORD_ORDER as usize] = [
    0x5555_5555_5555_5555,
    0x3333_3333_3333_3333,
    0x0f0f_0f0f_0f0f_0f0f,
    0x00ff_00ff_00ff_00ff,
    0x0000_ffff_0000_ffff,
    0x0000_0000_ffff_ffff,
];

/// Moves the pairs of an order of at least [`WORD_ORDER`] up one order. Returns whether there were any.
fn pack(level: &mut [u64], above: &mut [u64]) -> bool {
    let mut found = 0;
    for (index, word) in level.iter_mut().enumerate() {
        let pairs = *word & (*word >> 1) & LOWER[0];
        *word &= !(pairs | pairs << 1);
        found |= pairs;
        let half = u32::from(index % 2 == 1).wrapping_mul(32);
        if let Some(above) = above.get_mut(index / 2) {
            *above |= evens(pairs).wrapping_shl(half);
        }
    }
    found != 0
}

/// A word of an order with its bits in ascending order.
fn unweave(word: u64, order: u8) -> u64 {
    // Each round moves the lowest digit of a bit's index to the front.
    let rounds = if order < WORD_ORDER { order } else { 0 };
    (0..rounds).fold(word, |word, _| {
        evens(word & LOWER[0]) | evens(word >> 1 & LOWER[0]) << 32
    })
}

/// Moves the even bits of a word, the only ones set, into its lower half.
fn evens(word: u64) -> u64 {
    let [_, twos, fours, eights, sixteens, half] = LOWER;
    let word = (word | word >> 1) & twos;
    let word = (word | word >> 2) & fours;
    let word = (word | word >> 4) & eights;
    let word = (word | word >> 8) & sixteens;
    (word | word >> 16) & half
}
