//! Where the builder's pages come from, and how they are written.

use alloc::vec;
use alloc::vec::Vec;

use super::BuildError;
use crate::abi::{PAGE_BYTES, PAGE_SHIFT};
use crate::map::{Block, merge, order_size};
use crate::memory::{PhysicalMemoryMut, Region, len64};

/// Allocates pages for the builder.
pub trait PageAllocator {
    /// Returns the address of an unused, naturally aligned block of `2^order` pages; `None` if none is left.
    fn allocate(&mut self, order: u8) -> Option<u64>;
}

/// The simplest allocator: takes blocks from the lowest addresses of some free regions, and never takes them back.
#[derive(Debug, Clone)]
pub struct FreeRegions {
    free: Vec<Region>,
}

impl FreeRegions {
    /// An allocator over these regions.
    pub fn new(free: Vec<Region>) -> Self {
        Self { free: merge(free) }
    }

    /// An allocator over the parts of `ram` that are not in `used`. The page at address 0 is never given: 0 means
    /// "none" in every record.
    pub fn outside(ram: &[Region], used: impl IntoIterator<Item = Region>) -> Self {
        let used = merge(used.into_iter().chain([Region::new(0, PAGE_BYTES)]));
        let mut free = Vec::new();
        for range in ram {
            let mut start = range.start;
            for region in used.iter().filter(|region| region.overlaps(range)) {
                free.push(Region::new(start, region.start.saturating_sub(start)));
                start = start.max(region.end());
            }
            free.push(Region::new(start, range.end().saturating_sub(start)));
        }
        free.retain(|region| region.size != 0);
        Self { free }
    }
}

impl PageAllocator for FreeRegions {
    fn allocate(&mut self, order: u8) -> Option<u64> {
        let size = order_size(order);
        for (index, region) in self.free.iter_mut().enumerate() {
            let Some(start) = region.start.checked_next_multiple_of(size) else {
                continue;
            };
            let Some(end) = start.checked_add(size).filter(|end| *end <= region.end()) else {
                continue;
            };
            let before = Region::new(region.start, start.saturating_sub(region.start));
            *region = Region::new(end, region.end().saturating_sub(end));
            if before.size != 0 {
                self.free.insert(index, before);
            }
            return Some(start);
        }
        None
    }
}

/// Writes each record on pages of its own, and keeps the list of pages to preserve.
pub(crate) struct Placer<'a> {
    memory: &'a mut dyn PhysicalMemoryMut,
    allocator: &'a mut dyn PageAllocator,
    preserved: Vec<Block>,
}

impl<'a> Placer<'a> {
    pub(crate) fn new(memory: &'a mut dyn PhysicalMemoryMut, allocator: &'a mut dyn PageAllocator) -> Self {
        Self {
            memory,
            allocator,
            preserved: Vec::new(),
        }
    }

    /// Everything preserved so far.
    pub(super) fn preserved(&self) -> &[Block] {
        &self.preserved
    }

    pub(super) fn preserve(&mut self, block: Block) -> Result<(), BuildError> {
        self.preserved.push(super::check(block)?);
        Ok(())
    }

    /// A zeroed block that is not preserved.
    pub(super) fn zeroed(&mut self, order: u8) -> Result<u64, BuildError> {
        let address = self
            .allocator
            .allocate(order)
            .ok_or(BuildError::OutOfMemory { order })?;
        if address == 0 || !address.is_multiple_of(order_size(order)) {
            return Err(BuildError::BadAllocation { address, order });
        }
        let zeroes = vec![0; crate::memory::clamp(order_size(order))];
        self.memory.write(address, &zeroes)?;
        Ok(address)
    }

    /// A zeroed, preserved page.
    pub(super) fn preserved_page(&mut self) -> Result<u64, BuildError> {
        let address = self.zeroed(0)?;
        self.preserve(Block::new(address, 0))?;
        Ok(address)
    }

    /// Writes bytes on preserved pages of their own: the smallest block that holds them, as `kho_alloc_preserve()`.
    pub(crate) fn place(&mut self, bytes: &[u8]) -> Result<u64, BuildError> {
        let order = order_for(bytes.len());
        let address = self.zeroed(order)?;
        self.memory.write(address, bytes)?;
        self.preserve(Block::new(address, order))?;
        Ok(address)
    }

    pub(super) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), BuildError> {
        Ok(self.memory.write(address, bytes)?)
    }
}

/// Order of the smallest block that holds so many bytes.
pub(super) fn order_for(size: usize) -> u8 {
    let pages = len64(size).div_ceil(PAGE_BYTES).max(1);
    let order = pages
        .checked_next_power_of_two()
        .map_or(64_u32.saturating_sub(PAGE_SHIFT), u64::trailing_zeros);
    u8::try_from(order).unwrap_or(u8::MAX)
}
