//! The first write of a processor to each page in each phase.

use serde::{Deserialize, Serialize};

use crate::memory::PAGE_SIZE;
use crate::phase::Stamp;
use crate::vcpu::CpuWrite;

/// Most page writes that are kept over all phases: 96 MiB.
pub const CAPACITY: usize = 4 << 20;

const USER: u64 = 1 << 63;

/// A processor's first write to a page in a phase: a [`CpuWrite`] without its length, in 24 bytes instead of 40,
/// because up to [`CAPACITY`] of them are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageWrite {
    /// Guest physical address; the top bit is set if user code wrote.
    place: u64,
    /// Address of the writing instruction.
    pub rip: u64,
    /// Guest time in nanoseconds.
    pub time: u64,
}

impl PageWrite {
    /// Guest physical address of the first byte written.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.place & !USER
    }

    /// Page frame number.
    #[must_use]
    pub fn pfn(&self) -> u64 {
        self.address() / PAGE_SIZE
    }

    /// Whether user code wrote, not the kernel.
    #[must_use]
    pub fn by_user(&self) -> bool {
        self.place & USER != 0
    }
}

impl From<CpuWrite> for PageWrite {
    fn from(write: CpuWrite) -> Self {
        let user = if write.user { USER } else { 0 };
        Self {
            place: write.gpa & !USER | user,
            rip: write.rip,
            time: write.time,
        }
    }
}

/// The pages that processors wrote in one phase, in order of their first write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseWrites {
    /// Generation and phase.
    pub stamp: Stamp,
    /// First write to each page.
    pub writes: Vec<PageWrite>,
    /// Number of pages written for which there was no room.
    pub dropped: u64,
}

/// First writes of all phases so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    phases: Vec<PhaseWrites>,
    room: usize,
}

impl Default for Provenance {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Provenance {
    /// Room for `capacity` pages over all phases.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            phases: Vec::new(),
            room: capacity,
        }
    }

    /// Begins a phase.
    pub fn begin(&mut self, stamp: Stamp) {
        self.phases.push(PhaseWrites {
            stamp,
            writes: Vec::new(),
            dropped: 0,
        });
    }

    /// Adds a first write to the phase begun last.
    pub fn add(&mut self, write: CpuWrite) {
        let Some(phase) = self.phases.last_mut() else {
            return;
        };
        if self.room == 0 {
            phase.dropped += 1;
        } else {
            self.room -= 1;
            phase.writes.push(write.into());
        }
    }

    /// Every phase begun so far, in order. A phase that was entered twice is listed twice. The writes of the current
    /// phase are added when it ends.
    #[must_use]
    pub fn phases(&self) -> &[PhaseWrites] {
        &self.phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::{Phase, Stamp};

    fn write(gpa: u64, user: bool) -> CpuWrite {
        CpuWrite {
            gpa,
            len: 8,
            rip: 0xffff_ffff_8100_0000,
            time: 7,
            user,
        }
    }

    #[test]
    fn a_write_is_kept_in_24_bytes() {
        assert_eq!(size_of::<PageWrite>(), 24);
        let user = PageWrite::from(write(0x1_2345_6788, true));
        assert_eq!(
            (user.address(), user.pfn(), user.by_user()),
            (0x1_2345_6788, 0x12_3456, true)
        );
        assert!(!PageWrite::from(write(0, false)).by_user());
    }

    #[test]
    fn room_is_shared_by_all_phases() {
        let mut provenance = Provenance::with_capacity(3);
        provenance.add(write(0, false));
        for phase in [Phase::BootOld, Phase::Jump] {
            provenance.begin(Stamp { generation: 0, phase });
            provenance.add(write(0x1000, false));
            provenance.add(write(0x2000, false));
        }
        let [boot, jump] = provenance.phases() else {
            panic!()
        };
        assert_eq!((boot.writes.len(), boot.dropped), (2, 0));
        assert_eq!((jump.writes.len(), jump.dropped), (1, 1));
    }
}
