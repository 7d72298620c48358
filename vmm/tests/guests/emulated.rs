//! Instructions that softcpu executes where KVM's emulator gives up. On a host that emulates guest kernels, these are
//! all that KVM's emulator lacks. On other hosts, they are those that access device memory. The result is the same
//! either way, and writes to RAM count.

use guest_agent::device::mailbox::WINDOW;
use iced_x86::code_asm::*;

use super::code::{Code, DATA, MAILBOX, UPPER};
use super::guest::{Guest, Run, to_the_end};
use super::hosts;
use vmm::machine::Event;
use vmm::phase::Phase;
use vmm::soft::Soft;

/// Turns on SSE: CR0.EM off and MP on, CR4.OSFXSR and OSXMMEXCPT on. Clobbers RAX.
fn enable_sse(c: &mut Code) -> super::code::Asm {
    c.mov(rax, cr4)?;
    c.or(rax, 0x600)?;
    c.mov(cr4, rax)
}

/// How often softcpu executed this mnemonic in KVM's place.
fn count(run: &Run, mnemonic: &str) -> u64 {
    let counts = run.machine.emulated();
    counts
        .iter()
        .filter(|(name, _)| name == mnemonic)
        .map(|(_, count)| *count)
        .sum()
}

#[test]
fn what_kvm_lacks_is_executed_and_counted() {
    let guest = Guest::new(|c| {
        c.stack()?;
        enable_sse(c)?;
        c.mov(rbx, UPPER + DATA)?;
        c.mov(rax, 0x0123_4567_89ab_cdef_u64)?;
        for _ in 0..3 {
            c.popcnt(rcx, rax)?;
        }
        c.mov(qword_ptr(rbx), rcx)?;
        // The 16 bytes equal RDX:RAX, so they are exchanged.
        c.mov(edx, 0)?;
        c.mov(eax, 0)?;
        c.mov(ecx, 5)?;
        c.push(rbx)?;
        c.lea(rsi, qword_ptr(rbx + 0x1000))?;
        c.mov(ebx, 7)?;
        c.lock().cmpxchg16b(xmmword_ptr(rsi))?;
        c.pop(rbx)?;
        c.setz(byte_ptr(rbx + 8))?;
        // SSE state is copied to softcpu and back.
        c.movdqu(xmm3, xmmword_ptr(rbx))?;
        c.paddq(xmm3, xmm3)?;
        c.pshufd(xmm4, xmm3, 0x1b)?;
        c.movdqu(xmmword_ptr(rbx + 0x2000), xmm3)?;
        c.movdqu(xmmword_ptr(rbx + 0x2010), xmm4)?;
        c.mov(dword_ptr(rbx + 16), 0x1fa0)?;
        c.ldmxcsr(dword_ptr(rbx + 16))?;
        c.stmxcsr(dword_ptr(rbx + 0x3000))?;
        c.power_off()
    });
    for run in guest.completed() {
        let word = |at| run.machine.ram().read_u64(DATA + at).unwrap();
        assert_eq!((word(0), word(8)), (32, 1), "{}", run.backend);
        assert_eq!((word(0x1000), word(0x1008)), (7, 5));
        assert_eq!((word(0x2000), word(0x2008)), (64, 2));
        assert_eq!(word(0x3000), 0x1fa0);
        for page in 0..4 {
            assert!(
                run.evidence
                    .pages_in(Phase::BootOld)
                    .contains(&((DATA >> 12) + page)),
                "{}",
                run.backend
            );
        }
        if run.is_emulated() {
            assert_eq!(count(&run, "popcnt"), 3, "{:?}", run.machine.emulated());
            assert_eq!(count(&run, "cmpxchg16b"), 1);
            assert_eq!(count(&run, "ldmxcsr"), 1);
        } else {
            assert!(run.machine.emulated().is_empty(), "{:?}", run.machine.emulated());
        }
    }
}

#[test]
fn x87_state_is_copied_to_softcpu_and_back() {
    let mut guest = Guest::new(|c| {
        enable_sse(c)?;
        c.mov(rbx, UPPER + DATA)?;
        c.fninit()?;
        c.fild(word_ptr(rbx + 0x1000))?;
        c.fild(dword_ptr(rbx + 0x1000))?;
        c.fchs()?;
        c.fxch(st0, st1)?;
        c.fstp(qword_ptr(rbx))?;
        c.fnstcw(word_ptr(rbx + 8))?;
        c.fnstsw(word_ptr(rbx + 10))?;
        c.fistp(qword_ptr(rbx + 16))?;
        c.fnclex()?;
        c.power_off()
    });
    guest
        .memory
        .push((DATA + 0x1000, 0x0002_0003_u32.to_le_bytes().to_vec()));
    for run in guest.completed() {
        let word = |at| run.machine.ram().read_u64(DATA + at).unwrap();
        assert_eq!(word(0), 3.0_f64.to_bits(), "{}", run.backend);
        assert_eq!(word(8) & 0xffff, 0x37f);
        assert_eq!(i64::from_le_bytes(word(16).to_le_bytes()), -0x0002_0003);
    }
}

