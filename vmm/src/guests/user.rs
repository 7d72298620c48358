//! Privilege level 3: the way there and back, and the faults on the way.

use guest_agent::device::mailbox::{DOORBELL, WINDOW};
use iced_x86::code_asm::*;

use super::code::{Asm, CODE, Code, DATA, GDT, INTERRUPT_STACK, MAILBOX, UPPER, UPPER_ENTRY};
use super::guest::{Guest, LEAF, Run, TABLE, to_the_end};
use super::hosts;
use crate::boot::layout::{BOOT_PARAMS, ENTRY_64, PDPT};
use crate::machine::{Event, Machine};

/// Page tables of the guest: user pages below, all of memory for the kernel above.
const TOP: u64 = 0x70_0000;
const MIDDLE: u64 = TOP + 0x1000;
const BOTTOM: u64 = TOP + 0x2000;
const DEVICES: u64 = TOP + 0x3000;
/// Page table entries: user; not writable.
const USER: u64 = 4;
/// User memory: code and stack in one page of 2 MiB, then one that the page-fault handler maps, then nothing.
pub(super) const USER_CODE: u64 = 0x80_0000;
const USER_STACK: u64 = 0x90_0000;
const ON_DEMAND: u64 = 0xa0_0000;
/// Where the kernel keeps user mode's stack pointer, and what its page-fault handler saw.
const KEPT_STACK: u64 = DATA + 0x10;
const FAULT_ADDRESS: u64 = DATA + 0x20;
const FAULT_ERROR: u64 = DATA + 0x28;
const FAULTS: u64 = DATA + 0x30;
const TRAPS: u64 = DATA + 0x38;
const UNDEFINED: u64 = DATA + 0x40;
const PROTECTION: u64 = DATA + 0x48;
const CALLS: u64 = DATA + 0x50;
/// SS in the kernel, as SYSCALL leaves it.
const STACK_SEGMENT: u64 = DATA + 0x1000;
const USER_CS: u64 = 0x33;
const USER_SS: u64 = 0x2b;
/// What RAX holds to have the machine switched off.
const OFF: u32 = 60;
/// Bits of RFLAGS that SYSCALL clears: TF, IF, DF.
const MASK: u64 = 0x700;

/// Goes to user mode by IRETQ. Clobbers RAX.
fn enter_user(c: &mut Code) -> Asm {
    for value in [USER_SS, USER_STACK, 0x202, USER_CS, USER_CODE] {
        c.mov(rax, value)?;
        c.push(rax)?;
    }
    c.iretq()
}

/// A kernel that goes to user mode and serves it. Registers are zero but for RSP and RIP when it gets there.
fn kernel(c: &mut Code, at_call: &dyn Fn(&mut Code) -> Asm) -> Asm {
    let mut entry = c.create_label();
    c.tables()?;
    c.write_msr(0xc000_0080, 0x901)?;
    c.write_msr(0xc000_0081, 0x23 << 48 | 0x10 << 32)?;
    c.write_msr(0xc000_0084, MASK)?;
    c.lea(rax, qword_ptr(entry))?;
    c.mov(rdx, rax)?;
    c.shr(rdx, 32)?;
    c.mov(ecx, 0xc000_0082_u32)?;
    c.wrmsr()?;
    c.mov(rax, TOP)?;
    c.mov(cr3, rax)?;
    // A word on the console, as every kernel has one to say before it goes to user mode.
    c.print(b'k')?;
    for register in [rcx, rdx, rbx, rbp, rsi, rdi] {
        c.mov(register, 0_u64)?;
    }
    enter_user(c)?;

    c.set_label(&mut entry)?;
    let mut off = c.create_label();
    c.mov(r15, UPPER + KEPT_STACK)?;
    c.mov(qword_ptr(r15), rsp)?;
    c.stack()?;
    c.cmp(rax, i32::try_from(OFF).unwrap())?;
    c.je(off)?;
    c.push(rax)?;
    c.count(CALLS)?;
    c.pop(rax)?;
    at_call(c)?;
    c.mov(r15, UPPER + KEPT_STACK)?;
    c.mov(rsp, qword_ptr(r15))?;
    c.sysretq()?;
    c.set_label(&mut off)?;
    // Not compared: where SYSCALL is finished by the host, SS is null, and CR2 is that of the fault which that begins with.
    c.mov(eax, 0)?;
    c.mov(cr2, rax)?;
    c.mov(eax, 0x18)?;
    c.mov(ss, eax)?;
    c.power_off()?;
    handlers(c)
}

