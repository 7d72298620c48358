//! A guest that accesses every register of every device: any values, in any order, at any time.
//!
//! An input is the configuration of the devices and then steps, each of a byte and what it needs. After each step and
//! at the end these must hold:
//!
//! - no device panics, and none runs for ever (the test would not end);
//! - guest memory holds what the processors wrote and what the ledger says, byte by byte, and nothing else;
//! - a device that has done what is due wants to be called later, not now;
//! - the state is bounded by what was accessed and by the ledger's size;
//! - a state goes through its encoding, and devices that are restored from it have an equal one. An input is run
//!   twice, the second time with devices that are restored again and again, and both end in the same state.

use std::sync::Arc;

use guest_agent::device::{DMA_SLOT, MAILBOX_SLOT, dma, mailbox};
use vmm::devices::bus::{BusState, CRYSTAL_HZ};
use vmm::devices::dma::{BusMaster, DmaConfig, MIN_ADDRESS_BITS};
use vmm::devices::lapic::LocalApics;
use vmm::devices::pci::{ADDRESS_PORT, DATA_PORT, WINDOW_START};
use vmm::devices::{SystemBus, clock, ioapic, lapic, power, uart};
use vmm::dma_view::DmaView;
use vmm::ledger::{EngineEventKind, Ledger};
use vmm::machine::{MAX_RATE, MIN_RATE};
use vmm::memory::{GuestRam, MIN_RAM, PAGE_SIZE};
use vmm::platform::{DeviceEvent, Platform, Progress};
use vmm::trace::{CAPACITY, Trace};
use vmm::vcpu::Bus;

use super::input::Input;
use super::model::Model;

/// Steps between two restorations.
const STEPS_PER_STATE: usize = 24;
/// The guest time without progress after which a machine ends, and so the most that passes at once.
const PATIENCE_NS: u64 = 600_000_000_000;
/// Bytes of a state before anything has happened: the mailbox's window and the registers.
const STATE_BYTES: usize = 256 << 10;

/// What the steps of an input reached, so that a test can tell that they reach something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Accesses of processors.
    pub accesses: usize,
    /// Device writes.
    pub writes: usize,
    /// Faults of the DMA engine.
    pub faults: usize,
    /// Messages of an agent.
    pub messages: usize,
    /// Ledgers that were filled.
    pub full: usize,
    /// States from which devices were restored.
    pub restored: usize,
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Self) {
        self.accesses += other.accesses;
        self.writes += other.writes;
        self.faults += other.faults;
        self.messages += other.messages;
        self.full += other.full;
        self.restored += other.restored;
    }
}

/// Runs an input. Fails with what did not hold.
pub fn run(input: &[u8]) -> Result<Reached, String> {
    run_with(input, &mut |_| ())
}

/// The same with a `saboteur` that is called after each step, to show that what it does is found.
pub fn run_with(input: &[u8], saboteur: &mut dyn FnMut(&mut Platform)) -> Result<Reached, String> {
    let mut plain = Guest::new(Input(input))?;
    plain.go(None, saboteur)?;
    if plain.platform.bus.outbox.is_some() {
        // A machine on KVM, which is never restored.
        return Ok(plain.reached);
    }
    let mut restored = Guest::new(Input(input))?;
    restored.go(Some(STEPS_PER_STATE), saboteur)?;
    if plain.platform.bus.state() != restored.platform.bus.state() {
        return Err("devices that were restored end in another state".into());
    }
    Ok(restored.reached)
}

struct Guest<'a> {
    input: Input<'a>,
    platform: Platform,
    model: Model,
    processors: u8,
    now: u64,
    reached: Reached,
}

