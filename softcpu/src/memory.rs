//! Guest RAM as the processor sees it: the only module of this crate with `unsafe`.
//!
//! RAM is one or two regions of host memory (below and above the PCI hole). The processor addresses it by *offset*: the
//! regions laid end to end. Every access is checked against the total length, so an offset that the TLB kept too long
//! reads wrong guest memory at worst, never host memory.
//!
//! The host memory is shared with device models, which write it between two runs of the processor but never during one
//! (the processor is single-threaded and has the machine's attention while it runs), so plain loads and stores are
//! enough.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};

use crate::word::Word;

/// Size of a page in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// The same, for arrays.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A run of guest physical memory backed by host memory.
#[derive(Debug, Clone, Copy)]
pub struct RamRegion {
    /// First guest physical address; a multiple of [`PAGE_SIZE`].
    pub guest_physical: u64,
    /// Where the host keeps it.
    pub host: *mut u8,
    /// Length in bytes; a multiple of [`PAGE_SIZE`].
    pub len: u64,
}

/// Why regions do not make a [`Ram`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RamError {
    /// The processor knows RAM below and above one hole.
    #[error("guest RAM has {0} regions, expected one or two")]
    RegionCount(usize),
    /// A region's edges are not on page boundaries, or it is empty.
    #[error("guest RAM region at {guest_physical:#x} of {len:#x} bytes is empty or not made of whole pages")]
    Shape {
        /// Where the region begins.
        guest_physical: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// Regions overlap or are out of order.
    #[error("guest RAM region at {guest_physical:#x} begins below the end of the one before it, {end:#x}")]
    Order {
        /// Where the second region begins.
        guest_physical: u64,
        /// Where the first one ends.
        end: u64,
    },
}

/// Guest RAM.
#[derive(Debug)]
pub struct Ram {
    /// Guest physical start and length of the two regions; the second may be empty.
    regions: [(u64, u64); 2],
    /// Host address of the byte with offset 0, and of the byte with offset `regions[0].1` less that length, so that one
    /// addition makes an offset of either region a host address.
    bases: [*mut u8; 2],
    total: u64,
    owned: Option<Layout>,
}

// SAFETY: the pointers are plain memory that whoever made the `Ram` promised to be reachable and unaliased for its
// life; nothing about them is tied to a thread.
unsafe impl Send for Ram {}

impl Ram {
    /// RAM over host memory that somebody else owns.
    ///
    /// # Errors
    /// When the regions are not one or two ordered runs of whole pages.
    ///
    /// # Safety
    /// For the life of the `Ram`, each region must stay mapped readable and writable, and while a method of this crate runs that
    /// is given the `Ram`, nothing else may access that memory and no Rust reference to it may be live. Excepted is the bus that
    /// the method is given: while the method calls it, it may access that memory.
    pub unsafe fn from_raw(regions: &[RamRegion]) -> Result<Self, RamError> {
        let (first, second) = match *regions {
            [one] => (
                one,
                RamRegion {
                    guest_physical: u64::MAX,
                    host: std::ptr::null_mut(),
                    len: 0,
                },
            ),
            [one, two] => (one, two),
            _ => return Err(RamError::RegionCount(regions.len())),
        };
        for region in regions {
            let RamRegion {
                guest_physical, len, ..
            } = *region;
            if len == 0 || !len.is_multiple_of(PAGE_SIZE) || !guest_physical.is_multiple_of(PAGE_SIZE) {
                return Err(RamError::Shape { guest_physical, len });
            }
        }
        let end = first.guest_physical.saturating_add(first.len);
        if second.len != 0 && second.guest_physical < end {
            return Err(RamError::Order {
                guest_physical: second.guest_physical,
                end,
            });
        }
        let total = first.len.saturating_add(second.len);
        Ok(Self {
            regions: [
                (first.guest_physical, first.len),
                (second.guest_physical, second.len),
            ],
            bases: [first.host, second.host.wrapping_sub(index(first.len))],
            total,
            owned: None,
        })
    }

