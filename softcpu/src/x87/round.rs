//! Rounding to the extended format.

use super::F80;
use super::f80::{LARGEST_EXPONENT, SMALLEST_EXPONENT};
use crate::sse::softfloat::{Context, Exact, Rounding, flag, low64};

/// Precision of the extended format, in bits.
pub(super) const FULL: u32 = 64;
/// What an unmasked overflow or underflow adds to or subtracts from the exponent of its result (SDM volume 1, sections
/// 8.5.4 and 8.5.5).
const ADJUSTMENT: i32 = 0x6000;

/// Precision that the control word asks for, in bits. The reserved value means full precision.
pub(super) fn precision(control: u16) -> u32 {
    match control >> 8 & 3 {
        0 => 24,
        2 => 53,
        _ => FULL,
    }
}

impl Context {
    /// A result as extended number of `precision` bits (but with the exponents of the extended format). Sets flags.
    pub(super) fn extended(&mut self, precision: u32, exact: Exact) -> F80 {
        match exact {
            Exact::Finite {
                sign,
                exponent,
                significand,
            } => self.round_extended(precision, sign, exponent, significand),
            Exact::Zero { sign } => F80::zero(sign),
            Exact::Infinity { sign } => F80::infinity(sign),
            Exact::Pole { sign } => {
                self.raised |= flag::ZE;
                F80::infinity(sign)
            }
            Exact::Invalid => {
                self.raised |= flag::IE;
                F80::DEFAULT_NAN
            }
        }
    }

    fn round_extended(&mut self, precision: u32, sign: bool, exponent: i32, significand: u128) -> F80 {
        let shift = significand.leading_zeros();
        let significand = significand << shift;
        let leading = exponent + 127 - shift.cast_signed();
        let (kept, rest) = (significand >> (128 - precision), significand << precision);
        let up = self.rounding.rounds_up(sign, kept & 1 != 0, rest);
        let (mut rounded, mut top) = (kept + u128::from(up), leading);
        if rounded >> precision != 0 {
            rounded >>= 1;
            top += 1;
        }
        self.rounded_up = up;
        if top < SMALLEST_EXPONENT {
            if self.masked & flag::UE != 0 {
                return self.round_denormal(precision, sign, leading, significand);
            }
            self.raised |= flag::UE;
            top += ADJUSTMENT;
            if top < SMALLEST_EXPONENT {
                // Only FSCALE gets so far.
                self.raised |= flag::PE;
                self.rounded_up = false;
                return F80::zero(sign);
            }
        } else if top > LARGEST_EXPONENT {
            self.raised |= flag::OE;
            if self.masked & flag::OE != 0 {
                return self.overflow(precision, sign);
            }
            top -= ADJUSTMENT;
            if top > LARGEST_EXPONENT {
                self.raised |= flag::PE;
                self.rounded_up = true;
                return F80::infinity(sign);
            }
        }
        if rest != 0 {
            self.raised |= flag::PE;
        }
        F80::finite(sign, top, low64(rounded) << (FULL - precision))
    }

    /// A number below the smallest normal one. `significand` has its leading bit, which stands for `2^leading`, on top.
    fn round_denormal(&mut self, precision: u32, sign: bool, leading: i32, significand: u128) -> F80 {
        let cut = 128 - precision + (SMALLEST_EXPONENT - leading).unsigned_abs();
        let (kept, rest) = match cut {
            0..=127 => (significand >> cut, significand << (128 - cut)),
            128 => (0, significand),
            // Below half of the smallest number, rounding depends only on the value not being zero.
            _ => (0, 1),
        };
        let up = self.rounding.rounds_up(sign, kept & 1 != 0, rest);
        self.rounded_up = up;
        if rest != 0 {
            self.raised |= flag::UE | flag::PE;
        }
        F80::denormal(sign, low64(kept + u128::from(up)) << (FULL - precision))
    }

    fn overflow(&mut self, precision: u32, sign: bool) -> F80 {
        self.raised |= flag::PE;
        let to_infinity = match self.rounding {
            Rounding::Nearest => true,
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Zero => false,
        };
        self.rounded_up = to_infinity;
        if to_infinity {
            F80::infinity(sign)
        } else {
            F80::finite(sign, LARGEST_EXPONENT, u64::MAX << (FULL - precision))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::softfloat::F64;
    use proptest::prelude::*;

    fn one_and(significand: u128) -> Exact {
        Exact::Finite {
            sign: false,
            exponent: -126,
            significand: 1 << 126 | significand,
        }
    }

    proptest! {
        /// With 53 bits and exponents that a double has, the result is the double.
        #[test]
        fn reduced_precision_is_that_of_the_shorter_format(
            significand in 1u128..,
            exponent in -1000i32..800,
            sign: bool,
            rounding in 0u16..4,
        ) {
            let mut context = Context::from_control_word(0x7f | rounding << 10);
            let mut other = context;
            let exact = Exact::Finite { sign, exponent, significand };
            let found = context.extended(53, exact);
            let double = other.round(F64, sign, exponent, significand);
            prop_assert_eq!((context.raised, context.rounded_up), (other.raised, other.rounded_up));
            prop_assert_eq!(found, F80::widen(&mut other, F64, double));
        }
    }

    #[test]
    fn a_carry_out_of_the_significand_raises_the_exponent() {
        let mut context = Context::from_control_word(0x37f);
        let found = context.extended(FULL, one_and((1 << 126) - 1));
        assert_eq!(
            (found, context.raised, context.rounded_up),
            (F80(0x4000 << 64 | 1 << 63), flag::PE, true)
        );
    }

    #[test]
    fn a_carry_out_of_a_denormal_makes_it_normal() {
        let mut context = Context::from_control_word(0x37f);
        // A bit less than the smallest normal number by less than half of a denormal's last place.
        let exact = Exact::Finite {
            sign: true,
            exponent: SMALLEST_EXPONENT - 128,
            significand: u128::MAX,
        };
        let found = context.extended(FULL, exact);
        assert_eq!(found, F80(1 << 79 | 1 << 64 | 1 << 63));
        assert_eq!(context.raised, flag::PE, "rounded to a number that is not tiny");
    }

    #[test]
    fn what_is_not_masked_gets_another_exponent() {
        let tiny = Exact::Finite {
            sign: false,
            exponent: SMALLEST_EXPONENT - 2,
            significand: 1,
        };
        let huge = Exact::Finite {
            sign: false,
            exponent: LARGEST_EXPONENT + 1,
            significand: 1,
        };
        let mut context = Context::from_control_word(0x340);
        assert_eq!(context.extended(FULL, tiny).biased(), 0x6000 - 1);
        assert_eq!(context.raised, flag::UE, "tiny and exact");
        let mut context = Context::from_control_word(0x340);
        assert_eq!(context.extended(FULL, huge).biased(), 0x7fff - 0x6000);
        assert_eq!(context.raised, flag::OE);
        let mut context = Context::from_control_word(0x37f);
        assert_eq!(context.extended(FULL, tiny).biased(), 0);
        assert_eq!(
            context.raised, 0,
            "an exact denormal does not underflow while that is masked"
        );
        assert_eq!(context.extended(FULL, huge), F80::infinity(false));
        assert_eq!(context.raised, flag::OE | flag::PE);
    }
}
