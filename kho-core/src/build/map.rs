//! The preserved-memory map, in either format.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use super::{Abi, BuildError, Placer};
use crate::abi::kexec_handover::{
    BITMAP_SIZE_6_17, BITMAP_SIZE_6_18, CHUNK_ELEMENTS, RADIX_DEPTH, RADIX_LEAF_BITS, RADIX_TABLE_BITS,
};
use crate::abi::{PAGE_BYTES, PAGE_SIZE};
use crate::map::{Block, order_size};
use crate::memory::{Region, clamp, len64};
use crate::radix_key::encode_key;

/// Cuts a region into naturally aligned blocks, as `kho_preserve_pages()` does. Returns `None` if it is not made of
/// whole pages.
pub fn blocks_of(region: Region) -> Option<Vec<Block>> {
    let end = region.start.checked_add(region.size)?;
    if !region.start.is_multiple_of(PAGE_BYTES) || !end.is_multiple_of(PAGE_BYTES) {
        return None;
    }
    let mut blocks = Vec::new();
    let mut frame = region.start / PAGE_BYTES;
    let last = end / PAGE_BYTES;
    while let Some(room) = last.saturating_sub(frame).checked_ilog2() {
        let order = frame.trailing_zeros().min(room).min(39);
        blocks.push(Block::new(
            frame.saturating_mul(PAGE_BYTES),
            u8::try_from(order).ok()?,
        ));
        frame = frame.saturating_add(1_u64.checked_shl(order)?);
    }
    Some(blocks)
}

/// Writes the map of everything preserved so far, and returns the address to store in the root.
pub(super) fn write(placer: &mut Placer<'_>, abi: Abi) -> Result<u64, BuildError> {
    let blocks = placer.preserved().to_vec();
    match abi {
        Abi::KhoV1Bitmaps512 => chunks(placer, &blocks, BITMAP_SIZE_6_17),
        Abi::KhoV1 => chunks(placer, &blocks, BITMAP_SIZE_6_18),
        Abi::KhoV2 | Abi::KhoV3 | Abi::KhoV4 => radix(placer, &blocks),
    }
}

/// A bitmap that is being filled.
type Bits = Vec<u8>;

fn set(bits: &mut Bits, bit: u64) {
    if let Some(byte) = bits.get_mut(clamp(bit >> 3)) {
        *byte |= 1_u8.wrapping_shl(u32::from(bit.to_le_bytes()[0] & 7));
    }
}

fn radix(placer: &mut Placer<'_>, blocks: &[Block]) -> Result<u64, BuildError> {
    let mut leaves: BTreeMap<u64, Bits> = BTreeMap::new();
    for block in blocks {
        let bad = BuildError::BadBlock {
            what: "block",
            region: block.region(),
        };
        let key = encode_key(*block).ok_or(bad)?;
        let bits = leaves
            .entry(key >> RADIX_LEAF_BITS)
            .or_insert_with(|| vec![0; PAGE_SIZE]);
        set(bits, key & ((1 << RADIX_LEAF_BITS) - 1));
    }
    // From the leaves up: node `number` of one level is an entry of table `number >> 9` of the next.
    let mut level: BTreeMap<u64, u64> = BTreeMap::new();
    for (number, bits) in leaves {
        let page = placer.zeroed(0)?;
        placer.write(page, &bits)?;
        level.insert(number, page);
    }
    for _ in 1..RADIX_DEPTH {
        let mut tables: BTreeMap<u64, Bits> = BTreeMap::new();
        for (number, page) in level {
            let table = tables
                .entry(number >> RADIX_TABLE_BITS)
                .or_insert_with(|| vec![0; PAGE_SIZE]);
            let offset = clamp((number & ((1 << RADIX_TABLE_BITS) - 1)).saturating_mul(8));
            if let Some(entry) = table.get_mut(offset..offset.saturating_add(8)) {
                entry.copy_from_slice(&page.to_le_bytes());
            }
        }
        level = BTreeMap::new();
        for (number, table) in tables {
            let page = placer.zeroed(0)?;
            placer.write(page, &table)?;
            level.insert(number, page);
        }
    }
    // An empty map still has its root table.
    match level.into_values().next() {
        Some(root) => Ok(root),
        None => placer.zeroed(0),
    }
}

fn chunks(placer: &mut Placer<'_>, blocks: &[Block], bitmap_size: usize) -> Result<u64, BuildError> {
    let bits_per_bitmap = len64(bitmap_size).saturating_mul(8);
    let mut bitmaps: BTreeMap<(u8, u64), Bits> = BTreeMap::new();
    for block in blocks {
        let number = block.address.checked_div(order_size(block.order)).unwrap_or(0);
        let index = number.checked_div(bits_per_bitmap).unwrap_or(0);
        let bits = bitmaps
            .entry((block.order, index))
            .or_insert_with(|| vec![0; bitmap_size]);
        set(bits, number.checked_rem(bits_per_bitmap).unwrap_or(0));
    }
    let mut slab = Slab {
        page: 0,
        used: PAGE_SIZE,
    };
    let mut elements: BTreeMap<u8, Vec<(u64, u64)>> = BTreeMap::new();
    for ((order, index), bits) in bitmaps {
        let address = slab.place(placer, &bits)?;
        let start = index
            .saturating_mul(bits_per_bitmap)
            .saturating_mul(order_size(order));
        elements.entry(order).or_default().push((start, address));
    }
    // From the last chunk to the first, because each holds the address of the next.
    let mut next = 0_u64;
    for (order, elements) in elements.iter().rev() {
        for elements in elements.chunks(CHUNK_ELEMENTS).rev() {
            let mut bytes = next.to_le_bytes().to_vec();
            bytes.extend(u32::from(*order).to_le_bytes());
            bytes.extend(u32::try_from(elements.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(
                elements
                    .iter()
                    .flat_map(|(start, bitmap)| [*start, *bitmap])
                    .flat_map(u64::to_le_bytes),
            );
            next = placer.zeroed(0)?;
            placer.write(next, &bytes)?;
        }
    }
    Ok(next)
}

/// Small objects share pages, as in the kernel's slab allocator. The first slot of a page stays empty: the reader
/// tells 6.17's bitmaps from 6.18's by their addresses, and a bitmap at the start of a page could be either.
struct Slab {
    page: u64,
    used: usize,
}

impl Slab {
    fn place(&mut self, placer: &mut Placer<'_>, bytes: &[u8]) -> Result<u64, BuildError> {
        if self.used.saturating_add(bytes.len()) > PAGE_SIZE {
            self.page = placer.zeroed(0)?;
            self.used = if bytes.len() < PAGE_SIZE { bytes.len() } else { 0 };
        }
        let address = self.page.saturating_add(len64(self.used));
        self.used = self.used.saturating_add(bytes.len());
        placer.write(address, bytes)?;
        Ok(address)
    }
}
