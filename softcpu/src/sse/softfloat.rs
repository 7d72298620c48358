//! IEEE 754 arithmetic in integers, with the x86 rules for flags, NaNs and denormals.
//!
//! A run must give the same result on every host and raise exactly the flags that hardware raises. Rust code can use
//! neither the flags nor the directed rounding of the host's floating point. Every result is therefore computed in
//! integers as `significand * 2^exponent` with a 128-bit significand, exactly or with a sticky last bit, and
//! [`Context::round`] rounds it once.

mod arithmetic;
mod conversion;
mod exact;
mod format;

pub(crate) use arithmetic::Relation;
pub(crate) use exact::{Exact, product, quotient, root, sum};
pub(crate) use format::{F32, F64, Format, Kind, Number, low64};

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
    pub fn rounds_up(self, sign: bool, odd: bool, rest: u128) -> bool {
        const HALF: u128 = 1 << 127;
        match self {
            Self::Nearest => rest > HALF || (rest == HALF && odd),
            Self::Down => sign && rest != 0,
            Self::Up => !sign && rest != 0,
            Self::Zero => false,
        }
    }
}

/// Rounding and masks of a computation, and the flags that it raised.
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

    /// Rounds a result to `format` and encodes it.
    pub fn encode(&mut self, format: Format, exact: Exact) -> u64 {
        match exact {
            Exact::Finite {
                sign,
                exponent,
                significand,
            } => self.round(format, sign, exponent, significand),
            Exact::Zero { sign } => format.zero(sign),
            Exact::Infinity { sign } => format.infinity(sign),
            Exact::Pole { sign } => {
                self.raise(flag::ZE);
                format.infinity(sign)
            }
            Exact::Invalid => {
                self.raise(flag::IE);
                format.default_nan()
            }
        }
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
            // The exception will be raised, so the result is not used.
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
            // Below half of the smallest denormal, rounding depends only on the value not being zero.
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
            prop_assert_eq!(context().encode_integer(F64, b), double.to_bits());
            let mut cx = context();
            let back = cx.integer(F64, a, 64, true);
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
