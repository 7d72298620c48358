//! Ports, device memory, the mailbox, model-specific registers, and time limits.

use guest_agent::device::mailbox::{MAGIC, MAGIC_VALUE, REPLY_LENGTH, WINDOW};
use iced_x86::code_asm::*;

use super::code::{Code, DATA, MAILBOX, UPPER};
use super::guest::Guest;
use super::hosts;
use vmm::devices::{pci, uart};
use vmm::machine::Event;
use vmm::memory::PAGE_SIZE;

/// Port of the UART's scratch register.
const SCRATCH: u32 = uart::PORT as u32 + 7;

#[test]
fn ports_are_written_and_read_in_each_size() {
    let guest = Guest::new(|c| {
        c.mov(rbx, UPPER + DATA)?;
        c.print(b'h')?;
        c.mov(edx, SCRATCH)?;
        c.mov(eax, 0x5a)?;
        c.out(dx, al)?;
        c.mov(eax, 0xffff_ffff_u32)?;
        c.in_(al, dx)?;
        c.mov(dword_ptr(rbx), eax)?;
        // The data port of PCI configuration mechanism #1 takes all sizes.
        c.mov(edx, u32::from(pci::ADDRESS_PORT))?;
        c.mov(eax, 0x8000_0000_u32 | 1 << 11)?;
        c.out(dx, eax)?;
        c.mov(eax, 0)?;
        c.in_(eax, dx)?;
        c.mov(dword_ptr(rbx + 4), eax)?;
        c.mov(edx, u32::from(pci::DATA_PORT))?;
        c.mov(rax, u64::MAX)?;
        c.in_(eax, dx)?;
        c.mov(qword_ptr(rbx + 8), rax)?;
        c.mov(rax, u64::MAX)?;
        c.in_(ax, dx)?;
        c.mov(qword_ptr(rbx + 16), rax)?;
        c.mov(edx, u32::from(pci::DATA_PORT) + 2)?;
        c.in_(al, dx)?;
        c.mov(qword_ptr(rbx + 24), rax)?;
        // Writes the command register in 16 bits and reads it back.
        c.mov(edx, u32::from(pci::ADDRESS_PORT))?;
        c.mov(eax, 0x8000_0004_u32 | 1 << 11)?;
        c.out(dx, eax)?;
        c.mov(edx, u32::from(pci::DATA_PORT))?;
        c.mov(eax, 0x0006)?;
        c.out(dx, ax)?;
        c.in_(eax, dx)?;
        c.mov(dword_ptr(rbx + 32), eax)?;
        // The forms with an immediate port number.
        c.mov(eax, 0x77)?;
        c.out(0x80, al)?;
        c.in_(al, 0x80)?;
        c.mov(dword_ptr(rbx + 36), eax)?;
        c.power_off()
    });
    for run in guest.completed() {
        assert_eq!(run.evidence.events, ["power off"], "{}", run.backend);
        assert_eq!(run.evidence.console, "h");
        let word = |at| run.machine.ram().read_u64(DATA + at).unwrap();
        assert_eq!(word(0), 0x8000_0800_ffff_ff5a);
        assert_eq!(word(8), 0x0001_ba70);
        assert_eq!(word(16), 0xffff_ffff_ffff_ba70);
        assert_eq!(word(24), 0xffff_ffff_ffff_ba01);
        assert_eq!(word(32) & 0xffff_ffff, 0x6);
        assert_eq!(word(32) >> 32, 0);
    }
}

#[test]
fn string_forms_print_and_read_whole_runs() {
    let text = b"all of this in one instruction";
    let mut guest = Guest::new(|c| {
        c.mov(rsi, UPPER + DATA)?;
        c.mov(ecx, u32::try_from(text.len()).unwrap())?;
        c.mov(edx, u32::from(uart::PORT))?;
        c.rep().outsb()?;
        c.mov(rbp, rsi)?;
        c.mov(edx, SCRATCH)?;
        c.mov(rdi, UPPER + DATA + PAGE_SIZE - 3)?;
        c.mov(ecx, 8)?;
        c.rep().insb()?;
        c.mov(r12, rdi)?;
        c.mov(edx, u32::from(pci::DATA_PORT))?;
        c.mov(rdi, UPPER + DATA + 0x2000)?;
        c.mov(ecx, 3)?;
        c.rep().insw()?;
        c.mov(ecx, 2)?;
        c.rep().insd()?;
        c.insb()?;
        c.mov(ecx, 0)?;
        c.rep().insd()?;
        c.mov(rsi, UPPER + DATA)?;
        c.mov(edx, u32::from(uart::PORT))?;
        c.outsb()?;
        c.std()?;
        c.outsb()?;
        c.outsb()?;
        c.cld()?;
        c.power_off()
    });
    guest.memory.push((DATA, text.to_vec()));
    for run in guest.completed() {
        assert_eq!(
            run.evidence.console, "all of this in one instructionala",
            "{}",
            run.backend
        );
        let registers = &run.evidence.registers;
        assert_eq!(registers.gpr[5], UPPER + DATA + text.len() as u64);
        assert_eq!(registers.gpr[12], UPPER + DATA + PAGE_SIZE + 5);
        // INS wrote across a page boundary. Both pages count.
        let pages = run.evidence.pages[0].1.clone();
        assert!(pages.contains(&(DATA >> 12)) && pages.contains(&((DATA >> 12) + 1)));
        assert_eq!(run.machine.ram().read_u64(DATA + 0x2000).unwrap(), u64::MAX);
    }
}

