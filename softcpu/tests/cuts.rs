//! Where a run is cut, saved and restored, or watched, the guest cannot tell.

mod common;

use common::busy::{self, PIECES, assert_same, drive, pte, replace};
use common::{CODE, Guest};
use iced_x86::code_asm::*;
use proptest::prelude::*;
use softcpu::flags::IF;
use softcpu::{CodeChange, Exit, NoBus};

const END: u64 = 3000;

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..PIECES, 1..60)
}

fn interrupts() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(1..600u64, 0..20).prop_map(|mut times| {
        times.sort_unstable();
        times
    })
}

fn cuts() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![Just(1u64), 1..8u64, 1..200u64], 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_run_does_not_depend_on_where_it_is_cut(pieces in pieces(), interrupts in interrupts(), cuts in cuts()) {
        let mut whole = busy::guest(&pieces);
        let trace = drive(&mut whole, &interrupts, END, &[], |_| {});
        let mut cut = busy::guest(&pieces);
        prop_assert_eq!(&trace, &drive(&mut cut, &interrupts, END, &cuts, |_| {}));
        assert_same(&whole, &cut, "cut");
        let mut saved = busy::guest(&pieces);
        prop_assert_eq!(&trace, &drive(&mut saved, &interrupts, END, &cuts, replace));
        assert_same(&whole, &saved, "saved and restored");
    }

    #[test]
    fn a_guest_cannot_tell_whether_it_is_watched(
        pieces in pieces(),
        interrupts in interrupts(),
        cuts in cuts(),
        what in prop::collection::vec((0..8u8, prop::sample::select(PAGES), any::<bool>()), 1..20),
    ) {
        let mut plain = busy::guest(&pieces);
        let trace = drive(&mut plain, &interrupts, END, &[], |_| {});
        let mut watched = busy::guest(&pieces);
        let mut what = what.into_iter().cycle();
        let changed = drive(&mut watched, &interrupts, END, &cuts, |guest| {
            let (kind, page, on) = what.next().unwrap();
            watch(guest, kind, page, on);
        });
        prop_assert_eq!(&trace, &changed);
        for guest in [&mut plain, &mut watched] {
            let mut state = guest.cpu.state(&guest.ram);
            state.watches = softcpu::Watches::default();
            state.translations.code.iter_mut().for_each(|entry| entry.passed = false);
            guest.cpu = softcpu::Cpu::from_state(&state, &guest.ram).unwrap();
        }
        assert_same(&plain, &watched, "watched");
    }
}

/// Pages that the busy guest uses: page table, code, data, code that is aliased, handlers.
const PAGES: &[u64] = &[
    0x4000, CODE, 0x9_0000, 0x9_1000, 0x9_5000, 0x9_7000, 0x9_a000, 0xa_8000, 0xb_0000, 0xb_1000,
];

fn watch(guest: &mut Guest, kind: u8, page: u64, on: bool) {
    let Guest { cpu, ram } = guest;
    match kind {
        0 | 1 => cpu.watch_writes(ram, page, on),
        // As if another processor had decoded or dropped code there.
        2 if on => {
            let granules = u64::MAX;
            cpu.follow(ram, &[CodeChange::Marked { page, granules }]);
        }
        2 => cpu.follow(ram, &[CodeChange::AllDetached]),
        3 => cpu.begin_write_epoch(ram),
        4 => cpu.watch_execution(ram, page, on),
        5 => cpu.stop_on_low_supervisor_fetch(on),
        // Drops decoded code.
        6 => cpu.memory_written(ram, page, 0x1000),
        _ => cpu.memory_written(ram, 0, 2 << 20),
    }
}

#[test]
fn the_busy_guest_reaches_everything() {
    let pieces: Vec<u8> = (0..PIECES).chain(0..PIECES).collect();
    let mut guest = busy::guest(&pieces);
    let trace = drive(
        &mut guest,
        &[100, 101, 150, 400, 500, 2600, 4000],
        20_000,
        &[],
        |_| {},
    );
    assert!(
        matches!(trace.last(), Some((_, Exit::Halted { interruptible: false }))),
        "{trace:?}"
    );
    assert_eq!(guest.halted_in(), None, "no handler of the bare guest's");
    for kind in [
        |exit: &Exit| *exit == Exit::Bus,
        |exit: &Exit| *exit == Exit::InterruptWindow,
        |exit: &Exit| matches!(exit, Exit::Pause { .. }),
        |exit: &Exit| *exit == Exit::Halted { interruptible: true },
    ] {
        assert!(trace.iter().any(|(_, exit)| kind(exit)), "{trace:?}");
    }
    for vector in [0, 1, 3, 6, 14, 0x40] {
        assert_ne!(
            guest.word(busy::COUNTERS + 8 * vector),
            0,
            "vector {vector} (0 is SYSCALL)"
        );
    }
}

