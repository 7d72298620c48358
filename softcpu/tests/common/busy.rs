//! A guest that does a bit of everything whose outcome could depend on caches, watches or deadlines.

use iced_x86::code_asm::*;
use softcpu::flags::{IF, TF};
use softcpu::registers::CR4_OSFXSR;
use softcpu::{Cpu, Exit, NoBus};

use super::{CODE, Guest, HANDLERS, PT, USER_CS, USER_SS};

/// Vector of the interrupts that [`Driver`] injects.
const VECTOR: u8 = 0x40;
/// Where the handlers' bodies are.
const BODIES: u64 = 0xa_0000;
/// Counters of the handlers.
pub const COUNTERS: u64 = 0x9_8000;
/// Code for user mode.
const USER: u64 = 0xa_8000;
/// A page that is mapped to one of the two after it: they hold code that tells them apart.
const ALIAS: u64 = 0x9_9000;
/// mov eax, imm32; ret with the page edge inside the immediate.
const CROSSING: u64 = 0xb_0ffd;
/// SYSCALL goes here.
const SYSCALL: u64 = 0xa_7000;
/// Data pages.
pub const DATA: u64 = 0x9_0000;

/// The page-table entry of an address below 2 MiB.
pub const fn pte(va: u64) -> u64 {
    PT + va / 4096 * 8
}

/// How many kinds of pieces there are.
pub const PIECES: u8 = 25;

/// A guest whose program is made of these pieces.
pub fn guest(pieces: &[u8]) -> Guest {
    let mut guest = Guest::new(|a| {
        for (msr, value) in [
            (0xc000_0081u32, u64::from(USER_SS - 8) << 48 | 0x0010_0000_0000),
            (0xc000_0082, SYSCALL),
            (0xc000_0084, IF),
        ] {
            a.mov(ecx, msr).unwrap();
            a.mov(eax, u32::try_from(value & 0xffff_ffff).unwrap()).unwrap();
            a.mov(edx, u32::try_from(value >> 32).unwrap()).unwrap();
            a.wrmsr().unwrap();
        }
        for kind in pieces {
            piece(a, *kind).unwrap();
        }
        a.cli().unwrap();
        a.hlt().unwrap();
    });
    guest.set(|state| state.cr4 |= CR4_OSFXSR);
    handlers(&mut guest);
    let put = |guest: &mut Guest, at: u64, bytes: &[u8]| assert!(guest.ram.write(at, bytes));
    put(&mut guest, CROSSING, &[0xb8, 4, 3, 2, 1, 0xc3]);
    put(&mut guest, ALIAS + 0x1000, &[0xb0, 1, 0xc3]);
    put(&mut guest, ALIAS + 0x2000, &[0xb0, 2, 0xc3]);
    guest.put(pte(ALIAS), (ALIAS + 0x1000) | 7);
    guest.cpu.stop_on_pause(true);
    guest
}

fn assemble(guest: &mut Guest, at: u64, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a).unwrap();
    let code = a.assemble(at).unwrap();
    assert!(guest.ram.write(at, &code));
}

fn handlers(guest: &mut Guest) {
    for vector in [1u64, 3, 6, 14, u64::from(VECTOR)] {
        let body = BODIES + 0x100 * vector;
        assemble(guest, HANDLERS + 16 * vector, |a| a.jmp(body));
        assemble(guest, body, |a| {
            a.inc(qword_ptr(COUNTERS + 8 * vector))?;
            match vector {
                1 => {
                    // Traces for a while, then goes on untraced.
                    let mut go_on = a.create_label();
                    a.test(qword_ptr(COUNTERS + 8), 3)?;
                    a.jnz(go_on)?;
                    a.and(qword_ptr(rsp + 16), !0x100)?;
                    a.set_label(&mut go_on)?;
                }
                3 => {
                    // The end of user code.
                    a.mov(rsp, r14)?;
                    return a.jmp(r15);
                }
                6 => a.add(qword_ptr(rsp), 2)?,
                14 => {
                    a.or(qword_ptr(pte(DATA + 0x3000)), 1)?;
                    a.add(rsp, 8)?;
                }
                _ => {}
            }
            a.iretq()
        });
    }
    assemble(guest, SYSCALL, |a| {
        a.inc(qword_ptr(COUNTERS))?;
        a.sysretq()
    });
    assemble(guest, USER, |a| {
        a.mov(qword_ptr(DATA + 0x2008), rax)?;
        a.mov(ecx, 3)?;
        a.syscall()?;
        a.add(rax, qword_ptr(DATA + 0x1008))?;
        a.push(rax)?;
        a.mov(rax, CROSSING)?;
        a.call(rax)?;
        a.int3()
    });
}

