//! The local APIC as its driver sees it.

use super::*;

fn lapic() -> LocalApic {
    let mut lapic = LocalApic::new(0, 25_000_000);
    lapic.write(0, SVR, SVR_ENABLE | 0xff);
    lapic
}

#[test]
fn a_one_shot_count_expires_once() {
    let mut lapic = lapic();
    lapic.write(0, LVT_TIMER, 0x40);
    lapic.write(0, TIMER_DIVIDE, 0b0011); // by 16
    lapic.write(1000, TIMER_INITIAL, 10);
    let end = 1000 + 10 * 16 * 40;
    assert_eq!(lapic.next_event(), Some(end));
    assert_eq!(lapic.read(1000 + 16 * 40, TIMER_CURRENT), 9);
    lapic.advance(end - 1);
    assert_eq!(lapic.deliverable(0), None);
    lapic.advance(end);
    assert_eq!((lapic.deliverable(0), lapic.next_event()), (Some(0x40), None));
    assert_eq!(lapic.read(end, TIMER_CURRENT), 0);
}

#[test]
fn a_periodic_count_keeps_its_beat() {
    let mut lapic = lapic();
    lapic.write(0, LVT_TIMER, TIMER_PERIODIC | 0x40);
    lapic.write(0, TIMER_DIVIDE, 0b1011); // by 1
    lapic.write(0, TIMER_INITIAL, 100);
    lapic.advance(4000);
    assert_eq!(
        (lapic.deliverable(0), lapic.next_event()),
        (Some(0x40), Some(8000))
    );
    // Called far too late, it is still on the beat.
    lapic.advance(17_000);
    assert_eq!(lapic.next_event(), Some(20_000));
    lapic.write(17_000, TIMER_INITIAL, 0);
    assert_eq!(lapic.next_event(), None);
}

#[test]
fn a_tsc_deadline_fires_and_clears_itself() {
    let mut lapic = lapic();
    assert!(
        lapic.msr_write(0, MSR_TSC_DEADLINE, 500),
        "ignored outside the mode"
    );
    assert_eq!(lapic.next_event(), None);
    lapic.write(0, LVT_TIMER, TIMER_DEADLINE | 0x41);
    assert!(lapic.msr_write(0, MSR_TSC_DEADLINE, 500));
    assert_eq!(lapic.next_event(), Some(500));
    lapic.advance(600);
    assert_eq!(
        (lapic.deliverable(0), lapic.msr_read(MSR_TSC_DEADLINE)),
        (Some(0x41), Some(0))
    );
    assert!(lapic.msr_write(600, MSR_TSC_DEADLINE, 900));
    lapic.write(0, LVT_TIMER, 0x41);
    assert_eq!(lapic.next_event(), None, "leaving the mode disarms");
}

#[test]
fn a_tsc_deadline_is_a_value_of_the_tsc() {
    const NEVER: u64 = u64::MAX;
    // Time, what the TSC reads beyond it, deadline, when that is reached.
    for (now, offset, deadline, due) in [
        (1000, 0, 1500, 1500),
        (1000, 500, 2500, 2000),
        (1000, 1000u64.wrapping_neg(), 300, 1300),
        (1000, 0u64.wrapping_sub(1100), NEVER - 49, 1050),
        (1000, 500, 1400, 1000),
        (1000, 1000u64.wrapping_neg(), NEVER, NEVER),
    ] {
        let mut lapic = lapic();
        lapic.write(0, LVT_TIMER, TIMER_DEADLINE | 0x41);
        lapic.set_tsc_offset(now - 1, offset);
        assert_eq!(lapic.next_event(), None, "not armed");
        assert!(lapic.msr_write(now, MSR_TSC_DEADLINE, deadline));
        assert_eq!(lapic.next_event(), Some(due), "{offset:#x} {deadline:#x}");
        assert_eq!(lapic.msr_read(MSR_TSC_DEADLINE), Some(deadline));
        lapic.advance(due - 1);
        assert_eq!(lapic.deliverable(0).is_some(), due < now);
        if due != NEVER {
            lapic.advance(due);
            assert_eq!((lapic.deliverable(0), lapic.next_event()), (Some(0x41), None));
        }
    }
}

#[test]
fn a_write_to_the_tsc_moves_an_armed_deadline() {
    let mut lapic = lapic();
    lapic.write(0, LVT_TIMER, TIMER_DEADLINE | 0x41);
    assert!(lapic.msr_write(100, MSR_TSC_DEADLINE, 5000));
    lapic.set_tsc_offset(200, 4000);
    assert_eq!(lapic.next_event(), Some(1000));
    lapic.set_tsc_offset(300, 6000);
    assert_eq!(lapic.next_event(), Some(300), "the TSC jumped over it");
}

