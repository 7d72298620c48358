//! Conversion between formats and integers.

use super::{Context, Format, Kind, Number, Rounding, flag, low64};

impl Context {
    /// Converts between the two formats.
    pub fn convert(&mut self, from: Format, to: Format, bits: u64) -> u64 {
        let bits = self.operand(from, bits);
        let sign = from.negative(bits);
        if from.is_nan(bits) {
            if from.is_signalling(bits) {
                self.raise(flag::IE);
            }
            let fraction = bits & from.fraction_mask();
            let fraction = if from.fraction_bits > to.fraction_bits {
                fraction >> (from.fraction_bits - to.fraction_bits)
            } else {
                fraction << (to.fraction_bits - from.fraction_bits)
            };
            return to.infinity(sign) | to.quiet_bit() | fraction;
        }
        match from.unpack(bits).kind {
            Kind::Zero => to.zero(sign),
            Kind::Infinity => to.infinity(sign),
            Kind::Finite {
                exponent,
                significand,
            } => {
                self.note_denormal(from, bits);
                self.round(to, sign, exponent, u128::from(significand))
            }
        }
    }

    /// A signed integer as a floating-point number.
    pub fn encode_integer(&mut self, format: Format, value: i64) -> u64 {
        if value == 0 {
            return format.zero(false);
        }
        self.round(format, value < 0, 0, u128::from(value.unsigned_abs()))
    }

    /// A floating-point number as a signed integer of `bits` bits, sign-extended; out of range is invalid and gives
    /// the integer indefinite, the smallest value there is.
    pub fn integer(&mut self, format: Format, value: u64, bits: u32, truncate: bool) -> i64 {
        let value = self.operand(format, value);
        if format.is_nan(value) {
            return self.integer_indefinite(bits);
        }
        self.number_to_integer(format.unpack(value), bits, truncate)
    }

    fn integer_indefinite(&mut self, bits: u32) -> i64 {
        self.raise(flag::IE);
        i64::MIN >> (64 - bits)
    }

    /// As [`Self::integer`], for a value already taken apart.
    pub fn number_to_integer(&mut self, value: Number, bits: u32, truncate: bool) -> i64 {
        let (exponent, significand) = match value.kind {
            Kind::Zero => return 0,
            Kind::Infinity => return self.integer_indefinite(bits),
            Kind::Finite {
                exponent,
                significand,
            } => (exponent, significand),
        };
        if exponent >= 64 {
            return self.integer_indefinite(bits);
        }
        let rounding = if truncate { Rounding::Zero } else { self.rounding };
        let (kept, rest) = match exponent {
            0.. => (u128::from(significand) << exponent, 0),
            -64..=-1 => {
                let cut = exponent.unsigned_abs();
                (
                    u128::from(significand) >> cut,
                    u128::from(significand) << (128 - cut),
                )
            }
            // Less than a half.
            _ => (0, 1),
        };
        let up = rounding.rounds_up(value.sign, kept & 1 != 0, rest);
        let magnitude = kept + u128::from(up);
        let limit = (1u128 << (bits - 1)) - u128::from(!value.sign);
        if magnitude > limit {
            return self.integer_indefinite(bits);
        }
        self.rounded_up = up;
        if rest != 0 {
            self.raise(flag::PE);
        }
        let magnitude = low64(magnitude).cast_signed();
        if value.sign {
            magnitude.wrapping_neg()
        } else {
            magnitude
        }
    }
}
