//! Routes the processors' accesses to the devices, and interrupts back to them.

use std::sync::Arc;

use guest_agent::device::{DMA_SLOT, MAILBOX_SLOT, VENDOR_ID, dma as dma_map, mailbox as mailbox_map};
use serde::{Deserialize, Serialize};

use super::clock::{self, Clock};
use super::dma::{DmaConfig, DmaEngine};
use super::ioapic::{self, IoApic};
use super::lapic::{self, LocalApics};
use super::mailbox::Mailbox;
use super::pci::{
    ADDRESS_PORT, CLASS_HOST_BRIDGE, ConfigAddress, ConfigSpace, DATA_PORT, HOST_BRIDGE_DEVICE_ID,
    WINDOW_LAST, WINDOW_START,
};
use super::power::Power;
use super::uart::{self, Uart, UartState};
use crate::dma_view::{DmaView, DmaViewState};
use crate::injection::Occurrence;
use crate::interrupt::{Message, Msi};
use crate::ledger::Ledger;
use crate::memory::GuestRam;
use crate::trace::{self, Trace};
use crate::vcpu::Bus;

/// Frequency of the crystal that local APIC timers count, in Hz; CPUID leaf 0x15 says the same.
pub const CRYSTAL_HZ: u64 = 25_000_000;
const DATA_PORT_LAST: u16 = DATA_PORT + 3;
const UART_LAST: u16 = uart::PORT + uart::PORTS as u16 - 1;
const ADDRESS_PORT_LAST: u16 = ADDRESS_PORT + 3;

/// Everything outside the processors and RAM.
#[derive(Debug)]
pub struct SystemBus {
    /// Local APICs of the processors.
    pub lapics: LocalApics,
    /// The I/O APIC.
    pub ioapic: IoApic,
    /// The serial port.
    pub uart: Uart,
    /// The mailbox.
    pub mailbox: Mailbox,
    /// The DMA engine.
    pub dma: DmaEngine,
    /// The DMA engine's view of memory, with the ledger.
    pub view: DmaView,
    /// Power ports.
    pub power: Power,
    /// The wall clock.
    pub clock: Clock,
    /// Interrupts to be sent to KVM's local APICs; `None` if `lapics` is used.
    pub outbox: Option<Vec<Msi>>,
    /// The trace of accesses and interrupts.
    pub trace: Trace,
    bridge: ConfigSpace,
    address: ConfigAddress,
}

/// The devices as plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusState {
    lapics: LocalApics,
    ioapic: IoApic,
    uart: UartState,
    mailbox: Mailbox,
    dma: DmaEngine,
    /// The DMA engine's view of memory, with the ledger.
    pub view: DmaViewState,
    power: Power,
    clock: Clock,
    trace: Trace,
    bridge: ConfigSpace,
    address: ConfigAddress,
}

impl SystemBus {
    /// All devices after power-on, with BARs placed at the start of the window.
    #[must_use]
    pub fn new(dma: DmaConfig, view: DmaView) -> Self {
        let mailbox = u64::from(WINDOW_START);
        let bar0 = mailbox + mailbox_map::BAR0_SIZE;
        Self {
            lapics: LocalApics::new(1, CRYSTAL_HZ),
            ioapic: IoApic::default(),
            uart: Uart::default(),
            mailbox: Mailbox::new(mailbox),
            dma: DmaEngine::new(dma, bar0, bar0 + dma_map::BAR0_SIZE),
            view,
            power: Power::default(),
            clock: Clock::default(),
            outbox: None,
            trace: Trace::default(),
            bridge: ConfigSpace::new(VENDOR_ID, HOST_BRIDGE_DEVICE_ID, CLASS_HOST_BRIDGE),
            address: ConfigAddress::default(),
        }
    }

    /// Lets every device do what is due.
    pub fn advance(&mut self, now: u64) {
        self.lapics.advance(now);
        self.view.advance(now);
        self.dma.advance(now, &mut self.view);
        self.inject(now);
        if self.view.ledger.is_full() {
            self.dma.stop_for_ledger(now);
        }
        self.forward_messages();
    }

