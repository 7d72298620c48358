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
        _ => None,
    }
}

/// Whether softcpu has an offered form. It has not all far transfers, and not the loads of a segment with an offset.
pub fn is_implemented(code: Code) -> bool {
    !matches!(
        code,
        Code::Retfw
            | Code::Retfw_imm16
            | Code::Retfd_imm16
            | Code::Retfq_imm16
            | Code::Iretw
            | Code::Iretd
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Jmp_m1616
            | Code::Lss_r16_m1616
            | Code::Lss_r32_m1632
            | Code::Lss_r64_m1664
            | Code::Lfs_r16_m1616
            | Code::Lfs_r32_m1632
            | Code::Lfs_r64_m1664
            | Code::Lgs_r16_m1616
            | Code::Lgs_r32_m1632
            | Code::Lgs_r64_m1664
    )
}

/// The forms that every run must have executed.
pub fn runnable() -> Vec<Code> {
    Code::values()
        .filter(|code| offered(*code) && excluded(*code).is_none())
        .collect()
}
