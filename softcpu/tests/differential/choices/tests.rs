//! Each choice is recognised where it applies, and nowhere else.

use iced_x86::{Decoder, DecoderOptions};

use super::*;
use crate::compare::differences;
use crate::state::{CODE, DATA_LEN, Fault, READ_ONLY};

const RIP: u64 = CODE + 0x200;
/// What the upper half of every register holds at the beginning.
const NOISE: u64 = 0x1234_5678_0000_0000;
const PAGE_FAULT: Fault = Fault {
    vector: 14,
    error: 7,
    address: READ_ONLY,
};

/// The instruction with this count in ECX, and the outcome of an instruction that did nothing at all.
fn case(bytes: &[u8], count: u64) -> (Case, Outcome) {
    let insn = Decoder::with_ip(64, bytes, RIP, DecoderOptions::NONE).decode();
    assert_eq!(insn.len(), bytes.len(), "{bytes:02x?}");
    let mut state = State::ZERO;
    state.gpr = [NOISE | READ_ONLY; 16];
    state.gpr[RCX] = NOISE | count;
    state.rflags = 0x202;
    state.rip = RIP;
    let data = Box::new([0xaa; DATA_LEN]);
    let outcome = Outcome {
        state: state.clone(),
        fault: None,
        data: data.clone(),
    };
    let case = Case {
        bytes: bytes.to_vec(),
        insn,
        state,
        data,
        taken: 0,
        segment_bases: [0; 2],
    };
    (case, outcome)
}

/// Whether the comparison finds a difference if `change` is applied to what the host leaves.
fn told(case: &Case, soft: &Outcome, change: impl FnOnce(&mut Outcome)) -> bool {
    let mut native = soft.clone();
    change(&mut native);
    !differences(case, &native, soft).is_empty()
}

fn clears(registers: &[usize]) -> impl FnOnce(&mut Outcome) {
    move |native| registers.iter().for_each(|&r| native.state.gpr[r] &= 0xffff_ffff)
}

const REP_MOVSB: [u8; 3] = [0x67, 0xf3, 0xa4];
const REP_STOSQ: [u8; 4] = [0x67, 0xf3, 0x48, 0xab];
const REP_LODSB: [u8; 3] = [0x67, 0xf3, 0xac];
const REPE_CMPSB: [u8; 3] = [0x67, 0xf3, 0xa6];
const REPNE_SCASB: [u8; 3] = [0x67, 0xf2, 0xae];

#[test]
fn upper_halves_may_be_cleared_if_ecx_is_zero() {
    let (movs, outcome) = case(&REP_MOVSB, 0);
    assert!(!told(&movs, &outcome, clears(&[RCX, RSI, RDI])));
    let (stos, outcome) = case(&REP_STOSQ, 0);
    assert!(!told(&stos, &outcome, clears(&[RCX, RDI])));
    assert!(
        told(&stos, &outcome, clears(&[RSI])),
        "STOS has nothing to do with RSI"
    );
    for bytes in [REP_LODSB, REPE_CMPSB, REPNE_SCASB] {
        let (case, outcome) = case(&bytes, 0);
        assert!(!told(&case, &outcome, clears(&[RCX])));
        assert!(told(&case, &outcome, clears(&[RSI])) && told(&case, &outcome, clears(&[RDI])));
    }
}

#[test]
fn lower_halves_and_other_registers_count_even_so() {
    let (case, outcome) = case(&REP_MOVSB, 0);
    for register in (0..16).filter(|r| ![RCX, RSI, RDI].contains(r)) {
        assert!(told(&case, &outcome, clears(&[register])), "{register}");
    }
    for register in [RCX, RSI, RDI] {
        let wrong = |value: u64| {
            assert!(
                told(&case, &outcome, |native| native.state.gpr[register] = value),
                "{register} {value:#x}"
            );
        };
        wrong(low(outcome.state.gpr[register]) ^ 1);
        wrong(outcome.state.gpr[register] ^ 1);
        // Neither kept nor cleared.
        wrong(outcome.state.gpr[register] ^ 1 << 40);
        let mut ours = outcome.clone();
        ours.state.gpr[register] ^= 1 << 40;
        assert!(
            told(&case, &ours, clears(&[register])),
            "softcpu keeps the upper half"
        );
    }
}