    /// When [`SystemBus::advance`] is next needed.
    #[must_use]
    pub fn next_event(&self) -> Option<u64> {
        self.lapics
            .next_event()
            .into_iter()
            .chain(self.dma.next_event())
            .chain(self.view.next_event())
            .chain(self.view.injections.next_event())
            .min()
    }

    /// Types for the guest; returns how many bytes were taken.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        let taken = self.uart.type_in(bytes);
        self.forward_uart();
        taken
    }

    /// Appends to the trace, with the processor that is using the bus.
    pub fn record(&mut self, time: u64, kind: trace::Kind, size: u8, address: u64, value: u64) {
        self.trace.push(trace::Record {
            time,
            address,
            value,
            kind,
            size,
            processor: self.lapics.accessing(),
        });
    }

    /// The state of all devices, without `outbox`: that exists only on KVM, whose machines cannot be restored.
    #[must_use]
    pub fn state(&self) -> BusState {
        let Self {
            lapics,
            ioapic,
            uart,
            mailbox,
            dma,
            view,
            power,
            clock,
            outbox: _,
            trace,
            bridge,
            address,
        } = self;
        BusState {
            lapics: lapics.clone(),
            ioapic: ioapic.clone(),
            uart: uart.state(),
            mailbox: mailbox.clone(),
            dma: dma.clone(),
            view: view.state(),
            power: power.clone(),
            clock: clock.clone(),
            trace: trace.clone(),
            bridge: bridge.clone(),
            address: address.clone(),
        }
    }

    /// Devices restored from `state`, in a machine with `ram` and `processors` processors at guest time `now`. The
    /// error names the device whose state is impossible.
    pub fn from_state(
        state: &BusState,
        ram: Arc<GuestRam>,
        processors: usize,
        now: u64,
    ) -> Result<Self, &'static str> {
        let BusState {
            lapics,
            ioapic,
            uart,
            mailbox,
            dma,
            view,
            power,
            clock,
            trace,
            bridge,
            address,
        } = state;
        let fresh = Self::new(dma.setup(), DmaView::new(Arc::clone(&ram), Ledger::new(1)));
        let sound = |sound: bool, device| if sound { Ok(()) } else { Err(device) };
        sound(lapics.are_sound(processors, CRYSTAL_HZ), "local APICs")?;
        sound(mailbox.has_shape_of(&fresh.mailbox), "mailbox")?;
        sound(dma.is_sound(&fresh.dma, now), "DMA engine")?;
        sound(bridge.has_shape_of(&fresh.bridge), "host bridge")?;
        sound(trace.is_sound(), "trace")?;
        Ok(Self {
            lapics: lapics.clone(),
            ioapic: ioapic.clone(),
            uart: Uart::from_state(uart).ok_or("serial port")?,
            mailbox: mailbox.clone(),
            dma: dma.clone(),
            view: DmaView::from_state(ram, view),
            power: power.clone(),
            clock: clock.clone(),
            outbox: None,
            trace: trace.clone(),
            bridge: bridge.clone(),
            address: address.clone(),
        })
    }

    pub(super) fn interrupt(&mut self, message: Message) {
        if let Some(outbox) = &mut self.outbox {
            outbox.push(message.into());
            return;
        }
        self.lapics.deliver(message);
    }

    /// Tells injections of a processor's access to a register of the DMA engine.
    fn note_access(&mut self, now: u64, address: u64) {
        let wanted = self.view.injections.count_accesses() || self.dma.is_slow(now);
        if wanted && self.function(address).is_some_and(|(slot, ..)| slot == DMA_SLOT) {
            self.view.injections.occurred(now, |on| on == Occurrence::Access);
            self.dma.accessed(now);
        }
    }

    fn forward_messages(&mut self) {
        if self.view.is_idle() {
            return;
        }
        let messages = self.view.take_messages();
        if let Some(outbox) = &mut self.outbox {
            outbox.extend(messages);
            return;
        }
        for message in messages.into_iter().filter_map(Msi::message) {
            self.interrupt(message);
        }
    }

    fn forward_uart(&mut self) {
        if self.uart.take_interrupt()
            && let Some(message) = self.ioapic.pulse(uart::IRQ)
        {
            self.interrupt(message);
        }
    }

    fn config_read(&self, port: u16, size: u8) -> u32 {
        let Some(target) = self.address.target(port) else {
            return u32::MAX;
        };
        match target.slot {
            0 => self.bridge.read(target.offset, size),
            MAILBOX_SLOT => self.mailbox.config.read(target.offset, size),
            DMA_SLOT => self.dma.config_read(target.offset, size),
            _ => u32::MAX,
        }
    }

    fn config_write(&mut self, now: u64, port: u16, size: u8, value: u32) {
        let Some(target) = self.address.target(port) else {
            return;
        };
        match target.slot {
            0 => self.bridge.write(target.offset, size, value),
            MAILBOX_SLOT => self.mailbox.config.write(target.offset, size, value),
            DMA_SLOT => {
                self.dma
                    .config_write(now, &mut self.view, target.offset, size, value);
                self.forward_messages();
            }
            _ => {}
        }
    }

    fn function(&self, address: u64) -> Option<(u8, usize, u64)> {
        if !(u64::from(WINDOW_START)..=u64::from(WINDOW_LAST)).contains(&address) {
            return None;
        }
        let mailbox = self
            .mailbox
            .config
            .decode(address)
            .map(|(bar, offset)| (MAILBOX_SLOT, bar, offset));
        mailbox.or_else(|| {
            self.dma
                .config
                .decode(address)
                .map(|(bar, offset)| (DMA_SLOT, bar, offset))
        })
    }
}

