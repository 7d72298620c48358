//! IEEE 754 arithmetic in integers, with the x86 rules for flags, NaNs and denormals.
//!
//! A run must be the same on every host and must raise exactly the flags that hardware raises, and the host's floating point
//! gives neither flags nor directed rounding to Rust code. So every result is computed exactly (or exactly but for a sticky
//! last bit) as `significand * 2^exponent` with a 128-bit significand, and rounded once, by [`Context::round`].

/// Exception flags, in the bit order that MXCSR and the x87 status word share.
pub(crate) mod flag {
    /// Invalid operation.
    pub const IE: u32 = 1 << 0;
    /// Denormal operand.
    pub const DE: u32 = 1 << 1;
    /// Division by zero.
    pub const ZE: u32 = 1 << 2;
    /// Overflow.
    pub const OE: u32 = 1 << 3;
    /// Underflow.
    pub const UE: u32 = 1 << 4;
    /// Precision.
    pub const PE: u32 = 1 << 5;
    /// All six.
    pub const ALL: u32 = 0x3f;
}

/// Rounding modes in the order of MXCSR.RC and the x87 RC field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// From a two-bit RC field.
    pub fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }

    /// Whether the magnitude goes up: `odd` is the last bit kept, `rest` what is cut off, as a fraction of 2^128.
    fn rounds_up(self, sign: bool, odd: bool, rest: u128) -> bool {
        const HALF: u128 = 1 << 127;
        match self {
            Self::Nearest => rest > HALF || (rest == HALF && odd),
            Self::Down => sign && rest != 0,
            Self::Up => !sign && rest != 0,
            Self::Zero => false,
        }
    }
}

/// How to compute, and which flags came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub rounding: Rounding,
    /// Tiny results become zero (only while underflow is masked).
    pub flush_to_zero: bool,
    pub denormals_are_zero: bool,
    /// Exceptions that are masked.
    pub masked: u32,
    /// Exceptions that were raised.
    pub raised: u32,
    /// The last rounding increased the magnitude (x87's C1).
    pub rounded_up: bool,
}

impl Context {
    /// The context that MXCSR asks for; no flag raised yet.
    pub fn from_mxcsr(mxcsr: u32) -> Self {
        Self {
            rounding: Rounding::from_bits(mxcsr >> 13),
            flush_to_zero: mxcsr & (1 << 15) != 0,
            denormals_are_zero: mxcsr & (1 << 6) != 0,
            masked: mxcsr >> 7 & flag::ALL,
            raised: 0,
            rounded_up: false,
        }
    }

    /// The context that an x87 control word asks for.
    pub fn from_control_word(control: u16) -> Self {
        Self {
            rounding: Rounding::from_bits(u32::from(control >> 10)),
            flush_to_zero: false,
            denormals_are_zero: false,
            masked: u32::from(control) & flag::ALL,
            raised: 0,
            rounded_up: false,
        }
    }

    fn raise(&mut self, flags: u32) {
        self.raised |= flags;
    }

    /// Rounds `(-1)^sign * significand * 2^exponent` (significand not zero) to `format` and encodes it.
    pub fn round(&mut self, format: Format, sign: bool, exponent: i32, significand: u128) -> u64 {
        let shift = significand.leading_zeros();
        let significand = significand << shift;
        // Exponent of the leading bit.
        let leading = exponent + 127 - shift.cast_signed();
        let precision = format.fraction_bits + 1;

        let (kept, rest) = (significand >> (128 - precision), significand << precision);
        let up = self.rounding.rounds_up(sign, kept & 1 != 0, rest);
        let mut rounded = kept + u128::from(up);
        let mut top = leading;
        if rounded >> precision != 0 {
            rounded >>= 1;
            top += 1;
        }
        self.rounded_up = up;
        if top < format.min_exponent() {
            return self.round_tiny(format, sign, leading, significand, rest != 0);
        }
        if top > format.max_exponent() {
            self.raise(flag::OE);
            if self.masked & flag::OE != 0 || rest != 0 {
                self.raise(flag::PE);
            }
            let to_infinity = match self.rounding {
                Rounding::Nearest => true,
                Rounding::Down => sign,
                Rounding::Up => !sign,
                Rounding::Zero => false,
            };
            self.rounded_up = to_infinity;
            return if to_infinity {
                format.infinity(sign)
            } else {
                format.largest(sign)
            };
        }
        if rest != 0 {
            self.raise(flag::PE);
        }
        let biased = u64::from((top + format.bias()).unsigned_abs());
        format.assemble(sign, biased, low64(rounded))
    }