#[allow(clippy::too_many_lines)] // a list
fn piece(a: &mut CodeAssembler, kind: u8) -> Result<(), IcedError> {
    match kind {
        0 => {
            a.lea(rax, ptr(rax + rax * 4 + 7))?;
            a.mov(qword_ptr(DATA + 16), rax)?;
            a.add(qword_ptr(DATA + 0x1010), rax)
        }
        1 => {
            a.sti()?;
            a.nop()?;
            a.nop()?;
            a.cli()
        }
        2 => {
            // Two shadows on end.
            a.mov(ecx, ss)?;
            a.sti()?;
            a.mov(ss, ecx)?;
            a.inc(rax)?;
            a.inc(rax)?;
            a.cli()
        }
        3 => {
            a.mov(esi, 0x9_0f00)?;
            a.mov(edi, 0x9_1e80)?;
            a.mov(ecx, 0x300)?;
            a.cld()?;
            a.rep().movsb()
        }
        4 => {
            a.mov(edi, 0x9_2f80)?;
            a.mov(ecx, 40)?;
            a.rep().stosq()
        }
        5 => {
            let mut patched = a.create_label();
            a.inc(byte_ptr(patched) + 1)?;
            a.set_label(&mut patched)?;
            a.mov(al, 1)?;
            a.add(byte_ptr(COUNTERS + 0x400), al)
        }
        6 => {
            a.and(qword_ptr(pte(DATA)), !0x60)?;
            a.mov(rcx, qword_ptr(DATA + 8))?;
            a.mov(qword_ptr(DATA + 24), rcx)
        }
        7 | 8 => {
            // Another frame, with and without telling the TLB.
            a.xor(qword_ptr(pte(DATA + 0x1000)), 0x4000)?;
            if kind == 8 {
                a.invlpg(ptr(DATA + 0x1000))?;
            }
            a.mov(rcx, qword_ptr(DATA + 0x1000))?;
            a.inc(rcx)?;
            a.mov(qword_ptr(DATA + 0x1000), rcx)
        }
        9 => {
            a.mov(rcx, cr3)?;
            a.mov(cr3, rcx)
        }
        10 => {
            a.and(qword_ptr(pte(DATA + 0x3000)), !1)?;
            a.invlpg(ptr(DATA + 0x3000))?;
            a.inc(qword_ptr(DATA + 0x3008))
        }
        11 => {
            a.pushfq()?;
            a.or(qword_ptr(rsp), 0x100)?;
            a.popfq()?;
            a.inc(rax)?;
            a.in_(al, 0x60)?;
            a.pause()?;
            a.inc(rax)
        }
        12 => a.pause(),
        13 => {
            a.mov(edx, 0x3f8)?;
            a.out(dx, al)?;
            a.in_(eax, dx)
        }
        14 | 15 => {
            // To user mode, the second time with interrupts and tracing on.
            let mut back = a.create_label();
            a.mov(r14, rsp)?;
            a.lea(r15, ptr(back))?;
            let flags = if kind == 15 { IF | TF | 2 } else { 2 };
            a.push(i32::from(USER_SS))?;
            a.push(0x9_7ff0)?;
            a.push(i32::try_from(flags).unwrap())?;
            a.push(i32::from(USER_CS))?;
            a.push(i32::try_from(USER).unwrap())?;
            a.iretq()?;
            a.set_label(&mut back)?;
            a.nop()
        }
        16 => a.ud2(),
        17 => {
            a.mov(rcx, CROSSING)?;
            a.call(rcx)?;
            a.add(qword_ptr(COUNTERS + 0x410), rax)
        }
        18 => {
            a.rdtsc()?;
            a.mov(dword_ptr(DATA + 0x100), eax)
        }
        19 => {
            // This page of code gets its accessed bit anew as soon as its translation is gone.
            a.and(qword_ptr(pte(CODE)), !0x20)?;
            a.invlpg(ptr(CODE))?;
            a.mov(rcx, qword_ptr(pte(CODE)))?;
            a.mov(qword_ptr(DATA + 0x108), rcx)
        }
        20 => {
            a.xor(qword_ptr(pte(ALIAS)), 0x3000)?;
            a.mov(rcx, ALIAS)?;
            a.call(rcx)?;
            a.add(byte_ptr(COUNTERS + 0x420), al)
        }
        21 => {
            a.fld1()?;
            a.fxsave64(ptr(DATA + 0x200))?;
            a.movdqu(xmm3, xmmword_ptr(DATA))?;
            a.movdqu(xmmword_ptr(DATA + 0x1ff8), xmm3)
        }
        22 => a.inc(byte_ptr(CROSSING + 3)),
        23 => {
            a.sti()?;
            a.hlt()?;
            a.cli()
        }
        _ => {
            a.mov(edi, 0x9_0000)?;
            a.mov(ecx, 100)?;
            a.mov(al, 0x55)?;
            a.repne().scasb()?;
            a.sti()?;
            a.cli()
        }
    }
}

