//! Arithmetic and comparison of floating-point vectors and scalars.

use super::softfloat::{Context, F32, F64, Format, Relation};
use super::{Form, low32, slot};
use crate::core::{Core, Ctx, Faulted};
use crate::flags::{CF, PF, ZF};
use crate::op::{Op, family};

family! {
    /// Operations that read MXCSR and raise its flags, and the two approximations.
    Float {
        Addps: Addps_xmm_xmmm128, Addpd: Addpd_xmm_xmmm128, Addss: Addss_xmm_xmmm32, Addsd: Addsd_xmm_xmmm64,
        Subps: Subps_xmm_xmmm128, Subpd: Subpd_xmm_xmmm128, Subss: Subss_xmm_xmmm32, Subsd: Subsd_xmm_xmmm64,
        Mulps: Mulps_xmm_xmmm128, Mulpd: Mulpd_xmm_xmmm128, Mulss: Mulss_xmm_xmmm32, Mulsd: Mulsd_xmm_xmmm64,
        Divps: Divps_xmm_xmmm128, Divpd: Divpd_xmm_xmmm128, Divss: Divss_xmm_xmmm32, Divsd: Divsd_xmm_xmmm64,
        Minps: Minps_xmm_xmmm128, Minpd: Minpd_xmm_xmmm128, Minss: Minss_xmm_xmmm32, Minsd: Minsd_xmm_xmmm64,
        Maxps: Maxps_xmm_xmmm128, Maxpd: Maxpd_xmm_xmmm128, Maxss: Maxss_xmm_xmmm32, Maxsd: Maxsd_xmm_xmmm64,
        Sqrtps: Sqrtps_xmm_xmmm128, Sqrtpd: Sqrtpd_xmm_xmmm128,
        Sqrtss: Sqrtss_xmm_xmmm32, Sqrtsd: Sqrtsd_xmm_xmmm64,
        Cmpps: Cmpps_xmm_xmmm128_imm8, Cmppd: Cmppd_xmm_xmmm128_imm8,
        Cmpss: Cmpss_xmm_xmmm32_imm8, Cmpsd: Cmpsd_xmm_xmmm64_imm8,
        Comiss: Comiss_xmm_xmmm32, Comisd: Comisd_xmm_xmmm64,
        Ucomiss: Ucomiss_xmm_xmmm32, Ucomisd: Ucomisd_xmm_xmmm64,
        Rcpps: Rcpps_xmm_xmmm128, Rcpss: Rcpss_xmm_xmmm32,
        Rsqrtps: Rsqrtps_xmm_xmmm128, Rsqrtss: Rsqrtss_xmm_xmmm32,
    }
}

/// Number and format of the lanes that an operation works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Ps,
    Pd,
    Ss,
    Sd,
}

/// Computation on one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    Sqrt,
    Compare,
    Reciprocal,
    ReciprocalRoot,
}

