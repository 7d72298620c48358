//! Guest RAM: one region below 3 GiB, the rest above 4 GiB, as on a PC.
//!
//! The host allocates a page when it is first touched, so an idle guest costs little. A [`RamImage`] keeps RAM at one
//! moment. A machine that continues from an image shares each of its pages until it writes to the page.
//!
//! [`GuestRam`] marks the pages that were written since its image. Writes of the loader and of devices go through it.
//! The machine reports the processors' writes by [`GuestRam::mark`].

mod image;
mod mapping;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use thiserror::Error;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

pub use image::{PageStore, RamImage};
use mapping::Mapping;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = PAGE_BYTES as u64;
/// [`PAGE_SIZE`] as a `usize`.
pub const PAGE_BYTES: usize = 4096;
/// Highest end of RAM below 4 GiB. From here to 4 GiB is device space.
pub const LOW_RAM_END: u64 = 3 << 30;
/// Start of the rest of RAM.
pub const HIGH_RAM_START: u64 = 4 << 30;
/// Least RAM that a machine may have: a kernel image is placed at 16 MiB.
pub const MIN_RAM: u64 = 32 << 20;
/// Most RAM that a machine may have: the boot page tables map 512 GiB.
pub const MAX_RAM: u64 = 256 << 30;

/// Pages that an image stores together. More would copy many pages that were not written; fewer would need many
/// mappings.
const GRAIN: u64 = 16;

const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_BYTES).unwrap();

/// The ranges of guest physical addresses that are RAM in a machine with `bytes` of it, in ascending order.
#[must_use]
pub fn ram_regions(bytes: u64) -> Vec<Range<u64>> {
    let low = bytes.min(LOW_RAM_END);
    let high = HIGH_RAM_START..HIGH_RAM_START.saturating_add(bytes - low);
    [0..low, high]
        .into_iter()
        .filter(|region| !region.is_empty())
        .collect()
}