    /// The result is below the smallest normal number even after rounding with an unbounded exponent.
    fn round_tiny(
        &mut self,
        format: Format,
        sign: bool,
        leading: i32,
        significand: u128,
        inexact: bool,
    ) -> u64 {
        if self.masked & flag::UE == 0 {
            // The exception will be taken; what the result is does not matter.
            self.raise(flag::UE | if inexact { flag::PE } else { 0 });
            return format.zero(sign);
        }
        if self.flush_to_zero {
            self.raise(flag::UE | flag::PE);
            return format.zero(sign);
        }
        let cut = 127 - format.fraction_bits + (format.min_exponent() - leading).unsigned_abs();
        let (kept, rest) = match cut {
            0..=127 => (significand >> cut, significand << (128 - cut)),
            128 => (0, significand),
            // Below half of the smallest denormal: only that it is not zero matters.
            _ => (0, 1),
        };
        let up = self.rounding.rounds_up(sign, kept & 1 != 0, rest);
        self.rounded_up = up;
        if rest != 0 {
            self.raise(flag::UE | flag::PE);
        }
        // A carry into the smallest normal number is a carry into the exponent field.
        format.zero(sign) | low64(kept + u128::from(up))
    }
}

/// A binary interchange format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub fraction_bits: u32,
    pub exponent_bits: u32,
}

/// Single precision.
pub(crate) const F32: Format = Format {
    fraction_bits: 23,
    exponent_bits: 8,
};
/// Double precision.
pub(crate) const F64: Format = Format {
    fraction_bits: 52,
    exponent_bits: 11,
};

#[allow(clippy::cast_possible_truncation)] // callers keep to 64 bits
pub(crate) fn low64(value: u128) -> u64 {
    value as u64
}

impl Format {
    pub const fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }
    pub const fn min_exponent(self) -> i32 {
        1 - self.bias()
    }
    pub const fn max_exponent(self) -> i32 {
        self.bias()
    }
    const fn fraction_mask(self) -> u64 {
        (1 << self.fraction_bits) - 1
    }
    const fn exponent_mask(self) -> u64 {
        (1 << self.exponent_bits) - 1
    }
    pub const fn sign_bit(self) -> u64 {
        1 << (self.fraction_bits + self.exponent_bits)
    }
    pub const fn quiet_bit(self) -> u64 {
        1 << (self.fraction_bits - 1)
    }
    pub const fn zero(self, sign: bool) -> u64 {
        if sign { self.sign_bit() } else { 0 }
    }
    pub const fn infinity(self, sign: bool) -> u64 {
        self.zero(sign) | (self.exponent_mask() << self.fraction_bits)
    }
    const fn largest(self, sign: bool) -> u64 {
        self.infinity(sign) - 1
    }
    /// The quiet NaN that an invalid operation gives.
    pub const fn default_nan(self) -> u64 {
        self.infinity(true) | self.quiet_bit()
    }
    const fn assemble(self, sign: bool, biased: u64, significand: u64) -> u64 {
        self.zero(sign) | (biased << self.fraction_bits) | (significand & self.fraction_mask())
    }
    pub const fn is_nan(self, bits: u64) -> bool {
        bits & !self.sign_bit() > self.infinity(false)
    }
    pub const fn is_signalling(self, bits: u64) -> bool {
        self.is_nan(bits) && bits & self.quiet_bit() == 0
    }
    pub const fn is_denormal(self, bits: u64) -> bool {
        let magnitude = bits & !self.sign_bit();
        magnitude != 0 && magnitude <= self.fraction_mask()
    }
    const fn negative(self, bits: u64) -> bool {
        bits & self.sign_bit() != 0
    }

    /// What a value that is not a NaN is.
    pub fn unpack(self, bits: u64) -> Number {
        let magnitude = bits & !self.sign_bit();
        let sign = self.negative(bits);
        if magnitude == 0 {
            return Number {
                sign,
                kind: Kind::Zero,
            };
        }
        if magnitude == self.infinity(false) {
            return Number {
                sign,
                kind: Kind::Infinity,
            };
        }
        let biased = magnitude >> self.fraction_bits;
        let fraction = magnitude & self.fraction_mask();
        let significand = if biased == 0 {
            fraction
        } else {
            fraction | (1 << self.fraction_bits)
        };
        let biased = i32::try_from(biased.max(1)).unwrap_or(0);
        let exponent = biased - self.bias() - self.fraction_bits.cast_signed();
        Number {
            sign,
            kind: Kind::Finite {
                exponent,
                significand,
            },
        }
    }
}

/// A value that is not a NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    pub sign: bool,
    pub kind: Kind,
}