#[test]
fn device_memory_is_written_and_read_in_each_size() {
    const PLACE: u64 = UPPER + MAILBOX + WINDOW;
    let guest = Guest::new(|c| {
        c.mov(rbx, PLACE)?;
        c.mov(r15, UPPER + DATA)?;
        c.mov(rax, 0x8877_6655_4433_2211_u64)?;
        c.mov(byte_ptr(rbx), al)?;
        c.mov(word_ptr(rbx + 2), ax)?;
        c.mov(dword_ptr(rbx + 4), eax)?;
        c.mov(qword_ptr(rbx + 8), rax)?;
        c.mov(byte_ptr(rbx + 1), 0x7f)?;
        c.mov(rcx, qword_ptr(rbx))?;
        c.mov(qword_ptr(r15), rcx)?;
        c.mov(ecx, dword_ptr(rbx + 8))?;
        c.mov(qword_ptr(r15 + 8), rcx)?;
        c.mov(rcx, u64::MAX)?;
        c.mov(cx, word_ptr(rbx + 14))?;
        c.mov(qword_ptr(r15 + 16), rcx)?;
        c.movzx(ecx, byte_ptr(rbx + 15))?;
        c.mov(qword_ptr(r15 + 24), rcx)?;
        c.movsx(rcx, byte_ptr(rbx + 15))?;
        c.mov(qword_ptr(r15 + 32), rcx)?;
        c.mov(rax, UPPER + MAILBOX + MAGIC)?;
        c.mov(eax, dword_ptr(rax))?;
        c.mov(qword_ptr(r15 + 40), rax)?;
        // One instruction that reads, changes and writes.
        c.add(dword_ptr(rbx + 4), 1)?;
        c.mov(rax, qword_ptr(rbx))?;
        c.mov(qword_ptr(r15 + 48), rax)?;
        // No device is at this address.
        c.mov(rax, UPPER + 0xd000_0000)?;
        c.mov(qword_ptr(rax), rax)?;
        c.mov(rax, qword_ptr(rax))?;
        c.mov(qword_ptr(r15 + 56), rax)?;
        // Copies RAM to the window and back.
        c.lea(rsi, qword_ptr(r15))?;
        c.lea(rdi, qword_ptr(rbx + 0x20))?;
        c.mov(ecx, 4)?;
        c.rep().movsq()?;
        c.lea(rsi, qword_ptr(rbx + 0x20))?;
        c.lea(rdi, qword_ptr(r15 + 0x80))?;
        c.mov(ecx, 32)?;
        c.rep().movsb()?;
        c.power_off()
    });
    for run in guest.completed() {
        let word = |at| run.machine.ram().read_u64(DATA + at).unwrap();
        let found: Vec<u64> = (0..8).map(|index| word(8 * index)).collect();
        let expected = [
            0x4433_2211_2211_7f11,
            0x4433_2211,
            0xffff_ffff_ffff_8877,
            0x88,
            0xffff_ffff_ffff_ff88,
            MAGIC_VALUE.into(),
            0x4433_2212_2211_7f11,
            u64::MAX,
        ];
        assert_eq!(found, expected, "{}: {found:#x?}", run.backend);
        assert!((0..4).all(|index| word(0x80 + 8 * index) == word(8 * index)));
        // Device memory is not RAM, so only the page of the results was written.
        assert_eq!(
            run.evidence.pages[0].1.iter().copied().collect::<Vec<_>>(),
            [DATA >> 12]
        );
    }
}

