//! Message-signalled interrupts into the local APICs of the host's kernel.
//!
//! A device's message is delivered through an irqfd: a route for it is made when it is first sent, and from then on sending is one
//! write to an eventfd. A guest that invents messages without end gets KVM_SIGNAL_MSI for those beyond the room for routes.
//!
//! KVM tells of the end of a level-triggered interrupt (KVM_EXIT_IOAPIC_EOI) only if a route of the I/O APIC's pins has its vector. Which
//! of them it is does not matter, so such messages get the first free one.

use std::collections::HashMap;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::Refused;
use crate::interrupt::Msi;

/// Routes below this number are those of the I/O APIC's pins.
const FIRST_GSI: u32 = crate::devices::ioapic::PINS as u32;
/// Message data: level-triggered.
const LEVEL: u32 = 1 << 15;
/// Messages that get a route of their own.
const ROOM: usize = 64;

/// Routes made so far.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    routes: HashMap<(u64, u32), EventFd>,
    table: Vec<kvm_irq_routing_entry>,
    /// How many routes are those of pins, and how many are not.
    pins: u32,
    others: u32,
}

impl Interrupts {
    /// Sends a message.
    pub fn send(&mut self, vm: &VmFd, msi: Msi) -> Result<(), Refused> {
        let key = (msi.address, msi.data);
        if !self.routes.contains_key(&key) {
            if self.routes.len() >= ROOM {
                return signal(vm, msi);
            }
            let event = self.route(vm, msi)?;
            self.routes.insert(key, event);
        }
        let event = &self.routes[&key];
        event
            .write(1)
            .map_err(|error| Refused::io("write to an irqfd", &error))
    }

    /// A number for the route of this message.
    fn number(&mut self, msi: Msi) -> u32 {
        if msi.data & LEVEL != 0 && self.pins < FIRST_GSI {
            self.pins += 1;
            return self.pins - 1;
        }
        self.others += 1;
        FIRST_GSI + self.others - 1
    }

    fn route(&mut self, vm: &VmFd, msi: Msi) -> Result<EventFd, Refused> {
        let gsi = self.number(msi);
        let entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi {
                    address_lo: low(msi.address),
                    address_hi: low(msi.address >> 32),
                    data: msi.data,
                    __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1::default(),
                },
            },
            ..Default::default()
        };
        self.table.push(entry);
        let table = KvmIrqRouting::from_entries(&self.table)
            .map_err(|error| Refused::text("interrupt routes", &format!("{error:?}")))?;
        vm.set_gsi_routing(&table)
            .map_err(Refused::at("KVM_SET_GSI_ROUTING"))?;
        let event = EventFd::new(libc::EFD_NONBLOCK).map_err(|error| Refused::io("eventfd", &error))?;
        vm.register_irqfd(&event, gsi).map_err(Refused::at("KVM_IRQFD"))?;
        Ok(event)
    }
}

/// Sends a message without a route.
pub(super) fn signal(vm: &VmFd, msi: Msi) -> Result<(), Refused> {
    let message = kvm_msi {
        address_lo: low(msi.address),
        address_hi: low(msi.address >> 32),
        data: msi.data,
        ..Default::default()
    };
    vm.signal_msi(message)
        .map(drop)
        .map_err(Refused::at("KVM_SIGNAL_MSI"))
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
