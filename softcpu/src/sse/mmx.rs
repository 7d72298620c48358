//! MMX: 64-bit vectors, which live in the significands of the x87 registers.
//!
//! MMi is the significand of Ri, the register with that number and not ST(i). Writing it sets exponent and sign to
//! ones. Every instruction that reads or writes an MMX register sets TOP to 0 and marks all registers as full; EMMS
//! marks them as empty (SDM volume 1, section 9.5). Both happen when the instruction completes, not when it faults.

use super::convert::{lane_of, lane32, lane64, signed32, vector};
use super::lanes::{self, Lanes};
use super::moves::{masked_store, signs, with_low};
use super::softfloat::{Context, F32, F64, low64};
use super::{Form, low32, slot};
use crate::core::{Core, Ctx, Faulted};
use crate::op::{Op, family};
use crate::registers::{CR0_EM, CR0_TS};

family! {
    /// MMX instructions that are no operation on lanes: moves, conversions, and EMMS.
    Mmx {
        FromGeneral32: Movd_mm_rm32,
        FromGeneral64: Movq_mm_rm64,
        ToGeneral32: Movd_rm32_mm,
        ToGeneral64: Movq_rm64_mm,
        Load: Movq_mm_mmm64,
        Store: Movq_mmm64_mm | Movntq_m64_mm,
        MaskedStore: Maskmovq_rDI_mm_mm,
        SignsByte: Pmovmskb_r32_mm | Pmovmskb_r64_mm,
        ExtractWord: Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8,
        InsertWord: Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8,
        ToVector: Movq2dq_xmm_mm,
        FromVector: Movdq2q_mm_xmm,
        Cvtpi2ps: Cvtpi2ps_xmm_mmm64,
        Cvtpi2pd: Cvtpi2pd_xmm_mmm64,
        Cvtps2pi: Cvtps2pi_mm_xmmm64,
        Cvttps2pi: Cvttps2pi_mm_xmmm64,
        Cvtpd2pi: Cvtpd2pi_mm_xmmm128,
        Cvttpd2pi: Cvttpd2pi_mm_xmmm128,
        Emms: Emms,
    }
}

impl Mmx {
    /// Whether the instruction also has an XMM operand, and so needs what SSE instructions need.
    fn uses_xmm(self) -> bool {
        use Mmx as M;
        matches!(
            self,
            M::ToVector
                | M::FromVector
                | M::Cvtpi2ps
                | M::Cvtpi2pd
                | M::Cvtps2pi
                | M::Cvttps2pi
                | M::Cvtpd2pi
                | M::Cvttpd2pi
        )
    }
}

impl Core {
    /// #UD or #NM as the control registers have it for MMX instructions, #MF if an x87 exception is pending.
    fn mmx_available(&mut self) -> Result<(), Faulted> {
        if self.cr0 & CR0_EM != 0 {
            return Err(self.undefined());
        }
        if self.cr0 & CR0_TS != 0 {
            return Err(self.raise(7, None));
        }
        self.raise_pending()
    }

    /// The 64-bit source: a register, or memory of any alignment.
    fn source_mm(&mut self, cx: &mut Ctx<'_>, op: &Op, form: Form) -> Result<u64, Faulted> {
        if form.memory() {
            self.read(cx, self.ea(op))
        } else {
            Ok(self.fpu.mm(op.b))
        }
    }
}

/// An operation on the lanes of MMX registers.
pub(super) fn execute_lanes(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: Lanes,
) -> Result<(), Faulted> {
    core.mmx_available()?;
    let half = matches!(operation, Lanes::Punpcklbw | Lanes::Punpcklwd | Lanes::Punpckldq);
    let source = if half && form.memory() {
        u64::from(core.read::<u32>(cx, core.ea(op))?)
    } else {
        core.source_mm(cx, op, form)?
    };
    let result = compute(operation, core.fpu.mm(op.a), source, form.imm8());
    core.fpu.set_mm(op.a, result);
    core.fpu.enter_mmx();
    Ok(())
}

/// The result of `op` on 64-bit vectors.
fn compute(op: Lanes, a: u64, b: u64, imm: u8) -> u64 {
    let (a, b) = (u128::from(a), u128::from(b));
    low64(match op {
        // The lanes of the destination, then those of the source.
        Lanes::Packsswb | Lanes::Packssdw | Lanes::Packuswb => lanes::compute(op, a | b << 64, 0, imm),
        // The upper lanes of 64 bits are in the middle of 128.
        Lanes::Punpckhbw => lanes::compute(Lanes::Punpcklbw, a, b, imm) >> 64,
        Lanes::Punpckhwd => lanes::compute(Lanes::Punpcklwd, a, b, imm) >> 64,
        Lanes::Punpckhdq => lanes::compute(Lanes::Punpckldq, a, b, imm) >> 64,
        _ => lanes::compute(op, a, b, imm),
    })
}

