//! When MMX, SSE and x87 instructions may run at all, and saving and restoring their state.

mod common;

use common::Guest;
use iced_x86::code_asm::*;
use softcpu::registers::{CR0_EM, CR0_MP, CR0_NE, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT};
use softcpu::{Exit, NoBus, Registers};

/// Memory to load and store, aligned for FXSAVE.
const DATA_AT: u64 = 0x5_0000;

type Program = fn(&mut CodeAssembler);

/// Runs a program that ends in INT3 unless it faults, with control registers changed; gives the vector it ended with.
fn ends_with(program: Program, change: impl FnOnce(&mut Registers)) -> u64 {
    let mut guest = Guest::new(|a| {
        program(a);
        a.int3().unwrap();
    });
    guest.set(|state| state.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT);
    guest.set(change);
    let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, 10_000);
    assert!(matches!(exit, Exit::Halted { .. }), "{exit:?}");
    guest.halted_in().unwrap()
}

const BREAKPOINT: u64 = 3;
const UNDEFINED: u64 = 6;
const NOT_AVAILABLE: u64 = 7;
const PROTECTION: u64 = 13;
const X87_EXCEPTION: u64 = 16;
const SIMD: u64 = 19;

#[test]
fn sse_needs_cr4_and_not_emulation_and_no_task_switch() {
    let sse: [Program; 5] = [
        |a| a.paddb(xmm0, xmm1).unwrap(),
        |a| a.addps(xmm0, xmm1).unwrap(),
        |a| a.cvtsi2sd(xmm0, eax).unwrap(),
        |a| a.movdqu(xmm0, xmmword_ptr(DATA_AT)).unwrap(),
        |a| a.stmxcsr(dword_ptr(DATA_AT)).unwrap(),
    ];
    for program in sse {
        assert_eq!(ends_with(program, |_| {}), BREAKPOINT);
        assert_eq!(ends_with(program, |s| s.cr4 &= !CR4_OSFXSR), UNDEFINED);
        assert_eq!(ends_with(program, |s| s.cr0 |= CR0_EM), UNDEFINED);
        assert_eq!(ends_with(program, |s| s.cr0 |= CR0_TS), NOT_AVAILABLE);
    }
    // MOVNTI has no state, so it needs nothing.
    let movnti: Program = |a| a.movnti(dword_ptr(DATA_AT), eax).unwrap();
    assert_eq!(ends_with(movnti, |s| s.cr0 |= CR0_TS | CR0_EM), BREAKPOINT);
}

#[test]
fn x87_asks_for_the_task_switched_bit() {
    let x87: [Program; 4] = [
        |a| a.fninit().unwrap(),
        |a| a.fld1().unwrap(),
        |a| a.fxsave64(ptr(DATA_AT)).unwrap(),
        |a| a.fnop().unwrap(),
    ];
    for program in x87 {
        assert_eq!(ends_with(program, |_| {}), BREAKPOINT);
        assert_eq!(ends_with(program, |s| s.cr0 |= CR0_TS), NOT_AVAILABLE);
        assert_eq!(ends_with(program, |s| s.cr0 |= CR0_EM), NOT_AVAILABLE);
    }
    // WAIT asks for MP as well.
    let wait: Program = |a| a.wait().unwrap();
    let without_mp = |s: &mut Registers| s.cr0 = (s.cr0 | CR0_TS) & !CR0_MP;
    assert_eq!(ends_with(wait, without_mp), BREAKPOINT);
    assert_eq!(ends_with(wait, |s| s.cr0 |= CR0_TS | CR0_MP), NOT_AVAILABLE);
}

