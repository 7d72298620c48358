//! Sums, products, quotients and roots of numbers before they are rounded.
//!
//! Significands may have up to 64 bits, so these serve the extended format of the x87 as well as the two of SSE.

use std::cmp::Ordering;

use super::{Kind, Number, Rounding};

/// A result with all of its bits, or with so many that a sticky last one leads every rounding to the right value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exact {
    /// `(-1)^sign * significand * 2^exponent`, significand not zero.
    Finite {
        sign: bool,
        exponent: i32,
        significand: u128,
    },
    Zero {
        sign: bool,
    },
    Infinity {
        sign: bool,
    },
    /// The infinite result of an operation on finite operands: a division by zero.
    Pole {
        sign: bool,
    },
    /// There is no result.
    Invalid,
}

impl Number {
    /// The value itself as a result.
    pub fn exact(self) -> Exact {
        let sign = self.sign;
        match self.kind {
            Kind::Zero => Exact::Zero { sign },
            Kind::Infinity => Exact::Infinity { sign },
            Kind::Finite {
                exponent,
                significand,
            } => Exact::Finite {
                sign,
                exponent,
                significand: u128::from(significand),
            },
        }
    }

    pub fn negated(self) -> Self {
        Self {
            sign: !self.sign,
            ..self
        }
    }

    /// Compares values; both zeroes are equal.
    pub fn order(self, other: Self) -> Ordering {
        let magnitude = |number: Self| match number.kind {
            Kind::Zero => (i32::MIN, 0),
            Kind::Infinity => (i32::MAX, 0),
            Kind::Finite {
                exponent,
                significand,
            } => {
                let shift = significand.leading_zeros();
                (exponent - shift.cast_signed(), significand << shift)
            }
        };
        let (a, b) = (magnitude(self), magnitude(other));
        match (self.sign, other.sign) {
            _ if self.kind == Kind::Zero && other.kind == Kind::Zero => Ordering::Equal,
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => a.cmp(&b),
            (true, true) => b.cmp(&a),
        }
    }
}

/// `x + y`. The sign of a zero that is no operand's depends on the rounding.
///
/// Of two finite operands the one with the larger exponent must have the leading bit of its format set, which it has
/// unless both exponents are the smallest one.
pub(crate) fn sum(x: Number, y: Number, rounding: Rounding) -> Exact {
    let nothing = Exact::Zero {
        sign: rounding == Rounding::Down,
    };
    match (x.kind, y.kind) {
        (Kind::Infinity, Kind::Infinity) if x.sign != y.sign => Exact::Invalid,
        (Kind::Zero, Kind::Zero) if x.sign != y.sign => nothing,
        (Kind::Infinity, _) | (_, Kind::Zero) => x.exact(),
        (_, Kind::Infinity) | (Kind::Zero, _) => y.exact(),
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
            // 64 bits with 63 below them: exact, or with a sticky bit far below the last one that counts.
            let high = u128::from(top.2) << 63;
            let low_part = shift_right_sticky(u128::from(low.2) << 63, (top.1 - low.1).unsigned_abs());
            let (sign, significand) = if top.0 == low.0 {
                (top.0, high + low_part)
            } else {
                match high.cmp(&low_part) {
                    Ordering::Equal => return nothing,
                    Ordering::Greater => (top.0, high - low_part),
                    Ordering::Less => (low.0, low_part - high),
                }
            };
            Exact::Finite {
                sign,
                exponent: top.1 - 63,
                significand,
            }
        }
    }
}

/// `x * y`.
pub(crate) fn product(x: Number, y: Number) -> Exact {
    let sign = x.sign != y.sign;
    match (x.kind, y.kind) {
        (Kind::Infinity, Kind::Zero) | (Kind::Zero, Kind::Infinity) => Exact::Invalid,
        (Kind::Infinity, _) | (_, Kind::Infinity) => Exact::Infinity { sign },
        (Kind::Zero, _) | (_, Kind::Zero) => Exact::Zero { sign },
        (
            Kind::Finite {
                exponent: ea,
                significand: sa,
            },
            Kind::Finite {
                exponent: eb,
                significand: sb,
            },
        ) => Exact::Finite {
            sign,
            exponent: ea + eb,
            significand: u128::from(sa) * u128::from(sb),
        },
    }
}

