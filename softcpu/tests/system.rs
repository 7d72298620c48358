//! Privileged behaviour: exceptions, interrupts, privilege changes and paging rights.

mod common;

use common::{
    CODE, Guest, HANDLERS, IST1, KERNEL_CS, KERNEL_ONLY, KERNEL_SS, PT, RSP0, STACK, USER_CS, USER_SS,
};
use iced_x86::code_asm::*;
use softcpu::flags::{CF, IF, RF, TF};
use softcpu::registers::{CS, DS, ES, FS, GS, SS, Segment};
use softcpu::{Exit, NoBus, Shutdown};

fn run(guest: &mut Guest) -> Exit {
    guest.cpu.run(&mut guest.ram, &mut NoBus, 100_000)
}

/// Runs to the HLT of a handler and gives its vector.
fn vector(guest: &mut Guest) -> u64 {
    let exit = run(guest);
    assert!(
        matches!(exit, Exit::Halted { .. }),
        "{exit:?} at {:#x}",
        guest.cpu.registers().rip
    );
    guest
        .halted_in()
        .unwrap_or_else(|| panic!("halted outside the handlers at {:#x}", guest.cpu.registers().rip))
}

#[test]
fn a_page_fault_from_user_mode_switches_stacks_and_tells_where() {
    let mut guest = Guest::new(|a| a.mov(rax, qword_ptr(KERNEL_ONLY + 8)).unwrap());
    guest.enter_user();
    assert_eq!(vector(&mut guest), 14);
    let state = guest.cpu.registers();
    assert_eq!(state.cr2, KERNEL_ONLY + 8);
    assert_eq!(state.gpr[4], RSP0 - 48);
    let frame: Vec<u64> = (0..6).map(|i| guest.word(RSP0 - 48 + 8 * i)).collect();
    assert_eq!(frame[0], 5, "present, user, read");
    assert_eq!(frame[1..3], [CODE, u64::from(USER_CS)]);
    assert_eq!(frame[4..], [STACK, u64::from(USER_SS)]);
    assert_eq!(state.segments[CS].selector & 3, 0);
}

#[test]
fn paging_rights_have_their_error_codes() {
    let cases: [(u64, bool, u64); 4] = [
        (KERNEL_ONLY | 1, false, 3), // supervisor write to a read-only page (WP is on)
        (0, false, 2),               // not present
        (KERNEL_ONLY | 5, true, 7),  // user write to a read-only page
        (KERNEL_ONLY | 7 | 1 << 52, true, 0), // fine: bit 52 is ignored
    ];
    for (entry, user, code) in cases {
        let mut guest = Guest::new(|a| {
            a.mov(qword_ptr(KERNEL_ONLY), rax).unwrap();
            a.int3().unwrap();
        });
        guest.put(PT + KERNEL_ONLY / 512, entry);
        if user {
            guest.enter_user();
        }
        let expected = if code == 0 { 3 } else { 14 };
        assert_eq!(vector(&mut guest), expected, "entry {entry:#x}");
        if code != 0 {
            assert_eq!(guest.word(guest.cpu.registers().gpr[4]), code, "entry {entry:#x}");
        }
    }
}

#[test]
fn a_page_that_may_not_be_executed_faults_on_fetch() {
    let mut guest = Guest::new(|a| {
        a.mov(rax, KERNEL_ONLY).unwrap();
        a.jmp(rax).unwrap();
    });
    guest.put(PT + KERNEL_ONLY / 512, KERNEL_ONLY | 3 | 1 << 63);
    assert_eq!(vector(&mut guest), 14);
    assert_eq!(guest.word(guest.cpu.registers().gpr[4]), 0x11, "present, fetch");
    assert_eq!(guest.cpu.registers().cr2, KERNEL_ONLY);
}

#[test]
fn user_mode_may_not_do_what_the_kernel_may() {
    type Program = fn(&mut CodeAssembler);
    let programs: [Program; 6] = [
        |a| a.hlt().unwrap(),
        |a| a.cli().unwrap(),
        |a| a.mov(rax, cr3).unwrap(),
        |a| a.rdmsr().unwrap(),
        |a| a.in_(al, dx).unwrap(),
        |a| a.swapgs().unwrap(),
    ];
    for program in programs {
        let mut guest = Guest::new(program);
        guest.enter_user();
        assert_eq!(vector(&mut guest), 13);
    }
}

