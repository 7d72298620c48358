//! The preserved-memory map of any format, decoded to bitmaps over blocks of one order each.

use alloc::collections::BinaryHeap;
use alloc::collections::binary_heap::PeekMut;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt;

use crate::abi::{PAGE_BYTES, PAGE_SHIFT};
use crate::memory::{Region, len64};

/// A naturally aligned run of `2^order` pages that must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Block {
    /// Physical address of its first byte.
    pub address: u64,
    /// log2 of its number of pages.
    pub order: u8,
}

impl Block {
    /// The block of this order at this address.
    pub const fn new(address: u64, order: u8) -> Self {
        Self { address, order }
    }

    /// Its size in bytes; `u64::MAX` if it does not fit.
    pub fn size(&self) -> u64 {
        order_size(self.order)
    }

    /// The memory it covers.
    pub fn region(&self) -> Region {
        Region::new(self.address, self.size())
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} order {}", self.address, self.order)
    }
}

/// Size of a block of this order in bytes; `u64::MAX` if it does not fit.
pub fn order_size(order: u8) -> u64 {
    PAGE_BYTES
        .checked_shl(u32::from(order))
        .filter(|size| *size != 0)
        .unwrap_or(u64::MAX)
}

/// A bitmap over consecutive blocks of one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Physical address at which the bitmap itself lies.
    pub at: u64,
    /// Order of its blocks.
    pub order: u8,
    /// Physical address of the block of bit 0.
    pub start: u64,
    /// The bits, 64 to a word, least significant first.
    pub words: Vec<u64>,
}

impl Bitmap {
    /// Size of the bitmap in bytes.
    pub fn size(&self) -> u64 {
        len64(self.words.len()).saturating_mul(8)
    }

    /// The memory for which it has bits.
    pub fn window(&self) -> Region {
        Region::new(
            self.start,
            self.size()
                .saturating_mul(8)
                .saturating_mul(order_size(self.order)),
        )
    }

    /// Number of blocks preserved.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .fold(0, u64::saturating_add)
    }

    /// Whether a bit is set; bits past the end count as clear.
    pub fn bit(&self, index: u64) -> bool {
        let word = usize::try_from(index >> 6)
            .ok()
            .and_then(|word| self.words.get(word));
        word.is_some_and(|word| (word >> (index & 63)) & 1 == 1)
    }

    /// The blocks preserved, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.words.iter().enumerate().flat_map(move |(index, &word)| {
            let base = len64(index).saturating_mul(64);
            Bits(word).map(move |bit| Block::new(self.address_of(base | u64::from(bit)), self.order))
        })
    }

    /// Physical address of the block of a bit.
    pub fn address_of(&self, bit: u64) -> u64 {
        self.start
            .saturating_add(bit.saturating_mul(order_size(self.order)))
    }
}

/// The set bits of a word, ascending.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0.wrapping_sub(1);
        Some(bit)
    }
}

/// Which format a map has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum MapFormat {
    /// kho-v1: a list of chunks, bitmaps of 512 bytes (6.17).
    ChunksOf512,
    /// kho-v1: a list of chunks, bitmaps of a page (6.18, 6.19).
    ChunksOfPages,
    /// From kho-v2 on: a radix tree.
    Radix,
}

impl fmt::Display for MapFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ChunksOf512 => "list of chunks, bitmaps of 512 bytes",
            Self::ChunksOfPages => "list of chunks, bitmaps of a page",
            Self::Radix => "radix tree",
        })
    }
}

/// A page of the map that is not a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct MapNode {
    /// Physical address.
    pub at: u64,
    /// Level in the radix tree, 5 for the root; 0 for a chunk of kho-v1.
    pub level: u8,
}

/// The preserved-memory map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreservedMap {
    format: MapFormat,
    root: u64,
    nodes: Vec<MapNode>,
    /// Ascending by order, then by start.
    bitmaps: Vec<Bitmap>,
}

impl PreservedMap {
    pub(crate) fn new(format: MapFormat, root: u64, nodes: Vec<MapNode>, mut bitmaps: Vec<Bitmap>) -> Self {
        bitmaps.sort_by_key(|bitmap| (bitmap.order, bitmap.start));
        Self {
            format,
            root,
            nodes,
            bitmaps,
        }
    }

    /// Format in which it was handed over.
    pub fn format(&self) -> MapFormat {
        self.format
    }

    /// Physical address of its first page; 0 when kho-v1 handed over none.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Its tables or chunks, in the order in which they were reached.
    pub fn nodes(&self) -> &[MapNode] {
        &self.nodes
    }

