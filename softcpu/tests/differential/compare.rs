//! Compares the two outcomes, but for what the architecture leaves undefined or open.

use std::fmt::Write as _;

use iced_x86::{Instruction, Mnemonic, OpKind};
use softcpu::flags::{AF, CF, OF, PF, RF, SF, ZF};

use crate::generate::Case;
use crate::state::{DATA, Fault, Outcome, State, fx};

/// Flags that an instruction leaves undefined whatever its operands are (SDM volume 2, each instruction's "Flags
/// Affected").
pub const UNDEFINED_FLAGS: &[(&[Mnemonic], u64)] = &[
    (&[Mnemonic::And, Mnemonic::Or, Mnemonic::Xor, Mnemonic::Test], AF),
    (&[Mnemonic::Mul, Mnemonic::Imul], SF | ZF | AF | PF),
    (&[Mnemonic::Div, Mnemonic::Idiv], CF | OF | SF | ZF | AF | PF),
    (&[Mnemonic::Bsf, Mnemonic::Bsr], CF | OF | SF | AF | PF),
    (
        &[Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc],
        OF | SF | AF | PF,
    ),
];

/// Flags that shifts and rotates leave undefined when the masked count is not 0.
pub const UNDEFINED_AFTER_SHIFT: &[(&[Mnemonic], u64)] = &[(
    &[
        Mnemonic::Shl,
        Mnemonic::Sal,
        Mnemonic::Shr,
        Mnemonic::Sar,
        Mnemonic::Shld,
        Mnemonic::Shrd,
    ],
    AF,
)];

/// Instructions whose OF is undefined when the masked count is above 1.
pub const OF_UNDEFINED_ABOVE_ONE: &[Mnemonic] = &[
    Mnemonic::Shl,
    Mnemonic::Sal,
    Mnemonic::Shr,
    Mnemonic::Sar,
    Mnemonic::Rol,
    Mnemonic::Ror,
    Mnemonic::Rcl,
    Mnemonic::Rcr,
    Mnemonic::Shld,
    Mnemonic::Shrd,
];

/// Where translated code differs from the interpreter, in words; empty if nowhere.
#[allow(dead_code)] // not every test has both
pub fn translation(interpreted: &Outcome, translated: &Outcome) -> String {
    if interpreted == translated {
        return String::new();
    }
    let mut out = String::from("  translated code differs from the interpreter\n");
    let both = [interpreted, translated];
    for (number, (one, other)) in interpreted
        .state
        .gpr
        .iter()
        .zip(&translated.state.gpr)
        .enumerate()
    {
        if one != other {
            let _ = writeln!(out, "  register {number}: {one:#x}, translated {other:#x}");
        }
    }
    let [one, other] = both.map(|outcome| (outcome.state.rflags, outcome.state.rip, outcome.fault));
    let _ = writeln!(out, "  RFLAGS, RIP, fault: {one:x?}, translated {other:x?}");
    if interpreted.data != translated.data {
        out.push_str("  memory differs\n");
    }
    out
}

/// Flags that are undefined after this instruction from this state.
fn undefined_flags(insn: &Instruction, state: &State) -> u64 {
    let listed = |table: &[(&[Mnemonic], u64)]| {
        table
            .iter()
            .filter(|(mnemonics, _)| mnemonics.contains(&insn.mnemonic()))
            .fold(0, |mask, (_, flags)| mask | flags)
    };
    let mut mask = listed(UNDEFINED_FLAGS);
    let Some((count, bits)) = shift_count(insn, state) else {
        return mask;
    };
    if count == 0 {
        return mask;
    }
    mask |= listed(UNDEFINED_AFTER_SHIFT);
    if count > 1 && OF_UNDEFINED_ABOVE_ONE.contains(&insn.mnemonic()) {
        mask |= OF;
    }
    // CF holds the last bit shifted out, which no longer exists beyond the operand's width.
    let logical = matches!(insn.mnemonic(), Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr);
    if logical && count > bits {
        mask |= CF;
    }
    if beyond_width(insn, count, bits) {
        mask |= CF | OF | SF | ZF | AF | PF;
    }
    mask
}

/// SHLD and SHRD of 16-bit operands by more than 16: result and flags are undefined.
fn beyond_width(insn: &Instruction, count: u64, bits: u64) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && count > bits
}

/// The masked count and the operand width in bits of a shift or rotate.
fn shift_count(insn: &Instruction, state: &State) -> Option<(u64, u64)> {
    if !OF_UNDEFINED_ABOVE_ONE.contains(&insn.mnemonic()) {
        return None;
    }
    let bytes = if insn.op0_kind() == OpKind::Register {
        insn.op0_register().size()
    } else {
        insn.memory_size().size()
    };
    let last = insn.op_count() - 1;
    let raw = match insn.op_kind(last) {
        OpKind::Register => state.gpr[1],
        _ => insn.immediate(last),
    };
    let mask = if bytes == 8 { 0x3f } else { 0x1f };
    Some((raw & mask, 8 * bytes as u64))
}

/// Whether the destination itself is undefined.
fn undefined_result(insn: &Instruction, state: &State) -> bool {
    let beyond = shift_count(insn, state).is_some_and(|(count, bits)| beyond_width(insn, count, bits));
    beyond || (insn.mnemonic() == Mnemonic::Bswap && insn.op0_register().size() == 2)
}

/// Differences between the two outcomes, in words; empty when there are none that the manuals do not allow.
pub fn differences(case: &Case, native: &Outcome, soft: &Outcome) -> String {
    let found = all_differences(case, native, soft);
    if found.is_empty() {
        return found;
    }
    all_differences(case, &crate::choices::settled(case, native, soft), soft)
}