/// Its magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Zero,
    /// `significand * 2^exponent`, significand not zero.
    Finite {
        exponent: i32,
        significand: u64,
    },
    Infinity,
}

/// How two values compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Less,
    Equal,
    Greater,
    Unordered,
}

impl Context {
    /// A denormal operand as zero where MXCSR.DAZ asks for it.
    pub fn operand(&self, format: Format, bits: u64) -> u64 {
        if self.denormals_are_zero && format.is_denormal(bits) {
            bits & format.sign_bit()
        } else {
            bits
        }
    }

    fn note_denormal(&mut self, format: Format, bits: u64) {
        if format.is_denormal(bits) {
            self.raise(flag::DE);
        }
    }

    fn invalid(&mut self, format: Format) -> u64 {
        self.raise(flag::IE);
        format.default_nan()
    }

    /// The result when an operand is a NaN: the first that is one, made quiet (SDM volume 1, table 4-7, SSE column).
    fn nan(&mut self, format: Format, a: u64, b: u64) -> Option<u64> {
        if format.is_signalling(a) || format.is_signalling(b) {
            self.raise(flag::IE);
        }
        let nan = [a, b].into_iter().find(|bits| format.is_nan(*bits))?;
        Some(nan | format.quiet_bit())
    }

    /// Operands of a binary operation, or its result when one is a NaN.
    fn operands(&mut self, format: Format, a: u64, b: u64) -> Result<(Number, Number), u64> {
        let (a, b) = (self.operand(format, a), self.operand(format, b));
        if let Some(nan) = self.nan(format, a, b) {
            return Err(nan);
        }
        Ok((format.unpack(a), format.unpack(b)))
    }

    fn note_denormals(&mut self, format: Format, a: u64, b: u64) {
        if !self.denormals_are_zero {
            self.note_denormal(format, a);
            self.note_denormal(format, b);
        }
    }

    pub fn add(&mut self, format: Format, a: u64, b: u64) -> u64 {
        self.sum(format, a, b, false)
    }

    pub fn sub(&mut self, format: Format, a: u64, b: u64) -> u64 {
        self.sum(format, a, b, true)
    }

    fn sum(&mut self, format: Format, a: u64, b: u64, negate: bool) -> u64 {
        let (x, mut y) = match self.operands(format, a, b) {
            Ok(pair) => pair,
            Err(nan) => return nan,
        };
        y.sign ^= negate;
        match (x.kind, y.kind) {
            (Kind::Infinity, Kind::Infinity) if x.sign != y.sign => return self.invalid(format),
            _ => self.note_denormals(format, a, b),
        }
        match (x.kind, y.kind) {
            (Kind::Infinity, _) => format.infinity(x.sign),
            (_, Kind::Infinity) => format.infinity(y.sign),
            (Kind::Zero, Kind::Zero) => {
                let sign = if x.sign == y.sign {
                    x.sign
                } else {
                    self.rounding == Rounding::Down
                };
                format.zero(sign)
            }
            (
                Kind::Finite {
                    exponent,
                    significand,
                },
                Kind::Zero,
            ) => self.round(format, x.sign, exponent, u128::from(significand)),
            (
                Kind::Zero,
                Kind::Finite {
                    exponent,
                    significand,
                },
            ) => self.round(format, y.sign, exponent, u128::from(significand)),
            (
                Kind::Finite {
                    exponent: ea,
                    significand: sa,
                },
                Kind::Finite {
                    exponent: eb,
                    significand: sb,
                },
            ) => {
                let (top, low) = if ea >= eb {
                    ((x.sign, ea, sa), (y.sign, eb, sb))
                } else {
                    ((y.sign, eb, sb), (x.sign, ea, sa))
                };
                // 53 bits with 64 below them: exact, or with a sticky bit far below the last one that counts.
                let high = u128::from(top.2) << 64;
                let low_part = shift_right_sticky(u128::from(low.2) << 64, (top.1 - low.1).unsigned_abs());
                let exponent = top.1 - 64;
                if top.0 == low.0 {
                    return self.round(format, top.0, exponent, high + low_part);
                }
                match high.cmp(&low_part) {
                    std::cmp::Ordering::Equal => format.zero(self.rounding == Rounding::Down),
                    std::cmp::Ordering::Greater => self.round(format, top.0, exponent, high - low_part),
                    std::cmp::Ordering::Less => self.round(format, low.0, exponent, low_part - high),
                }
            }
        }
    }

