//! Conversions between integers and the two floating-point formats.

use super::softfloat::{Context, F32, F64, low64};
use super::{Form, low32, slot};
use crate::core::{Core, Ctx, Faulted};
use crate::op::{Op, family};

family! {
    /// Conversions; all but the exact ones read MXCSR and raise its flags.
    Convert {
        Cvtsi2ss: Cvtsi2ss_xmm_rm32 | Cvtsi2ss_xmm_rm64,
        Cvtsi2sd: Cvtsi2sd_xmm_rm32 | Cvtsi2sd_xmm_rm64,
        Cvtss2si: Cvtss2si_r32_xmmm32 | Cvtss2si_r64_xmmm32,
        Cvtsd2si: Cvtsd2si_r32_xmmm64 | Cvtsd2si_r64_xmmm64,
        Cvttss2si: Cvttss2si_r32_xmmm32 | Cvttss2si_r64_xmmm32,
        Cvttsd2si: Cvttsd2si_r32_xmmm64 | Cvttsd2si_r64_xmmm64,
        Cvtss2sd: Cvtss2sd_xmm_xmmm32,
        Cvtsd2ss: Cvtsd2ss_xmm_xmmm64,
        Cvtps2pd: Cvtps2pd_xmm_xmmm64,
        Cvtpd2ps: Cvtpd2ps_xmm_xmmm128,
        Cvtdq2ps: Cvtdq2ps_xmm_xmmm128,
        Cvtps2dq: Cvtps2dq_xmm_xmmm128,
        Cvttps2dq: Cvttps2dq_xmm_xmmm128,
        Cvtdq2pd: Cvtdq2pd_xmm_xmmm64,
        Cvtpd2dq: Cvtpd2dq_xmm_xmmm128,
        Cvttpd2dq: Cvttpd2dq_xmm_xmmm128,
    }
}

/// Lane `i` of 32 bits.
pub(super) fn lane32(v: u128, i: u32) -> u64 {
    u64::from(low32(v >> (32 * i)))
}

/// Lane `i` of 64 bits.
pub(super) fn lane64(v: u128, i: u32) -> u64 {
    low64(v >> (64 * i))
}

/// A 32-bit lane as a signed integer.
pub(super) fn signed32(lane: u64) -> i64 {
    lane.cast_signed() << 32 >> 32
}

/// A conversion's integer as a 32-bit lane.
pub(super) fn lane_of(value: i64) -> u128 {
    u128::from(value.cast_unsigned() & 0xffff_ffff)
}

pub(super) fn execute(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: Convert,
) -> Result<(), Faulted> {
    use Convert as C;
    let mut context = Context::from_mxcsr(core.mxcsr);
    let place = slot(op.a);
    let old = core.xmm[place];
    let result = match operation {
        C::Cvtsi2ss => {
            let value = integer_source(core, cx, op, form)?;
            old >> 32 << 32 | u128::from(context.encode_integer(F32, value))
        }
        C::Cvtsi2sd => {
            let value = integer_source(core, cx, op, form)?;
            old >> 64 << 64 | u128::from(context.encode_integer(F64, value))
        }
        C::Cvtss2si | C::Cvttss2si | C::Cvtsd2si | C::Cvttsd2si => {
            let bits = if form.wide() { 64 } else { 32 };
            let truncate = matches!(operation, C::Cvttss2si | C::Cvttsd2si);
            let value = if matches!(operation, C::Cvtss2si | C::Cvttss2si) {
                let source = core.source32(cx, op, form)?;
                context.integer(F32, u64::from(source), bits, truncate)
            } else {
                let source = core.source64(cx, op, form)?;
                context.integer(F64, source, bits, truncate)
            };
            core.simd_flags(&context)?;
            let value = value.cast_unsigned();
            core.set::<u64>(op.a, if form.wide() { value } else { value & 0xffff_ffff });
            return Ok(());
        }
        C::Cvtss2sd => {
            let source = core.source32(cx, op, form)?;
            old >> 64 << 64 | u128::from(context.convert(F32, F64, u64::from(source)))
        }
        C::Cvtsd2ss => {
            let source = core.source64(cx, op, form)?;
            old >> 32 << 32 | u128::from(context.convert(F64, F32, source))
        }
        C::Cvtps2pd => {
            let source = u128::from(core.source64(cx, op, form)?);
            vector(2, 64, |i| {
                u128::from(context.convert(F32, F64, lane32(source, i)))
            })
        }
        C::Cvtpd2ps => {
            let source = core.source128(cx, op, form)?;
            vector(2, 32, |i| {
                u128::from(context.convert(F64, F32, lane64(source, i)))
            })
        }
        C::Cvtdq2ps => {
            let source = core.source128(cx, op, form)?;
            vector(4, 32, |i| {
                u128::from(context.encode_integer(F32, signed32(lane32(source, i))))
            })
        }
        C::Cvtdq2pd => {
            let source = u128::from(core.source64(cx, op, form)?);
            vector(2, 64, |i| {
                u128::from(context.encode_integer(F64, signed32(lane32(source, i))))
            })
        }
        C::Cvtps2dq | C::Cvttps2dq => {
            let source = core.source128(cx, op, form)?;
            let truncate = operation == C::Cvttps2dq;
            vector(4, 32, |i| {
                lane_of(context.integer(F32, lane32(source, i), 32, truncate))
            })
        }
        C::Cvtpd2dq | C::Cvttpd2dq => {
            let source = core.source128(cx, op, form)?;
            let truncate = operation == C::Cvttpd2dq;
            vector(2, 32, |i| {
                lane_of(context.integer(F64, lane64(source, i), 32, truncate))
            })
        }
    };
    core.simd_flags(&context)?;
    core.xmm[place] = result;
    Ok(())
}

/// A vector of `lanes` lanes of `width` bits; the rest is zero.
pub(super) fn vector(lanes: u32, width: u32, mut lane: impl FnMut(u32) -> u128) -> u128 {
    (0..lanes).fold(0, |v, i| v | lane(i) << (i * width))
}

/// The general register or memory operand of CVTSI2SS and CVTSI2SD.
fn integer_source(core: &mut Core, cx: &mut Ctx<'_>, op: &Op, form: Form) -> Result<i64, Faulted> {
    let value: u64 = match (form.memory(), form.wide()) {
        (true, true) => core.read(cx, core.ea(op))?,
        (true, false) => u64::from(core.read::<u32>(cx, core.ea(op))?),
        (false, _) => core.get(op.b),
    };
    Ok(if form.wide() {
        value.cast_signed()
    } else {
        signed32(value)
    })
}
