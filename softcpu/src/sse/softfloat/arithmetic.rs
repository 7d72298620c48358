//! Arithmetic and comparison of two values of one format.

use super::{Context, Format, Kind, Number, Rounding, flag};

/// Result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Less,
    Equal,
    Greater,
    Unordered,
}

impl Context {
    /// The operand, or zero if it is denormal and MXCSR.DAZ is set.
    pub fn operand(&self, format: Format, bits: u64) -> u64 {
        if self.denormals_are_zero && format.is_denormal(bits) {
            bits & format.sign_bit()
        } else {
            bits
        }
    }

    pub(super) fn note_denormal(&mut self, format: Format, bits: u64) {
        if format.is_denormal(bits) {
            self.raise(flag::DE);
        }
    }

    fn invalid(&mut self, format: Format) -> u64 {
        self.raise(flag::IE);
        format.default_nan()
    }

    /// The result if an operand is a NaN: the first NaN, made quiet (SDM volume 1, table 4-7, SSE column).
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
            // A division by zero sets ZE only, not DE for a denormal dividend.
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

    /// MIN and MAX: the second operand unless the first is truly less (greater); also if either is a NaN, which
    /// raises the invalid flag.
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
}

/// Shifts right; the last bit of the result is set if any bit shifted out was set.
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