/// Errors of guest RAM and of accesses to it.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is not supported.
    #[error("guest RAM of {found} bytes: expected a multiple of 4096 from {MIN_RAM} to {MAX_RAM}")]
    Size {
        /// The size asked for, in bytes.
        found: u64,
    },
    /// The host refused the mapping.
    #[error("cannot map guest RAM")]
    Map(#[source] std::io::Error),
    /// The host could not store an image of RAM.
    #[error("cannot store an image of guest RAM")]
    Image(#[source] std::io::Error),
    /// An access is not wholly in RAM.
    #[error("guest physical {address:#x}, {length} bytes: not wholly in RAM")]
    OutsideRam {
        /// Guest physical address.
        address: u64,
        /// Length of the access in bytes.
        length: u64,
    },
}

/// Guest RAM, shared between the machine, its devices and its processors. Its regions point into `mappings`.
#[derive(Debug)]
pub struct GuestRam {
    map: GuestMemoryMmap<AtomicBitmap>,
    bytes: u64,
    regions: Vec<Range<u64>>,
    /// Content of RAM when the marks were last cleared. All pages that differ now are marked.
    base: Mutex<Arc<RamImage>>,
    mappings: Vec<Mapping>,
}

impl GuestRam {
    /// Maps `bytes` of zeroed RAM.
    pub fn new(bytes: u64) -> Result<Arc<Self>, MemoryError> {
        Self::from_image(&Arc::new(RamImage::zero(bytes / PAGE_SIZE)), bytes)
    }

    /// Maps RAM of `bytes` with the image's content. Pages stay shared with the image until they are written.
    pub fn from_image(image: &Arc<RamImage>, bytes: u64) -> Result<Arc<Self>, MemoryError> {
        let too_large_for_host = usize::try_from(bytes).is_err();
        let whole = bytes.is_multiple_of(PAGE_SIZE) && image.pages() == bytes / PAGE_SIZE;
        if !(MIN_RAM..=MAX_RAM).contains(&bytes) || !whole || too_large_for_host {
            return Err(MemoryError::Size { found: bytes });
        }
        let regions = ram_regions(bytes);
        let (mut mappings, mut mapped) = (Vec::new(), Vec::new());
        let mut first = 0;
        for region in &regions {
            let length = region.end - region.start;
            let pages = first..first + length / PAGE_SIZE;
            let mapping = map_pages(image, &pages).map_err(MemoryError::Map)?;
            mapped.push(guest_region(&mapping, region)?);
            mappings.push(mapping);
            first = pages.end;
        }
        let map = GuestMemoryMmap::from_regions(mapped)
            .map_err(|error| MemoryError::Map(std::io::Error::other(error)))?;
        Ok(Arc::new(Self {
            map,
            bytes,
            regions,
            base: Mutex::new(Arc::clone(image)),
            mappings,
        }))
    }

    /// Has the host provide RAM page by page and never as huge pages. A page that KVM maps while it lies in a writable
    /// huge page counts as written, even if the guest only reads it. To be called before anything is written to RAM.
    pub fn forbid_huge_pages(&self) -> Result<(), MemoryError> {
        self.for_each_mapping(Mapping::forbid_huge_pages)
    }

    /// Has the host provide RAM as huge pages where it can. Not for a machine that branches off an image: it writes to
    /// few pages of those that are zero.
    pub fn want_huge_pages(&self) -> Result<(), MemoryError> {
        self.for_each_mapping(Mapping::want_huge_pages)
    }

    fn for_each_mapping(&self, advise: fn(&Mapping) -> Result<(), Errno>) -> Result<(), MemoryError> {
        let advised = self.mappings.iter().try_for_each(advise);
        advised.map_err(|error| MemoryError::Map(error.into()))
    }

    /// An image of RAM now. Only pages that were marked since the last call are copied.
    ///
    /// No processor and no device may run during the call, and all pages that processors wrote must be marked.
    pub fn image(&self) -> Result<Arc<RamImage>, MemoryError> {
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        let mut store = PageStore::new(base.pages()).map_err(MemoryError::Image)?;
        let mut first = 0;
        for region in self.map.iter() {
            let pages = region.len() / PAGE_SIZE;
            let bitmap = region.get_mmap();
            for (page, count) in marked_runs(bitmap.bitmap(), pages) {
                let from = MemoryRegionAddress(page * PAGE_SIZE);
                let length = usize::try_from(count * PAGE_SIZE).unwrap_or(usize::MAX);
                let write = |file: &mut std::fs::File, at| {
                    std::io::Seek::seek(file, std::io::SeekFrom::Start(at))?;
                    region
                        .write_all_volatile_to(from, file, length)
                        .map_err(std::io::Error::other)
                };
                store
                    .append(first + page, count, write)
                    .map_err(MemoryError::Image)?;
            }
            first += pages;
        }
        let changes = store.into_extents().map_err(MemoryError::Image)?;
        if !changes.is_empty() {
            *base = Arc::new(base.overlaid(changes).map_err(MemoryError::Image)?);
        }
        for region in self.map.iter() {
            region.get_mmap().bitmap().reset();
        }
        Ok(Arc::clone(&base))
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

    /// The underlying mapping, for linux-loader, which writes to it.
    #[must_use]
    pub fn map(&self) -> &GuestMemoryMmap<AtomicBitmap> {
        &self.map
    }

    /// The regions as host memory: guest physical address, host address, length in bytes.
    pub fn host_regions(&self) -> impl Iterator<Item = (u64, *mut u8, u64)> + '_ {
        self.map
            .iter()
            .map(|region| (region.start_addr().0, region.as_ptr(), region.len()))
    }

    /// Whether all bytes of the range are RAM.
    #[must_use]
    pub fn contains(&self, address: u64, length: u64) -> bool {
        let Some(end) = address.checked_add(length) else {
            return false;
        };
        self.regions
            .iter()
            .any(|region| region.start <= address && end <= region.end)
    }

    /// Reads RAM. Fails without reading if the range is not wholly in RAM.
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

    /// Writes RAM on behalf of the loader or a device. Fails without writing if the range is not wholly in RAM.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.check(address, data.len())?;
        self.map
            .write_slice(data, GuestAddress(address))
            .map_err(|_| MemoryError::OutsideRam {
                address,
                length: data.len() as u64,
            })
    }

    fn check(&self, address: u64, length: usize) -> Result<(), MemoryError> {
        let length = length as u64;
        if self.contains(address, length) {
            Ok(())
        } else {
            Err(MemoryError::OutsideRam { address, length })
        }
    }

    /// Marks the pages of this range as written. Parts outside RAM are ignored.
    pub fn mark(&self, address: u64, length: u64) {
        for (range, region) in self.regions.iter().zip(self.map.iter()) {
            let from = address.max(range.start);
            let to = address.saturating_add(length).min(range.end);
            if from < to {
                let [offset, length] = [from - range.start, to - from].map(host_length);
                region.bitmap().mark_dirty(offset, length);
            }
        }
    }

    /// Page frame numbers of all pages that may differ from zero, in ascending order: those in the image, and those
    /// marked since then.
    #[must_use]
    pub fn touched_pages(&self) -> Vec<u64> {
        let base = Arc::clone(&self.base.lock().unwrap_or_else(PoisonError::into_inner));
        let mut stored = base
            .runs()
            .flat_map(|(page, count)| page..page + count)
            .peekable();
        let (mut touched, mut first) = (Vec::new(), 0);
        for (range, region) in self.regions.iter().zip(self.map.iter()) {
            let (mapping, pages) = (region.get_mmap(), region.len() / PAGE_SIZE);
            for page in 0..pages {
                let in_image = stored.next_if(|stored| *stored == first + page).is_some();
                if in_image || mapping.bitmap().is_bit_set(host_length(page)) {
                    touched.push(range.start / PAGE_SIZE + page);
                }
            }
            first += pages;
        }
        touched
    }

    /// Page frame numbers of the pages in groups of which no page may differ from zero, in ascending order. An image
    /// stores whole groups, so the answer is the same before and after an image was taken.
    #[must_use]
    pub fn untouched_groups(&self) -> Vec<u64> {
        let touched: BTreeSet<u64> = self.touched_pages().iter().map(|page| page / GRAIN).collect();
        let pages = |range: &Range<u64>| range.start / PAGE_SIZE..range.end / PAGE_SIZE;
        let all = self.regions.iter().flat_map(pages);
        all.filter(|page| !touched.contains(&(page / GRAIN))).collect()
    }
}

