//! Translated code does what the interpreter does, whatever the program is and wherever it is cut.

mod common;

#[path = "differential/fixup.rs"]
#[allow(dead_code)] // the differential test uses more of what it shares
mod fixup;
#[path = "differential/generate.rs"]
#[allow(dead_code)]
mod generate;
#[path = "differential/rng.rs"]
#[allow(dead_code)]
mod rng;
#[path = "differential/state.rs"]
#[allow(dead_code)]
mod state;

use common::busy::{self, PIECES, assert_same, drive};
use common::{CODE, Guest};
use iced_x86::{
    Code, Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind,
    Register,
};
use proptest::prelude::*;
use rng::Rng;
use softcpu::{Exit, NoBus, Translation};

const WAYS: [Translation; 3] = [Translation::Hot, Translation::Eager, Translation::Single];

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_cannot_tell_whether_it_is_translated(
        pieces in prop::collection::vec(0..PIECES, 1..60),
        interrupts in prop::collection::vec(1..600u64, 0..20),
        cuts in prop::collection::vec(prop_oneof![Just(1u64), 1..8u64, 1..200u64], 1..20),
    ) {
        let mut interrupts = interrupts;
        interrupts.sort_unstable();
        let mut plain = busy::guest(&pieces);
        plain.cpu.translate(Translation::Off);
        let trace = drive(&mut plain, &interrupts, 3000, &[], |_| {});
        for way in WAYS {
            for cuts in [&[][..], &cuts] {
                let mut guest = busy::guest(&pieces);
                guest.cpu.translate(way);
                prop_assert_eq!(&trace, &drive(&mut guest, &interrupts, 3000, cuts, |_| {}));
                assert_same(&plain, &guest, &format!("{way:?}"));
            }
        }
    }
}

/// What random programs are made of.
const MNEMONICS: &[M] = &[
    M::Add,
    M::Or,
    M::Adc,
    M::Sbb,
    M::And,
    M::Sub,
    M::Xor,
    M::Cmp,
    M::Test,
    M::Mov,
    M::Movzx,
    M::Movsx,
    M::Movsxd,
    M::Lea,
    M::Inc,
    M::Dec,
    M::Neg,
    M::Not,
    M::Shl,
    M::Shr,
    M::Sar,
    M::Rol,
    M::Ror,
    M::Rcl,
    M::Shld,
    M::Imul,
    M::Mul,
    M::Div,
    M::Bt,
    M::Bts,
    M::Btr,
    M::Btc,
    M::Bsf,
    M::Bsr,
    M::Bswap,
    M::Xchg,
    M::Cmpxchg,
    M::Xadd,
    M::Push,
    M::Pop,
    M::Cdq,
    M::Cqo,
    M::Cdqe,
    M::Cwde,
    M::Cbw,
    M::Lahf,
    M::Sahf,
    M::Stc,
    M::Cmc,
    M::Sete,
    M::Setl,
    M::Setbe,
    M::Seto,
    M::Setnp,
    M::Cmove,
    M::Cmovl,
    M::Cmovbe,
    M::Cmovo,
    M::Cmovs,
];

const DATA: u64 = 0x9_0000;
/// Displacement of the counter that ends the loop.
const COUNTER: u64 = 0x800;
/// How often a program's loop runs.
const ROUNDS: i32 = 40;

fn codes() -> Vec<Code> {
    Code::values()
        .filter(|code| {
            let op_code = code.op_code();
            MNEMONICS.contains(&code.mnemonic())
                && op_code.mode64()
                && code.flow_control() == FlowControl::Next
                && (0..code.op_code().op_count()).all(|i| {
                    let kind = format!("{:?}", op_code.op_kind(i));
                    !["moffs", "seg", "cr_", "dr_", "xmm", "sreg"]
                        .iter()
                        .any(|other| kind.to_lowercase().contains(other))
                })
        })
        .collect()
}

