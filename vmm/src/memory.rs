//! Guest RAM: one region below 3 GiB, the rest above 4 GiB, as on a PC.
//!
//! The regions are anonymous mappings that the host fills page by page as they are written, so that an idle guest costs
//! little. Every write that does not come from the processor goes through [`GuestRam`], which remembers the pages.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Bytes in a page.
pub const PAGE_SIZE: u64 = PAGE_BYTES as u64;
/// The same, as a length of host memory.
pub const PAGE_BYTES: usize = 4096;
/// Where RAM below 4 GiB ends at the latest; from here to 4 GiB is device space.
pub const LOW_RAM_END: u64 = 3 << 30;
/// Where the rest of RAM begins.
pub const HIGH_RAM_START: u64 = 4 << 30;
/// Least RAM that a machine may have: a kernel image is placed at 16 MiB.
pub const MIN_RAM: u64 = 32 << 20;
/// Most RAM that a machine may have: the boot page tables map 512 GiB.
pub const MAX_RAM: u64 = 256 << 30;

/// What can be wrong with guest RAM or an access to it.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// RAM of that size cannot be had.
    #[error("guest RAM of {found} bytes: expected a multiple of 4096 from {MIN_RAM} to {MAX_RAM}")]
    Size {
        /// The size asked for, in bytes.
        found: u64,
    },
    /// The host refused the mapping.
    #[error("cannot map guest RAM")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    /// An access touches an address where no RAM is.
    #[error("guest physical {address:#x}, {length} bytes: not wholly in RAM")]
    OutsideRam {
        /// Guest physical address.
        address: u64,
        /// Length of the access in bytes.
        length: u64,
    },
}

/// Guest RAM, shared between the machine, its devices and its processor.
#[derive(Debug)]
pub struct GuestRam {
    map: GuestMemoryMmap<()>,
    bytes: u64,
    regions: Vec<Range<u64>>,
    /// One bit per page of RAM, in region order: someone wrote it.
    touched: Vec<AtomicU64>,
}

