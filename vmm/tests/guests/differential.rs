//! Random sequences of instructions at privilege level 0, on softcpu and on KVM: registers, flags and memory must be
//! equal.
//!
//! This compares softcpu with the host's processor, or with KVM's emulator on a host that emulates guest kernels. One
//! guest runs many sequences. Each loads its own registers and stores the results in its own block, so the first
//! sequence that differs can be found.

use iced_x86::code_asm::*;
use iced_x86::{Code as Form, Decoder, DecoderOptions, Mnemonic};

use super::code::{Asm, CODE, Code, UPPER};
use super::guest::{Guest, Run, to_the_end};
use super::idioms::{self, STATUS};
use super::sequence::{REACH, REGISTERS, Rng, VECTORS, integer_forms, vector_forms};
use super::{hosts, sequence};
use vmm::processors::Backend;
use vmm::soft::Soft;

const SEED: u64 = 0xba70_2026;
/// Middle of the memory that sequences work on.
const WINDOW: u64 = 0x80_0000;
/// Physical address of the first sequence's block of results.
const RESULTS: u64 = 0x90_0000;
const BLOCK: u64 = 0x100;
/// Instructions in a sequence.
const LENGTH: usize = 24;

/// Loads every register and the flags with random numbers.
fn begin(c: &mut Code, vectors: bool, rng: &mut Rng) -> Asm {
    c.mov(eax, i32::try_from(rng.next() & 0xffff).unwrap() & STATUS)?;
    c.push(rax)?;
    c.popfq()?;
    c.mov(r15, UPPER + WINDOW)?;
    for register in REGISTERS {
        c.mov(register, rng.integer())?;
    }
    for number in 0..if vectors { VECTORS } else { 0 } {
        let place = i32::try_from(rng.below(REACH / 16) * 16).unwrap() - i32::try_from(REACH / 2).unwrap();
        c.movdqu(
            get_xmm(iced_x86::Register::XMM0 + number).unwrap(),
            xmmword_ptr(r15 + place),
        )?;
    }
    Ok(())
}

/// Stores registers and status flags in block `index`.
fn end(c: &mut Code, vectors: bool, index: u64) -> Asm {
    c.mov(r15, UPPER + RESULTS + index * BLOCK)?;
    for (number, register) in (0..).zip(REGISTERS) {
        c.mov(qword_ptr(r15 + 8 * number), register)?;
    }
    c.pushfq()?;
    c.pop(rax)?;
    c.and(rax, STATUS)?;
    c.mov(qword_ptr(r15 + 8 * 14), rax)?;
    for number in 0..if vectors { VECTORS } else { 0 } {
        let register = get_xmm(iced_x86::Register::XMM0 + number).unwrap();
        c.movdqu(xmmword_ptr(r15 + 0x80 + 16 * number), register)?;
    }
    Ok(())
}

/// A guest of `count` sequences of these forms.
fn guest(seed: u64, count: u64, forms: &[Form], vectors: bool) -> Guest {
    let mut rng = Rng(seed);
    let window: Vec<u8> = (0..REACH / 4).flat_map(|_| rng.integer().to_le_bytes()).collect();
    let mut guest = Guest::new(|c| {
        c.stack()?;
        c.mov(rax, cr4)?;
        c.or(rax, 0x600)?;
        c.mov(cr4, rax)?;
        for index in 0..count {
            begin(c, vectors, &mut rng)?;
            for _ in 0..LENGTH {
                if !vectors && rng.below(8) == 0 {
                    idioms::one(c, &mut rng)?;
                } else {
                    let form = rng.pick(forms);
                    sequence::one(c, form, &mut rng)?;
                }
            }
            end(c, vectors, index)?;
        }
        c.power_off()
    });
    guest.memory.push((WINDOW - REACH, window));
    guest
}

/// Describes the first sequence whose block differs; `None` if there is none.
fn first_difference(count: u64, one: &Run, other: &Run) -> Option<String> {
    let block = |run: &Run, index: u64| {
        let mut bytes = vec![0; usize::try_from(BLOCK).unwrap()];
        run.machine
            .ram()
            .read(RESULTS + index * BLOCK, &mut bytes)
            .unwrap();
        bytes
    };
    let index = (0..count).find(|index| block(one, *index) != block(other, *index))?;
    let words = |run| {
        block(run, index)
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    let (left, right) = (words(one), words(other));
    let differing = (0..left.len()).filter(|at| left[*at] != right[*at]);
    let lines = differing.map(|at| {
        format!(
            "  word {at}: {:#x} on {}, {:#x} on {}\n",
            left[at], one.backend, right[at], other.backend
        )
    });
    Some(format!(
        "sequence {index}: words 0 to 13 are RAX, RCX, RDX, RBX, RBP to R14, 14 the flags, then XMM0 on\n{}{}",
        lines.collect::<String>(),
        listing(one, index)
    ))
}

/// The instructions of sequence `index`. A sequence lies between two loads of R15 with the address of a block.
fn listing(run: &Run, index: u64) -> String {
    let mut code = vec![0; 0x1_0000];
    run.machine.ram().read(CODE, &mut code).unwrap();
    let decoder = Decoder::with_ip(64, &code, UPPER + CODE, DecoderOptions::NONE);
    let is_end = |insn: &iced_x86::Instruction, index: u64| {
        insn.op0_register() == iced_x86::Register::R15
            && insn.immediate64() == UPPER + RESULTS + index * BLOCK
    };
    let all: Vec<_> = decoder.into_iter().collect();
    let last = all.iter().position(|insn| is_end(insn, index)).unwrap_or(0);
    let first = index
        .checked_sub(1)
        .and_then(|before| all.iter().position(|insn| is_end(insn, before)))
        .unwrap_or(0);
    all[first..last]
        .iter()
        .map(|insn| format!("  {:#x} {insn}\n", insn.ip()))
        .collect()
}

/// The memory that sequences work on.
fn window(run: &Run) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(2 * REACH).unwrap()];
    run.machine.ram().read(WINDOW - REACH, &mut bytes).unwrap();
    bytes
}

