//! The transcendental functions: their special operands, and rounding what [`super::series`] computes.
//!
//! Results are rounded once from more than 110 bits, as the control word's rounding says and always to full precision,
//! so they are the correctly rounded ones but for about one argument in 2^45. Processors promise an error below one
//! unit in the last place. The argument of a trigonometric function is reduced with as many bits of pi as it takes;
//! processors take 66 bits, and so err by more near multiples of pi (SDM volume 1, section 8.3.8).

use std::cmp::Ordering;

use super::F80;
use super::arithmetic::{Operand, note_denormals, number, numbers};
use super::round::FULL;
use super::series::{self, Real};
use crate::sse::softfloat::{Context, Exact, Kind, Number, product};

/// A finite number that is not zero.
struct Finite {
    sign: bool,
    magnitude: Real,
}

impl Finite {
    fn of(number: Number) -> Option<Self> {
        let Kind::Finite {
            exponent,
            significand,
        } = number.kind
        else {
            return None;
        };
        Some(Self {
            sign: number.sign,
            magnitude: Real::of(significand, exponent),
        })
    }
}

const ONE: Number = Number {
    sign: false,
    kind: Kind::Finite {
        exponent: 0,
        significand: 1,
    },
};

const ZERO: Number = Number {
    sign: false,
    kind: Kind::Zero,
};

/// Whether the magnitude of a number is below that of `2^exponent`.
fn below_power(number: &Finite, exponent: i32) -> bool {
    number.magnitude.exponent() < exponent
}

/// F2XM1: `2^a - 1`. For a magnitude of more than one, which the manuals leave undefined, the operand itself.
pub(super) fn exp2_minus_one(context: &mut Context, a: Operand) -> F80 {
    let x = match number(context, a) {
        Ok(x) => x,
        Err(nan) => return nan,
    };
    note_denormals(context, [a]);
    let exact = match Finite::of(x) {
        None if x.kind == Kind::Infinity && x.sign => ONE.negated().exact(),
        None => x.exact(),
        Some(finite) if below_power(&finite, 0) => {
            series::exp2_minus_one(finite.sign, finite.magnitude).irrational(finite.sign)
        }
        // 2^-1 - 1 is -1/2.
        Some(_) if x.order(ONE.negated()).is_eq() => Exact::Finite {
            sign: true,
            exponent: -1,
            significand: 1,
        },
        Some(_) => return a.value,
    };
    context.extended(FULL, exact)
}

/// FYL2X: `b * log2(a)`.
pub(super) fn logarithm(context: &mut Context, a: Operand, b: Operand) -> F80 {
    let (x, y) = match numbers(context, a, b) {
        Ok(pair) => pair,
        Err(nan) => return nan,
    };
    if x.sign && x.kind != Kind::Zero {
        return context.extended(FULL, Exact::Invalid);
    }
    let exact = match (Finite::of(x), Finite::of(y)) {
        (Some(argument), Some(factor)) => match power_of_two(x) {
            Some(power) => product(power, y),
            None => {
                let (negative, log) = series::log2(argument.magnitude);
                log.times(factor.magnitude).irrational(negative != factor.sign)
            }
        },
        // log2(0) is minus infinity, a pole unless the factor is an infinity itself.
        (None, _) if x.kind == Kind::Zero => match y.kind {
            Kind::Zero => Exact::Invalid,
            Kind::Infinity => Exact::Infinity { sign: !y.sign },
            Kind::Finite { .. } => Exact::Pole { sign: !y.sign },
        },
        (None, _) => product(x, y),
        // The sign of the logarithm, or zero, times zero or infinity.
        (Some(_), None) => match x.order(ONE) {
            Ordering::Equal => product(ZERO, y),
            order => Number {
                sign: y.sign != order.is_lt(),
                ..y
            }
            .exact(),
        },
    };
    finish(context, exact, [a, b])
}

/// The logarithm of a power of two.
fn power_of_two(x: Number) -> Option<Number> {
    let Kind::Finite {
        exponent,
        significand,
    } = x.kind
    else {
        return None;
    };
    let power = exponent + significand.trailing_zeros().cast_signed();
    (significand & (significand - 1) == 0).then_some(Number {
        sign: power < 0,
        kind: if power == 0 {
            Kind::Zero
        } else {
            Kind::Finite {
                exponent: 0,
                significand: u64::from(power.unsigned_abs()),
            }
        },
    })
}

