//! What processors do differently where the manuals leave it open.
//!
//! softcpu does one of the two things on every host: the one that AMD processors do, but for a bit that only they have.
//! Each entry of [`CHOICES`] recognises the other one, and only that: any third outcome is still a difference, and so is
//! the same outcome in any other case.

use iced_x86::{Code, Mnemonic, OpKind};
use softcpu::flags::{AF, CF, OF, PF, SF, ZF};

use crate::fixup::{RCX, RDI, RSI, RSP, linear, narrow};
use crate::generate::Case;
use crate::state::{DATA, Outcome, State, fx};

/// One thing that processors do in two ways.
pub struct Choice {
    /// What differs, and when.
    pub what: &'static str,
    /// Where the manuals allow both.
    pub source: &'static str,
    /// If the host (the first outcome) did the one thing and softcpu (the second) the other: gives the host's outcome
    /// what softcpu has.
    settle: fn(&Case, &mut Outcome, &Outcome),
}

/// All of them.
pub const CHOICES: [Choice; 9] = [
    Choice {
        what: "upper halves of RCX (MOVS: and RSI, RDI; STOS: and RDI) after a repeated string instruction with \
               32-bit addresses that completes no iteration, because ECX is 0 or the first one faults: kept or cleared",
        source: "SDM volume 1, 3.4.1.1: a 32-bit result clears the upper half; no manual says whether there is a \
                 result. Linux knows the same registers: arch/x86/kvm/emulate.c, string_registers_quirk()",
        settle: untouched_registers,
    },
    Choice {
        what: "arithmetic flags after a page fault in a later iteration of a repeated CMPS or SCAS: of the iteration \
               before or of before the instruction",
        source: "SDM volume 2B, REP: EFLAGS is restored to the state before the instruction; AMD processors do not \
                 restore it",
        settle: flags_at_a_fault,
    },
    Choice {
        what: "a page fault or an unmasked x87 exception, where an x87 store to a page that may not be written raises \
               both",
        source: "SDM volume 3A, Priority Among Concurrent Events: both are of one class, and the order within a class \
                 depends on the implementation",
        settle: store_that_raises_both,
    },
    Choice {
        what: "the first eight bytes of an 80-bit store whose last two cause a page fault: written or not",
        source: "SDM volume 3A, Guaranteed Atomic Operations: an x87 store of more than a quadword may be several \
                 accesses, and those that completed before another one faults may be visible",
        settle: half_of_a_store,
    },
    Choice {
        what: "the return address below RSP after the #GP of an indirect near CALL to a target that is not canonical: \
               written or not",
        source: "SDM volume 2A, CALL, Operation: with 64-bit operands the return address is pushed before RIP is \
                 loaded, and the check of the target has no place",
        settle: return_address,
    },
    Choice {
        what: "TOP after the page fault of an MMX store: as it was or 0; the tags are as they were",
        source: "SDM volume 1, 9.5: an MMX instruction sets TOP to 0 and all tags to valid; no manual says what is left\
                 of it when the instruction faults",
        settle: top_at_a_fault,
    },
    Choice {
        what: "C1 after FCMOVcc, FCOMI and FUCOMI without a stack fault: as it was or cleared",
        source: "SDM volume 2A, FCOMI: set to 0, but Intel's processors leave it; FCMOVcc: only a stack underflow is \
                 told of",
        settle: c1_of_a_comparison,
    },
    Choice {
        what: "the precision and underflow flags after a transcendental function whose result is exact: set or not",
        source: "SDM volume 1, 8.3.10: an error below one unit in the last place is promised, and nothing of what is \
                 exact",
        settle: flags_of_a_function,
    },
    Choice {
        what: "LDMXCSR of a value with bit 17: #GP, or AMD's misaligned exception mask",
        source: "APM volume 1, 4.2.2: MM, if CPUID offers it; SDM volume 1, 10.2.3: reserved",
        settle: misaligned_mask,
    },
];

/// The host's outcome as it would be if the host had chosen as softcpu does.
pub fn settled(case: &Case, native: &Outcome, soft: &Outcome) -> Outcome {
    let mut settled = native.clone();
    for choice in &CHOICES {
        (choice.settle)(case, &mut settled, soft);
    }
    settled
}

fn both_raise(vector: u8, native: &Outcome, soft: &Outcome) -> bool {
    let raises = |outcome: &Outcome| outcome.fault.is_some_and(|fault| fault.vector == vector);
    raises(native) && raises(soft)
}

fn both_page_fault(native: &Outcome, soft: &Outcome) -> bool {
    both_raise(14, native, soft)
}

fn is_repeated(case: &Case) -> bool {
    let prefixed = case.insn.has_rep_prefix() || case.insn.has_repne_prefix();
    prefixed && case.insn.is_string_instruction()
}

/// The iterations that are left for a string instruction.
fn count(case: &Case, state: &State) -> u64 {
    if narrow(&case.insn) {
        low(state.gpr[RCX])
    } else {
        state.gpr[RCX]
    }
}