/// Maps [`ON_DEMAND`] on a page fault there, counts traps, and steps over UD2 and privileged instructions of two bytes.
fn handlers(c: &mut Code) -> Asm {
    let mut wrong = c.create_label();
    c.handler(14)?;
    c.push(rax)?;
    c.push(rdx)?;
    c.mov(rax, UPPER + FAULT_ADDRESS)?;
    c.mov(rdx, cr2)?;
    c.mov(qword_ptr(rax), rdx)?;
    c.shr(rdx, 21)?;
    c.cmp(rdx, i32::try_from(ON_DEMAND >> 21).unwrap())?;
    c.mov(rdx, qword_ptr(rsp + 16))?;
    c.mov(qword_ptr(rax + 8), rdx)?;
    c.jne(wrong)?;
    c.store64(BOTTOM + (ON_DEMAND >> 21) * 8, ON_DEMAND | LEAF | USER)?;
    c.count(FAULTS)?;
    c.pop(rdx)?;
    c.pop(rax)?;
    c.add(rsp, 8)?;
    c.iretq()?;
    c.set_label(&mut wrong)?;
    c.power_off()?;
    for vector in [3, 0x80] {
        c.handler(vector)?;
        c.push(rax)?;
        c.count(TRAPS)?;
        c.pop(rax)?;
        c.iretq()?;
    }
    c.handler(6)?;
    c.push(rax)?;
    c.count(UNDEFINED)?;
    c.pop(rax)?;
    c.add(qword_ptr(rsp), 2)?;
    c.iretq()?;
    c.handler(13)?;
    c.push(rax)?;
    c.count(PROTECTION)?;
    c.pop(rax)?;
    c.add(rsp, 8)?;
    c.add(qword_ptr(rsp), 2)?;
    c.iretq()
}

/// The kernel with this user program; `at_call` is what it does in SYSCALL.
fn guest(at_call: &dyn Fn(&mut Code) -> Asm, user: impl FnOnce(&mut Code) -> Asm) -> Guest {
    let mut guest = Guest::new(|c| kernel(c, at_call));
    guest.reads_natively = true;
    let program = Code::assemble(USER_CODE, user).bytes;
    let entry = |value: u64| value.to_le_bytes().to_vec();
    guest.memory.extend([
        (TOP, entry(MIDDLE | TABLE | USER)),
        (TOP + UPPER_ENTRY, entry(PDPT | TABLE)),
        (MIDDLE, entry(BOTTOM | TABLE | USER)),
        (MIDDLE + 3 * 8, entry(DEVICES | TABLE | USER)),
        (BOTTOM + (USER_CODE >> 21) * 8, entry(USER_CODE | LEAF | USER)),
        // The mailbox, for user mode's own use.
        (
            DEVICES + (MAILBOX >> 21 & 0x1ff) * 8,
            entry(MAILBOX | LEAF | USER),
        ),
        (USER_CODE, program),
    ]);
    // A SYSCALL that ends in a fault leaves the fault's frame there.
    guest
        .moving
        .extend([INTERRUPT_STACK - 1, STACK_SEGMENT].map(|address| address >> 12));
    guest
}

fn plain(_: &mut Code) -> Asm {
    Ok(())
}

fn off(c: &mut Code) -> Asm {
    c.mov(eax, OFF)?;
    c.syscall()
}

/// A guest that calls the kernel three times and has itself switched off.
pub(super) fn calling_guest() -> Guest {
    guest(
        &|c| {
            // Privilege level 0, the segments of STAR, and masked flags.
            c.mov(r8, 0_u64)?;
            c.mov(r8w, cs)?;
            c.mov(r9, UPPER + STACK_SEGMENT)?;
            c.mov(word_ptr(r9), ss)?;
            c.pushfq()?;
            c.pop(r10)
        },
        |c| {
            c.mov(ebx, 3)?;
            let mut again = c.create_label();
            c.set_label(&mut again)?;
            c.std()?;
            c.mov(eax, 1)?;
            c.syscall()?;
            c.pushfq()?;
            c.pop(r12)?;
            c.mov(r13, rcx)?;
            c.mov(r14, r11)?;
            c.cld()?;
            c.dec(ebx)?;
            c.jnz(again)?;
            // A trap, so that the interrupt stack is written whatever SYSCALL does.
            c.int3()?;
            off(c)
        },
    )
}