#[test]
fn upper_halves_count_where_an_iteration_is_executed_or_addresses_have_64_bits() {
    // One iteration: softcpu must have cleared them itself.
    let (one, mut outcome) = case(&REP_MOVSB, 1);
    outcome.state.gpr[RCX] = NOISE;
    assert!(told(&one, &outcome, clears(&[RCX])));
    let (wide, mut outcome) = case(&REP_MOVSB[1..], 0);
    assert!(told(&wide, &outcome, clears(&[RCX])));
    outcome.fault = Some(PAGE_FAULT);
    assert!(told(&wide, &outcome, clears(&[RDI])));
    let (single, outcome) = case(&[0x67, 0xa4], 0);
    assert!(told(&single, &outcome, clears(&[RCX])));
}

#[test]
fn upper_halves_may_be_cleared_if_the_first_iteration_faults() {
    for (bytes, registers) in [
        (&REP_MOVSB[..], &[RCX, RSI, RDI][..]),
        (&REP_STOSQ, &[RCX, RDI]),
        (&REP_LODSB, &[RCX]),
        (&REPE_CMPSB, &[RCX]),
        (&REPNE_SCASB, &[RCX]),
    ] {
        let (case, mut outcome) = case(bytes, 3);
        assert!(told(&case, &outcome, clears(registers)), "no fault");
        outcome.fault = Some(PAGE_FAULT);
        assert!(!told(&case, &outcome, clears(registers)));
        for other in [RSI, RDI].iter().filter(|r| !registers.contains(r)) {
            assert!(told(&case, &outcome, clears(&[*other])));
        }
        outcome.state.gpr[RCX] -= 1;
        assert!(told(&case, &outcome, clears(registers)), "the second one");
    }
}

/// A repeated instruction that faulted after some of 5 iterations; softcpu has flags of its own.
fn faulted(bytes: &[u8], iterations: u64) -> (Case, Outcome) {
    let (mut case, mut outcome) = case(bytes, 5);
    case.state.rflags |= CF | OF;
    outcome.state.gpr[RCX] -= iterations;
    outcome.state.rflags |= ZF | PF;
    outcome.fault = Some(PAGE_FAULT);
    (case, outcome)
}

#[test]
fn flags_may_be_restored_if_a_later_comparison_faults() {
    let restored = |case: &Case| {
        let flags = case.state.rflags;
        move |native: &mut Outcome| native.state.rflags = flags
    };
    for bytes in [
        &REPE_CMPSB[..],
        &REPE_CMPSB[1..],
        &REPNE_SCASB[..],
        &REPNE_SCASB[1..],
    ] {
        let (case, outcome) = faulted(bytes, 2);
        assert!(!told(&case, &outcome, restored(&case)));
        let third = |flag: u64| {
            let flags = case.state.rflags ^ flag;
            assert!(
                told(&case, &outcome, |native| native.state.rflags = flags),
                "{flag:#x}"
            );
        };
        [CF, PF, AF, ZF, SF, OF, softcpu::flags::DF, 1 << 21]
            .into_iter()
            .for_each(third);
        let mut whole = outcome.clone();
        whole.fault = None;
        assert!(told(&case, &whole, restored(&case)), "no fault");
        let (case, outcome) = faulted(bytes, 0);
        assert!(told(&case, &outcome, restored(&case)), "the first comparison");
    }
    let (case, outcome) = faulted(&REP_MOVSB, 2);
    assert!(told(&case, &outcome, restored(&case)), "MOVS does not compare");
}

