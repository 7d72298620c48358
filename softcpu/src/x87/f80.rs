//! The 80-bit extended format: classes of its bit patterns, and exact or rounded conversion.

use crate::sse::softfloat::{Context, F64, Format, Kind, Number, flag, low64};

/// An extended-precision value, as in [`super::X87::registers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct F80(pub u128);

/// The leading bit of the significand, which the format stores.
const LEADING: u64 = 1 << 63;
/// The bit that is set in a quiet NaN.
const QUIET: u64 = 1 << 62;
const BIAS: i32 = 0x3fff;
const SPECIAL: u16 = 0x7fff;

/// Class of an extended value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Number(Number),
    Nan {
        signalling: bool,
    },
    /// A bit pattern that is not a valid operand (SDM volume 1, section 8.2.2).
    Unsupported,
}

impl F80 {
    /// The quiet NaN that an invalid operation gives.
    pub const DEFAULT_NAN: Self = Self((0xffff << 64) | 0xc000_0000_0000_0000);
    pub const ONE: Self = Self((0x3fff << 64) | 0x8000_0000_0000_0000);
    pub const ZERO: Self = Self(0);

    fn new(sign: bool, biased: u16, significand: u64) -> Self {
        Self(u128::from(sign) << 79 | u128::from(biased) << 64 | u128::from(significand))
    }

    pub fn significand(self) -> u64 {
        low64(self.0)
    }

    pub fn biased(self) -> u16 {
        u16::try_from(self.0 >> 64 & 0x7fff).unwrap_or(0)
    }

    pub fn sign(self) -> bool {
        self.0 >> 79 & 1 != 0
    }

    pub fn with_sign(self, sign: bool) -> Self {
        Self::new(sign, self.biased(), self.significand())
    }

    pub fn classify(self) -> Class {
        let (sign, significand) = (self.sign(), self.significand());
        let number = |kind| Class::Number(Number { sign, kind });
        match self.biased() {
            0 if significand == 0 => number(Kind::Zero),
            SPECIAL if significand == LEADING => number(Kind::Infinity),
            SPECIAL if significand & LEADING != 0 => Class::Nan {
                signalling: significand & QUIET == 0,
            },
            biased if biased == 0 || significand & LEADING != 0 => number(Kind::Finite {
                exponent: i32::from(biased.max(1)) - BIAS - 63,
                significand,
            }),
            _ => Class::Unsupported,
        }
    }

    /// The exact value of a number in single or double precision. Sets flags in `context`.
    pub fn widen(context: &mut Context, format: Format, bits: u64) -> Self {
        let sign = bits & format.sign_bit() != 0;
        if format.is_nan(bits) {
            if format.is_signalling(bits) {
                context.raised |= flag::IE;
            }
            let fraction = bits << (63 - format.fraction_bits);
            return Self::new(sign, SPECIAL, fraction & (QUIET - 1) | LEADING | QUIET);
        }
        match format.unpack(bits).kind {
            Kind::Zero => Self::new(sign, 0, 0),
            Kind::Infinity => Self::new(sign, SPECIAL, LEADING),
            Kind::Finite {
                exponent,
                significand,
            } => {
                if format.is_denormal(bits) {
                    context.raised |= flag::DE;
                }
                Self::scaled(sign, exponent, significand)
            }
        }
    }

    /// `significand * 2^exponent`, within range and not zero.
    fn scaled(sign: bool, exponent: i32, significand: u64) -> Self {
        let shift = significand.leading_zeros();
        let biased = exponent + 63 - shift.cast_signed() + BIAS;
        Self::new(
            sign,
            u16::try_from(biased).unwrap_or(SPECIAL),
            significand << shift,
        )
    }

    /// An integer, exactly.
    pub fn from_integer(value: i64) -> Self {
        if value == 0 {
            Self::ZERO
        } else {
            Self::scaled(value < 0, 0, value.unsigned_abs())
        }
    }

    /// The value rounded to single or double precision. Sets flags in `context`.
    pub fn narrow(self, context: &mut Context, format: Format) -> u64 {
        match self.classify() {
            Class::Unsupported => {
                context.raised |= flag::IE;
                format.default_nan()
            }
            Class::Nan { signalling } => {
                if signalling {
                    context.raised |= flag::IE;
                }
                let fraction = (self.significand() & (QUIET - 1)) >> (63 - format.fraction_bits);
                format.infinity(self.sign()) | format.quiet_bit() | fraction
            }
            Class::Number(Number { sign, kind }) => match kind {
                Kind::Zero => format.zero(sign),
                Kind::Infinity => format.infinity(sign),
                Kind::Finite {
                    exponent,
                    significand,
                } => context.round(format, sign, exponent, u128::from(significand)),
            },
        }
    }

    /// The value rounded to a signed integer of `bits` bits, sign-extended.
    pub fn to_integer(self, context: &mut Context, bits: u32) -> i64 {
        match self.classify() {
            Class::Number(number) => context.number_to_integer(number, bits, false),
            // Any NaN gives the integer indefinite.
            _ => context.integer(F64, F64.default_nan(), bits, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::softfloat::F32;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn widening_and_narrowing_gives_the_number_back(bits: u64) {
            let mut context = Context::from_control_word(0x37f);
            let wide = F80::widen(&mut context, F64, bits);
            let back = wide.narrow(&mut context, F64);
            let expected = if F64.is_nan(bits) { bits | F64.quiet_bit() } else { bits };
            prop_assert_eq!(back, expected);
            let single = bits & 0xffff_ffff;
            let wide = F80::widen(&mut context, F32, single);
            let expected = if F32.is_nan(single) { single | F32.quiet_bit() } else { single };
            prop_assert_eq!(wide.narrow(&mut context, F32), expected);
        }

        #[test]
        fn integers_survive(value: i64) {
            let mut context = Context::from_control_word(0x37f);
            prop_assert_eq!(F80::from_integer(value).to_integer(&mut context, 64), value);
            prop_assert_eq!(context.raised, 0);
        }
    }

    #[test]
    fn pseudo_values_are_told_apart() {
        assert_eq!(F80(1 << 64 | 1).classify(), Class::Unsupported, "unnormal");
        assert_eq!(
            F80(0x7fff << 64).classify(),
            Class::Unsupported,
            "pseudo-infinity"
        );
        assert!(
            matches!(F80(1 << 63).classify(), Class::Number(_)),
            "pseudo-denormal"
        );
        assert_eq!(F80::DEFAULT_NAN.classify(), Class::Nan { signalling: false });
    }
}