#[test]
fn what_cpuid_does_not_offer_is_undefined() {
    for bytes in [
        &[0xc5, 0xfc, 0x58, 0xc1][..],   // vaddps ymm0, ymm0, ymm1
        &[0x0f, 0x38, 0x00, 0xc1],       // pshufb mm0, mm1
        &[0x66, 0x0f, 0x38, 0x00, 0xc1], // pshufb xmm0, xmm1
        &[0x0f, 0xc7, 0xf0],             // rdrand eax
        &[0x0f, 0x0b],                   // ud2
        &[0x06],                         // push es, gone in 64-bit mode
        &[0x0f, 0x01, 0xd0],             // xgetbv
    ] {
        let mut guest = Guest::new(|a| a.db(bytes).unwrap());
        guest.set(|state| state.cr4 |= softcpu::registers::CR4_OSFXSR);
        assert_eq!(vector(&mut guest), 6, "{bytes:02x?}");
        assert_eq!(guest.word(guest.cpu.registers().gpr[4]), CODE);
    }
}

#[test]
fn what_should_be_there_and_is_not_ends_the_run_with_its_bytes() {
    // rep xchg r8, rax, which the decoder takes for PAUSE.
    let mut guest = Guest::new(|a| a.db(&[0xf3, 0x41, 0x90]).unwrap());
    let Exit::Unknown(unknown) = run(&mut guest) else {
        panic!("rep xchg r8, rax ran")
    };
    assert_eq!(unknown.rip, CODE);
    assert_eq!(unknown.bytes[..3], [0xf3, 0x41, 0x90]);
    assert!(unknown.to_string().contains("f3 41 90"), "{unknown}");
}

#[test]
fn an_instruction_across_two_pages_runs_and_faults_in_either() {
    // mov eax, 0x01020304 with its last two bytes in the next page.
    let mut guest = Guest::new(|a| {
        a.mov(rax, CODE + 0xffd).unwrap();
        a.jmp(rax).unwrap();
    });
    assert!(guest.ram.write(CODE + 0xffd, &[0xb8, 4, 3, 2, 1, 0xf4]));
    assert_eq!(run(&mut guest), Exit::Halted { interruptible: false });
    assert_eq!(guest.cpu.registers().gpr[0], 0x0102_0304);
    // The same with the second page rewritten: the decoded form must not survive.
    assert!(guest.ram.write(CODE + 0x1000, &[9, 9, 0xf4]));
    guest.cpu.memory_written(&guest.ram, CODE + 0x1000, 3);
    guest.set(|state| state.rip = CODE);
    run(&mut guest);
    assert_eq!(guest.cpu.registers().gpr[0], 0x0909_0304);
    // And with the second page gone.
    guest.put(PT + (CODE + 0x1000) / 512, 0);
    guest.set(|state| state.rip = CODE);
    assert_eq!(vector(&mut guest), 14);
    assert_eq!(guest.cpu.registers().cr2, CODE + 0x1000);
}

#[test]
fn syscall_and_sysret_go_there_and_back() {
    let mut guest = Guest::new(|a| {
        let mut kernel = a.create_label();
        a.syscall().unwrap(); // two bytes; returns here
        a.int3().unwrap();
        a.set_label(&mut kernel).unwrap();
        a.mov(rax, rcx).unwrap();
        a.sysretq().unwrap();
    });
    let kernel = CODE + 3;
    // STAR, LSTAR and FMASK by WRMSR would need a program of their own: a second guest program does it in kernel mode.
    let mut setup = Guest::new(|a| {
        for (msr, value) in [
            (0xc000_0081u32, 0x0023_0010_0000_0000u64),
            (0xc000_0082, kernel),
            (0xc000_0084, IF | CF),
        ] {
            a.mov(ecx, msr).unwrap();
            a.mov(eax, (value & 0xffff_ffff) as u32).unwrap();
            a.mov(edx, (value >> 32) as u32).unwrap();
            a.wrmsr().unwrap();
        }
        a.hlt().unwrap();
    });
    assert!(matches!(run(&mut setup), Exit::Halted { .. }));
    std::mem::swap(&mut guest.cpu, &mut setup.cpu);
    guest.cpu.memory_written(&guest.ram, CODE, 0x1000);
    let mut state = setup.cpu.registers();
    state.rflags |= CF;
    guest.cpu.set_registers(&state);
    guest.enter_user();
    assert_eq!(vector(&mut guest), 3);
    let state = guest.cpu.registers();
    assert_eq!(state.gpr[0], CODE + 2);
    assert_eq!(state.gpr[11] & CF, CF);
    let frame_cs = guest.word(RSP0 - 32);
    assert_eq!(frame_cs, u64::from(USER_CS), "came back to user mode");
    assert_eq!(guest.word(RSP0 - 8), u64::from(USER_SS));
}