/// Accesses, before they are traced.
impl SystemBus {
    fn route_mmio_read(&mut self, now: u64, address: u64, size: u8) -> u64 {
        match address {
            lapic::BASE..=0xfee0_0fff => self.lapics.current().read(now, address - lapic::BASE).into(),
            ioapic::BASE..=0xfec0_0fff => self.ioapic.read(address - ioapic::BASE).into(),
            _ => match self.function(address) {
                Some((MAILBOX_SLOT, _, offset)) => self.mailbox.read(offset, size),
                Some((_, bar, offset)) => self.dma.read(bar, offset, size),
                None => u64::MAX,
            },
        }
    }

    fn route_mmio_write(&mut self, now: u64, address: u64, size: u8, value: u64) {
        let low = (value & 0xffff_ffff) as u32;
        match address {
            lapic::BASE..=0xfee0_0fff => {
                if let Some(vector) = self.lapics.write(now, address - lapic::BASE, low)
                    && let Some(again) = self.ioapic.end_of_interrupt(vector)
                {
                    self.interrupt(again);
                }
            }
            ioapic::BASE..=0xfec0_0fff => {
                if let Some(message) = self.ioapic.write(address - ioapic::BASE, low) {
                    self.interrupt(message);
                }
            }
            _ => match self.function(address) {
                Some((MAILBOX_SLOT, _, offset)) => self.mailbox.write(offset, size, value),
                Some((_, bar, offset)) => {
                    self.dma.write(now, &mut self.view, bar, offset, size, value);
                    self.forward_messages();
                }
                None => {}
            },
        }
    }

    fn route_port_read(&mut self, now: u64, port: u16, size: u8) -> u32 {
        if let Some(value) = self.power.read(port, size) {
            return value;
        }
        match port {
            uart::PORT..=UART_LAST => {
                let value = self.uart.read((port & 7) as u8).into();
                self.forward_uart();
                value
            }
            clock::DATA => self.clock.read(now).into(),
            ADDRESS_PORT..=ADDRESS_PORT_LAST => self.address.read(port, size),
            DATA_PORT..=DATA_PORT_LAST => self.config_read(port, size),
            _ => u32::MAX,
        }
    }

    fn route_port_write(&mut self, now: u64, port: u16, size: u8, value: u32) {
        if self.power.write(port, size, value) {
            return;
        }
        match port {
            uart::PORT..=UART_LAST => {
                self.uart.write((port & 7) as u8, value.to_le_bytes()[0]);
                self.forward_uart();
            }
            clock::INDEX => self.clock.select(value.to_le_bytes()[0]),
            ADDRESS_PORT..=ADDRESS_PORT_LAST => self.address.write(port, size, value),
            DATA_PORT..=DATA_PORT_LAST => self.config_write(now, port, size, value),
            _ => tracing::trace!(port, size, value, "write to a port that nobody has"),
        }
    }