impl<'a> Guest<'a> {
    fn new(mut input: Input<'a>) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let ram = GuestRam::new(MIN_RAM).map_err(|error| failed(&error))?;
        let flags = input.byte();
        let setup = DmaConfig {
            rate: if flags & 1 == 0 {
                100_000_000
            } else {
                MIN_RATE + input.below(MAX_RATE)
            },
            seed: input.byte().into(),
            bus_master: if flags & 2 == 0 {
                BusMaster::Retained
            } else {
                BusMaster::Honoured
            },
            address_bits: if flags & 4 == 0 {
                u64::BITS
            } else {
                MIN_ADDRESS_BITS
            },
        };
        let entries = if flags & 8 == 0 {
            400
        } else {
            1 + usize::from(input.byte())
        };
        let view = DmaView::new(Arc::clone(&ram), Ledger::new(entries));
        let mut bus = SystemBus::new(setup, view);
        let processors = 1 + (flags >> 4 & 3);
        bus.lapics = LocalApics::new(processors, CRYSTAL_HZ);
        bus.trace = Trace::new(CAPACITY);
        bus.outbox = (flags & 0x80 != 0).then(Vec::new);
        Ok(Self {
            model: Model::new(setup.seed),
            platform: Platform {
                ram,
                bus,
                causes: Vec::new(),
                progress: Progress::new(PATIENCE_NS),
            },
            now: if flags & 0x40 == 0 { 0 } else { input.number() >> 2 },
            input,
            processors,
            reached: Reached::default(),
        })
    }

    /// Makes all steps. `restore` is the number of steps after each of which the devices are restored.
    fn go(&mut self, restore: Option<usize>, saboteur: &mut dyn FnMut(&mut Platform)) -> Result<(), String> {
        let mut steps = 0;
        while let Some(what) = self.input.next() {
            self.step(what)?;
            saboteur(&mut self.platform);
            steps += 1;
            self.settle()?;
            if restore.is_some_and(|after| steps % after == 0) {
                self.restore()?;
            }
        }
        if restore.is_some() {
            self.restore()?;
        }
        self.reached.writes = self.model.followed;
        let events = self.platform.bus.view.ledger.events();
        let faults = events
            .iter()
            .filter(|event| matches!(event.kind, EngineEventKind::Fault { .. }));
        self.reached.faults = faults.count();
        self.model.check(&self.platform.ram)
    }

    fn step(&mut self, what: u8) -> Result<(), String> {
        match what % 16 {
            0 | 1 => {
                let port = self.port();
                self.access_port(port, what & 0x80 != 0);
            }
            2..=4 => {
                let address = self.register();
                self.access_memory(address, what & 0x80 != 0);
            }
            5 => {
                let address = self.input.number() | u64::from(WINDOW_START);
                self.access_memory(address, what & 0x80 != 0);
            }
            6 => {
                let index = self
                    .input
                    .pick(&[lapic::MSR_APIC_BASE, lapic::MSR_TSC_DEADLINE, 0, u32::MAX]);
                if what & 0x80 == 0 {
                    self.platform.bus.msr_read(self.now, index);
                } else {
                    let value = self.input.number();
                    self.platform.bus.msr_write(self.now, index, value);
                }
            }
            7 => {
                let offset = self.input.number();
                self.platform.bus.tsc_written(self.now, offset);
            }
            8 => {
                let (slot, offset) = (self.input.byte() & 3, self.input.byte());
                let value = low(self.input.number());
                self.config_write(slot, offset, value);
            }
            9 => {
                let (address, value) = (self.input.below(MIN_RAM - 8), self.input.number());
                self.processor_writes(address, &value.to_le_bytes())?;
            }
            10 => self.start_engine()?,
            11 => {
                let most = self.input.pick(&[1_000, 100_000, PATIENCE_NS, 10_000]);
                let ns = self.input.below(most);
                self.pass(ns);
            }
            12 => {
                let due = self.platform.bus.next_event().unwrap_or(self.now);
                self.pass(due.saturating_sub(self.now).min(PATIENCE_NS));
            }
            13 => {
                let typed = vec![self.input.byte(); usize::from(self.input.byte()) * 8];
                self.platform.bus.type_in(&typed);
            }
            14 => {
                if what & 0x80 != 0 {
                    let doorbell = self.bar(MAILBOX_SLOT, 0) + mailbox::DOORBELL;
                    let length = self.input.number();
                    self.reached.accesses += 1;
                    self.platform.bus.mmio_write(self.now, doorbell, 4, length);
                }
                if let Some(DeviceEvent::Message(_)) = self.platform.take_event(self.now) {
                    self.reached.messages += 1;
                    let answer = vec![what; usize::from(self.input.byte()) * 600];
                    // One that is too long is refused, by whoever drives the machine.
                    let _ = self.platform.bus.mailbox.reply(&answer);
                }
            }
            _ => {
                let processor = usize::from(self.input.byte() % self.processors);
                self.platform.bus.lapics.select(processor);
                self.platform.bus.lapics.current_mut().acknowledge_nmi();
                if let Some(vector) = self.platform.bus.lapics.current().deliverable(0) {
                    self.platform.bus.lapics.current_mut().acknowledge(vector);
                }
            }
        }
        Ok(())
    }