pub(super) fn execute(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    operation: Float,
) -> Result<(), Faulted> {
    use Float as F;
    use Lane as L;
    let (lane, shape) = match operation {
        F::Addps => (L::Add, Shape::Ps),
        F::Addpd => (L::Add, Shape::Pd),
        F::Addss => (L::Add, Shape::Ss),
        F::Addsd => (L::Add, Shape::Sd),
        F::Subps => (L::Sub, Shape::Ps),
        F::Subpd => (L::Sub, Shape::Pd),
        F::Subss => (L::Sub, Shape::Ss),
        F::Subsd => (L::Sub, Shape::Sd),
        F::Mulps => (L::Mul, Shape::Ps),
        F::Mulpd => (L::Mul, Shape::Pd),
        F::Mulss => (L::Mul, Shape::Ss),
        F::Mulsd => (L::Mul, Shape::Sd),
        F::Divps => (L::Div, Shape::Ps),
        F::Divpd => (L::Div, Shape::Pd),
        F::Divss => (L::Div, Shape::Ss),
        F::Divsd => (L::Div, Shape::Sd),
        F::Minps => (L::Min, Shape::Ps),
        F::Minpd => (L::Min, Shape::Pd),
        F::Minss => (L::Min, Shape::Ss),
        F::Minsd => (L::Min, Shape::Sd),
        F::Maxps => (L::Max, Shape::Ps),
        F::Maxpd => (L::Max, Shape::Pd),
        F::Maxss => (L::Max, Shape::Ss),
        F::Maxsd => (L::Max, Shape::Sd),
        F::Sqrtps => (L::Sqrt, Shape::Ps),
        F::Sqrtpd => (L::Sqrt, Shape::Pd),
        F::Sqrtss => (L::Sqrt, Shape::Ss),
        F::Sqrtsd => (L::Sqrt, Shape::Sd),
        F::Cmpps => (L::Compare, Shape::Ps),
        F::Cmppd => (L::Compare, Shape::Pd),
        F::Cmpss => (L::Compare, Shape::Ss),
        F::Cmpsd => (L::Compare, Shape::Sd),
        F::Rcpps => (L::Reciprocal, Shape::Ps),
        F::Rcpss => (L::Reciprocal, Shape::Ss),
        F::Rsqrtps => (L::ReciprocalRoot, Shape::Ps),
        F::Rsqrtss => (L::ReciprocalRoot, Shape::Ss),
        F::Comiss => return ordered(core, cx, op, form, F32, true),
        F::Comisd => return ordered(core, cx, op, form, F64, true),
        F::Ucomiss => return ordered(core, cx, op, form, F32, false),
        F::Ucomisd => return ordered(core, cx, op, form, F64, false),
    };
    let source = match shape {
        Shape::Ps | Shape::Pd => core.source128(cx, op, form)?,
        Shape::Ss => u128::from(core.source32(cx, op, form)?),
        Shape::Sd => u128::from(core.source64(cx, op, form)?),
    };
    let destination = core.xmm[slot(op.a)];
    let mut context = Context::from_mxcsr(core.mxcsr);
    let (format, width, lanes) = match shape {
        Shape::Ps => (F32, 32, 4),
        Shape::Pd => (F64, 64, 2),
        Shape::Ss => (F32, 32, 1),
        Shape::Sd => (F64, 64, 1),
    };
    let lane_mask = u128::from(u64::MAX >> (64 - width));
    let mut result = destination;
    for i in 0..lanes {
        let at = i * width;
        let a = super::softfloat::low64(destination >> at & lane_mask);
        let b = super::softfloat::low64(source >> at & lane_mask);
        let value = one(&mut context, lane, format, a, b, form.imm8());
        result = result & !(lane_mask << at) | (u128::from(value) & lane_mask) << at;
    }
    core.simd_flags(&context)?;
    core.xmm[slot(op.a)] = result;
    Ok(())
}

/// One lane.
fn one(context: &mut Context, lane: Lane, format: Format, a: u64, b: u64, predicate: u8) -> u64 {
    match lane {
        Lane::Add => context.add(format, a, b),
        Lane::Sub => context.sub(format, a, b),
        Lane::Mul => context.mul(format, a, b),
        Lane::Div => context.div(format, a, b),
        Lane::Min => context.min_max(format, a, b, Relation::Less),
        Lane::Max => context.min_max(format, a, b, Relation::Greater),
        Lane::Sqrt => context.sqrt(format, b),
        Lane::Compare => {
            if compare(context, format, a, b, predicate) {
                u64::MAX
            } else {
                0
            }
        }
        Lane::Reciprocal => reciprocal(b),
        Lane::ReciprocalRoot => reciprocal_root(b),
    }
}

/// The eight predicates of CMPPS and its like (SDM volume 2, table 3-1). Less-than and its negation signal for any NaN.
fn compare(context: &mut Context, format: Format, a: u64, b: u64, predicate: u8) -> bool {
    let predicate = predicate & 7;
    let relation = context.compare(format, a, b, matches!(predicate & 3, 1 | 2));
    let holds = match predicate & 3 {
        0 => relation == Relation::Equal,
        1 => relation == Relation::Less,
        2 => matches!(relation, Relation::Less | Relation::Equal),
        _ => relation == Relation::Unordered,
    };
    holds != (predicate & 4 != 0)
}

