//! Packed ranges in a search tree, to look one page up without reading everything.

use alloc::vec::Vec;

use super::packed::{pack, unpack};
use super::{DecodeError, Encoded, Scheme};
use crate::abi::PAGE_SHIFT;
use crate::map::Block;
use crate::memory::{clamp, len64};
use crate::page_set::Sink;

/// A serialised tree in the manner of the maple tree: nodes of 256 bytes; leaves hold packed ranges, inner nodes hold
/// for each child its first range and its address.
///
/// Node: header {level, count of entries}, then 31 words: 31 ranges, or 15 pairs and a word of padding.
#[derive(Debug, Clone, Copy)]
pub struct RangeTree;

const NODE_WORDS: usize = 32;
const LEAF_ENTRIES: usize = NODE_WORDS - 1;
const INNER_ENTRIES: usize = LEAF_ENTRIES / 2;
/// More levels than 2^52 ranges would need.
const MAX_LEVEL: u64 = 16;

impl RangeTree {
    /// Whether the page at an address is preserved. Reads one node per level.
    pub fn contains(&self, encoded: &Encoded, address: u64) -> Result<bool, DecodeError> {
        let frame = address >> PAGE_SHIFT;
        let mut at = encoded.root;
        let mut above = MAX_LEVEL.saturating_add(1);
        while at != 0 {
            let (level, entries) = node(encoded, at, above)?;
            if level == 0 {
                let after = entries.partition_point(|range| range >> 12 <= frame);
                let range = after.checked_sub(1).and_then(|index| entries.get(index));
                return Ok(range.is_some_and(|range| frame.saturating_sub(range >> 12) <= range & 0xfff));
            }
            let pairs = entries.as_chunks::<2>().0;
            let after = pairs.partition_point(|[first, _]| first >> 12 <= frame);
            at = after
                .checked_sub(1)
                .and_then(|index| pairs.get(index))
                .map_or(0, |[_, child]| *child);
            above = level;
        }
        Ok(false)
    }
}

/// A node's level and entries; its level must be below that of its parent.
fn node(encoded: &Encoded, at: u64, above: u64) -> Result<(u64, &[u64]), DecodeError> {
    let damaged = DecodeError { address: at };
    let (header, entries) = encoded.at(at, NODE_WORDS)?.split_first().ok_or(damaged)?;
    let (level, count) = (header >> 32, clamp(header & 0xffff_ffff));
    let words = if level == 0 {
        count
    } else {
        count.saturating_mul(2)
    };
    if level >= above {
        return Err(damaged);
    }
    Ok((level, entries.get(..words).ok_or(damaged)?))
}

impl Scheme for RangeTree {
    fn name(&self) -> &'static str {
        "packed ranges, tree"
    }

    fn keeps_orders(&self) -> bool {
        false
    }

    fn encode(&self, blocks: &[Block]) -> Encoded {
        let mut encoded = Encoded::default();
        let mut put = |level: u64, words: &[u64], count: usize| {
            let mut node = [0; NODE_WORDS];
            if let Some((header, entries)) = node.split_first_mut() {
                *header = level << 32 | len64(count);
                entries
                    .iter_mut()
                    .zip(words)
                    .for_each(|(entry, word)| *entry = *word);
            }
            encoded.append(&node)
        };
        let ranges = pack(blocks);
        let leaf = |ranges: &[u64]| ranges.first().copied().unwrap_or(0);
        let mut children: Vec<[u64; 2]> = ranges
            .chunks(LEAF_ENTRIES)
            .map(|ranges| [leaf(ranges), put(0, ranges, ranges.len())])
            .collect();
        let mut level = 0_u64;
        while children.len() > 1 {
            level = level.saturating_add(1);
            let parent = |pairs: &[[u64; 2]]| pairs.first().map_or(0, |[first, _]| *first);
            children = children
                .chunks(INNER_ENTRIES)
                .map(|pairs| [parent(pairs), put(level, pairs.as_flattened(), pairs.len())])
                .collect();
        }
        encoded.root = children.first().map_or(0, |[_, at]| *at);
        encoded
    }

    fn decode(&self, encoded: &Encoded, sink: &mut dyn Sink) -> Result<(), DecodeError> {
        if encoded.root == 0 {
            return Ok(());
        }
        let mut pending = alloc::vec![(encoded.root, MAX_LEVEL.saturating_add(1))];
        let mut left = encoded.words.len().div_ceil(NODE_WORDS);
        while let Some((at, above)) = pending.pop() {
            // Nodes of a damaged tree may be reached twice, so bound the walk by that of a sound tree.
            left = left.checked_sub(1).ok_or(DecodeError { address: at })?;
            let (level, entries) = node(encoded, at, above)?;
            if level == 0 {
                entries.iter().for_each(|range| unpack(*range, sink));
            } else {
                pending.extend(
                    entries
                        .as_chunks::<2>()
                        .0
                        .iter()
                        .rev()
                        .map(|[_, child]| (*child, level)),
                );
            }
        }
        Ok(())
    }
}