/// FYL2XP1: `b * log2(1 + a)`. The manuals define it for magnitudes of `a` below 1 - sqrt(1/2) only. Up to a half this
/// is as good; beyond, `1 + a` is rounded first.
pub(super) fn logarithm_of_one_plus(context: &mut Context, a: Operand, b: Operand) -> F80 {
    let (x, y) = match numbers(context, a, b) {
        Ok(pair) => pair,
        Err(nan) => return nan,
    };
    let (Some(argument), Some(factor)) = (Finite::of(x), Finite::of(y)) else {
        let exact = if x.kind == Kind::Infinity && x.sign {
            Exact::Invalid
        } else {
            product(x, y)
        };
        return finish(context, exact, [a, b]);
    };
    if !below_power(&argument, -1) {
        let one = Operand::integer(1);
        let mut rounded = Context::from_control_word(0x37f);
        let sum = super::arithmetic::binary(&mut rounded, super::arithmetic::Binary::Add, FULL, a, one);
        return logarithm(context, Operand::register(sum.0), b);
    }
    let log = series::log2_of_one_plus(argument.sign, argument.magnitude);
    let exact = log
        .times(factor.magnitude)
        .irrational(argument.sign != factor.sign);
    finish(context, exact, [a, b])
}

/// FPATAN: the angle of the point (x, y).
pub(super) fn arc_tangent(context: &mut Context, y: Operand, x: Operand) -> F80 {
    let (ordinate, abscissa) = match numbers(context, y, x) {
        Ok(pair) => pair,
        Err(nan) => return nan,
    };
    let sign = ordinate.sign;
    let angle = match (Finite::of(ordinate), Finite::of(abscissa)) {
        (Some(over), Some(along)) => {
            let first = angle_in_range(over.magnitude, along.magnitude);
            Some(if abscissa.sign {
                series::straight_minus(first)
            } else {
                first
            })
        }
        _ => match (ordinate.kind, abscissa.kind) {
            (Kind::Infinity, Kind::Infinity) => Some(series::diagonal(abscissa.sign)),
            (Kind::Infinity, _) | (Kind::Finite { .. }, Kind::Zero) => Some(series::right_angle()),
            // On the x axis, or as good as on it.
            _ => abscissa.sign.then(series::straight_angle),
        },
    };
    let exact = angle.map_or(Exact::Zero { sign }, |angle| angle.irrational(sign));
    finish(context, exact, [y, x])
}

/// The angle in the first quadrant; a point so near to the y axis that 128 bits cannot tell is on it.
fn angle_in_range(y: Real, x: Real) -> Real {
    if y.exponent() - x.exponent() > 200 {
        series::right_angle()
    } else {
        series::angle(y, x)
    }
}

/// What FSIN, FCOS, FSINCOS and FPTAN make of their operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trigonometric {
    /// The magnitude is 2^63 or more: the operand stays as it is.
    OutOfRange,
    /// The operand is a NaN, or there is no result: a NaN.
    Nan(F80),
    Values {
        sine: F80,
        cosine: F80,
        tangent: F80,
    },
}

/// Which of the values of [`Trigonometric`] an instruction wants: the flags are those of computing them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub sine: bool,
    pub cosine: bool,
    pub tangent: bool,
}

/// Sine, cosine and tangent; those that are not `wanted` are zero.
pub(super) fn trigonometric(context: &mut Context, a: Operand, wanted: Wanted) -> Trigonometric {
    let x = match number(context, a) {
        Ok(x) => x,
        Err(nan) => return Trigonometric::Nan(nan),
    };
    let Some(finite) = Finite::of(x) else {
        return if x.kind == Kind::Infinity {
            Trigonometric::Nan(context.extended(FULL, Exact::Invalid))
        } else {
            Trigonometric::Values {
                sine: a.value,
                cosine: F80::ONE,
                tangent: a.value,
            }
        };
    };
    if !below_power(&finite, 63) {
        return Trigonometric::OutOfRange;
    }
    note_denormals(context, [a]);
    let both = series::sine_cosine(finite.magnitude);
    let ((sine_sign, sine), (cosine_sign, cosine)) = (both.sine, both.cosine);
    // Sine and tangent are odd functions.
    let sine_sign = sine_sign != finite.sign;
    let mut value = |wanted: bool, exact: Exact| {
        if wanted {
            context.extended(FULL, exact)
        } else {
            F80::ZERO
        }
    };
    Trigonometric::Values {
        sine: value(wanted.sine, sine.irrational(sine_sign)),
        cosine: value(wanted.cosine, cosine.irrational(cosine_sign)),
        tangent: value(
            wanted.tangent,
            sine.over(cosine).irrational(sine_sign != cosine_sign),
        ),
    }
}

