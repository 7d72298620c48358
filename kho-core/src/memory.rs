//! Physical memory as the readers see it: any read may fail.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::abi::{PAGE_SHIFT, PAGE_SIZE};

/// A range of physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Region {
    /// The region of `size` bytes at `start`.
    pub const fn new(start: u64, size: u64) -> Self {
        Self { start, size }
    }

    /// One past the last byte; `u64::MAX` if the region would run past the address space.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether the address is inside.
    pub const fn contains(&self, address: u64) -> bool {
        self.start <= address && address < self.end()
    }

    /// Whether the whole of `other` is inside, and `other` does not run past the address space.
    pub fn covers(&self, other: &Region) -> bool {
        other
            .start
            .checked_add(other.size)
            .is_some_and(|end| self.start <= other.start && end <= self.end())
    }

    /// Whether there is a byte in both.
    pub const fn overlaps(&self, other: &Region) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end())
    }
}

/// A read that could not be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The bytes are not (all) in RAM.
    #[error("{size} bytes at {address:#x} are outside RAM")]
    OutsideRam {
        /// First byte asked for.
        address: u64,
        /// Number of bytes asked for.
        size: u64,
    },
    /// The bytes are in RAM, but this source does not have them (a sparse capture).
    #[error("the page at {page:#x} is RAM, but this capture does not hold it")]
    Absent {
        /// Address of the first page that is missing.
        page: u64,
    },
    /// The source itself failed.
    #[error("reading {size} bytes at {address:#x} failed")]
    Failed {
        /// First byte asked for.
        address: u64,
        /// Number of bytes asked for.
        size: u64,
    },
}

/// Physical memory that can be read: guest memory, an image of RAM, a map of a few pages.
pub trait PhysicalMemory {
    /// Fills `buf` from `address` on, or fails and leaves its contents unspecified.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// The ranges that are RAM, ascending and disjoint.
    fn ranges(&self) -> Vec<Region>;

    /// Whether the whole region is RAM.
    fn is_ram(&self, region: &Region) -> bool {
        self.ranges().iter().any(|range| range.covers(region))
    }
}

impl<M: PhysicalMemory + ?Sized> PhysicalMemory for &M {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        (**self).read(address, buf)
    }

    fn ranges(&self) -> Vec<Region> {
        (**self).ranges()
    }
}

/// Physical memory that can also be written, for the builder.
pub trait PhysicalMemoryMut: PhysicalMemory {
    /// Writes `bytes` from `address` on, all or nothing.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), MemoryError>;
}

/// A contiguous image of RAM whose first byte is at a given address.
#[derive(Debug, Clone)]
pub struct SliceMemory<B> {
    base: u64,
    bytes: B,
}

impl<B: AsRef<[u8]>> SliceMemory<B> {
    /// RAM that begins at physical address `base` and holds `bytes`.
    pub fn new(base: u64, bytes: B) -> Self {
        Self { base, bytes }
    }

    /// The bytes behind the image.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    fn window(&self, address: u64, size: usize) -> Result<core::ops::Range<usize>, MemoryError> {
        let outside = MemoryError::OutsideRam {
            address,
            size: len64(size),
        };
        let start = address
            .checked_sub(self.base)
            .and_then(|start| usize::try_from(start).ok())
            .ok_or(outside)?;
        let end = start.checked_add(size).ok_or(outside)?;
        if end > self.bytes.as_ref().len() {
            return Err(outside);
        }
        Ok(start..end)
    }
}

impl<B: AsRef<[u8]>> PhysicalMemory for SliceMemory<B> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let window = self.window(address, buf.len())?;
        let failed = MemoryError::OutsideRam {
            address,
            size: len64(buf.len()),
        };
        buf.copy_from_slice(self.bytes.as_ref().get(window).ok_or(failed)?);
        Ok(())
    }

    fn ranges(&self) -> Vec<Region> {
        alloc::vec![Region::new(self.base, len64(self.bytes.as_ref().len()))]
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> PhysicalMemoryMut for SliceMemory<B> {
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let window = self.window(address, bytes.len())?;
        let failed = MemoryError::OutsideRam {
            address,
            size: len64(bytes.len()),
        };
        self.bytes
            .as_mut()
            .get_mut(window)
            .ok_or(failed)?
            .copy_from_slice(bytes);
        Ok(())
    }
}

/// One page of memory.
pub type Page = [u8; PAGE_SIZE];

/// A few pages of a larger RAM: a capture of the pages that matter, or the input of a test.
///
/// A page that is RAM but not held reads as an error, never as zeroes: a capture must contain all pages that its
/// reader needs.
#[derive(Debug, Clone, Default)]
pub struct SparseMemory {
    ram: Vec<Region>,
    pages: BTreeMap<u64, Box<Page>>,
}

impl SparseMemory {
    /// RAM at the given ranges, without any pages.
    pub fn new(ram: Vec<Region>) -> Self {
        let mut ram = ram;
        ram.sort_unstable();
        Self {
            ram,
            pages: BTreeMap::new(),
        }
    }