    /// Its bitmaps, ascending by order and then by address.
    pub fn bitmaps(&self) -> &[Bitmap] {
        &self.bitmaps
    }

    /// The preserved blocks, ascending by order and then by address.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.bitmaps.iter().flat_map(Bitmap::blocks)
    }

    /// The preserved blocks of all orders, ascending by address.
    ///
    /// Merges lazily, without sorting or storing: the blocks of each order are ascending already. Bitmaps of one
    /// order that overlap (which is a finding) are merged as separate sequences.
    pub fn blocks_by_address(&self) -> impl Iterator<Item = Block> + '_ {
        let by_order = self.bitmaps.chunk_by(|one, other| one.order == other.order);
        let sequences = by_order.flat_map(|bitmaps| {
            let overlap = |pair: &[Bitmap]| matches!(pair, [one, other] if one.window().end() > other.start);
            let length = match bitmaps.windows(2).any(overlap) {
                true => 1,
                false => bitmaps.len().max(1),
            };
            bitmaps.chunks(length)
        });
        merged(sequences.map(|bitmaps| bitmaps.iter().flat_map(Bitmap::blocks)))
    }

    /// The preserved memory, ascending and merged. It is an iterator because a list could take 64 times as much
    /// memory as the map.
    pub fn extents_by_address(&self) -> impl Iterator<Item = Region> + '_ {
        let mut blocks = self.blocks_by_address().map(|block| block.region());
        let mut next = blocks.next();
        core::iter::from_fn(move || {
            let mut extent = next.take()?;
            for region in blocks.by_ref() {
                if region.start > extent.end() {
                    next = Some(region);
                    break;
                }
                extent.size = extent.end().max(region.end()).saturating_sub(extent.start);
            }
            Some(extent)
        })
    }

    /// Number of preserved blocks.
    pub fn count(&self) -> u64 {
        self.bitmaps
            .iter()
            .map(Bitmap::count)
            .fold(0, u64::saturating_add)
    }

    /// Number of preserved pages; a page preserved by two blocks counts twice.
    pub fn pages(&self) -> u64 {
        let pages = |bitmap: &Bitmap| {
            bitmap
                .count()
                .saturating_mul(order_size(bitmap.order) >> PAGE_SHIFT)
        };
        self.bitmaps.iter().map(pages).fold(0, u64::saturating_add)
    }

    /// The smallest block that contains an address.
    pub fn block_containing(&self, address: u64) -> Option<Block> {
        let mut rest = self.bitmaps.as_slice();
        while let Some(first) = rest.first() {
            let order = first.order;
            let (of_order, others) = rest.split_at(rest.partition_point(|bitmap| bitmap.order <= order));
            rest = others;
            let after = of_order.partition_point(|bitmap| bitmap.start <= address);
            let candidate = after.checked_sub(1).and_then(|index| of_order.get(index));
            if let Some(bitmap) = candidate.filter(|bitmap| bitmap.window().contains(address)) {
                let bit = address.saturating_sub(bitmap.start)
                    >> PAGE_SHIFT.saturating_add(u32::from(order)).min(63);
                if bitmap.bit(bit) {
                    return Some(Block::new(bitmap.address_of(bit), order));
                }
            }
        }
        None
    }

    /// Whether the page at an address is preserved.
    pub fn is_preserved(&self, address: u64) -> bool {
        self.block_containing(address).is_some()
    }

    /// The preserved memory, ascending and merged.
    pub fn extents(&self) -> Vec<Region> {
        merge(self.blocks().map(|block| block.region()))
    }
}

/// Merges ascending sequences into one.
fn merged<I: Iterator<Item = Block>>(sequences: impl Iterator<Item = I>) -> impl Iterator<Item = Block> {
    let mut heads: BinaryHeap<Sequence<I>> = sequences
        .filter_map(|mut rest| rest.next().map(|head| Sequence { head, rest }))
        .collect();
    core::iter::from_fn(move || {
        let mut lowest = heads.peek_mut()?;
        let block = lowest.head;
        match lowest.rest.next() {
            Some(head) => lowest.head = head,
            None => drop(PeekMut::pop(lowest)),
        }
        Some(block)
    })
}

/// A sequence of blocks and its first block, already taken. The one with the lowest first block compares as greatest,
/// for a max-heap.
struct Sequence<I> {
    head: Block,
    rest: I,
}

impl<I> Ord for Sequence<I> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.head.cmp(&self.head)
    }
}

impl<I> PartialOrd for Sequence<I> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<I> PartialEq for Sequence<I> {
    fn eq(&self, other: &Self) -> bool {
        self.head == other.head
    }
}

impl<I> Eq for Sequence<I> {}