fn finish(context: &mut Context, exact: Exact, operands: [Operand; 2]) -> F80 {
    if !matches!(exact, Exact::Invalid | Exact::Pole { .. }) {
        note_denormals(context, operands);
    }
    context.extended(FULL, exact)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::softfloat::{F64, flag};

    fn context() -> Context {
        Context::from_control_word(0x37f)
    }

    fn operand(value: f64) -> Operand {
        Operand::float(F64, value.to_bits())
    }

    #[test]
    fn results_are_the_correctly_rounded_ones() {
        // Computed with 600 bits by mpmath 1.3.
        let mut cx = context();
        let half = operand(0.5);
        assert_eq!(exp2_minus_one(&mut cx, half).0, 0x3ffd_d413_cccf_e779_9211);
        assert_eq!(
            logarithm(&mut cx, operand(10.0), operand(1.0)).0,
            0x4000_d49a_784b_cd1b_8afe
        );
        assert_eq!(
            logarithm_of_one_plus(&mut cx, operand(0.25), operand(1.0)).0,
            0x3ffd_a4d3_c25e_68dc_57f2
        );
        assert_eq!(
            arc_tangent(&mut cx, operand(1.0), operand(1.0)).0,
            0x3ffe_c90f_daa2_2168_c235
        );
        assert_eq!(
            arc_tangent(&mut cx, operand(1.0), operand(-2.0)).0,
            0x4000_ab63_739c_bfad_72cc
        );
        let all = Wanted {
            sine: true,
            cosine: true,
            tangent: true,
        };
        let values = Trigonometric::Values {
            sine: F80(0x3ffe_d76a_a478_4867_7021),
            cosine: F80(0x3ffe_8a51_407d_a834_5c92),
            tangent: F80(0x3fff_c759_22e5_f71d_2dc5),
        };
        assert_eq!(trigonometric(&mut cx, operand(1.0), all), values);
        assert_eq!(cx.raised, flag::PE);
    }

    #[test]
    fn exact_results_are_exact() {
        let mut cx = context();
        assert_eq!(exp2_minus_one(&mut cx, operand(1.0)), F80::ONE);
        assert_eq!(exp2_minus_one(&mut cx, operand(-1.0)), operand(-0.5).value);
        assert_eq!(
            logarithm(&mut cx, operand(1024.0), operand(0.75)),
            operand(7.5).value
        );
        assert_eq!(logarithm(&mut cx, operand(1.0), operand(-3.0)), F80::zero(true));
        assert_eq!(arc_tangent(&mut cx, operand(-0.0), operand(3.0)), F80::zero(true));
        assert_eq!(cx.raised, 0);
    }

    #[test]
    fn there_is_no_logarithm_of_a_negative_number() {
        let mut cx = context();
        assert_eq!(logarithm(&mut cx, operand(-2.0), operand(1.0)), F80::DEFAULT_NAN);
        assert_eq!(cx.raised, flag::IE);
        let mut cx = context();
        assert_eq!(
            logarithm(&mut cx, operand(0.0), operand(2.0)),
            F80::infinity(true)
        );
        assert_eq!(cx.raised, flag::ZE);
    }

    #[test]
    fn a_tiny_argument_is_not_its_own_sine_when_rounding_to_zero() {
        let mut cx = Context::from_control_word(0xf7f);
        let tiny = operand(2f64.powi(-600));
        let wanted = Wanted {
            sine: true,
            cosine: false,
            tangent: false,
        };
        let Trigonometric::Values { sine, .. } = trigonometric(&mut cx, tiny, wanted) else {
            panic!("out of range")
        };
        // The next number below 2^-600.
        assert_eq!(sine.0, (0x3fff - 601) << 64 | u128::from(u64::MAX));
    }
}
