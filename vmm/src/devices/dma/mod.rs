//! The DMA engine, personality `stream`: the receive side of a network card.
//!
//! The engine takes descriptors from a ring in guest memory, whose pages a list in guest memory names. It fills the
//! buffers with [`crate::content`] at a set rate of guest time, advances a completion count and interrupts. It
//! continues across a kexec. It stops when the driver disables or resets it, at an invalid descriptor or an address
//! that it does not reach, and while the bus master bit is clear if it honours that bit. Only CONTROL's reset bit
//! resets it, because it offers neither function-level reset nor power states.

mod faults;
mod ring;

use guest_agent::device::{DMA_DEVICE_ID, VENDOR_ID, dma as map};
use serde::{Deserialize, Serialize};

use super::msix::Msix;
use super::pci::{CLASS_COMMUNICATION, COMMAND, COMMAND_MASTER, ConfigSpace};
use crate::dma_view::DmaView;
use crate::interrupt::Msi;
use crate::ledger::EngineEventKind;
use faults::Faults;
use ring::Pace;

/// Effect of the bus master bit in the PCI COMMAND register on the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusMaster {
    /// DMA only while the bit is set, as in plain PCI.
    Honoured,
    /// Once the bit has been set, clearing it is recorded and has no effect, as with a device that is preserved across
    /// a live update.
    #[default]
    Retained,
}

/// Configuration of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaConfig {
    /// Bytes per second of guest time; not 0.
    pub rate: u64,
    /// Seed of the stream's content.
    pub seed: u64,
    /// Meaning of the bus master bit.
    pub bus_master: BusMaster,
    /// Number of its address bits, [`MIN_ADDRESS_BITS`] to 64. It reaches addresses below 2 to the power of it.
    #[serde(default = "all_bits")]
    pub address_bits: u32,
}

/// Fewest address bits of an engine.
pub const MIN_ADDRESS_BITS: u32 = 32;

/// The address bits of an engine that reaches everything; so did all engines whose record does not say.
const fn all_bits() -> u32 {
    u64::BITS
}

impl Default for DmaConfig {
    /// An engine for a machine whose driver never starts it.
    fn default() -> Self {
        Self {
            rate: 1_000_000,
            seed: 0,
            bus_master: BusMaster::default(),
            address_bits: all_bits(),
        }
    }
}

/// What a driver programs the engine with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Programmed {
    /// Address of the list of the ring's pages.
    pub ring_pages: u64,
    /// Number of descriptors.
    pub ring_entries: u32,
    /// Address of the completion count.
    pub completion_address: u64,
    /// Whether the engine overwrites the oldest blocks when the ring is full.
    pub free_run: bool,
}

impl DmaConfig {
    /// Whether the engine has address bits enough for all of `length` bytes at `address`.
    #[must_use]
    pub fn reaches(&self, address: u64, length: u64) -> bool {
        let last = address.saturating_add(length.saturating_sub(1));
        last.checked_shr(self.address_bits).unwrap_or(0) == 0
    }
}

/// The engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmaEngine {
    /// Its configuration space.
    pub config: ConfigSpace,
    msix: Msix,
    setup: DmaConfig,
    registers: Registers,
    /// Sequence number of the next block. A reset keeps it, so that no two blocks have the same content.
    sequence: u64,
    mastered: bool,
    pace: Option<Pace>,
    /// When the engine began to wait for a free descriptor.
    waiting_since: Option<u64>,
    /// When the engine was enabled, last wrote a block or ended a wait; `None` while disabled.
    active_at: Option<u64>,
    ledger_full: bool,
    faults: Faults,
    #[serde(skip)]
    buffer: Scratch,
}

/// Buffer in which each block is generated. Its content between two blocks has no meaning.
#[derive(Debug, Clone, Default)]
struct Scratch(Vec<u8>);

impl PartialEq for Scratch {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Scratch {}

/// The registers that a reset clears.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    control: u32,
    fault: bool,
    ring_pages: u64,
    ring_entries: u32,
    completion_address: u64,
    consumed: u64,
    completed: u64,
    waits: u64,
    overwrites: u64,
    faults: u64,
}

impl DmaEngine {
    /// An engine whose BARs 0 and 2 firmware has placed at these addresses.
    #[must_use]
    pub fn new(setup: DmaConfig, bar0: u64, bar2: u64) -> Self {
        let config = ConfigSpace::new(VENDOR_ID, DMA_DEVICE_ID, CLASS_COMMUNICATION)
            .with_bar(0, map::BAR0_SIZE, bar0)
            .with_bar(2, map::BAR2_SIZE, bar2)
            .with_msix(map::MSIX_VECTORS, 2, map::MSIX_PBA);
        Self {
            config,
            msix: Msix::new(map::MSIX_VECTORS, map::MSIX_PBA),
            setup,
            registers: Registers::default(),
            sequence: 0,
            mastered: false,
            pace: None,
            waiting_since: None,
            active_at: None,
            ledger_full: false,
            faults: Faults::default(),
            buffer: Scratch::default(),
        }
    }