/// FSTP dword ptr \[rdi\] to the read-only page with this control word: softcpu's outcome, and an Intel processor's
/// with this status word.
fn x87_store(bytes: &[u8], control: u16, status: u16) -> (Case, Outcome, Outcome) {
    let (mut case, mut soft) = case(bytes, 0);
    case.state.gpr[RDI] = READ_ONLY;
    case.state.fx[fx::FCW..fx::FCW + 2].copy_from_slice(&control.to_le_bytes());
    soft.state = case.state.clone();
    let mut native = soft.clone();
    soft.fault = Some(PAGE_FAULT);
    native.state.rip = case.insn.next_ip();
    native.state.fx[fx::FSW..fx::FSW + 2].copy_from_slice(&status.to_le_bytes());
    (case, native, soft)
}

const FSTP: [u8; 2] = [0xd9, 0x1f];
const FIST: [u8; 2] = [0xdf, 0x17];
const FSTP80: [u8; 2] = [0xdb, 0x3f];

#[test]
fn a_store_that_an_x87_exception_prevents_need_not_fault() {
    let same = |(case, native, soft): (Case, Outcome, Outcome)| differences(&case, &native, &soft).is_empty();
    for bytes in [FSTP, FIST, FSTP80] {
        assert!(same(x87_store(&bytes, 0x37e, 0x8081)), "invalid");
        assert!(same(x87_store(&bytes, 0x37e, 0x80c1)), "empty register");
        assert!(!same(x87_store(&bytes, 0x37f, 0x0001)), "masked");
        assert!(
            !same(x87_store(&bytes, 0x35f, 0x80a0)),
            "a loss of precision does not prevent it"
        );
        assert!(!same(x87_store(&bytes, 0x37e, 0x0001)), "no summary bit");
        assert!(!same(x87_store(&bytes, 0x37e, 0x8881)), "the register was popped");
    }
    assert!(same(x87_store(&FSTP, 0x377, 0x8088)), "overflow");
    assert!(same(x87_store(&FSTP, 0x36f, 0x8290)), "underflow");
    assert!(
        !same(x87_store(&[0x89, 0x07], 0x37e, 0x8081)),
        "not an x87 instruction"
    );
    assert!(!same(x87_store(&[0xd9, 0x07], 0x37e, 0x8081)), "a load");
}

#[test]
fn a_store_that_did_not_fault_must_leave_everything_else() {
    let different = |change: &dyn Fn(&mut Outcome, &mut Outcome)| {
        let (case, mut native, mut soft) = x87_store(&FSTP, 0x37e, 0x8081);
        change(&mut native, &mut soft);
        assert!(!differences(&case, &native, &soft).is_empty());
    };
    different(&|native, _| native.data[0] ^= 1);
    different(&|native, _| native.state.gpr[0] ^= 1);
    different(&|native, _| native.state.fx[fx::ST] ^= 1);
    different(&|native, _| native.state.fx[4] ^= 1);
    different(&|native, _| native.state.rip += 1);
    different(&|_, soft| soft.state.rip += 1);
    different(&|_, soft| {
        soft.fault = Some(Fault {
            vector: 13,
            error: 0,
            address: 0,
        })
    });
    different(&|_, soft| {
        soft.fault = Some(Fault {
            address: READ_ONLY + 4,
            ..PAGE_FAULT
        })
    });
}

#[test]
fn a_call_that_faults_may_have_written_the_return_address() {
    const PROTECTION: Fault = Fault {
        vector: 13,
        error: 0,
        address: 0,
    };
    let called = |bytes: &[u8]| {
        let (mut case, mut outcome) = case(bytes, 0);
        case.state.gpr[RSP] = DATA + 0x100;
        outcome.state.gpr[RSP] = DATA + 0x100;
        outcome.fault = Some(PROTECTION);
        (case, outcome)
    };
    let (call, outcome) = called(&[0xff, 0x17]);
    let written = |address: u64| {
        move |native: &mut Outcome| native.data[0xf8..0x100].copy_from_slice(&address.to_le_bytes())
    };
    assert!(!told(&call, &outcome, written(RIP + 2)));
    assert!(told(&call, &outcome, written(RIP + 3)), "another address");
    assert!(told(&call, &outcome, |native| native.data[0x100] ^= 1), "at RSP");
    assert!(
        told(&call, &outcome, |native| native.data[0xf7] ^= 1),
        "below the return address"
    );
    let mut ours = outcome.clone();
    ours.data[0xf8] ^= 1;
    assert!(told(&call, &ours, written(RIP + 2)), "softcpu writes nothing");
    let mut ours = outcome.clone();
    ours.fault = None;
    assert!(told(&call, &ours, written(RIP + 2)), "no fault");
    let (jump, outcome) = called(&[0xff, 0x27]);
    assert!(told(&jump, &outcome, written(RIP + 2)), "JMP");
    // A stack outside of scratch memory.
    let (mut call, outcome) = called(&[0xff, 0x17]);
    for stack in [0, DATA + 4, DATA + DATA_LEN as u64 + 4] {
        call.state.gpr[RSP] = stack;
        assert!(told(&call, &outcome, written(RIP + 2)), "{stack:#x}");
    }
}