/// What the calling guest leaves behind where SYSCALL works.
pub(super) fn has_called(run: &Run) -> bool {
    run.machine.ram().read_u64(CALLS).unwrap() == 3 && run.evidence.registers.gpr[8] == 0x10
}

/// SS in the kernel of the calling guest.
pub(super) fn stack_segment(run: &Run) -> u64 {
    run.machine.ram().read_u64(STACK_SEGMENT).unwrap()
}

/// What the page-fault handler saw last: address and error code.
pub(super) fn last_fault(run: &Run) -> (u64, u64) {
    let word = |at| run.machine.ram().read_u64(at).unwrap();
    (word(FAULT_ADDRESS), word(FAULT_ERROR))
}

#[test]
fn syscall_goes_to_the_kernel_and_sysret_back() {
    for run in calling_guest().completed() {
        assert!(has_called(&run), "{}: {:x?}", run.backend, run.evidence.registers);
        let finished = run.backend == "kvm" && hosts::kvm().is_some_and(|kvm| kvm.workarounds().fix_syscall);
        assert_eq!(
            stack_segment(&run),
            if finished { 0 } else { 0x18 },
            "{}",
            run.backend
        );
        let gpr = run.evidence.registers.gpr;
        // Flags in the kernel, flags back in user mode: DF came back with R11.
        assert_eq!(gpr[10] & (MASK | 2), 2, "{}", run.backend);
        assert_eq!(gpr[12] & (MASK | 2), 0x602);
        assert_eq!(gpr[14] & (MASK | 2), 0x602);
        assert_eq!(gpr[13], USER_CODE + 13, "the instruction behind SYSCALL");
        assert_eq!(last_fault(&run), (0, 0), "no fault reached the guest");
    }
}

#[test]
fn faults_of_user_code_are_the_guests() {
    let guest = guest(&plain, |c| {
        // A page that comes when it is needed: written, then read.
        c.mov(rax, ON_DEMAND + 0x123)?;
        c.mov(dword_ptr(rax), 77)?;
        c.mov(ebp, dword_ptr(rax))?;
        c.mov(eax, 1)?;
        c.syscall()?;
        c.int3()?;
        c.ud2()?;
        // Privileged, of two bytes each.
        c.out(0x80, al)?;
        c.clts()?;
        c.mov(eax, 1)?;
        c.syscall()?;
        off(c)
    });
    for run in guest.completed() {
        let word = |at| run.machine.ram().read_u64(at).unwrap();
        assert_eq!(run.evidence.registers.gpr[5], 77, "{}", run.backend);
        assert_eq!(last_fault(&run), (ON_DEMAND + 0x123, 6), "{}", run.backend);
        let counts = [FAULTS, TRAPS, UNDEFINED, PROTECTION, CALLS].map(word);
        assert_eq!(counts, [1, 1, 1, 2, 2], "{}", run.backend);
        assert!(run.evidence.pages[0].1.contains(&(ON_DEMAND >> 12)));
    }
}

#[test]
fn software_interrupts_need_a_gate_for_user_code() {
    let mut guest = guest(&plain, |c| {
        c.int(0x80)?;
        // This one's gate is the kernel's alone.
        c.int(0x51)?;
        off(c)
    });
    // A KVM that emulates guest kernels has no INT n: it is an undefined instruction there.
    guest.moving.insert(DATA >> 12);
    for run in guest.completed() {
        let counts = [TRAPS, PROTECTION, UNDEFINED].map(|at| run.machine.ram().read_u64(at).unwrap());
        let expected = if run.is_emulated() { [0, 0, 2] } else { [1, 1, 0] };
        assert_eq!(counts, expected, "{}", run.backend);
    }
}

#[test]
fn kernel_memory_is_not_the_users() {
    let guest = guest(&plain, |c| {
        c.mov(rax, UPPER + CODE)?;
        c.mov(rax, qword_ptr(rax))?;
        off(c)
    });
    for run in guest.completed() {
        assert_eq!(last_fault(&run), (UPPER + CODE, 5), "{}", run.backend);
        assert_eq!(run.machine.ram().read_u64(CALLS).unwrap(), 0);
    }
}

