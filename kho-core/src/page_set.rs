//! The fast way from a map to answers: how many pages, is this page preserved, what is free.
//!
//! A [`PageSet`] has one bit per page. Leaves of the radix map and bitmaps of the older maps go into it a word at a
//! time, whatever the order of their blocks, and nothing is ever made into ranges. [`FreeLists`] come out of it by
//! folding the words upon themselves, one pass per order.

use alloc::vec;
use alloc::vec::Vec;

use crate::abi::{MAX_PAGE_ORDER, PAGE_SHIFT};
use crate::map::{Block, PreservedMap, order_size};
use crate::memory::{Region, clamp, len64};

/// Takes decoded blocks; what a scheme's decoder feeds.
pub trait Sink {
    /// One block.
    fn block(&mut self, block: Block);

    /// Up to 64 blocks of one order: bit *i* stands for the block `i` blocks after `start`.
    fn bits(&mut self, start: u64, order: u8, word: u64) {
        let mut left = word;
        while left != 0 {
            let offset = u64::from(left.trailing_zeros()).saturating_mul(order_size(order));
            self.block(Block::new(start.saturating_add(offset), order));
            left &= left.wrapping_sub(1);
        }
    }

    /// A run of pages of which the order was not kept.
    fn pages(&mut self, start: u64, count: u64) {
        let region = Region::new(start, count.saturating_mul(order_size(0)));
        for block in crate::build::blocks_of(region).unwrap_or_default() {
            self.block(block);
        }
    }
}

impl Sink for Vec<Block> {
    fn block(&mut self, block: Block) {
        self.push(block);
    }
}

/// A set of pages of one span of physical memory, a bit per page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    first: u64,
    count: u64,
    words: Vec<u64>,
}

impl PageSet {
    /// The empty set of the pages of a span; its start is rounded down to 64 pages, its end up.
    pub fn new(span: Region) -> Self {
        let first = (span.start >> PAGE_SHIFT) & !63;
        let last = span.end().div_ceil(order_size(0));
        let words = last.saturating_sub(first).div_ceil(64);
        Self {
            first,
            count: words.saturating_mul(64),
            words: vec![0; clamp(words)],
        }
    }

    /// The pages of a span that a map preserves. What it preserves elsewhere is not in the set.
    pub fn of(map: &PreservedMap, span: Region) -> Self {
        let mut set = Self::new(span);
        for bitmap in map.bitmaps() {
            let step = order_size(bitmap.order).saturating_mul(64);
            let mut start = bitmap.start;
            for word in &bitmap.words {
                set.bits(start, bitmap.order, *word);
                start = start.saturating_add(step);
            }
        }
        set
    }

    /// The pages for which the set has bits.
    pub fn span(&self) -> Region {
        Region::new(
            self.first.wrapping_shl(PAGE_SHIFT),
            self.count.saturating_mul(order_size(0)),
        )
    }

    /// Number of pages in the set.
    pub fn len(&self) -> u64 {
        // Four sums, so that the additions do not wait for each other.
        let (fours, rest) = self.words.as_chunks::<4>();
        let mut sums = [0_u64; 4];
        for four in fours {
            for (sum, word) in sums.iter_mut().zip(four) {
                *sum = sum.wrapping_add(u64::from(word.count_ones()));
            }
        }
        let rest = rest.iter().map(|word| u64::from(word.count_ones()));
        sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
    }

    /// Whether there is no page in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether the page at an address is in the set.
    pub fn contains(&self, address: u64) -> bool {
        let Some(index) = (address >> PAGE_SHIFT).checked_sub(self.first) else {
            return false;
        };
        self.words
            .get(clamp(index >> 6))
            .is_some_and(|word| (word >> (index & 63)) & 1 == 1)
    }

    /// The pages of the set as merged extents, ascending.
    pub fn extents(&self) -> Vec<Region> {
        let mut extents: Vec<Region> = Vec::new();
        let mut frame = self.first;
        for word in &self.words {
            let mut left = *word;
            while left != 0 {
                let start = left.trailing_zeros();
                let length = (left >> start).trailing_ones();
                let address = frame.saturating_add(u64::from(start)).wrapping_shl(PAGE_SHIFT);
                let size = u64::from(length).wrapping_shl(PAGE_SHIFT);
                match extents.last_mut() {
                    Some(last) if last.end() == address => last.size = last.size.saturating_add(size),
                    _ => extents.push(Region::new(address, size)),
                }
                // The carry clears the whole run.
                left &= left.wrapping_add(1_u64.wrapping_shl(start));
            }
            frame = frame.saturating_add(64);
        }
        extents
    }