fn map_pages(image: &RamImage, pages: &Range<u64>) -> std::io::Result<Mapping> {
    let length = host_length((pages.end - pages.start) * PAGE_SIZE);
    let mut mapping = Mapping::zeroed(length)?;
    for extent in image.extents() {
        if let Some(part) = extent.part(pages.start, pages.end) {
            part.mapped_into(&mut mapping, pages.start)?;
        }
    }
    Ok(mapping)
}

#[allow(unsafe_code)]
fn guest_region(mapping: &Mapping, range: &Range<u64>) -> Result<GuestRegionMmap<AtomicBitmap>, MemoryError> {
    let length = host_length(range.end - range.start);
    let builder = MmapRegionBuilder::new_with_bitmap(length, AtomicBitmap::new(length, PAGE));
    // SAFETY: the mapping is at least as long, and GuestRam keeps it for as long as the region.
    let builder = unsafe { builder.with_raw_mmap_pointer(mapping.start()) };
    let region = builder
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .map_err(|error| MemoryError::Map(std::io::Error::other(error)))?;
    GuestRegionMmap::new(region, GuestAddress(range.start)).ok_or(MemoryError::Size {
        found: range.end - range.start,
    })
}

/// Runs of grains in which a page is marked: (first page, number of pages).
fn marked_runs(bitmap: &AtomicBitmap, pages: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut page = 0;
    while page < pages {
        let end = (page + GRAIN).min(pages);
        if (page..end).any(|page| bitmap.is_bit_set(host_length(page))) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == page => *count += end - page,
                _ => runs.push((page, end - page)),
            }
        }
        page = end;
    }
    runs
}

/// A length of guest RAM as a `usize`. [`GuestRam`] has checked that all of RAM fits.
fn host_length(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
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
            ram.touched_pages(),
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
        assert!(ram.touched_pages().is_empty());
        let mut last = [9];
        ram.read(MIN_RAM - 1, &mut last).unwrap();
        assert_eq!(last, [0]);
    }

    #[test]
    fn a_write_across_pages_touches_each() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        ram.write(2 * PAGE_SIZE - 1, &[1, 2]).unwrap();
        ram.mark(0x5000, 0);
        ram.mark(MIN_RAM, 5);
        assert_eq!(ram.touched_pages(), [1, 2]);
        assert_eq!(ram.read_u64(2 * PAGE_SIZE - 1).unwrap(), 0x0201);
    }

    fn byte(ram: &GuestRam, address: u64) -> u8 {
        let mut byte = [0];
        ram.read(address, &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn branches_share_an_image_and_keep_their_writes_to_themselves() {
        let bytes = LOW_RAM_END + (64 << 20);
        let ram = GuestRam::new(bytes).unwrap();
        for address in [0x1000, 0x20_0000, HIGH_RAM_START + 0x3000] {
            ram.write(address, &[1]).unwrap();
        }
        let first = ram.image().unwrap();
        ram.write(0x1000, &[2]).unwrap();
        let second = ram.image().unwrap();
        ram.write(0x1000, &[3]).unwrap();
        let branches = [&first, &second, &first].map(|image| GuestRam::from_image(image, bytes).unwrap());
        branches[0].write(0x20_0000, &[9]).unwrap();
        assert_eq!(branches.each_ref().map(|branch| byte(branch, 0x1000)), [1, 2, 1]);
        assert_eq!(
            branches.each_ref().map(|branch| byte(branch, 0x20_0000)),
            [9, 1, 1]
        );
        assert_eq!(byte(&branches[1], HIGH_RAM_START + 0x3000), 1);
        assert_eq!((byte(&ram, 0x1000), byte(&ram, 0x20_0000)), (3, 1));
        assert!(
            second.stored_pages() <= 3 * GRAIN,
            "a page is stored once per image"
        );
        assert!(
            branches[1]
                .touched_pages()
                .contains(&(HIGH_RAM_START / PAGE_SIZE + 3))
        );
    }

    #[test]
    fn an_image_of_another_size_is_refused() {
        let image = Arc::new(RamImage::zero(MIN_RAM / PAGE_SIZE));
        assert!(GuestRam::from_image(&image, 2 * MIN_RAM).is_err());
        assert!(GuestRam::from_image(&image, MIN_RAM).is_ok());
    }
}
