//! All parts of a machine except its processors: RAM, devices, and records of a run.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::devices::SystemBus;
use crate::devices::mailbox::TooLong;
use crate::devices::power::PowerRequest;
use crate::memory::GuestRam;
use crate::vcpu::Registers;

/// A device needs the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The ledger is full, which has stopped the DMA engine.
    LedgerFull,
    /// The agent rang the doorbell.
    Message(Result<Vec<u8>, TooLong>),
    /// The guest, or the injection of this number, asked to switch the machine off or to reset it.
    Power(PowerRequest, Option<u16>),
    /// The injection of this number asks the host what to do.
    InjectionAsks(usize),
}

/// The processor's access to the DMA engine that caused an engine event.
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

/// RAM, devices and records. [`crate::processors::Processors::run`] borrows it while processors execute.
#[derive(Debug)]
pub struct Platform {
    /// Guest RAM.
    pub ram: Arc<GuestRam>,
    /// The devices.
    pub bus: SystemBus,
    /// The accesses that caused engine events.
    pub causes: Vec<Cause>,
    /// Signs of progress.
    pub progress: Progress,
}

impl Platform {
    /// Lets every device do what is due at `now`, and checks for new console output. `retired` is the number of
    /// instructions, where the backend counts them.
    pub fn advance(&mut self, now: u64, retired: impl FnOnce() -> Option<u64>) {
        self.count_instructions(now, retired);
        self.bus.advance(now);
        self.note_output(now);
    }

    /// Tells the injections the number of instructions, if one needs it.
    pub fn count_instructions(&mut self, now: u64, retired: impl FnOnce() -> Option<u64>) {
        if self.bus.view.injections.need_instructions()
            && let Some(retired) = retired()
        {
            self.bus.view.injections.count(now, retired);
        }
    }

    /// The next event of a device, if there is one. To be called after an access and after [`Platform::advance`].
    pub fn take_event(&mut self, now: u64) -> Option<DeviceEvent> {
        if self.bus.dma.stopped_by_ledger() {
            return Some(DeviceEvent::LedgerFull);
        }
        if let Some(index) = self.bus.view.injections.asks() {
            return Some(DeviceEvent::InjectionAsks(index));
        }
        if let Some(message) = self.bus.mailbox.take_message() {
            self.progress.mark(now);
            return Some(DeviceEvent::Message(message));
        }
        let requested = self.bus.power.requested();
        requested.map(|(request, by)| DeviceEvent::Power(request, by))
    }

    /// Counts new console output as progress.
    pub fn note_output(&mut self, now: u64) {
        self.progress.printed(now, self.bus.uart.console.total());
    }

    /// Whether no time may pass: the ledger is full, or an injection asks the host what to do.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.bus.dma.stopped_by_ledger() || self.bus.view.injections.asks().is_some()
    }

    /// Number of engine events so far. If an access adds some, pass them to [`Platform::note_causes`].
    #[must_use]
    pub fn engine_events(&self) -> usize {
        self.bus.view.ledger.events().len()
    }

    /// Records the cause of these engine events: the access after which a processor stopped, with `registers`.
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
        let privilege = registers.privilege();
        let cause = |event| Cause {
            event,
            rip: registers.rip,
            retired,
            privilege,
        };
        self.causes.extend(events.map(cause));
    }
}

/// When the guest last made progress: sent a message, printed, or changed phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    since: u64,
    printed: u64,
    limit: u64,
}

impl Progress {
    /// `limit` is the guest time without progress after which the run ends, in nanoseconds.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            since: 0,
            printed: 0,
            limit,
        }
    }

    /// The guest made progress at `now`.
    pub fn mark(&mut self, now: u64) {
        self.since = now;
    }

    fn printed(&mut self, now: u64, total: u64) {
        if total != self.printed {
            self.printed = total;
            self.since = now;
        }
    }

    /// Sets the guest time without progress after which the run ends, in nanoseconds.
    pub fn allow(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Guest time at which the run ends if there is no progress before.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.since.saturating_add(self.limit)
    }

    /// Guest time of the last progress, and the limit, in nanoseconds.
    #[must_use]
    pub fn since_and_limit(&self) -> (u64, u64) {
        (self.since, self.limit)
    }
}