    /// Whether this state is possible at guest time `now`: all that a guest cannot change equals `after_power_on`, and
    /// no time is in the future.
    #[must_use]
    pub fn is_sound(&self, after_power_on: &Self, now: u64) -> bool {
        let begun = [self.waiting_since, self.active_at];
        self.setup.rate > 0
            && (MIN_ADDRESS_BITS..=u64::BITS).contains(&self.setup.address_bits)
            && self.config.has_shape_of(&after_power_on.config)
            && self.msix.has_shape_of(&after_power_on.msix)
            && begun.into_iter().flatten().all(|time| time <= now)
    }

    /// Its configuration.
    #[must_use]
    pub fn setup(&self) -> DmaConfig {
        self.setup
    }

    /// Blocks written since the machine was switched on.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.sequence
    }

    /// Whether the engine has stopped because the ledger is full.
    #[must_use]
    pub fn stopped_by_ledger(&self) -> bool {
        self.ledger_full
    }

    /// Reads configuration space.
    #[must_use]
    pub fn config_read(&self, offset: usize, size: u8) -> u32 {
        if self.is_gone() {
            return u32::MAX;
        }
        self.config.read(offset, size)
    }

    /// Writes configuration space.
    pub fn config_write(&mut self, now: u64, view: &mut DmaView, offset: usize, size: u8, value: u32) {
        if self.is_gone() {
            return;
        }
        let before = self.config.command() & COMMAND_MASTER != 0;
        self.config.write(offset, size, value);
        let on = self.config.command() & COMMAND_MASTER != 0;
        if on != before {
            let obeyed = on || self.setup.bus_master == BusMaster::Honoured;
            view.ledger
                .event(now, view.stamp(), EngineEventKind::BusMaster { on, obeyed });
            self.mastered |= on;
            self.settle(now);
        }
        let messages = self.msix.deliver_pending(&self.config);
        self.send(now, view, messages);
    }

    /// Reads BAR 0 or BAR 2.
    #[must_use]
    pub fn read(&self, bar: usize, offset: u64, size: u8) -> u64 {
        if self.is_gone() {
            return u64::MAX;
        }
        if bar == 2 {
            return self.msix.read(offset, size);
        }
        let registers = &self.registers;
        match (offset, size) {
            (map::MAGIC, 4) => map::MAGIC_VALUE.into(),
            (map::CONTROL, 4) => registers.control.into(),
            (map::STATUS, 4) => {
                let running = if self.running() { map::STATUS_RUNNING } else { 0 };
                (running | if registers.fault { map::STATUS_FAULT } else { 0 }).into()
            }
            (map::RING_PAGES, 8) => registers.ring_pages,
            (map::RING_ENTRIES, 4) => registers.ring_entries.into(),
            (map::COMPLETION_ADDRESS, 8) => registers.completion_address,
            (map::CONSUMED, 8) => registers.consumed,
            (map::COMPLETED, 8) => registers.completed,
            (map::WAITS, 8) => registers.waits,
            (map::OVERWRITES, 8) => registers.overwrites,
            (map::FAULTS, 8) => registers.faults,
            (map::ADDRESS_BITS, 4) => self.setup.address_bits.into(),
            _ => u64::MAX,
        }
    }

    /// Writes BAR 0 or BAR 2.
    pub fn write(&mut self, now: u64, view: &mut DmaView, bar: usize, offset: u64, size: u8, value: u64) {
        if self.is_gone() {
            return;
        }
        if bar == 2 {
            let messages = self.msix.write(&self.config, offset, size, value);
            self.send(now, view, messages);
            return;
        }
        let low = (value & 0xffff_ffff) as u32;
        match (offset, size) {
            (map::CONTROL, 4) => self.write_control(now, view, low),
            (map::RING_PAGES, 8) => self.registers.ring_pages = value,
            (map::RING_ENTRIES, 4) => self.registers.ring_entries = low,
            (map::COMPLETION_ADDRESS, 8) => self.registers.completion_address = value,
            (map::CONSUMED, 8) => {
                self.registers.consumed = value;
                self.end_wait_if_free(now, view);
            }
            _ => {}
        }
    }

    fn write_control(&mut self, now: u64, view: &mut DmaView, value: u32) {
        if value & map::CONTROL_RESET != 0 {
            view.ledger.event(now, view.stamp(), EngineEventKind::Reset);
            self.end_activity(now, view);
            self.registers = Registers::default();
            self.is_obedient_again();
            self.settle(now);
            return;
        }
        let was = self.registers.control & map::CONTROL_ENABLE != 0;
        let wanted = map::CONTROL_ENABLE | map::CONTROL_FREE_RUN | map::CONTROL_INTERRUPT;
        self.registers.control = value & wanted;
        let is = value & map::CONTROL_ENABLE != 0;
        if is && !was {
            view.ledger.event(now, view.stamp(), EngineEventKind::Start);
            self.is_obedient_again();
            self.active_at = Some(now);
        } else if was && !is {
            view.ledger.event(now, view.stamp(), EngineEventKind::Stop);
            if self.obeys_stop(now) {
                self.end_activity(now, view);
            }
        }
        self.end_wait_if_free(now, view);
        self.settle(now);
    }

    /// Does what a driver does to start the engine: the same accesses in the same order.
    pub fn start(&mut self, now: u64, view: &mut DmaView, programmed: &Programmed) {
        let free_run = if programmed.free_run {
            map::CONTROL_FREE_RUN
        } else {
            0
        };
        let mut set = |offset, size, value: u64| self.write(now, view, 0, offset, size, value);
        set(map::CONTROL, 4, map::CONTROL_RESET.into());
        set(map::RING_PAGES, 8, programmed.ring_pages);
        set(map::RING_ENTRIES, 4, programmed.ring_entries.into());
        set(map::COMPLETION_ADDRESS, 8, programmed.completion_address);
        set(map::CONSUMED, 8, 0);
        let command = u32::from(self.config.command() | COMMAND_MASTER);
        self.config_write(now, view, COMMAND, 2, command);
        let enable = map::CONTROL_ENABLE | free_run;
        self.write(now, view, 0, map::CONTROL, 4, enable.into());
    }

    /// Does what a driver does to stop the engine.
    pub fn stop(&mut self, now: u64, view: &mut DmaView) {
        let control = self.registers.control & !map::CONTROL_ENABLE;
        self.write(now, view, 0, map::CONTROL, 4, control.into());
    }

    /// When [`DmaEngine::advance`] next has something to do.
    #[must_use]
    pub fn next_event(&self) -> Option<u64> {
        let due = self.pace.filter(|_| self.waiting_since.is_none());
        self.written_at(due.map(|pace| pace.due(self.setup.rate)))
    }

    /// To be called when a phase ends: adds the engine's inactivity until now to that phase's counters.
    pub fn end_phase(&mut self, now: u64, view: &mut DmaView) {
        self.note_inactivity(now, view);
    }

    fn enabled(&self) -> bool {
        self.registers.control & map::CONTROL_ENABLE != 0
    }

    fn running(&self) -> bool {
        let master = self.config.command() & COMMAND_MASTER != 0;
        let may_master = master || self.mastered && self.setup.bus_master == BusMaster::Retained;
        let told = self.enabled() || self.goes_on();
        told && may_master && !self.registers.fault && !self.ledger_full && !self.is_gone()
    }

    /// Starts or stops the pace after a change of any condition of [`Self::running`].
    fn settle(&mut self, now: u64) {
        if !self.running() {
            self.pace = None;
        } else if self.pace.is_none() {
            self.pace = Some(Pace::starting(now));
        }
    }

    /// Adds the time since the engine was last active to the current phase's longest silence or wait.
    fn note_inactivity(&self, now: u64, view: &mut DmaView) {
        let counters = view.ledger.counters(view.stamp());
        if let Some(since) = self.waiting_since {
            counters.longest_wait_ns = counters.longest_wait_ns.max(now - since);
        } else if let Some(since) = self.active_at {
            counters.longest_silence_ns = counters.longest_silence_ns.max(now - since);
        }
    }

    /// The engine was disabled or reset.
    fn end_activity(&mut self, now: u64, view: &mut DmaView) {
        if self.active_at.is_none() {
            return;
        }
        self.note_inactivity(now, view);
        if self.waiting_since.take().is_some() {
            view.ledger.event(now, view.stamp(), EngineEventKind::WaitEnd);
        }
        self.active_at = None;
    }

    fn send(&mut self, now: u64, view: &mut DmaView, messages: Vec<Msi>) {
        for msi in messages {
            if view.message(now, msi).is_err() {
                self.stop_for_ledger(now);
            }
        }
    }

    /// Stops for good, because what it would write could not be recorded.
    pub(super) fn stop_for_ledger(&mut self, now: u64) {
        self.ledger_full = true;
        self.settle(now);
    }
}

#[cfg(test)]
mod tests;