/// Describes the first of `count` sequences after which the window differs between softcpu and `backend`.
fn first_difference_in_window(count: u64, guest: &dyn Fn(u64) -> Guest, backend: &dyn Backend) -> String {
    let differing = |count: u64| {
        let soft = guest(count).run_on(&Soft::default(), &to_the_end);
        let other = guest(count).run_on(backend, &to_the_end);
        let (one, two) = (window(&soft), window(&other));
        let at = (0..one.len()).find(|at| one[*at] != two[*at])?;
        Some(format!(
            "sequence {}: {:#x} has {:#x} on {}, {:#x} on {}\n{}",
            count - 1,
            WINDOW - REACH + at as u64,
            one[at],
            soft.backend,
            two[at],
            other.backend,
            listing(&soft, count - 1)
        ))
    };
    let first = (1..=count).find_map(differing);
    first.unwrap_or_else(|| "another run has no difference in the window".into())
}

/// Runs the guest on every backend and compares the blocks, then everything else.
fn compare(seed: u64, count: u64, forms: &[Form], vectors: bool) {
    let guest = guest(seed, count, forms, vectors);
    let backends = hosts::backends();
    let runs: Vec<Run> = backends
        .into_iter()
        .map(|backend| guest.run_on(backend, &to_the_end))
        .collect();
    for run in &runs {
        assert_eq!(
            run.evidence.events,
            ["power off"],
            "seed {seed:#x}, {}: {:?}",
            run.backend,
            run.events
        );
    }
    for other in &runs[1..] {
        if let Some(difference) = first_difference(count, &runs[0], other) {
            panic!("seed {seed:#x}, {difference}");
        }
    }
    for (other, backend) in runs.iter().zip(hosts::backends()).skip(1) {
        if window(other) != window(&runs[0]) {
            let guest = |count| self::guest(seed, count, forms, vectors);
            panic!(
                "seed {seed:#x}, {}",
                first_difference_in_window(count, &guest, backend)
            );
        }
    }
    guest.check(runs);
}

/// Leaves out the forms that QEMU's TCG gets wrong, on a host that it emulates.
fn leave_out(forms: &mut Vec<Form>, what: &str, why: &str, wrong: fn(Form) -> bool) {
    if hosts::left_out_on_tcg(what, why) {
        forms.retain(|form| !wrong(*form));
    }
}

#[test]
fn integer_sequences_do_the_same() {
    let mut forms = integer_forms();
    assert!(forms.len() > 300, "{}", forms.len());
    leave_out(
        &mut forms,
        "TEST as F6 /1 and F7 /1",
        "these aliases of /0 are unknown instructions to it",
        |form| {
            matches!(
                form,
                Form::Test_rm8_imm8_F6r1
                    | Form::Test_rm16_imm16_F7r1
                    | Form::Test_rm32_imm32_F7r1
                    | Form::Test_rm64_imm32_F7r1
            )
        },
    );
    leave_out(
        &mut forms,
        "RCL and RCR of 8 and 16 bits by a constant",
        "rotated by 9 or 17 bits, or a multiple, the operand becomes 0 instead of staying as it is",
        |form| {
            matches!(
                form,
                Form::Rcl_rm8_imm8 | Form::Rcl_rm16_imm8 | Form::Rcr_rm8_imm8 | Form::Rcr_rm16_imm8
            )
        },
    );
    for round in 0..8 {
        compare(SEED + round, 60, &forms, false);
    }
}

#[test]
fn vector_sequences_do_the_same() {
    let mut forms = vector_forms();
    assert!(forms.len() > 150, "{}", forms.len());
    use Mnemonic as M;
    leave_out(
        &mut forms,
        "ADD, SUB, MUL and DIV of SSE",
        "of two NaNs the result is that with the larger significand, as on the x87, and not the first",
        |form| {
            matches!(
                form.mnemonic(),
                M::Addps
                    | M::Addpd
                    | M::Addss
                    | M::Addsd
                    | M::Subps
                    | M::Subpd
                    | M::Subss
                    | M::Subsd
                    | M::Mulps
                    | M::Mulpd
                    | M::Mulss
                    | M::Mulsd
                    | M::Divps
                    | M::Divpd
                    | M::Divss
                    | M::Divsd
            )
        },
    );
    // The architecture only bounds their errors, and processors differ. softcpu's differential tests check the bound.
    forms.retain(|form| !matches!(form.mnemonic(), M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss));
    assert!(forms.len() > 150, "{}", forms.len());
    for round in 0..2 {
        compare(SEED + round, 40, &forms, true);
    }
}

#[test]
fn a_difference_is_found_and_listed() {
    let guest = guest(SEED, 3, &integer_forms(), false);
    let [one, other] = [0, 1].map(|_| guest.run_on(&Soft::default(), &to_the_end));
    assert_eq!(first_difference(3, &one, &other), None);
    let changed = RESULTS + BLOCK + 8;
    let value = other.machine.ram().read_u64(changed).unwrap();
    other
        .machine
        .ram()
        .write(changed, &(value ^ 1).to_le_bytes())
        .unwrap();
    let text = first_difference(3, &one, &other).unwrap();
    assert!(
        text.starts_with("sequence 1:") && text.contains("word 1:"),
        "{text}"
    );
    assert!(text.lines().count() > LENGTH, "{text}");
}