fn low(value: u64) -> u64 {
    value & 0xffff_ffff
}

fn untouched_registers(case: &Case, native: &mut Outcome, soft: &Outcome) {
    if !is_repeated(case) || !narrow(&case.insn) {
        return;
    }
    use Mnemonic as M;
    let registers: &[usize] = match case.insn.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => &[RCX, RSI, RDI],
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => &[RCX, RDI],
        _ => &[RCX],
    };
    let start = count(case, &case.state);
    let nothing_to_do = start == 0 && native.fault.is_none() && soft.fault.is_none();
    let faults_at_once = start != 0 && count(case, &soft.state) == start && both_page_fault(native, soft);
    if !nothing_to_do && !faults_at_once {
        return;
    }
    for &register in registers {
        let before = case.state.gpr[register];
        let (host, ours) = (&mut native.state.gpr[register], soft.state.gpr[register]);
        if *host == low(before) && ours == before {
            *host = ours;
        }
    }
}

fn flags_at_a_fault(case: &Case, native: &mut Outcome, soft: &Outcome) {
    const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
    use Mnemonic as M;
    let compares = matches!(
        case.insn.mnemonic(),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
    );
    let later = count(case, &soft.state) < count(case, &case.state);
    let restored = (native.state.rflags ^ case.state.rflags) & ARITHMETIC == 0;
    if is_repeated(case) && compares && both_page_fault(native, soft) && later && restored {
        native.state.rflags = native.state.rflags & !ARITHMETIC | soft.state.rflags & ARITHMETIC;
    }
}

/// Bits of the x87 status word (SDM volume 1, 8.1.3); the exceptions' masks have the same places in the control word.
mod x87 {
    pub const INVALID: u16 = 1;
    pub const OVERFLOW: u16 = 1 << 3;
    pub const UNDERFLOW: u16 = 1 << 4;
    pub const PRECISION: u16 = 1 << 5;
    pub const STACK_FAULT: u16 = 1 << 6;
    pub const SUMMARY: u16 = 1 << 7;
    pub const C1: u16 = 1 << 9;
    pub const BUSY: u16 = 1 << 15;
    /// Exceptions that prevent a store when they are not masked. A loss of precision does not (SDM volume 1, 8.5.6).
    pub const PREVENTING: u16 = INVALID | OVERFLOW | UNDERFLOW;
}

fn store_that_raises_both(case: &Case, native: &mut Outcome, soft: &Outcome) {
    use Mnemonic as M;
    let stores = matches!(
        case.insn.mnemonic(),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fbstp
    ) && case.insn.op0_kind() == OpKind::Memory;
    let (None, Some(fault)) = (native.fault, soft.fault) else {
        return;
    };
    let size = case.insn.memory_size().size() as u64;
    let word = |state: &State, at: usize| u16::from_le_bytes([state.fx[at], state.fx[at + 1]]);
    let status = word(&native.state, fx::FSW);
    // An exception that was pending before would have been raised by the instruction: this one is new.
    let raised = status & !word(&native.state, fx::FCW) & x87::PREVENTING;
    let went_on = native.state.rip == case.insn.next_ip() && soft.state.rip == case.state.rip;
    let page_fault = fault.vector == 14 && fault.address.wrapping_sub(linear(case, &case.insn)) < size;
    if !stores || !page_fault || raised == 0 || status & x87::SUMMARY == 0 || !went_on {
        return;
    }
    native.fault = soft.fault;
    native.state.rip = soft.state.rip;
    let told = x87::PREVENTING | x87::STACK_FAULT | x87::SUMMARY | x87::C1 | x87::BUSY;
    let status = status & !told | word(&soft.state, fx::FSW) & told;
    native.state.fx[fx::FSW..fx::FSW + 2].copy_from_slice(&status.to_le_bytes());
}

fn half_of_a_store(case: &Case, native: &mut Outcome, soft: &Outcome) {
    if !both_page_fault(native, soft) {
        return;
    }
    if case.insn.code() == Code::Fbstp_m80bcd {
        // Which digits were to be stored is not known here, so any are taken for them.
        let at = linear(case, &case.insn);
        let offset = usize::try_from(at.wrapping_sub(DATA)).unwrap_or(usize::MAX);
        let written = offset.checked_add(8).and_then(|end| native.data.get(offset..end));
        let Some(written) = written.and_then(|bytes| bytes.try_into().ok()) else {
            return;
        };
        if is_decimal(written) {
            take_back(case, at, written, native, soft);
        }
        return;
    }
    if case.insn.code() != Code::Fstp_m80fp {
        return;
    }
    // The abridged tags are in the order of the physical registers, the registers in the order of the stack.
    let top = case.state.fx[fx::FSW + 1] >> 3 & 7;
    let empty = case.state.fx[fx::FTW] >> top & 1 == 0;
    // An empty register is stored as the default NaN.
    let stored = if empty {
        (3u64 << 62).to_le_bytes()
    } else {
        std::array::from_fn(|i| case.state.fx[fx::ST + i])
    };
    take_back(case, linear(case, &case.insn), stored, native, soft);
}