#[test]
fn iret_returns_to_user_mode_and_null_stack_segments_are_checked() {
    let mut guest = Guest::new(|a| {
        for value in [i32::from(USER_SS), 0x7800, 0x202, i32::from(USER_CS), 0x9000] {
            a.push(value).unwrap();
        }
        a.iretq().unwrap();
    });
    assert!(guest.ram.write(0x9000, &[0xcc]));
    assert_eq!(vector(&mut guest), 3);
    assert_eq!(guest.word(RSP0 - 16), 0x7800);
    assert_eq!(guest.word(RSP0 - 24) & IF, IF);
    let entered = guest.cpu.entered_user_at().expect("user mode was entered");
    let left = guest.cpu.left_user_at().expect("and left");
    assert_eq!(left - entered, 1, "INT3 was the only user instruction");
}

#[test]
fn a_return_to_user_mode_nulls_the_segments_that_user_mode_may_not_use() {
    const KERNEL_DATA: u16 = 0x18;
    let mut guest = Guest::new(|a| {
        a.mov(eax, u32::from(USER_SS)).unwrap();
        a.mov(es, ax).unwrap();
        for value in [i32::from(USER_SS), 0x7800, 0x202, i32::from(USER_CS), 0x9000] {
            a.push(value).unwrap();
        }
        a.iretq().unwrap();
    });
    assert!(guest.ram.write(0x9000, &[0xcc]));
    let mut state = guest.cpu.registers();
    let kernel = |segment: &mut Segment, base| {
        (segment.selector, segment.base, segment.attributes) = (KERNEL_DATA, base, 0xc093);
    };
    kernel(&mut state.segments[DS], 0);
    kernel(&mut state.segments[FS], 0x1234_5000);
    // A null segment that had a privilege level in its selector.
    (state.segments[GS].selector, state.segments[GS].attributes) = (3, 0);
    guest.cpu.set_registers(&state);
    assert_eq!(vector(&mut guest), 3);
    let segments = guest.cpu.registers().segments;
    assert_eq!(segments[ES].selector, USER_SS, "which user mode may use");
    for index in [DS, FS, GS] {
        let found = (segments[index].selector, segments[index].attributes);
        assert_eq!(found, (0, 0), "segment {index}");
    }
    assert_eq!(
        segments[FS].base, 0x1234_5000,
        "which comes from a model-specific register"
    );
}

#[test]
fn an_interrupt_waits_for_sti_and_one_instruction_more() {
    let mut guest = Guest::new(|a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.mov(eax, 7).unwrap();
        a.mov(eax, 8).unwrap();
        a.hlt().unwrap();
    });
    guest.cpu.request_interrupt_window(true);
    assert_eq!(run(&mut guest), Exit::InterruptWindow);
    assert_eq!(
        guest.cpu.registers().gpr[0],
        7,
        "the instruction after STI ran first"
    );
    guest.cpu.request_interrupt_window(false);
    guest
        .cpu
        .inject_interrupt(&mut guest.ram, &mut NoBus, 0x41)
        .unwrap();
    assert_eq!(vector(&mut guest), 0x41);
    let state = guest.cpu.registers();
    assert_eq!(state.rflags & IF, 0, "interrupt gates mask");
    assert_eq!(
        guest.word(state.gpr[4] + 16) & IF,
        IF,
        "and the saved flags do not"
    );
}

