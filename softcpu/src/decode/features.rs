//! Which instructions the processor offers.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic};

/// Whether the instruction raises #UD: its extension is not offered by CPUID, or it is one of UD0, UD1 and UD2.
pub(super) fn undefined(insn: &Instruction) -> bool {
    use CpuidFeature as F;
    if matches!(insn.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2) {
        return true;
    }
    if no_operation(insn) {
        return false;
    }
    !insn.code().cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::INTEL8086
                | F::INTEL8086_ONLY
                | F::INTEL186
                | F::INTEL286
                | F::INTEL286_ONLY
                | F::INTEL386
                | F::INTEL386_ONLY
                | F::INTEL386_A0_ONLY
                | F::INTEL486
                | F::INTEL486_A_ONLY
                | F::X64
                | F::FPU
                | F::FPU287
                | F::FPU287XL_ONLY
                | F::FPU387
                | F::FPU387SL_ONLY
                | F::CMOV
                | F::CPUID
                | F::CX8
                | F::CMPXCHG16B
                | F::CLFSH
                | F::FSGSBASE
                | F::FXSR
                | F::INVEPT
                | F::MMX
                | F::MSR
                | F::MULTIBYTENOP
                | F::PAUSE
                | F::POPCNT
                | F::RDPMC
                | F::RDTSCP
                | F::SSE
                | F::SSE2
                | F::SYSCALL
                | F::TSC
        )
    }) || matches!(insn.mnemonic(), Mnemonic::Rsm | Mnemonic::Invept)
}

/// Whether the instruction does nothing here: hints, barriers, and those that are NOPs on a processor without their
/// extension (ENDBR, RDSSP, PREFETCHW).
pub(super) fn no_operation(insn: &Instruction) -> bool {
    use Mnemonic as M;
    if matches!(
        insn.code(),
        Code::Xchg_r64_RAX | Code::Xchg_r32_EAX | Code::Xchg_r16_AX
    ) {
        return false;
    }
    matches!(
        insn.mnemonic(),
        M::Nop
            | M::Reservednop
            | M::Endbr64
            | M::Endbr32
            | M::Rdsspd
            | M::Rdsspq
            | M::Prefetch
            | M::Prefetchw
            | M::Prefetchwt1
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Lfence
            | M::Mfence
            | M::Sfence
    )
}