    fn route_msr_read(&mut self, _now: u64, index: u32) -> Option<u64> {
        self.lapics.current().msr_read(index)
    }

    fn route_msr_write(&mut self, now: u64, index: u32, value: u64) -> bool {
        self.lapics.current_mut().msr_write(now, index, value)
    }
}

/// All accesses enter here and are traced. A write is recorded before the device acts on it.
impl Bus for SystemBus {
    fn mmio_read(&mut self, now: u64, address: u64, size: u8) -> u64 {
        let value = self.route_mmio_read(now, address, size);
        self.note_access(now, address);
        self.record(now, trace::Kind::MmioRead, size, address, value);
        value
    }

    fn mmio_write(&mut self, now: u64, address: u64, size: u8, value: u64) {
        self.record(now, trace::Kind::MmioWrite, size, address, value);
        self.route_mmio_write(now, address, size, value);
        self.note_access(now, address);
    }

    fn port_read(&mut self, now: u64, port: u16, size: u8) -> u32 {
        let value = self.route_port_read(now, port, size);
        self.record(now, trace::Kind::PortRead, size, port.into(), value.into());
        value
    }

    fn port_write(&mut self, now: u64, port: u16, size: u8, value: u32) {
        self.record(now, trace::Kind::PortWrite, size, port.into(), value.into());
        self.route_port_write(now, port, size, value);
    }

    fn tsc_written(&mut self, now: u64, offset: u64) {
        self.lapics.current_mut().set_tsc_offset(now, offset);
    }

    fn msr_read(&mut self, now: u64, index: u32) -> Option<u64> {
        let value = self.route_msr_read(now, index);
        let kind = match value {
            Some(_) => trace::Kind::MsrRead,
            None => trace::Kind::MsrReadFault,
        };
        self.record(now, kind, 8, index.into(), value.unwrap_or(0));
        value
    }

    fn msr_write(&mut self, now: u64, index: u32, value: u64) -> bool {
        let taken = self.route_msr_write(now, index, value);
        let kind = if taken {
            trace::Kind::MsrWrite
        } else {
            trace::Kind::MsrWriteFault
        };
        self.record(now, kind, 8, index.into(), value);
        taken
    }
}

