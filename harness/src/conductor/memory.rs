//! Adapter through which the handover's decoder reads guest RAM.

use kho_core::{MemoryError, PhysicalMemory, Region};
use vmm::memory::GuestRam;

/// Guest RAM.
pub struct GuestMemory<'a>(pub(super) &'a GuestRam);

impl<'a> GuestMemory<'a> {
    /// This guest RAM.
    pub fn new(ram: &'a GuestRam) -> Self {
        Self(ram)
    }
}

impl PhysicalMemory for GuestMemory<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let size = buf.len() as u64;
        self.0
            .read(address, buf)
            .map_err(|_| MemoryError::OutsideRam { address, size })
    }

    fn ranges(&self) -> Vec<Region> {
        let region = |range: &std::ops::Range<u64>| Region::new(range.start, range.end - range.start);
        self.0.regions().iter().map(region).collect()
    }
}