#[test]
fn fxsave_and_fxrstor_keep_sse_state() {
    // KVM's emulator has FXSAVE and FXRSTOR.
    let guest = Guest::new(|c| {
        enable_sse(c)?;
        c.mov(rbx, UPPER + DATA)?;
        c.mov(rax, 0x1122_3344_5566_7788_u64)?;
        c.movq(xmm5, rax)?;
        c.fxsave(ptr(rbx))?;
        c.pxor(xmm5, xmm5)?;
        c.movq(rcx, xmm5)?;
        c.fxrstor(ptr(rbx))?;
        c.movq(rdx, xmm5)?;
        c.mov(r12, rcx)?;
        c.mov(r13, rdx)?;
        c.power_off()
    });
    let mut guest = guest;
    // Tags, opcode and pointers of an FPU that was never used differ between processors.
    guest.moving.insert(DATA >> 12);
    for run in guest.completed() {
        let gpr = run.evidence.registers.gpr;
        assert_eq!((gpr[12], gpr[13]), (0, 0x1122_3344_5566_7788), "{}", run.backend);
        assert_eq!(
            run.machine.ram().read_u64(DATA + 160 + 16 * 5).unwrap(),
            0x1122_3344_5566_7788
        );
    }
}

#[test]
fn faults_of_emulated_instructions_reach_the_guest() {
    // The page fault is in an instruction that KVM's emulator lacks.
    let why = "its page fault is reported as that of a read";
    if hosts::left_out_on_tcg("the fault of CMPXCHG16B", why) {
        return;
    }
    let guest = Guest::new(|c| {
        c.tables()?;
        enable_sse(c)?;
        c.mov(rsi, 0xffff_c000_0000_1000_u64)?;
        c.lock().cmpxchg16b(xmmword_ptr(rsi))?;
        c.ud2()?;
        c.handler(14)?;
        c.mov(rcx, cr2)?;
        c.pop(rdx)?;
        c.keep_rcx(DATA)?;
        c.mov(rcx, rdx)?;
        c.keep_rcx(DATA + 8)?;
        c.power_off()
    });
    for run in guest.completed() {
        assert_eq!(run.evidence.events, ["power off"], "{}", run.backend);
        let ram = run.machine.ram();
        assert_eq!(ram.read_u64(DATA).unwrap(), 0xffff_c000_0000_1000);
        assert_eq!(ram.read_u64(DATA + 8).unwrap() & !1, 2, "not present, a write");
    }
}

#[test]
fn software_interrupts_of_kernel_code_are_delivered() {
    let guest = Guest::new(|c| {
        c.tables()?;
        c.int3()?;
        c.int(0x80)?;
        c.int(0x51)?;
        // The vector is within the table but has no gate.
        c.mov(r12, rsp)?;
        c.int(0x52)?;
        c.power_off()?;
        for (vector, counter) in [(3, DATA), (0x80, DATA + 8), (0x51, DATA + 16)] {
            c.handler(vector)?;
            c.count(counter)?;
            c.iretq()?;
        }
        // The error code has the gate's number. Returns behind INT n.
        c.handler(13)?;
        c.pop(rcx)?;
        c.keep_rcx(DATA + 24)?;
        c.add(qword_ptr(rsp), 2)?;
        c.iretq()
    });
    for run in guest.completed() {
        let found = [0, 8, 16, 24].map(|at| run.machine.ram().read_u64(DATA + at).unwrap());
        assert_eq!(found, [1, 1, 1, 0x52 * 8 + 2], "{}", run.backend);
        assert_eq!(run.evidence.registers.gpr[4], run.evidence.registers.gpr[12]);
        if run.is_emulated() {
            assert_eq!((count(&run, "int3"), count(&run, "int")), (1, 3));
        }
    }
}