#[test]
fn half_of_an_80_bit_store_may_be_written_when_the_other_half_faults() {
    const AT: usize = DATA_LEN - 8;
    let store = |bytes: &[u8], tags: u8| {
        let (mut case, mut outcome) = case(bytes, 0);
        case.state.gpr[RDI] = READ_ONLY - 8;
        // TOP is 2.
        case.state.fx[fx::FSW + 1] = 2 << 3;
        case.state.fx[fx::FTW] = tags;
        case.state.fx[fx::ST..fx::ST + 10].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        outcome.state = case.state.clone();
        outcome.fault = Some(PAGE_FAULT);
        (case, outcome)
    };
    let written = |bytes: [u8; 8]| move |native: &mut Outcome| native.data[AT..].copy_from_slice(&bytes);
    const FULL: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
    const EMPTY: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 0xc0];
    let (fstp, outcome) = store(&FSTP80, 1 << 2);
    assert!(!told(&fstp, &outcome, written(FULL)));
    assert!(told(&fstp, &outcome, written(EMPTY)) && told(&fstp, &outcome, written([0; 8])));
    assert!(
        told(&fstp, &outcome, |native| native.data[AT - 1] ^= 1),
        "below the operand"
    );
    let mut ours = outcome.clone();
    ours.data[AT] ^= 1;
    assert!(told(&fstp, &ours, written(FULL)), "softcpu writes nothing");
    let mut ours = outcome;
    ours.fault = None;
    assert!(told(&fstp, &ours, written(FULL)), "no fault");
    let (fstp, outcome) = store(&FSTP80, !(1 << 2));
    assert!(!told(&fstp, &outcome, written(EMPTY)));
    assert!(told(&fstp, &outcome, written(FULL)));
    let (fbstp, outcome) = store(&[0xdf, 0x37], 1 << 2);
    assert!(!told(&fbstp, &outcome, written([0x12, 0, 0, 0, 0, 0, 0, 0x99])));
    assert!(
        told(&fbstp, &outcome, written([0x1a, 0, 0, 0, 0, 0, 0, 0])),
        "no digits"
    );
    // FSTP qword ptr [rdi].
    let (other, outcome) = store(&[0xdd, 0x1f], 1 << 2);
    assert!(told(&other, &outcome, written(FULL)), "64 bits are one access");
}

#[test]
fn an_mmx_store_that_faults_may_have_set_top() {
    let store = |bytes: &[u8]| {
        let (mut case, mut outcome) = case(bytes, 0);
        // TOP is 2, and the registers are told apart by their first bytes.
        case.state.fx[fx::FSW + 1] = 2 << 3;
        for st in 0..8u8 {
            case.state.fx[fx::ST + 16 * usize::from(st)] = st;
        }
        outcome.state = case.state.clone();
        outcome.fault = Some(PAGE_FAULT);
        (case, outcome)
    };
    let turned = |native: &mut Outcome| {
        native.state.fx[fx::FSW + 1] = 0;
        native.state.fx[fx::ST..fx::XMM].rotate_right(32);
    };
    // MOVQ [rdi], mm0.
    let (movq, outcome) = store(&[0x0f, 0x7f, 0x07]);
    assert!(!told(&movq, &outcome, turned));
    assert!(
        told(&movq, &outcome, |native| native.state.fx[fx::FSW + 1] = 0),
        "the stack was not turned"
    );
    assert!(
        told(&movq, &outcome, |native| {
            turned(native);
            native.state.fx[fx::FTW] ^= 1;
        }),
        "the tags"
    );
    let mut ours = outcome.clone();
    ours.fault = None;
    assert!(told(&movq, &ours, turned), "no fault");
    // FST qword ptr [rdi].
    let (other, outcome) = store(&[0xdd, 0x17]);
    assert!(told(&other, &outcome, turned), "no MMX operand");
}

