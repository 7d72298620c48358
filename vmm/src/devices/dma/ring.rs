//! Writing blocks: pace, descriptors, completion.

use guest_agent::device::dma as map;
use serde::{Deserialize, Serialize};

use super::DmaEngine;
use crate::content::block_content;
use crate::dma_view::{DmaError, DmaView};
use crate::ledger::{EngineEventKind, FaultReason, Kind};
use crate::memory::PAGE_SIZE;

/// When blocks are due. Counting bytes from a common origin keeps the rate exact whatever the block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pace {
    origin: u64,
    bytes: u64,
}

impl Pace {
    /// The next block is due now.
    pub fn starting(now: u64) -> Self {
        Self {
            origin: now,
            bytes: 0,
        }
    }

    /// When the next block is due at `rate` bytes per second.
    pub fn due(self, rate: u64) -> u64 {
        let after = u128::from(self.bytes) * 1_000_000_000 / u128::from(rate.max(1));
        self.origin
            .saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }
}

/// A descriptor as read from guest memory, checked.
struct Buffer {
    address: u64,
    length: u32,
    descriptor: u32,
}

/// A descriptor or ring that the engine cannot use.
struct Unusable {
    reason: FaultReason,
    address: u64,
    length: u32,
    descriptor: Option<u32>,
}

impl DmaEngine {
    /// Writes every block that is due.
    pub fn advance(&mut self, now: u64, view: &mut DmaView) {
        self.end_faults(now, view);
        while self.next_event().is_some_and(|due| due <= now) {
            self.one_block(now, view);
        }
    }

    /// Writes one block, or stops.
    pub(super) fn one_block(&mut self, now: u64, view: &mut DmaView) {
        match self.block(now, view) {
            Ok(()) => {}
            Err(Halt::Fault(unusable)) => self.fault(now, view, &unusable),
            Err(Halt::LedgerFull) => self.stop_for_ledger(now),
        }
    }

    /// Whether every descriptor holds a block that the consumer has not released.
    fn ring_full(&self) -> bool {
        let outstanding = self.registers.completed.saturating_sub(self.registers.consumed);
        outstanding >= u64::from(self.registers.ring_entries)
    }

    pub(super) fn end_wait_if_free(&mut self, now: u64, view: &mut DmaView) {
        let free_run = self.registers.control & map::CONTROL_FREE_RUN != 0;
        if self.waiting_since.is_none() || self.ring_full() && !free_run {
            return;
        }
        self.note_inactivity(now, view);
        self.waiting_since = None;
        self.active_at = Some(now);
        view.ledger.event(now, view.stamp(), EngineEventKind::WaitEnd);
        if self.pace.is_some() {
            // The block that was due is written at once, and the rate counts from now.
            self.pace = Some(Pace::starting(now));
        }
    }

    /// Writes one block, or begins to wait if no descriptor is free.
    fn block(&mut self, now: u64, view: &mut DmaView) -> Result<(), Halt> {
        self.check_ring()?;
        if self.ring_full() {
            if self.registers.control & map::CONTROL_FREE_RUN == 0 {
                self.note_inactivity(now, view);
                self.registers.waits += 1;
                self.waiting_since = Some(now);
                view.ledger.event(now, view.stamp(), EngineEventKind::WaitBegin);
                return Ok(());
            }
            self.registers.overwrites += 1;
            view.ledger.counters(view.stamp()).overwrites += 1;
        }
        let buffer = self.next_buffer(now, view)?;
        let block = &mut self.buffer.0;
        block.resize(buffer.length as usize, 0);
        block_content(self.setup.seed, self.sequence, block);
        let kind = Kind::Block {
            sequence: self.sequence,
            descriptor: buffer.descriptor,
        };
        view.write(now, kind, buffer.address, block)
            .map_err(|error| match error {
                DmaError::Ledger(_) => Halt::LedgerFull,
                DmaError::Memory(_) => Halt::Fault(buffer.fault(FaultReason::BufferOutsideRam)),
            })?;
        self.note_inactivity(now, view);
        self.active_at = Some(now);
        self.sequence += 1;
        self.registers.completed += 1;
        if let Some(pace) = &mut self.pace {
            pace.bytes += u64::from(buffer.length);
        }
        self.complete(now, view)
    }

    /// Tells the driver: completion count, then interrupt.
    fn complete(&mut self, now: u64, view: &mut DmaView) -> Result<(), Halt> {
        let (address, count) = (self.registers.completion_address, self.registers.completed);
        if address != 0 {
            let unusable = Unusable {
                reason: FaultReason::Completion,
                address,
                length: 8,
                descriptor: None,
            };
            if !address.is_multiple_of(8) {
                return Err(Halt::Fault(unusable));
            }
            if !self.setup.reaches(address, 8) {
                let reason = FaultReason::OutOfReach;
                return Err(Halt::Fault(Unusable { reason, ..unusable }));
            }
            view.write(now, Kind::Completion { count }, address, &count.to_le_bytes())
                .map_err(|error| match error {
                    DmaError::Ledger(_) => Halt::LedgerFull,
                    DmaError::Memory(_) => Halt::Fault(unusable),
                })?;
        }
        if self.registers.control & map::CONTROL_INTERRUPT != 0
            && let Some(msi) = self.msix.raise(&self.config, 0)
        {
            view.message(now, msi).map_err(|_| Halt::LedgerFull)?;
        }
        Ok(())
    }