    /// Does what a machine does after each access, and checks.
    fn settle(&mut self) -> Result<(), String> {
        let platform = &mut self.platform;
        platform.advance(self.now, || None);
        if let Some(due) = platform.bus.next_event().filter(|due| *due <= self.now) {
            return Err(format!(
                "at {} all is done, and the next event is at {due}",
                self.now
            ));
        }
        platform.bus.view.take_written().for_each(drop);
        if let Some(outbox) = &mut platform.bus.outbox {
            outbox.clear();
        }
        self.model.follow(&platform.bus.view.ledger, &platform.ram)?;
        self.reached.full = usize::from(platform.bus.view.ledger.is_full());
        Ok(())
    }

    /// Puts devices in the place of these that are restored from their state.
    fn restore(&mut self) -> Result<(), String> {
        let state = self.platform.bus.state();
        let bytes = postcard::to_allocvec(&state).map_err(|error| error.to_string())?;
        let most = STATE_BYTES + 64 * (self.reached.accesses + self.model.followed) + (64 << 10);
        if bytes.len() > most {
            return Err(format!(
                "a state of {} bytes, where {most} are enough",
                bytes.len()
            ));
        }
        let decoded: BusState = postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
        if decoded != state {
            return Err("a state changed on its way through its encoding".into());
        }
        let ram = Arc::clone(&self.platform.ram);
        let again = SystemBus::from_state(&decoded, ram, self.processors.into(), self.now)
            .map_err(|device| format!("the state of the {device} is taken for impossible"))?;
        if again.state() != state {
            return Err("devices that are restored have another state".into());
        }
        self.platform.bus = again;
        self.reached.restored += 1;
        Ok(())
    }

    fn pass(&mut self, ns: u64) {
        self.now = self.now.saturating_add(ns);
    }

    fn access_port(&mut self, port: u16, write: bool) {
        let size = self.input.pick(&[1, 2, 4]);
        self.reached.accesses += 1;
        if write {
            let value = low(self.input.number());
            self.platform.bus.port_write(self.now, port, size, value);
        } else {
            self.platform.bus.port_read(self.now, port, size);
        }
    }

    /// KVM gives the parts of an access that crosses a page, so any size up to 8 comes.
    fn access_memory(&mut self, address: u64, write: bool) {
        let size = self.input.pick(&[4, 8, 4, 8, 1, 2, 3, 5, 6, 7]);
        self.reached.accesses += 1;
        if write {
            let value = self.input.number();
            self.platform.bus.mmio_write(self.now, address, size, value);
        } else {
            self.platform.bus.mmio_read(self.now, address, size);
        }
    }

    fn port(&mut self) -> u16 {
        let first = self.input.pick(&[
            uart::PORT,
            clock::INDEX,
            ADDRESS_PORT,
            DATA_PORT,
            power::SLEEP_CONTROL,
            0x64,
            0x80,
            0xcf9,
        ]);
        match self.input.byte() {
            0xff => (self.input.number() & 0xffff) as u16,
            offset => first + u16::from(offset % 8),
        }
    }

