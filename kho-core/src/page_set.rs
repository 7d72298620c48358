//! A fast set of pages, to count pages, look one up, and find free memory.
//!
//! A [`PageSet`] has one bit per page, in chunks of as many pages as a leaf of the radix map has bits for order 0. A
//! chunk that is entirely in or entirely out of the set takes no memory, so the size of a set depends on the map's
//! leaves and not on the span. Leaves and bitmaps of any order are inserted whole or a word at a time, without a
//! detour through ranges. [`FreeLists`](crate::FreeLists) are computed from a set chunk by chunk.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use crate::abi::PAGE_SHIFT;
use crate::map::{Block, PreservedMap, order_size};
use crate::memory::{Region, clamp, len64};

/// Receives decoded blocks from the decoder of a scheme.
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

    /// A whole bitmap.
    fn bitmap(&mut self, start: u64, order: u8, words: &[u64]) {
        let step = order_size(order).saturating_mul(64);
        let mut start = start;
        for word in words {
            if *word != 0 {
                self.bits(start, order, *word);
            }
            start = start.saturating_add(step);
        }
    }

    /// A run of pages whose orders the scheme does not record.
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

/// Words of one chunk.
pub(crate) const CHUNK_WORDS: usize = 512;
/// Pages of one chunk: 128 MiB.
pub(crate) const CHUNK_PAGES: u64 = 64 * CHUNK_WORDS as u64;
const CHUNK_SHIFT: u32 = CHUNK_PAGES.trailing_zeros();

/// A bit per page of 128 MiB.
pub(crate) type Bits = [u64; CHUNK_WORDS];

/// Which pages of a chunk are in the set.
#[derive(Debug, Clone)]
pub(crate) enum Chunk {
    /// None.
    Empty,
    /// All.
    Full,
    /// The pages whose bit is set: possibly none or all.
    Some(Box<Bits>),
}

impl Chunk {
    /// The bits, whatever the chunk is.
    pub(crate) fn bits(&self) -> Bits {
        match self {
            Self::Empty => [0; CHUNK_WORDS],
            Self::Full => [u64::MAX; CHUNK_WORDS],
            Self::Some(bits) => **bits,
        }
    }

    /// The chunk's bits, to change them. The chunk stores bits from now on.
    fn bits_mut(&mut self) -> Option<&mut Bits> {
        if !matches!(self, Self::Some(_)) {
            *self = Self::Some(Box::new(self.bits()));
        }
        if let Self::Some(bits) = self {
            Some(bits)
        } else {
            None
        }
    }

    /// Number of runs of pages, including one that continues in the next chunk.
    fn runs(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Full => 1,
            Self::Some(bits) => {
                let mut before = 0;
                let starts = bits.iter().map(|word| {
                    let starts = word & !(word << 1 | before);
                    before = word >> 63;
                    u64::from(starts.count_ones())
                });
                clamp(starts.fold(0, u64::wrapping_add))
            }
        }
    }

    fn count(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Full => CHUNK_PAGES,
            Self::Some(bits) => bits
                .iter()
                .map(|word| u64::from(word.count_ones()))
                .fold(0, u64::wrapping_add),
        }
    }
}

/// A set of pages of one span of physical memory, a bit per page.
#[derive(Debug, Clone)]
pub struct PageSet {
    /// First page of the span, and one past its last.
    first: u64,
    end: u64,
    /// From the chunk of the first page on.
    chunks: Vec<Chunk>,
}

impl PageSet {
    /// The empty set of the pages of a span; pages that are only partly in the span count.
    pub fn new(span: Region) -> Self {
        let first = span.start >> PAGE_SHIFT;
        let end = span.end().div_ceil(order_size(0)).max(first);
        let chunks = end.div_ceil(CHUNK_PAGES).saturating_sub(first >> CHUNK_SHIFT);
        Self {
            first,
            end,
            chunks: vec![Chunk::Empty; clamp(chunks)],
        }
    }

    /// The pages of a span that a map preserves. Ignores pages outside the span.
    pub fn of(map: &PreservedMap, span: Region) -> Self {
        let mut set = Self::new(span);
        for bitmap in map.bitmaps() {
            set.bitmap(bitmap.start, bitmap.order, &bitmap.words);
        }
        set
    }

