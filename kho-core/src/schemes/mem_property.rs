//! The `mem` property: {address, size} of everything, in the order in which it was preserved.

use alloc::vec::Vec;

use super::{DecodeError, Encoded, Scheme};
use crate::abi::PAGE_SHIFT;
use crate::map::Block;
use crate::page_set::Sink;

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

/// The entries sorted by address: what whoever needs them in order has to do first.
pub fn sort(encoded: &Encoded) -> Vec<[u64; 2]> {
    let mut entries = encoded.words.as_chunks::<2>().0.to_vec();
    entries.sort_unstable();
    entries
}
