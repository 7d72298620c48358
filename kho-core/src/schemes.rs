//! Schemes for handing preserved memory over, side by side: those that shipped and those that were only proposed.
//!
//! Every scheme encodes the same blocks, decodes into the same [`Sink`], and states its exact size. Each is
//! implemented in full, down to the pages that it would occupy. [`Scheme::keeps_orders`] tells whether a scheme
//! records the orders of blocks; packed ranges do not.
//!
//! | scheme | what it is | where it is from |
//! | --- | --- | --- |
//! | [`MemProperty`] | an array of {address, size} in an FDT property | version 4 of the KHO patches |
//! | [`Tracker`] of 512 bytes | per order, a sparse array of bitmaps, listed in chunks | 6.17 |
//! | [`Tracker`] of pages | the same with bitmaps of a page | 6.18, 6.19 |
//! | [`PackedRanges`] | 52 bits of page number and 12 bits of length in eight bytes, sorted | discussion |
//! | [`RangeTree`] | packed ranges in the nodes of a search tree | discussion, after the maple tree |
//! | [`Instructions`] | one list sorted by address of slices of bitmaps of different orders | discussion |
//! | [`Radix`], first key | a radix tree whose order bit stands left of an address of fixed width | first radix patch |
//! | [`Radix`], shared key | the order bit moves with the address: upper levels serve all orders | 7.1 and later |
//!
//! [`objects`] does the same for the state of objects that is not memory.

pub mod objects;

mod instructions;
mod mem_property;
mod packed;
mod radix;
mod range_tree;
mod tracker;

use alloc::vec::Vec;

use crate::abi::PAGE_SIZE;
use crate::map::Block;
use crate::memory::{clamp, len64};
use crate::page_set::Sink;

pub use instructions::Instructions;
pub use mem_property::{MemProperty, pages as pages_of_mem_property, sort as sort_mem_property};
pub use packed::PackedRanges;
pub use radix::{Key, LevelUse, Radix};
pub use range_tree::RangeTree;
pub use tracker::Tracker;

/// An encoded set of preserved blocks, in memory that starts at address [`Encoded::BASE`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    words: Vec<u64>,
    /// Where decoding starts, in a form private to the scheme.
    root: u64,
}

impl Encoded {
    /// Address of the first word. It is not 0, because 0 means "none" in every format.
    pub const BASE: u64 = PAGE_SIZE as u64;

    /// Wraps encoded data of unknown origin. Decoders check it.
    pub fn from_words(words: Vec<u64>, root: u64) -> Self {
        Self { words, root }
    }

    /// All of it.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Address at which decoding starts; 0 when the format has none or nothing is encoded.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Exact size in bytes.
    pub fn bytes(&self) -> u64 {
        len64(self.words.len()).saturating_mul(8)
    }

    /// Pages that it occupies, and that decoding touches.
    pub fn pages(&self) -> u64 {
        self.bytes().div_ceil(len64(PAGE_SIZE))
    }

    /// Address of the next word to be written.
    fn next(&self) -> u64 {
        Self::BASE.saturating_add(self.bytes())
    }

    /// Appends words and returns their address.
    fn append(&mut self, words: &[u64]) -> u64 {
        let address = self.next();
        self.words.extend_from_slice(words);
        address
    }

    /// The words from an address on; `None` if there are fewer.
    fn at(&self, address: u64, count: usize) -> Result<&[u64], DecodeError> {
        let damaged = DecodeError { address };
        let start = clamp(
            address
                .checked_sub(Self::BASE)
                .filter(|offset| offset.is_multiple_of(8))
                .ok_or(damaged)?
                / 8,
        );
        self.words.get(start..start.saturating_add(count)).ok_or(damaged)
    }
}

/// Encoded data that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the encoded map refers to {address:#x}, where there is nothing of it")]
pub struct DecodeError {
    /// The bad address.
    pub address: u64,
}

/// A way of handing preserved memory over.
pub trait Scheme {
    /// Name, as the table shows it.
    fn name(&self) -> &'static str;

    /// Whether the scheme records the order of each block, and not only the pages.
    fn keeps_orders(&self) -> bool {
        true
    }

    /// Encodes blocks, given in the order in which they were preserved. They must not overlap.
    fn encode(&self, blocks: &[Block]) -> Encoded;

    /// Decodes, in whatever order is natural.
    fn decode(&self, encoded: &Encoded, sink: &mut dyn Sink) -> Result<(), DecodeError>;
}

/// Every scheme, in the order of the table above.
pub fn all() -> Vec<&'static dyn Scheme> {
    alloc::vec![
        &MemProperty,
        &Tracker::BITMAPS_OF_512,
        &Tracker::BITMAPS_OF_A_PAGE,
        &PackedRanges,
        &RangeTree,
        &Instructions,
        &Radix::FIRST_KEY,
        &Radix::SHARED_KEY,
    ]
}

#[cfg(test)]
mod tests;