    pub fn mul(&mut self, format: Format, a: u64, b: u64) -> u64 {
        let (x, y) = match self.operands(format, a, b) {
            Ok(pair) => pair,
            Err(nan) => return nan,
        };
        let sign = x.sign != y.sign;
        match (x.kind, y.kind) {
            (Kind::Infinity, Kind::Zero) | (Kind::Zero, Kind::Infinity) => return self.invalid(format),
            _ => self.note_denormals(format, a, b),
        }
        match (x.kind, y.kind) {
            (Kind::Infinity, _) | (_, Kind::Infinity) => format.infinity(sign),
            (Kind::Zero, _) | (_, Kind::Zero) => format.zero(sign),
            (
                Kind::Finite {
                    exponent: ea,
                    significand: sa,
                },
                Kind::Finite {
                    exponent: eb,
                    significand: sb,
                },
            ) => self.round(format, sign, ea + eb, u128::from(sa) * u128::from(sb)),
        }
    }

    pub fn div(&mut self, format: Format, a: u64, b: u64) -> u64 {
        let (x, y) = match self.operands(format, a, b) {
            Ok(pair) => pair,
            Err(nan) => return nan,
        };
        let sign = x.sign != y.sign;
        match (x.kind, y.kind) {
            (Kind::Infinity, Kind::Infinity) | (Kind::Zero, Kind::Zero) => return self.invalid(format),
            // A division by zero is told, a denormal dividend then is not.
            (_, Kind::Zero) => {}
            _ => self.note_denormals(format, a, b),
        }
        match (x.kind, y.kind) {
            (Kind::Infinity, _) => format.infinity(sign),
            (_, Kind::Infinity) | (Kind::Zero, _) => format.zero(sign),
            (_, Kind::Zero) => {
                self.raise(flag::ZE);
                format.infinity(sign)
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
            ) => {
                // Both with their leading bit on top of 64 bits, so that the quotient has at least 63 significant bits.
                let (la, lb) = (sa.leading_zeros(), sb.leading_zeros());
                let numerator = u128::from(sa << la) << 63;
                let denominator = u128::from(sb << lb);
                let (quotient, remainder) = (numerator / denominator, numerator % denominator);
                let exponent = (ea - la.cast_signed()) - (eb - lb.cast_signed()) - 63;
                self.round(
                    format,
                    sign,
                    exponent - 1,
                    quotient << 1 | u128::from(remainder != 0),
                )
            }
        }
    }

    pub fn sqrt(&mut self, format: Format, a: u64) -> u64 {
        let a = self.operand(format, a);
        if let Some(nan) = self.nan(format, a, a) {
            return nan;
        }
        let x = format.unpack(a);
        match x.kind {
            Kind::Zero => a,
            _ if x.sign => self.invalid(format),
            Kind::Infinity => a,
            Kind::Finite {
                exponent,
                significand,
            } => {
                self.note_denormal(format, a);
                let shift = significand.leading_zeros();
                let mut radicand = u128::from(significand << shift) << 62;
                let mut exponent = exponent - shift.cast_signed() - 62;
                if exponent % 2 != 0 {
                    radicand <<= 1;
                    exponent -= 1;
                }
                let root = radicand.isqrt();
                let inexact = root * root != radicand;
                self.round(format, false, exponent / 2 - 1, root << 1 | u128::from(inexact))
            }
        }
    }

    /// MIN and MAX: the second operand unless the first is truly less (greater); also when either is a NaN, which is invalid.
    pub fn min_max(&mut self, format: Format, a: u64, b: u64, wanted: Relation) -> u64 {
        let (a, b) = (self.operand(format, a), self.operand(format, b));
        if format.is_nan(a) || format.is_nan(b) {
            self.raise(flag::IE);
            return b;
        }
        self.note_denormals(format, a, b);
        if relation(format, a, b) == wanted { a } else { b }
    }

    /// Compares; an unordered pair is invalid when an operand is a signalling NaN, or any NaN if `signalling`.
    pub fn compare(&mut self, format: Format, a: u64, b: u64, signalling: bool) -> Relation {
        let (a, b) = (self.operand(format, a), self.operand(format, b));
        if format.is_nan(a) || format.is_nan(b) {
            if signalling || format.is_signalling(a) || format.is_signalling(b) {
                self.raise(flag::IE);
            }
            return Relation::Unordered;
        }
        self.note_denormals(format, a, b);
        relation(format, a, b)
    }

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
    pub fn from_integer(&mut self, format: Format, value: i64) -> u64 {
        if value == 0 {
            return format.zero(false);
        }
        self.round(format, value < 0, 0, u128::from(value.unsigned_abs()))
    }

