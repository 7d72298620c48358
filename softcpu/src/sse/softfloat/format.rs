//! The interchange formats, and the classes of their bit patterns.

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
    pub const fn fraction_mask(self) -> u64 {
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
    pub const fn largest(self, sign: bool) -> u64 {
        self.infinity(sign) - 1
    }
    /// The quiet NaN that an invalid operation gives.
    pub const fn default_nan(self) -> u64 {
        self.infinity(true) | self.quiet_bit()
    }
    pub const fn assemble(self, sign: bool, biased: u64, significand: u64) -> u64 {
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
    pub const fn negative(self, bits: u64) -> bool {
        bits & self.sign_bit() != 0
    }

    /// Class of a value that is not a NaN.
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
