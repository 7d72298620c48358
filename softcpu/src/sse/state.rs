//! MXCSR, FXSAVE and FXRSTOR.

use crate::core::{Core, Ctx, Faulted};
use crate::op::{Op, family};
use crate::x87::X87;

family! {
    /// Instructions on whole state.
    State {
        Ldmxcsr: Ldmxcsr_m32,
        Stmxcsr: Stmxcsr_m32,
        Fxsave: Fxsave_m512byte,
        Fxsave64: Fxsave64_m512byte,
        Fxrstor: Fxrstor_m512byte,
        Fxrstor64: Fxrstor64_m512byte,
    }
}

/// The MXCSR bits that exist; setting another raises #GP(0).
pub(crate) const MXCSR_MASK: u32 = 0xffff;

/// Bytes of an FXSAVE image that FXSAVE writes; the rest is left to software (SDM volume 1, section 10.5.1).
const WRITTEN: usize = 416;
/// Offset of XMM0.
const XMM: usize = 160;
/// Offset of ST0.
const ST: usize = 32;

pub(super) fn execute(core: &mut Core, cx: &mut Ctx<'_>, op: &Op, operation: State) -> Result<(), Faulted> {
    match operation {
        State::Ldmxcsr => {
            core.sse_available()?;
            let value: u32 = core.read(cx, core.ea(op))?;
            if value & !MXCSR_MASK != 0 {
                return Err(core.protection());
            }
            core.mxcsr = value;
            Ok(())
        }
        State::Stmxcsr => {
            core.sse_available()?;
            core.write(cx, core.ea(op), core.mxcsr)
        }
        State::Fxsave | State::Fxsave64 => {
            core.x87_available()?;
            let va = core.aligned_ea(op)?;
            let image = save(core, operation == State::Fxsave64);
            core.write_bytes(cx, va, &image)
        }
        State::Fxrstor | State::Fxrstor64 => {
            core.x87_available()?;
            let va = core.aligned_ea(op)?;
            let mut image = [0; WRITTEN];
            core.read_bytes(cx, va, &mut image)?;
            if part::<4>(&image, 24)
                .map(u32::from_le_bytes)
                .is_none_or(|mxcsr| mxcsr & !MXCSR_MASK != 0)
            {
                return Err(core.protection());
            }
            restore(core, &image, operation == State::Fxrstor64);
            Ok(())
        }
    }
}

fn part<const N: usize>(image: &[u8], at: usize) -> Option<[u8; N]> {
    image.get(at..at + N)?.try_into().ok()
}

fn word<const N: usize>(image: &[u8; WRITTEN], at: usize) -> u64 {
    image[at..at + N]
        .iter()
        .rev()
        .fold(0, |v, byte| v << 8 | u64::from(*byte))
}

/// The image that FXSAVE stores, in its 64-bit form (REX.W) or with 32-bit pointers and their (zero) selectors.
fn save(core: &Core, wide: bool) -> [u8; WRITTEN] {
    let mut image = [0; WRITTEN];
    let fpu = &core.fpu;
    image[0..2].copy_from_slice(&fpu.control.to_le_bytes());
    image[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    image[4] = fpu.full;
    image[6..8].copy_from_slice(&fpu.opcode.to_le_bytes());
    let pointer_bytes = if wide { 8 } else { 4 };
    image[8..8 + pointer_bytes].copy_from_slice(&fpu.instruction.to_le_bytes()[..pointer_bytes]);
    image[16..16 + pointer_bytes].copy_from_slice(&fpu.data.to_le_bytes()[..pointer_bytes]);
    image[24..28].copy_from_slice(&core.mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for i in 0..8u8 {
        let at = ST + 16 * usize::from(i);
        image[at..at + 16].copy_from_slice(&fpu.st(i).to_le_bytes());
    }
    for (i, register) in core.xmm.iter().enumerate() {
        image[XMM + 16 * i..XMM + 16 * i + 16].copy_from_slice(&register.to_le_bytes());
    }
    image
}

/// Loads the state from an image whose MXCSR has been checked.
#[allow(clippy::cast_possible_truncation)] // fields of the image, read with their own width
fn restore(core: &mut Core, image: &[u8; WRITTEN], wide: bool) {
    let mut fpu = X87 {
        control: word::<2>(image, 0) as u16,
        status: word::<2>(image, 2) as u16,
        full: image[4],
        opcode: word::<2>(image, 6) as u16 & 0x7ff,
        instruction: if wide {
            word::<8>(image, 8)
        } else {
            word::<4>(image, 8)
        },
        data: if wide {
            word::<8>(image, 16)
        } else {
            word::<4>(image, 16)
        },
        ..X87::default()
    };
    fpu.normalise();
    for i in 0..8u8 {
        let at = ST + 16 * usize::from(i);
        let value = u128::from(word::<8>(image, at)) | u128::from(word::<2>(image, at + 8)) << 64;
        fpu.set_st(i, value);
    }
    core.fpu = fpu;
    core.mxcsr = word::<4>(image, 24) as u32;
    for (i, register) in core.xmm.iter_mut().enumerate() {
        *register =
            u128::from(word::<8>(image, XMM + 16 * i)) | u128::from(word::<8>(image, XMM + 16 * i + 8)) << 64;
    }
}