    /// `bytes` (rounded up to whole pages, at least one) of zeroed memory of its own at guest physical address 0.
    ///
    /// # Panics
    /// When the host has no such amount of memory.
    #[must_use]
    pub fn new_owned(bytes: u64) -> Self {
        let len = bytes.max(1).next_multiple_of(PAGE_SIZE);
        let layout = Layout::from_size_align(index(len), index(PAGE_SIZE)).expect("RAM size fits the host");
        // SAFETY: the layout's size is at least one page, so not zero.
        let host = unsafe { alloc_zeroed(layout) };
        assert!(
            !host.is_null(),
            "the host cannot give {len:#x} bytes for guest RAM"
        );
        Self {
            regions: [(0, len), (u64::MAX, 0)],
            bases: [host; 2],
            total: len,
            owned: Some(layout),
        }
    }

    /// Total size in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether there is no RAM at all (never so for a `Ram` made by this module).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The offset of the page that holds guest physical address `gpa`, or `None` outside RAM.
    #[must_use]
    pub fn page_offset(&self, gpa: u64) -> Option<u64> {
        let page = gpa & !(PAGE_SIZE - 1);
        let (start, len) = self.regions[0];
        if page.wrapping_sub(start) < len {
            return Some(page - start);
        }
        let (start, second) = self.regions[1];
        (page.wrapping_sub(start) < second).then(|| page - start + len)
    }

    /// The guest physical address of the byte at `offset`.
    #[must_use]
    pub fn address_of(&self, offset: u64) -> u64 {
        let (start, len) = self.regions[0];
        if offset < len {
            start + offset
        } else {
            self.regions[1].0.wrapping_add(offset - len)
        }
    }

    /// Where the host has the page at `offset`, which lies in RAM. Translated code goes there.
    pub(crate) fn host_address(&self, offset: u64) -> u64 {
        self.host(offset, PAGE_SIZE)
            .map_or(0, |host| host.expose_provenance() as u64)
    }

    /// What host addresses of pages depend on: equal for two `Ram`s over the same host memory.
    pub(crate) fn identity(&self) -> [u64; 4] {
        let [low, high] = self.bases.map(|base| base.addr() as u64);
        [low, high, self.regions[0].1, self.total]
    }

    #[inline(always)]
    fn host(&self, offset: u64, size: u64) -> Option<*mut u8> {
        if offset > self.total.wrapping_sub(size) || size > self.total {
            return None;
        }
        let base = if offset < self.regions[0].1 {
            self.bases[0]
        } else {
            self.bases[1]
        };
        Some(base.wrapping_add(index(offset)))
    }

    /// Loads a little-endian value that lies within one page; zero when `offset` is outside.
    #[inline(always)]
    pub(crate) fn load<T: Word>(&self, offset: u64) -> T {
        match self.host(offset, T::BYTES) {
            // SAFETY: `host` has checked that the bytes are inside RAM, which stays mapped; a page never straddles two
            // regions.
            Some(host) => unsafe { host.cast::<T>().read_unaligned() },
            None => T::default(),
        }
    }

    /// Stores a little-endian value that lies within one page; nothing when `offset` is outside.
    #[inline(always)]
    pub(crate) fn store<T: Word>(&mut self, offset: u64, value: T) {
        if let Some(host) = self.host(offset, T::BYTES) {
            // SAFETY: as for `load`, and `&mut self` says that nobody else of this crate looks.
            unsafe { host.cast::<T>().write_unaligned(value) }
        }
    }