/// A random instruction that keeps RBX, reaches memory through it alone, and moves RSP by PUSH and POP only.
fn instruction(code: Code, rng: &mut Rng, info: &mut InstructionInfoFactory) -> Option<Instruction> {
    let mut insn = generate::case(code, rng, 0, 0)?.insn;
    if insn.code() != code {
        return None;
    }
    if (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory) {
        let far_bit = matches!(insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
            && insn.op1_kind() == OpKind::Register;
        if far_bit {
            return None;
        }
        insn.set_segment_prefix(Register::None);
        insn.set_memory_index(Register::None);
        // Sometimes relative to RIP, sometimes across the edge of a page.
        let displacement = if rng.one_in(8) {
            0xffd
        } else {
            rng.below(0x100) * 4 + rng.below(2)
        };
        if rng.one_in(6) {
            insn.set_memory_base(Register::RIP);
            insn.set_memory_displacement64(DATA + displacement);
            insn.set_memory_displ_size(8);
        } else {
            insn.set_memory_base(Register::RBX);
            insn.set_memory_displacement64(displacement);
            insn.set_memory_displ_size(4);
        }
    } else if insn.has_lock_prefix() {
        return None;
    }
    let stack = matches!(insn.mnemonic(), M::Push | M::Pop);
    let info = info.info(&insn);
    let kept = info.used_registers().iter().all(|used| {
        let writes = !matches!(
            used.access(),
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
        );
        let register = used.register().full_register();
        !(writes && (register == Register::RBX || register == Register::RSP && !stack))
    });
    (kept && !(stack && insn.op0_register().full_register() == Register::RSP)).then_some(insn)
}

/// A loop over random instructions and branches over them.
fn program(rng: &mut Rng, codes: &[Code]) -> Vec<u8> {
    let mut info = InstructionInfoFactory::new();
    let mut bytes: Vec<u8> = Vec::new();
    let length = 3 + rng.below(40);
    for _ in 0..length {
        let code = rng.pick(codes);
        let Some(insn) = instruction(code, rng, &mut info) else {
            continue;
        };
        let skips = rng.one_in(4);
        let at = CODE + bytes.len() as u64 + if skips { 2 } else { 0 };
        let mut encoder = Encoder::new(64);
        if encoder.encode(&insn, at).is_err() {
            continue;
        }
        let encoded = encoder.take_buffer();
        if skips {
            let condition = u8::try_from(rng.below(16)).unwrap();
            bytes.extend([0x70 | condition, u8::try_from(encoded.len()).unwrap()]);
        }
        bytes.extend(encoded);
    }
    // inc qword [rbx+COUNTER]; cmp qword [rbx+COUNTER], ROUNDS; jb start; hlt
    let counter = u32::try_from(COUNTER).unwrap().to_le_bytes();
    bytes.extend([0x48, 0xff, 0x83]);
    bytes.extend(counter);
    bytes.extend([0x48, 0x83, 0xbb]);
    bytes.extend(counter);
    bytes.push(u8::try_from(ROUNDS).unwrap());
    let back = -i32::try_from(bytes.len() + 6).unwrap();
    bytes.extend([0x0f, 0x82]);
    bytes.extend(back.to_le_bytes());
    bytes.push(0xf4);
    bytes
}

fn guest(bytes: &[u8], rng: &mut Rng, way: Translation) -> Guest {
    let mut guest = Guest::new(|a| a.nop().unwrap());
    assert!(guest.ram.write(CODE, bytes));
    guest.cpu.translate(way);
    guest.set(|state| {
        state.gpr.fill_with(|| rng.integer());
        state.gpr[3] = DATA;
        state.gpr[4] = common::STACK;
        state.rflags = rng.next() & 0x8d5 | 2;
    });
    guest
}

/// Runs to the end, cut after random numbers of instructions if there are any.
fn run(guest: &mut Guest, mut cut: impl FnMut() -> u64) -> (Exit, u64) {
    for _ in 0..100_000 {
        let until = guest.cpu.now().saturating_add(cut());
        match guest.cpu.run(&mut guest.ram, &mut NoBus, until) {
            Exit::Deadline => {}
            exit => return (exit, guest.cpu.now()),
        }
    }
    panic!("the program does not end");
}

#[test]
fn random_programs_do_the_same_translated() {
    let programs: u64 =
        std::env::var("BATON_PROGRAMS").map_or(300, |text| text.parse().expect("a number of programs"));
    let codes = codes();
    assert!(codes.len() > 200, "{}", codes.len());
    let (mut to_the_end, mut executed, mut translated) = (0, 0, 0);
    for number in 0..programs {
        let mut rng = Rng::for_case(0x7472_616e, number);
        let bytes = program(&mut rng, &codes);
        let start = rng.next();
        let with = |way| guest(&bytes, &mut Rng::for_case(start, 0), way);
        let mut plain = with(Translation::Off);
        let end = run(&mut plain, || 1 << 40);
        executed += end.1;
        to_the_end += u32::from(plain.halted_in().is_none());
        for way in WAYS {
            let mut whole = with(way);
            let what = format!("program {number}, {way:?}: {bytes:02x?}");
            assert_eq!(run(&mut whole, || 1 << 40), end, "{what}");
            assert_same(&plain, &whole, &what);
            if way == Translation::Hot {
                translated += whole.cpu.translated();
            }
            let mut cut = with(way);
            let mut cuts = Rng::for_case(start, 1);
            assert_eq!(run(&mut cut, || 1 + cuts.below(70)), end, "{what}, cut");
            assert_same(&plain, &cut, &format!("{what}, cut"));
        }
    }
    println!(
        "{to_the_end} of {programs} programs to the end, {translated} of {executed} instructions translated"
    );
    assert!(
        u64::from(to_the_end) > programs / 2,
        "{to_the_end} of {programs} ended well"
    );
    assert!(
        translated > executed / 10,
        "{translated} of {executed} were translated"
    );
}

#[test]
fn code_of_another_processor_is_used_only_where_ram_holds_the_same() {
    let codes = codes();
    let (mut translated, mut changed) = (0, 0);
    for number in 0..150 {
        let mut rng = Rng::for_case(0x7761_726d, number);
        let first = program(&mut rng, &codes);
        // The same program again, with another at its place, or with one byte changed.
        let mut second = match number % 3 {
            0 => first.clone(),
            1 => program(&mut rng, &codes),
            _ => first.clone(),
        };
        if number % 3 == 2 {
            let at = usize::try_from(rng.below(first.len() as u64)).unwrap();
            second[at] ^= 1 << rng.below(8);
        }
        changed += u32::from(first != second);
        let mut donor = guest(&first, &mut Rng::for_case(number, 0), Translation::Eager);
        run_or_give_up(&mut donor);
        let code = donor.cpu.take_code(&donor.ram);
        assert_eq!(donor.cpu.translated(), 0);

        let mut plain = guest(&second, &mut Rng::for_case(number, 1), Translation::Off);
        let end = run_or_give_up(&mut plain);
        let mut warm = guest(&second, &mut Rng::for_case(number, 1), Translation::Eager);
        warm.cpu.give_code(code);
        assert_eq!(run_or_give_up(&mut warm), end, "program {number}");
        assert_same(&plain, &warm, &format!("program {number}"));
        translated += warm.cpu.translated();
    }
    assert!(translated > 10_000 && changed > 80, "{translated}, {changed}");
}

/// Runs to the end, or for as long as a program takes that has one.
fn run_or_give_up(guest: &mut Guest) -> (Exit, u64) {
    let exit = guest.cpu.run(&mut guest.ram, &mut NoBus, 20_000);
    (exit, guest.cpu.now())
}

#[test]
fn a_wrong_translation_would_be_noticed() {
    // The negative control of the comparison: with another register to begin with, most programs end otherwise.
    let codes = codes();
    let differ = (0..50u64).filter(|number| {
        let mut rng = Rng::for_case(0x7472_616e, *number);
        let bytes = program(&mut rng, &codes);
        let mut one = guest(&bytes, &mut Rng::for_case(*number, 0), Translation::Hot);
        let mut other = guest(&bytes, &mut Rng::for_case(*number, 0), Translation::Hot);
        other.set(|state| state.gpr[0] ^= 1);
        let ends = (run(&mut one, || 1 << 40), run(&mut other, || 1 << 40));
        ends.0 != ends.1 || one.cpu.registers() != other.cpu.registers()
    });
    let differ = differ.count();
    assert!(differ > 15, "{differ} of 50");
}
