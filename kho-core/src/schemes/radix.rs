//! The radix tree with either key.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::{DecodeError, Encoded, Scheme};
use crate::abi::kexec_handover::{
    RADIX_DEPTH, RADIX_LEAF_BITS, RADIX_ORDER_BIT, RADIX_TABLE_BITS, RADIX_TABLE_ENTRIES,
};
use crate::abi::{MAX_PAGE_ORDER, PAGE_SIZE};
use crate::map::{Block, order_size};
use crate::memory::{clamp, len64};
use crate::page_set::Sink;
use crate::radix_key;

/// How a block becomes a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The block's number in a field of 52 bits for every order, and an order bit at bit 52 plus the order.
    First,
    /// The order bit directly above the block's number, which has fewer bits the larger the order is.
    Shared,
}

impl Key {
    /// The key of a block.
    pub fn encode(self, block: Block) -> Option<u64> {
        match self {
            Self::Shared => radix_key::encode_key(block),
            Self::First => {
                let order_bit = 1_u64.checked_shl(RADIX_ORDER_BIT.checked_add(u32::from(block.order))?)?;
                Some(order_bit | block.address >> order_size(block.order).trailing_zeros())
            }
        }
    }

    /// The block of a key.
    pub fn decode(self, key: u64) -> Option<Block> {
        match self {
            Self::Shared => radix_key::decode_key(key),
            Self::First => {
                let order = u8::try_from(key.checked_ilog2()?.checked_sub(RADIX_ORDER_BIT)?).ok()?;
                let number = key & 1_u64.wrapping_shl(RADIX_ORDER_BIT).wrapping_sub(1);
                Some(Block::new(number.saturating_mul(order_size(order)), order))
            }
        }
    }

    /// The largest order that has a key.
    pub const fn max_order(self) -> u8 {
        match self {
            Self::First => MAX_PAGE_ORDER,
            // 2^40 pages: as much as 52 bits address.
            Self::Shared => 40,
        }
    }

    /// Splits the block into pieces that have keys: the first kind of key has no room for orders above that of the
    /// largest folio.
    fn pieces(self, block: Block) -> impl Iterator<Item = Block> {
        let order = block.order.min(self.max_order());
        let count = 1_u64.wrapping_shl(u32::from(block.order.saturating_sub(order)));
        (0..count).map(move |index| {
            Block::new(
                block
                    .address
                    .saturating_add(index.saturating_mul(order_size(order))),
                order,
            )
        })
    }

    /// Levels of the tree, the leaves counted.
    pub const fn depth(self) -> u32 {
        match self {
            Self::Shared => RADIX_DEPTH,
            // The bits for the orders 0 to 10 are above the 52 bits of the number.
            Self::First => FIRST_KEY_DEPTH,
        }
    }
}

/// The radix tree of kho-v2 and later, with either kind of key.
#[derive(Debug, Clone, Copy)]
pub struct Radix {
    key: Key,
    name: &'static str,
}

/// What one level of a tree holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelUse {
    /// The level, 0 for the leaves.
    pub level: u32,
    /// Its tables or bitmaps.
    pub nodes: u64,
    /// How many of them are shared by blocks of more than one order.
    pub shared: u64,
}

/// Levels of the tree with the first key.
const FIRST_KEY_DEPTH: u32 =
    (RADIX_ORDER_BIT + MAX_PAGE_ORDER as u32 + 1 - RADIX_LEAF_BITS).div_ceil(RADIX_TABLE_BITS) + 1;
const PAGE_WORDS: usize = PAGE_SIZE / 8;
const LEAF_MASK: u64 = (1 << RADIX_LEAF_BITS) - 1;

impl Radix {
    /// With the key of the first patch.
    pub const FIRST_KEY: Self = Self {
        key: Key::First,
        name: "radix, first key",
    };
    /// With the key that was merged.
    pub const SHARED_KEY: Self = Self {
        key: Key::Shared,
        name: "radix, shared key",
    };

