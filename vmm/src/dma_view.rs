//! A device's view of guest memory: the only way in which a device writes it, and each write goes into the ledger in the same
//! call.
//!
//! # What may race
//!
//! On `soft` nothing does: processors and devices take turns. On `kvm` this view is used by the device thread and, where an access to a
//! register has an effect at once, by the thread of the vCPU that made it, both under the platform's lock; meanwhile guest code
//! reads and writes the same memory, as beside any device.
//!
//! - *Device against guest code* races, and is meant to. Every access here is one of vm-memory's volatile copies, never a reference into
//!   guest memory, so that a guest that writes meanwhile changes what is read and breaks nothing. What is read, a descriptor, is read
//!   once, into memory of our own, and checked there.
//! - *Order*: a block is in memory before the completion count that announces it, and the count before the interrupt. The count is 8 bytes, aligned
//!   (anything else is a fault of the engine), and stored in one access, so that a guest sees the old or the new one. x86 keeps
//!   stores in order, for the guest too.
//! - *Device against device, ledger against memory* do not race: the lock is held from the write to its entry.
//! - *The host's eyes*: captures, checksums and the oracle read memory only while no thread of the machine runs. A page that the guest wrote at
//!   the moment a device did holds the bytes of both; the ledger says what the device's were.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::interrupt::Msi;
use crate::ledger::{Kind, Ledger, LedgerFull};
use crate::memory::{GuestRam, MemoryError};
use crate::phase::Stamp;

/// Why a device write did not happen.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The target is not RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A write that cannot be recorded is not made.
    #[error(transparent)]
    Ledger(#[from] LedgerFull),
}

/// Guest memory as a bus-mastering device sees it.
#[derive(Debug)]
pub struct DmaView {
    ram: Arc<GuestRam>,
    /// The record of everything written through this view.
    pub ledger: Ledger,
    stamp: Stamp,
    /// Written since the processor was last told: (address, length).
    stale: Vec<(u64, u64)>,
    messages: Vec<Msi>,
}

/// A view without its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaViewState {
    /// The record of everything written.
    pub ledger: Ledger,
    stamp: Stamp,
    stale: Vec<(u64, u64)>,
    messages: Vec<Msi>,
}

impl DmaView {
    /// A view of `ram` that records into `ledger`.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, ledger: Ledger) -> Self {
        Self {
            ram,
            ledger,
            stamp: Stamp::START,
            stale: Vec::new(),
            messages: Vec::new(),
        }
    }

    /// All but the memory.
    #[must_use]
    pub fn state(&self) -> DmaViewState {
        let Self {
            ram: _,
            ledger,
            stamp,
            stale,
            messages,
        } = self;
        DmaViewState {
            ledger: ledger.clone(),
            stamp: *stamp,
            stale: stale.clone(),
            messages: messages.clone(),
        }
    }

    /// A view of `ram` in that state.
    #[must_use]
    pub fn from_state(ram: Arc<GuestRam>, state: &DmaViewState) -> Self {
        let DmaViewState {
            ledger,
            stamp,
            stale,
            messages,
        } = state.clone();
        Self {
            ram,
            ledger,
            stamp,
            stale,
            messages,
        }
    }

    /// The stamp of everything from now on.
    pub fn set_stamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
    }

    /// The current stamp.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Reads guest memory.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.ram.read(address, buffer)
    }

    /// Whether a whole range is RAM.
    #[must_use]
    pub fn contains(&self, address: u64, length: u64) -> bool {
        self.ram.contains(address, length)
    }

    /// Writes guest memory and the ledger, or neither.
    pub fn write(&mut self, time: u64, kind: Kind, address: u64, data: &[u8]) -> Result<(), DmaError> {
        self.ledger.reserve()?;
        self.ram.write(address, data)?;
        self.ledger.record(time, self.stamp, kind, address, data);
        self.stale.push((address, data.len() as u64));
        Ok(())
    }

    /// Sends a message to the local APICs and records it, or neither.
    pub fn message(&mut self, time: u64, msi: Msi) -> Result<(), LedgerFull> {
        self.ledger.reserve()?;
        self.ledger.record(
            time,
            self.stamp,
            Kind::Msi { data: msi.data },
            msi.address,
            &msi.data.to_le_bytes(),
        );
        self.messages.push(msi);
        Ok(())
    }

    /// What was written since the last call, for the processor to drop decoded code: (address, length).
    pub fn take_stale(&mut self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.stale.drain(..)
    }

    /// Messages on their way to the local APICs.
    pub fn take_messages(&mut self) -> Vec<Msi> {
        std::mem::take(&mut self.messages)
    }

    /// Whether anything waits to be taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stale.is_empty() && self.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM;

    #[test]
    fn a_write_and_its_entry_come_together_or_not_at_all() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let mut view = DmaView::new(Arc::clone(&ram), Ledger::new(2));
        let kind = Kind::Completion { count: 1 };
        assert!(matches!(
            view.write(1, kind, MIN_RAM, &[1]),
            Err(DmaError::Memory(_))
        ));
        assert_eq!(view.ledger.made(), 0);
        view.write(1, kind, 0x1000, &[1]).unwrap();
        view.write(2, kind, 0x2000, &[2]).unwrap();
        assert_eq!(view.take_stale().collect::<Vec<_>>(), [(0x1000, 1), (0x2000, 1)]);
        assert!(matches!(
            view.write(3, kind, 0x3000, &[3]),
            Err(DmaError::Ledger(_))
        ));
        let mut byte = [9];
        ram.read(0x3000, &mut byte).unwrap();
        assert_eq!(byte, [0], "what cannot be recorded is not written");
        assert!(
            view.message(
                4,
                Msi {
                    address: 0xfee0_0000,
                    data: 1
                }
            )
            .is_err()
        );
        assert!(view.take_messages().is_empty() && view.is_idle());
    }
}