#[cfg(test)]
crate::machine::parts_of!(BusState {
    lapics,
    ioapic,
    uart,
    mailbox,
    dma,
    view,
    power,
    clock,
    trace,
    bridge,
    address,
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::dma::BusMaster;
    use crate::memory::MIN_RAM;

    fn bus() -> SystemBus {
        let ram = GuestRam::new(MIN_RAM).unwrap();
        let dma = DmaConfig {
            rate: 1_000_000,
            seed: 1,
            bus_master: BusMaster::Honoured,
            ..DmaConfig::default()
        };
        let mut bus = SystemBus::new(dma, DmaView::new(ram, Ledger::new(16)));
        bus.mmio_write(0, lapic::BASE + 0xf0, 4, 0x1ff);
        bus
    }

    fn config(bus: &mut SystemBus, slot: u32, offset: u32) -> u32 {
        bus.port_write(0, ADDRESS_PORT, 4, 0x8000_0000 | slot << 11 | offset);
        bus.port_read(0, DATA_PORT, 4)
    }

    #[test]
    fn three_functions_answer_and_no_more() {
        let mut bus = bus();
        let identities: Vec<u32> = (0..32).map(|slot| config(&mut bus, slot, 0)).collect();
        assert_eq!(identities[..3], [0x0000_ba70, 0x0001_ba70, 0x0002_ba70]);
        assert!(identities[3..].iter().all(|&identity| identity == u32::MAX));
    }

    #[test]
    fn functions_are_reached_through_their_bars() {
        let mut bus = bus();
        let mailbox = u64::from(config(&mut bus, 1, 0x10));
        assert_eq!(bus.mmio_read(0, mailbox, 4), u64::from(mailbox_map::MAGIC_VALUE));
        let dma = u64::from(config(&mut bus, 2, 0x10));
        assert_eq!(bus.mmio_read(0, dma, 4), u64::from(dma_map::MAGIC_VALUE));
        bus.port_write(0, ADDRESS_PORT, 4, 0x8000_0000 | 2 << 11 | 0x10);
        bus.port_write(0, DATA_PORT, 4, 0xe123_4000);
        assert_eq!(
            bus.mmio_read(0, 0xe123_4000, 4),
            u64::from(dma_map::MAGIC_VALUE),
            "a BAR can be moved"
        );
        assert_eq!(bus.mmio_read(0, dma, 4), u64::MAX);
        assert_eq!(bus.mmio_read(0, 0xd000_0000, 8), u64::MAX);
    }

    #[test]
    fn typing_interrupts_through_the_ioapic() {
        let mut bus = bus();
        for (register, value) in [(0x10 + 9, 0), (0x10 + 8, 0x31)] {
            bus.mmio_write(0, ioapic::BASE, 4, register);
            bus.mmio_write(0, ioapic::BASE + 0x10, 4, value);
        }
        bus.port_write(0, uart::PORT + 1, 1, 1);
        assert_eq!(bus.type_in(b"x"), 1);
        assert_eq!(bus.lapics.current().deliverable(0), Some(0x31));
        assert_eq!(bus.port_read(0, uart::PORT, 1), u32::from(b'x'));
    }

    #[test]
    fn a_level_interrupt_is_ended_by_the_processor() {
        let mut bus = bus();
        bus.mmio_write(0, ioapic::BASE, 4, 0x10 + 18);
        bus.mmio_write(0, ioapic::BASE + 0x10, 4, 0x8055);
        let message = bus.ioapic.set_line(9, true).unwrap();
        bus.interrupt(message);
        for _ in 0..3 {
            assert_eq!(
                bus.lapics.current().deliverable(0),
                Some(0x55),
                "sent again while the line is high"
            );
            bus.lapics.current_mut().acknowledge(0x55);
            bus.mmio_write(0, lapic::BASE + 0xb0, 4, 0);
        }
        bus.ioapic.set_line(9, false);
        bus.lapics.current_mut().acknowledge(0x55);
        bus.mmio_write(0, lapic::BASE + 0xb0, 4, 0);
        assert_eq!(bus.lapics.current().deliverable(0), None);
    }

    #[test]
    fn nobody_answers_on_other_ports() {
        let mut bus = bus();
        for port in [0x20, 0x40, 0x70, 0x2f8, 0xffff] {
            bus.port_write(0, port, 1, 0);
            assert_eq!(bus.port_read(0, port, 1) & 0xff, 0xff, "{port:#x}");
        }
        assert_eq!(bus.msr_read(0, 0x10), None);
        assert!(bus.msr_read(0, 0x1b).is_some());
    }

    #[test]
    fn the_state_has_every_device() {
        let hash = |change: &dyn Fn(&mut SystemBus)| {
            let mut bus = bus();
            change(&mut bus);
            postcard::to_allocvec(&bus.state()).unwrap()
        };
        let changes: [&dyn Fn(&mut SystemBus); 7] = [
            &|_| {},
            &|bus| bus.mmio_write(0, lapic::BASE + 0x80, 4, 0x10),
            &|bus| bus.mmio_write(0, ioapic::BASE, 4, 5),
            &|bus| bus.port_write(0, uart::PORT + 7, 1, 5),
            &|bus| bus.port_write(0, ADDRESS_PORT, 4, 0x8000_0000),
            &|bus| bus.mmio_write(0, u64::from(WINDOW_START) + mailbox_map::WINDOW, 4, 5),
            &|bus| {
                bus.mmio_write(
                    0,
                    u64::from(WINDOW_START) + mailbox_map::BAR0_SIZE + dma_map::CONSUMED,
                    8,
                    5,
                )
            },
        ];
        let hashes: std::collections::HashSet<Vec<u8>> = changes.iter().map(|change| hash(*change)).collect();
        assert_eq!(hashes.len(), changes.len());
        assert_eq!(hash(&|_| {}), hash(&|_| {}));
    }
}