/// Whether all bytes hold two decimal digits, or are the first eight of the indefinite packed decimal.
fn is_decimal(bytes: [u8; 8]) -> bool {
    bytes.iter().all(|byte| byte >> 4 < 10 && byte & 15 < 10) || bytes == [0, 0, 0, 0, 0, 0, 0, 0xc0]
}

fn return_address(case: &Case, native: &mut Outcome, soft: &Outcome) {
    // Operands and stack are in scratch memory, so only the target can be the reason of a #GP.
    if case.insn.code() == Code::Call_rm64 && both_raise(13, native, soft) {
        let pushed = case.insn.next_ip().to_le_bytes();
        take_back(case, case.state.gpr[RSP].wrapping_sub(8), pushed, native, soft);
    }
}

fn c1_of_a_comparison(case: &Case, native: &mut Outcome, soft: &Outcome) {
    use Mnemonic as M;
    let affected = matches!(
        case.insn.mnemonic(),
        M::Fcmovb
            | M::Fcmove
            | M::Fcmovbe
            | M::Fcmovu
            | M::Fcmovnb
            | M::Fcmovne
            | M::Fcmovnbe
            | M::Fcmovnu
            | M::Fcomi
            | M::Fcomip
            | M::Fucomi
            | M::Fucomip
    );
    let status = |state: &State| u16::from_le_bytes([state.fx[fx::FSW], state.fx[fx::FSW + 1]]);
    let before = status(&case.state) & x87::C1;
    let (host, ours) = (status(&native.state) & x87::C1, status(&soft.state) & x87::C1);
    if affected && [host, ours].iter().all(|c1| [0, before].contains(c1)) {
        set_status(native, status(&native.state) & !x87::C1 | ours);
    }
}

fn flags_of_a_function(case: &Case, native: &mut Outcome, soft: &Outcome) {
    let status = |state: &State| u16::from_le_bytes([state.fx[fx::FSW], state.fx[fx::FSW + 1]]);
    if !crate::approximate::MNEMONICS.contains(&case.insn.mnemonic()) {
        return;
    }
    if status(&soft.state) & x87::PRECISION == 0 {
        let open = x87::PRECISION | x87::UNDERFLOW | x87::SUMMARY | x87::BUSY;
        set_status(native, status(&native.state) & !open | status(&soft.state) & open);
    }
}

fn misaligned_mask(case: &Case, native: &mut Outcome, soft: &Outcome) {
    const MM: u32 = 1 << 17;
    const KNOWN: u32 = 0xffff | MM;
    let loaded = native.state.mxcsr();
    let refused = soft.fault.is_some_and(|fault| fault.vector == 13) && native.fault.is_none();
    let went_on = native.state.rip == case.insn.next_ip() && soft.state.rip == case.state.rip;
    let loads = matches!(case.insn.code(), Code::Ldmxcsr_m32 | Code::VEX_Vldmxcsr_m32);
    if loads && refused && went_on && loaded & MM != 0 && loaded & !KNOWN == 0 {
        native.fault = soft.fault;
        native.state.rip = soft.state.rip;
        native.state.set_mxcsr(soft.state.mxcsr());
    }
}

fn set_status(outcome: &mut Outcome, status: u16) {
    outcome.state.fx[fx::FSW..fx::FSW + 2].copy_from_slice(&status.to_le_bytes());
}

fn top_at_a_fault(case: &Case, native: &mut Outcome, soft: &Outcome) {
    let stores = case.insn.op0_kind() == OpKind::Memory && case.insn.op1_register().is_mm();
    let top = |state: &State| usize::from(state.fx[fx::FSW + 1] >> 3 & 7);
    if !stores || !both_page_fault(native, soft) || top(&native.state) != 0 {
        return;
    }
    let ours = top(&soft.state);
    native.state.fx[fx::FSW + 1] |= u8::try_from(ours << 3).expect("three bits");
    // The image has the registers in the order of the stack.
    native.state.fx[fx::ST..fx::XMM].rotate_left(16 * ours);
}

/// If the host has `written` at `address` and softcpu has written nothing there: undoes what the host did.
fn take_back(case: &Case, address: u64, written: [u8; 8], native: &mut Outcome, soft: &Outcome) {
    let Ok(at) = usize::try_from(address.wrapping_sub(DATA)) else {
        return;
    };
    let Some(place) = at.checked_add(8).map(|end| at..end) else {
        return;
    };
    let (Some(before), Some(ours)) = (case.data.get(place.clone()), soft.data.get(place.clone())) else {
        return;
    };
    let host = &mut native.data[place];
    if *host == written && ours == before {
        host.copy_from_slice(ours);
    }
}

#[cfg(test)]
#[path = "choices/tests.rs"]
mod tests;