#[test]
fn a_doorbell_stops_the_guest_until_the_answer() {
    let guest = Guest::new(|c| {
        c.store32(MAILBOX + WINDOW, u32::from_le_bytes(*b"ask!"))?;
        c.ring(3)?;
        c.mov(rax, UPPER + MAILBOX + REPLY_LENGTH)?;
        c.mov(ecx, dword_ptr(rax))?;
        c.mov(rax, UPPER + MAILBOX + WINDOW)?;
        c.mov(rsi, qword_ptr(rax))?;
        c.power_off()
    });
    for mut run in guest.runs() {
        assert_eq!(
            run.evidence.events,
            ["message ask", "power off"],
            "{}",
            run.backend
        );
        let gpr = run.evidence.registers.gpr;
        assert_eq!((gpr[1], gpr[6]), (2, u64::from_le_bytes(*b"okk!\0\0\0\0")));
        assert_eq!(
            run.machine.run().unwrap(),
            *run.events.last().unwrap(),
            "a final event stays"
        );
    }
}

#[test]
fn waiting_for_an_answer_takes_no_guest_time() {
    let guest = Guest::new(|c| {
        c.ring(0)?;
        c.power_off()
    });
    guest.compare(|machine| {
        let message = machine.run().unwrap();
        let before = machine.moment();
        std::thread::sleep(std::time::Duration::from_millis(2));
        machine.reply(&[]).unwrap();
        assert_eq!(machine.moment(), before);
        vec![message, machine.run().unwrap()]
    });
}

#[test]
fn a_message_that_is_too_long_ends_the_run() {
    let guest = Guest::new(|c| c.ring(1 << 20));
    for run in guest.runs() {
        assert_eq!(
            run.evidence.events,
            ["message too long: 1048576"],
            "{}",
            run.backend
        );
    }
}

/// A #GP handler that counts and skips the two bytes of RDMSR or WRMSR.
fn skipping_handler(c: &mut Code, counter: u64) -> super::code::Asm {
    c.push(rax)?;
    c.mov(rax, UPPER + counter)?;
    c.inc(qword_ptr(rax))?;
    c.mov(rax, qword_ptr(rsp + 8))?;
    c.mov(rbp, rax)?;
    c.pop(rax)?;
    c.add(rsp, 8)?;
    c.add(qword_ptr(rsp), 2)?;
    c.iretq()
}

#[test]
fn unknown_model_specific_registers_fault() {
    let why = "WRMSR takes it";
    let canonical_only = hosts::left_out_on_tcg("a base of GS that is not canonical", why);
    let guest = Guest::new(|c| {
        c.tables()?;
        c.mov(ecx, 0x1234_5678)?;
        c.mov(r12, 0x77_u64)?;
        c.rdmsr()?;
        c.wrmsr()?;
        // Known registers do not fault: writes the base of GS and reads it back.
        c.write_msr(0xc000_0101, 0x1122_3344_5566)?;
        c.rdmsr()?;
        c.shl(rdx, 32)?;
        c.or(rax, rdx)?;
        c.mov(r13, rax)?;
        // The address is not canonical.
        if !canonical_only {
            c.write_msr(0xc000_0101, 0x8000_0000_0000_0000)?;
        }
        c.power_off()?;
        c.handler(13)?;
        skipping_handler(c, DATA)
    });
    for run in guest.completed() {
        assert_eq!(run.evidence.events, ["power off"], "{}", run.backend);
        let faults = if canonical_only { 2 } else { 3 };
        assert_eq!(
            run.machine.ram().read_u64(DATA).unwrap(),
            faults,
            "{}",
            run.backend
        );
        let registers = &run.evidence.registers;
        assert_eq!((registers.gpr[5], registers.gpr[13]), (0, 0x1122_3344_5566));
        assert_eq!(registers.segments[5].base, 0x1122_3344_5566);
    }
}

#[test]
fn a_run_with_a_time_limit_can_be_continued() {
    let guest = Guest::new(|c| {
        c.wait_for(DATA, 1)?;
        c.power_off()
    });
    let runs = guest.compare(|machine| {
        for turn in 1..=3 {
            let limit = turn * 50_000;
            assert_eq!(machine.run_until(limit).unwrap(), None);
            assert!(machine.moment().time >= limit);
        }
        machine.ram().write(DATA, &[1]).unwrap();
        vec![machine.run().unwrap()]
    });
    for run in runs {
        assert!(
            matches!(run.events[..], [Event::PowerOff { .. }]),
            "{}",
            run.backend
        );
    }
}