    /// Puts a run of pages in; what is outside the span is left out.
    fn fill(&mut self, first: u64, count: u64) {
        let end = first
            .saturating_add(count)
            .min(self.first.saturating_add(self.count));
        let start = first.max(self.first);
        if start >= end {
            return;
        }
        let (start, end) = (start.saturating_sub(self.first), end.saturating_sub(self.first));
        let (head, tail) = (clamp(start >> 6), clamp(end >> 6));
        let from = u64::MAX.wrapping_shl(low6(start));
        let to = !u64::MAX.wrapping_shl(low6(end));
        if head == tail {
            if let Some(word) = self.words.get_mut(head) {
                *word |= from & to;
            }
            return;
        }
        if let Some(word) = self.words.get_mut(head) {
            *word |= from;
        }
        if let Some(words) = self.words.get_mut(head.saturating_add(1)..tail) {
            words.fill(u64::MAX);
        }
        if let Some(word) = self.words.get_mut(tail) {
            *word |= to;
        }
    }
}

/// The bit of a page number in its word.
fn low6(number: u64) -> u32 {
    u32::from(number.to_le_bytes()[0] & 63)
}

impl Sink for PageSet {
    fn block(&mut self, block: Block) {
        self.fill(block.address >> PAGE_SHIFT, block.size() >> PAGE_SHIFT);
    }

    fn bits(&mut self, start: u64, order: u8, word: u64) {
        let frame = start >> PAGE_SHIFT;
        let Some(index) = frame
            .checked_sub(self.first)
            .filter(|index| index.is_multiple_of(64))
        else {
            return each_run(word, |bit, length| self.runs(frame, order, bit, length));
        };
        match order {
            0 => {
                if let Some(place) = self.words.get_mut(clamp(index >> 6)) {
                    *place |= word;
                }
            }
            _ => each_run(word, |bit, length| self.runs(frame, order, bit, length)),
        }
    }

    fn pages(&mut self, start: u64, count: u64) {
        self.fill(start >> PAGE_SHIFT, count);
    }
}

impl PageSet {
    fn runs(&mut self, frame: u64, order: u8, bit: u32, length: u32) {
        let pages = order_size(order) >> PAGE_SHIFT;
        let first = frame.saturating_add(u64::from(bit).saturating_mul(pages));
        self.fill(first, u64::from(length).saturating_mul(pages));
    }
}

/// Visits each run of set bits as (first bit, length).
fn each_run(word: u64, mut visit: impl FnMut(u32, u32)) {
    let mut left = word;
    while left != 0 {
        let start = left.trailing_zeros();
        visit(start, (left >> start).trailing_ones());
        left &= left.wrapping_add(1_u64.wrapping_shl(start));
    }
}

/// The free memory of a span in naturally aligned blocks, as a buddy allocator keeps it: per order, a bitmap of the
/// free blocks that are not part of a larger free block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreeLists {
    first: u64,
    /// Bitmaps by order, 0 to [`MAX_PAGE_ORDER`].
    orders: Vec<Vec<u64>>,
}

impl FreeLists {
    /// Everything of the set's span that is not in the set.
    pub fn outside(set: &PageSet) -> Self {
        // The span begins at a multiple of 64 pages, blocks of more are aligned by address: bits are numbered from
        // a multiple of the largest block.
        let lead = set.first & ((1 << MAX_PAGE_ORDER) - 1);
        let first = set.first.saturating_sub(lead);
        let mut free = vec![0; clamp(lead >> 6)];
        free.extend(set.words.iter().map(|word| !word));
        let mut orders = Vec::new();
        for order in 0..=MAX_PAGE_ORDER {
            if order == MAX_PAGE_ORDER {
                orders.push(core::mem::take(&mut free));
                break;
            }
            let (rest, paired) = fold(&free);
            orders.push(rest);
            free = paired;
        }
        Self { first, orders }
    }

    /// Number of free blocks of an order.
    pub fn count(&self, order: u8) -> u64 {
        let words = self.orders.get(usize::from(order)).map_or(&[][..], Vec::as_slice);
        words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .fold(0, u64::wrapping_add)
    }

    /// Number of free pages.
    pub fn pages(&self) -> u64 {
        let pages = |order: u8| self.count(order).wrapping_shl(u32::from(order));
        (0..=MAX_PAGE_ORDER).map(pages).fold(0, u64::wrapping_add)
    }

