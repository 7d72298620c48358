//! The image of the next kernel that the running kernel has loaded for a kexec.
//!
//! Until the jump its pages lie anywhere in memory, and the kernel's own list says which goes where. The list is made
//! of words (kimage_entry_t, include/linux/kexec.h): a page frame's address with a flag in its low bits.

use crate::evidence::PAGE;
use kho_core::{KhoData, MemoryError, PhysicalMemory, Region};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use vmm::boot::{BootMemory, BootParams};
use vmm::memory::{GuestRam, MemoryError as RamError};

/// The pages that follow go to this address on.
const DESTINATION: u64 = 1;
/// The list goes on at this address.
const INDIRECTION: u64 = 2;
/// The list ends.
const DONE: u64 = 4;
/// This page goes to the next destination.
const SOURCE: u64 = 8;
/// Offset of the number of setup sectors in a bzImage (`setup_sects`, Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;

/// Guest RAM as it will be once the image has been put into its place.
pub(super) struct Placed<'a> {
    ram: &'a GuestRam,
    /// Where the page for each frame of the image lies now.
    now: BTreeMap<u64, u64>,
    /// Frames of each segment of the image.
    segments: Vec<Range<u64>>,
}

/// The next kernel, in memory. Pages are where they lie now, in the order in which they will.
pub(super) struct Next<'a> {
    /// Memory as the next kernel will find it.
    pub memory: Placed<'a>,
    /// Pages of its image file, without the setup code.
    pub kernel: Vec<u64>,
    /// Pages of its initrd.
    pub initrd: Vec<u64>,
    /// Its KHO data.
    pub kho: Option<KhoData>,
}

impl<'a> Placed<'a> {
    /// Memory in which everything is in its place.
    pub fn already(ram: &'a GuestRam) -> Self {
        Self {
            ram,
            now: BTreeMap::new(),
            segments: Vec::new(),
        }
    }

    /// Follows the kernel's list, whose first word is `head`.
    pub fn by_list(ram: &'a GuestRam, head: u64) -> Result<Self, String> {
        let most = ram.bytes() / PAGE * 2;
        let (mut placed, mut next) = (Self::already(ram), None);
        let (mut entry, mut at) = (head, 0);
        for _ in 0..most {
            let page = entry & !(PAGE - 1);
            match entry & (PAGE - 1) {
                INDIRECTION => at = page,
                DONE => return Ok(placed),
                DESTINATION => {
                    let frame = page / PAGE;
                    placed.segments.push(frame..frame);
                    next = Some(frame);
                }
                SOURCE => {
                    let (Some(frame), Some(segment)) = (next, placed.segments.last_mut()) else {
                        return Err("the list of the image's pages has a page before a destination".into());
                    };
                    placed.now.insert(frame, page / PAGE);
                    segment.end = frame + 1;
                    next = Some(frame + 1);
                }
                _ => return Err(format!("the list of the image's pages has the word {entry:#x}")),
            }
            let word = ram.read_u64(at);
            entry =
                word.map_err(|_| format!("the list of the image's pages leads to {at:#x}, which is no RAM"))?;
            at += 8;
        }
        Err("the list of the image's pages does not end".into())
    }

    /// Where the page for a frame lies now.
    pub fn now(&self, frame: u64) -> u64 {
        self.now.get(&frame).copied().unwrap_or(frame)
    }

    /// All frames where pages of the image lie now or will lie.
    pub fn all(&self) -> BTreeSet<u64> {
        self.now.iter().flat_map(|(frame, now)| [*frame, *now]).collect()
    }

    fn page_by_page<E>(
        &self,
        address: u64,
        buffer: &mut [u8],
        read: impl Fn(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut at, mut rest) = (address, buffer);
        while !rest.is_empty() {
            let room = usize::try_from(PAGE - at % PAGE).unwrap_or(usize::MAX);
            let (part, later) = rest.split_at_mut(room.min(rest.len()));
            read(self.now(at / PAGE) * PAGE + at % PAGE, part)?;
            at = at.saturating_add(part.len() as u64);
            rest = later;
        }
        Ok(())
    }
}

impl BootMemory for Placed<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), RamError> {
        self.page_by_page(address, buffer, |at, part| self.ram.read(at, part))
    }
}

impl PhysicalMemory for Placed<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let size = buffer.len() as u64;
        BootMemory::read(self, address, buffer).map_err(|_| MemoryError::OutsideRam { address, size })
    }

    fn ranges(&self) -> Vec<Region> {
        let regions = self.ram.regions().iter();
        regions
            .map(|range| Region::new(range.start, range.end - range.start))
            .collect()
    }
}

impl<'a> Next<'a> {
    /// The image that waits for the jump. `file` is the bzImage that it was made of.
    pub fn waiting(memory: Placed<'a>, file: &[u8]) -> Result<Self, String> {
        let firsts = memory.segments.iter().map(|segment| segment.start * PAGE);
        let params = firsts
            .filter_map(|address| BootParams::read(&memory, address).ok())
            .next();
        let params = params.ok_or("no segment of the image has boot parameters")?;
        // The kernel's segment has room for the kernel after it is decompressed.
        let pages = u64::from(params.init_size).div_ceil(PAGE);
        let mut segments = memory.segments.iter();
        let kernel = segments.find(|segment| segment.end - segment.start == pages && pages > 0);
        let kernel = kernel.ok_or("no segment of the image has the size that its kernel asks for")?;
        Self::of(&params, kernel.start, memory, file)
    }

    /// The image of a kernel that is about to execute its first instruction, at `load_address` plus 0x200.
    pub fn entered(
        params: &BootParams,
        load_address: u64,
        ram: &'a GuestRam,
        file: &[u8],
    ) -> Result<Self, String> {
        Self::of(params, load_address / PAGE, Placed::already(ram), file)
    }

    fn of(params: &BootParams, kernel: u64, memory: Placed<'a>, file: &[u8]) -> Result<Self, String> {
        let sectors = file.get(SETUP_SECTS).map_or(0, |sectors| u64::from(*sectors));
        let setup = (if sectors == 0 { 4 } else { sectors } + 1) * 512;
        let bytes = (file.len() as u64)
            .saturating_sub(setup)
            .min(params.init_size.into());
        let now = |first: u64, bytes: u64| -> Vec<u64> {
            (first..first.saturating_add(bytes.div_ceil(PAGE)))
                .map(|frame| memory.now(frame))
                .collect()
        };
        let ram = memory.ram.bytes();
        let initrd = now(params.initrd_address / PAGE, params.initrd_bytes.min(ram));
        let kernel = now(kernel, bytes);
        let kho = params.kho_data(&memory).map_err(|error| error.to_string())?;
        Ok(Self {
            kernel,
            initrd,
            kho,
            memory,
        })
    }
}

#[cfg(test)]
mod tests;