/// A case of a two-byte x87 instruction without memory, and what it leaves, with this status word.
fn x87_registers(bytes: &[u8], before: u16, after: u16) -> (Case, Outcome) {
    let (mut case, mut outcome) = case(bytes, 0);
    case.state.fx[fx::FSW..fx::FSW + 2].copy_from_slice(&before.to_le_bytes());
    outcome.state = case.state.clone();
    outcome.state.fx[fx::FSW..fx::FSW + 2].copy_from_slice(&after.to_le_bytes());
    (case, outcome)
}

fn status(value: u16) -> impl Fn(&mut Outcome) {
    move |native| native.state.fx[fx::FSW..fx::FSW + 2].copy_from_slice(&value.to_le_bytes())
}

#[test]
fn c1_of_a_comparison_is_kept_or_cleared() {
    // FCOMI ST(0), ST(1), and FADD.
    let (fcomi, outcome) = x87_registers(&[0xdb, 0xf1], 0x200, 0);
    assert!(!told(&fcomi, &outcome, status(0x200)));
    assert!(told(&fcomi, &outcome, status(0x400)), "C2");
    let (fcomi, outcome) = x87_registers(&[0xdb, 0xf1], 0, 0);
    assert!(told(&fcomi, &outcome, status(0x200)), "set without reason");
    let (fadd, outcome) = x87_registers(&[0xd8, 0xc1], 0x200, 0);
    assert!(told(&fadd, &outcome, status(0x200)));
}

#[test]
fn a_function_may_call_an_exact_result_inexact() {
    // FYL2X and FSQRT.
    let (function, outcome) = x87_registers(&[0xd9, 0xf1], 0, 0);
    assert!(!told(&function, &outcome, status(0x20)));
    assert!(!told(&function, &outcome, status(0x30)));
    assert!(told(&function, &outcome, status(0x21)), "another exception");
    let (function, outcome) = x87_registers(&[0xd9, 0xf1], 0, 0x20);
    assert!(
        told(&function, &outcome, status(0)),
        "an inexact result called exact"
    );
    let (root, outcome) = x87_registers(&[0xd9, 0xfa], 0, 0);
    assert!(told(&root, &outcome, status(0x20)));
}

#[test]
fn only_amds_own_bit_of_mxcsr_may_be_loaded_or_refused() {
    // LDMXCSR [RAX], and FLD of the same.
    let refused = |bytes| {
        let (case, mut outcome) = case(bytes, 0);
        outcome.fault = Some(Fault {
            vector: 13,
            error: 0,
            address: 0,
        });
        (case, outcome)
    };
    let loads = |value| {
        move |native: &mut Outcome| {
            native.fault = None;
            native.state.rip += 3;
            native.state.set_mxcsr(value);
        }
    };
    let (ldmxcsr, outcome) = refused(&[0x0f, 0xae, 0x10]);
    assert!(!told(&ldmxcsr, &outcome, loads(0x2_3cb2)));
    assert!(told(&ldmxcsr, &outcome, loads(0x3cb2)), "nothing to refuse");
    assert!(told(&ldmxcsr, &outcome, loads(0x3_3cb2)), "another bit");
    let (other, outcome) = refused(&[0x48, 0x8b, 0x00]);
    assert!(told(&other, &outcome, loads(0x2_3cb2)));
}
