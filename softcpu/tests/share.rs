//! Several processors on one RAM: code that one has decoded and another writes, PAUSE, and non-maskable interrupts.

use softcpu::{Cpu, CpuModel, Exit, NoBus, Ram, Registers};

const CODE: u64 = 0x8000;
const OTHER: u64 = 0x9000;

fn ram() -> Ram {
    let mut ram = Ram::new_owned(2 << 20);
    for (table, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
        assert!(ram.write(table, &entry.to_le_bytes()));
    }
    ram
}

fn cpu(rip: u64) -> Cpu {
    let mut cpu = Cpu::new(CpuModel::default());
    let mut state = Registers {
        cr3: 0x1000,
        rip,
        ..Registers::default()
    };
    state.gpr[4] = 0x7000;
    cpu.set_registers(&state);
    cpu.share_code();
    cpu
}

fn restart(cpu: &mut Cpu, rip: u64) {
    let state = Registers {
        rip,
        ..cpu.registers()
    };
    cpu.set_registers(&state);
}

#[test]
fn what_another_processor_writes_is_executed() {
    let mut ram = ram();
    ram.write(CODE, &[0xb0, 1, 0xf4]); // mov al, 1; hlt
    // mov byte [CODE + 1], 2; mov byte [CODE + 0x800], 3; hlt
    ram.write(
        OTHER,
        &[
            0xc6, 0x04, 0x25, 0x01, 0x80, 0, 0, 2, 0xc6, 0x04, 0x25, 0, 0x88, 0, 0, 3, 0xf4,
        ],
    );
    let (mut runs, mut writes) = (cpu(CODE), cpu(OTHER));
    runs.run(&mut ram, &mut NoBus, u64::MAX);
    assert_eq!(runs.take_new_code(&ram), [CODE]);
    assert_eq!(runs.take_new_code(&ram), [], "told once");
    assert!(runs.has_code(&ram, CODE + 5) && !runs.has_code(&ram, OTHER));

    writes.guard(&ram, CODE, true);
    writes.run(&mut ram, &mut NoBus, u64::MAX);
    let written = writes.take_guarded_writes(&ram);
    assert_eq!(written, [(CODE + 1, 0x800)], "from the first byte to the last");
    for (gpa, len) in written {
        runs.memory_written(&ram, gpa, len);
    }
    assert!(!runs.has_code(&ram, CODE));
    restart(&mut runs, CODE);
    runs.run(&mut ram, &mut NoBus, u64::MAX);
    assert_eq!(runs.registers().gpr[0], 2);
    assert_eq!(
        runs.take_new_code(&ram),
        [CODE],
        "told again after it was dropped"
    );

    writes.guard(&ram, CODE, false);
    restart(&mut writes, OTHER);
    writes.run(&mut ram, &mut NoBus, u64::MAX);
    assert_eq!(writes.take_guarded_writes(&ram), []);
}

#[test]
fn a_guard_is_felt_by_a_processor_that_has_written_before() {
    let mut ram = ram();
    // again: mov byte [CODE], cl; inc ecx; jmp again
    ram.write(OTHER, &[0x88, 0x0c, 0x25, 0, 0x80, 0, 0, 0xff, 0xc1, 0xeb, 0xf5]);
    let mut writes = cpu(OTHER);
    writes.run(&mut ram, &mut NoBus, 300);
    writes.guard(&ram, CODE, true);
    writes.run(&mut ram, &mut NoBus, 600);
    assert_eq!(
        writes.take_guarded_writes(&ram),
        [(CODE, 1)],
        "one entry for many writes"
    );
}

#[test]
fn pause_stops_only_who_is_asked_to() {
    let mut ram = ram();
    ram.write(CODE, &[0xf3, 0x90, 0x90, 0xf4]); // pause; nop; hlt
    let mut plain = cpu(CODE);
    let halted = Exit::Halted { interruptible: false };
    assert_eq!(plain.run(&mut ram, &mut NoBus, u64::MAX), halted);
    let mut asked = cpu(CODE);
    asked.stop_on_pause(true);
    assert_eq!(
        asked.run(&mut ram, &mut NoBus, u64::MAX),
        Exit::Pause { rip: CODE + 2 }
    );
    assert_eq!(asked.retired(), 1);
    assert_eq!(asked.run(&mut ram, &mut NoBus, u64::MAX), halted);
    assert_eq!((asked.retired(), plain.retired()), (3, 3));
}

#[test]
fn an_nmi_is_followed_by_no_other_before_iret() {
    let mut ram = ram();
    let handler = 0xa000_u64;
    // Code segment 0x10, data segment 0x18, and the gate of vector 2.
    for (at, value) in [
        (0x4010, 0x00af_9b00_0000_ffff_u64),
        (0x4018, 0x00cf_9300_0000_ffff),
        (0x5020, 0x0000_8e00_0010_0000 | handler),
    ] {
        ram.write(at, &value.to_le_bytes());
    }
    ram.write(handler, &[0x90, 0x48, 0xcf]); // nop; iretq
    ram.write(CODE, &[0x90, 0x90, 0xf4]);
    let mut cpu = cpu(CODE);
    let mut state = cpu.registers();
    state.gdtr.base = 0x4000;
    state.gdtr.limit = 0x1f;
    state.idtr.base = 0x5000;
    state.idtr.limit = 0xfff;
    state.segments[1].selector = 0x10;
    state.segments[2].selector = 0x18;
    cpu.set_registers(&state);
    assert!(
        cpu.can_take_nmi() && !cpu.can_take_interrupt(),
        "interrupts are disabled"
    );
    cpu.inject_nmi(&mut ram, &mut NoBus).unwrap();
    assert_eq!(cpu.registers().rip, handler);
    assert!(!cpu.can_take_nmi());
    cpu.run(&mut ram, &mut NoBus, 2);
    assert_eq!(cpu.registers().rip, CODE);
    assert!(cpu.can_take_nmi());
}