    /// Holds the page that contains `address` (rounded down) with these contents.
    pub fn insert(&mut self, address: u64, page: Page) {
        self.pages.insert(address >> PAGE_SHIFT, Box::new(page));
    }

    /// The pages held, by ascending address.
    pub fn pages(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.pages
            .iter()
            .map(|(frame, page)| (frame.wrapping_shl(PAGE_SHIFT), &**page))
    }
}

impl PhysicalMemory for SparseMemory {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let size = len64(buf.len());
        if !self.is_ram(&Region::new(address, size)) {
            return Err(MemoryError::OutsideRam { address, size });
        }
        each_page(address, buf.len(), |at, part, offset| {
            let absent = MemoryError::Absent {
                page: at & !PAGE_MASK,
            };
            let page = self.pages.get(&(at >> PAGE_SHIFT)).ok_or(absent)?;
            let from = page
                .get(offset..offset.saturating_add(part.len()))
                .ok_or(absent)?;
            buf.get_mut(part).ok_or(absent)?.copy_from_slice(from);
            Ok(())
        })
    }

    fn ranges(&self) -> Vec<Region> {
        self.ram.clone()
    }
}

impl PhysicalMemoryMut for SparseMemory {
    /// Adds pages that are not held yet, zeroed.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let size = len64(bytes.len());
        if !self.is_ram(&Region::new(address, size)) {
            return Err(MemoryError::OutsideRam { address, size });
        }
        each_page(address, bytes.len(), |at, part, offset| {
            let failed = MemoryError::Failed { address, size };
            let page = self
                .pages
                .entry(at >> PAGE_SHIFT)
                .or_insert_with(|| Box::new([0; PAGE_SIZE]));
            let to = page
                .get_mut(offset..offset.saturating_add(part.len()))
                .ok_or(failed)?;
            to.copy_from_slice(bytes.get(part).ok_or(failed)?);
            Ok(())
        })
    }
}

/// Reads bytes into a buffer that grows as they arrive, so an untrusted size allocates no more than can be read.
pub(crate) fn read_pieces(
    memory: &dyn PhysicalMemory,
    address: u64,
    size: usize,
) -> Result<Vec<u8>, MemoryError> {
    const PIECE: usize = 16 * PAGE_SIZE;
    let mut bytes = Vec::new();
    while bytes.len() < size {
        let start = bytes.len();
        bytes.resize(size.min(start.saturating_add(PIECE)), 0);
        let at = address.saturating_add(len64(start));
        memory.read(at, bytes.get_mut(start..).unwrap_or_default())?;
    }
    Ok(bytes)
}

const PAGE_MASK: u64 = (1 << PAGE_SHIFT) - 1;

/// Calls `visit(address, range of the buffer, offset in the page)` for each page that the bytes touch.
fn each_page(
    address: u64,
    size: usize,
    mut visit: impl FnMut(u64, core::ops::Range<usize>, usize) -> Result<(), MemoryError>,
) -> Result<(), MemoryError> {
    let mut done = 0_usize;
    while done < size {
        let at = address.saturating_add(len64(done));
        let offset = clamp(at & PAGE_MASK);
        let part = PAGE_SIZE.saturating_sub(offset).min(size.saturating_sub(done));
        visit(at, done..done.saturating_add(part), offset)?;
        done = done.saturating_add(part);
    }
    Ok(())
}

/// A length as a 64-bit number.
pub(crate) fn len64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// A 64-bit number as a length; `usize::MAX` if it does not fit.
pub(crate) fn clamp(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_refuses_what_is_not_all_inside() {
        let memory = SliceMemory::new(0x1000, [1_u8, 2, 3, 4]);
        let mut two = [0; 2];
        assert_eq!(memory.read(0x1002, &mut two), Ok(()));
        assert_eq!(two, [3, 4]);
        for address in [0, 0xfff, 0x1003, u64::MAX] {
            assert_eq!(
                memory.read(address, &mut two),
                Err(MemoryError::OutsideRam { address, size: 2 })
            );
        }
    }

    #[test]
    fn sparse_memory_tells_a_hole_from_the_outside() {
        let mut memory = SparseMemory::new(alloc::vec![Region::new(0, 0x4000)]);
        memory.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let mut four = [0; 4];
        memory.read(0x1ffe, &mut four).unwrap();
        assert_eq!(four, [1, 2, 3, 4]);
        assert_eq!(memory.pages().count(), 2);
        assert_eq!(
            memory.read(0x2ffe, &mut four),
            Err(MemoryError::Absent { page: 0x3000 })
        );
        assert_eq!(
            memory.read(0x3ffe, &mut four),
            Err(MemoryError::OutsideRam {
                address: 0x3ffe,
                size: 4
            })
        );
        assert!(memory.write(0x3ffe, &four).is_err());
    }

    #[test]
    fn regions_at_the_end_of_the_address_space_do_not_wrap() {
        let last = Region::new(u64::MAX - 1, 16);
        assert_eq!(last.end(), u64::MAX);
        assert!(!Region::new(0, u64::MAX).covers(&last));
        assert!(last.overlaps(&Region::new(0, u64::MAX)));
        assert!(!last.overlaps(&Region::new(0, 0x1000)));
    }
}
