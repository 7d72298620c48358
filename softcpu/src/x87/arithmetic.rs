//! Arithmetic and comparison of extended numbers, without the register stack.

use std::cmp::Ordering;

use super::F80;
use super::f80::Class;
use super::round::FULL;
use crate::sse::softfloat::{
    Context, Exact, Format, Kind, Number, Relation, flag, low64, product, quotient, root, sum,
};

/// An operand in extended precision, and whether it is denormal in the format that it comes in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub value: F80,
    denormal: bool,
}

impl Operand {
    /// What a register holds.
    pub fn register(bits: u128) -> Self {
        let value = F80(bits);
        Self {
            value,
            denormal: value.is_denormal(),
        }
    }

    /// A number in single or double precision.
    pub fn float(format: Format, bits: u64) -> Self {
        Self {
            value: F80::exactly(format, bits),
            denormal: format.is_denormal(bits),
        }
    }

    pub fn integer(value: i64) -> Self {
        Self {
            value: F80::from_integer(value),
            denormal: false,
        }
    }
}

/// What two operands are combined to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
}

/// An operation with two operands, rounded to `precision` bits.
pub(super) fn binary(
    context: &mut Context,
    operation: Binary,
    precision: u32,
    a: Operand,
    b: Operand,
) -> F80 {
    let (x, y) = match numbers(context, a, b) {
        Ok(pair) => pair,
        Err(nan) => return nan,
    };
    let exact = match operation {
        Binary::Add => sum(x, y, context.rounding),
        Binary::Subtract => sum(x, y.negated(), context.rounding),
        Binary::Multiply => product(x, y),
        Binary::Divide => quotient(x, y),
    };
    if !matches!(exact, Exact::Invalid | Exact::Pole { .. }) {
        note_denormals(context, [a, b]);
    }
    context.extended(precision, exact)
}

/// The square root, rounded to `precision` bits.
pub(super) fn square_root(context: &mut Context, precision: u32, a: Operand) -> F80 {
    let x = match number(context, a) {
        Ok(x) => x,
        Err(nan) => return nan,
    };
    let exact = root(x);
    if exact != Exact::Invalid {
        note_denormals(context, [a]);
    }
    context.extended(precision, exact)
}

/// The nearest integer, as the rounding has it.
pub(super) fn round_to_integer(context: &mut Context, a: Operand) -> F80 {
    let x = match number(context, a) {
        Ok(x) => x,
        Err(nan) => return nan,
    };
    note_denormals(context, [a]);
    let Kind::Finite {
        exponent,
        significand,
    } = x.kind
    else {
        return a.value;
    };
    if exponent >= 0 {
        return a.value;
    }
    let significand = u128::from(significand) << 64;
    let (kept, rest) = match exponent.unsigned_abs() {
        cut @ 1..64 => (significand >> 64 >> cut, significand << (64 - cut)),
        64 => (0, significand),
        // Less than a half.
        _ => (0, 1),
    };
    let up = context.rounding.rounds_up(x.sign, kept & 1 != 0, rest);
    if rest != 0 {
        context.raised |= flag::PE;
        context.rounded_up = up;
    }
    F80::from_magnitude(x.sign, low64(kept) + u64::from(up))
}

/// Exponent and significand of a number, in that order, as numbers themselves.
pub(super) fn extract(context: &mut Context, a: Operand) -> (F80, F80) {
    let x = match number(context, a) {
        Ok(x) => x,
        Err(nan) => return (nan, nan),
    };
    match x.kind {
        Kind::Zero => {
            context.raised |= flag::ZE;
            (F80::infinity(true), a.value)
        }
        Kind::Infinity => (F80::infinity(false), a.value),
        Kind::Finite {
            exponent,
            significand,
        } => {
            note_denormals(context, [a]);
            let shift = significand.leading_zeros();
            (
                F80::from_integer(i64::from(exponent + 63 - shift.cast_signed())),
                F80::finite(x.sign, 0, significand << shift),
            )
        }
    }
}