/// A guest that is cut right after its first `ticks` instructions while somebody waits for an interrupt.
fn stops_for_an_interrupt(ticks: u64, write: impl FnOnce(&mut CodeAssembler)) -> (Exit, u64) {
    let mut guest = Guest::new(write);
    guest.cpu.request_interrupt_window(true);
    if ticks > 0 {
        assert_eq!(guest.cpu.run(&mut guest.ram, &mut NoBus, ticks), Exit::Deadline);
    }
    let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, 100);
    (exit, guest.cpu.now())
}

#[test]
fn an_interrupt_shadow_that_outlives_the_deadline_delays_an_interrupt_by_one_instruction_only() {
    for cut in 0..=2 {
        let program = |a: &mut CodeAssembler| {
            a.nop().unwrap();
            a.sti().unwrap();
            (0..50).for_each(|_| a.nop().unwrap());
            a.hlt().unwrap();
        };
        assert_eq!(
            stops_for_an_interrupt(cut, program),
            (Exit::InterruptWindow, 3),
            "cut at {cut}"
        );
    }
}

#[test]
fn a_second_shadow_delays_an_interrupt_by_one_instruction_more() {
    for cut in 0..=3 {
        let program = |a: &mut CodeAssembler| {
            a.mov(ecx, ss).unwrap();
            a.sti().unwrap();
            a.mov(ss, ecx).unwrap();
            (0..50).for_each(|_| a.nop().unwrap());
            a.hlt().unwrap();
        };
        assert_eq!(
            stops_for_an_interrupt(cut, program),
            (Exit::InterruptWindow, 4),
            "cut at {cut}"
        );
    }
}

#[test]
fn an_interrupt_is_not_late_in_a_page_whose_execution_is_watched() {
    let mut guest = Guest::new(|a| {
        a.sti().unwrap();
        a.nop().unwrap();
        (0..50).for_each(|_| a.nop().unwrap());
    });
    guest.cpu.watch_execution(&guest.ram, CODE, true);
    guest.cpu.request_interrupt_window(true);
    let exits: Vec<bool> = (0..3)
        .map(|_| guest.cpu.run(&mut guest.ram, &mut NoBus, 100) == Exit::InterruptWindow)
        .collect();
    assert_eq!(exits, [false, false, true]);
    assert_eq!(guest.cpu.now(), 2);
}

#[test]
fn sysret_with_the_trap_flag_traces_from_the_first_instruction_on() {
    for cut in 0..3 {
        let mut guest = Guest::new(|a| {
            a.mov(ecx, 0xc000_0081u32).unwrap();
            a.xor(eax, eax).unwrap();
            a.mov(edx, 0x23_0010).unwrap();
            a.wrmsr().unwrap();
            a.mov(rcx, 0x9_0000u64).unwrap();
            a.mov(r11d, 0x102).unwrap();
            a.sysretq().unwrap();
        });
        assert!(guest.ram.write(0x9_0000, &[0x90; 8]));
        guest.cpu.run(&mut guest.ram, &mut NoBus, 6 + cut);
        let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, 100);
        assert!(matches!(exit, Exit::Halted { .. }), "{exit:?}");
        assert_eq!(
            (guest.halted_in(), guest.cpu.now()),
            (Some(1), 9),
            "cut after {cut}"
        );
    }
}

#[test]
fn a_single_step_trap_is_not_lost_to_an_access_of_the_bus() {
    let mut guest = Guest::new(|a| {
        a.in_(al, 0x60).unwrap();
        a.nop().unwrap();
    });
    guest.set(|state| state.rflags |= softcpu::flags::TF);
    assert_eq!(guest.cpu.run(&mut guest.ram, &mut NoBus, 100), Exit::Bus);
    guest.cpu.run(&mut guest.ram, &mut NoBus, 100);
    assert_eq!(
        (guest.halted_in(), guest.word(guest.cpu.registers().gpr[4])),
        (Some(1), CODE + 2)
    );
}

#[test]
fn a_guest_that_cannot_fetch_its_fault_handler_gets_older() {
    let mut guest = Guest::new(|a| a.ud2().unwrap());
    // The handlers are gone, and page faults have a stack that never runs out.
    guest.put(pte(common::HANDLERS), 0);
    let gate = common::IDT + 16 * 14;
    guest.put(gate, guest.word(gate) | 1 << 32);
    guest.cpu.run(&mut guest.ram, &mut NoBus, 1000);
    assert_eq!(guest.cpu.now(), 1000);
    assert_eq!(guest.cpu.registers().rflags & IF, 0);
}