    fn check_ring(&self) -> Result<(), Halt> {
        let registers = &self.registers;
        let (entries, address) = (registers.ring_entries, registers.ring_pages);
        let fault = |reason, address, length| {
            Err(Halt::Fault(Unusable {
                reason,
                address,
                length,
                descriptor: None,
            }))
        };
        if entries == 0 || entries > map::MAX_RING_ENTRIES || !address.is_multiple_of(PAGE_SIZE) {
            return fault(FaultReason::Ring, address, entries);
        }
        if registers.consumed > registers.completed {
            return fault(FaultReason::Consumed, registers.consumed, 0);
        }
        Ok(())
    }

    /// The address of a descriptor. Reads the page of the ring that holds it from the list in guest memory, at each
    /// use, so that a list that does not survive is noticed.
    fn locate(&self, now: u64, view: &mut DmaView, descriptor: u32) -> Result<u64, Halt> {
        let fault = |reason, address| {
            Halt::Fault(Unusable {
                reason,
                address,
                length: 8,
                descriptor: Some(descriptor),
            })
        };
        let index = u64::from(descriptor) / map::DESCRIPTORS_PER_PAGE;
        let at = self
            .registers
            .ring_pages
            .wrapping_add(index * map::LIST_WORD_BYTES);
        if !self.setup.reaches(at, map::LIST_WORD_BYTES) {
            return Err(fault(FaultReason::OutOfReach, at));
        }
        let mut word = [0; 8];
        view.read(now, at, &mut word)
            .map_err(|_| fault(FaultReason::ListOutsideRam, at))?;
        let page = u64::from_le_bytes(word);
        if !page.is_multiple_of(PAGE_SIZE) {
            return Err(fault(FaultReason::RingPage, page));
        }
        Ok(page + u64::from(descriptor) % map::DESCRIPTORS_PER_PAGE * map::DESCRIPTOR_BYTES)
    }

    /// Reads and checks the next descriptor, {u64 address, u32 length, u32 zero}.
    fn next_buffer(&self, now: u64, view: &mut DmaView) -> Result<Buffer, Halt> {
        let slot = self.registers.completed % u64::from(self.registers.ring_entries);
        let descriptor = (slot & 0xffff_ffff) as u32;
        let at = self.locate(now, view, descriptor)?;
        let fault = |reason| {
            Halt::Fault(Unusable {
                reason,
                address: at,
                length: u32::try_from(map::DESCRIPTOR_BYTES).unwrap_or(0),
                descriptor: Some(descriptor),
            })
        };
        if !self.setup.reaches(at, map::DESCRIPTOR_BYTES) {
            return Err(fault(FaultReason::OutOfReach));
        }
        let mut bytes = [0; 16];
        view.read(now, at, &mut bytes)
            .map_err(|_| fault(FaultReason::DescriptorOutsideRam))?;
        let [address, rest] = [0, 8].map(|from| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[from..from + 8]);
            u64::from_le_bytes(word)
        });
        let buffer = Buffer {
            address,
            length: (rest & 0xffff_ffff) as u32,
            descriptor,
        };
        let reason = if buffer.length == 0 {
            FaultReason::EmptyBuffer
        } else if buffer.length > map::MAX_BUFFER_BYTES {
            FaultReason::BufferTooLong
        } else if !self.setup.reaches(address, buffer.length.into()) {
            FaultReason::OutOfReach
        } else if !view.contains(address, buffer.length.into()) {
            FaultReason::BufferOutsideRam
        } else {
            return Ok(buffer);
        };
        Err(Halt::Fault(buffer.fault(reason)))
    }

    fn fault(&mut self, now: u64, view: &mut DmaView, unusable: &Unusable) {
        let Unusable {
            reason,
            address,
            length,
            descriptor,
        } = *unusable;
        view.ledger.event(
            now,
            view.stamp(),
            EngineEventKind::Fault {
                reason,
                address,
                length,
                descriptor,
            },
        );
        self.registers.faults += 1;
        self.registers.fault = true;
        self.settle(now);
    }
}

impl Buffer {
    fn fault(&self, reason: FaultReason) -> Unusable {
        Unusable {
            reason,
            address: self.address,
            length: self.length,
            descriptor: Some(self.descriptor),
        }
    }
}

/// Why a block was not written.
enum Halt {
    Fault(Unusable),
    LedgerFull,
}
