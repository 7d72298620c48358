//! Arithmetic and comparison of two values of one format.

use super::{Context, Exact, Format, Number, flag, product, quotient, root, sum};

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

    /// A result of two operands. An invalid operation and a division by zero do not look at denormal operands.
    fn result(&mut self, format: Format, a: u64, b: u64, exact: Exact) -> u64 {
        if !matches!(exact, Exact::Invalid | Exact::Pole { .. }) {
            self.note_denormals(format, a, b);
        }
        self.encode(format, exact)
    }

    pub fn add(&mut self, format: Format, a: u64, b: u64) -> u64 {
        match self.operands(format, a, b) {
            Ok((x, y)) => self.result(format, a, b, sum(x, y, self.rounding)),
            Err(nan) => nan,
        }
    }

    pub fn sub(&mut self, format: Format, a: u64, b: u64) -> u64 {
        match self.operands(format, a, b) {
            Ok((x, y)) => self.result(format, a, b, sum(x, y.negated(), self.rounding)),
            Err(nan) => nan,
        }
    }

    pub fn mul(&mut self, format: Format, a: u64, b: u64) -> u64 {
        match self.operands(format, a, b) {
            Ok((x, y)) => self.result(format, a, b, product(x, y)),
            Err(nan) => nan,
        }
    }

    pub fn div(&mut self, format: Format, a: u64, b: u64) -> u64 {
        match self.operands(format, a, b) {
            Ok((x, y)) => self.result(format, a, b, quotient(x, y)),
            Err(nan) => nan,
        }
    }

    pub fn sqrt(&mut self, format: Format, a: u64) -> u64 {
        match self.operands(format, a, a) {
            Ok((x, _)) => self.result(format, a, a, root(x)),
            Err(nan) => nan,
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