/// `x / y`.
pub(crate) fn quotient(x: Number, y: Number) -> Exact {
    let sign = x.sign != y.sign;
    match (x.kind, y.kind) {
        (Kind::Infinity, Kind::Infinity) | (Kind::Zero, Kind::Zero) => Exact::Invalid,
        (Kind::Infinity, _) => Exact::Infinity { sign },
        (_, Kind::Infinity) | (Kind::Zero, _) => Exact::Zero { sign },
        (_, Kind::Zero) => Exact::Pole { sign },
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
            // Both with their leading bit on top of 64 bits; the quotient in two steps of 63 bits.
            let (la, lb) = (sa.leading_zeros(), sb.leading_zeros());
            let divisor = u128::from(sb << lb);
            let step = |part: u128| ((part << 63) / divisor, (part << 63) % divisor);
            let (high, rest) = step(u128::from(sa << la));
            let (low, rest) = step(rest);
            Exact::Finite {
                sign,
                exponent: (ea - la.cast_signed()) - (eb - lb.cast_signed()) - 127,
                significand: (high << 63 | low) << 1 | u128::from(rest != 0),
            }
        }
    }
}

/// The square root of `x`.
pub(crate) fn root(x: Number) -> Exact {
    match x.kind {
        Kind::Zero => x.exact(),
        _ if x.sign => Exact::Invalid,
        Kind::Infinity => x.exact(),
        Kind::Finite {
            exponent,
            significand,
        } => {
            let shift = significand.leading_zeros();
            let exponent = exponent - shift.cast_signed();
            // 127 or 128 bits with an even exponent, so that the root has 64 bits.
            let further = if exponent % 2 == 0 { 64 } else { 63 };
            let radicand = u128::from(significand << shift) << further;
            let root = radicand.isqrt();
            let rest = radicand - root * root;
            // (root + 1/2)^2 = root^2 + root + 1/4, so the next bit of the root is one if the rest is above the root.
            Exact::Finite {
                sign: false,
                exponent: (exponent - further) / 2 - 2,
                significand: root << 2 | u128::from(rest > root) << 1 | u128::from(rest != 0),
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn finite(exponent: i32, significand: u64) -> Number {
        Number {
            sign: false,
            kind: Kind::Finite {
                exponent,
                significand,
            },
        }
    }

    fn parts(exact: Exact) -> (i32, u128) {
        match exact {
            Exact::Finite {
                exponent,
                significand,
                ..
            } => (exponent, significand),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_quotient_times_the_divisor_is_the_dividend(a in 1u32.., b in 1u32..) {
            let (a, b) = (u64::from(a), u64::from(b));
            let (exponent, significand) = parts(quotient(finite(0, a * b), finite(0, b)));
            prop_assert_eq!(significand >> significand.trailing_zeros(), u128::from(a >> a.trailing_zeros()));
            let lowest = exponent + significand.trailing_zeros().cast_signed();
            prop_assert_eq!(lowest, a.trailing_zeros().cast_signed());
        }

        #[test]
        fn a_root_lies_between_its_neighbours(significand in 1u64.., exponent in -100i32..100) {
            let (root_exponent, root) = parts(root(finite(exponent, significand)));
            // The 64 leading bits without the two that follow.
            let (low, exact) = (root >> 2, root & 3 == 0);
            let shift = exponent - 2 * (root_exponent + 2);
            prop_assert!(shift >= 0);
            let value = u128::from(significand) << shift;
            prop_assert!(low * low <= value);
            prop_assert_eq!(low * low == value, exact);
            prop_assert!((low + 1).checked_mul(low + 1).is_none_or(|above| above > value));
        }

        #[test]
        fn order_is_that_of_the_values(a: i32, b: i32) {
            let number = |v: i32| Number {
                sign: v < 0,
                kind: if v == 0 {
                    Kind::Zero
                } else {
                    Kind::Finite { exponent: 0, significand: u64::from(v.unsigned_abs()) }
                },
            };
            prop_assert_eq!(number(a).order(number(b)), a.cmp(&b));
        }
    }

    #[test]
    fn a_sum_keeps_a_sticky_bit_of_what_is_far_below() {
        let one = finite(0, 1 << 63);
        let (exponent, significand) = parts(sum(one, finite(-1000, 1), Rounding::Nearest));
        assert_eq!((exponent, significand), (-63, (1 << 126) + 1));
        let (_, significand) = parts(sum(one, finite(-1000, 1).negated(), Rounding::Nearest));
        assert_eq!(significand, (1 << 126) - 1);
    }
}