    /// A floating-point number as a signed integer of `bits` bits, sign-extended; out of range is invalid and gives the integer
    /// indefinite, the smallest value there is.
    pub fn to_integer(&mut self, format: Format, value: u64, bits: u32, truncate: bool) -> i64 {
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

    /// As [`Self::to_integer`], for a value already taken apart.
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

/// Shifts right; any bit lost stays visible in the last one.
fn shift_right_sticky(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => value >> by | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

/// Compares two values that are not NaNs.
fn relation(format: Format, a: u64, b: u64) -> Relation {
    // Sign and magnitude as a two's complement number; both zeroes are 0.
    let key = |bits: u64| {
        let magnitude = (bits & !format.sign_bit()).cast_signed();
        if format.negative(bits) {
            -magnitude
        } else {
            magnitude
        }
    };
    match key(a).cmp(&key(b)) {
        std::cmp::Ordering::Less => Relation::Less,
        std::cmp::Ordering::Equal => Relation::Equal,
        std::cmp::Ordering::Greater => Relation::Greater,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEFAULT: u32 = 0x1f80;

    fn context() -> Context {
        Context::from_mxcsr(DEFAULT)
    }

    fn same64(ours: u64, host: f64) -> bool {
        ours == host.to_bits() || (F64.is_nan(ours) && host.is_nan())
    }

    proptest! {
        // Round to nearest is what the host computes with; NaNs are compared by the differential test.
        #[test]
        fn doubles_agree_with_the_host(a: u64, b: u64, near in any::<bool>()) {
            let b = if near { a ^ (b & 0x001f_0000_0000_000f) } else { b };
            let (x, y) = (f64::from_bits(a), f64::from_bits(b));
            prop_assert!(same64(context().add(F64, a, b), x + y));
            prop_assert!(same64(context().sub(F64, a, b), x - y));
            prop_assert!(same64(context().mul(F64, a, b), x * y));
            prop_assert!(same64(context().div(F64, a, b), x / y));
            prop_assert!(same64(context().sqrt(F64, a), x.sqrt()));
        }

        #[test]
        fn conversions_agree_with_the_host(a: u64, b: i64) {
            #[allow(clippy::cast_possible_truncation)]
            let single = f64::from_bits(a) as f32;
            let ours = context().convert(F64, F32, a);
            prop_assert!(ours == u64::from(single.to_bits()) || single.is_nan());
            #[allow(clippy::cast_precision_loss)]
            let double = b as f64;
            prop_assert_eq!(context().from_integer(F64, b), double.to_bits());
            let mut cx = context();
            let back = cx.to_integer(F64, a, 64, true);
            if cx.raised & flag::IE == 0 {
                #[allow(clippy::cast_possible_truncation)]
                let host = f64::from_bits(a) as i64;
                prop_assert_eq!(back, host);
            }
        }
    }

    #[test]
    fn flags_tell_what_happened() {
        let one = 1f64.to_bits();
        let three = 3f64.to_bits();
        let mut cx = context();
        cx.div(F64, one, three);
        assert_eq!(cx.raised, flag::PE);
        let mut cx = context();
        assert_eq!(cx.div(F64, one, 0), f64::INFINITY.to_bits());
        assert_eq!(cx.raised, flag::ZE);
        let mut cx = context();
        assert_eq!(
            cx.sub(F64, f64::INFINITY.to_bits(), f64::INFINITY.to_bits()),
            F64.default_nan()
        );
        assert_eq!(cx.raised, flag::IE);
        let mut cx = context();
        cx.mul(F64, f64::MAX.to_bits(), three);
        assert_eq!(cx.raised, flag::OE | flag::PE);
        let mut cx = context();
        cx.mul(F64, 1, one);
        assert_eq!(cx.raised, flag::DE, "an exact denormal does not underflow");
    }

    #[test]
    fn directed_rounding_brackets_the_value() {
        let (one, three) = (1f64.to_bits(), 3f64.to_bits());
        let third = |rc: u32| Context::from_mxcsr(DEFAULT | rc << 13).div(F64, one, three);
        assert_eq!(third(1), third(3));
        assert_eq!(third(2), third(1) + 1);
    }

    #[test]
    fn flushing_and_denormals_are_zero() {
        let mut cx = Context::from_mxcsr(DEFAULT | 1 << 15);
        let tiny = f64::MIN_POSITIVE.to_bits();
        assert_eq!(cx.mul(F64, tiny, 0.5f64.to_bits()), 0);
        assert_eq!(cx.raised, flag::UE | flag::PE);
        let mut cx = Context::from_mxcsr(DEFAULT | 1 << 6);
        assert_eq!(cx.add(F64, 1, 1), 0);
        assert_eq!(cx.raised, 0);
    }
}