    /// The free blocks, ascending by order and then by address.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        (0..=MAX_PAGE_ORDER)
            .zip(&self.orders)
            .flat_map(move |(order, words)| {
                words.iter().enumerate().flat_map(move |(index, word)| {
                    let mut found = Vec::new();
                    let number = len64(index).saturating_mul(64);
                    let start = number.wrapping_shl(u32::from(order)).saturating_add(self.first);
                    Sink::bits(&mut found, start.wrapping_shl(PAGE_SHIFT), order, *word);
                    found
                })
            })
    }
}

/// Takes the pairs out of a bitmap: what is left of it, and a bitmap of half the length with a bit for each pair.
fn fold(bits: &[u64]) -> (Vec<u64>, Vec<u64>) {
    const EVEN: u64 = 0x5555_5555_5555_5555;
    let mut rest = vec![0; bits.len()];
    let mut paired = vec![0; bits.len().div_ceil(2)];
    let (twos, last) = bits.as_chunks::<2>();
    let (rests, rest_last) = rest.as_chunks_mut::<2>();
    for ((two, rest), pair) in twos.iter().zip(rests).zip(&mut paired) {
        let [low, high] = two.map(|word| word & (word >> 1) & EVEN);
        *rest = [two[0] & !(low | low << 1), two[1] & !(high | high << 1)];
        *pair = compress(low) | compress(high) << 32;
    }
    if let ([word], [rest], Some(pair)) = (last, rest_last, paired.last_mut()) {
        let low = word & (word >> 1) & EVEN;
        *rest = word & !(low | low << 1);
        *pair = compress(low);
    }
    (rest, paired)
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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    const SPAN: Region = Region::new(37 * 64 * 4096, 5000 * 4096);

    prop_compose! {
        fn blocks()(seeds in prop::collection::vec((0_u64..5200, 0_u8..11), 0..60)) -> Vec<Block> {
            seeds.iter().map(|(frame, order)| {
                let frame = (36 * 64 + frame) >> order << order;
                Block::new(frame * 4096, *order)
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn a_page_set_is_the_set_of_its_pages(blocks in blocks()) {
            let mut set = PageSet::new(SPAN);
            let mut model = BTreeSet::new();
            for block in &blocks {
                set.block(*block);
                let first = block.address / 4096;
                model.extend((first..first + (1 << block.order)).filter(|frame| set.span().contains(frame * 4096)));
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            for frame in 36 * 64..(37 * 64 + 5100) {
                prop_assert_eq!(set.contains(frame * 4096), model.contains(&frame));
            }
            let extents: Vec<_> = crate::map::merge(model.iter().map(|frame| Region::new(frame * 4096, 4096)));
            prop_assert_eq!(set.extents(), extents);
        }

        #[test]
        fn bits_are_blocks(word in any::<u64>(), order in 0_u8..11, start in 0_u64..90) {
            let start = (36 * 64 + start * 64) >> order << order << 12;
            let mut one = PageSet::new(SPAN);
            let mut other = one.clone();
            one.bits(start, order, word);
            let mut blocks = Vec::new();
            Sink::bits(&mut blocks, start, order, word);
            blocks.iter().for_each(|block| other.block(*block));
            prop_assert_eq!(one, other);
        }

        #[test]
        fn free_lists_are_the_largest_blocks_outside(blocks in blocks()) {
            let mut set = PageSet::new(SPAN);
            blocks.iter().for_each(|block| set.block(*block));
            let free = FreeLists::outside(&set);
            let mut refilled = PageSet::new(SPAN);
            for block in free.blocks() {
                prop_assert!(block.address.is_multiple_of(block.size()));
                let before = refilled.len();
                refilled.block(block);
                prop_assert_eq!(refilled.len(), before + (1 << block.order));
                // Its buddy is not free as a whole, or both would be one larger block.
                if block.order < MAX_PAGE_ORDER {
                    let buddy = Block::new(block.address ^ block.size(), block.order);
                    let pages = (0..1_u64 << buddy.order).map(|page| buddy.address + page * 4096);
                    prop_assert!(pages.into_iter().any(|page| set.contains(page) || !set.span().contains(page)));
                }
            }
            prop_assert_eq!(refilled.len() + set.len(), set.span().size / 4096);
            prop_assert_eq!(free.pages(), refilled.len());
            prop_assert!(!refilled.words.iter().zip(&set.words).any(|(one, other)| one & other != 0));
        }
    }
}