pub(super) fn execute(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: Mmx,
) -> Result<(), Faulted> {
    use Mmx as M;
    if operation.uses_xmm() {
        core.sse_available()?;
        // Conversions from memory have no MMX operand.
        if matches!(operation, M::Cvtpi2ps | M::Cvtpi2pd) && form.memory() {
            let source = core.read(cx, core.ea(op))?;
            return from_integers(core, op, source, operation);
        }
        core.raise_pending()?;
    } else {
        core.mmx_available()?;
    }
    match operation {
        M::FromGeneral32 => {
            let value: u32 = if form.memory() {
                core.read(cx, core.ea(op))?
            } else {
                core.get(op.b)
            };
            core.fpu.set_mm(op.a, u64::from(value));
        }
        M::FromGeneral64 => {
            let value = if form.memory() {
                core.read(cx, core.ea(op))?
            } else {
                core.get(op.b)
            };
            core.fpu.set_mm(op.a, value);
        }
        M::ToGeneral32 if form.memory() => core.write(cx, core.ea(op), low32(core.fpu.mm(op.a).into()))?,
        M::ToGeneral64 | M::Store if form.memory() => core.write(cx, core.ea(op), core.fpu.mm(op.a))?,
        M::ToGeneral32 => core.set(op.a, low32(core.fpu.mm(op.b).into())),
        M::ToGeneral64 => core.set(op.a, core.fpu.mm(op.b)),
        M::Load | M::Store => {
            let value = core.source_mm(cx, op, form)?;
            core.fpu.set_mm(op.a, value);
        }
        M::MaskedStore => {
            let (data, mask) = (core.fpu.mm(op.a).to_le_bytes(), core.fpu.mm(op.b).to_le_bytes());
            masked_store(core, cx, op, form, data, mask)?;
        }
        M::SignsByte => core.set(op.a, signs(core.fpu.mm(op.b).into(), 16)),
        M::ExtractWord => {
            let word = core.fpu.mm(op.b) >> (16 * u32::from(form.imm8() & 3)) & 0xffff;
            core.set(op.a, word);
        }
        M::InsertWord => {
            let word: u16 = if form.memory() {
                core.read(cx, core.ea(op))?
            } else {
                core.get(op.b)
            };
            let at = 16 * u32::from(form.imm8() & 3);
            let value = core.fpu.mm(op.a) & !(0xffff << at) | u64::from(word) << at;
            core.fpu.set_mm(op.a, value);
        }
        M::ToVector => core.xmm[slot(op.a)] = u128::from(core.fpu.mm(op.b)),
        M::FromVector => core.fpu.set_mm(op.a, low64(core.xmm[slot(op.b)])),
        M::Cvtpi2ps | M::Cvtpi2pd => {
            core.fpu.enter_mmx();
            from_integers(core, op, core.fpu.mm(op.b), operation)?;
        }
        M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => {
            to_integers(core, cx, op, form, operation)?;
        }
        M::Emms => {
            core.fpu.leave_mmx();
            return Ok(());
        }
    }
    core.fpu.enter_mmx();
    Ok(())
}

/// CVTPI2PS and CVTPI2PD.
fn from_integers(core: &mut Core, op: &Op, source: u64, operation: Mmx) -> Result<(), Faulted> {
    let mut context = Context::from_mxcsr(core.mxcsr);
    let mut integers = |format, width| {
        vector(2, width, |i| {
            context
                .encode_integer(format, signed32(lane32(source.into(), i)))
                .into()
        })
    };
    let place = slot(op.a);
    let result = if operation == Mmx::Cvtpi2pd {
        integers(F64, 64)
    } else {
        with_low(core.xmm[place], low64(integers(F32, 32)))
    };
    core.simd_flags(&context)?;
    core.xmm[place] = result;
    Ok(())
}

/// CVTPS2PI and its like.
fn to_integers(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: Mmx,
) -> Result<(), Faulted> {
    use Mmx as M;
    let mut context = Context::from_mxcsr(core.mxcsr);
    let truncate = matches!(operation, M::Cvttps2pi | M::Cvttpd2pi);
    let result = if matches!(operation, M::Cvtps2pi | M::Cvttps2pi) {
        let source = u128::from(core.source64(cx, op, form)?);
        vector(2, 32, |i| {
            lane_of(context.integer(F32, lane32(source, i), 32, truncate))
        })
    } else {
        let source = core.source128(cx, op, form)?;
        vector(2, 32, |i| {
            lane_of(context.integer(F64, lane64(source, i), 32, truncate))
        })
    };
    core.fpu.enter_mmx();
    core.simd_flags(&context)?;
    core.fpu.set_mm(op.a, low64(result));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_packed_and_interleaved_within_64_bits() {
        let (a, b) = (0x0003_0002_0001_ff00, 0x7fff_0006_0005_8000);
        assert_eq!(compute(Lanes::Packuswb, a, b, 0), 0xff06_0500_0302_0100);
        assert_eq!(compute(Lanes::Punpcklwd, a, b, 0), 0x0005_0001_8000_ff00);
        assert_eq!(compute(Lanes::Punpckhwd, a, b, 0), 0x7fff_0003_0006_0002);
        assert_eq!(
            compute(Lanes::Pshuflw, 0, a, 0b00_01_10_11),
            0xff00_0001_0002_0003
        );
    }
}
