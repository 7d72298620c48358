//! The processor runs a program, stops exactly where it is told, and takes faults.

use softcpu::{Cpu, CpuModel, Exit, NoBus, Ram, Registers};

/// A guest of raw machine code at 0x8000, with an identity map of the first 2 MiB.
fn guest(code: &[u8]) -> (Cpu, Ram) {
    let mut ram = Ram::new_owned(2 << 20);
    for (table, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
        assert!(ram.write(table, &entry.to_le_bytes()));
    }
    assert!(ram.write(0x8000, code));
    let mut cpu = Cpu::new(CpuModel::default());
    let mut state = Registers {
        cr3: 0x1000,
        rip: 0x8000,
        ..Registers::default()
    };
    state.gpr[4] = 0x7000;
    cpu.set_registers(&state);
    (cpu, ram)
}

/// mov ecx, 1000; xor eax, eax; again: add rax, rcx; dec ecx; jnz again; hlt
const SUM: &[u8] = &[
    0xb9, 0xe8, 3, 0, 0, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9, 0xf4,
];

#[test]
fn a_loop_runs_to_its_end_and_every_instruction_counts() {
    let (mut cpu, mut ram) = guest(SUM);
    let exit = cpu.run(&mut ram, &mut NoBus, u64::MAX);
    assert_eq!(exit, Exit::Halted { interruptible: false });
    assert_eq!(cpu.registers().gpr[0], 500_500);
    assert_eq!(cpu.retired(), 2 + 3 * 1000 + 1);
}

#[test]
fn a_deadline_stops_between_any_two_instructions() {
    let (mut whole, mut ram) = guest(SUM);
    whole.run(&mut ram, &mut NoBus, 1234);
    let (mut steps, mut other) = guest(SUM);
    for time in 1..=1234 {
        assert_eq!(steps.run(&mut other, &mut NoBus, time), Exit::Deadline);
        assert_eq!(steps.now(), time);
    }
    assert_eq!(whole.registers(), steps.registers());
}

#[test]
fn code_that_rewrites_itself_runs_as_rewritten() {
    // mov byte [rip+1], 7 (the immediate of the next instruction); mov al, 1; hlt
    let (mut cpu, mut ram) = guest(&[0xc6, 0x05, 1, 0, 0, 0, 7, 0xb0, 1, 0xf4]);
    cpu.run(&mut ram, &mut NoBus, u64::MAX);
    assert_eq!(cpu.registers().gpr[0], 7);
}

#[test]
fn a_fault_without_an_idt_is_a_shutdown() {
    // mov rax, [0x10000000], which is not mapped
    let (mut cpu, mut ram) = guest(&[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x10]);
    let exit = cpu.run(&mut ram, &mut NoBus, u64::MAX);
    let Exit::Shutdown(shutdown) = exit else {
        panic!("{exit:?}")
    };
    assert_eq!(
        (shutdown.rip, shutdown.cr2, shutdown.vectors[0]),
        (0x8000, 0x1000_0000, 14)
    );
}