/// COMISS and its like: the relation goes to ZF, PF and CF; OF, SF and AF are cleared.
fn ordered(
    core: &mut Core,
    cx: &mut Ctx<'_>,
    op: &Op,
    form: Form,
    format: Format,
    signalling: bool,
) -> Result<(), Faulted> {
    let (a, b) = if format == F32 {
        (
            u64::from(low32(core.xmm[slot(op.a)])),
            u64::from(core.source32(cx, op, form)?),
        )
    } else {
        (
            super::softfloat::low64(core.xmm[slot(op.a)]),
            core.source64(cx, op, form)?,
        )
    };
    let mut context = Context::from_mxcsr(core.mxcsr);
    let relation = context.compare(format, a, b, signalling);
    core.simd_flags(&context)?;
    core.set_flags_explicit(match relation {
        Relation::Unordered => ZF | PF | CF,
        Relation::Greater => 0,
        Relation::Less => CF,
        Relation::Equal => ZF,
    });
    Ok(())
}

/// Rounds a significand to its 12 leading bits, the precision that the approximations guarantee.
fn coarse(bits: u64) -> u64 {
    (bits + (1 << 11)) & !0xfff
}

/// RCPPS: about 1/x. The architecture only bounds the relative error by 1.5 * 2^-12; here the result is the quotient
/// rounded to 12 bits. Denormal operands and tiny results become zero regardless of MXCSR, and no flag is set.
fn reciprocal(x: u64) -> u64 {
    approximate(x, |context, x| context.div(F32, ONE, x))
}

/// RSQRTPS: about 1/sqrt(x), to 12 bits; see [`reciprocal`].
fn reciprocal_root(x: u64) -> u64 {
    let negative = x & F32.sign_bit() != 0;
    if negative && !F32.is_nan(x) && x != F32.sign_bit() && !F32.is_denormal(x) {
        return F32.default_nan();
    }
    approximate(x, |context, x| {
        let root = context.sqrt(F32, x);
        context.div(F32, ONE, root)
    })
}

/// 1.0 in single precision.
const ONE: u64 = 0x3f80_0000;

fn approximate(x: u64, f: impl Fn(&mut Context, u64) -> u64) -> u64 {
    if F32.is_nan(x) {
        return x | F32.quiet_bit();
    }
    // Everything masked, to nearest, denormals and tiny results flushed.
    let mut context = Context::from_mxcsr(0x9fc0);
    let value = f(&mut context, x);
    let magnitude = value & !F32.sign_bit();
    if magnitude == 0 || magnitude == F32.infinity(false) {
        value
    } else {
        coarse(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicates_come_in_complementary_pairs() {
        let values = [
            0u64,
            0x8000_0000,
            0x3f80_0000,
            0xbf80_0000,
            0x7fc0_0000,
            0x7f80_0000,
        ];
        for a in values {
            for b in values {
                for predicate in 0..4 {
                    let mut context = Context::from_mxcsr(0x1f80);
                    let plain = compare(&mut context, F32, a, b, predicate);
                    let negated = compare(&mut context, F32, a, b, predicate + 4);
                    assert_ne!(plain, negated, "{a:#x} {b:#x} {predicate}");
                }
            }
        }
    }

    #[test]
    fn approximations_keep_their_promise() {
        for step in 1..2000u32 {
            #[allow(clippy::cast_precision_loss)]
            let x = step as f32 * 0.37;
            let close = |bits: u64, exact: f64| {
                let got = f64::from(f32::from_bits(u32::try_from(bits).unwrap()));
                (got / exact - 1.0).abs() <= 1.5 / 4096.0
            };
            assert!(close(reciprocal(u64::from(x.to_bits())), 1.0 / f64::from(x)));
            assert!(close(
                reciprocal_root(u64::from(x.to_bits())),
                1.0 / f64::from(x).sqrt()
            ));
        }
        assert_eq!(reciprocal(0x8000_0000), F32.infinity(true));
        assert_eq!(reciprocal_root(0x8000_0000), F32.infinity(true));
    }
}