/// The same, before what is in [`crate::choices`] is taken out.
fn all_differences(case: &Case, native: &Outcome, soft: &Outcome) -> String {
    let mut text = String::new();
    if !same_fault(&case.insn, native.fault, soft.fault) {
        let _ = writeln!(
            text,
            "  fault: native {:x?}, softcpu {:x?}",
            native.fault, soft.fault
        );
        return text;
    }
    let skip_result = undefined_result(&case.insn, &case.state);
    if native.state.rip != soft.state.rip {
        let _ = writeln!(
            text,
            "  rip: native {:#x}, softcpu {:#x}",
            native.state.rip, soft.state.rip
        );
    }
    for (n, name) in NAMES.iter().enumerate() {
        let (a, b) = (native.state.gpr[n], soft.state.gpr[n]);
        let destination = crate::generate::number(case.insn.op0_register()) == Some(n);
        if a != b && !(skip_result && destination) {
            let _ = writeln!(text, "  {name}: native {a:#018x}, softcpu {b:#018x}");
        }
    }
    // RF is what a fault's frame and POPF differ in by design of the signal frame.
    let mask = !(undefined_flags(&case.insn, &case.state) | RF);
    if (native.state.rflags ^ soft.state.rflags) & mask != 0 {
        let (a, b) = (native.state.rflags, soft.state.rflags);
        let _ = writeln!(
            text,
            "  rflags: native {a:#x}, softcpu {b:#x}, compared {:#x}",
            mask & 0x3f_ffff
        );
    }
    extended_state(case, native, soft, &mut text);
    if !skip_result && native.data != soft.data {
        memory(case, native, soft, &mut text);
    }
    text
}

/// The same exception. Where an operand spans two pages that both fault, which one is told first is the processor's
/// choice for operands of several accesses (there only the vector counts) and for the two operands of CMPS (there not
/// the address).
fn same_fault(insn: &Instruction, native: Option<Fault>, soft: Option<Fault>) -> bool {
    let (Some(a), Some(b)) = (native, soft) else {
        return native == soft;
    };
    let environment = matches!(insn.mnemonic(), Mnemonic::Fnstenv | Mnemonic::Fldenv);
    let large = environment || insn.memory_size().size() > 16;
    let compares = matches!(
        insn.mnemonic(),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
    );
    match a.vector {
        14 if large => a.vector == b.vector,
        14 if compares => (a.vector, a.error) == (b.vector, b.error),
        _ => a == b,
    }
}

fn extended_state(case: &Case, native: &Outcome, soft: &Outcome, text: &mut String) {
    let (a, b) = (&native.state, &soft.state);
    if a.mxcsr() != b.mxcsr() {
        let _ = writeln!(text, "  mxcsr: native {:#x}, softcpu {:#x}", a.mxcsr(), b.mxcsr());
    }
    for n in 0..16 {
        if a.xmm(n) != b.xmm(n) && !approximately(&case.insn, a.xmm(n), b.xmm(n)) {
            let _ = writeln!(
                text,
                "  xmm{n}: native {:#034x}, softcpu {:#034x}",
                a.xmm(n),
                b.xmm(n)
            );
        }
    }
    if crate::approximate::is_undefined(case) {
        return;
    }
    let word = |state: &State, at: usize| u16::from_le_bytes([state.fx[at], state.fx[at + 1]]);
    for (name, at) in [("control word", 0), ("status word", 2), ("tags", 4)] {
        let (x, y) = (word(a, at), word(b, at));
        let ignored = if at == fx::FSW {
            crate::approximate::ignored_status(case)
        } else {
            0
        };
        if (x ^ y) & !ignored != 0 {
            let _ = writeln!(text, "  x87 {name}: native {x:#06x}, softcpu {y:#06x}");
        }
    }
    for st in 0..8 {
        let at = fx::ST + 16 * st;
        let value = |state: &State| u128::from_le_bytes(state.fx[at..at + 16].try_into().expect("16 bytes"));
        if value(a) != value(b) && !crate::approximate::near(case, st, value(a), value(b)) {
            let _ = writeln!(
                text,
                "  st{st}: native {:#022x}, softcpu {:#022x}",
                value(a),
                value(b)
            );
        }
    }
}

/// RCPPS and RSQRTPS are bounded, not exact: both sides keep the bound, so they are within twice of it of each other.
fn approximately(insn: &Instruction, a: u128, b: u128) -> bool {
    let approximation = matches!(
        insn.mnemonic(),
        Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss
    );
    approximation
        && (0..4).all(|i| {
            let lane = |v: u128| f32::from_bits(u32::try_from(v >> (32 * i) & 0xffff_ffff).expect("32 bits"));
            let (x, y) = (lane(a), lane(b));
            // What is tiny may be flushed to zero.
            x.to_bits() == y.to_bits() || (x - y).abs() <= (x.abs() * (3.0 / 4096.0)).max(f32::MIN_POSITIVE)
        })
}

fn memory(case: &Case, native: &Outcome, soft: &Outcome, text: &mut String) {
    // FXSAVE tells which MXCSR bits there are, and AMD has one of its own (MM, bit 17).
    let saves = matches!(case.insn.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64);
    let mask = crate::fixup::linear(case, &case.insn).wrapping_add(fx::MXCSR_MASK as u64);
    let different = native
        .data
        .iter()
        .zip(soft.data.iter())
        .zip(DATA..)
        .filter(|((a, b), _)| a != b);
    let different = different.filter(|(_, at)| !(saves && (mask..mask + 4).contains(at)));
    for ((a, b), at) in different.take(16) {
        let _ = writeln!(text, "  memory {at:#x}: native {a:02x}, softcpu {b:02x}");
    }
}

/// Register names in the order of [`State::gpr`].
pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
