//! Everything of a machine but its processors: RAM, devices, and what is recorded while they run.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::devices::SystemBus;
use crate::devices::mailbox::TooLong;
use crate::devices::power::PowerRequest;
use crate::memory::GuestRam;
use crate::vcpu::{CS, Registers};

/// What a device has to say to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The ledger is full and the DMA engine stands.
    LedgerFull,
    /// The agent rang the doorbell.
    Message(Result<Vec<u8>, TooLong>),
    /// The guest asked to be switched off or reset.
    Power(PowerRequest),
}

/// The processor's access to the device that made an engine event happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Index of the event in the ledger's list.
    pub event: usize,
    /// Address of the instruction after the one that made the access.
    pub rip: u64,
    /// Instructions retired, that one included, where the backend counts them.
    pub retired: Option<u64>,
    /// Privilege level, 0 or 3.
    pub privilege: u8,
}

/// RAM, devices and records. Whoever runs processors has it for as long as they run.
#[derive(Debug)]
pub struct Platform {
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// The devices.
    pub bus: SystemBus,
    /// Which accesses made engine events happen.
    pub causes: Vec<Cause>,
    /// Signs of life.
    pub progress: Progress,
}

impl Platform {
    /// Lets every device do what is due, and looks whether the guest prints.
    pub fn advance(&mut self, now: u64) {
        self.bus.advance(now);
        self.note_output(now);
    }

    /// What a device has to say to the host after an access or a deadline.
    pub fn take_event(&mut self, now: u64) -> Option<DeviceEvent> {
        if self.bus.dma.stopped_by_ledger() {
            return Some(DeviceEvent::LedgerFull);
        }
        if let Some(message) = self.bus.mailbox.take_message() {
            self.progress.mark(now);
            return Some(DeviceEvent::Message(message));
        }
        self.bus.power.requested().map(DeviceEvent::Power)
    }

    /// Looks whether the guest prints, which is a sign of life.
    pub fn note_output(&mut self, now: u64) {
        self.progress.printed(now, self.bus.uart.console.total());
    }

    /// Number of engine events so far: those that an access adds are told to [`Platform::note_causes`].
    #[must_use]
    pub fn engine_events(&self) -> usize {
        self.bus.view.ledger.events().len()
    }

    /// These engine events were made by the access after which a processor stopped with these registers.
    pub fn note_causes(
        &mut self,
        events: Range<usize>,
        retired: Option<u64>,
        registers: impl FnOnce() -> Registers,
    ) {
        if events.is_empty() {
            return;
        }
        let registers = registers();
        let privilege = (registers.segments[CS].selector & 3) as u8;
        let cause = |event| Cause {
            event,
            rip: registers.rip,
            retired,
            privilege,
        };
        self.causes.extend(events.map(cause));
    }
}

/// Signs of life: messages, console output, phase changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    since: u64,
    printed: u64,
    limit: u64,
}

impl Progress {
    /// `limit` is the guest time without a sign after which the guest counts as stuck, in nanoseconds.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            since: 0,
            printed: 0,
            limit,
        }
    }

    /// There was a sign.
    pub fn mark(&mut self, now: u64) {
        self.since = now;
    }

    fn printed(&mut self, now: u64, total: u64) {
        if total != self.printed {
            self.printed = total;
            self.since = now;
        }
    }

    /// When the guest will count as stuck.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.since.saturating_add(self.limit)
    }

    /// When the last sign was, and how long one may be waited for, in guest nanoseconds.
    #[must_use]
    pub fn since_and_limit(&self) -> (u64, u64) {
        (self.since, self.limit)
    }
}