    /// Counts the nodes of each level from the root down, and how many of them several orders share.
    pub fn levels(&self, blocks: &[Block]) -> Vec<LevelUse> {
        // For each level: node number to the set of orders under it.
        let mut orders: BTreeMap<u64, u64> = BTreeMap::new();
        for block in blocks.iter().flat_map(|block| self.key.pieces(*block)) {
            let Some(key) = self.key.encode(block) else {
                continue;
            };
            *orders.entry(key >> RADIX_LEAF_BITS).or_default() |= 1_u64.wrapping_shl(u32::from(block.order));
        }
        let mut levels = Vec::new();
        for level in 0..self.key.depth() {
            let shared = orders.values().filter(|set| set.count_ones() > 1).count();
            levels.push(LevelUse {
                level,
                nodes: len64(orders.len()),
                shared: len64(shared),
            });
            let mut above: BTreeMap<u64, u64> = BTreeMap::new();
            for (number, set) in orders {
                *above.entry(number >> RADIX_TABLE_BITS).or_default() |= set;
            }
            orders = above;
        }
        levels.reverse();
        levels
    }
}

impl Scheme for Radix {
    fn name(&self) -> &'static str {
        self.name
    }

    fn encode(&self, blocks: &[Block]) -> Encoded {
        let mut tree = Encoded {
            words: vec![0; PAGE_WORDS],
            root: Encoded::BASE,
        };
        let mut last = (u64::MAX, 0);
        for block in blocks.iter().flat_map(|block| self.key.pieces(*block)) {
            let Some(key) = self.key.encode(block) else {
                continue;
            };
            let leaf = key >> RADIX_LEAF_BITS;
            if last.0 != leaf {
                last = (leaf, self.leaf(&mut tree, key));
            }
            let bit = key & LEAF_MASK;
            if let Some(word) = tree.words.get_mut(index(last.1).saturating_add(clamp(bit >> 6))) {
                *word |= 1_u64.wrapping_shl(u32::from(bit.to_le_bytes()[0]));
            }
        }
        tree
    }

    fn decode(&self, encoded: &Encoded, sink: &mut dyn Sink) -> Result<(), DecodeError> {
        let mut pending = vec![(encoded.root, self.key.depth().saturating_sub(1), 0_u64)];
        let mut left = encoded.pages();
        while let Some((at, level, key)) = pending.pop() {
            left = left.checked_sub(1).ok_or(DecodeError { address: at })?;
            let page = encoded.at(at, PAGE_WORDS)?;
            if level == 0 {
                let Some(first) = self.key.decode(key) else {
                    return Err(DecodeError { address: at });
                };
                sink.bitmap(first.address, first.order, page);
                continue;
            }
            for (index, child) in page.iter().enumerate().rev().filter(|(_, child)| **child != 0) {
                let key = key | len64(index).wrapping_shl(shift(level));
                pending.push((*child, level.saturating_sub(1), key));
            }
        }
        Ok(())
    }
}

impl Radix {
    /// Address of the leaf of a key. Creates the leaf and the tables above it if needed.
    fn leaf(&self, tree: &mut Encoded, key: u64) -> u64 {
        let mut at = tree.root;
        for level in (1..self.key.depth()).rev() {
            let entry = clamp(key >> shift(level)) & RADIX_TABLE_ENTRIES.wrapping_sub(1);
            let place = index(at).saturating_add(entry);
            at = match tree.words.get(place) {
                Some(0) | None => {
                    let page = tree.append(&[0; PAGE_WORDS]);
                    if let Some(word) = tree.words.get_mut(place) {
                        *word = page;
                    }
                    page
                }
                Some(child) => *child,
            };
        }
        at
    }
}

/// Key bits below those that a level resolves.
fn shift(level: u32) -> u32 {
    RADIX_LEAF_BITS.saturating_add(RADIX_TABLE_BITS.saturating_mul(level.saturating_sub(1)))
}

/// Index of the word at an address.
fn index(address: u64) -> usize {
    clamp(address.saturating_sub(Encoded::BASE) >> 3)
}

// The later form of the key was chosen because it makes the tree one level shorter.
const _: () = assert!(Key::First.depth() == Key::Shared.depth() + 1);