#[test]
fn mmx_needs_no_emulation_no_task_switch_and_no_pending_exception() {
    let pending = |s: &mut Registers| {
        s.fpu.control = 0x37e;
        s.fpu.status = 1;
    };
    let mmx: [Program; 4] = [
        |a| a.paddb(mm0, mm1).unwrap(),
        |a| a.movq(mm0, qword_ptr(DATA_AT)).unwrap(),
        |a| a.pshufw(mm0, mm1, 3).unwrap(),
        |a| a.emms().unwrap(),
    ];
    for program in mmx {
        assert_eq!(ends_with(program, |_| {}), BREAKPOINT);
        assert_eq!(ends_with(program, |s| s.cr4 &= !CR4_OSFXSR), BREAKPOINT);
        assert_eq!(ends_with(program, |s| s.cr0 |= CR0_EM), UNDEFINED);
        assert_eq!(ends_with(program, |s| s.cr0 |= CR0_TS), NOT_AVAILABLE);
        assert_eq!(ends_with(program, pending), X87_EXCEPTION);
    }
    // What moves between the two sets of registers needs both.
    let movq2dq: Program = |a| a.movq2dq(xmm0, mm0).unwrap();
    assert_eq!(ends_with(movq2dq, |_| {}), BREAKPOINT);
    assert_eq!(ends_with(movq2dq, |s| s.cr4 &= !CR4_OSFXSR), UNDEFINED);
    assert_eq!(ends_with(movq2dq, pending), X87_EXCEPTION);
}

#[test]
fn an_x87_exception_without_cr0_ne_ends_the_run() {
    let mut guest = Guest::new(|a| a.emms().unwrap());
    guest.set(|s| {
        s.fpu.control = 0x37e;
        s.fpu.status = 1;
        s.cr0 &= !CR0_NE;
    });
    let Exit::Unknown(unknown) = guest.cpu.run(&mut guest.ram, &mut NoBus, 10_000) else {
        panic!("EMMS ran")
    };
    assert!(unknown.to_string().contains("FERR#"), "{unknown}");
}

#[test]
fn an_unmasked_simd_exception_needs_its_own_cr4_bit() {
    // 0 / 0 with everything unmasked.
    let divide: Program = |a| a.divps(xmm0, xmm1).unwrap();
    let unmask = |s: &mut Registers| s.mxcsr = 0;
    assert_eq!(ends_with(divide, |_| {}), BREAKPOINT);
    assert_eq!(ends_with(divide, unmask), SIMD);
    let without = |s: &mut Registers| {
        s.mxcsr = 0;
        s.cr4 &= !CR4_OSXMMEXCPT;
    };
    assert_eq!(ends_with(divide, without), UNDEFINED);
}

#[test]
fn reserved_mxcsr_bits_and_misalignment_are_refused() {
    let load: Program = |a| {
        a.mov(dword_ptr(DATA_AT), 0x1_0000).unwrap();
        a.ldmxcsr(dword_ptr(DATA_AT)).unwrap();
    };
    assert_eq!(ends_with(load, |_| {}), PROTECTION);
    let misaligned: [Program; 3] = [
        |a| a.movaps(xmm0, xmmword_ptr(DATA_AT + 8)).unwrap(),
        |a| a.paddb(xmm0, xmmword_ptr(DATA_AT + 1)).unwrap(),
        |a| a.fxsave64(ptr(DATA_AT + 8)).unwrap(),
    ];
    for program in misaligned {
        assert_eq!(ends_with(program, |_| {}), PROTECTION);
    }
}

#[test]
fn fxrstor_brings_back_what_fxsave_stored() {
    let mut guest = Guest::new(|a| {
        a.fninit().unwrap();
        a.fld1().unwrap();
        a.fxsave64(ptr(DATA_AT)).unwrap();
        a.fninit().unwrap();
        a.pxor(xmm7, xmm7).unwrap();
        a.fxrstor64(ptr(DATA_AT)).unwrap();
        a.int3().unwrap();
    });
    guest.set(|state| {
        state.cr4 |= CR4_OSFXSR;
        state.xmm[7] = 0x1234_5678_9abc_def0;
        state.mxcsr = 0x9fc0;
    });
    let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, 10_000);
    assert!(matches!(exit, Exit::Halted { .. }), "{exit:?}");
    assert_eq!(guest.halted_in(), Some(BREAKPOINT));
    let state = guest.cpu.registers();
    assert_eq!(state.xmm[7], 0x1234_5678_9abc_def0);
    assert_eq!(state.mxcsr, 0x9fc0);
    assert_eq!(state.fpu.full, 0x80);
    assert_eq!(state.fpu.st(0), 0x3fff_8000_0000_0000_0000);
    assert_eq!(guest.word(DATA_AT + 24), 0xffff_0000_9fc0, "MXCSR and its mask");
}
