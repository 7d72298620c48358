//! A device's view of guest memory. Devices write memory only through it, and each write enters the ledger in the same
//! call.
//!
//! # What may race
//!
//! On `soft` nothing races: processors and devices take turns. On `kvm` the device thread uses this view, and so does a
//! vCPU's thread when its register access takes effect at once. Both hold the platform's lock. Guest code on other
//! vCPUs reads and writes the same memory meanwhile, as on hardware.
//!
//! - *Device against guest code* races by design. Every access here is a volatile copy of vm-memory, never a reference
//!   into guest memory, so a concurrent guest write can change the data read but cannot corrupt this process. A
//!   descriptor is copied once and then checked in the copy.
//! - *Order*: a block is written before the completion count that announces it, and the count before the interrupt. The
//!   count is 8 aligned bytes (the engine faults otherwise) stored in one access, so a guest reads either the old or
//!   the new value. x86 keeps stores in order.
//! - *Device against device, and memory against ledger*, do not race: one lock is held over the write and its ledger
//!   entry.
//! - *Captures and checksums* read memory only while no thread of the machine runs. If guest and device wrote a page at
//!   the same time, it holds bytes of both, and the ledger has the device's.
//!
//! # Injections
//!
//! Every write passes the filter in `filter.rs`, which may change it. The ledger then has what the device meant and
//! what was made of it.

mod filter;
mod messages;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::injection::{Injections, Occurrence};
use crate::interrupt::{Msi, is_message_address};
use crate::ledger::{Kind, Ledger, LedgerFull};
use crate::memory::{GuestRam, MemoryError};
use crate::phase::Stamp;
use filter::Late;
pub use filter::MAX_LATE;

/// Why a device write was refused.
#[derive(Debug, Error)]
pub enum DmaError {
    /// The target is not RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The ledger has no room for the entry.
    #[error(transparent)]
    Ledger(#[from] LedgerFull),
}

/// Guest memory as a bus-mastering device sees it.
#[derive(Debug)]
pub struct DmaView {
    ram: Arc<GuestRam>,
    /// The record of everything written through this view.
    pub ledger: Ledger,
    /// The injections of the machine.
    pub injections: Injections,
    stamp: Stamp,
    /// Ranges written since [`DmaView::take_written`]: (address, length).
    written: Vec<(u64, u64)>,
    messages: Vec<Msi>,
    /// Writes that an injection makes later, in the order in which they were held back.
    late: Vec<Late>,
}

/// The state of a view without guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaViewState {
    /// The record of everything written.
    pub ledger: Ledger,
    injections: Injections,
    stamp: Stamp,
    written: Vec<(u64, u64)>,
    messages: Vec<Msi>,
    late: Vec<Late>,
}

