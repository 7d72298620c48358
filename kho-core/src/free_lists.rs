//! The free memory between preserved pages, as a buddy allocator keeps it.

mod woven;

use alloc::vec::Vec;

use crate::abi::{MAX_PAGE_ORDER, PAGE_SHIFT};
use crate::map::Block;
use crate::page_set::{CHUNK_PAGES, Chunk, PageSet, Sink, fill_bits};
use woven::Woven;

/// The free memory of a span in naturally aligned blocks: per 128 MiB and order, a bitmap of the free blocks that are
/// not part of a larger free block. A part without free memory takes no space.
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
    /// Some of it.
    Some(Woven),
}

impl FreeLists {
    /// The pages of the set's span that are not in the set.
    pub fn outside(set: &PageSet) -> Self {
        let (first, end) = set.bounds();
        let mut parts = Vec::new();
        for (start, chunk) in set.chunks() {
            let after = start.saturating_add(CHUNK_PAGES);
            let inside = first <= start && after <= end;
            match chunk {
                Chunk::Full => {}
                Chunk::Empty if inside => parts.push((start, Part::Whole)),
                Chunk::Some(used) if inside => parts.push((start, Part::Some(Woven::outside(used)))),
                chunk => {
                    // Pages outside the span are never free.
                    let mut used = chunk.bits();
                    fill_bits(&mut used, 0, first.saturating_sub(start).min(CHUNK_PAGES));
                    let last = end.saturating_sub(start).min(CHUNK_PAGES);
                    fill_bits(&mut used, last, CHUNK_PAGES.saturating_sub(last));
                    parts.push((start, Part::Some(Woven::outside(&used))));
                }
            }
        }
        Self { parts }
    }

    /// Number of free blocks of an order.
    pub fn count(&self, order: u8) -> u64 {
        let count = |(_, part): &(u64, Part)| match part {
            Part::Whole if order == MAX_PAGE_ORDER => CHUNK_PAGES >> MAX_PAGE_ORDER,
            Part::Some(blocks) if order <= MAX_PAGE_ORDER => blocks.count(order),
            _ => 0,
        };
        self.parts.iter().map(count).fold(0, u64::wrapping_add)
    }

    /// Number of free pages.
    pub fn pages(&self) -> u64 {
        let pages = |order: u8| self.count(order).wrapping_shl(u32::from(order));
        (0..=MAX_PAGE_ORDER).map(pages).fold(0, u64::wrapping_add)
    }

    /// Hands the free blocks to a sink: 128 MiB after 128 MiB in ascending order, and within each by order.
    pub fn blocks(&self, sink: &mut dyn Sink) {
        for (start, part) in &self.parts {
            match part {
                Part::Whole => {
                    let all = u64::from(u32::MAX);
                    sink.bits(start.wrapping_shl(PAGE_SHIFT), MAX_PAGE_ORDER, all);
                }
                Part::Some(blocks) => {
                    (0..=MAX_PAGE_ORDER).for_each(|order| blocks.blocks(*start, order, sink));
                }
            }
        }
    }

    /// The lowest free block of an order: the one an allocator would take.
    pub fn first(&self, order: u8) -> Option<Block> {
        self.parts.iter().find_map(|(start, part)| match part {
            Part::Whole if order == MAX_PAGE_ORDER => Some(Block::new(start.wrapping_shl(PAGE_SHIFT), order)),
            Part::Some(blocks) if order <= MAX_PAGE_ORDER => blocks.first(*start, order),
            _ => None,
        })
    }
}

// A chunk begins at a multiple of the largest block, holds 32 of them, and so half a word of bits describes them.
const _: () = assert!(CHUNK_PAGES == 32 << MAX_PAGE_ORDER);
