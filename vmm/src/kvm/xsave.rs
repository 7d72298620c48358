//! x87 and SSE state between KVM's XSAVE area and softcpu's registers.
//!
//! The area begins with the legacy region, in the layout of FXSAVE64, and the XSAVE header (Intel SDM volume 1, chapter
//! 13). All offsets here are in units of 4 bytes, as the elements of `kvm_xsave::region`.

use kvm_bindings::kvm_xsave;
use softcpu::{Registers, X87};

const INSTRUCTION_POINTER: usize = 2;
const DATA_POINTER: usize = 4;
const MXCSR: usize = 6;
const X87_REGISTERS: usize = 8;
const XMM: usize = 40;
const XSTATE_BV: usize = 128;
/// XSTATE_BV: x87 and SSE state are present.
const LEGACY_STATE: u32 = 0b11;

/// Copies x87 and SSE state from `xsave` to `state`.
pub(super) fn load(state: &mut Registers, xsave: &kvm_xsave) {
    let word = |index: usize| u128::from(xsave.region[index]);
    let wide = |at: usize| word(at) | word(at + 1) << 32 | word(at + 2) << 64 | word(at + 3) << 96;
    let pointer = |at: usize| u64::from(xsave.region[at]) | u64::from(xsave.region[at + 1]) << 32;
    for (index, register) in state.xmm.iter_mut().enumerate() {
        *register = wide(XMM + 4 * index);
    }
    state.mxcsr = xsave.region[MXCSR];
    let [control, status] = halves(xsave.region[0]);
    let [tags, opcode] = halves(xsave.region[1]);
    let top = usize::from(status >> 11 & 7);
    let mut registers = [0; 8];
    for index in 0..8 {
        registers[(top + index) % 8] = wide(X87_REGISTERS + 4 * index) & ((1 << 80) - 1);
    }
    state.fpu = X87 {
        registers,
        control,
        status,
        full: (tags & 0xff) as u8,
        opcode: opcode & 0x7ff,
        instruction: pointer(INSTRUCTION_POINTER),
        data: pointer(DATA_POINTER),
    };
}

/// Copies x87 and SSE state from `state` to `xsave`.
#[allow(clippy::cast_possible_truncation)] // words of a wider number
pub(super) fn store(state: &Registers, xsave: &mut kvm_xsave) {
    let mut put = |at: usize, words: usize, value: u128| {
        for part in 0..words {
            xsave.region[at + part] = (value >> (32 * part)) as u32;
        }
    };
    for (index, register) in state.xmm.iter().enumerate() {
        put(XMM + 4 * index, 4, *register);
    }
    let fpu = &state.fpu;
    let top = usize::from(fpu.status >> 11 & 7);
    for index in 0..8 {
        put(X87_REGISTERS + 4 * index, 4, fpu.registers[(top + index) % 8]);
    }
    put(INSTRUCTION_POINTER, 2, fpu.instruction.into());
    put(DATA_POINTER, 2, fpu.data.into());
    xsave.region[0] = u32::from(fpu.control) | u32::from(fpu.status) << 16;
    xsave.region[1] = u32::from(fpu.full) | u32::from(fpu.opcode) << 16;
    xsave.region[MXCSR] = state.mxcsr;
    xsave.region[XSTATE_BV] |= LEGACY_STATE;
}

fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn state_survives_the_way_to_kvm_and_back(
            xmm in any::<[u128; 16]>(), mxcsr in any::<u32>(), registers in any::<[u128; 8]>(), control in any::<u16>(),
            status in any::<u16>(), full in any::<u8>(), opcode in 0_u16..0x800, instruction in any::<u64>(),
            data in any::<u64>()
        ) {
            let registers = registers.map(|register| register & ((1 << 80) - 1));
            let fpu = X87 { registers, control, status, full, opcode, instruction, data };
            let before = Registers { xmm, mxcsr, fpu, ..Registers::default() };
            let mut xsave = kvm_xsave::default();
            store(&before, &mut xsave);
            let mut after = Registers::default();
            load(&mut after, &xsave);
            prop_assert_eq!(after, before);
        }
    }
}
