//! The ways that a guest ends: each is reported as what it is.

use iced_x86::code_asm::*;

use super::code::{Asm, Code, DATA, UPPER};
use super::guest::Guest;
use vmm::machine::Event;

/// Checks that every backend reports this event and no other.
fn end(guest: &Guest, expected: &str) -> Vec<Event> {
    let runs = guest.runs();
    for run in &runs {
        assert_eq!(run.evidence.events, [expected], "{}", run.backend);
    }
    runs.into_iter().flat_map(|run| run.events).collect()
}

#[test]
fn power_goes_off() {
    end(&Guest::new(Code::power_off), "power off");
}

#[test]
fn each_port_resets() {
    for (port, value) in [(0x602, 1), (0xcf9, 6), (0x64, 0xfe)] {
        end(&Guest::new(|c| c.out8(port, value)), "reset");
    }
}

#[test]
fn writes_that_are_no_reset_are_ignored() {
    let guest = Guest::new(|c| {
        for (port, value) in [(0x602, 0), (0xcf9, 2), (0x64, 0xd1), (0x600, 0x14), (0x601, 0)] {
            c.out8(port, value)?;
        }
        c.power_off()
    });
    end(&guest, "power off");
}

#[test]
fn an_exception_without_a_table_is_a_triple_fault() {
    let guest = Guest::new(|c| c.ud2());
    for event in end(&guest, "triple fault") {
        let text = event.to_string();
        let Event::TripleFault { at, reason } = event else {
            panic!()
        };
        // An AMD processor loses its registers: then nothing may be made of them.
        match at.rip {
            Some(rip) => assert_eq!(rip, UPPER + super::code::CODE, "{reason}"),
            None => assert!(reason.contains("loses its registers"), "{reason}"),
        }
        assert!(!text.contains("0xfff0"), "{text}");
    }
}

#[test]
fn a_table_without_the_gate_is_a_triple_fault() {
    let mut guest = Guest::new(|c| {
        c.tables()?;
        c.mov(rax, UPPER + DATA)?;
        c.lidt(qword_ptr(rax))?;
        c.ud2()
    });
    // The table has three gates: none for #UD, #GP or #DF.
    guest.memory.push((
        DATA,
        [&47_u16.to_le_bytes()[..], &(UPPER + DATA).to_le_bytes()].concat(),
    ));
    end(&guest, "triple fault");
}

#[test]
fn a_wild_jump_is_a_triple_fault() {
    // Nothing is mapped at the target.
    let guest = Guest::new(|c| {
        c.mov(rax, 0xffff_c000_dead_beef_u64)?;
        c.jmp(rax)
    });
    end(&guest, "triple fault");
}

#[test]
fn dead_halts_differ_by_the_interrupt_flag() {
    end(
        &Guest::new(|c| {
            c.cli()?;
            c.hlt()
        }),
        "dead halt, interruptible false",
    );
    end(
        &Guest::new(|c| {
            c.sti()?;
            c.hlt()
        }),
        "dead halt, interruptible true",
    );
}

/// A guest that spins ends when the limit of its progress has passed, and not before.
fn spins(guest: impl FnOnce(&mut Code) -> Asm) {
    const LIMIT: u64 = 100_000_000;
    let mut guest = Guest::new(guest);
    // Long enough for a busy host to start the processor at all.
    guest.patience = Some(LIMIT);
    for event in end(&guest, "no progress") {
        let Event::NoProgress { at, since, limit } = event else {
            panic!()
        };
        assert_eq!(limit, LIMIT);
        assert!(at.time >= since + limit);
    }
}

fn jump_to_itself(c: &mut Code) -> Asm {
    let mut again = c.create_label();
    c.set_label(&mut again)?;
    c.jmp(again)
}

#[test]
fn a_spinning_guest_makes_no_progress() {
    spins(|c| {
        c.sti()?;
        jump_to_itself(c)
    });
}

#[test]
fn a_guest_that_spins_with_interrupts_disabled_makes_no_progress() {
    spins(jump_to_itself);
}

#[test]
fn printing_is_progress() {
    let guest = Guest::new(|c| {
        let mut again = c.create_label();
        let mut wait = c.create_label();
        c.mov(ebx, 3)?;
        c.set_label(&mut again)?;
        c.print(b'.')?;
        // Waits by the TSC, which runs at 1 GHz or more on both backends.
        c.rdtsc()?;
        c.shl(rdx, 32)?;
        c.or(rax, rdx)?;
        c.lea(rcx, qword_ptr(rax + 100_000))?;
        c.set_label(&mut wait)?;
        c.rdtsc()?;
        c.shl(rdx, 32)?;
        c.or(rax, rdx)?;
        c.cmp(rax, rcx)?;
        c.jb(wait)?;
        c.dec(ebx)?;
        c.jnz(again)?;
        c.mov(ecx, 0)?;
        c.power_off()
    });
    for run in guest.runs() {
        assert_eq!(run.evidence.console, "...");
    }
}
