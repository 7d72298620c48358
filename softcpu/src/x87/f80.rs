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
/// Exponent of the smallest normal number.
pub(super) const SMALLEST_EXPONENT: i32 = 1 - BIAS;
/// Exponent of the largest finite numbers.
pub(super) const LARGEST_EXPONENT: i32 = BIAS;

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

    pub fn zero(sign: bool) -> Self {
        Self::new(sign, 0, 0)
    }

    pub fn infinity(sign: bool) -> Self {
        Self::new(sign, SPECIAL, LEADING)
    }

    /// A normal number: the leading bit of its significand is set and stands for `2^exponent`, which is in range.
    pub fn finite(sign: bool, exponent: i32, significand: u64) -> Self {
        Self::new(
            sign,
            u16::try_from(exponent + BIAS).unwrap_or(SPECIAL),
            significand,
        )
    }

    /// A number with the smallest exponent. With the leading bit set it is the smallest normal one.
    pub fn denormal(sign: bool, significand: u64) -> Self {
        Self::new(sign, u16::from(significand & LEADING != 0), significand)
    }

    pub fn is_denormal(self) -> bool {
        self.biased() == 0 && self.significand() != 0
    }

    /// A NaN made quiet.
    pub fn quiet(self) -> Self {
        Self(self.0 | u128::from(QUIET))
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

    /// The same value, or NaN, in another format.
    pub fn exactly(format: Format, bits: u64) -> Self {
        let sign = format.negative(bits);
        if format.is_nan(bits) {
            let fraction = bits << (63 - format.fraction_bits);
            return Self::new(sign, SPECIAL, fraction | LEADING);
        }
        match format.unpack(bits).kind {
            Kind::Zero => Self::zero(sign),
            Kind::Infinity => Self::infinity(sign),
            Kind::Finite {
                exponent,
                significand,
            } => Self::scaled(sign, exponent, significand),
        }
    }

    /// A number in single or double precision, as FLD loads it: a NaN becomes quiet. Sets flags in `context`.
    pub fn widen(context: &mut Context, format: Format, bits: u64) -> Self {
        if format.is_signalling(bits) {
            context.raised |= flag::IE;
        }
        if format.is_denormal(bits) {
            context.raised |= flag::DE;
        }
        let value = Self::exactly(format, bits);
        if format.is_nan(bits) { value.quiet() } else { value }
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
        Self::from_magnitude(value < 0, value.unsigned_abs())
    }

    /// An integer with its sign apart, so that there is a negative zero.
    pub fn from_magnitude(sign: bool, magnitude: u64) -> Self {
        if magnitude == 0 {
            Self::zero(sign)
        } else {
            Self::scaled(sign, 0, magnitude)
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

    proptest! {
        /// What is taken apart and put together again is the same.
        #[test]
        fn a_number_is_its_parts(bits in 0u128..1 << 80) {
            let value = F80(bits);
            if let Class::Number(number) = value.classify() {
                let again = match number.kind {
                    Kind::Zero => F80::zero(number.sign),
                    Kind::Infinity => F80::infinity(number.sign),
                    Kind::Finite { significand, .. } if value.biased() == 0 => {
                        // A pseudo-denormal becomes the normal number that it is.
                        prop_assert_eq!(F80::denormal(number.sign, significand).classify(), value.classify());
                        value
                    }
                    Kind::Finite { exponent, significand } => F80::finite(number.sign, exponent + 63, significand),
                };
                prop_assert_eq!(again, value);
            }
        }

        #[test]
        fn classes_are_those_of_the_fields(sign: bool, biased in 0u16..0x8000, significand: u64) {
            let value = F80::new(sign, biased, significand);
            prop_assert_eq!((value.sign(), value.biased(), value.significand()), (sign, biased, significand));
            let leading = significand >> 63 != 0;
            let expected = match (biased, leading) {
                (SPECIAL, true) if significand << 1 != 0 => Class::Nan { signalling: significand >> 62 & 1 == 0 },
                (SPECIAL, true) => Class::Number(Number { sign, kind: Kind::Infinity }),
                (1.., false) => Class::Unsupported,
                _ => value.classify(),
            };
            prop_assert_eq!(value.classify(), expected);
            prop_assert_eq!(value.is_denormal(), biased == 0 && significand != 0);
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