#[test]
fn user_code_rings_the_doorbell() {
    let guest = guest(&plain, |c| {
        c.mov(rax, MAILBOX + WINDOW)?;
        c.mov(dword_ptr(rax), u32::from_le_bytes(*b"user"))?;
        c.mov(rax, MAILBOX + DOORBELL)?;
        c.mov(dword_ptr(rax), 4)?;
        c.mov(rax, MAILBOX + WINDOW)?;
        c.mov(ebp, dword_ptr(rax))?;
        off(c)
    });
    for run in guest.compare(to_the_end) {
        assert_eq!(
            run.evidence.events,
            ["message user", "power off"],
            "{}",
            run.backend
        );
        assert_eq!(
            run.evidence.registers.gpr[5],
            u64::from(u32::from_le_bytes(*b"oker"))
        );
    }
}

/// A write of user code is the user's on softcpu; KVM knows no privilege level.
#[test]
fn user_writes_are_told_on_softcpu() {
    let guest = guest(&plain, |c| {
        c.mov(rax, USER_CODE + 0x4000)?;
        c.mov(dword_ptr(rax), 1)?;
        off(c)
    });
    for run in guest.compare(|machine: &mut Machine| to_the_end(machine)) {
        let writes = &run.machine.provenance().phases()[0].writes;
        let found = writes
            .iter()
            .find(|write| write.pfn() == (USER_CODE >> 12) + 4)
            .unwrap();
        assert_eq!(found.by_user(), run.backend == "soft");
    }
}

/// A kexec out of a system call, and into user mode again: how long no user code ran has both ends.
#[test]
fn a_blackout_begins_and_ends_in_user_mode() {
    const LOADED: u64 = 0x140_0000;
    const COUNT: u64 = USER_CODE + 0x8000;
    const REGISTERS: u64 = DATA + 0x2000;
    /// What the old kernel leaves by, as it does in reality: the jump is not to the entry itself.
    const RELOCATE: u64 = 0x60_0000;
    let jump = |c: &mut Code| {
        c.mov(rax, RELOCATE)?;
        c.jmp(rax)
    };
    let relocate = Code::assemble(RELOCATE, |c| {
        c.mov(rsi, BOOT_PARAMS)?;
        c.mov(rax, LOADED + ENTRY_64)?;
        c.jmp(rax)
    });
    let mut guest = guest(&jump, |c| {
        let mut last = c.create_label();
        c.mov(rax, COUNT)?;
        c.inc(dword_ptr(rax))?;
        c.mov(rbx, MAILBOX + DOORBELL)?;
        c.mov(dword_ptr(rbx), 0)?;
        c.cmp(dword_ptr(rax), 2)?;
        c.je(last)?;
        c.mov(eax, 1)?;
        c.syscall()?;
        c.set_label(&mut last)?;
        off(c)
    });
    let kernel = Code::assemble(LOADED + ENTRY_64, |c| {
        // The task state is busy, and would be refused.
        c.mov(rax, UPPER + GDT + 0x38 + 5)?;
        c.mov(byte_ptr(rax), 0x89)?;
        c.mov(rax, UPPER + CODE)?;
        c.jmp(rax)
    });
    let mut registers = vec![0_u8; 17 * 8];
    for (index, value) in [(4, 0x9_f000_u64), (6, BOOT_PARAMS), (16, LOADED + ENTRY_64)] {
        registers[index * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
    let leaf = |address: u64| {
        (
            BOTTOM + (address >> 21) * 8,
            (address | LEAF).to_le_bytes().to_vec(),
        )
    };
    guest.memory.extend([
        leaf(LOADED),
        leaf(RELOCATE),
        (RELOCATE, relocate.bytes),
        (LOADED + ENTRY_64, kernel.bytes),
        (REGISTERS, registers),
    ]);
    let runs = guest.compare(|machine| {
        let mut events = Vec::new();
        for _ in 0..2 {
            events.push(machine.run().unwrap());
            machine.expect_kexec(&|| None);
            machine.reply(&[]).unwrap();
            events.push(machine.run().unwrap());
            if events.len() == 2 {
                events.push(machine.run().unwrap());
            }
        }
        events
    });
    for run in runs {
        let expected = [
            "message ",
            "jump",
            "entry of 1, boot_params 0x7000",
            "message ",
            "power off",
        ];
        assert_eq!(run.evidence.events, expected, "{}", run.backend);
        let blackout = run.machine.blackouts()[0];
        let Event::Jump { time } = run.events[1] else {
            panic!()
        };
        let (left, entered) = (blackout.left_user_at.unwrap(), blackout.entered_user_at.unwrap());
        assert!(left <= time && time < entered, "{}: {blackout:?}", run.backend);
        assert_eq!(blackout.nanoseconds(), Some(entered - left));
        assert_eq!(blackout.jump_not_before.is_some(), run.backend == "kvm");
    }
}
