//! Privilege level 3: entering and leaving it, and its faults.

use guest_agent::device::mailbox::{DOORBELL, WINDOW};
use iced_x86::code_asm::*;

use super::code::{Asm, CODE, Code, DATA, GDT, INTERRUPT_STACK, MAILBOX, UPPER, UPPER_ENTRY};
use super::guest::{Guest, LEAF, Run, TABLE, to_the_end};
use super::hosts;
use vmm::boot::layout::{BOOT_PARAMS, ENTRY_64, PDPT};
use vmm::machine::{Event, Machine};

/// The guest's page tables. The lower half has user pages, the upper half all of memory for the kernel.
const TOP: u64 = 0x70_0000;
const MIDDLE: u64 = TOP + 0x1000;
const BOTTOM: u64 = TOP + 0x2000;
const DEVICES: u64 = TOP + 0x3000;
/// Page table entries: accessible to user code.
const USER: u64 = 4;
/// User memory: 2 MiB for code and stack, then 2 MiB that the page-fault handler maps.
pub const USER_CODE: u64 = 0x80_0000;
const USER_STACK: u64 = 0x90_0000;
const ON_DEMAND: u64 = 0xa0_0000;
/// Where the kernel stores the user stack pointer, what its page-fault handler finds, and its counters.
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
/// Value of RAX at SYSCALL that switches the machine off.
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

/// A kernel that enters user mode and handles its system calls. User mode begins with RCX, RDX, RBX, RBP, RSI and RDI
/// zero.
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
    // Prints before it enters user mode, as every kernel does.
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
    // CR2 and SS are not compared. If the host finishes SYSCALL, CR2 is that of the fault before that, and SS is null.
    c.mov(eax, 0)?;
    c.mov(cr2, rax)?;
    c.mov(eax, 0x18)?;
    c.mov(ss, eax)?;
    c.power_off()?;
    handlers(c)
}

/// Handlers that map [`ON_DEMAND`] on a page fault there, count traps, and skip the two bytes of UD2 and of privileged
/// instructions.
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

/// The kernel with this user program. It executes `at_call` in each system call.
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
        // The mailbox, accessible to user mode.
        (
            DEVICES + (MAILBOX >> 21 & 0x1ff) * 8,
            entry(MAILBOX | LEAF | USER),
        ),
        (USER_CODE, program),
    ]);
    // If the host finishes SYSCALL, the fault before that leaves its frame on the interrupt stack.
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

/// A guest whose user program makes three system calls and then one to switch off.
pub fn calling_guest() -> Guest {
    guest(
        &|c| {
            // The privilege level and segments that SYSCALL loaded, and the masked flags.
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
            // A trap writes to the interrupt stack on every host, whether SYSCALL faults there or not.
            c.int3()?;
            off(c)
        },
    )
}

/// Whether the calling guest's system calls arrived in the kernel.
pub fn has_called(run: &Run) -> bool {
    run.machine.ram().read_u64(CALLS).unwrap() == 3 && run.evidence.registers.gpr[8] == 0x10
}

/// SS in the kernel of the calling guest.
pub fn stack_segment(run: &Run) -> u64 {
    run.machine.ram().read_u64(STACK_SEGMENT).unwrap()
}

/// Address and error code of the last page fault.
pub fn last_fault(run: &Run) -> (u64, u64) {
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
        // The flags are masked in the kernel; back in user mode DF is set again, from R11.
        assert_eq!(gpr[10] & (MASK | 2), 2, "{}", run.backend);
        assert_eq!(gpr[12] & (MASK | 2), 0x602);
        assert_eq!(gpr[14] & (MASK | 2), 0x602);
        assert_eq!(gpr[13], USER_CODE + 13, "the instruction behind SYSCALL");
        assert_eq!(last_fault(&run), (0, 0), "no fault reached the guest");
    }
}

#[test]
fn faults_of_user_code_reach_the_kernel() {
    let guest = guest(&plain, |c| {
        // Writes and reads a page that is mapped on demand.
        c.mov(rax, ON_DEMAND + 0x123)?;
        c.mov(dword_ptr(rax), 77)?;
        c.mov(ebp, dword_ptr(rax))?;
        c.mov(eax, 1)?;
        c.syscall()?;
        c.int3()?;
        c.ud2()?;
        // Privileged instructions of two bytes.
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
        // Only the kernel may use this gate.
        c.int(0x51)?;
        off(c)
    });
    // On a KVM that emulates guest kernels, INT n of user code is an undefined instruction.
    guest.moving.insert(DATA >> 12);
    for run in guest.completed() {
        let counts = [TRAPS, PROTECTION, UNDEFINED].map(|at| run.machine.ram().read_u64(at).unwrap());
        let expected = if run.is_emulated() { [0, 0, 2] } else { [1, 1, 0] };
        assert_eq!(counts, expected, "{}", run.backend);
    }
}

#[test]
fn user_code_cannot_read_kernel_memory() {
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

/// softcpu records that user code made a write. KVM does not know.
#[test]
fn softcpu_knows_which_writes_are_user_codes() {
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

/// A kexec from a system call to a kernel that enters user mode. The blackout has a beginning and an end.
#[test]
fn a_blackout_begins_and_ends_in_user_mode() {
    const LOADED: u64 = 0x140_0000;
    const COUNT: u64 = USER_CODE + 0x8000;
    const REGISTERS: u64 = DATA + 0x2000;
    /// The old kernel jumps here first, and not to the entry point, as a real one does.
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
        // LTR refuses a busy TSS, so it is made available again.
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