impl GuestRam {
    /// Maps `bytes` of zeroed RAM.
    pub fn new(bytes: u64) -> Result<Arc<Self>, MemoryError> {
        let too_large_for_host = usize::try_from(bytes).is_err();
        if !(MIN_RAM..=MAX_RAM).contains(&bytes) || !bytes.is_multiple_of(PAGE_SIZE) || too_large_for_host {
            return Err(MemoryError::Size { found: bytes });
        }
        let low = bytes.min(LOW_RAM_END);
        let high = HIGH_RAM_START..HIGH_RAM_START + (bytes - low);
        let regions: Vec<Range<u64>> = [0..low, high]
            .into_iter()
            .filter(|region| !region.is_empty())
            .collect();
        let ranges: Vec<(GuestAddress, usize)> = regions
            .iter()
            .map(|region| {
                let length = usize::try_from(region.end - region.start).unwrap_or(usize::MAX);
                (GuestAddress(region.start), length)
            })
            .collect();
        let words = usize::try_from((bytes / PAGE_SIZE).div_ceil(64)).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            map: GuestMemoryMmap::from_ranges(&ranges)?,
            bytes,
            regions,
            touched: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }))
    }

    /// Size of RAM in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The ranges of guest physical addresses that are RAM, in ascending order.
    #[must_use]
    pub fn regions(&self) -> &[Range<u64>] {
        &self.regions
    }

    /// End of the region below 4 GiB.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.regions[0].end
    }

    /// The underlying mapping, for loaders that write to it themselves; tell [`GuestRam::mark`] afterwards.
    #[must_use]
    pub fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// The regions as host memory: guest physical address, host address, length in bytes.
    pub fn host_regions(&self) -> impl Iterator<Item = (u64, *mut u8, u64)> + '_ {
        self.map
            .iter()
            .map(|region| (region.start_addr().0, region.as_ptr(), region.len()))
    }

    /// Whether the whole range is RAM.
    #[must_use]
    pub fn contains(&self, address: u64, length: u64) -> bool {
        let Some(end) = address.checked_add(length) else {
            return false;
        };
        self.regions
            .iter()
            .any(|region| region.start <= address && end <= region.end)
    }

    /// Reads RAM; a range that leaves RAM anywhere is refused as a whole.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check(address, buffer.len())?;
        self.map
            .read_slice(buffer, GuestAddress(address))
            .map_err(|_| MemoryError::OutsideRam {
                address,
                length: buffer.len() as u64,
            })
    }

    /// Reads a little-endian u64.
    pub fn read_u64(&self, address: u64) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes RAM on behalf of the loader or a device; a range that leaves RAM anywhere is refused as a whole.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.check(address, data.len())?;
        self.map
            .write_slice(data, GuestAddress(address))
            .map_err(|_| MemoryError::OutsideRam {
                address,
                length: data.len() as u64,
            })?;
        self.mark(address, data.len() as u64);
        Ok(())
    }

    fn check(&self, address: u64, length: usize) -> Result<(), MemoryError> {
        let length = length as u64;
        if self.contains(address, length) {
            Ok(())
        } else {
            Err(MemoryError::OutsideRam { address, length })
        }
    }

    /// Remembers that the pages of this range were written; what is not RAM is passed over.
    pub fn mark(&self, address: u64, length: u64) {
        if length == 0 {
            return;
        }
        let last = address.saturating_add(length - 1) / PAGE_SIZE;
        for pfn in address / PAGE_SIZE..=last {
            let Some(index) = self.page_index(pfn) else { return };
            self.touched[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
    }

    /// Page frame numbers of all pages that were marked, in ascending order.
    pub fn touched_pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.regions
            .iter()
            .flat_map(|region| region.start / PAGE_SIZE..region.end / PAGE_SIZE)
            .enumerate()
            .filter(|&(index, _)| self.touched[index / 64].load(Ordering::Relaxed) >> (index % 64) & 1 == 1)
            .map(|(_, pfn)| pfn)
    }

    fn page_index(&self, pfn: u64) -> Option<usize> {
        let address = pfn.checked_mul(PAGE_SIZE)?;
        let mut before = 0;
        for region in &self.regions {
            if region.contains(&address) {
                return usize::try_from((before + address - region.start) / PAGE_SIZE).ok();
            }
            before += region.end - region.start;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_make_no_machine_are_refused() {
        for bytes in [0, MIN_RAM - PAGE_SIZE, MIN_RAM + 1, MAX_RAM + PAGE_SIZE, u64::MAX] {
            assert!(
                matches!(GuestRam::new(bytes), Err(MemoryError::Size { found }) if found == bytes),
                "{bytes}"
            );
        }
    }

    #[test]
    fn large_ram_leaves_device_space_free() {
        let ram = GuestRam::new(LOW_RAM_END + (64 << 20)).unwrap();
        assert_eq!(
            ram.regions(),
            [0..LOW_RAM_END, HIGH_RAM_START..HIGH_RAM_START + (64 << 20)]
        );
        ram.write(HIGH_RAM_START + 5, b"above").unwrap();
        ram.write(LOW_RAM_END - 4, b"edge").unwrap();
        assert_eq!(
            ram.touched_pages().collect::<Vec<_>>(),
            [LOW_RAM_END / PAGE_SIZE - 1, HIGH_RAM_START / PAGE_SIZE]
        );
        assert!(ram.write(LOW_RAM_END - 4, b"over the edge").is_err());
    }

    #[test]
    fn accesses_outside_ram_are_refused_whole() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        for (address, length) in [(MIN_RAM - 1, 2), (MIN_RAM, 1), (u64::MAX, 2), (u64::MAX - 3, 4)] {
            assert!(ram.write(address, &vec![1; length]).is_err(), "{address:#x}");
            assert!(ram.read(address, &mut vec![0; length]).is_err(), "{address:#x}");
            assert!(!ram.contains(address, length as u64));
        }
        assert_eq!(ram.touched_pages().count(), 0);
        let mut last = [9];
        ram.read(MIN_RAM - 1, &mut last).unwrap();
        assert_eq!(last, [0]);
    }

    #[test]
    fn a_write_across_pages_touches_each() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        ram.write(2 * PAGE_SIZE - 1, &[1, 2]).unwrap();
        ram.mark(0x5000, 0);
        assert_eq!(ram.touched_pages().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(ram.read_u64(2 * PAGE_SIZE - 1).unwrap(), 0x0201);
    }
}