/// The map in short: format, pages, and preserved memory, merged.
#[cfg(feature = "serde")]
impl serde::Serialize for PreservedMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut map = serializer.serialize_struct("PreservedMap", 6)?;
        map.serialize_field("format", &self.format)?;
        map.serialize_field("root", &self.root)?;
        map.serialize_field("nodes", &self.nodes)?;
        map.serialize_field("blocks", &self.count())?;
        map.serialize_field("pages", &self.pages())?;
        map.serialize_field("extents", &self.extents())?;
        map.end()
    }
}

/// Sorts and merges regions; those that touch or overlap become one.
pub fn merge(regions: impl IntoIterator<Item = Region>) -> Vec<Region> {
    let mut merged: Vec<Region> = Vec::new();
    // Runs that arrive in order are merged at once, which leaves few to sort.
    for region in regions {
        match merged.last_mut() {
            Some(last) if last.end() == region.start => last.size = region.end().saturating_sub(last.start),
            _ => merged.push(region),
        }
    }
    merged.sort_unstable();
    merged.dedup_by(|next, last| {
        let touches = next.start <= last.end();
        if touches {
            last.size = last.end().max(next.end()).saturating_sub(last.start);
        }
        touches
    });
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn map(bitmaps: Vec<Bitmap>) -> PreservedMap {
        PreservedMap::new(MapFormat::Radix, 0, Vec::new(), bitmaps)
    }

    #[test]
    fn blocks_of_all_orders_are_found_by_any_address_inside() {
        let map = map(vec![
            Bitmap {
                at: 0,
                order: 2,
                start: 0x10_0000,
                words: vec![0b10],
            },
            Bitmap {
                at: 0,
                order: 0,
                start: 0,
                words: vec![0b1001, 1 << 63],
            },
        ]);
        let blocks: Vec<_> = map.blocks().collect();
        let expected = [
            Block::new(0, 0),
            Block::new(0x3000, 0),
            Block::new(0x7f000, 0),
            Block::new(0x10_4000, 2),
        ];
        assert_eq!(blocks, expected);
        for block in expected {
            assert_eq!(map.block_containing(block.address), Some(block));
            assert_eq!(map.block_containing(block.region().end() - 1), Some(block));
        }
        for address in [0x1000, 0x10_0000, 0x10_8000, u64::MAX] {
            assert_eq!(map.block_containing(address), None);
        }
        assert_eq!((map.count(), map.pages()), (4, 7));
    }

    #[test]
    fn extents_merge_neighbours_and_overlaps_of_different_orders() {
        let map = map(vec![
            Bitmap {
                at: 0,
                order: 0,
                start: 0,
                words: vec![0b11_0110],
            },
            Bitmap {
                at: 0,
                order: 1,
                start: 0,
                words: vec![0b1000],
            },
            Bitmap {
                at: 0,
                order: 1,
                start: 0x4000,
                words: vec![0b1],
            },
        ]);
        assert_eq!(
            map.extents(),
            [Region::new(0x1000, 0x2000), Region::new(0x4000, 0x4000)]
        );
    }

    /// Bitmaps of valid maps and of invalid ones: overlapping, or at addresses that no block of the order can have.
    fn bitmaps() -> impl Strategy<Value = Vec<Bitmap>> {
        let words = prop::collection::vec(prop::sample::select(vec![0, 1, 6, u64::MAX, 1 << 63]), 1..4);
        let bitmap = (0_u8..5, 0_u64..0x400, words).prop_map(|(order, frame, words)| Bitmap {
            at: 0,
            order,
            start: frame << 12,
            words,
        });
        prop::collection::vec(bitmap, 0..12)
    }

    proptest! {
        #[test]
        fn blocks_and_extents_ascend_whatever_the_bitmaps(bitmaps in bitmaps()) {
            let map = map(bitmaps);
            let mut sorted: Vec<Block> = map.blocks().collect();
            sorted.sort_unstable();
            prop_assert_eq!(map.blocks_by_address().collect::<Vec<_>>(), sorted);
            prop_assert_eq!(map.extents_by_address().collect::<Vec<_>>(), map.extents());
        }
    }

    #[test]
    fn orders_that_no_memory_has_do_not_overflow() {
        assert_eq!(order_size(51), 1 << 63);
        assert_eq!(order_size(52), u64::MAX);
        assert_eq!(order_size(255), u64::MAX);
        let bitmap = Bitmap {
            at: 0,
            order: 60,
            start: u64::MAX,
            words: vec![u64::MAX; 4],
        };
        assert_eq!(map(vec![bitmap]).extents().len(), 1);
    }
}
