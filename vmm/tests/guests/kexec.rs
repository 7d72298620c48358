//! A kexec between two kernels of a few instructions: both backends report the jump and the entry.

use iced_x86::code_asm::*;

use super::code::{Asm, Code, DATA, UPPER};
use super::guest::Guest;
use super::hosts;
use vmm::boot::layout::BOOT_PARAMS;
use vmm::machine::{Event, Machine};
use vmm::phase::Phase;

/// Physical address of the old kernel's `machine_kexec`, which runs in the upper half.
const MACHINE_KEXEC: u64 = 0x120_0000;
/// The identity-mapped page of `relocate_kernel`.
const RELOCATE: u64 = 0x60_0000;
/// The new kernel's load address and entry point.
const NEW_KERNEL: u64 = 0x140_0000;
const NEW_ENTRY: u64 = NEW_KERNEL + 0x200;
/// Purgatory's `entry64_regs`, in RAM with the loaded image.
const ENTRY_REGS: u64 = 0x64_0100;
/// One page each for the old kernel, the code between the kernels, and the new kernel to write to.
const OLD: u64 = DATA;
const JUMPING: u64 = DATA + 0x1000;
const NEW: u64 = DATA + 0x2000;

/// The old kernel sends a message and jumps. The new one sends a message and jumps again, until it was entered
/// `entries` times; then it switches off.
fn guest(entries: i32) -> Guest {
    let mut guest = Guest::new(|c| {
        c.ring(0)?;
        c.store32(OLD, 1)?;
        c.mov(rax, UPPER + MACHINE_KEXEC)?;
        c.jmp(rax)
    });
    let jump = Code::assemble(UPPER + MACHINE_KEXEC, |c| {
        c.store32(OLD + 8, 1)?;
        // As relocate_kernel does: clears all flags, and TF with them by which KVM steps.
        c.mov(rsp, UPPER + OLD + 0x800)?;
        c.push(2)?;
        c.popfq()?;
        c.xor(esp, esp)?;
        c.mov(rax, RELOCATE)?;
        c.jmp(rax)
    });
    let relocate = Code::assemble(RELOCATE, |c| {
        c.mov(rax, JUMPING)?;
        c.mov(dword_ptr(rax), 1)?;
        // As purgatory does: loads RSI with the boot parameters and jumps to the entry point.
        c.mov(rsi, BOOT_PARAMS)?;
        c.mov(rax, NEW_ENTRY)?;
        c.jmp(rax)
    });
    let new = Code::assemble(NEW_ENTRY, |c| new_kernel(c, entries));
    let mut registers = vec![0_u8; 17 * 8];
    for (index, value) in [(4, 0x9_f000_u64), (6, BOOT_PARAMS), (16, NEW_ENTRY)] {
        registers[index * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
    guest.memory.extend([
        (MACHINE_KEXEC, jump.bytes),
        (RELOCATE, relocate.bytes),
        (NEW_ENTRY, new.bytes),
        (ENTRY_REGS, registers),
    ]);
    guest
}

fn new_kernel(c: &mut Code, entries: i32) -> Asm {
    let mut upper = c.create_label();
    let mut off = c.create_label();
    c.mov(rax, NEW)?;
    c.inc(dword_ptr(rax))?;
    // Goes to the upper half early, as every kernel does.
    c.lea(rax, qword_ptr(upper))?;
    c.mov(rcx, UPPER)?;
    c.add(rax, rcx)?;
    c.jmp(rax)?;
    c.set_label(&mut upper)?;
    c.print(b'n')?;
    c.ring(0)?;
    c.mov(rax, UPPER + NEW)?;
    c.cmp(dword_ptr(rax), entries)?;
    c.jae(off)?;
    c.mov(rax, UPPER + MACHINE_KEXEC)?;
    c.jmp(rax)?;
    c.set_label(&mut off)?;
    c.power_off()
}

/// Answers each message, and tells the machine to expect a kexec after the first `kexecs` of them.
fn drive(machine: &mut Machine, kexecs: usize, symbol: Option<u64>) -> Vec<Event> {
    let mut events = Vec::new();
    let mut messages = 0;
    loop {
        let event = machine.run().unwrap();
        events.push(event.clone());
        if let Event::Message(_) = event {
            machine.enter_phase(Phase::Handover).unwrap();
            if messages < kexecs {
                machine.expect_kexec(&|| symbol);
            }
            messages += 1;
            machine.reply(&[]).unwrap();
        }
        if event.is_final() {
            return events;
        }
    }
}

const EVENTS: [&str; 5] = [
    "message ",
    "jump",
    "entry of 1, boot_params 0x7000",
    "message ",
    "power off",
];

fn with_symbols(machine: &mut Machine) -> Vec<Event> {
    drive(machine, 1, Some(UPPER + MACHINE_KEXEC))
}

#[test]
fn the_jump_is_exact_with_symbols() {
    for run in guest(1).compare(with_symbols) {
        assert_eq!(run.evidence.events, EVENTS, "{}", run.backend);
        let [blackout] = &run.machine.blackouts()[..] else {
            panic!("{:?}", run.machine.blackouts())
        };
        assert_eq!(
            (blackout.generation, blackout.jump_not_before),
            (1, None),
            "{}",
            run.backend
        );
        let pages = |phase| run.evidence.pages_in(phase).into_iter().collect::<Vec<_>>();
        assert_eq!(pages(Phase::Handover), [OLD >> 12], "{}", run.backend);
        assert_eq!(pages(Phase::Jump), [JUMPING >> 12]);
        assert_eq!(pages(Phase::BootNew), [NEW >> 12]);
    }
}

#[test]
fn without_symbols_the_jump_is_bounded() {
    for backend in hosts::backends() {
        let run = guest(1).run_on(backend, &|machine| drive(machine, 1, None));
        assert_eq!(run.evidence.events, EVENTS, "{}", run.backend);
        let blackout = run.machine.blackouts()[0];
        let Event::Jump { time: jump } = run.events[1] else {
            panic!()
        };
        // Only these pages matter. Others may have been read, see `hosts::reads_may_count`.
        let relevant = |pfn: &u64| [OLD, JUMPING, NEW].map(|address| address >> 12).contains(pfn);
        let pages = |phase| {
            run.evidence
                .pages_in(phase)
                .into_iter()
                .filter(relevant)
                .collect::<Vec<_>>()
        };
        if run.backend == "soft" {
            assert_eq!(blackout.jump_not_before, None);
            assert_eq!(pages(Phase::Jump), [JUMPING >> 12]);
        } else {
            // The bound is the old kernel's last access to a device, the doorbell.
            let bound = blackout.jump_not_before.unwrap();
            assert!(bound > 0 && bound <= jump, "{bound} {jump}");
            // Writes between jump and entry count as the old kernel's, because the jump was not seen.
            assert_eq!(
                pages(Phase::Handover),
                [OLD, JUMPING].map(|address| address >> 12)
            );
            assert!(pages(Phase::Jump).is_empty());
        }
        assert_eq!(pages(Phase::BootNew), [NEW >> 12], "{}", run.backend);
    }
}

#[test]
fn one_kexec_follows_another() {
    let runs = guest(2).compare(|machine| drive(machine, 2, Some(UPPER + MACHINE_KEXEC)));
    for run in runs {
        let generations: Vec<u16> = run
            .machine
            .blackouts()
            .iter()
            .map(|blackout| blackout.generation)
            .collect();
        assert_eq!(generations, [1, 2], "{}", run.backend);
        assert_eq!(run.evidence.console, "nn");
        assert_eq!(run.machine.registers().rip, run.evidence.registers.rip);
    }
}

#[test]
fn with_a_wrong_symbol_the_entry_is_still_seen() {
    // As with another kernel's symbols: nothing executes there, but the entry has a breakpoint too.
    for backend in hosts::backends() {
        let run = guest(1).run_on(backend, &|machine| drive(machine, 1, Some(UPPER + 0x1ff_0000)));
        assert_eq!(run.evidence.events, EVENTS, "{}", run.backend);
        assert_eq!(
            run.machine.blackouts()[0].jump_not_before.is_some(),
            run.backend == "kvm"
        );
    }
}

#[test]
fn no_kexec_is_reported_before_the_first_message() {
    // A booting kernel executes in the lower half, too.
    let guest = Guest::new(|c| {
        let mut low = c.create_label();
        let mut high = c.create_label();
        c.lea(rax, qword_ptr(low))?;
        c.mov(rcx, UPPER)?;
        c.sub(rax, rcx)?;
        c.jmp(rax)?;
        c.set_label(&mut low)?;
        c.lea(rax, qword_ptr(high))?;
        c.add(rax, rcx)?;
        c.jmp(rax)?;
        c.set_label(&mut high)?;
        c.power_off()
    });
    guest.completed();
}