impl DmaView {
    /// A view of `ram` that records into `ledger`.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, ledger: Ledger) -> Self {
        Self {
            ram,
            ledger,
            injections: Injections::default(),
            stamp: Stamp::START,
            written: Vec::new(),
            messages: Vec::new(),
            late: Vec::new(),
        }
    }

    /// The state without guest memory.
    #[must_use]
    pub fn state(&self) -> DmaViewState {
        let Self {
            ram: _,
            ledger,
            injections,
            stamp,
            written,
            messages,
            late,
        } = self;
        DmaViewState {
            ledger: ledger.clone(),
            injections: injections.clone(),
            stamp: *stamp,
            written: written.clone(),
            messages: messages.clone(),
            late: late.clone(),
        }
    }

    /// A view of `ram`, restored from `state`.
    #[must_use]
    pub fn from_state(ram: Arc<GuestRam>, state: &DmaViewState) -> Self {
        let DmaViewState {
            ledger,
            injections,
            stamp,
            written,
            messages,
            late,
        } = state.clone();
        Self {
            ram,
            ledger,
            injections,
            stamp,
            written,
            messages,
            late,
        }
    }

    /// Sets the stamp of all later entries.
    pub fn set_stamp(&mut self, stamp: Stamp) {
        self.stamp = stamp;
    }

    /// The current stamp.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Reads guest memory for the device.
    pub fn read(&mut self, time: u64, address: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        if !self.injections.is_empty() {
            self.injections.occurred(time, |on| on == Occurrence::Read);
        }
        self.ram.read(address, buffer)
    }

    /// Whether all bytes of a range are RAM.
    #[must_use]
    pub fn contains(&self, address: u64, length: u64) -> bool {
        self.ram.contains(address, length)
    }

    /// Writes guest memory and records the write. After an error neither has happened. An injection may change what is
    /// written, and where; the device does not notice.
    pub fn write(&mut self, time: u64, kind: Kind, address: u64, data: &[u8]) -> Result<(), DmaError> {
        if !self.ram.contains(address, data.len() as u64) {
            // The device's own error, which no injection changes.
            self.ram.write(address, data)?;
        }
        if self.changes(time, kind, address, data)? {
            return Ok(());
        }
        self.ledger.reserve()?;
        self.ram.write(address, data)?;
        self.ledger.record(time, self.stamp, kind, address, data);
        self.written.push((address, data.len() as u64));
        Ok(self.make_reordered(time)?)
    }

    /// Makes the write of an MSI and records it: a message to the local APICs, or at any other address four bytes of
    /// memory, which are lost where no RAM is. After an error nothing has happened. An injection may change it.
    pub fn message(&mut self, time: u64, msi: Msi) -> Result<(), LedgerFull> {
        let (kind, data) = (Kind::Msi { data: msi.data }, msi.data.to_le_bytes());
        if self.changes(time, kind, msi.address, &data)? {
            return Ok(());
        }
        self.ledger.reserve()?;
        self.put_message(msi);
        self.ledger.record(time, self.stamp, kind, msi.address, &data);
        self.make_reordered(time)
    }

    fn put_message(&mut self, msi: Msi) {
        if is_message_address(msi.address) {
            self.messages.push(msi);
        } else if self.ram.write(msi.address, &msi.data.to_le_bytes()).is_ok() {
            self.written.push((msi.address, 4));
        }
    }

    /// Ranges written since the last call, in which processors must drop decoded code: (address, length).
    pub fn take_written(&mut self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.written.drain(..)
    }

    /// Takes the messages sent since the last call, to be delivered to local APICs.
    pub fn take_messages(&mut self) -> Vec<Msi> {
        std::mem::take(&mut self.messages)
    }

    /// Whether both [`DmaView::take_written`] and [`DmaView::take_messages`] would return nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.written.is_empty() && self.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_RAM;

    #[test]
    fn a_message_to_no_local_apic_is_a_write_to_memory() {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let mut view = DmaView::new(Arc::clone(&ram), Ledger::new(8));
        let word = |address| ram.read_u64(address).unwrap();
        let data = 0x1122_3344;
        ram.write(0x5000, &[0xff; 8]).unwrap();
        for (address, is_message, is_ram) in [
            (0xfee0_0000, true, false),
            (0xfeef_fffc, true, false),
            (0x5000, false, true),
            // Neither: no RAM is there.
            (0xfedf_fffc, false, false),
            (0xfef0_0000, false, false),
            (!3, false, false),
        ] {
            view.message(1, Msi { address, data }).unwrap();
            assert_eq!(
                view.take_messages().len(),
                usize::from(is_message),
                "{address:#x}"
            );
            let written: Vec<_> = view.take_written().collect();
            assert_eq!(written, if is_ram { vec![(address, 4)] } else { vec![] });
            let entry = *view.ledger.entries().last().unwrap();
            assert_eq!(
                (entry.address, entry.length, entry.kind),
                (address, 4, Kind::Msi { data })
            );
            assert_eq!(entry.goes_to_memory(), !is_message);
        }
        assert_eq!(word(0x5000), 0xffff_ffff_1122_3344);
    }

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
        assert_eq!(
            view.take_written().collect::<Vec<_>>(),
            [(0x1000, 1), (0x2000, 1)]
        );
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