    /// Copies bytes of one page out of RAM.
    pub(crate) fn load_bytes(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(host) = self.host(offset, bytes.len() as u64) {
            // SAFETY: source checked as in `load`; a Rust slice never overlaps guest RAM (promise of `from_raw`).
            unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), bytes.len()) }
        }
    }

    /// Copies bytes of one page into RAM.
    pub(crate) fn store_bytes(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(host) = self.host(offset, bytes.len() as u64) {
            // SAFETY: as for `load_bytes`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) }
        }
    }

    /// Copies `len` bytes within RAM as if through a buffer; each side lies within one page.
    pub(crate) fn copy_within(&mut self, from: u64, to: u64, len: u64) {
        if let (Some(from), Some(to)) = (self.host(from, len), self.host(to, len)) {
            // SAFETY: both sides are inside RAM; `copy` allows them to overlap.
            unsafe { std::ptr::copy(from, to, index(len)) }
        }
    }

    /// Fills `len` bytes of one page.
    pub(crate) fn fill(&mut self, offset: u64, len: u64, value: u8) {
        if let Some(host) = self.host(offset, len) {
            // SAFETY: inside RAM, checked by `host`.
            unsafe { std::ptr::write_bytes(host, value, index(len)) }
        }
    }

    /// Reads guest physical memory; false, and `bytes` unspecified, when any of it is outside RAM.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> bool {
        let mut at = gpa;
        for chunk in page_chunks(gpa, bytes.len()) {
            let Some(page) = self.page_offset(at) else {
                return false;
            };
            let part = &mut bytes[chunk.clone()];
            self.load_bytes(page + at % PAGE_SIZE, part);
            at = at.wrapping_add(chunk.len() as u64);
        }
        true
    }

    /// Writes guest physical memory; false when any of it is outside RAM (what was inside before that point is
    /// written).
    pub fn write(&mut self, gpa: u64, bytes: &[u8]) -> bool {
        let mut at = gpa;
        for chunk in page_chunks(gpa, bytes.len()) {
            let Some(page) = self.page_offset(at) else {
                return false;
            };
            self.store_bytes(page + at % PAGE_SIZE, &bytes[chunk.clone()]);
            at = at.wrapping_add(chunk.len() as u64);
        }
        true
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: `bases[0]` came from `alloc_zeroed` with this very layout and is given back once.
            unsafe { dealloc(self.bases[0], layout) }
        }
    }
}

/// The ranges of a buffer of `len` bytes at `gpa` that lie in one page each.
fn page_chunks(gpa: u64, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let first = index(PAGE_SIZE - gpa % PAGE_SIZE);
    let mut start = 0;
    std::iter::from_fn(move || {
        if start >= len {
            return None;
        }
        let end = if start == 0 {
            first.min(len)
        } else {
            (start + index(PAGE_SIZE)).min(len)
        };
        let chunk = start..end;
        start = end;
        Some(chunk)
    })
}

/// A 64-bit quantity as a host index (the host is 64-bit).
#[allow(clippy::cast_possible_truncation)]
#[inline(always)]
const fn index(value: u64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_regions_are_reached_through_one_offset_space() {
        let (mut low, mut high) = (vec![0u8; 8192], vec![0u8; 4096]);
        let regions = [
            RamRegion {
                guest_physical: 0,
                host: low.as_mut_ptr(),
                len: 8192,
            },
            RamRegion {
                guest_physical: 1 << 32,
                host: high.as_mut_ptr(),
                len: 4096,
            },
        ];
        // SAFETY: both vectors outlive the RAM and are not touched while it is used.
        let mut ram = unsafe { Ram::from_raw(&regions) }.unwrap();
        assert!(ram.write((1 << 32) + 5, b"baton"));
        assert!(!ram.write(8190, b"baton"), "the hole is not RAM");
        let mut bytes = [0; 5];
        assert!(ram.read((1 << 32) + 5, &mut bytes));
        assert_eq!(&bytes, b"baton");
        assert_eq!(ram.page_offset(1 << 32), Some(8192));
        assert_eq!(ram.address_of(8193), (1 << 32) + 1);
        assert_eq!(ram.page_offset(8192), None);
        drop(ram);
        assert_eq!(&high[5..10], b"baton");
    }

    #[test]
    fn an_offset_outside_touches_nothing() {
        let mut ram = Ram::new_owned(4096);
        ram.store::<u64>(4089, u64::MAX);
        ram.store::<u64>(u64::MAX, u64::MAX);
        assert_eq!(ram.load::<u64>(4088), 0);
        assert_eq!(ram.load::<u64>(4089), 0);
    }

    #[test]
    fn shapes_are_checked() {
        let mut bytes = vec![0u8; 4096];
        let bad = [RamRegion {
            guest_physical: 1,
            host: bytes.as_mut_ptr(),
            len: 4096,
        }];
        // SAFETY: the vector outlives the call.
        let made = unsafe { Ram::from_raw(&bad) };
        assert!(matches!(
            made,
            Err(RamError::Shape {
                guest_physical: 1,
                ..
            })
        ));
    }
}
