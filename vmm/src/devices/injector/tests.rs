use std::sync::Arc;

use super::*;
use crate::devices::dma::DmaConfig;
use crate::devices::power::PowerRequest;
use crate::dma_view::DmaView;
use crate::injection::{Delay, Injection, Injections, Occurrence, Repeat, Trigger};
use crate::ledger::Ledger;
use crate::memory::{GuestRam, MIN_RAM};
use crate::vcpu::Bus;

/// A bus with one injection, which is due at 100.
fn bus(act: Act) -> SystemBus {
    let ram = GuestRam::new(MIN_RAM).unwrap();
    let mut view = DmaView::new(Arc::clone(&ram), Ledger::new(64));
    let (since, on, nth, delay) = (None, Occurrence::Begin, 1, Delay::Time(100));
    view.injections = Injections::new(&[Injection {
        trigger: Trigger {
            since,
            on,
            nth,
            delay,
        },
        deed: Deed::Act(act),
        repeat: Repeat::ONCE,
    }]);
    SystemBus::new(DmaConfig::default(), view)
}

/// Programs vector 0x41 for processor 0, and switches its local APIC on.
fn program(bus: &mut SystemBus) {
    let table = bus.dma.config.read(0x18, 4);
    bus.mmio_write(0, u64::from(table), 4, 0xfee0_0000);
    bus.mmio_write(0, u64::from(table) + 8, 4, 0x41);
    bus.mmio_write(0, 0xfee0_00f0, 4, 0x1ff);
}

/// What became of the injection: that it fired, or why it could not.
fn fate(bus: &SystemBus) -> Result<String, String> {
    let [running] = bus.view.injections.all() else {
        panic!()
    };
    match (&running.firings[..], &running.unable[..]) {
        ([firing], []) => Ok(firing.done.to_string()),
        ([], [(100, reason)]) => Err(reason.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_that_the_device_did_not_send_reach_the_processor() {
    for (vector, taken) in [(None, 0x41), (Some(0x52), 0x52)] {
        let mut bus = bus(Act::Messages {
            vector,
            count: 2,
            every: 50,
        });
        program(&mut bus);
        bus.advance(99);
        assert_eq!(
            (bus.lapics.of(0).deliverable(0), bus.next_event()),
            (None, Some(100))
        );
        bus.advance(100);
        assert_eq!(
            (bus.lapics.of(0).deliverable(0), bus.next_event()),
            (Some(taken), Some(150))
        );
        bus.lapics.of_mut(0).acknowledge(taken);
        bus.lapics.of_mut(0).write(0, 0xb0, 0);
        bus.advance(150);
        assert_eq!(bus.lapics.of(0).deliverable(0), Some(taken));
        assert!(fate(&bus).unwrap().starts_with("2 interrupt messages were sent"));
    }
    let mut unprogrammed = bus(Act::Messages {
        vector: None,
        count: 1,
        every: 1,
    });
    unprogrammed.advance(100);
    assert!(fate(&unprogrammed).unwrap_err().contains("has programmed no"));
}

#[test]
fn a_pending_message_waits_for_the_local_apic_to_be_switched_on() {
    let mut bus = bus(Act::Pend { vector: None });
    program(&mut bus);
    bus.mmio_write(0, 0xfee0_00f0, 4, 0xff);
    bus.advance(100);
    assert_eq!(bus.lapics.of(0).deliverable(0), None);
    bus.mmio_write(0, 0xfee0_00f0, 4, 0x1ff);
    assert_eq!(bus.lapics.of(0).deliverable(0), Some(0x41));
    assert_eq!(bus.view.ledger.made(), 1, "it is on record");
}

#[test]
fn the_machine_is_reset_or_a_processor_is_interrupted() {
    let mut reset = bus(Act::Power(PowerRequest::Reset));
    reset.advance(100);
    assert_eq!(reset.power.requested(), Some((PowerRequest::Reset, Some(0))));
    assert_eq!(fate(&reset).unwrap(), "the machine was reset");
    let mut nmi = bus(Act::Nmi { processor: 0 });
    nmi.advance(100);
    assert!(nmi.lapics.of(0).nmi_pending());
}

#[test]
fn timers_that_are_not_armed_cannot_be_late() {
    let mut bus = bus(Act::DelayTimers { by: 1_000 });
    bus.advance(100);
    assert!(fate(&bus).unwrap_err().contains("no timer"));
}

#[test]
fn each_access_to_a_slow_device_is_counted_once() {
    let mut bus = bus(Act::SlowAccesses { by: 70, ns: 1_000 });
    bus.advance(100);
    let bar = u64::from(bus.dma.config.read(0x10, 4));
    bus.mmio_read(200, bar, 4);
    bus.mmio_read(200, 0xfee0_0030, 4);
    assert_eq!(bus.dma.stand_until(), 271);
}