/// `a` times two to the power of `b` without its fraction.
pub(super) fn scale(context: &mut Context, a: Operand, b: Operand) -> F80 {
    let (x, y) = match numbers(context, a, b) {
        Ok(pair) => pair,
        Err(nan) => return nan,
    };
    let sign = x.sign;
    let exact = match (x.kind, y.kind) {
        (Kind::Infinity, Kind::Infinity) if y.sign => Exact::Invalid,
        (Kind::Zero, Kind::Infinity) if !y.sign => Exact::Invalid,
        (_, Kind::Infinity) if y.sign => Exact::Zero { sign },
        (_, Kind::Infinity) => Exact::Infinity { sign },
        (_, Kind::Zero) | (Kind::Zero | Kind::Infinity, _) => x.exact(),
        (
            Kind::Finite {
                exponent,
                significand,
            },
            Kind::Finite { .. },
        ) => Exact::Finite {
            sign,
            exponent: exponent + power(y),
            significand: u128::from(significand),
        },
    };
    if exact != Exact::Invalid {
        note_denormals(context, [a, b]);
    }
    context.extended(FULL, exact)
}

/// The integer part of a number, at most 2^17 because that is beyond every exponent.
fn power(y: Number) -> i32 {
    let mut context = Context::from_control_word(0x37f);
    let limit = 1 << 17;
    let integer = context.number_to_integer(y, 32, true);
    if context.raised & flag::IE != 0 {
        return if y.sign { -limit } else { limit };
    }
    i32::try_from(integer.clamp(-i64::from(limit), i64::from(limit))).unwrap_or(0)
}

/// Compares; an unordered pair is invalid, but not if `quiet` and no operand is a signalling NaN.
pub(super) fn compare(context: &mut Context, a: Operand, b: Operand, quiet: bool) -> Relation {
    let classes = [a.value.classify(), b.value.classify()];
    let [Class::Number(x), Class::Number(y)] = classes else {
        let only_quiet = classes
            .iter()
            .all(|class| matches!(class, Class::Number(_) | Class::Nan { signalling: false }));
        if !quiet || !only_quiet {
            context.raised |= flag::IE;
        }
        return Relation::Unordered;
    };
    note_denormals(context, [a, b]);
    match x.order(y) {
        Ordering::Less => Relation::Less,
        Ordering::Equal => Relation::Equal,
        Ordering::Greater => Relation::Greater,
    }
}

pub(super) fn note_denormals<const N: usize>(context: &mut Context, operands: [Operand; N]) {
    if operands.iter().any(|operand| operand.denormal) {
        context.raised |= flag::DE;
    }
}

/// The number that an operand is, or the result if it is none.
pub(super) fn number(context: &mut Context, a: Operand) -> Result<Number, F80> {
    numbers(context, a, a).map(|(x, _)| x)
}

