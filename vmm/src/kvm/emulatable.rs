//! Which instructions softcpu may execute in KVM's place.
//!
//! softcpu gets the vCPU's registers: general, segment, descriptor table and control registers, x87 and SSE state. It
//! does not get model-specific registers, the time-stamp counter, debug registers or what the guest's CPUID says, so an
//! instruction that reads or writes one of those would silently work on softcpu's own.

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

/// Whether softcpu has all the state that this instruction works on. Bytes that are no instruction are allowed: softcpu
/// raises #UD for them, or #PF if they could not be fetched.
pub(super) fn is_allowed(instruction: &Instruction) -> bool {
    if instruction.is_invalid() {
        return true;
    }
    match instruction.mnemonic() {
        // Privileged, but they change RFLAGS.AC only.
        Mnemonic::Clac | Mnemonic::Stac => true,
        // What software reads from it is up to KVM.
        Mnemonic::Smsw | Mnemonic::Str | Mnemonic::Sldt => false,
        _ => {
            let features = instruction.cpuid_features();
            !instruction.is_privileged() && features.iter().all(|feature| is_baseline(*feature))
        }
    }
}

/// Features whose instructions work on memory and on registers that softcpu gets.
fn is_baseline(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL8086_ONLY
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::POPCNT
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::CLFSH
            | F::PAUSE
            | F::MULTIBYTENOP
            | F::PREFETCHW
            | F::FSGSBASE
    )
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn decode(bytes: &[u8]) -> Instruction {
        Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode()
    }

    #[test]
    fn register_memory_and_sse_forms_are_allowed() {
        let allowed: [(&[u8], Mnemonic); 12] = [
            (&[0xf3, 0x48, 0x0f, 0xb8, 0xc8], Mnemonic::Popcnt),
            (&[0xf0, 0x48, 0x0f, 0xc7, 0x0e], Mnemonic::Cmpxchg16b),
            (&[0xf0, 0x48, 0x01, 0x06], Mnemonic::Add),
            (&[0x0f, 0xae, 0x10], Mnemonic::Ldmxcsr),
            (&[0x66, 0x0f, 0xd4, 0xdb], Mnemonic::Paddq),
            (&[0xdf, 0x00], Mnemonic::Fild),
            (&[0xdb, 0xe2], Mnemonic::Fnclex),
            (&[0x0f, 0x77], Mnemonic::Emms),
            (&[0xcc], Mnemonic::Int3),
            (&[0xcd, 0x80], Mnemonic::Int),
            (&[0x0f, 0x01, 0xca], Mnemonic::Clac),
            (&[0x0f, 0x00, 0xe8], Mnemonic::Verw),
        ];
        for (bytes, mnemonic) in allowed {
            let instruction = decode(bytes);
            assert_eq!(instruction.mnemonic(), mnemonic);
            assert!(is_allowed(&instruction), "{mnemonic:?}");
        }
        assert!(is_allowed(&decode(&[])) && is_allowed(&decode(&[0x06])));
    }

    #[test]
    fn instructions_on_other_state_are_refused() {
        let refused: [(&[u8], Mnemonic); 17] = [
            (&[0x0f, 0x01, 0xf8], Mnemonic::Swapgs),
            (&[0x0f, 0x32], Mnemonic::Rdmsr),
            (&[0x0f, 0x30], Mnemonic::Wrmsr),
            (&[0x0f, 0x31], Mnemonic::Rdtsc),
            (&[0x0f, 0x01, 0xf9], Mnemonic::Rdtscp),
            (&[0x0f, 0xa2], Mnemonic::Cpuid),
            (&[0x0f, 0x05], Mnemonic::Syscall),
            (&[0x48, 0x0f, 0x07], Mnemonic::Sysretq),
            (&[0x0f, 0x21, 0xc0], Mnemonic::Mov),
            (&[0x0f, 0x22, 0xc0], Mnemonic::Mov),
            (&[0x0f, 0x01, 0x10], Mnemonic::Lgdt),
            (&[0x0f, 0x00, 0xc0], Mnemonic::Sldt),
            (&[0xf4], Mnemonic::Hlt),
            (&[0xe6, 0x80], Mnemonic::Out),
            (&[0x0f, 0xae, 0x00], Mnemonic::Fxsave),
            (&[0x0f, 0xae, 0x20], Mnemonic::Xsave),
            (&[0xc5, 0xfc, 0x77], Mnemonic::Vzeroall),
        ];
        for (bytes, mnemonic) in refused {
            let instruction = decode(bytes);
            assert_eq!(instruction.mnemonic(), mnemonic);
            assert!(!is_allowed(&instruction), "{mnemonic:?}");
        }
    }
}