    /// The address of a register, in whichever place the BARs are.
    fn register(&mut self) -> u64 {
        let (base, size) = match self.input.byte() % 5 {
            0 => (lapic::BASE, lapic::SIZE),
            1 => (ioapic::BASE, 0x50),
            2 => (
                self.bar(MAILBOX_SLOT, 0),
                self.input.pick(&[0x10, mailbox::BAR0_SIZE]),
            ),
            3 => (self.bar(DMA_SLOT, 0), 0x60),
            _ => (self.bar(DMA_SLOT, 2), self.input.pick(&[16, dma::BAR2_SIZE])),
        };
        let aligned = self.input.pick(&[!3, !7, !15, u64::MAX]);
        base + (self.input.below(size) & aligned)
    }

    fn bar(&mut self, slot: u8, index: u8) -> u64 {
        self.point_to(slot, 0x10 + 4 * index);
        self.reached.accesses += 1;
        u64::from(self.platform.bus.port_read(self.now, DATA_PORT, 4) & !0xf)
    }

    fn point_to(&mut self, slot: u8, offset: u8) {
        let address = 0x8000_0000 | u32::from(slot) << 11 | u32::from(offset & !3);
        self.reached.accesses += 1;
        self.platform.bus.port_write(self.now, ADDRESS_PORT, 4, address);
    }

    fn config_write(&mut self, slot: u8, offset: u8, value: u32) {
        self.point_to(slot, offset);
        self.reached.accesses += 1;
        self.platform
            .bus
            .port_write(self.now, DATA_PORT + u16::from(offset & 3), 4, value);
    }

    fn processor_writes(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
        self.platform
            .ram
            .write(address, bytes)
            .map_err(|error| error.to_string())?;
        self.model.write(address, bytes);
        Ok(())
    }

    /// Programs the DMA engine as a driver does, with a ring that mostly is sound.
    fn start_engine(&mut self) -> Result<(), String> {
        let page = |input: &mut Input<'_>| input.below(MIN_RAM / PAGE_SIZE - 1) * PAGE_SIZE;
        let (list, ring, completion) = (
            page(&mut self.input),
            page(&mut self.input),
            page(&mut self.input),
        );
        let entries = 1 + self.input.below(8);
        self.processor_writes(list, &ring.to_le_bytes())?;
        for descriptor in 0..entries {
            let (address, length) = (
                page(&mut self.input) + 8 * self.input.below(16),
                self.input.below(6000),
            );
            let at = ring + descriptor * dma::DESCRIPTOR_BYTES;
            self.processor_writes(at, &address.to_le_bytes())?;
            self.processor_writes(at + 8, &length.to_le_bytes())?;
        }
        let message = self.input.pick(&[0xfee0_0000, 0xfee0_1004, ring, MIN_RAM - 2]);
        let (engine, table) = (self.bar(DMA_SLOT, 0), self.bar(DMA_SLOT, 2));
        let control = dma::CONTROL_ENABLE | u32::from(self.input.byte()) & !dma::CONTROL_RESET;
        let vector = self.input.number() & 0x8fff;
        for (address, size, value) in [
            (engine + dma::CONTROL, 4, dma::CONTROL_RESET.into()),
            (table, 8, message),
            (table + 8, 8, vector),
            (engine + dma::RING_PAGES, 8, list),
            (engine + dma::RING_ENTRIES, 4, entries),
            (engine + dma::COMPLETION_ADDRESS, 8, completion),
            (engine + dma::CONTROL, 4, control.into()),
        ] {
            self.reached.accesses += 1;
            self.platform.bus.mmio_write(self.now, address, size, value);
        }
        self.config_write(DMA_SLOT, 0x42, 0x8000);
        self.config_write(DMA_SLOT, 0x04, 0x6);
        Ok(())
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
