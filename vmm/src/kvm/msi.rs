//! Sends message-signalled interrupts to the local APICs, which are in the host's kernel.
//!
//! A message is delivered through an irqfd. The first time a message is sent, a route is made for it; later it takes
//! one write to an eventfd. The number of routes is limited, because the guest chooses the messages. Messages beyond
//! the limit are sent by KVM_SIGNAL_MSI.
//!
//! KVM reports the end of a level-triggered interrupt (KVM_EXIT_IOAPIC_EOI) only if the route of an I/O APIC pin has
//! its vector. Any pin will do, so a level-triggered message gets the first pin that is free.

use std::collections::HashMap;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1, kvm_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::error::KvmError;
use crate::interrupt::Msi;

/// Routes below this number belong to the I/O APIC's pins.
const FIRST_GSI: u32 = crate::devices::ioapic::PINS as u32;
/// Message data: level-triggered.
const LEVEL: u32 = 1 << 15;
/// Most messages that get a route.
const MAX_ROUTES: usize = 64;

/// The routes made so far, by message address and data.
#[derive(Debug, Default)]
pub(super) struct MsiRoutes {
    routes: HashMap<(u64, u32), EventFd>,
    table: Vec<kvm_irq_routing_entry>,
    /// Number of routes that belong to pins, and of others.
    pins: u32,
    others: u32,
}

impl MsiRoutes {
    /// Sends a message, through a route if there is one or can be one.
    pub fn send(&mut self, vm: &VmFd, msi: Msi) -> Result<(), KvmError> {
        let key = (msi.address, msi.data);
        if !self.routes.contains_key(&key) {
            if self.routes.len() >= MAX_ROUTES {
                return signal(vm, msi);
            }
            let event = self.add_route(vm, msi)?;
            self.routes.insert(key, event);
        }
        let event = &self.routes[&key];
        event
            .write(1)
            .map_err(|error| KvmError::new("write to an irqfd", error))
    }

    /// Number for a new route of this message.
    fn next_gsi(&mut self, msi: Msi) -> u32 {
        if msi.data & LEVEL != 0 && self.pins < FIRST_GSI {
            self.pins += 1;
            return self.pins - 1;
        }
        self.others += 1;
        FIRST_GSI + self.others - 1
    }

    fn add_route(&mut self, vm: &VmFd, msi: Msi) -> Result<EventFd, KvmError> {
        let gsi = self.next_gsi(msi);
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
            .map_err(|error| KvmError::new("interrupt routes", format!("{error:?}")))?;
        vm.set_gsi_routing(&table)
            .map_err(KvmError::ioctl("KVM_SET_GSI_ROUTING"))?;
        let event = EventFd::new(libc::EFD_NONBLOCK).map_err(|error| KvmError::new("eventfd", error))?;
        vm.register_irqfd(&event, gsi)
            .map_err(KvmError::ioctl("KVM_IRQFD"))?;
        Ok(event)
    }
}

/// Sends a message without a route (KVM_SIGNAL_MSI).
pub(super) fn signal(vm: &VmFd, msi: Msi) -> Result<(), KvmError> {
    let message = kvm_msi {
        address_lo: low(msi.address),
        address_hi: low(msi.address >> 32),
        data: msi.data,
        ..Default::default()
    };
    vm.signal_msi(message)
        .map(drop)
        .map_err(KvmError::ioctl("KVM_SIGNAL_MSI"))
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}
