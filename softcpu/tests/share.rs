//! Several processors on one RAM: code that one has decoded and another writes, PAUSE, and non-maskable interrupts.

use softcpu::{Cpu, CpuModel, Exit, NoBus, Ram, Registers, Translation};

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

/// Gives the code to the processor that runs next, as whoever runs them in turn does.
fn hand_over(ram: &Ram, from: &mut Cpu, to: &mut Cpu) {
    to.follow(ram, &from.take_code_changes());
    to.receive_code(from.lend_code());
}

#[test]
fn what_another_processor_writes_is_executed() {
    for which in [Translation::Off, Translation::Eager] {
        let mut ram = ram();
        ram.write(CODE, &[0xb0, 1, 0xf4]); // mov al, 1; hlt
        // mov byte [CODE + 1], 2; hlt
        ram.write(OTHER, &[0xc6, 0x04, 0x25, 0x01, 0x80, 0, 0, 2, 0xf4]);
        let (mut runs, mut writes) = (cpu(CODE), cpu(OTHER));
        for cpu in [&mut runs, &mut writes] {
            cpu.translate(which);
        }
        // The second time round the page of RAM has been written before.
        for value in [1, 2] {
            runs.run(&mut ram, &mut NoBus, u64::MAX);
            assert_eq!(runs.registers().gpr[0], value, "{which:?}");
            hand_over(&ram, &mut runs, &mut writes);
            assert!(writes.has_code(&ram, CODE + 5), "{which:?}");
            writes.run(&mut ram, &mut NoBus, u64::MAX);
            assert!(!writes.has_code(&ram, CODE), "{which:?}");
            hand_over(&ram, &mut writes, &mut runs);
            assert!(!runs.has_code(&ram, CODE) && runs.has_code(&ram, OTHER));
            restart(&mut runs, CODE);
            restart(&mut writes, OTHER);
        }
    }
}

#[test]
fn writes_to_code_are_noticed_by_a_processor_that_has_written_there_before() {
    let mut ram = ram();
    ram.write(CODE, &[0xb0, 1, 0xf4]); // mov al, 1; hlt
    // again: mov byte [CODE + 1], cl; inc ecx; jmp again
    ram.write(OTHER, &[0x88, 0x0c, 0x25, 1, 0x80, 0, 0, 0xff, 0xc1, 0xeb, 0xf5]);
    let (mut runs, mut writes) = (cpu(CODE), cpu(OTHER));
    writes.run(&mut ram, &mut NoBus, 300);
    for end in [600, 900] {
        hand_over(&ram, &mut writes, &mut runs);
        restart(&mut runs, CODE);
        runs.run(&mut ram, &mut NoBus, u64::MAX);
        let mut written = [0];
        assert!(ram.read(CODE + 1, &mut written));
        assert_eq!(runs.registers().gpr[0], written[0].into());
        hand_over(&ram, &mut runs, &mut writes);
        writes.run(&mut ram, &mut NoBus, end);
    }
}

#[test]
fn code_that_one_has_translated_another_executes() {
    let mut ram = ram();
    // again: inc eax; dec ecx; jnz again; hlt
    ram.write(CODE, &[0xff, 0xc0, 0xff, 0xc9, 0x75, 0xfa, 0xf4]);
    let [mut first, mut second] = [cpu(CODE), cpu(CODE)];
    for cpu in [&mut first, &mut second] {
        // Drops all code, of which the second one has none: that is nothing to tell the first one.
        cpu.translate(Translation::Hot);
        let mut state = cpu.registers();
        state.gpr[1] = 100;
        cpu.set_registers(&state);
    }
    first.run(&mut ram, &mut NoBus, u64::MAX);
    assert!(first.translated() > 100, "{}", first.translated());
    let decoded = first.take_code_changes();
    second.follow(&ram, &decoded);
    second.receive_code(first.lend_code());
    second.run(&mut ram, &mut NoBus, u64::MAX);
    assert_eq!(second.registers().gpr, first.registers().gpr);
    // Nothing was left to decode or to translate.
    assert!(
        second.translated() > first.translated(),
        "{}",
        second.translated()
    );
    assert_eq!(second.take_code_changes(), []);
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