#[test]
fn a_masked_timer_raises_nothing() {
    let mut lapic = lapic();
    lapic.write(0, LVT_TIMER, LVT_MASKED | 0x40);
    lapic.write(0, TIMER_INITIAL, 1);
    lapic.advance(1_000_000);
    assert_eq!(lapic.deliverable(0), None);
}

#[test]
fn priorities_nest() {
    let mut lapic = lapic();
    lapic.raise(0x45, false);
    assert_eq!(lapic.deliverable(0), Some(0x45));
    assert_eq!(lapic.deliverable(4), None, "CR8 of the same class holds it back");
    lapic.acknowledge(0x45);
    lapic.raise(0x4f, false);
    assert_eq!(lapic.deliverable(0), None, "same class waits for the end");
    lapic.raise(0x51, false);
    assert_eq!(lapic.deliverable(0), Some(0x51));
    assert_eq!(lapic.read(0, PPR), 0x40);
    assert_eq!(lapic.read(0, IRR + 0x20), 1 << 15 | 1 << 17);
    assert_eq!(lapic.write(0, EOI, 0), None);
    lapic.write(0, TPR, 0x50);
    assert_eq!(lapic.deliverable(0), None);
    lapic.write(0, TPR, 0);
    assert_eq!(lapic.deliverable(0), Some(0x51));
}

#[test]
fn ending_a_level_interrupt_names_its_vector() {
    let mut lapic = lapic();
    lapic.raise(0x33, true);
    lapic.acknowledge(0x33);
    assert_eq!(lapic.write(0, EOI, 0), Some(0x33));
    assert_eq!(lapic.write(0, EOI, 0), None);
}

#[test]
fn interprocessor_interrupts_go_where_they_should() {
    let mut lapic = lapic();
    lapic.write(0, ICR_LOW, 0b01 << 18 | 0x60);
    assert_eq!(
        (lapic.deliverable(0), lapic.take_sent()),
        (Some(0x60), None),
        "to itself"
    );
    lapic.write(7, ICR_HIGH, 1 << 24);
    lapic.write(7, ICR_LOW, 0x4500); // INIT, assert
    let init = lapic.take_sent().unwrap();
    assert_eq!((init.mode, init.destination, init.all_others), (5, 1, false));
    assert_eq!(lapic.take_sent(), None, "taken once");
    lapic.write(8, ICR_LOW, 0x4699); // start-up at page 0x99
    let startup = lapic.take_sent().unwrap();
    assert_eq!((startup.mode, startup.vector), (6, 0x99));
    lapic.write(8, ICR_LOW, 0x8500); // INIT, de-assert
    assert_eq!(lapic.take_sent(), None);
    lapic.write(8, ICR_LOW, 0b10 << 18 | 0x400); // NMI to all
    assert!(lapic.nmi_pending());
    assert!(
        lapic
            .take_sent()
            .is_some_and(|ipi| ipi.all_others && ipi.mode == MODE_NMI)
    );
    lapic.write(9, ICR_LOW, 0x0003);
    lapic.write(9, ESR, 0);
    assert_eq!(lapic.read(9, ESR), ESR_SEND_ILLEGAL_VECTOR);
}

#[test]
fn a_disabled_apic_takes_nothing() {
    let mut lapic = lapic();
    lapic.write(0, LVT_TIMER, 0x40);
    lapic.write(0, SVR, 0xff);
    lapic.raise(0x50, false);
    assert_eq!(lapic.deliverable(0), None);
    assert_ne!(lapic.read(0, LVT_TIMER) & LVT_MASKED, 0);
    assert!(
        !lapic.msr_write(0, MSR_APIC_BASE, BASE | BASE_ENABLE | 1 << 10),
        "no x2APIC"
    );
    assert!(lapic.msr_write(0, MSR_APIC_BASE, BASE | BASE_BSP));
    assert_eq!(lapic.msr_read(0x10), None);
}

#[test]
fn logical_destinations_are_sets() {
    let mut lapic = lapic();
    lapic.write(0, LDR, 0x0400_0000);
    assert!(lapic.matches(0x06, true) && !lapic.matches(0x03, true));
    lapic.write(0, DFR, 0);
    lapic.write(0, LDR, 0x2400_0000);
    assert!(lapic.matches(0x24, true) && !lapic.matches(0x14, true) && !lapic.matches(0x22, true));
    assert!(lapic.matches(0xff, false) && lapic.matches(0, false) && !lapic.matches(1, false));
}