/// The numbers that two operands are, or the result if one of them is none: the default NaN for an unsupported
/// pattern, else the NaN that SDM volume 1, table 4-7, chooses.
pub(super) fn numbers(context: &mut Context, a: Operand, b: Operand) -> Result<(Number, Number), F80> {
    let (x, y) = (a.value.classify(), b.value.classify());
    if x == Class::Unsupported || y == Class::Unsupported {
        context.raised |= flag::IE;
        return Err(F80::DEFAULT_NAN);
    }
    let signalling = Class::Nan { signalling: true };
    if x == signalling || y == signalling {
        context.raised |= flag::IE;
    }
    let (p, q) = (a.value.quiet(), b.value.quiet());
    match (x, y) {
        (Class::Number(x), Class::Number(y)) => Ok((x, y)),
        (_, Class::Number(_)) => Err(p),
        (Class::Number(_), _) => Err(q),
        // A quiet NaN before a signalling one, the larger significand, and of equal ones the positive one.
        _ if x != y => Err(if x == signalling { q } else { p }),
        _ => Err(match p.significand().cmp(&q.significand()) {
            Ordering::Less => q,
            Ordering::Greater => p,
            Ordering::Equal if p.sign() => q,
            Ordering::Equal => p,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::softfloat::F64;
    use proptest::prelude::*;

    const DOUBLE_PRECISION: u16 = 0x27f;

    fn context() -> Context {
        Context::from_control_word(DOUBLE_PRECISION)
    }

    fn narrowed(value: F80) -> f64 {
        f64::from_bits(value.narrow(&mut context(), F64))
    }

    /// Doubles whose sums, products and quotients are far from the ends of a double's exponents.
    fn moderate() -> impl Strategy<Value = f64> {
        (any::<i64>(), -300i32..300).prop_map(|(bits, exponent)| {
            #[allow(clippy::cast_precision_loss)]
            let significand = (bits >> 11) as f64;
            significand * 2f64.powi(exponent)
        })
    }

    proptest! {
        #[test]
        fn double_precision_agrees_with_the_host(x in moderate(), y in moderate()) {
            let (a, b) = (Operand::float(F64, x.to_bits()), Operand::float(F64, y.to_bits()));
            let compute = |operation| narrowed(binary(&mut context(), operation, 53, a, b));
            prop_assert_eq!(compute(Binary::Add), x + y);
            prop_assert_eq!(compute(Binary::Subtract), x - y);
            prop_assert_eq!(compute(Binary::Multiply), x * y);
            if y != 0.0 {
                prop_assert_eq!(compute(Binary::Divide), x / y);
            }
            let root = square_root(&mut context(), 53, Operand::float(F64, x.abs().to_bits()));
            prop_assert_eq!(narrowed(root), x.abs().sqrt());
            let rounded = round_to_integer(&mut context(), a);
            prop_assert_eq!(narrowed(rounded), x.round_ties_even());
            let relation = compare(&mut context(), a, b, true);
            let expected = match x.partial_cmp(&y) {
                Some(Ordering::Less) => Relation::Less,
                Some(Ordering::Equal) => Relation::Equal,
                _ => Relation::Greater,
            };
            prop_assert_eq!(relation, expected);
        }

        #[test]
        fn a_number_is_its_significand_scaled_by_its_exponent(bits in 0u128..1 << 80) {
            let operand = Operand::register(bits);
            let mut cx = Context::from_control_word(0x37f);
            let (exponent, significand) = extract(&mut cx, operand);
            prop_assume!(cx.raised & flag::IE == 0 && significand.classify() != Class::Nan { signalling: false });
            let back = scale(&mut cx, Operand::register(significand.0), Operand::register(exponent.0));
            // A pseudo-denormal becomes the normal number that it is.
            if operand.value.biased() != 0 {
                prop_assert_eq!(back.0, bits);
            } else {
                prop_assert_eq!(back.classify(), operand.value.classify());
            }
        }
    }

    #[test]
    fn of_two_nans_the_one_with_the_larger_significand_is_taken() {
        let nan = |sign: bool, significand: u64| {
            Operand::register(
                F80::DEFAULT_NAN.with_sign(sign).0 & !u128::from(u64::MAX) | u128::from(significand),
            )
        };
        let (small, large) = (
            nan(true, 0xc000_0000_0000_0001),
            nan(false, 0xc000_0000_0000_0002),
        );
        let signalling = nan(false, 0xbfff_ffff_ffff_ffff);
        let mut cx = context();
        assert_eq!(numbers(&mut cx, small, large), Err(large.value));
        assert_eq!(numbers(&mut cx, large, small), Err(large.value));
        assert_eq!(cx.raised, 0);
        assert_eq!(numbers(&mut cx, signalling, small), Err(small.value));
        assert_eq!(cx.raised, flag::IE);
        assert_eq!(
            numbers(&mut cx, signalling, Operand::integer(1)),
            Err(signalling.value.quiet())
        );
        let (minus, plus) = (
            nan(true, 0xc000_0000_0000_0001),
            nan(false, 0xc000_0000_0000_0001),
        );
        assert_eq!(numbers(&mut cx, minus, plus), Err(plus.value));
    }
}