#[test]
fn emulated_instructions_access_devices() {
    let guest = Guest::new(|c| {
        enable_sse(c)?;
        c.mov(rbx, UPPER + MAILBOX + WINDOW)?;
        c.mov(dword_ptr(rbx), 0x0101_0101)?;
        c.popcnt(ecx, dword_ptr(rbx))?;
        c.mov(dword_ptr(rbx + 4), 0x1f80)?;
        c.ldmxcsr(dword_ptr(rbx + 4))?;
        c.stmxcsr(dword_ptr(rbx + 8))?;
        c.mov(r12d, dword_ptr(rbx + 8))?;
        c.power_off()
    });
    for run in guest.completed() {
        let gpr = run.evidence.registers.gpr;
        assert_eq!((gpr[1], gpr[12]), (4, 0x1f80), "{}", run.backend);
    }
}

#[test]
fn five_hundred_emulated_instructions_are_allowed() {
    let guest = Guest::new(|c| {
        c.mov(ebx, 500)?;
        let mut again = c.create_label();
        c.set_label(&mut again)?;
        c.popcnt(ecx, ebx)?;
        c.dec(ebx)?;
        c.jnz(again)?;
        c.power_off()
    });
    for run in guest.completed() {
        assert_eq!(run.evidence.events, ["power off"], "{}", run.backend);
        assert!([0, 500].contains(&count(&run, "popcnt")));
    }
}

/// XCHG of R8 and RAX with a REP prefix, which softcpu's decoder takes for PAUSE and softcpu therefore refuses.
#[test]
fn what_softcpu_does_not_execute_ends_the_run() {
    let guest = Guest::new(|c| {
        c.db(&[0xf3, 0x41, 0x90])?;
        c.power_off()
    });
    let run = guest.run_on(&Soft::default(), &to_the_end);
    let [Event::UnknownInstruction { bytes, what, at }] = &run.events[..] else {
        panic!("{:?}", run.events)
    };
    assert_eq!(bytes[..3], [0xf3, 0x41, 0x90], "{what}");
    assert_eq!(at.rip, Some(run.evidence.registers.rip));
    assert!(what.contains("f3 41 90"), "{what}");
}

/// CRC32 cannot be hidden from kernel code, but softcpu does not have it. KVM's emulator is asked because the operand
/// is device memory.
#[test]
fn an_instruction_that_softcpu_may_not_execute_is_named() {
    let Some(kvm) = hosts::kvm() else { return };
    let guest = Guest::new(|c| {
        c.mov(rbx, UPPER + MAILBOX + WINDOW)?;
        c.crc32(eax, dword_ptr(rbx))?;
        c.power_off()
    });
    let run = guest.run_on(kvm, &to_the_end);
    let [Event::UnknownInstruction { bytes, what, .. }] = &run.events[..] else {
        panic!("{:?}", run.events)
    };
    assert!(what.contains("crc32 eax"), "{what}");
    assert_eq!(bytes[..], [0xf2, 0x0f, 0x38, 0xf1, 0x03]);
    assert!(run.machine.emulated().is_empty());
}

#[test]
fn a_doorbell_rung_by_an_emulated_instruction_stops_the_guest_at_once() {
    use guest_agent::device::dma::{CONTROL, CONTROL_ENABLE};
    use guest_agent::device::mailbox::DOORBELL;
    let mut guest = Guest::new(|c| {
        enable_sse(c)?;
        // The message length is 0x1f80, MXCSR's value after reset. Then the enable bit is written to the engine's
        // control register.
        c.mov(rbx, UPPER + MAILBOX + DOORBELL)?;
        c.stmxcsr(dword_ptr(rbx))?;
        c.store32(DATA, 1)?;
        c.mov(rax, UPPER + DATA + 0x1000)?;
        c.ldmxcsr(dword_ptr(rax))?;
        c.mov(rbx, UPPER + super::code::DMA + CONTROL)?;
        c.stmxcsr(dword_ptr(rbx))?;
        c.power_off()
    });
    let control = 0x1f80 | CONTROL_ENABLE;
    guest.memory.push((DATA + 0x1000, control.to_le_bytes().to_vec()));
    let runs = guest.compare(|machine| {
        let message = machine.run().unwrap();
        assert_eq!(
            machine.ram().read_u64(DATA).unwrap(),
            0,
            "nothing was executed after it"
        );
        machine.reply(&[]).unwrap();
        vec![message, machine.run().unwrap()]
    });
    let rips = |run: &Run| {
        run.machine
            .causes()
            .iter()
            .map(|cause| cause.rip)
            .collect::<Vec<_>>()
    };
    for run in &runs {
        assert!(
            matches!(&run.events[0], Event::Message(message) if message.len() == 0x1f80),
            "{}",
            run.backend
        );
        assert_eq!(rips(run), rips(&runs[0]), "{}", run.backend);
        assert_eq!(rips(run).len(), 1);
    }
}