    /// The pages for which the set has bits.
    pub fn span(&self) -> Region {
        let pages = self.end.saturating_sub(self.first);
        Region::new(
            self.first.wrapping_shl(PAGE_SHIFT),
            pages.saturating_mul(order_size(0)),
        )
    }

    /// Number of pages in the set.
    pub fn len(&self) -> u64 {
        self.chunks.iter().map(Chunk::count).fold(0, u64::wrapping_add)
    }

    /// Whether there is no page in the set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the page at an address is in the set.
    pub fn contains(&self, address: u64) -> bool {
        let frame = address >> PAGE_SHIFT;
        match self.index(frame).and_then(|index| self.chunks.get(index)) {
            None | Some(Chunk::Empty) => false,
            Some(Chunk::Full) => true,
            Some(Chunk::Some(bits)) => {
                let word = bits
                    .get(clamp(frame >> 6) & CHUNK_WORDS.wrapping_sub(1))
                    .copied()
                    .unwrap_or(0);
                (word >> (frame & 63)) & 1 == 1
            }
        }
    }

    /// The pages of the set as merged extents, ascending.
    pub fn extents(&self) -> Vec<Region> {
        // Count the runs first: growing the list would write everything twice.
        let runs = self.chunks.iter().map(Chunk::runs).fold(0, usize::saturating_add);
        let mut extents: Vec<Region> = Vec::with_capacity(runs);
        let mut push = |frame: u64, pages: u64| {
            let (address, size) = (
                frame.wrapping_shl(PAGE_SHIFT),
                pages.saturating_mul(order_size(0)),
            );
            match extents.last_mut() {
                Some(last) if last.end() == address => last.size = last.size.saturating_add(size),
                _ => extents.push(Region::new(address, size)),
            }
        };
        for (start, chunk) in self.chunks() {
            match chunk {
                Chunk::Empty => {}
                Chunk::Full => push(start, CHUNK_PAGES),
                Chunk::Some(bits) => {
                    for (index, word) in bits.iter().enumerate() {
                        let frame = start.saturating_add(len64(index).saturating_mul(64));
                        each_run(*word, |bit, length| {
                            push(frame.saturating_add(u64::from(bit)), u64::from(length))
                        });
                    }
                }
            }
        }
        extents
    }

    /// First page of the span, and one past its last.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        (self.first, self.end)
    }

    /// The chunks, each with the number of its first page.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        let first = self.first >> CHUNK_SHIFT;
        self.chunks.iter().enumerate().map(move |(index, chunk)| {
            (
                first.saturating_add(len64(index)).wrapping_shl(CHUNK_SHIFT),
                chunk,
            )
        })
    }

    /// Index of the chunk of a page.
    fn index(&self, frame: u64) -> Option<usize> {
        (frame >> CHUNK_SHIFT)
            .checked_sub(self.first >> CHUNK_SHIFT)
            .map(clamp)
    }

    /// Inserts a run of pages. Ignores pages outside the span.
    fn fill(&mut self, first: u64, count: u64) {
        let mut frame = first.max(self.first);
        let end = first.saturating_add(count).min(self.end);
        while frame < end {
            let offset = frame & CHUNK_PAGES.wrapping_sub(1);
            let pages = CHUNK_PAGES.saturating_sub(offset).min(end.saturating_sub(frame));
            let index = self.index(frame);
            if let Some(chunk) = index.and_then(|index| self.chunks.get_mut(index)) {
                match chunk {
                    Chunk::Full => {}
                    _ if pages == CHUNK_PAGES => *chunk = Chunk::Full,
                    _ => {
                        if let Some(bits) = chunk.bits_mut() {
                            fill_bits(bits, offset, pages);
                        }
                    }
                }
            }
            frame = frame.saturating_add(pages);
        }
    }

    fn runs(&mut self, start: u64, order: u8, word: u64) {
        let pages = order_size(order) >> PAGE_SHIFT;
        each_run(word, |bit, length| {
            let first = (start >> PAGE_SHIFT).saturating_add(u64::from(bit).saturating_mul(pages));
            self.fill(first, u64::from(length).saturating_mul(pages));
        });
    }
}

/// Sets are equal if they hold the same pages, however their chunks are stored.
impl PartialEq for PageSet {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, other): (&Chunk, &Chunk)| one.bits() == other.bits();
        self.bounds() == other.bounds() && self.chunks.iter().zip(&other.chunks).all(same)
    }
}

