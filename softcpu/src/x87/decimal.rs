//! Packed decimal integers of 18 digits and a sign (SDM volume 1, section 4.7).

use super::F80;
use super::f80::Class;
use crate::sse::softfloat::{Context, Number, flag};

/// The first number that has too many digits.
const LIMIT: u64 = 1_000_000_000_000_000_000;
/// What is stored for a value that is no such integer.
const INDEFINITE: u128 = 0xffff_c000_0000_0000_0000;
/// The sign bit.
const SIGN: u128 = 1 << 79;

/// The value of a packed decimal. Digits above nine count as they are; processors differ there.
pub(super) fn load(bits: u128) -> F80 {
    let digits = (0..18).rev().fold(0u64, |value, place| {
        let digit = (bits >> (4 * place)).to_le_bytes()[0] & 15;
        value.wrapping_mul(10).wrapping_add(u64::from(digit))
    });
    F80::from_integer(digits.cast_signed()).with_sign(bits & SIGN != 0)
}

/// The value rounded to a packed decimal. Sets flags in `context`.
pub(super) fn store(context: &mut Context, value: F80) -> u128 {
    let integer = match value.classify() {
        Class::Number(number) => integer(context, number),
        _ => None,
    };
    let Some(mut rest) = integer else {
        context.raised |= flag::IE;
        return INDEFINITE;
    };
    let mut bits = if value.sign() { SIGN } else { 0 };
    for place in 0..18 {
        bits |= u128::from(rest % 10) << (4 * place);
        rest /= 10;
    }
    bits
}

/// The magnitude of the number rounded to an integer, if it has at most 18 digits. Sets flags only then.
fn integer(context: &mut Context, number: Number) -> Option<u64> {
    let mut attempt = Context {
        raised: 0,
        ..*context
    };
    let magnitude = attempt.number_to_integer(number, 64, false).unsigned_abs();
    if attempt.raised & flag::IE != 0 || magnitude >= LIMIT {
        return None;
    }
    context.raised |= attempt.raised;
    context.rounded_up = attempt.rounded_up;
    Some(magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_stored_is_loaded_again(value in -999_999_999_999_999_999i64..1_000_000_000_000_000_000) {
            let mut context = Context::from_control_word(0x37f);
            let extended = F80::from_integer(value);
            let packed = store(&mut context, extended);
            prop_assert_eq!(format!("{:x}", packed & !SIGN), value.unsigned_abs().to_string());
            prop_assert_eq!(load(packed), extended);
            prop_assert_eq!(context.raised, 0);
        }
    }

    #[test]
    fn nineteen_digits_are_too_many() {
        let limit = i64::try_from(LIMIT).unwrap();
        for value in [
            F80::from_integer(limit),
            F80::from_integer(-limit),
            F80::infinity(false),
        ] {
            let mut context = Context::from_control_word(0x37f);
            assert_eq!(store(&mut context, value), INDEFINITE);
            assert_eq!(context.raised, flag::IE);
        }
        let mut context = Context::from_control_word(0x37f);
        assert_eq!(store(&mut context, F80::zero(true)), SIGN, "minus zero");
    }
}
