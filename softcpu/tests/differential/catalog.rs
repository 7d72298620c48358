//! Which instruction forms are run, and why the others are not.

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

/// Extensions that softcpu's CPUID offers (or that every x86-64 processor has).
const OFFERED: [CpuidFeature; 23] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::CLFSH,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::FPU,
    CpuidFeature::FPU287,
    CpuidFeature::FPU387,
    CpuidFeature::FSGSBASE,
    CpuidFeature::FXSR,
    CpuidFeature::MMX,
    CpuidFeature::MSR,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::PAUSE,
    CpuidFeature::POPCNT,
    CpuidFeature::PREFETCHW,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
];

/// A form of an instruction of 64-bit mode that softcpu offers; `None` for all others.
pub fn offered(code: Code) -> bool {
    let info = code.op_code();
    info.mode64()
        && info.is_instruction()
        && info.encoding() == EncodingKind::Legacy
        && code
            .cpuid_features()
            .iter()
            .all(|feature| OFFERED.contains(feature))
}

/// Why an offered form is not run, if it is not.
pub fn excluded(code: Code) -> Option<&'static str> {
    use Mnemonic as M;
    let info = code.op_code();
    let kinds = info.op_kinds();
    let any = |wanted: &[OpCodeOperandKind]| kinds.iter().any(|kind| wanted.contains(kind));
    if any(&[OpCodeOperandKind::br16_1, OpCodeOperandKind::br16_2])
        || matches!(
            code,
            Code::Call_rm16 | Code::Jmp_rm16 | Code::Retnw | Code::Retnw_imm16
        )
    {
        return Some(
            "near branch with 0x66: AMD truncates RIP to 16 bits, Intel (and softcpu) ignores the prefix",
        );
    }
    if info.op_code_string().starts_with("9B ") {
        return Some("WAIT and an instruction: decoded as the two that it is");
    }
    match info.mnemonic() {
        M::Call | M::Jmp if any(&[OpCodeOperandKind::mem]) => Some("far transfer: directed tests"),
        M::Retf | M::Iret | M::Iretd | M::Iretq => Some("far transfer: directed tests"),
        M::Lss | M::Lfs | M::Lgs => Some("loads a segment that the host thread depends on: directed tests"),
        M::Pop if any(&[OpCodeOperandKind::fs, OpCodeOperandKind::gs]) => {
            Some("loads a segment that the host thread depends on: directed tests")
        }
        M::Wrfsbase | M::Wrgsbase => Some("changes a base that the host thread depends on: directed tests"),
        M::Sgdt | M::Sidt | M::Smsw | M::Sldt | M::Str => Some("the host kernel hides or emulates it (UMIP)"),
        M::Cpuid => Some("models differ by design"),
        M::Int | M::Int1 | M::Syscall | M::Sysenter | M::Sysexit | M::Sysret | M::Sysretq => {
            Some("enters a kernel: directed tests")
        }
        M::Movsxd if info.op0_kind() == OpCodeOperandKind::r16_reg => {
            Some("MOVSXD to 16 bits: AMD reads four bytes of memory, Intel (and softcpu) two")
        }
        M::Ud0 => Some("processors disagree on its length; always #UD"),
        M::Rsm => Some("system management mode does not exist here"),
        M::Reservednop => Some("the same bytes decode as the hint that they now are, or as NOP"),
        M::Loadall | M::Xbts | M::Ibts | M::Umov => Some("early processors only"),
        _ if is_x87_arithmetic(code) => {
            Some("x87 arithmetic: softcpu ends the run with an error that names the instruction")
        }
        _ => None,
    }
}

/// Whether a form is an x87 instruction that softcpu has not.
pub fn is_x87_arithmetic(code: Code) -> bool {
    let x87 = code.cpuid_features().iter().any(|feature| {
        matches!(
            feature,
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387
        )
    });
    let waits = code.op_code().op_code_string().starts_with("9B ");
    x87 && !waits
        && !matches!(
            code,
            Code::Fninit
                | Code::Fnclex
                | Code::Fnop
                | Code::Fnstcw_m2byte
                | Code::Fldcw_m2byte
                | Code::Fnstsw_m2byte
                | Code::Fnstsw_AX
                | Code::Fnstenv_m28byte
                | Code::Fldenv_m28byte
                | Code::Fnsave_m108byte
                | Code::Frstor_m108byte
                | Code::Fld_m32fp
                | Code::Fld_m64fp
                | Code::Fld_m80fp
                | Code::Fld_sti
                | Code::Fst_m32fp
                | Code::Fst_m64fp
                | Code::Fstp_m32fp
                | Code::Fstp_m64fp
                | Code::Fstp_m80fp
                | Code::Fst_sti
                | Code::Fstp_sti
                | Code::Fild_m16int
                | Code::Fild_m32int
                | Code::Fild_m64int
                | Code::Fist_m16int
                | Code::Fist_m32int
                | Code::Fistp_m16int
                | Code::Fistp_m32int
                | Code::Fistp_m64int
                | Code::Fxch_st0_sti
                | Code::Fchs
                | Code::Fabs
                | Code::Fld1
                | Code::Fldz
                | Code::Ffree_sti
                | Code::Fincstp
                | Code::Fdecstp
        )
}

/// The forms that every run must have executed.
pub fn runnable() -> Vec<Code> {
    Code::values()
        .filter(|code| offered(*code) && excluded(*code).is_none())
        .collect()
}