/// What a run was, but for where it was cut: exits and when they came.
pub type Trace = Vec<(u64, Exit)>;

/// Runs a guest to `end`, with an interrupt due at each of `interrupts`. It is cut after each of `cuts` ticks in
/// turn, and whenever the processor comes back `between` is called.
pub fn drive(
    guest: &mut Guest,
    interrupts: &[u64],
    end: u64,
    cuts: &[u64],
    mut between: impl FnMut(&mut Guest),
) -> Trace {
    let mut trace = Trace::new();
    let mut due = interrupts.iter().copied().peekable();
    let mut cuts = cuts.iter().copied().cycle();
    while guest.cpu.now() < end {
        let now = guest.cpu.now();
        let next = due.peek().copied().unwrap_or(u64::MAX);
        guest.cpu.request_interrupt_window(next <= now);
        if next <= now && guest.cpu.can_take_interrupt() {
            due.next();
            guest
                .cpu
                .inject_interrupt(&mut guest.ram, &mut NoBus, VECTOR)
                .unwrap();
            continue;
        }
        let mut until = end;
        if next > now {
            until = until.min(next);
        }
        if let Some(cut) = cuts.next() {
            until = until.min(now + cut);
        }
        match guest.cpu.run(&mut guest.ram, &mut NoBus, until) {
            Exit::Deadline | Exit::WatchExecute { .. } | Exit::LowSupervisorFetch { .. } => {}
            exit => {
                trace.push((guest.cpu.now(), exit.clone()));
                match exit {
                    Exit::Halted { interruptible: true } if due.peek().is_some() => guest.cpu.skip_to(next),
                    Exit::Bus | Exit::InterruptWindow | Exit::Pause { .. } => {}
                    _ => break,
                }
            }
        }
        between(guest);
    }
    trace
}

/// Saves and restores the processor, through bytes.
pub fn replace(guest: &mut Guest) {
    let state = guest.cpu.state(&guest.ram);
    let bytes = postcard::to_allocvec(&state).unwrap();
    let read = postcard::from_bytes(&bytes).unwrap();
    guest.cpu = Cpu::from_state(&read, &guest.ram).unwrap();
    assert_eq!(guest.cpu.state(&guest.ram), state);
}

/// Fails where two guests differ.
pub fn assert_same(one: &Guest, other: &Guest, what: &str) {
    let contents = |guest: &Guest| {
        let mut bytes = vec![0; 2 << 20];
        assert!(guest.ram.read(0, &mut bytes));
        bytes
    };
    let (ours, theirs) = (contents(one), contents(other));
    if let Some(at) = ours.iter().zip(&theirs).position(|(a, b)| a != b) {
        panic!(
            "{what}: memory at {at:#x} is {:#x}, elsewhere {:#x}",
            ours[at], theirs[at]
        );
    }
    assert_eq!(one.cpu.state(&one.ram), other.cpu.state(&other.ram), "{what}");
}
