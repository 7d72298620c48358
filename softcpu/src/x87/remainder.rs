//! FPREM and FPREM1: remainders, by at most 63 bits of the quotient at a time.

use super::F80;
use super::arithmetic::{Operand, note_denormals, numbers};
use super::round::FULL;
use crate::sse::softfloat::{Context, Exact, Kind, low64};

/// How the quotient is rounded to an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Division {
    /// FPREM.
    Truncated,
    /// FPREM1, as IEEE 754 defines the remainder.
    Nearest,
}

/// A remainder, or one on the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Remainder {
    pub value: F80,
    pub progress: Progress,
}

/// How far a division got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// To its end.
    Complete {
        /// The last bits of the quotient.
        quotient: u64,
    },
    /// Part of the way: the value must be divided again.
    Partial,
    /// There is no remainder: an operand is a NaN, or the operation is invalid.
    NotANumber,
}

/// The remainder of `a / b`, or what is left after 32 to 63 bits of the quotient if there are more than 64. The
/// architecture leaves their number to the processor; here it is that of Intel's.
pub(super) fn remainder(context: &mut Context, a: Operand, b: Operand, division: Division) -> Remainder {
    let none = |value| Remainder {
        value,
        progress: Progress::NotANumber,
    };
    let (x, y) = match numbers(context, a, b) {
        Ok(pair) => pair,
        Err(nan) => return none(nan),
    };
    let sign = x.sign;
    let (ea, sa, eb, sb) = match (x.kind, y.kind) {
        (Kind::Infinity, _) | (_, Kind::Zero) => return none(context.extended(FULL, Exact::Invalid)),
        (Kind::Zero, _) | (_, Kind::Infinity) => {
            note_denormals(context, [a, b]);
            return Remainder {
                value: context.extended(FULL, x.exact()),
                progress: Progress::Complete { quotient: 0 },
            };
        }
        (
            Kind::Finite {
                exponent: ea,
                significand: sa,
            },
            Kind::Finite {
                exponent: eb,
                significand: sb,
            },
        ) => (ea, sa, eb, sb),
    };
    note_denormals(context, [a, b]);
    let (la, lb) = (sa.leading_zeros(), sb.leading_zeros());
    let (dividend, divisor) = (u128::from(sa << la), u128::from(sb << lb));
    let (ea, eb) = (ea - la.cast_signed(), eb - lb.cast_signed());
    let apart = ea - eb;
    let mut finish = |sign, exponent, rest: u128, progress| Remainder {
        value: if rest == 0 {
            F80::zero(sign)
        } else {
            let exact = Exact::Finite {
                sign,
                exponent,
                significand: rest,
            };
            context.extended(FULL, exact)
        },
        progress,
    };
    let complete = |quotient| Progress::Complete {
        quotient: low64(quotient),
    };
    match (apart, division) {
        (64.., _) => {
            let bits = apart.unsigned_abs() & 31 | 32;
            finish(
                sign,
                ea - bits.cast_signed(),
                (dividend << bits) % divisor,
                Progress::Partial,
            )
        }
        // Less than the divisor, or than half of it.
        (..0, Division::Truncated) | (..-1, Division::Nearest) => finish(sign, ea, dividend, complete(0)),
        (_, Division::Truncated) => {
            let scaled = dividend << apart.unsigned_abs();
            finish(sign, eb, scaled % divisor, complete(scaled / divisor))
        }
        (_, Division::Nearest) => {
            // In units of the smaller of the two exponents.
            let (scaled, divisor, exponent) = if apart < 0 {
                (dividend, divisor << 1, ea)
            } else {
                (dividend << apart.unsigned_abs(), divisor, eb)
            };
            let (quotient, rest) = (scaled / divisor, scaled % divisor);
            let above = divisor - rest;
            if rest > above || rest == above && quotient & 1 != 0 {
                finish(!sign, exponent, above, complete(quotient + 1))
            } else {
                finish(sign, exponent, rest, complete(quotient))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::softfloat::F64;
    use proptest::prelude::*;

    fn whole(a: f64, b: f64, division: Division) -> (f64, u64) {
        let mut context = Context::from_control_word(0x37f);
        let b = Operand::float(F64, b.to_bits());
        let mut a = Operand::float(F64, a.to_bits());
        loop {
            let step = remainder(&mut context, a, b, division);
            if let Progress::Complete { quotient } = step.progress {
                return (f64::from_bits(step.value.narrow(&mut context, F64)), quotient & 7);
            }
            a = Operand::register(step.value.0);
        }
    }

    proptest! {
        #[test]
        fn remainders_agree_with_those_of_integers(a: i32, b in 1i32.., shift in 0u32..40) {
            let (long, divisor) = (i64::from(a) << shift.min(20), i64::from(b));
            #[allow(clippy::cast_precision_loss)]
            let (x, y) = (long as f64, divisor as f64);
            let (rest, quotient) = whole(x, y, Division::Truncated);
            #[allow(clippy::cast_precision_loss)]
            let expected = (long % divisor) as f64;
            prop_assert_eq!(rest, expected);
            prop_assert_eq!(quotient, (long / divisor).unsigned_abs() & 7);
            let (nearest, _) = whole(x, y, Division::Nearest);
            prop_assert!(nearest.abs() * 2.0 <= y);
            prop_assert_eq!((x - nearest) % y, 0.0);
        }

        #[test]
        fn steps_lead_to_the_remainder_of_the_host(a in 1e-300f64..1e300, b in 1e-300f64..1e300) {
            prop_assert_eq!(whole(a, b, Division::Truncated).0, a % b);
        }
    }

    #[test]
    fn a_tie_goes_to_the_even_quotient() {
        assert_eq!(whole(5.0, 2.0, Division::Nearest), (1.0, 2));
        assert_eq!(whole(7.0, 2.0, Division::Nearest), (-1.0, 4));
        assert_eq!(whole(1.0, 2.0, Division::Nearest), (1.0, 0));
        assert_eq!(whole(-3.0, 2.0, Division::Nearest), (1.0, 2));
    }
}