#[test]
fn sti_and_hlt_wait_together() {
    let mut guest = Guest::new(|a| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(run(&mut guest), Exit::Halted { interruptible: true });
    let now = guest.cpu.now();
    guest.cpu.skip_to(now + 1000);
    assert_eq!(guest.cpu.now(), now + 1000);
    assert_eq!(guest.cpu.retired(), now, "skipped time is not instructions");
    guest
        .cpu
        .inject_interrupt(&mut guest.ram, &mut NoBus, 0x20)
        .unwrap();
    assert_eq!(vector(&mut guest), 0x20);
}

#[test]
fn a_double_fault_uses_its_own_stack_and_a_third_fault_ends_it() {
    let mut guest = Guest::new(|a| {
        a.mov(rsp, 0x40_0000u64).unwrap(); // not mapped: pushing the frame faults
        a.ud2().unwrap();
    });
    // #UD with an unmapped stack: page fault on delivery, then (page fault while delivering a page fault) a double
    // fault.
    assert_eq!(vector(&mut guest), 8);
    assert_eq!(guest.cpu.registers().gpr[4], IST1 - 48);
    let mut guest = Guest::new(|a| a.ud2().unwrap());
    guest.set(|state| state.idtr.limit = 0);
    let exit = run(&mut guest);
    assert!(
        matches!(
            exit,
            Exit::Shutdown(Shutdown {
                vectors: [6, 13, 13],
                rip: CODE,
                ..
            })
        ),
        "{exit:?}"
    );
}

#[test]
fn the_trap_flag_traps_after_each_instruction() {
    let mut guest = Guest::new(|a| {
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.mov(eax, 5).unwrap();
        a.mov(eax, 6).unwrap();
    });
    assert_eq!(vector(&mut guest), 1);
    assert_eq!(guest.cpu.registers().gpr[0], 5);
}

/// Makes the handler of vector `v` return at once.
fn handle_by_iret(guest: &mut Guest, v: u64) {
    assert!(guest.ram.write(HANDLERS + 16 * v, &[0x48, 0xcf]));
    guest.cpu.memory_written(&guest.ram, HANDLERS + 16 * v, 2);
}

/// Steps over the program with the trap flag set, to the trap after its HLT; returns RIP, relative to the program, and
/// the RFLAGS that each trap pushed.
fn single_steps(guest: &mut Guest) -> Vec<(u64, u64)> {
    handle_by_iret(guest, 1);
    guest.set(|state| state.rflags |= TF);
    let (mut steps, frame) = (Vec::new(), STACK - 40);
    for until in 1..200 {
        guest.cpu.run(&mut guest.ram, &mut NoBus, until);
        let state = guest.cpu.registers();
        if state.rip != HANDLERS + 16 {
            continue;
        }
        assert_eq!(state.gpr[4], frame);
        let rip = guest.word(frame);
        steps.push((rip - CODE, guest.word(frame + 16)));
        let mut passed = [0];
        assert!(guest.ram.read(rip - 1, &mut passed));
        if passed == [0xf4] {
            return steps;
        }
    }
    panic!("no HLT")
}

// What the host's processor does with the same instructions in user mode was measured: the traps come after the same
// instructions with the same RF and TF.
#[test]
fn single_step_traps_push_rf_only_between_two_iterations() {
    let mut guest = Guest::new(|a| {
        a.nop().unwrap(); // 0
        a.mov(edi, 0x9_0000u32).unwrap(); // 1
        a.mov(ecx, 3).unwrap(); // 6
        a.rep().stosb().unwrap(); // 11
        a.hlt().unwrap(); // 13
    });
    let steps: Vec<_> = single_steps(&mut guest)
        .into_iter()
        .map(|(rip, flags)| (rip, flags & RF != 0))
        .collect();
    let expected = [
        (1, false),
        (6, false),
        (11, false),
        (11, true),
        (11, true),
        (13, false),
        (14, false),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn a_single_step_trap_is_held_off_after_a_load_of_ss() {
    for pop in [false, true] {
        let mut guest = Guest::new(|a| {
            a.mov(ax, u32::from(KERNEL_SS)).unwrap(); // 0
            if pop {
                a.mov(ecx, ss).unwrap(); // 4
                a.nop().unwrap(); // 6
            } else {
                a.mov(ss, eax).unwrap(); // 4
                a.nop().unwrap(); // 6
            }
            a.nop().unwrap(); // 7
            a.hlt().unwrap(); // 8
        });
        let steps: Vec<u64> = single_steps(&mut guest).into_iter().map(|(rip, _)| rip).collect();
        // A read of SS, the negative control, holds nothing off.
        let expected = if pop { &[4, 6, 7, 8, 9][..] } else { &[4, 7, 8, 9] };
        assert_eq!(steps, expected);
    }
}

#[test]
fn sti_holds_no_single_step_trap_off() {
    let mut guest = Guest::new(|a| {
        a.sti().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let steps: Vec<u64> = single_steps(&mut guest).into_iter().map(|(rip, _)| rip).collect();
    assert_eq!(steps, [1, 2, 3]);
}

#[test]
fn the_instruction_that_clears_the_trap_flag_still_traps() {
    let mut guest = Guest::new(|a| {
        a.push(2).unwrap(); // 0
        a.popfq().unwrap(); // 2
        a.nop().unwrap(); // 3
        a.hlt().unwrap();
    });
    handle_by_iret(&mut guest, 1);
    guest.set(|state| state.rflags |= TF);
    let mut seen = Vec::new();
    for until in 1..20 {
        guest.cpu.run(&mut guest.ram, &mut NoBus, until);
        let state = guest.cpu.registers();
        if state.rip == HANDLERS + 16 {
            let at = state.gpr[4];
            seen.push((guest.word(at) - CODE, guest.word(at + 16) & TF != 0));
        }
    }
    assert_eq!(seen, [(2, true), (3, false)]);
    // A software interrupt clears the flag, too, and is not followed by a trap in its handler.
    let mut guest = Guest::new(|a| a.int3().unwrap());
    guest.set(|state| state.rflags |= TF);
    assert_eq!(vector(&mut guest), 3);
}

#[test]
fn rf_lasts_from_iret_to_the_end_of_the_next_instruction() {
    let program = |a: &mut CodeAssembler| {
        for value in [
            i32::from(KERNEL_SS),
            0x7000,
            0x1_0202,
            i32::from(KERNEL_CS),
            0x9000,
        ] {
            a.push(value).unwrap();
        }
        a.iretq().unwrap();
    };
    // Six instructions, to the end of IRET; then so many more, or so much time without any.
    for (more, skipped, resumes) in [(0, 0, true), (0, 50, true), (1, 0, false), (2, 0, false)] {
        let mut guest = Guest::new(program);
        assert!(guest.ram.write(0x9000, &[0x90; 8]));
        guest.cpu.run(&mut guest.ram, &mut NoBus, 6 + more);
        guest.cpu.skip_to(6 + more + skipped);
        let state = guest.cpu.registers();
        assert_eq!(state.rip, 0x9000 + more);
        assert_eq!(state.rflags & RF != 0, resumes, "{more} instructions later");
        let mut again = softcpu::Cpu::from_state(&guest.cpu.state(&guest.ram), &guest.ram).unwrap();
        assert_eq!(again.registers(), state);
        for cpu in [&mut guest.cpu, &mut again] {
            cpu.inject_interrupt(&mut guest.ram, &mut NoBus, 0x41).unwrap();
            let frame = cpu.registers().gpr[4];
            assert_eq!(cpu.registers().rflags & RF, 0, "the handler begins without it");
            let mut pushed = [0; 8];
            assert!(guest.ram.read(frame + 16, &mut pushed));
            assert_eq!(
                u64::from_le_bytes(pushed) & RF != 0,
                resumes,
                "{more} instructions later"
            );
        }
    }
}

#[test]
fn an_interrupt_amid_a_repeated_instruction_pushes_rf() {
    for (ticks, amid) in [(3, true), (4, true), (5, false)] {
        let mut guest = Guest::new(|a| {
            a.mov(esi, 0x9_0000u32).unwrap();
            a.mov(ecx, 3).unwrap();
            a.rep().lodsb().unwrap();
            a.nop().unwrap();
        });
        guest.cpu.run(&mut guest.ram, &mut NoBus, ticks);
        assert_eq!(guest.cpu.registers().gpr[1], 5 - ticks);
        guest
            .cpu
            .inject_interrupt(&mut guest.ram, &mut NoBus, 0x41)
            .unwrap();
        let frame = guest.cpu.registers().gpr[4];
        assert_eq!(guest.word(frame + 16) & RF != 0, amid, "after {ticks} ticks");
    }
}

#[test]
fn an_interrupt_shadow_outlasts_time_without_instructions() {
    let mut guest = Guest::new(|a| {
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    guest.cpu.run(&mut guest.ram, &mut NoBus, 1);
    guest.cpu.skip_to(100);
    assert!(!guest.cpu.can_take_interrupt());
    guest.cpu.run(&mut guest.ram, &mut NoBus, 101);
    assert!(guest.cpu.can_take_interrupt());
}

#[test]
fn ss_is_null_after_an_entry_from_user_mode() {
    let mut guest = Guest::new(|a| a.int3().unwrap());
    guest.enter_user();
    vector(&mut guest);
    assert_eq!(guest.cpu.registers().segments[SS].selector, 0);
}

#[test]
fn invlpg_drops_all_pieces_of_a_large_page() {
    let mut guest = Guest::new(|a| {
        a.mov(rax, qword_ptr(0x20_0000)).unwrap();
        a.mov(rbx, qword_ptr(0x20_1000)).unwrap();
        a.mov(qword_ptr(0x3008), 0).unwrap(); // unmap the 2 MiB page
        a.invlpg(ptr(0x20_1000)).unwrap();
        a.mov(rax, qword_ptr(0x20_0000)).unwrap();
    });
    guest.put(0x3008, 0x87);
    assert_eq!(vector(&mut guest), 14);
    assert_eq!(guest.cpu.registers().cr2, 0x20_0000);
}

#[test]
fn execution_of_a_page_can_be_watched() {
    let mut guest = Guest::new(|a| {
        a.mov(rax, 0x9_0000u64).unwrap();
        a.jmp(rax).unwrap();
    });
    assert!(guest.ram.write(0x9_0000, &[0x90, 0xf4]));
    guest.cpu.watch_execution(&guest.ram, 0x9_0000, true);
    let seen: Vec<Exit> = (0..3).map(|_| run(&mut guest)).collect();
    assert_eq!(
        seen[0],
        Exit::WatchExecute {
            rip: 0x9_0000,
            gpa: 0x9_0000
        }
    );
    assert_eq!(
        seen[1],
        Exit::WatchExecute {
            rip: 0x9_0001,
            gpa: 0x9_0001
        }
    );
    assert_eq!(seen[2], Exit::Halted { interruptible: false });
}

#[test]
fn kernel_code_in_the_lower_half_can_be_stopped_at() {
    let mut guest = Guest::new(|a| {
        a.mov(rax, 0x9_0000u64).unwrap();
        a.jmp(rax).unwrap();
    });
    assert!(guest.ram.write(0x9_0000, &[0xf4]));
    guest.cpu.stop_on_low_supervisor_fetch(true);
    assert_eq!(run(&mut guest), Exit::LowSupervisorFetch { rip: CODE });
    assert_eq!(run(&mut guest), Exit::LowSupervisorFetch { rip: 0x9_0000 });
    assert_eq!(run(&mut guest), Exit::Halted { interruptible: false });
}

#[test]
fn stopping_after_an_instruction_that_ends_in_the_next_page_goes_on_behind_it() {
    let mut guest = Guest::new(|a| {
        a.mov(rax, CODE + 0xffe).unwrap();
        a.jmp(rax).unwrap();
    });
    // mov rax, cr3 and mov cr3, rax, the second of them across the pages: it stops the loop.
    assert!(
        guest
            .ram
            .write(CODE + 0xffb, &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0xf4])
    );
    guest.set(|state| {
        state.rip = CODE + 0xffb;
        state.gpr[0] = 0;
    });
    assert_eq!(run(&mut guest), Exit::Halted { interruptible: false });
    assert_eq!(guest.cpu.retired(), 3);
}

#[test]
fn overlapping_instructions_that_cross_the_same_page_edge_are_kept_apart() {
    // At 0xffd: mov eax, 0x01b804b8. Entered one byte later it reads mov eax, 0x9001b804 (both run on into the next
    // page).
    let mut guest = Guest::new(|a| {
        for (start, result) in [(0xffd, rbx), (0xffe, rsi), (0xffd, rdi)] {
            a.mov(rdx, CODE + start).unwrap();
            a.call(rdx).unwrap();
            a.mov(result, rax).unwrap();
        }
        a.hlt().unwrap();
    });
    assert!(
        guest
            .ram
            .write(CODE + 0xffd, &[0xb8, 0xb8, 0x04, 0xb8, 0x01, 0x90, 0xc3])
    );
    assert_eq!(run(&mut guest), Exit::Halted { interruptible: false });
    let gpr = guest.cpu.registers().gpr;
    assert_eq!([gpr[3], gpr[6], gpr[7]], [0x01b8_04b8, 0x9001_b804, 0x01b8_04b8]);
}

#[test]
fn a_far_return_can_leave_for_user_mode() {
    let mut guest = Guest::new(|a| {
        for value in [i32::from(USER_SS), 0x7800, i32::from(USER_CS), 0x9000] {
            a.push(value).unwrap();
        }
        a.db(&[0x48, 0xcb]).unwrap(); // retfq
    });
    assert!(guest.ram.write(0x9000, &[0xcc]));
    assert_eq!(vector(&mut guest), 3);
    assert_eq!(guest.word(RSP0 - 16), 0x7800);
    assert_eq!(guest.word(RSP0 - 32), u64::from(USER_CS));
}