impl Eq for PageSet {}

impl Sink for PageSet {
    fn block(&mut self, block: Block) {
        let frame = block.address >> PAGE_SHIFT;
        if block.order != 0 || frame < self.first || frame >= self.end {
            return self.fill(frame, block.size() >> PAGE_SHIFT);
        }
        // Single pages are by far the most frequent case, so they get a fast path.
        let index = self.index(frame);
        if let Some(Chunk::Some(bits)) = index.and_then(|index| self.chunks.get_mut(index)) {
            if let Some(word) = bits.get_mut(clamp(frame >> 6) & CHUNK_WORDS.wrapping_sub(1)) {
                *word |= 1_u64.wrapping_shl(low6(frame));
            }
        } else {
            self.fill(frame, 1);
        }
    }

    fn bits(&mut self, start: u64, order: u8, word: u64) {
        let frame = start >> PAGE_SHIFT;
        let inside = frame >= self.first && frame.saturating_add(64) <= self.end;
        if order != 0 || !frame.is_multiple_of(64) || !inside {
            return self.runs(start, order, word);
        }
        let index = self.index(frame);
        match index.and_then(|index| self.chunks.get_mut(index)) {
            None | Some(Chunk::Full) => {}
            Some(chunk) => {
                let place = clamp(frame >> 6) & CHUNK_WORDS.wrapping_sub(1);
                if let Some(bits) = chunk.bits_mut().and_then(|bits| bits.get_mut(place)) {
                    *bits |= word;
                }
            }
        }
    }

    fn bitmap(&mut self, start: u64, order: u8, words: &[u64]) {
        let frame = start >> PAGE_SHIFT;
        let inside = frame >= self.first && frame.saturating_add(CHUNK_PAGES) <= self.end;
        let index = self.index(frame);
        let chunk = index.and_then(|index| self.chunks.get_mut(index));
        let whole: Result<&Bits, _> = words.try_into();
        match (chunk, whole) {
            (Some(chunk), Ok(leaf)) if order == 0 && inside && frame.is_multiple_of(CHUNK_PAGES) => {
                match chunk {
                    Chunk::Full => {}
                    Chunk::Empty if leaf.iter().all(|word| *word == 0) => {}
                    Chunk::Empty if leaf.iter().all(|word| *word == u64::MAX) => *chunk = Chunk::Full,
                    Chunk::Empty => *chunk = Chunk::Some(Box::new(*leaf)),
                    Chunk::Some(bits) => bits.iter_mut().zip(leaf).for_each(|(bits, word)| *bits |= word),
                }
            }
            _ => {
                let step = order_size(order).saturating_mul(64);
                let mut start = start;
                for word in words {
                    self.bits(start, order, *word);
                    start = start.saturating_add(step);
                }
            }
        }
    }

    fn pages(&mut self, start: u64, count: u64) {
        self.fill(start >> PAGE_SHIFT, count);
    }
}

/// Sets a run of bits of a chunk.
pub(crate) fn fill_bits(bits: &mut Bits, first: u64, count: u64) {
    let end = first.saturating_add(count);
    let (head, tail) = (clamp(first >> 6), clamp(end >> 6));
    let from = u64::MAX.wrapping_shl(low6(first));
    let to = !u64::MAX.wrapping_shl(low6(end));
    if head == tail {
        if let Some(word) = bits.get_mut(head) {
            *word |= from & to;
        }
        return;
    }
    if let Some(word) = bits.get_mut(head) {
        *word |= from;
    }
    if let Some(words) = bits.get_mut(head.saturating_add(1)..tail) {
        words.fill(u64::MAX);
    }
    if let Some(word) = bits.get_mut(tail) {
        *word |= to;
    }
}

/// The bit of a page number in its word.
fn low6(number: u64) -> u32 {
    u32::from(number.to_le_bytes()[0] & 63)
}

/// Visits each run of set bits as (first bit, length).
fn each_run(word: u64, mut visit: impl FnMut(u32, u32)) {
    let mut left = word;
    while left != 0 {
        let start = left.trailing_zeros();
        visit(start, (left >> start).trailing_ones());
        // The carry clears the whole run.
        left &= left.wrapping_add(1_u64.wrapping_shl(start));
    }
}

#[cfg(test)]
mod tests;
